"""A tuning run from its settings to its files: its phases, their steps, checkpoints, and the weights they write.

```
out/
  checkpoint.pt           where the run is; run the same command again to go on
  log.jsonl tensorboard/  loss, learning rate, speed
  clip/                   the tuned CLIP, as open_clip reads it (finetune, joint)
  prompts.safetensors     the mask prompts (prompts, joint)
```
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from torch import Tensor

from maskmine.mining.models.clip import WholeClip
from maskmine.mining.models.mask_prompts import (
    PromptedTower,
    new_prompts,
    prompt_shape,
    tower_features,
    tower_sha256,
    weights_sha256_of,
)
from maskmine.mining.models.patch_towers import patch_tower
from maskmine.mining.models.prompts_file import PROMPTS_FILE, PromptsRecord, save_prompts
from maskmine.mining.storage.files import sole_writer, write_whole
from maskmine.mining.vocabulary import Vocabulary, text_classifier
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import fingerprint
from maskmine.tuning.clip.data import Pairs, ShardSet, arrange, nouns_of, open_sets
from maskmine.tuning.clip.settings import Stage, Tuning
from maskmine.tuning.clip.step import ClipLearner, new_optimizer
from maskmine.tuning.clip.transforms import View
from maskmine.tuning.clip.weights_files import load_clip_weights, save_clip
from maskmine.tuning.training.batches import load_batches
from maskmine.tuning.training.checkpoints import Checkpoint, Checkpoints
from maskmine.tuning.training.log import Losses, Row, StepLog
from maskmine.tuning.training.loop import train
from maskmine.tuning.training.optim import Trainable, open_precision, warmup_cosine
from maskmine.tuning.training.processes import Processes, join_processes

CLIP_FOLDER = "clip"
_KEYS_FILE = "failed-batch.txt"
_KEYS_SHOWN = 3  # of a failed batch, in the error message


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a run wrote: files and folders in `out` of this process, and steps and last loss if it took any."""

    files: tuple[Path, ...]
    steps: int
    last_loss: float | None


@dataclass(frozen=True)
class _Run:
    """What all phases share."""

    settings: Tuning
    folder: Path
    clip: WholeClip
    sets: tuple[ShardSet, ...]
    nouns_VD: Tensor
    checkpoints: Checkpoints
    processes: Processes
    console: Console


def files_of(settings: Tuning) -> tuple[Path, ...]:
    """The files and folders of weights that a finished run has."""
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
        with sole_writer(settings.out) if processes.is_main else nullcontext():
            steps, loss = _run_phases(run)
        return Tuned(files_of(settings) if processes.is_main else (), steps, loss)


def _run_phases(run: _Run) -> tuple[int, float | None]:
    """Train what is left of all phases; the steps taken now, and the loss of the last one."""
    checkpoint = run.checkpoints.claim(run.processes)
    steps, loss = 0, None
    for number, name in enumerate(run.settings.stages()):
        if number < checkpoint.phase:
            load_clip_weights(run.folder / CLIP_FOLDER, run.clip.model)
            continue
        start = checkpoint if number == checkpoint.phase else Checkpoint(number)
        taken, loss = _run_phase(run, name, start)
        steps += taken
    return steps, loss


def _open_run(settings: Tuning, processes: Processes, console: Console) -> _Run:
    sets = open_sets(settings.data, negatives=settings.objective.negatives is not None)
    clip = settings.clip.open_whole()
    patch_tower(clip.model.visual)  # mask prompts need patches
    decisive = {
        "settings": settings.decisive(),
        "clip": [weights_sha256_of(clip.model.state_dict()), clip.mean, clip.std],
        "shards": [shards.fingerprint for shards in sets],
    }
    embed = Vocabulary(templates=settings.objective.templates).open_names(settings.clip, str(processes.device))
    return _Run(
        settings=settings,
        folder=Path(settings.out),
        clip=replace(clip, model=clip.model.to(processes.device)),
        sets=sets,
        nouns_VD=text_classifier(nouns_of(sets), embed=embed).to(processes.device),
        checkpoints=Checkpoints(
            Path(settings.out), fingerprint(decisive), every=settings.checkpoint_every, is_main=processes.is_main
        ),
        processes=processes,
        console=console,
    )


def _check(run: _Run) -> None:
    """Find what is wrong with any phase before the first one begins, and before the folder is claimed."""
    _refuse_one_noun(run)
    for name in run.settings.stages():
        _arrange(run, _phase_settings(run.settings, name))
        if name != "finetune":
            prompt_shape(run.clip.model.visual, depth=run.settings.prompts.depth)


def _refuse_one_noun(run: _Run) -> None:
    """A contrastive loss compares nouns: of one text it is 0 whatever the weights."""
    nouns = nouns_of(run.sets)
    if len(nouns) and bool((run.nouns_VD == run.nouns_VD[0]).all()):
        raise InputError(
            f"data.sources: the only noun of all pairs is `{nouns[0]}`"
            + (f", as CLIP reads {len(nouns)} nouns alike" if len(nouns) > 1 else "")
            + ", and there is nothing to tell it from; mine captions with other nouns, or lower the thresholds"
        )


def _run_phase(run: _Run, name: str, start: Checkpoint) -> tuple[int, float | None]:
    """Train a phase to its end and write its weights; the steps taken now, and the loss of the last one."""
    settings, phase = run.settings, _phase_settings(run.settings, name)
    pairs = _arrange(run, phase)
    steps = phase.steps or pairs.steps(phase.epochs)
    tower, learner = _new_learner(run, name)
    loss = train(
        learner,
        lambda step: load_batches(
            pairs,
            start=step,
            stop=steps,
            workers=settings.data.workers,
            pin_memory=run.processes.device.type == "cuda",
        ),
        steps=steps,
        schedule=partial(warmup_cosine, steps=steps, warmup_steps=phase.warmup_steps),
        start=start,
        checkpoints=run.checkpoints,
        log=_step_log(run, name, learner, pairs),
        describe_batch=lambda step: _describe_batch(run, pairs, step),
    )
    if run.processes.is_main:
        _write_weights(run, name, tower)
        if start.phase + 1 < len(settings.stages()):
            run.checkpoints.write(Checkpoint(start.phase + 1))
    run.processes.wait()
    return steps - start.step, loss


def _phase_settings(settings: Tuning, name: str) -> Stage:
    return settings.finetune if name == "finetune" else settings.prompts


def _arrange(run: _Run, phase: Stage) -> Pairs:
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
        batch_size=phase.batch_size,
        seed=run.settings.seed,
        rank=run.processes.rank,
        processes=run.processes.count,
        held=run.settings.objective.negatives,
    )


def _new_learner(run: _Run, name: str) -> tuple[PromptedTower | None, ClipLearner]:
    """The model of a phase, of which only what the phase trains has gradients, and its optimizer."""
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
    trainable = Trainable(
        tensors={**({"prompts": tower.prompts_PND} if tower else {}), **others},
        optimizer=new_optimizer(
            prompts=tower.prompts_PND if tower else None,
            others=others,
            prompt_phase=settings.prompts,
            other_phase=settings.prompts if name == "prompts" else settings.finetune,
            adam=settings.adam,
        ),
        device=run.processes.device,
        dtype=open_precision(settings.precision, run.processes.device),
        max_gradient_norm=settings.adam.max_gradient_norm,
    )
    learner = ClipLearner(
        embed=tower or (lambda pixels_M3SS, _: tower_features(model.visual, pixels_M3SS)),
        logit_scale=model.logit_scale,
        nouns_VD=run.nouns_VD,
        positives=settings.objective.positives,
        trainable=trainable,
        processes=run.processes,
        micro_batch_size=settings.micro_batch_size,
    )
    return tower, learner


def _step_log(run: _Run, name: str, learner: ClipLearner, pairs: Pairs) -> StepLog:
    first = pairs.streams[0]  # its passes are the epochs

    def row(step: int, losses: Losses, images_per_s: float) -> Row:
        return {
            "stage": name,
            "step": step,
            "epoch": round(step * first.per_batch / first.size, 4),
            "loss": losses["loss"],
            "learning_rate": learner.trainable.optimizer.param_groups[0]["lr"],
            "logit_scale": learner.logit_scale.detach().exp().item(),
            "images_per_s": images_per_s,
        }

    every, is_main = run.settings.log_every, run.processes.is_main
    return StepLog(run.folder, name, pairs.batch_size, every, row, run.console, is_main, run.settings.wandb)


def _describe_batch(run: _Run, pairs: Pairs, step: int) -> str:
    """The first keys of a batch whose loss is not finite; all of them are written to a file."""
    keys = pairs.keys(step)
    path = run.folder / _KEYS_FILE
    if run.processes.is_main:
        write_whole(path, "".join(f"{key}\n" for key in keys).encode())
    return f"its batch is {', '.join(keys[:_KEYS_SHOWN])} … (all {len(keys)} in {path}); "


def _write_weights(run: _Run, name: str, tower: PromptedTower | None) -> None:
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
