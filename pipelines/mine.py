"""The pipeline on one page: captioned images in, verified shards of mask–noun pairs out.

    captions ─▶ nouns ──────┐
                  │         │
                  ▼ all     │
              vocabulary ───┤
                            ▼
    images ───▶ regions ─▶ pairs ─▶ (selection, once, where a noun is capped) ─▶ shards

Everything but `vocabulary` and `selection` is made part by part; a cell that exists is not made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from mining.captions import CocoCaptions
from mining.devices import open_device
from mining.stores import OBJECT_STORES, fault_line, refusal, scheme_of
from pipelines.earlier import Earlier
from pipelines.engine import Engine, Watch
from pipelines.grid import Stage, drop_stale, plan_stages
from pipelines.plan import make_plan
from pipelines.publish import DERIVED_FILE, SUCCESS_FILE, mark_success, publish, published
from pipelines.regenerate import take_regions
from pipelines.run_folder import RunFolder, sweep
from pipelines.settings import Mining, dump_yaml
from schemas.errors import IncompleteError, InputError
from schemas.manifest import Manifest

_TRIED_IMAGES = 4


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `manifest` is None when there was nothing to do; `stale` counts the cells made again."""

    manifest: Manifest | None
    stale: dict[str, int]
    rejected_share: float
    too_many_rejected: bool


def mine(
    settings: Mining,
    *,
    engine: Engine,
    watch: Watch,
    limit: int | None = None,
    models_run_here: bool = True,
    earlier: Earlier | None = None,
) -> Outcome:
    """Run the pipeline, or what is left of it. Running it again restores whatever is missing, byte for byte.

    `models_run_here` is False when the engine's workers are elsewhere: then this machine needs no GPU. Regions of
    images that `earlier` has are taken from there.
    """
    run = RunFolder(settings.out)
    plan = make_plan(run, settings, limit=limit)
    stages = plan_stages(run, plan, settings, earlier=earlier)
    sweep(run)
    if published(run, stages, settings) and not missing_cells(run, stages):
        return Outcome(None, {}, 0.0, too_many_rejected=False)

    check_inputs(settings)
    if models_run_here and any(stage.has_work(run) for stage in stages if stage.name in ("regions", "vocabulary")):
        open_device(settings.regions.device)
    run.delete(SUCCESS_FILE)  # from here on the set is not complete
    stale = drop_stale(run, stages)
    with run.write("mining.yaml") as file:
        file.write(dump_yaml(settings).encode())
    if "regions" in stale:
        run.delete(DERIVED_FILE)
    if earlier is not None:
        take_regions(run, next(stage for stage in stages if stage.name == "regions"), earlier)

    engine(run, stages, watch)

    missing = missing_cells(run, stages)
    if missing:
        raise IncompleteError(f"{run.root}: cells are still missing ({missing}); run the same command again")
    sweep(run)
    manifest = publish(run, plan, settings, stages)
    share = rejected_share(manifest)
    if share <= settings.max_rejected:
        mark_success(run)
    return Outcome(manifest, stale, share, too_many_rejected=share > settings.max_rejected)


def check_inputs(settings: Mining) -> None:
    """Ask for what the steps will need before any work is done or thrown away. Raises InputError.

    The image folder too: without it every image would be a missing file, and a whole run of them no fault of theirs.
    """
    for source in settings.sources:
        source.check()
        if isinstance(source, CocoCaptions) and scheme_of(source.images) in OBJECT_STORES:
            _refuse_locked_images(source)
    settings.nouns.record()
    settings.regions.records()


def _refuse_locked_images(source: CocoCaptions) -> None:
    """The right to list a folder does not tell of the right to read what is in it."""
    tried = [path for _, path in islice(source.read_images(), _TRIED_IMAGES)]
    refused = [error for path in tried if (error := refusal(path)) is not None]
    if refused and len(refused) == len(tried):
        raise InputError(fault_line(refused[0], tried[0]))


def missing_cells(run: RunFolder, stages: list[Stage]) -> dict[str, int]:
    """How many cells each stage still lacks; stages that are complete are left out."""
    todo = {stage.name: len(stage.todo(run)) for stage in stages}
    return {name: count for name, count in todo.items() if count}


def rejected_share(manifest: Manifest) -> float:
    """The share of images that came to nothing, 0–1; what the user's own filters took is not counted."""
    totals = manifest.totals
    rejected = sum(count for reason, count in totals.rejected.items() if reason != "shards: filtered")
    return rejected / totals.images
