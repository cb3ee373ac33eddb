"""What the README and the release notes claim, measured in one run against the plain way to do the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from maskmine.schemas.errors import Exit, InputError
from maskmine.scripts.benches.engines import SECTIONS, bench_engines
from maskmine.scripts.benches.export import bench_exports
from maskmine.scripts.benches.gates.alone import run_alone, write_measures
from maskmine.scripts.benches.gates.gates import Held, choose_gates, hold, read_gates
from maskmine.scripts.benches.gates.report import print_held, write_held
from maskmine.scripts.benches.gpu import bench_gpu
from maskmine.scripts.benches.gpu_tuning import bench_gpu_tuning
from maskmine.scripts.benches.growing.append import bench_append
from maskmine.scripts.benches.nouns import bench_levels, bench_noun_memory, bench_nouns
from maskmine.scripts.benches.parts.part_time import bench_part
from maskmine.scripts.benches.proposers import bench_checked_run, bench_proposers
from maskmine.scripts.benches.regenerate import bench_another_clip, bench_regenerate
from maskmine.scripts.benches.regions import bench_large_part, bench_region_cutting
from maskmine.scripts.benches.scale.at_scale import bench_at_scale
from maskmine.scripts.benches.scale.vocabulary import SIZES, bench_vocabulary
from maskmine.scripts.benches.segmenter import bench_gpu_segment, bench_segmenter
from maskmine.scripts.benches.shards import bench_shards
from maskmine.scripts.benches.sources import PLANNED, bench_planning, bench_sources
from maskmine.scripts.benches.tuning import bench_tuning
from maskmine.scripts.benches.workers.device_busy import bench_device_busy
from maskmine.scripts.benches.workers.local_workers import bench_local_workers, bench_side_by_side
from maskmine.scripts.measures import Measure
from maskmine.scripts.review_rate import bench_review
from maskmine.tuning.console import TextTable, plain_console

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CONSOLE = plain_console(width=max(110, plain_console().width))


def main(
    only: Annotated[
        list[str] | None,
        typer.Argument(
            help="nouns, levels, regions, memory, shards, export, regenerate, another-clip, append, segmenter, tuning, "
            "proposers, checked-run, part, at-scale, vocabulary-at-scale, device-busy, side-by-side, local-workers, "
            "engines (or a part of it: engines-start-up, engines-time, engines-memory), "
            "sources, review, planning, gpu, gpu-tuning, gpu-segment; or gates: those with floors, held to "
            "them, or some of these by their names: gates regions shards."
        ),
    ] = None,
    captions: Annotated[Path, typer.Option(help="COCO captions JSON.")] = SHARED / "captions_val2017_half.json",
    photos: Annotated[Path, typer.Option(help="A folder of JPEG photographs.")] = SHARED / "coco-mini" / "train2017",
    coco_mini: Annotated[Path, typer.Option(help="COCO's folder with train2017 and annotations.")] = SHARED
    / "coco-mini",
    proposer_images: Annotated[int, typer.Option(min=1, help="Images that each proposer is measured on.")] = 2,
    planning_images: Annotated[
        int, typer.Option(min=1, help="Generated images that planning is measured on.")
    ] = PLANNED,
    most_parts: Annotated[int, typer.Option(min=1_001, help="Parts of the largest run of at-scale.")] = 10_000,
    most_nouns: Annotated[
        int, typer.Option(min=SIZES[0] + 1, help="Nouns of the largest vocabulary of vocabulary-at-scale.")
    ] = SIZES[-1],
    folder: Annotated[Path | None, typer.Option(help="Where at-scale keeps its runs, and finds them again.")] = None,
    command: Annotated[
        list[str] | None, typer.Option(help="A command that at-scale measures, such as verify; else all.")
    ] = None,
    segmenter_clip: Annotated[
        str, typer.Option(help="Architecture of the large CLIP that segmenter is measured with.")
    ] = "ViT-B-32",
    engine_minutes: Annotated[float, typer.Option(help="How long two processes are at work on the engines' load.")] = 3,
    json: Annotated[Path | None, typer.Option(help="A file for the result, as JSON.")] = None,
) -> None:
    """Print a table of measures, each with its goal."""
    if json is not None and not json.absolute().parent.is_dir():
        raise InputError(f"bench: --json {json}: there is no folder {json.parent}; make it")
    if json is not None and (json.is_dir() or not os.access(json.absolute().parent, os.W_OK)):
        raise InputError(f"bench: --json {json}: no file can be written there; give another path")
    images = sorted(photos.glob("*.jpg"))
    benches: dict[str, Callable[[], Iterable[Measure]]] = {
        **_benches(captions=captions, images=images, coco_mini=coco_mini),
        "proposers": lambda: bench_proposers(_present(coco_mini, "--coco-mini"), images=proposer_images),
        "checked-run": lambda: bench_checked_run(_present(coco_mini, "--coco-mini"), images=proposer_images),
        "at-scale": lambda: bench_at_scale(most=most_parts, folder=folder, only=command, say=_say),
        "vocabulary-at-scale": lambda: bench_vocabulary(most=most_nouns),
        "segmenter": lambda: bench_segmenter(images, model=segmenter_clip),
        "engines": lambda: bench_engines(minutes=engine_minutes),
        **{f"engines-{name}": partial(bench_engines, minutes=engine_minutes, sections=[name]) for name in SECTIONS},
        "planning": lambda: bench_planning(planning_images),
    }
    if only and only[0] == "gates":
        options = {"--captions": captions, "--photos": photos, "--coco-mini": coco_mini}
        _hold_gates(only[1:], known=benches, options=options, json=json)
        return
    if "gates" in (only or ()):
        raise InputError("bench: gates runs the benches that have floors; give it alone")
    unknown = set(only or ()) - benches.keys()
    if unknown:
        raise InputError(f"bench: unknown {', '.join(sorted(unknown))}; known: {', '.join(benches)}")
    _print_measures({name: benches[name] for name in only or filter(_is_default, benches)}, json=json)


def _benches(*, captions: Path, images: list[Path], coco_mini: Path) -> dict[str, Callable[[], Iterable[Measure]]]:
    """Those that have no setting but their data, by name."""
    return {
        "nouns": lambda: bench_nouns(_present(captions, "--captions")),
        "levels": bench_levels,
        "regions": lambda: bench_region_cutting(images or None),
        "memory": lambda: chain(bench_noun_memory(), bench_large_part()),
        "shards": lambda: bench_shards(images),
        "export": lambda: bench_exports(images),
        "regenerate": bench_regenerate,
        "another-clip": bench_another_clip,
        "append": bench_append,
        "tuning": bench_tuning,
        "part": lambda: bench_part(coco_mini),
        "device-busy": lambda: bench_device_busy(images),
        "side-by-side": bench_side_by_side,
        "local-workers": bench_local_workers,
        "sources": bench_sources,
        "review": bench_review,
        "gpu": lambda: bench_gpu(images),
        "gpu-tuning": bench_gpu_tuning,
        "gpu-segment": lambda: bench_gpu_segment(images),
    }


def _print_measures(benches: Mapping[str, Callable[[], Iterable[Measure]]], *, json: Path | None) -> None:
    table = TextTable("bench", "measure", "value", "unit", "goal", "reached", box=None, pad_edge=False)
    measured: list[tuple[str, Measure]] = []
    try:
        for name, bench in benches.items():
            CONSOLE.print(f"{name} …", style="dim")
            for measure in bench():
                reached = "" if measure.reached is None else _yes(measure.reached)
                table.add_row(name, measure.name, f"{measure.value:,.4g}", measure.unit, measure.goal, reached)
                measured.append((name, measure))
    finally:  # results so far are printed even if a later bench fails
        if measured:
            CONSOLE.print(table)
        if json is not None:
            write_measures(json, measured)


def _hold_gates(only: Sequence[str], *, known: Collection[str], options: Mapping[str, Path], json: Path | None) -> None:
    """Hold the benches to their floors, each in a process of its own; exit code 1 where one fails or is missed."""
    chosen = choose_gates(read_gates(known=known), only)
    held: list[Held] = []
    words = [str(word) for option in options.items() for word in option]
    try:
        for name, gates in chosen.items():
            CONSOLE.print(f"{name} …", style="dim")
            command = [sys.executable, "-m", "maskmine.scripts.benches.run", name, *words]
            held.append(hold(name, run_alone(command), gates))
    finally:
        print_held(held, console=CONSOLE)
        if json is not None:
            write_held(json, held)
    if not all(one.passes for one in held):
        raise typer.Exit(1)


def _say(line: str) -> None:
    CONSOLE.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


def _yes(reached: bool) -> str:
    return "yes" if reached else "NO"


def _is_default(name: str) -> bool:
    """Parts of another bench and what takes an hour are only run by name, and those of the GPU where there is one."""
    by_name = ("engines-", "memory", "planning", "proposers", "checked-run", "part", "at-scale", "vocabulary-at-scale")
    return not name.startswith(by_name) and (not name.startswith("gpu") or _has_gpu())


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _present(path: Path, option: str) -> Path:
    if not path.exists():
        raise InputError(f"bench: {path} is not there; give {option}")
    return path


if __name__ == "__main__":
    try:
        typer.run(main)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(Exit.BAD_INPUT)
