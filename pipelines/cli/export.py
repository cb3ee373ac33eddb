"""Writing a finished run for another program: export."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from maskmine.pipelines.cli.app import (
    FetchOption,
    FolderArgument,
    JsonOption,
    NounsOption,
    app,
    err,
    print_json,
    print_line,
)
from maskmine.pipelines.run_folder.folder import read_folder
from maskmine.schemas.wording import counted
from maskmine.tuning.console import plain_progress

if TYPE_CHECKING:
    from maskmine.pipelines.export.export import Export, Exported


@app.command()
def export(
    folder: FolderArgument,
    to: Annotated[
        str, typer.Option(metavar="FORMAT", help="webdataset, openclip, ovseg, coco, hf, …: docs/exports.md.")
    ],
    target: Annotated[str, typer.Option("--out", metavar="DIR", help="The folder to write, here or on a store.")],
    min_similarity: Annotated[float | None, typer.Option(help="Only pairs of this similarity or more.")] = None,
    min_margin: Annotated[float | None, typer.Option(help="Only pairs of this margin or more.")] = None,
    min_lift: Annotated[float | None, typer.Option(help="Only pairs of this lift or more.")] = None,
    min_evidence: Annotated[float | None, typer.Option(help="Only pairs of this evidence or more.")] = None,
    min_confidence: Annotated[float | None, typer.Option(help="Only pairs of this confidence or more, 0–1.")] = None,
    min_presence: Annotated[float | None, typer.Option(help="Only pairs of this presence or more, 0–1.")] = None,
    min_agreement: Annotated[float | None, typer.Option(help="Only pairs of this agreement or more, 0–1.")] = None,
    nouns: NounsOption = None,
    without_nouns: Annotated[str | None, typer.Option(metavar="A,B|@FILE", help="No pairs of these nouns.")] = None,
    held_out: Annotated[str | None, typer.Option(metavar="A,B|@FILE", help="Nouns for later splits alone.")] = None,
    split: Annotated[str, typer.Option(metavar="A=X,B=Y", help="Shares of the images.")] = "train=1",
    split_seed: Annotated[int, typer.Option(help="Another seed, other images in each split.")] = 0,
    licences: Annotated[str | None, typer.Option(metavar="A,B", help="Captions and images of these alone.")] = None,
    licence_policy: Annotated[
        str, typer.Option(metavar="any|commercial", help="commercial: refuse what is not known to allow it.")
    ] = "any",
    shard_size: Annotated[int, typer.Option(min=1, help="Samples in a shard.")] = 10_000,
    by_part: Annotated[bool, typer.Option("--by-part", help="A shard for each part of the run.")] = False,
    image_format: Annotated[
        str | None, typer.Option(metavar="jpg|png|webp", help="Of the images; else as in the run.")
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of jpg and webp.")] = 95,
    max_side: Annotated[int | None, typer.Option(min=8, help="Longer side of an image in pixels, at most.")] = None,
    fill: Annotated[str, typer.Option(metavar="mean|zero|none", help="Around the masks of openclip.")] = "mean",
    expand: Annotated[float, typer.Option(help="Factor by which masked crops grow the box of the mask.")] = 1.0,
    csv_prefix: Annotated[str, typer.Option(help="Before the paths in OVSeg's table.")] = "",
    photographs: Annotated[
        str, typer.Option(metavar="refer|copy", help="For annotation tools: refer to them, or copy them.")
    ] = "refer",
    image_prefix: Annotated[str, typer.Option(help="Before the names of photographs in Label Studio's tasks.")] = "",
    fetch: FetchOption = None,
    threads: Annotated[int, typer.Option(min=1, max=64, help="Images made at the same time.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Write the pairs of a finished run for another program, or continue after any interruption."""
    from maskmine.pipelines.export.options import parse_export

    least = {"min_lift": min_lift, "min_evidence": min_evidence, "min_confidence": min_confidence}
    least |= {"min_presence": min_presence, "min_agreement": min_agreement}
    images = {"image_format": image_format, "quality": quality, "max_side_px": max_side}
    fetching = {"fetch": {"allow": True}} if fetch == "allow" else {}
    more = {"policy": licence_policy, "samples_per_piece": shard_size, "csv_prefix": csv_prefix, "by_part": by_part}
    settings = parse_export(
        to,
        selection={"min_similarity": min_similarity, "min_margin": min_margin, **least, "seed": split_seed},
        lists={"nouns": nouns, "without_nouns": without_nouns, "held_out": held_out},
        split=split,
        pictures={
            **images,
            "photographs": photographs,
            "prefix": image_prefix,
            "fill": fill,
            "expand_ratio": expand,
            "threads": threads,
            **fetching,
        },
        licences=licences,
        more=more,
    )
    _print_exported(_export_with_progress(folder, settings, target), target, as_json=as_json)


def _export_with_progress(folder: str, settings: Export, target: str) -> Exported:
    from maskmine.pipelines.export.export import export_run
    from maskmine.pipelines.run_folder.claim import writing_alone

    run = read_folder(folder)
    with ExitStack() as opened, writing_alone(target):

        def begin(samples: int) -> Callable[[int], None]:
            progress = opened.enter_context(plain_progress(console=err))  # not before: it leaves a line where it ends
            task = progress.add_task(f"to {settings.format}", total=samples, state="")
            return lambda more: progress.advance(task, more)

        return export_run(run, settings, out=target, begin=begin)


_NAMED = 10  # nouns in a line


def _print_exported(exported: Exported, target: str, *, as_json: bool) -> None:
    if lacking := exported.without_pairs:
        more = f" and {len(lacking) - _NAMED:,} more" if len(lacking) > _NAMED else ""
        err.print(f"--nouns: no pair that passes has {', '.join(lacking[:_NAMED])}{more}", markup=False, soft_wrap=True)
    if as_json:
        totals = exported.totals
        counts_of = {"samples": totals.samples, "images": totals.images, "nouns": len(totals.nouns)}
        print_json({"out": target, **counts_of, "size_bytes": exported.size_bytes})
        return
    if exported.size_bytes is None:
        print_line(f"{target} is complete; nothing to do")
        return
    counts = ", ".join(f"{name} {counted(count, 'pair')}" for name, count in exported.totals.samples.items())
    print_line(f"{target}: {counts}, {decimal(exported.size_bytes)}")
