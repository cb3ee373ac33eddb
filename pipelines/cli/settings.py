"""What can be set, and a configuration to begin with: settings, init."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from maskmine.pipelines.cli.app import app, err, out, print_line
from maskmine.pipelines.cli.configurations import Configuration, settings_of
from maskmine.pipelines.settings.source_kinds import Models, SourceKind


@app.command()
def settings(
    section: Annotated[
        str, typer.Argument(metavar="[SECTION]", help="Such as regions.keep, or regions.proposals.sam.")
    ] = "",
    configuration: Annotated[
        Configuration, typer.Option("--for", help="The command that the configuration is for.")
    ] = "mine",
    as_schema: Annotated[
        bool, typer.Option("--json-schema", help="Print the whole as a JSON schema, for editors.")
    ] = False,
) -> None:
    """Show what can be set: type, default and meaning of each setting of a section."""
    from maskmine.pipelines.settings.help import json_schema, render_help, schema_text, section_help

    of = settings_of(configuration)
    if as_schema:
        sys.stdout.write(schema_text(of, name=configuration))
        return
    rows = section_help(json_schema(of, name=configuration), section)
    out.print(render_help(rows))
    if any(row.type.startswith("section") for row in rows):
        words = "maskmine settings" if configuration == "mine" else f"maskmine settings --for {configuration}"
        first = next(row.key.partition(" ")[0] for row in rows if row.type.startswith("section"))
        name = f"{section}.{first}" if section else first
        out.print(f"\n{words} SECTION shows a section, such as {name}", highlight=False)


@app.command()
def init(
    source: Annotated[
        str, typer.Option("--from", metavar="PATH", help="The images or captions: a file, a folder or a pattern.")
    ],
    kind: Annotated[
        SourceKind | None, typer.Argument(help="What PATH is; without it, found out from the files.")
    ] = None,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="The configuration to write.")] = Path("mining.yaml"),
    images: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the images, where it is not found.")
    ] = None,
    caption_col: Annotated[str | None, typer.Option(metavar="NAME", help="Column of captions.")] = None,
    path_col: Annotated[str | None, typer.Option(metavar="NAME", help="Column of the images' paths.")] = None,
    models: Annotated[
        Models, typer.Option(help="The paper's, which are downloaded; or the demo world's, included, to try it out.")
    ] = "paper",
    run: Annotated[str | None, typer.Option("--out", metavar="DIR", help="`out` of the run; else runs/NAME.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
) -> None:
    """Write a commented configuration for images and captions of your own, checked against the files."""
    from maskmine.pipelines.settings.starter import write_starter

    columns = {"caption_col": caption_col, "path_col": path_col}
    starter = write_starter(source, kind=kind, to=to, images=images, **columns, models=models, out=run, force=force)
    for note in starter.notes:
        err.print(note)
    name = shlex.quote(str(to))
    following = f"next: maskmine doctor {name}, then maskmine mine {name} --limit 100"
    print_line(f"{to}: written for a source of kind {starter.kind}; {following}")
