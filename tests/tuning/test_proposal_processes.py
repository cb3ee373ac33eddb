"""Training of proposals by several processes: the same gradients and losses as by one, however the images fall.

The model is a table of answers, one row for each of four images: what is looked at is how losses and gradients are put
together, and a table has no rounding of its own.

Shapes: B images, Q queries, D width of the text space, K classes.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from maskmine.tuning.open_vocabulary import step
from maskmine.tuning.open_vocabulary.data import MapBatch
from maskmine.tuning.open_vocabulary.initial_model import new_losses
from maskmine.tuning.open_vocabulary.step import MaskLearner
from maskmine.tuning.segmentation.confusion import IGNORE
from maskmine.tuning.training.optim import Trainable
from maskmine.tuning.training.processes import Processes
from tests.support.models import units

CPU = torch.device("cpu")
QUERIES, LAYERS = 6, 2


class Table(nn.Module):
    """The answers of two layers for each image, whose number is the brightness of its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(decoder_config=SimpleNamespace(num_queries=QUERIES))
        chance = torch.Generator().manual_seed(0)
        self.queries_LBQD = nn.Parameter(torch.randn(LAYERS, 4, QUERIES, 8, generator=chance))
        self.masks_LBQhw = nn.Parameter(torch.randn(LAYERS, 4, QUERIES, 8, 8, generator=chance))

    def answers(self, pixels_B3SS: Tensor) -> list[tuple[Tensor, Tensor]]:
        rows_B = (pixels_B3SS[:, 0, 0, 0] * 255).round().long()
        return [(self.queries_LBQD[n, rows_B], self.masks_LBQhw[n, rows_B]) for n in range(LAYERS)]


def batch_of(rank: int, count: int) -> MapBatch:
    """Of four images with one, three, two and no class, those of a process, as `MapBatches` deals them out."""
    pixels_B3SS = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 32, 32)
    labels_BSS = torch.full((4, 32, 32), IGNORE, dtype=torch.int32)
    labels_BSS[0] = 2
    labels_BSS[1] = torch.from_numpy(np.kron([[0, 1], [2, IGNORE]], np.ones((16, 16))))
    labels_BSS[2, :20], labels_BSS[2, 20:] = 0, 1
    return MapBatch(0, pixels_B3SS[rank::count], labels_BSS[rank::count])


def gradients(processes: Processes) -> dict[str, Any]:
    """The gradients of a step, what it reports, and the loss of the same batch."""
    table, head = Table(), nn.Module()
    head.classes_KD, head.no_object_D = units(3, 8, seed=1), nn.Parameter(units(1, 8, seed=2)[0])
    tensors = {**dict(table.named_parameters()), "no_object_D": head.no_object_D}
    optimizer = torch.optim.SGD([{"params": list(tensors.values()), "lr": 0.0, "full_lr": 0.0}])
    learner = MaskLearner(
        network=table,
        head=head,  # type: ignore[arg-type]
        losses=new_losses(classes=3, device=CPU),
        mean_3=torch.zeros(3),
        std_3=torch.ones(3),
        logit_scale=10.0,
        trainable=Trainable(tensors, optimizer, CPU),
        processes=processes,
        seed=0,
    )
    batch = batch_of(processes.rank, processes.count)
    reported = learner.step(batch, rate_share=1.0)
    return {
        "grads": {name: value.grad for name, value in tensors.items()},
        "reported": reported,
        "again": learner.loss(batch),
    }


def take_part(rank: int, count: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count)
    torch.save(gradients(Processes(rank, count, CPU)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # so Python 3.12 comments on any fork
@pytest.mark.parametrize("count", [2, 4])
def test_processes_have_the_gradients_and_losses_of_one(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "layer_answers", lambda network, head, pixels: network.answers(pixels))
    start_processes(take_part, (count, str(tmp_path)), nprocs=count, start_method="fork")  # type: ignore[no-untyped-call]
    alone = gradients(Processes(0, 1, CPU))
    assert all(bool(gradient.any()) for gradient in alone["grads"].values())
    for rank in range(count):
        together = torch.load(tmp_path / f"{rank}.pt")
        assert together["grads"].keys() == alone["grads"].keys()
        for name, gradient in alone["grads"].items():
            torch.testing.assert_close(together["grads"][name], gradient, rtol=1e-4, atol=1e-6)
        assert together["reported"] == pytest.approx(alone["reported"], rel=1e-5)
        assert together["again"] == pytest.approx(alone["reported"]["loss"], rel=1e-5)
