"""How many pairs of a finished run are right, and how sure each is: audit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskmine.pipelines.cli.app import FolderArgument, SynonymsOption, app, out, print_json, print_line
from maskmine.pipelines.run_folder.folder import RunFolder, read_folder
from maskmine.schemas.errors import InputError
from maskmine.schemas.wording import counted

if TYPE_CHECKING:
    from maskmine.pipelines.audit.audit import Audit


@app.command()
def audit(
    folder: FolderArgument,
    verdicts: Annotated[
        str | None, typer.Option(metavar="PATH", help="Verdicts as Parquet or CSV; else those in DIR/verdicts.")
    ] = None,
    truth: Annotated[
        str | None, typer.Option(metavar="FILE", help="COCO instances JSON that judges in place of people.")
    ] = None,
    synonyms: SynonymsOption = "auto",
    size: Annotated[int, typer.Option(min=1, help="Pairs of the random sample.")] = 300,
    seed: Annotated[int, typer.Option(help="Another seed, another sample.")] = 0,
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Write the calibration, as JSON.")] = None,
    target_precision: Annotated[
        float | None, typer.Option(min=0, max=1, help="Find the lowest threshold that is expected to give it.")
    ] = None,
    draw: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Only write the sample, to judge it in a spreadsheet.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False,
) -> None:
    """Measure how many pairs of a finished run are right, and fit how sure each pair is, from a judged sample."""
    run = read_folder(folder)
    if verdicts is not None and truth is not None:
        raise InputError("--verdicts and --truth: give one of them")
    if draw is not None:
        if verdicts is not None or truth is not None:
            raise InputError("--draw: only writes the sample; give --verdicts or --truth in a second command")
        _draw(run, draw, size=size, seed=seed)
        return

    from maskmine.pipelines.audit.audit import audit_run
    from maskmine.pipelines.run_folder.claim import claim_folder

    if to is not None:
        if to.suffix != ".json":
            raise InputError(f"--to {to}: the calibration is JSON; give a name that ends in .json")
        claim_folder(to.parent, run=run)
    found = audit_run(
        run,
        verdicts=verdicts,
        truth=truth,
        synonyms=synonyms,
        size=size,
        seed=seed,
        target_precision=target_precision,
    )
    _report(found, to=to, is_asked=to is not None or target_precision is not None, as_json=as_json)


def _report(found: Audit, *, to: Path | None, is_asked: bool, as_json: bool) -> None:
    """Write the calibration and print the figures. Raises InputError where what is asked for cannot be had."""
    from maskmine.pipelines.audit.audit_report import render_audit, summary_lines, write_audit

    missed = found.fitted.missed if found.fitted is not None else None
    names = write_audit(found, to) if to is not None and missed is None else []
    if as_json:
        print_json(found.as_json())
    else:
        out.print(render_audit(found, says_why=not is_asked))
    if found.fitted is None and is_asked:
        raise InputError(f"no calibration: {found.no_calibration}")
    if missed is not None:
        raise InputError(missed)
    if found.fitted is not None and not as_json:
        print_line("")
        for line in summary_lines(names, found.fitted):
            print_line(line)


def _draw(run: RunFolder, to: Path, *, size: int, seed: int) -> None:
    from maskmine.pipelines.audit.judge import draw_csv

    pairs = draw_csv(run, to, size=size, seed=seed)
    print_line(f"{to}: {counted(pairs, 'pair')}; fill in `verdict`, then audit with --verdicts {to}")
