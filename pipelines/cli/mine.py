"""Mining, and looking at how far a run is: mine, status, verify, errors, doctor."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from maskmine.pipelines.cli.app import (
    ConfigArgument,
    DryRunOption,
    EngineOption,
    EngineOptOption,
    FetchOption,
    FolderArgument,
    JsonOption,
    LimitOption,
    LogOption,
    MetricsOption,
    QuietOption,
    SetOption,
    StalledOption,
    VerboseOption,
    app,
    detail_of,
    err,
    out,
    print_json,
    print_line,
)
from maskmine.pipelines.cli.configurations import Configuration, guess_configuration, settings_of
from maskmine.pipelines.run_folder.folder import MIX_FILE, read_folder
from maskmine.schemas.errors import Exit, InputError
from maskmine.schemas.wording import counted
from maskmine.tuning.console import TextTable

if TYPE_CHECKING:
    from maskmine.pipelines.mine import MineResult
    from maskmine.pipelines.settings.mining import Mining
    from maskmine.schemas.manifest import Totals
    from maskmine.schemas.settings import Settings


@app.command(context_settings={"allow_extra_args": True})
def mine(
    context: typer.Context,
    config: ConfigArgument,
    overrides: SetOption = None,
    limit: LimitOption = None,
    engine: EngineOption = "local",
    engine_options: EngineOptOption = None,
    dry_run: DryRunOption = False,
    log_json: LogOption = None,
    metrics: MetricsOption = None,
    stalled_after: StalledOption = 10,
    fetch: FetchOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
    regions: Annotated[
        str | None, typer.Option("--regions", metavar="DIR", help="Reuse the regions of this earlier run.")
    ] = None,
) -> None:
    """Mine the pairs of a configuration, or continue after any interruption.

    Arguments after `--` are passed to Beam.
    """
    from maskmine.mining.captions import guesses
    from maskmine.pipelines.engines.choose import choose_engine
    from maskmine.pipelines.mine import mine as run_mining
    from maskmine.pipelines.run_folder.claim import writing_alone
    from maskmine.pipelines.settings.mining import load_mining
    from maskmine.pipelines.watch.observers import observe

    # Settings and engine: every fault of them is found before anything is written.
    fetching = [f"regions.decoding.fetch.allow={str(fetch == 'allow').lower()}"] if fetch else []
    settings = load_mining(config, overrides=[*(overrides or ()), *fetching])
    run_engine = choose_engine(engine, options=engine_options or (), pipeline_options=context.args)
    if dry_run:
        _print_estimate(settings, limit=limit, regions=regions)
        return

    # The run itself, watched.
    with (
        observe(
            err,
            run=settings.out,
            engine=engine,
            log_json=log_json,
            metrics=metrics,
            stalled_after_s=60 * stalled_after,
            plan_line=True,
            detail=detail_of(quiet=quiet, verbose=verbose),
        ) as observer,
        writing_alone(settings.out),
    ):
        for line in guesses(settings.sources):
            err.print(line)
        outcome = run_mining(settings, engine=run_engine, observer=observer, limit=limit, regions_from=regions)
        observer.ends_as = Exit.TOO_MANY_REJECTED if outcome.exceeded else Exit.COMPLETE

    _print_outcome(outcome, settings, as_json=as_json)
    if outcome.exceeded:
        raise typer.Exit(Exit.TOO_MANY_REJECTED)


def _print_estimate(settings: Mining, *, limit: int | None, regions: str | None) -> None:
    from maskmine.pipelines.estimate import estimate, render_estimate

    if regions:
        raise InputError("--dry-run: estimates a run that makes its own regions; give it without --regions")
    begin = partial(err.print, "mining a few images in a temporary folder …")
    out.print(render_estimate(estimate(settings, limit=limit, begin=begin)))


@app.command()
def status(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Show how far a run is: the grid of steps × parts."""
    from maskmine.pipelines.dataset.limits import why_not_published
    from maskmine.pipelines.steps.status import render_status, run_status

    run = read_folder(folder)
    state = run_status(run)
    is_mix = run.exists(MIX_FILE)
    why = None if is_mix else why_not_published(run)
    if as_json:
        print_json({**state.as_json(), "not_published": why})
        return
    versions = f", {len(state.appended) + 1} versions" if state.appended else ""
    commands = "mix" if is_mix else "append` or `maskmine mine" if state.begun else "mine"
    left = f"not complete, run `maskmine {commands}` again"
    print_line(
        f"{counted(state.images, 'image')} in {counted(state.parts, 'part')}{versions}: "
        f"{why or ('complete' if state.complete else left)}"
    )
    out.print(render_status(state))


@app.command()
def verify(
    folder: FolderArgument,
    index_only: Annotated[
        bool, typer.Option("--index-only", help="Read no tar: sums of what describes the set, names, counts, keys.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Hash, count and read everything again; each problem is a line, and then the exit code is 4.

    It is 3 for a whole run that is not published, as too many of its images were rejected.
    """
    from maskmine.pipelines.dataset.finished_run import FinishedRun
    from maskmine.pipelines.dataset.verify import verify_run

    run = read_folder(folder)
    found = []
    for problem in verify_run(run, index_only=index_only):
        found.append(problem)
        if not as_json:
            err.print(str(problem))
    if as_json:
        print_json({"verified": not found, "problems": [asdict(problem) for problem in found]})
    if found:
        unpublished = all(problem.mend_settings for problem in found)
        raise typer.Exit(Exit.TOO_MANY_REJECTED if unpublished else Exit.INCOMPLETE)
    if as_json:
        return
    samples = FinishedRun.open(run).manifest.totals.samples
    checked = "counts, keys, index; no tar was read" if index_only else "checksums, counts, members, masks, index"
    print_line(f"{folder}: {counted(samples, 'sample')} verified: {checked}")


@app.command()
def errors(
    folder: FolderArgument,
    most: Annotated[int, typer.Option(min=0, help="Examples of each reason.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON a rejected image.")] = False,
) -> None:
    """List the rejected images by step and reason, with examples."""
    from maskmine.pipelines.steps.status import captions_left_out, masks_left_out, rejected_images, render_rejected

    run = read_folder(folder)
    rejected = rejected_images(run)
    if as_json:
        for image in rejected:
            print_json(asdict(image))
        return
    table = render_rejected(rejected, examples=most)
    out.print(table if table.rows else "no image was rejected")
    for line in (*captions_left_out(run, most=most), *masks_left_out(run, most=most)):
        print_line(line)


@app.command()
def doctor(
    config: Annotated[str | None, typer.Argument(metavar="CONFIG", help="Look for what it needs, too.")] = None,
    overrides: SetOption = None,
    configuration: Annotated[
        Configuration | None, typer.Option("--for", help="The command of CONFIG; else found out from its settings.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check what a run needs before it starts: libraries, machine, input, models, licences."""
    from maskmine.pipelines.doctor import diagnose, diagnose_others, diagnose_without, ready, render
    from maskmine.pipelines.settings.mining import load_mining, load_settings, top_settings

    try:
        kind = configuration or (guess_configuration(top_settings(config)) if config else "mine")
        if kind == "mine":
            findings = diagnose(load_mining(config, overrides=overrides or ()) if config else None)
        else:
            findings = diagnose_others(load_settings(settings_of(kind), config, overrides=overrides or ()))
    except ModuleNotFoundError as error:
        findings = diagnose_without(str(error.name))
    if as_json:
        print_json({"ready": ready(findings), "findings": [asdict(finding) for finding in findings]})
    else:
        out.print(render(findings))
    if not ready(findings):
        raise typer.Exit(Exit.BAD_INPUT)


def _print_outcome(outcome: MineResult, settings: Mining, *, as_json: bool) -> None:
    if as_json:
        stored = outcome.manifest.totals.model_dump(mode="json") if outcome.manifest is not None else None
        over = [asdict(one) for one in outcome.exceeded]
        print_json({"out": settings.out, "totals": stored, "made_again": outcome.stale, "exceeded": over})
        for one in outcome.exceeded:
            err.print(f"finished, and not published: {one.line(out=settings.out)}")
        return
    for step, cells in outcome.stale.items():
        err.print(f"{step}: {counted(cells, 'part')} of other settings, inputs or cells made again")
    if outcome.manifest is None:
        print_line(f"{settings.out} is complete; nothing to do")
        return
    totals = outcome.manifest.totals
    out.print(_render_totals(totals))
    if not (totals.samples or outcome.exceeded):
        reason = max(totals.rejected, key=totals.rejected.__getitem__)
        filters = _filters(settings.pairs) if "filtered" in reason else ""
        look = f"see `maskmine errors {settings.out}`"
        err.print(f"no image has a pair, most of them by `{reason}`{filters}; {look}")
    for exceeded in outcome.exceeded:
        err.print(f"finished, and not published: {exceeded.line(out=settings.out)}")


def _filters(pairs: Settings) -> str:
    """The thresholds that are set; other images may need others."""
    fields = type(pairs).model_fields.items()
    values = {name: getattr(pairs, name) for name, field in fields if getattr(pairs, name) != field.default}
    thresholds = [f"pairs.{name}: {value:g}" for name, value in values.items() if name.startswith("min_")]
    return f" (filters: {', '.join(thresholds)})" if thresholds else ""


def _render_totals(totals: Totals) -> TextTable:
    table = TextTable(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_row("images", f"{totals.images:,}")
    table.add_row("  with pairs", f"{totals.with_pairs:,}")
    for reason, count in totals.empty.items():
        table.add_row(f"  empty, {reason}", f"{count:,}")
    for reason, count in totals.faults.items():
        table.add_row(f"  rejected, {reason}", f"{count:,}")
    if totals.masks_left_out:
        table.add_row("masks that cannot be read", f"{totals.masks_left_out:,}")
    table.add_row("pairs", f"{totals.samples:,}")
    table.add_row("different nouns", f"{totals.nouns:,}")
    table.add_row("size", decimal(totals.size_bytes))
    return table
