"""Judging the pairs of a run: review, import-verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from maskmine.pipelines.cli.app import FolderArgument, JsonOption, app, err, print_json, print_line
from maskmine.pipelines.run_folder.folder import VERDICTS_FOLDER, read_folder
from maskmine.schemas.errors import ServerStoppedError
from maskmine.schemas.wording import counted

if TYPE_CHECKING:
    from maskmine.pipelines.review.import_verdicts import Imported


@app.command()
def review(
    folder: FolderArgument,
    reviewer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who judges; without it the page asks everybody.")
    ] = None,
    order: Annotated[
        Literal["random", "uncertain"],
        typer.Option("--next", help="random: the sample of an audit; uncertain: the least sure pairs first."),
    ] = "random",
    size: Annotated[int, typer.Option(min=1, help="Pairs to judge.")] = 300,
    seed: Annotated[int, typer.Option(help="Of the random sample.")] = 0,
    host: Annotated[str, typer.Option(help="0.0.0.0: for all who reach this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one.")] = 7861,
) -> None:
    """A web page on this machine: judge pairs one by one, alone or with others. Verdicts go to DIR/verdicts."""
    from maskmine.pipelines.review.server import review

    run = read_folder(folder)
    try:
        review(run, reviewer=reviewer, order=order, size=size, seed=seed, host=host, port=port, say=err.print)
    except KeyboardInterrupt as error:
        raise ServerStoppedError from error


@app.command()
def import_verdicts(
    folder: FolderArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON, XML, zip or CSV of the tool: docs/verdicts.md.")],
    reviewer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who answered, where the file does not say.")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Of a CSV that is not in UTF-8 or UTF-16, such as cp1252.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take over what people answered in Label Studio, CVAT, FiftyOne or a table. It goes to DIR/verdicts."""
    from maskmine.pipelines.review.import_verdicts import import_verdicts

    run = read_folder(folder)
    imported = import_verdicts(run, file, reviewer=reviewer, encoding=encoding)
    if as_json:
        print_json(imported.as_json())
        return
    for line in lines_of(imported, verdicts=run.path(VERDICTS_FOLDER)):
        print_line(line)


def lines_of(imported: Imported, *, verdicts: str) -> Iterator[str]:
    """What became of the answers, and what to do next."""
    words = ", ".join(f"{count:,} {word.replace('_', ' ')}" for word, count in sorted(imported.taken.items()))
    yield f"{imported.file}: {counted(imported.taken.total(), 'pair')} judged ({words})"
    for what, count in sorted(imported.corrected.items()):
        yield f"corrected: the {what} of {counted(count, 'pair')}"
    left_out = {
        "contradictions: the last answer counts": imported.contradictions,
        "answers without a verdict": imported.unjudged,
        "answers on pairs that are not in this run": imported.unknown,
        "answers that cannot be read": imported.unreadable,
        **{f"refused: a corrected {what}": count for what, count in sorted(imported.refused.items())},
    }
    yield from (f"{what}: {count:,}" for what, count in left_out.items() if count)
    yield from (f"  {line}" for line in imported.told)
    yield f"to write the set anew: maskmine mine CONFIG --set shards.verdicts={verdicts}"
