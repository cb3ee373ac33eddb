"""A training of an open-vocabulary MaskFormer from its settings to a folder that proposes masks.

```
out/
  checkpoint.pt           where the run is; run the same command again to go on
  log.jsonl tensorboard/  losses, learning rate, speed
  maskformer/             the model, for `kind: open_maskformer`
```

Shapes: K classes, D width of CLIP's embeddings.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from mining.models.open_checkpoint import OpenRecord, new_head, save_head
from mining.models.open_start import Body, from_backbone, from_maskformer, new_losses, save_body
from mining.models.text_head import TextHead
from mining.vocabulary import Vocabulary
from schemas.errors import InputError
from schemas.settings import fingerprint
from tuning.checkpoints import read_checkpoint, restore, write_checkpoint
from tuning.log import MaskRow, Speed, open_log, show_progress
from tuning.processes import Processes, join_processes
from tuning.prompts import weights_sha256_of
from tuning.proposal_data import MappedPictures, open_maps, read_map_batches
from tuning.proposal_learner import MaskLearner, learn_masks, new_optimizer, warmup_poly
from tuning.proposal_settings import ProposalTraining
from tuning.steps import open_precision
from tuning.towers import embed_classes

MODEL_FOLDER = "maskformer"
_STAGE = "proposals"


@dataclass(frozen=True)
class _Run:
    """What the steps share."""

    settings: ProposalTraining
    folder: Path
    pictures: MappedPictures
    record: OpenRecord
    body: Body
    head: TextHead
    fingerprint: str
    processes: Processes
    console: Console


def train_proposals(settings: ProposalTraining, *, console: Console) -> Path:
    """Train, or go on with what is left; the folder of the model. Under torchrun, as one of several processes.

    Raises InputError for faults of settings, data or models and for a loss that is not finite, OtherPlanError when
    `out` holds another run, IncompleteError when the disk is full.
    """
    with join_processes(settings.device) as processes:
        run = _open_run(settings, processes, console)
        checkpoint = read_checkpoint(run.folder, fingerprint=run.fingerprint)
        processes.wait()  # until all have looked
        if checkpoint is None and processes.leads:
            write_checkpoint(run.folder, None, fingerprint=run.fingerprint, stage=0, step=0)
        learner = _new_learner(run)
        if checkpoint and checkpoint.values:
            restore(learner, checkpoint.values)
        _train(run, learner, start=checkpoint.step if checkpoint else 0)
        if processes.leads:
            _hand_on(run)
        processes.wait()
    return run.folder / MODEL_FOLDER


def _open_run(settings: ProposalTraining, processes: Processes, console: Console) -> _Run:
    _refuse_odd_batch(settings, processes)
    pictures = open_maps(settings.maps)
    clip = settings.clip.record()
    record = OpenRecord(
        clip=" ".join(os.path.basename(word) if os.path.isabs(word) else word for word in clip.name.split(" ")),
        clip_sha256=clip.sha256,
        templates=settings.head.templates,
        logit_scale=settings.head.logit_scale,
        hidden=settings.head.hidden,
        layers=settings.head.layers,
        pixels=settings.head.sees == "queries_and_pixels",
        classes=pictures.classes,
    )
    embed = Vocabulary(templates=settings.head.templates).open(settings.clip, str(processes.device))
    classes_KD = embed_classes(pictures.classes, embed=embed)
    torch.manual_seed(settings.seed)
    body = _open_body(settings)
    head = new_head(classes_KD, record, network=body.network)
    decisive = {
        "settings": settings.decisive(),
        "start": weights_sha256_of(body.network.state_dict()),
        "texts": weights_sha256_of({"classes": classes_KD}),
        "pictures": pictures.fingerprint,
    }
    return _Run(
        settings=settings,
        folder=Path(settings.out),
        pictures=pictures,
        record=record,
        body=body,
        head=head,
        fingerprint=fingerprint(decisive),
        processes=processes,
        console=console,
    )


def _open_body(settings: ProposalTraining) -> Body:
    start = settings.start
    if start.checkpoint is not None:
        return from_maskformer(start.checkpoint)
    assert start.backbone is not None  # the settings have one of the two
    decoder = {
        "num_queries": start.queries,
        "d_model": start.width,
        "decoder_layers": start.decoder_layers,
        "decoder_attention_heads": start.heads,
        "decoder_ffn_dim": start.feed_forward,
        "encoder_layers": 0,
        "dropout": start.dropout,
    }
    return from_backbone(
        start.backbone,
        decoder=decoder,
        short_side_px=settings.view.crop_px,
        long_side_px=settings.view.long_side_px,
    )


def _new_learner(run: _Run) -> MaskLearner:
    settings, network, device = run.settings, run.body.network, run.processes.device
    network.to(device).requires_grad_(settings.trains == "all").train(settings.trains == "all")
    network.class_predictor.requires_grad_(False)  # the head stands in its place
    head = run.head.to(device)
    if run.processes.count > 1 and device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    mean, std = run.body.processor.image_mean, run.body.processor.image_std
    return MaskLearner(
        network=network,
        head=head,
        losses=new_losses(classes=len(run.pictures.classes), device=device),
        mean_3=torch.tensor(mean, device=device),
        std_3=torch.tensor(std, device=device),
        logit_scale=settings.head.logit_scale,
        optimizer=new_optimizer(network, head, optimizer=settings.optimizer),
        processes=run.processes,
        dtype=open_precision(settings.precision, device),
        max_gradient_norm=settings.optimizer.max_gradient_norm,
        seed=settings.seed,
    )


def _train(run: _Run, learner: MaskLearner, *, start: int) -> None:
    """Take the steps that are left."""
    settings, leads = run.settings, run.processes.leads
    steps = settings.optimizer.steps
    batches = read_map_batches(
        run.pictures,
        view=settings.view,
        batch_size=settings.optimizer.batch_size,
        seed=settings.seed,
        start=start,
        stop=steps,
        workers=settings.maps.workers,
        rank=run.processes.rank,
        processes=run.processes.count,
    )
    with _watch(run, learner, done=start) as saw:
        for batch in batches:
            said = learn_masks(learner, batch, rate_share=warmup_poly(batch.step, optimizer=settings.optimizer))
            if not math.isfinite(said["loss"]):
                raise InputError(
                    f"step {batch.step + 1}: the loss is {said['loss']}; lower optimizer.learning_rate, or use "
                    "precision bfloat16 or float32"
                )
            done = batch.step + 1
            saw(done, said)
            if leads and (done % settings.checkpoint_every == 0 or done == steps):
                write_checkpoint(run.folder, learner, fingerprint=run.fingerprint, stage=0, step=done)


@contextmanager
def _watch(run: _Run, learner: MaskLearner, *, done: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A function that is told of every step, and tells people and programs; silent where another process leads."""
    if not run.processes.leads:
        yield lambda step, said: None
        return
    speed, steps = Speed(), run.settings.optimizer.steps
    with (
        open_log(run.folder, stage=_STAGE, step=done, say=partial(run.console.print, markup=False)) as tell,
        show_progress(run.console, stage=_STAGE, done=done, steps=steps) as advance,
    ):

        def saw(step: int, said: dict[str, float]) -> None:
            speed.add(run.settings.optimizer.batch_size)
            advance(said["loss"], speed.now)
            if step % run.settings.log_every == 0 or step == steps:
                rate = max(group["lr"] for group in learner.optimizer.param_groups)
                tell(_row(step, said, learning_rate=rate, images_per_s=speed.take()))

        yield saw


def _row(step: int, said: dict[str, float], *, learning_rate: float, images_per_s: float) -> MaskRow:
    return MaskRow(
        stage=_STAGE,
        step=step,
        loss=said["loss"],
        class_loss=said["class"],
        mask_loss=said["mask"],
        dice_loss=said["dice"],
        gradient_norm=said["gradient_norm"],
        learning_rate=learning_rate,
        images_per_s=round(images_per_s, 1),
    )


def _hand_on(run: _Run) -> None:
    folder, half = run.folder / MODEL_FOLDER, run.settings.half
    below = run.body.folder if run.settings.trains == "head" else None
    if below is None:
        save_body(folder, run.body, half=half)
    save_head(folder, run.head, run.record, half=half, body=below)


def _refuse_odd_batch(settings: ProposalTraining, processes: Processes) -> None:
    if settings.optimizer.batch_size % processes.count:
        raise InputError(
            f"optimizer.batch_size: {settings.optimizer.batch_size} pictures cannot be shared evenly by "
            f"{processes.count} processes"
        )
