"""The command `append`: new images for a finished set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from maskmine.pipelines.cli.app import (
    EngineOption,
    EngineOptOption,
    FetchOption,
    FolderArgument,
    JsonOption,
    LogOption,
    MetricsOption,
    QuietOption,
    StalledOption,
    VerboseOption,
    app,
    detail_of,
    err,
    print_json,
    print_line,
)
from maskmine.pipelines.run_folder.folder import read_folder
from maskmine.pipelines.settings.source_kinds import SourceKind
from maskmine.schemas.errors import Exit
from maskmine.schemas.wording import counted

if TYPE_CHECKING:
    from maskmine.pipelines.append import AppendResult


@app.command(context_settings={"allow_extra_args": True})
def append(
    context: typer.Context,
    folder: FolderArgument,
    captions: Annotated[
        str | None, typer.Option("--captions", metavar="PATH", help="New images or captions: a file, folder, pattern.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the images, where it is not found.")
    ] = None,
    kind: Annotated[SourceKind | None, typer.Option(help="What PATH is; else found out from the files.")] = None,
    caption_col: Annotated[str | None, typer.Option(metavar="NAME", help="Column of captions.")] = None,
    path_col: Annotated[str | None, typer.Option(metavar="NAME", help="Column of the images' paths.")] = None,
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="FILE", help="A YAML file with `captions`, in place of --captions."),
    ] = None,
    engine: EngineOption = "local",
    engine_options: EngineOptOption = None,
    log_json: LogOption = None,
    metrics: MetricsOption = None,
    stalled_after: StalledOption = 10,
    fetch: FetchOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Append new images to a finished set, by its own settings; what is there stays byte for byte.

    Images whose ids are there already are left out. Arguments after `--` are passed to Beam.
    """
    from maskmine.pipelines.append import append as run_append
    from maskmine.pipelines.dataset.finished_run import FinishedRun
    from maskmine.pipelines.engines.choose import choose_engine
    from maskmine.pipelines.run_folder.claim import writing_alone
    from maskmine.pipelines.settings.appended import captions_to_append
    from maskmine.pipelines.watch.observers import observe

    run = read_folder(folder)
    sources = captions_to_append(
        FinishedRun.open(run).settings,
        captions=captions,
        kind=kind,
        images=images,
        caption_col=caption_col,
        path_col=path_col,
        config=config,
    )
    run_engine = choose_engine(engine, options=engine_options or (), pipeline_options=context.args)
    with (
        observe(
            err,
            run=run.root,
            engine=engine,
            log_json=log_json,
            metrics=metrics,
            stalled_after_s=60 * stalled_after,
            plan_line=True,
            detail=detail_of(quiet=quiet, verbose=verbose),
        ) as observer,
        writing_alone(run.root),
    ):
        allowed = fetch == "allow" if fetch else None
        outcome = run_append(run, sources, engine=run_engine, observer=observer, fetch=allowed)
        observer.ends_as = Exit.TOO_MANY_REJECTED if outcome.exceeded else Exit.COMPLETE
    _print_outcome(outcome, folder, as_json=as_json)
    for exceeded in outcome.exceeded:
        err.print(f"finished, and not published: {exceeded.line(out=folder)}")
    if outcome.exceeded:
        raise typer.Exit(Exit.TOO_MANY_REJECTED)


def _print_outcome(outcome: AppendResult, folder: str, *, as_json: bool) -> None:
    version = outcome.version
    entry = (
        next((one for one in outcome.manifest.versions if one.name == version.name), None) if outcome.manifest else None
    )
    if as_json:
        print_json(
            {
                "out": folder,
                "version": version.name,
                "images": version.plan.images,
                "known": version.known,
                "samples": entry.samples if entry is not None else None,
                "totals": outcome.manifest.totals.model_dump(mode="json") if outcome.manifest is not None else None,
            }
        )
    elif outcome.manifest is None or entry is None:
        print_line(f"{folder} has these images as version {version.name}; nothing to do")
    else:
        totals = outcome.manifest.totals
        there = f", {counted(version.known, 'image')} left out as they are there already" if version.known else ""
        own = f"{counted(entry.images, 'image')} and {counted(entry.samples, 'pair')}"
        whole = f"{counted(totals.images, 'image')} and {counted(totals.samples, 'pair')}"
        print_line(f"{folder}: version {version.name} has {own}{there}; the set has {whole} now")
