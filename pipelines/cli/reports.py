"""Looking at a finished run: show, report, diff, duplicates, evaluate-pairs, leakage."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from maskmine.pipelines.cli.app import (
    FolderArgument,
    JsonOption,
    SynonymsOption,
    app,
    counting,
    out,
    print_json,
    print_line,
    tell_replaced,
)
from maskmine.pipelines.run_folder.folder import read_folder
from maskmine.schemas.wording import counted


@app.command()
def show(
    folder: FolderArgument,
    to: Annotated[Path, typer.Option("--to", help="The image to write.")] = Path("contact-sheet.png"),
    images: Annotated[int, typer.Option(min=1, max=200, help="Photographs on the sheet.")] = 12,
    noun: Annotated[str | None, typer.Option(help="Only images with a pair of this noun.")] = None,
) -> None:
    """Draw a contact sheet: photographs with the outline of each mask, its noun and its similarity."""
    from maskmine.pipelines.reports.contact_sheet import contact_sheet

    tell_replaced(to)
    sheet = contact_sheet(read_folder(folder), to=to, images=images, noun=noun)
    cropped = (
        f"; the crops of {counted(sheet.pieced, 'photograph')} that cannot be read are drawn" if sheet.pieced else ""
    )
    print_line(f"{to}: {counted(sheet.images, 'photograph')}, {counted(sheet.pairs, 'pair')}{cropped}")


@app.command()
def report(
    folder: FolderArgument,
    to: Annotated[Path, typer.Option("--to", help="The page to write.")] = Path("report.html"),
    truth: Annotated[
        str | None, typer.Option(metavar="FILE", help="COCO instances JSON: how many pairs are right, too.")
    ] = None,
    synonyms: SynonymsOption = "auto",
    samples: Annotated[int, typer.Option(min=0, help="Pairs that can be looked up in the page, at most.")] = 240,
    most_mb: Annotated[float, typer.Option(min=0.5, help="Size of the page at most; fewer pairs where needed.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Write a page of figures, charts and pairs of a finished run, which needs no server and no network."""
    from maskmine.pipelines.reports.report import make_report, render_report
    from maskmine.pipelines.run_folder.claim import claim_folder, write_page

    run = read_folder(folder)
    claim_folder(to.parent, run=run)
    tell_replaced(to)
    page = make_report(run, truth=truth, synonyms=synonyms, samples=samples, most_mb=most_mb)
    write_page(to, render_report(page))
    if as_json:
        totals = page.manifest.totals.model_dump(mode="json")
        print_json({"page": str(to), "totals": totals, "shown": len(page.search), "size_bytes": to.stat().st_size})
        return
    print_line(
        f"{to}: {counted(page.manifest.totals.samples, 'pair')}, {len(page.search):,} of them to look up, "
        f"{decimal(to.stat().st_size)}; open it in a browser"
    )


@app.command()
def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The folder of a finished run.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The folder of another one.")],
    to: Annotated[Path | None, typer.Option("--to", help="Write a page, too, with pairs gained and lost.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False,
) -> None:
    """Show what changed between two runs: pairs kept, gained and lost, nouns new and gone, scores moved."""
    from maskmine.pipelines.reports.diff import compare_runs, render_diff, write_diff

    runs = read_folder(old), read_folder(new)
    if to is not None:
        tell_replaced(to)
    difference = compare_runs(*runs)
    if to is not None:
        write_diff(difference, *runs, to=to)
    if as_json:
        print_json(difference.as_json())
        return
    out.print(render_diff(difference))
    if to is not None:
        print_line(f"\n{to}: open it in a browser")


@app.command()
def duplicates(
    folder: FolderArgument,
    bits: Annotated[int, typer.Option(min=0, max=16, help="Bits of 64 in which copies may differ.")] = 6,
    exact: Annotated[bool, typer.Option("--exact", help="Files of the same bytes alone; no image is read.")] = False,
    most: Annotated[int, typer.Option(min=0, help="Groups to print.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON a group, all of them.")] = False,
) -> None:
    """List images that are copies of each other, across all parts: by their bytes, and by how they look."""
    from maskmine.pipelines.reports.duplicates import find_duplicates, render_duplicates

    with counting("images") as tick:
        copies = find_duplicates(read_folder(folder), most_bits=None if exact else bits, tick=tick)
    if as_json:
        for group in copies.groups:
            print_json(asdict(group))
        return
    if copies.groups and most:
        out.print(render_duplicates(copies, most=most))
    unread = f", not readable: {copies.unread:,}" if copies.unread else ""
    out.print(
        f"images: {copies.images:,}, groups of copies: {len(copies.groups):,}, "
        f"images more than needed: {copies.copies:,}{unread}"
    )


@app.command("evaluate-pairs")
def evaluate_pairs(
    folder: FolderArgument,
    truth: Annotated[str, typer.Option(metavar="FILE", help="COCO instances JSON of the run's images.")],
    to: Annotated[Path, typer.Option(help="Folder for evaluation.json and the curves.")] = Path("evaluation"),
    seen: Annotated[str | None, typer.Option(metavar="FILE", help="Nouns, one a line, to report apart.")] = None,
    synonyms: SynonymsOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print evaluation.json, not the table.")] = False,
) -> None:
    """Measure the pairs of a finished run against annotated objects, at every threshold."""
    from maskmine.pipelines.evaluate.pairs import evaluate_pairs
    from maskmine.pipelines.evaluate.pairs_report import FIGURES_FILE, render_evaluation, write_evaluation
    from maskmine.pipelines.run_folder.claim import claim_folder

    run = read_folder(folder)
    claim_folder(to, run=run)
    tell_replaced(to / FIGURES_FILE)
    evaluation = evaluate_pairs(run, truth=truth, seen=seen, synonyms=synonyms)
    files = write_evaluation(evaluation, to, run=run)
    if as_json:
        print_json(evaluation.as_json())
        return
    out.print(render_evaluation(evaluation))
    print_line(f"\n{to}: {', '.join(files)}")


@app.command()
def leakage(
    folder: FolderArgument,
    root: Annotated[
        str | None, typer.Option(metavar="DIR", help="The folder of the benchmarks' downloads; without: nouns alone.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--benchmark", metavar="NAME", help="Only this one; more than one is allowed.")
    ] = None,
    look: Annotated[bool, typer.Option("--look/--no-look", help="Compare how images look, too.")] = True,
    bits: Annotated[
        int, typer.Option(min=0, max=15, help="Bits of 64 in which images that look alike may differ.")
    ] = 6,
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the lists.")] = Path("leakage"),
    as_json: Annotated[bool, typer.Option("--json", help="Print leakage.json, not the tables.")] = False,
) -> None:
    """Report what a run has in common with the benchmarks: nouns that name their classes, and their images."""
    from maskmine.pipelines.evaluate.leakage import find_leakage
    from maskmine.pipelines.evaluate.leakage_report import FILES, render_leakage, write_leakage
    from maskmine.pipelines.run_folder.claim import claim_folder

    run = read_folder(folder)
    claim_folder(to, run=run)
    tell_replaced(to / FILES[0])
    with counting("images") as tick:
        overlap = find_leakage(run, root=root, names=names or (), looks=look, most_bits=bits, tick=tick)
    files = write_leakage(overlap, to)
    if as_json:
        print_json(overlap.as_json())
        return
    out.print(render_leakage(overlap))
    print_line(f"\n{to}: {', '.join(files)}")
