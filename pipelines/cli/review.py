"""Judging the pairs of a run: review."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from maskmine.pipelines.cli.app import FolderArgument, app, err
from maskmine.pipelines.run_folder.folder import read_folder
from maskmine.schemas.errors import ServerStoppedError


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
