"""Segmentation by the names of classes: segment, benchmark, serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from maskmine.pipelines.cli.app import (
    EngineOption,
    EngineOptOption,
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
from maskmine.schemas.errors import Exit, InputError, ServerStoppedError
from maskmine.schemas.wording import counted
from maskmine.tuning.console import plain_status

if TYPE_CHECKING:
    from maskmine.pipelines.segment.benchmark import Benchmark, BenchmarkResult

_MANY_CLASSES = 1000  # embedding more takes so long before the first image that it is announced
_SERVE_DEMO = "configs/serve-demo.yaml"
_MOST_FAULTS = 20  # lines about single images; the rest is counted


@app.command()
def segment(
    images: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE…", help="Images, folders or patterns ('*.jpg').")
    ] = None,
    classes: Annotated[str, typer.Option(metavar="A,B", help='Names with commas between: "Saturn V, blossom".')] = "",
    classes_from: Annotated[str | None, typer.Option(metavar="FILE", help="Names, one a line.")] = None,
    config: Annotated[str | None, typer.Option(metavar="CONFIG", help="Such as configs/segment.yaml.")] = None,
    overrides: SetOption = None,
    granularity: Annotated[
        float | None,
        typer.Option(metavar="G", min=0, max=1, help="Masks above G × the best vote of a class; 1: the best alone."),
    ] = None,
    to: Annotated[str, typer.Option(metavar="DIR", help="Folder for maps, overlays and figures.")] = "segmentation",
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each image.")] = False,
) -> None:
    """Segment images by the names of any classes: a label map, an overlay with a legend, and figures as JSON."""
    from maskmine.pipelines.segment.images import check_images, find_images, read_classes
    from maskmine.pipelines.segment.segment import Failed, segment_images
    from maskmine.pipelines.settings.mining import load_settings
    from maskmine.tuning.segmentation.segmenter import Segmenter

    chosen = [] if granularity is None else ["paint=best_per_class", f"granularity={granularity}"]
    settings = load_settings(Segmenter, config, overrides=[*chosen, *(overrides or ())])
    names = read_classes(classes, classes_from)
    check_images(images or (), classes=names)
    paths = find_images(images or ())
    if len(names) > _MANY_CLASSES:
        err.print(f"{len(names):,} classes: CLIP reads them all before the first image, which takes a while")
    failed = 0
    for outcome in segment_images(settings, paths, classes=names, to=to):
        if isinstance(outcome, Failed):
            failed += 1
            err.print(f"{outcome.path}: {outcome.rejection.reason} ({outcome.rejection.detail})")
        elif as_json:
            print_json(outcome.figures)
        else:
            print_line(outcome.line)
    if failed:
        err.print(f"{failed:,} of {counted(len(paths), 'image')} could not be segmented")
        raise typer.Exit(Exit.TOO_MANY_REJECTED)


@app.command(context_settings={"allow_extra_args": True})
def benchmark(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="ade150, ade847, pc59, pc459, voc20; or a name of yours.")
    ],
    root: Annotated[str | None, typer.Option(metavar="DIR", help="Folder of the prepared set.")] = None,
    config: Annotated[str | None, typer.Option(metavar="CONFIG", help="Such as configs/segment.yaml.")] = None,
    overrides: SetOption = None,
    images: Annotated[str | None, typer.Option(metavar="DIR", help="Images of a set of yours.")] = None,
    maps: Annotated[str | None, typer.Option(metavar="DIR", help="Its label maps, PNG or TIFF.")] = None,
    names: Annotated[str | None, typer.Option(metavar="FILE", help="Its classes, one a line, label 0 first.")] = None,
    ignore: Annotated[
        int | None,
        typer.Option(
            help="The label of pixels that are not counted; 255, or 65535 where a class has that.", show_default=False
        ),
    ] = None,
    seen: Annotated[str | None, typer.Option(metavar="FILE", help="Classes that the proposals' training saw.")] = None,
    bottleneck: Annotated[bool, typer.Option("--bottleneck", help="Oracle masks and classes; a chart.")] = False,
    to: Annotated[str | None, typer.Option(metavar="DIR", help="Folder for counts and figures.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    per_part: Annotated[int, typer.Option(min=1, help="Images of a part, which is done by one worker.")] = 100,
    by_class: Annotated[bool, typer.Option("--by-class", help="Print a line for each class, too.")] = False,
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Make a download's label maps, check all of it, and stop there.")
    ] = False,
    partial: Annotated[bool, typer.Option("--partial", help="With it: a download that is incomplete.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="With it: processes that make maps.")] = 1,
    engine: EngineOption = "local",
    engine_options: EngineOptOption = None,
    log_json: LogOption = None,
    metrics: MetricsOption = None,
    stalled_after: StalledOption = 10,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, not the tables.")] = False,
) -> None:
    """Segment a set that has label maps and measure the result, or continue after any interruption.

    Arguments after `--` are passed to Beam.
    """
    if prepare_only:
        _prepare_set(name, root, partial=partial, processes=processes)
        return
    if partial:
        raise InputError("--partial: belongs to --prepare-only; what is prepared is measured as it is")
    from maskmine.pipelines.engines.choose import choose_engine
    from maskmine.pipelines.run_folder.claim import claim_folder, writing_alone
    from maskmine.pipelines.segment.benchmark import Benchmark, run_benchmark
    from maskmine.pipelines.segment.benchmark_sets import find_set, first_images
    from maskmine.pipelines.settings.mining import load_settings
    from maskmine.pipelines.watch.observers import observe
    from maskmine.tuning.segmentation.segmenter import Segmenter

    # Settings, engine and data: every fault of them is found before anything is written.
    settings = load_settings(Segmenter, config, overrides=overrides or ())
    run_engine = choose_engine(engine, options=engine_options or (), pipeline_options=context.args)
    dataset = find_set(name, root=root, images=images, maps=maps, names=names, ignore=ignore, seen=seen)
    folder = to or f"runs/benchmark/{name}"
    asked = Benchmark(first_images(dataset, limit), settings, claim_folder(folder), bottleneck, per_part)

    # The run itself, watched.
    watched = observe(
        err,
        run=folder,
        engine=engine,
        log_json=log_json,
        metrics=metrics,
        stalled_after_s=60 * stalled_after,
        detail=detail_of(quiet=quiet, verbose=verbose),
    )
    with watched as observer, writing_alone(folder):
        outcome = run_benchmark(asked, engine=run_engine, observer=observer)
        observer.ends_as = Exit.TOO_MANY_REJECTED if outcome.rejected else Exit.COMPLETE
    _report_benchmark(asked, outcome, to=folder, by_class=by_class, as_json=as_json)


@app.command()
def serve(
    config: Annotated[str, typer.Argument(metavar="[CONFIG]", help="Such as configs/serve.yaml.")] = _SERVE_DEMO,
    overrides: SetOption = None,
    host: Annotated[str, typer.Option(help="0.0.0.0: for all who reach this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one.")] = 7860,
) -> None:
    """A web page on this machine: upload an image, name classes, see the map. Without CONFIG: the demo world."""
    from maskmine.pipelines.serve.server import serve
    from maskmine.pipelines.serve.service import Serving
    from maskmine.pipelines.settings.mining import load_settings

    settings = load_settings(Serving, config, overrides=overrides or ())
    try:
        serve(settings, host=host, port=port, say=err.print)
    except KeyboardInterrupt as error:
        raise ServerStoppedError from error


def _prepare_set(name: str, root: str | None, *, partial: bool, processes: int) -> None:
    from maskmine.tuning.benchmarks.prepare import VOID, prepare

    if root is None:
        raise InputError(f"{name}: where is its download? Give --root DIR, the folder that has the data set's")
    with plain_status("reading", console=err) as status:
        prepared = prepare(
            name,
            root,
            partial=partial,
            processes=processes,
            tick=lambda done, of: status.update(Text(f"{done:,} of {of:,} images")),
        )
    for line in prepared.faults(_MOST_FAULTS):
        err.print(line)
    print_line(f"{prepared.line()}; {counted(prepared.written, 'map')} written")
    if any(image.reason != VOID for image in prepared.left_out):
        raise typer.Exit(Exit.TOO_MANY_REJECTED)


def _report_benchmark(asked: Benchmark, outcome: BenchmarkResult, *, to: str, by_class: bool, as_json: bool) -> None:
    """Write and print the result; then the exit code is 3 when images were rejected."""
    from maskmine.pipelines.segment.benchmark_report import lines_of_rejected, render_report, write_report

    if outcome.stale:
        err.print(f"{counted(outcome.stale, 'part')} of other settings or images made again")
    files = write_report(asked, outcome)
    if as_json:
        print_json(asked.run.read_json(files[0]))
    else:
        out.print(render_report(asked, outcome, by_class=by_class))
        print_line(f"\n{to}: {', '.join(files)}")
    for line in lines_of_rejected(outcome, limit=_MOST_FAULTS):
        err.print(line)
    if outcome.rejected:
        raise typer.Exit(Exit.TOO_MANY_REJECTED)
