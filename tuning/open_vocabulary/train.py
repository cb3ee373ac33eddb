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

import os
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from maskmine.mining.models.mask_prompts import weights_sha256_of
from maskmine.mining.proposers.open_vocabulary_checkpoint import OpenRecord, new_head, save_head
from maskmine.mining.proposers.text_head import TextHead
from maskmine.mining.storage.files import sole_writer
from maskmine.mining.vocabulary import Vocabulary, text_classifier
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import fingerprint
from maskmine.tuning.open_vocabulary.data import AnnotatedImages, MapBatches, open_maps
from maskmine.tuning.open_vocabulary.initial_model import Body, from_backbone, from_maskformer, new_losses, save_body
from maskmine.tuning.open_vocabulary.settings import ProposalTraining
from maskmine.tuning.open_vocabulary.step import MaskLearner, changing_tensors, new_optimizer
from maskmine.tuning.training.batches import load_batches
from maskmine.tuning.training.checkpoints import Checkpoints
from maskmine.tuning.training.log import Losses, Row, StepLog
from maskmine.tuning.training.loop import train
from maskmine.tuning.training.optim import Trainable, open_precision, warmup_poly
from maskmine.tuning.training.processes import Processes, join_processes

MODEL_FOLDER = "maskformer"
_VERSION = 2  # of what a step does: 2 has SSD's colours in full, and weighs images alike in all processes
_PHASE = "proposals"  # in the log, and the folder of the curves


@dataclass(frozen=True)
class _Run:
    """What the steps share."""

    settings: ProposalTraining
    folder: Path
    dataset: AnnotatedImages
    record: OpenRecord
    body: Body
    head: TextHead
    checkpoints: Checkpoints
    processes: Processes
    console: Console


def train_proposals(settings: ProposalTraining, *, console: Console) -> Path:
    """Train, or go on with what is left; the folder of the model. Under torchrun, as one of several processes.

    Raises InputError for faults of settings, data or models and for a loss that is not finite, OtherPlanError when
    `out` holds another run, IncompleteError when the disk is full.
    """
    with join_processes(settings.device) as processes:
        run = _open_run(settings, processes, console)
        with sole_writer(settings.out) if processes.is_main else nullcontext():
            _train(run)
    return run.folder / MODEL_FOLDER


def _train(run: _Run) -> None:
    """Take the steps that are left, and write the model."""
    settings, processes = run.settings, run.processes
    start = run.checkpoints.claim(processes)
    learner, optimizer = _new_learner(run), settings.optimizer
    batches = MapBatches(
        run.dataset, settings.view, optimizer.batch_size, settings.seed, processes.rank, processes.count
    )
    train(
        learner,
        lambda step: load_batches(batches, start=step, stop=optimizer.steps, workers=settings.maps.workers),
        steps=optimizer.steps,
        schedule=partial(
            warmup_poly,
            steps=optimizer.steps,
            power=optimizer.power,
            warmup_steps=optimizer.warmup_steps,
            warmup_factor=optimizer.warmup_factor,
        ),
        start=start,
        checkpoints=run.checkpoints,
        log=_step_log(run, learner),
    )
    if processes.is_main:
        _write_model(run)
    processes.wait()


def _open_run(settings: ProposalTraining, processes: Processes, console: Console) -> _Run:
    _refuse_odd_batch(settings, processes)
    dataset = open_maps(settings.maps)
    clip = settings.clip.record()
    record = OpenRecord(
        clip=" ".join(os.path.basename(word) if os.path.isabs(word) else word for word in clip.name.split(" ")),
        clip_sha256=clip.sha256,
        templates=settings.head.templates,
        logit_scale=settings.head.logit_scale,
        hidden=settings.head.hidden,
        layers=settings.head.layers,
        pixels=settings.head.sees == "queries_and_pixels",
        classes=dataset.classes,
    )
    embed = Vocabulary(templates=settings.head.templates).open_names(settings.clip, str(processes.device))
    classes_KD = text_classifier(dataset.classes, embed=embed)
    torch.manual_seed(settings.seed)
    body = _open_body(settings)
    head = new_head(classes_KD, record, network=body.network)
    decisive = {
        "version": _VERSION,
        "settings": settings.decisive(),
        "start": weights_sha256_of(body.network.state_dict()),
        "texts": weights_sha256_of({"classes": classes_KD}),
        "pictures": dataset.fingerprint,
    }
    folder = Path(settings.out)
    return _Run(
        settings=settings,
        folder=folder,
        dataset=dataset,
        record=record,
        body=body,
        head=head,
        checkpoints=Checkpoints(folder, fingerprint(decisive), settings.checkpoint_every, processes.is_main),
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
    network.class_predictor.requires_grad_(False)  # the head replaces it
    head = run.head.to(device)
    if run.processes.count > 1 and device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    processor = run.body.processor
    return MaskLearner(
        network=network,
        head=head,
        losses=new_losses(classes=len(run.dataset.classes), device=device),
        mean_3=torch.tensor(processor.image_mean, device=device),
        std_3=torch.tensor(processor.image_std, device=device),
        logit_scale=settings.head.logit_scale,
        trainable=Trainable(
            tensors=changing_tensors(network, head),
            optimizer=new_optimizer(network, head, optimizer=settings.optimizer),
            device=device,
            dtype=open_precision(settings.precision, device),
            max_gradient_norm=settings.optimizer.max_gradient_norm,
        ),
        processes=run.processes,
        seed=settings.seed,
    )


def _step_log(run: _Run, learner: MaskLearner) -> StepLog:
    def row(step: int, losses: Losses, images_per_s: float) -> Row:
        return {
            "stage": _PHASE,
            "step": step,
            "loss": losses["loss"],
            "class_loss": losses["class"],
            "mask_loss": losses["mask"],
            "dice_loss": losses["dice"],
            "gradient_norm": losses["gradient_norm"],
            "learning_rate": max(group["lr"] for group in learner.trainable.optimizer.param_groups),
            "images_per_s": images_per_s,
        }

    settings, is_main = run.settings, run.processes.is_main
    batch_size, every = settings.optimizer.batch_size, settings.log_every
    return StepLog(run.folder, _PHASE, batch_size, every, row, run.console, is_main, settings.wandb)


def _write_model(run: _Run) -> None:
    folder, half = run.folder / MODEL_FOLDER, run.settings.half
    body_folder = run.body.folder if run.settings.trains == "head" else None
    if body_folder is None:
        save_body(folder, run.body, half=half)
    save_head(folder, run.head, run.record, half=half, body=body_folder)


def _refuse_odd_batch(settings: ProposalTraining, processes: Processes) -> None:
    if settings.optimizer.batch_size % processes.count:
        raise InputError(
            f"optimizer.batch_size: {settings.optimizer.batch_size} images cannot be shared evenly by "
            f"{processes.count} processes"
        )
