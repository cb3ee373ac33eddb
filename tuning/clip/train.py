"""A tuning run from its settings to its files: stages, their steps, checkpoints, and what they hand on.

```
out/
  checkpoint.pt           where the run is; run the same command again to go on
  log.jsonl tensorboard/  loss, learning rate, speed
  clip/                   the tuned CLIP, as open_clip reads it (finetune, joint)
  prompts.safetensors     the mask prompts (prompts, joint)
```
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from torch import Tensor, nn

from mining.models.clip import WholeClip
from schemas.errors import InputError
from schemas.settings import fingerprint
from tuning.artefacts import PROMPTS_FILE, PromptsRecord, load_clip_weights, save_clip, save_prompts
from tuning.checkpoints import Checkpoint, read_checkpoint, restore, write_checkpoint
from tuning.data import Batch, Pairs, ShardSet, arrange, nouns_of, open_sets, read_batches
from tuning.files import write_whole
from tuning.log import Row, Speed, open_log, show_progress
from tuning.objective import noun_embeddings
from tuning.processes import Processes, join_processes
from tuning.prompts import PromptedTower, check_patches, new_prompts, prompt_shape, tower_sha256, weights_sha256_of
from tuning.samples import View
from tuning.settings import Stage, Tuning
from tuning.steps import Learner, learn, new_optimizer, open_precision, rate_share

CLIP_FOLDER = "clip"
_KEYS_FILE = "failed-batch.txt"
_KEYS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a run made: files and folders in `out` that this process wrote, and steps and last loss if it took any."""

    files: tuple[Path, ...]
    steps: int
    last_loss: float | None


@dataclass(frozen=True)
class _Run:
    """What all stages share."""

    settings: Tuning
    folder: Path
    clip: WholeClip
    sets: tuple[ShardSet, ...]
    nouns_VD: Tensor
    fingerprint: str
    processes: Processes
    console: Console


def files_of(settings: Tuning) -> tuple[Path, ...]:
    """What a finished run hands on."""
    clip = [Path(settings.out) / CLIP_FOLDER] if settings.mode != "prompts" else []
    prompts = [Path(settings.out) / PROMPTS_FILE] if settings.mode != "finetune" else []
    return (*clip, *prompts)


def tune(settings: Tuning, *, console: Console) -> Tuned:
    """Train, or go on with what is left; under torchrun, as one of several processes.

    Raises InputError for faults of settings, shards or CLIP and for a loss that is not finite, OtherPlanError when
    `out` holds another run, IncompleteError when the disk is full.
    """
    with join_processes(settings.device) as processes:
        run = _open_run(settings, processes, console)
        _check(run)
        checkpoint = _claim(run)
        steps, loss = 0, None
        for number, name in enumerate(settings.stages()):
            if number < checkpoint.stage:
                load_clip_weights(run.folder / CLIP_FOLDER, run.clip.model)
                continue
            here = checkpoint if number == checkpoint.stage else Checkpoint(number, 0, None)
            taken, loss = _run_stage(run, name, here)
            steps += taken
        return Tuned(files_of(settings) if processes.leads else (), steps, loss)


def _open_run(settings: Tuning, processes: Processes, console: Console) -> _Run:
    sets = open_sets(settings.data)
    clip = settings.clip.open_whole()
    check_patches(clip.model.visual)
    decisive = {
        "settings": settings.decisive(),
        "clip": [weights_sha256_of(clip.model.state_dict()), clip.mean, clip.std],
        "shards": [shards.fingerprint for shards in sets],
    }
    nouns_VD = noun_embeddings(
        nouns_of(sets), clip=settings.clip, templates=settings.objective.templates, device=str(processes.device)
    )
    return _Run(
        settings=settings,
        folder=Path(settings.out),
        clip=replace(clip, model=clip.model.to(processes.device)),
        sets=sets,
        nouns_VD=nouns_VD.to(processes.device),
        fingerprint=fingerprint(decisive),
        processes=processes,
        console=console,
    )


def _check(run: _Run) -> None:
    """Find what is wrong with any stage before the first one begins, and before the folder is taken."""
    for name in run.settings.stages():
        _arrange(run, _stage(run.settings, name))
        if name != "finetune":
            prompt_shape(run.clip.model.visual, depth=run.settings.prompts.depth)


def _claim(run: _Run) -> Checkpoint:
    """Where the run is; a new one takes its folder."""
    checkpoint = read_checkpoint(run.folder, fingerprint=run.fingerprint)
    run.processes.wait()  # until all have looked
    if checkpoint is None:
        checkpoint = Checkpoint(0, 0, None)
        if run.processes.leads:
            write_checkpoint(run.folder, None, fingerprint=run.fingerprint, stage=0, step=0)
    return checkpoint


def _run_stage(run: _Run, name: str, checkpoint: Checkpoint) -> tuple[int, float | None]:
    """Train a stage to its end and write what it hands on; the steps taken now, and the loss of the last one."""
    settings = run.settings
    stage = _stage(settings, name)
    pairs = _arrange(run, stage)
    steps = stage.steps or pairs.steps(stage.epochs)
    tower, learner = _learner(run, name)
    if checkpoint.values:
        restore(learner, checkpoint.values)
    loss = _train(run, name, learner, pairs, checkpoint=checkpoint, steps=steps, stage=stage)
    if run.processes.leads:
        _hand_on(run, name, tower)
        if checkpoint.stage + 1 < len(settings.stages()):
            write_checkpoint(run.folder, None, fingerprint=run.fingerprint, stage=checkpoint.stage + 1, step=0)
    run.processes.wait()
    return steps - checkpoint.step, loss


def _stage(settings: Tuning, name: str) -> Stage:
    return settings.finetune if name == "finetune" else settings.prompts


def _arrange(run: _Run, stage: Stage) -> Pairs:
    view = View(
        size_px=run.clip.size_px,
        mean=run.clip.mean,
        std=run.clip.std,
        crop=run.settings.data.crop,
        jitter=run.settings.data.jitter,
    )
    return arrange(
        run.sets,
        data=run.settings.data,
        view=view,
        batch_size=stage.batch_size,
        seed=run.settings.seed,
        rank=run.processes.rank,
        processes=run.processes.count,
    )


def _learner(run: _Run, name: str) -> tuple[PromptedTower | None, Learner]:
    """The model of a stage, of which only what the stage trains has gradients, and its optimizer."""
    settings, model = run.settings, run.clip.model
    model.requires_grad_(False)
    if name != "prompts":
        model.visual.requires_grad_(True)
    model.visual.set_grad_checkpointing(settings.gradient_checkpointing)
    tower = None
    if name != "finetune":
        prompts = settings.prompts
        prompts_PND = new_prompts(model.visual, depth=prompts.depth, std=prompts.init_std, seed=settings.seed)
        tower = PromptedTower(model.visual, prompts_PND.to(run.processes.device))
    others = {f"visual.{n}": value for n, value in model.visual.named_parameters() if value.requires_grad}
    if settings.objective.logit_scale == "trained":
        others["logit_scale"] = model.logit_scale.requires_grad_(True)
    optimizer = new_optimizer(
        prompts=tower.prompts_PND if tower else None,
        others=others,
        prompt_stage=settings.prompts,
        other_stage=settings.prompts if name == "prompts" else settings.finetune,
        adam=settings.adam,
    )
    learner = Learner(
        embed=tower if tower else _without_masks(model.visual),
        trained={**({"prompts": tower.prompts_PND} if tower else {}), **others},
        logit_scale=model.logit_scale,
        nouns_VD=run.nouns_VD,
        positives=settings.objective.positives,
        optimizer=optimizer,
        processes=run.processes,
        dtype=open_precision(settings.precision, run.processes.device),
        micro_batch_size=settings.micro_batch_size,
        max_gradient_norm=settings.adam.max_gradient_norm,
    )
    return tower, learner


def _train(
    run: _Run,
    name: str,
    learner: Learner,
    pairs: Pairs,
    *,
    checkpoint: Checkpoint,
    steps: int,
    stage: Stage,
) -> float | None:
    """Take the steps that are left; the loss of the last one, None when there was none."""
    settings, leads = run.settings, run.processes.leads
    batches = read_batches(
        pairs,
        start=checkpoint.step,
        stop=steps,
        workers=settings.data.workers,
        pin_memory=run.processes.device.type == "cuda",
    )
    loss = None
    with _watch(run, name, learner, pairs, done=checkpoint.step, steps=steps) as saw:
        for batch in batches:
            loss = learn(
                learner, batch, rate_share=rate_share(batch.step, steps=steps, warmup_steps=stage.warmup_steps)
            )
            if not math.isfinite(loss):
                raise InputError(_not_finite(run, pairs, batch, loss))
            saw(batch, loss)
            done = batch.step + 1
            if leads and (done % settings.checkpoint_every == 0 or done == steps):
                write_checkpoint(run.folder, learner, fingerprint=run.fingerprint, stage=checkpoint.stage, step=done)
    return loss


@contextmanager
def _watch(
    run: _Run, name: str, learner: Learner, pairs: Pairs, *, done: int, steps: int
) -> Iterator[Callable[[Batch, float], None]]:
    """A function that is told of every step, and tells people and programs; silent where another process leads."""
    if not run.processes.leads:
        yield lambda batch, loss: None
        return
    speed = Speed()
    first = pairs.streams[0]
    with (
        open_log(run.folder, stage=name, step=done, say=partial(run.console.print, markup=False)) as tell,
        show_progress(run.console, stage=name, done=done, steps=steps) as advance,
    ):

        def saw(batch: Batch, loss: float) -> None:
            step = batch.step + 1
            speed.add(pairs.batch_size)
            advance(loss, speed.now)
            if step % run.settings.log_every == 0 or step == steps:
                tell(
                    Row(
                        stage=name,
                        step=step,
                        epoch=round(step * first.per_batch / first.size, 4),
                        loss=loss,
                        learning_rate=learner.optimizer.param_groups[0]["lr"],
                        logit_scale=learner.logit_scale.detach().exp().item(),
                        images_per_s=round(speed.take(), 1),
                    )
                )

        yield saw


def _not_finite(run: _Run, pairs: Pairs, batch: Batch, loss: float) -> str:
    keys = pairs.keys(batch.step)
    path = run.folder / _KEYS_FILE
    if run.processes.leads:
        write_whole(path, "".join(f"{key}\n" for key in keys).encode())
    return (
        f"step {batch.step + 1}: the loss is {loss}; its batch is {', '.join(keys[:_KEYS_SHOWN])} … (all {len(keys)} "
        f"in {path}); lower the learning rate, or use bfloat16 or float32"
    )


def _hand_on(run: _Run, name: str, tower: PromptedTower | None) -> None:
    tuned = name == "joint" or "finetune" in run.settings.stages()
    if name != "prompts":
        save_clip(run.folder / CLIP_FOLDER, run.clip)
    if tower is not None:
        record = PromptsRecord(
            clip=f"{run.clip.name}, tuned" if tuned else run.clip.name,
            tower_sha256=tower_sha256(tower.tower),
            settings=run.settings.decisive(),
            shards=tuple(shards.fingerprint for shards in run.sets),
        )
        save_prompts(run.folder / PROMPTS_FILE, tower.prompts_PND, record=record)


def _without_masks(visual: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Fine-tuning shows regions with their fill, and the tower itself knows of no masks."""

    def embed(pixels_M3SS: Tensor, _: Tensor) -> Tensor:
        features = visual(pixels_M3SS)
        embedded_MD: Tensor = features[0] if isinstance(features, tuple) else features
        return embedded_MD

    return embed
