"""Training and its evaluation: tune, evaluate, train-proposals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskmine.pipelines.cli.app import (
    ConfigArgument,
    SetOption,
    app,
    counting,
    err,
    out,
    print_json,
    print_line,
    tell_replaced,
)


@app.command("tune")
def tune_clip(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/tune.yaml.")],
    overrides: SetOption = None,
) -> None:
    """Tune CLIP on mined pairs, or continue after any interruption.

    For several processes: torchrun --nproc-per-node 8 --no-python maskmine tune CONFIG
    """
    from maskmine.pipelines.settings.mining import load_settings
    from maskmine.tuning.clip.on_ray import tune_on_ray
    from maskmine.tuning.clip.settings import Tuning
    from maskmine.tuning.clip.train import files_of, tune

    settings = load_settings(Tuning, config, overrides=overrides or ())
    if settings.ray is None:
        files = tune(settings, console=err).files
    else:
        tune_on_ray(settings, ray_train=settings.ray)
        files = files_of(settings)
    for file in files:
        print_line(str(file))


@app.command()
def evaluate(
    config: ConfigArgument,
    to: Annotated[Path, typer.Option(help="Folder for evaluation.json and images.")] = Path("evaluation"),
    override: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print evaluation.json, not the table.")] = False,
) -> None:
    """Measure how well a CLIP names masked regions, plain and tuned, and how well it still names whole images."""
    from maskmine.pipelines.evaluate.clip import evaluate
    from maskmine.pipelines.settings.mining import load_settings
    from maskmine.tuning.evaluation import report
    from maskmine.tuning.evaluation.region_accuracy import RegionEvaluation

    settings = load_settings(RegionEvaluation, config, overrides=override or ())
    tell_replaced(to / report.FIGURES_FILE)
    with counting("regions") as tick:
        results, image_counts = evaluate(settings, tick=tick)
    files = report.write_results(results, to, image_counts=image_counts)
    if as_json:
        print_json(report.results_json(results, image_counts=image_counts))
        return
    out.print(report.render_results(results, image_counts=image_counts))
    print_line(f"\n{to}: {', '.join(files)}")


@app.command("train-proposals")
def train_masks(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Such as configs/train-proposals-swin-b.yaml.")],
    overrides: SetOption = None,
) -> None:
    """Train an open-vocabulary MaskFormer on images with label maps, or continue after any interruption.

    For several processes: torchrun --nproc-per-node 8 --no-python maskmine train-proposals CONFIG
    """
    from maskmine.pipelines.settings.mining import load_settings
    from maskmine.tuning.open_vocabulary.settings import ProposalTraining
    from maskmine.tuning.open_vocabulary.train import train_proposals

    settings = load_settings(ProposalTraining, config, overrides=overrides or ())
    print_line(str(train_proposals(settings, console=err)))
