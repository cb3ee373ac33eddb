"""The command line. Exit codes (`Exit`): 0 complete, 2 bad settings or arguments, 3 finished but more rejected than
allowed, 4 incomplete (run again), 5 the folder belongs to another plan, 130 interrupted."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.status import Status
from rich.table import Table

from pipelines.exits import Exit, exit_of
from pipelines.run_folder import read_folder
from schemas.errors import IncompleteError, InputError, OtherPlanError

if TYPE_CHECKING:
    from pipelines.benchmark import Benchmark
    from pipelines.benchmark import Outcome as Counted
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

_MANY_CLASSES = 1000
_SERVE_DEMO = "configs/serve-demo.yaml"

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/coco.yaml.")]
FolderArgument = Annotated[str, typer.Argument(metavar="DIR", help="The `out` folder of a run.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a setting (YAML value).")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only estimate time and disk, from a few images.")]
EngineOption = Annotated[str, typer.Option("--engine", help="local, ray or beam.")]
EngineOptOption = Annotated[list[str] | None, typer.Option("--engine-opt", metavar="K=V", help="An engine's option.")]
FetchOption = Annotated[
    Literal["allow", "refuse"] | None,
    typer.Option("--fetch", help="Whether pictures are read from URLs, with limits; refuse unless the settings allow."),
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Mine only so many images, a random sample.")]
LogOption = Annotated[
    str | None, typer.Option("--log-json", metavar="FILE", help="Append a line of JSON for each step and part.")
]
MetricsOption = Annotated[
    str | None,
    typer.Option(metavar="PORT|FILE.prom", help="Prometheus metrics: served on [HOST:]PORT, or written to a file."),
]
NounsOption = Annotated[
    str | None, typer.Option(metavar="A,B|@FILE", help="Only pairs of these nouns (or lemmas); @FILE: one a line.")
]
PrepareOption = Annotated[
    bool, typer.Option("--prepare-only", help="Make a download's maps and check all of it, and stop there.")
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
    fetch: FetchOption = None,
    regions: Annotated[
        str | None, typer.Option("--regions", metavar="DIR", help="Take the regions of this earlier run.")
    ] = None,
) -> None:
    """Mine the pairs of a configuration, or what is left of them; run it again after any interruption.

    What stands after `--` goes to Beam as it is.
    """
    from pipelines.choose import choose_engine
    from pipelines.mine import mine as run_mining
    from pipelines.observe import observe
    from pipelines.plan import make_plan
    from pipelines.regenerate import open_earlier
    from pipelines.run_folder import RunFolder
    from pipelines.settings import load_mining

    fetching = [f"regions.decoding.fetch.allow={str(fetch == 'allow').lower()}"] if fetch else []
    settings = load_mining(config, overrides=[*(overrides or ()), *fetching])
    run_engine = choose_engine(engine, options=engine_options or (), pipeline_options=context.args)
    if dry_run:
        if regions:
            raise InputError("--dry-run: estimates a run that makes its own regions; give it without --regions")
        _print_estimate(settings, limit)
        return
    earlier = open_earlier(regions, settings) if regions else None
    with observe(
        err, run=settings.out, engine=engine, log_json=log_json, metrics=metrics, stalled_after_s=60 * stalled_after
    ) as watch:
        plan = make_plan(RunFolder(settings.out), settings, limit=limit)
        watch.plan_is_made(plan)
        err.print(f"{plan.images:,} images in {plan.parts:,} parts → {settings.out}")
        here = engine == "local"
        outcome = run_mining(
            settings, engine=run_engine, watch=watch, limit=limit, models_run_here=here, earlier=earlier
        )
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
    said = f"{to}: {drawn.images} photographs, {drawn.pairs} pairs"
    if drawn.pieced:
        said += f"; {drawn.pieced} photographs are not at hand, and their crops are drawn"
    out.print(said, highlight=False, soft_wrap=True)


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
def report(
    folder: FolderArgument,
    to: Annotated[Path, typer.Option("--to", help="The page to write.")] = Path("report.html"),
    truth: Annotated[
        str | None, typer.Option(metavar="FILE", help="COCO instances JSON: how many pairs are right, too.")
    ] = None,
    synonyms: Annotated[
        str, typer.Option(help="Nouns of the truth's categories: coco, a YAML file, or none.")
    ] = "coco",
    samples: Annotated[int, typer.Option(min=0, help="So many pairs at most can be looked up in the page.")] = 240,
    most_mb: Annotated[
        float, typer.Option(min=0.5, help="So large is the page at most; fewer pairs where needed.")
    ] = 5,
) -> None:
    """Write a page of figures, charts and pairs of a finished run, which needs no server and no network."""
    from pipelines.report import write_report

    made = write_report(read_folder(folder), to=to, truth=truth, synonyms=synonyms, samples=samples, most_mb=most_mb)
    size_mb = to.stat().st_size / 1e6
    out.print(
        f"{to}: {made.manifest.totals.samples:,} pairs, {len(made.search):,} of them to look up, {size_mb:.1f} MB; "
        "open it in a browser",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The folder of a finished run.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The folder of another one.")],
    to: Annotated[Path | None, typer.Option("--to", help="Write a page, too, with pairs gained and lost.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False,
) -> None:
    """Tell what changed between two runs: pairs kept, gained and lost, nouns new and gone, scores moved."""
    from pipelines.diff import compare_runs, render_diff, write_diff

    runs = read_folder(old), read_folder(new)
    found = compare_runs(*runs)
    if to is not None:
        write_diff(found, *runs, to=to)
    if as_json:
        sys.stdout.write(json.dumps(found.as_json()) + "\n")
        return
    out.print(render_diff(found))
    if to is not None:
        out.print(f"\n{to}: open it in a browser", highlight=False, soft_wrap=True)


@app.command()
def duplicates(
    folder: FolderArgument,
    bits: Annotated[int, typer.Option(min=0, max=16, help="Copies differ in so many of 64 bits at most.")] = 6,
    exact: Annotated[bool, typer.Option("--exact", help="Files of the same bytes alone; no picture is read.")] = False,
    most: Annotated[int, typer.Option(min=0, help="Groups to print.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON a group, all of them.")] = False,
) -> None:
    """List images that are copies of each other, across all parts: by their bytes, and by what they look like."""
    from dataclasses import asdict

    from pipelines.duplicates import find_duplicates

    run = read_folder(folder)
    with Status("reading", console=err) as status:
        images = 0

        def tick(more: int) -> None:
            nonlocal images
            images += more
            if images % 100 == 0:
                status.update(f"{images:,} images")

        found = find_duplicates(run, most_bits=None if exact else bits, tick=tick)
    if as_json:
        for group in found.groups:
            sys.stdout.write(json.dumps(asdict(group)) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("images", "bits", "files", "image ids (part)"):
        table.add_column(name, justify="right" if name in ("images", "bits") else "left", overflow="fold")
    for group in found.groups[:most]:
        named = ", ".join(f"{image_id} ({part})" for part, image_id in group.images[:8])
        more = f" and {len(group.images) - 8:,} more" if len(group.images) > 8 else ""
        same = "same bytes" if group.same_bytes else "look alike"
        table.add_row(f"{len(group.images):,}", str(group.bits), same, named + more)
    if found.groups and most:
        out.print(table)
    out.print(
        f"images: {found.images:,}, groups of copies: {len(found.groups):,}, images more than needed: {found.copies:,}"
        + (f", not readable: {found.unread:,}" if found.unread else "")
    )


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


@app.command()
def export(
    folder: FolderArgument,
    to: Annotated[
        str, typer.Option(metavar="FORMAT", help="webdataset, openclip, ovseg, coco, hf, …: docs/exports.md.")
    ],
    target: Annotated[str, typer.Option("--out", metavar="DIR", help="The folder to write, here or on a store.")],
    min_similarity: Annotated[float | None, typer.Option(help="Only pairs of this similarity or more.")] = None,
    min_margin: Annotated[float | None, typer.Option(help="Only pairs of this margin or more.")] = None,
    nouns: NounsOption = None,
    without_nouns: Annotated[str | None, typer.Option(metavar="A,B|@FILE", help="No pairs of these nouns.")] = None,
    held_out: Annotated[str | None, typer.Option(metavar="A,B|@FILE", help="Nouns for later splits alone.")] = None,
    split: Annotated[str, typer.Option(metavar="A=X,B=Y", help="Shares of the images.")] = "train=1",
    split_seed: Annotated[int, typer.Option(help="Another seed, other images in each split.")] = 0,
    licences: Annotated[str | None, typer.Option(metavar="A,B", help="Captions and pictures of these alone.")] = None,
    licence_policy: Annotated[
        str, typer.Option(help="any, or commercial: refuse what is not known to allow it.")
    ] = "any",
    shard_size: Annotated[int, typer.Option(min=1, help="Samples in a shard.")] = 10_000,
    image_format: Annotated[str | None, typer.Option(help="jpg, png or webp; else as in the run.")] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of jpg and webp.")] = 95,
    max_side: Annotated[int | None, typer.Option(min=8, help="Longer side of a picture in pixels, at most.")] = None,
    fill: Annotated[str, typer.Option(help="Around the masks of openclip: mean, zero or none.")] = "mean",
    expand: Annotated[float, typer.Option(help="Masked crops reach so far around the mask.")] = 1.0,
    csv_prefix: Annotated[str, typer.Option(help="Before the paths in OVSeg's table.")] = "",
    threads: Annotated[int, typer.Option(min=1, max=64, help="Pictures made at the same time.")] = 2,
) -> None:
    """Write the pairs of a finished run for another program, or what is left of them after an interruption."""
    from pipelines.export import export_run
    from pipelines.export_options import parse_export

    pictures = {"image_format": image_format, "quality": quality, "max_side_px": max_side}
    settings = parse_export(
        to,
        selection={"min_similarity": min_similarity, "min_margin": min_margin, "seed": split_seed},
        lists={"nouns": nouns, "without_nouns": without_nouns, "held_out": held_out},
        split=split,
        pictures={**pictures, "fill": fill, "expand_ratio": expand, "threads": threads},
        licences=licences,
        more={"policy": licence_policy, "samples_per_piece": shard_size, "csv_prefix": csv_prefix},
    )
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=err) as progress:

        def begin(samples: int) -> Callable[[int], None]:
            task = progress.add_task(f"to {to}", total=samples)
            return lambda more: progress.advance(task, more)

        exported = export_run(read_folder(folder), settings, out=target, begin=begin)
    if exported.size_bytes is None:
        out.print(f"{target} is complete; nothing to do", highlight=False, soft_wrap=True)
        return
    counts = ", ".join(f"{name} {count:,}" for name, count in exported.totals.samples.items())
    out.print(f"{target}: {counts} pairs, {exported.size_bytes / 1e6:,.1f} MB", highlight=False, soft_wrap=True)


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


@app.command("train-proposals")
def train_masks(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Such as configs/train-proposals-swin-b.yaml.")],
    overrides: SetOption = None,
) -> None:
    """Train an open-vocabulary MaskFormer on pictures with maps of classes, or go on with what is left.

    For several processes: torchrun --nproc-per-node 8 --no-python maskmine train-proposals CONFIG
    """
    from pipelines.settings import load_settings
    from tuning.proposal_settings import ProposalTraining
    from tuning.proposal_training import train_proposals

    settings = load_settings(ProposalTraining, config, overrides=overrides or ())
    out.print(str(train_proposals(settings, console=err)), highlight=False, soft_wrap=True)


@app.command()
def segment(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE…", help="Pictures, folders or patterns ('*.jpg').")],
    classes: Annotated[str, typer.Option(metavar="A,B", help='Names with commas between: "Saturn V, blossom".')] = "",
    classes_from: Annotated[str | None, typer.Option(metavar="FILE", help="Names, one a line.")] = None,
    config: Annotated[str | None, typer.Option(metavar="CONFIG", help="Such as configs/segment.yaml.")] = None,
    overrides: SetOption = None,
    granularity: Annotated[
        float | None,
        typer.Option(metavar="G", min=0, max=1, help="Masks above G × the best vote of a class; 1: the best alone."),
    ] = None,
    to: Annotated[str, typer.Option(metavar="DIR", help="Folder for maps, overlays and figures.")] = "segmentation",
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each picture.")] = False,
) -> None:
    """Segment pictures by the names of any classes: a label map, an overlay with a legend, and figures as JSON."""
    from pipelines.pictures import find_pictures, read_classes
    from pipelines.segment import Failed, segment_pictures
    from pipelines.settings import load_settings
    from tuning.segmenter import Segmenter

    chosen = [] if granularity is None else ["paint=best_per_class", f"granularity={granularity}"]
    settings = load_settings(Segmenter, config, overrides=[*chosen, *(overrides or ())])
    named = read_classes(classes, classes_from)
    pictures = find_pictures(images)
    if len(named) > _MANY_CLASSES:
        err.print(f"{len(named):,} classes: CLIP reads them all before the first picture, which takes a while")
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


@app.command(context_settings={"allow_extra_args": True})
def benchmark(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="ade150, ade847, pc59, pc459, voc20; or a name of yours.")
    ],
    root: Annotated[str | None, typer.Option(metavar="DIR", help="Where the prepared set lies.")] = None,
    config: Annotated[str | None, typer.Option(metavar="CONFIG", help="Such as configs/segment.yaml.")] = None,
    overrides: SetOption = None,
    images: Annotated[str | None, typer.Option(metavar="DIR", help="Pictures of a set of yours.")] = None,
    maps: Annotated[str | None, typer.Option(metavar="DIR", help="Its label maps, PNG or TIFF.")] = None,
    names: Annotated[str | None, typer.Option(metavar="FILE", help="Its classes, one a line, label 0 first.")] = None,
    ignore: Annotated[int, typer.Option(help="The label of pixels that are not counted.")] = 255,
    seen: Annotated[str | None, typer.Option(metavar="FILE", help="Classes that the proposals' training saw.")] = None,
    bottleneck: Annotated[bool, typer.Option("--bottleneck", help="Oracle masks and classes; a chart.")] = False,
    to: Annotated[str | None, typer.Option(metavar="DIR", help="Folder for counts and figures.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many pictures, the first ones.")] = None,
    per_part: Annotated[int, typer.Option(min=1, help="Pictures of a part, which is done by one worker.")] = 100,
    by_class: Annotated[bool, typer.Option("--by-class", help="Print a line for each class, too.")] = False,
    prepare_only: PrepareOption = False,
    partial: Annotated[bool, typer.Option("--partial", help="With it: a download that is not whole.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="With it: so many processes.")] = 1,
    engine: EngineOption = "local",
    engine_options: EngineOptOption = None,
    log_json: LogOption = None,
    metrics: MetricsOption = None,
    stalled_after: StalledOption = 10,
) -> None:
    """Segment a set that has label maps and measure it, or what is left of it; run it again after any interruption.

    What stands after `--` goes to Beam as it is.
    """
    if prepare_only:
        _prepare_set(name, root, partial=partial, processes=processes)
        return
    if partial:
        raise InputError("--partial: belongs to --prepare-only; what is prepared is measured as it is")
    from pipelines.benchmark import Benchmark, run_benchmark
    from pipelines.benchmark_sets import find_set, first_pictures
    from pipelines.choose import choose_engine
    from pipelines.observe import observe
    from pipelines.segment import claim_folder
    from pipelines.settings import load_settings
    from tuning.segmenter import Segmenter

    settings = load_settings(Segmenter, config, overrides=overrides or ())
    run_engine = choose_engine(engine, options=engine_options or (), pipeline_options=context.args)
    found = find_set(name, root=root, images=images, maps=maps, names=names, ignore=ignore, seen=seen)
    folder = to or f"runs/benchmark/{name}"
    asked = Benchmark(first_pictures(found, limit), settings, claim_folder(folder), bottleneck, per_part)
    with observe(
        err, run=folder, engine=engine, log_json=log_json, metrics=metrics, stalled_after_s=60 * stalled_after
    ) as watch:
        watch.plan_is_made(asked.plan())
        outcome = run_benchmark(asked, engine=run_engine, watch=watch, models_run_here=engine == "local")
        watch.ends_as = Exit.TOO_MANY_REJECTED if outcome.rejected else Exit.COMPLETE
    _print_benchmark(asked, outcome, to=folder, by_class=by_class)
    if outcome.rejected:
        raise typer.Exit(Exit.TOO_MANY_REJECTED)


@app.command()
def leakage(
    folder: FolderArgument,
    root: Annotated[
        str | None, typer.Option(metavar="DIR", help="The folder of the benchmarks' downloads; without: nouns alone.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--benchmark", metavar="NAME", help="Only this one; more than one is allowed.")
    ] = None,
    look: Annotated[bool, typer.Option("--look/--no-look", help="Compare what pictures look like, too.")] = True,
    bits: Annotated[
        int, typer.Option(min=0, max=15, help="Of 64 bits, so many may differ where pictures look alike.")
    ] = 6,
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the lists.")] = Path("leakage"),
    as_json: Annotated[bool, typer.Option("--json", help="Print leakage.json, not the tables.")] = False,
) -> None:
    """Report what a run has in common with the benchmarks: nouns that name their classes, and their pictures."""
    from pipelines.evaluation_report import claim_folder
    from pipelines.leakage import find_leakage
    from pipelines.leakage_report import render_leakage, write_leakage

    run = read_folder(folder)
    claim_folder(to, run=run)
    with Status("reading", console=err) as status:
        pictures = 0

        def tick(more: int) -> None:
            nonlocal pictures
            pictures += more
            status.update(f"{pictures:,} pictures")

        found = find_leakage(run, root=root, names=names or (), looks=look, most_bits=bits, tick=tick)
    files = write_leakage(found, to)
    if as_json:
        sys.stdout.write(json.dumps(found.as_json()) + "\n")
        return
    out.print(render_leakage(found))
    out.print(f"\n{to}: {', '.join(files)}", highlight=False, soft_wrap=True)


@app.command()
def serve(
    config: Annotated[str, typer.Argument(metavar="[CONFIG]", help="Such as configs/serve.yaml.")] = _SERVE_DEMO,
    overrides: SetOption = None,
    host: Annotated[str, typer.Option(help="0.0.0.0: for all who reach this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one.")] = 7860,
) -> None:
    """A web page on this machine: upload a picture, name classes, see the map. Without CONFIG: the demo world."""
    from pipelines.serve import serve
    from pipelines.serving import Serving
    from pipelines.settings import load_settings

    if config == _SERVE_DEMO and not Path(config).is_file():
        raise InputError(f"{config} is not here; run this in the project's folder, or give a CONFIG")
    settings = load_settings(Serving, config, overrides=overrides or ())
    try:
        serve(settings, host=host, port=port, say=err.print)
    except KeyboardInterrupt as error:
        raise _StoppedError from error


class _StoppedError(Exception):
    """A server was told to stop, as every server is in the end."""


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
    except _StoppedError:
        return _say("stopped", Exit.INTERRUPTED)
    if code == Exit.INTERRUPTED:  # so typer answers an interrupt
        err.print("interrupted; what is finished stays, run the same command again to go on")
    return int(code or 0)


def _say(error: Exception | str, code: int) -> int:
    err.print(f"maskmine: {' '.join(str(error).splitlines())}")
    return code


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _prepare_set(name: str, root: str | None, *, partial: bool, processes: int) -> None:
    from tuning.benchmarks import VOID, prepare

    if root is None:
        raise InputError(f"{name}: where is its download? Give --root DIR, the folder that has the data set's")
    with Status("reading", console=err) as status:
        said = prepare(
            name,
            root,
            partial=partial,
            processes=processes,
            tick=lambda done, of: status.update(f"{done:,} of {of:,} pictures"),
        )
    for line in said.faults(20):
        err.print(line)
    out.print(f"{said.line()}; {said.written:,} maps written", highlight=False, soft_wrap=True)
    if any(one.reason != VOID for one in said.left_out):
        raise typer.Exit(Exit.TOO_MANY_REJECTED)


def _print_benchmark(asked: Benchmark, outcome: Counted, *, to: str, by_class: bool) -> None:
    from pipelines.benchmark_report import names_of_rejected, render_report, write_report

    if outcome.stale:
        err.print(f"{outcome.stale} parts were of other settings or pictures, and were made again")
    files = write_report(asked, outcome)
    out.print(render_report(asked, outcome, by_class=by_class))
    out.print(f"\n{to}: {', '.join(files)}", highlight=False, soft_wrap=True)
    for line in names_of_rejected(outcome, most=20):
        err.print(line)


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
