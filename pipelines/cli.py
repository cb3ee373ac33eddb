"""The command line. Exit codes (`Exit`): 0 complete, 2 bad settings or arguments, 3 finished but more rejected than
allowed, 4 incomplete (run again), 5 the folder belongs to another plan, 130 interrupted."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table

from pipelines.exits import Exit, exit_of
from pipelines.run_folder import read_folder
from schemas.errors import IncompleteError, InputError, OtherPlanError

if TYPE_CHECKING:
    from pipelines.mine import Outcome
    from pipelines.settings import Mining
    from schemas.manifest import Totals

app = typer.Typer(
    name="maskmine",
    help="Mine mask–noun pairs from captioned images, and tune CLIP on them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
out = Console(soft_wrap=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/coco.yaml.")]
FolderArgument = Annotated[str, typer.Argument(metavar="DIR", help="The `out` folder of a run.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a setting (YAML value).")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only estimate time and disk, from a few images.")]
EngineOption = Annotated[str, typer.Option("--engine", help="local, ray or beam.")]
EngineOptOption = Annotated[list[str] | None, typer.Option("--engine-opt", metavar="K=V", help="An engine's option.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Mine only so many images, a random sample.")]
LogOption = Annotated[
    str | None, typer.Option("--log-json", metavar="FILE", help="Append a line of JSON for each step and part.")
]
MetricsOption = Annotated[
    str | None,
    typer.Option(metavar="PORT|FILE.prom", help="Prometheus metrics: served on [HOST:]PORT, or written to a file."),
]
StalledOption = Annotated[
    float, typer.Option(min=0, metavar="MINUTES", help="Say so when nothing has moved for so long; 0: never.")
]


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
) -> None:
    """Mine the pairs of a configuration, or what is left of them; run it again after any interruption.

    What stands after `--` goes to Beam as it is.
    """
    from pipelines.choose import choose_engine
    from pipelines.mine import mine as run_mining
    from pipelines.observe import observe
    from pipelines.plan import make_plan
    from pipelines.run_folder import RunFolder
    from pipelines.settings import load_mining

    settings = load_mining(config, overrides=overrides or ())
    run_engine = choose_engine(engine, options=engine_options or (), pipeline_options=context.args)
    if dry_run:
        _print_estimate(settings, limit)
        return
    with observe(
        err, run=settings.out, engine=engine, log_json=log_json, metrics=metrics, stalled_after_s=60 * stalled_after
    ) as watch:
        plan = make_plan(RunFolder(settings.out), settings, limit=limit)
        watch.plan_is_made(plan)
        err.print(f"{plan.images:,} images in {plan.parts:,} parts → {settings.out}")
        outcome = run_mining(settings, engine=run_engine, watch=watch, limit=limit, models_run_here=engine == "local")
        watch.ends_as = Exit.TOO_MANY_REJECTED if outcome.too_many_rejected else Exit.COMPLETE
    _print_outcome(outcome, settings)
    if outcome.too_many_rejected:
        raise typer.Exit(Exit.TOO_MANY_REJECTED)


@app.command()
def status(folder: FolderArgument, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Show how far a run is: the grid of steps × parts."""
    from pipelines.status import ranges, run_status

    state = run_status(read_folder(folder))
    if as_json:
        sys.stdout.write(json.dumps(state.as_json()) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("step", "done", "", "missing parts"):
        table.add_column(name)
    for step in state.steps:
        bar = "█" * (20 * step.done // step.cells)
        table.add_row(step.step, f"{step.done}/{step.cells}", f"{bar:░<20}", ranges(step.missing))
    out.print(f"{state.images:,} images in {state.parts:,} parts: {'complete' if state.complete else 'not complete'}")
    out.print(table)


@app.command()
def verify(folder: FolderArgument) -> None:
    """Hash, count and read everything again; each problem is a line, and exit code 4 says that there is one."""
    from pipelines.verify import read_manifest, verify_run

    run = read_folder(folder)
    problems = 0
    for problem in verify_run(run):
        problems += 1
        err.print(str(problem))
    if problems:
        raise typer.Exit(Exit.INCOMPLETE)
    totals = read_manifest(run).totals
    out.print(
        f"{folder}: {totals.samples:,} samples verified: checksums, counts, members, masks, index",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def show(
    folder: FolderArgument,
    to: Annotated[Path, typer.Option("--to", help="The picture to write.")] = Path("contact-sheet.png"),
    images: Annotated[int, typer.Option(min=1, max=200, help="How many photographs.")] = 12,
    noun: Annotated[str | None, typer.Option(help="Only images with a pair of this noun.")] = None,
) -> None:
    """Draw a contact sheet: photographs with the outline of each mask, its noun and its similarity."""
    from pipelines.show import contact_sheet

    drawn = contact_sheet(read_folder(folder), to=to, images=images, noun=noun)
    out.print(f"{to}: {drawn.images} photographs, {drawn.pairs} pairs", highlight=False, soft_wrap=True)


@app.command()
def errors(
    folder: FolderArgument,
    most: Annotated[int, typer.Option(min=0, help="Examples of each reason.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON a rejected image.")] = False,
) -> None:
    """List the rejected images by step and reason, with examples."""
    from dataclasses import asdict

    from pipelines.status import rejected_images

    run = read_folder(folder)
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[str]] = {}
    for image in rejected_images(run):
        if as_json:
            sys.stdout.write(json.dumps(asdict(image)) + "\n")
            continue
        key = (image.step, image.reason)
        counts[key] += 1
        if counts[key] <= most:
            examples.setdefault(key, []).append(f"{image.image_id}: {image.detail}" if image.detail else image.image_id)
    if as_json:
        return
    if not counts:
        out.print("no image was rejected")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("step", "reason", "images", "examples"):
        table.add_column(name, justify="right" if name == "images" else "left", overflow="fold")
    for key, count in counts.most_common():
        table.add_row(*key, f"{count:,}", "\n".join(examples.get(key, [])))
    out.print(table)


@app.command()
def doctor(
    config: Annotated[str | None, typer.Argument(metavar="CONFIG", help="Look for what it needs, too.")] = None,
    overrides: SetOption = None,
) -> None:
    """Look up what a run needs before it starts: libraries, machine, input, models, licences."""
    from pipelines.doctor import diagnose, ready, render
    from pipelines.settings import load_mining

    findings = diagnose(load_mining(config, overrides=overrides or ()) if config else None)
    out.print(render(findings))
    if not ready(findings):
        raise typer.Exit(Exit.BAD_INPUT)


@app.command("evaluate-pairs")
def evaluate_pairs(
    folder: FolderArgument,
    truth: Annotated[str, typer.Option(metavar="FILE", help="COCO instances JSON of the run's images.")],
    to: Annotated[Path, typer.Option(help="Folder for evaluation.json and the curves.")] = Path("evaluation"),
    seen: Annotated[str | None, typer.Option(metavar="FILE", help="Nouns, one a line, to tell from others.")] = None,
    synonyms: Annotated[str, typer.Option(help="Nouns of categories: coco, a YAML file, or none.")] = "coco",
    as_json: Annotated[bool, typer.Option("--json", help="Print evaluation.json, not the table.")] = False,
) -> None:
    """Measure the pairs of a finished run against known objects, and what a threshold would make of them."""
    from pipelines.evaluate_pairs import evaluate_pairs
    from pipelines.evaluation_report import claim_folder, render_evaluation, write_evaluation

    run = read_folder(folder)
    claim_folder(to, run=run)
    evaluation = evaluate_pairs(run, truth=truth, seen=seen, synonyms=synonyms)
    files = write_evaluation(evaluation, to, run=run)
    if as_json:
        sys.stdout.write(json.dumps(evaluation.as_json()) + "\n")
        return
    out.print(render_evaluation(evaluation))
    out.print(f"\n{to}: {', '.join(files)}", highlight=False, soft_wrap=True)


@app.command()
def evaluate(
    config: ConfigArgument,
    to: Annotated[Path, typer.Option(help="Folder for evaluation.json and pictures.")] = Path("evaluation"),
    override: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print evaluation.json, not the table.")] = False,
) -> None:
    """Measure how well a CLIP names masked regions, plain and tuned, and what it still knows of whole pictures."""
    from pipelines.evaluate import evaluate
    from pipelines.settings import load_settings
    from tuning import evaluation_report
    from tuning.evaluation import Examination

    settings = load_settings(Examination, config, overrides=override or ())
    with Status("reading", console=err) as status:
        regions = 0

        def tick(more: int) -> None:
            nonlocal regions
            regions += more
            status.update(f"{regions:,} regions")

        findings, said = evaluate(settings, tick=tick)
    files = evaluation_report.write_evaluation(findings, to, said=said)
    if as_json:
        sys.stdout.write(json.dumps(evaluation_report.as_json(findings, said=said)) + "\n")
        return
    out.print(evaluation_report.render_evaluation(findings, said=said))
    out.print(f"\n{to}: {', '.join(files)}", highlight=False, soft_wrap=True)


@app.command("tune")
def tune_clip(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/tune.yaml.")],
    overrides: SetOption = None,
) -> None:
    """Tune CLIP on mined pairs, or go on with what is left; run it again after any interruption.

    For several processes: torchrun --nproc-per-node 8 --no-python maskmine tune CONFIG
    """
    from pipelines.settings import load_settings
    from tuning.on_ray import tune_on_ray
    from tuning.settings import Tuning
    from tuning.train import files_of, tune

    settings = load_settings(Tuning, config, overrides=overrides or ())
    if settings.ray is None:
        files = tune(settings, console=err).files
    else:
        tune_on_ray(settings, ray_train=settings.ray)
        files = files_of(settings)
    for file in files:
        out.print(str(file), highlight=False, soft_wrap=True)


@app.command()
def segment(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE…", help="Pictures, folders or patterns ('*.jpg').")],
    classes: Annotated[str, typer.Option(metavar="A,B", help='Names with commas between: "Saturn V, blossom".')] = "",
    classes_from: Annotated[str | None, typer.Option(metavar="FILE", help="Names, one a line.")] = None,
    config: Annotated[str | None, typer.Option(metavar="CONFIG", help="Such as configs/segment.yaml.")] = None,
    overrides: SetOption = None,
    to: Annotated[str, typer.Option(metavar="DIR", help="Folder for maps, overlays and figures.")] = "segmentation",
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each picture.")] = False,
) -> None:
    """Segment pictures by the names of any classes: a label map, an overlay with a legend, and figures as JSON."""
    from pipelines.pictures import find_pictures, read_classes
    from pipelines.segment import Failed, segment_pictures
    from pipelines.settings import load_settings
    from tuning.segmenter import Segmenter

    settings = load_settings(Segmenter, config, overrides=overrides or ())
    named = read_classes(classes, classes_from)
    pictures = find_pictures(images)
    failed = 0
    for outcome in segment_pictures(settings, pictures, classes=named, to=to):
        if isinstance(outcome, Failed):
            failed += 1
            err.print(f"{outcome.picture}: {outcome.rejection.reason} ({outcome.rejection.detail})")
        elif as_json:
            sys.stdout.write(json.dumps(outcome.figures) + "\n")
        else:
            out.print(outcome.line, highlight=False, soft_wrap=True, markup=False)
    if failed:
        err.print(f"{failed:,} of {len(pictures):,} pictures came to nothing")
        raise typer.Exit(Exit.TOO_MANY_REJECTED)


def main() -> NoReturn:
    """The console command `maskmine`."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run_app())


def run_app(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; expected faults are printed as one line on stderr."""
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="maskmine", standalone_mode=False)
    except (InputError, IncompleteError, OtherPlanError) as error:
        return _say(error, exit_of(error))
    except typer.TyperException as error:  # a wrong option or argument, or none: then it is the help
        message = error.format_message()
        if message.startswith("Usage:"):
            err.print(message)
            return Exit.BAD_INPUT
        return _say(message, Exit.BAD_INPUT)
    if code == Exit.INTERRUPTED:  # so typer answers an interrupt
        err.print("interrupted; what is finished stays, run the same command again to go on")
    return int(code or 0)


def _say(error: Exception | str, code: int) -> int:
    err.print(f"maskmine: {' '.join(str(error).splitlines())}")
    return code


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _print_estimate(settings: Mining, limit: int | None) -> None:
    from pipelines.estimate import estimate, render_estimate

    err.print("mining a few images in a temporary folder …")
    out.print(render_estimate(estimate(settings, limit=limit)))


def _print_outcome(outcome: Outcome, settings: Mining) -> None:
    for step, cells in outcome.stale.items():
        err.print(f"{step}: {cells} parts were of other settings or inputs, and were made again")
    if outcome.manifest is None:
        out.print(f"{settings.out} is complete; nothing to do", highlight=False, soft_wrap=True)
        return
    _print_totals(outcome.manifest.totals)
    if outcome.too_many_rejected:
        word = max(outcome.manifest.totals.rejected.items(), key=lambda item: item[1])[0]
        err.print(
            f"{outcome.rejected_share:.0%} of the images were rejected, most by `{word}`, and max_rejected allows "
            f"{settings.max_rejected:.0%}; see `maskmine errors {settings.out}`, or raise max_rejected"
        )


def _print_totals(totals: Totals) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_row("images", f"{totals.images:,}")
    table.add_row("  with pairs", f"{totals.with_pairs:,}")
    for reason, count in totals.rejected.items():
        table.add_row(f"  rejected, {reason}", f"{count:,}")
    table.add_row("pairs", f"{totals.samples:,}")
    table.add_row("different nouns", f"{totals.nouns:,}")
    table.add_row("megabytes", f"{totals.size_bytes / 1e6:,.1f}")
    out.print(table)


if __name__ == "__main__":
    main()
