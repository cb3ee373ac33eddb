"""What a verifier's second look is worth: the pairs of demo worlds by what verifiers and the truth say of them.

    bash scripts/compare_rules checks --seed 41 --seed 42 --seed 43 --second-clip runs/clip-1/clip

The worlds and the pairs are those of `scripts/compare/scores.py` with the rule of the clean set, and so are the
columns. The truth as a verifier says what the best one could: whether an object of the noun is in the picture, and how
far the box of the pair's region agrees with that of such an object. By masks it would be the answer itself.

Shapes: N pairs of the rule in the world of a seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from maskmine.mining.checks import Checks, ImageToCheck
from maskmine.mining.models.clip import Clip
from maskmine.mining.scores.calibration import calibrated_features
from maskmine.mining.verifiers.checks import box_iou
from maskmine.mining.verifiers.kinds import AnyVerifier
from maskmine.mining.verifiers.open_maskformer import OpenMaskFormerVerifier
from maskmine.mining.verifiers.second_clip import SecondClip
from maskmine.pipelines.audit.fit import cross_fitted
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection
from maskmine.scripts.accuracy.models import find_models
from maskmine.scripts.command import run_command
from maskmine.scripts.compare.rules import RULES
from maskmine.scripts.compare.scores import (
    CONSOLE,
    STAYING,
    Array,
    JudgedImage,
    JudgedPairs,
    Line,
    World,
    field_of,
    find_mined,
    judge_images,
    judge_pairs,
    precision_at,
    render,
)
from maskmine.scripts.demo_world.nouns import OPENMOJI_LICENCE

_OPEN = Path(__file__).parents[1] / "models" / "open_maskformer"
_TRUTH = "the truth (boxes)"
_INSTANCE = 0.003  # of the open MaskFormer's scores, chosen on seed 40: it shares each out among 177 names
_JUDGED = "all pairs judged, 5 folds"
_AGREES = 0.5  # IoU from which a verifier means the same object, as for a right pair


@dataclass(frozen=True)
class Said:
    """What a verifier says of the pairs of a world; NaN for those that it cannot read."""

    presence_N: Array
    agreement_N: Array


@dataclass(frozen=True)
class CheckedPairs:
    """The pairs of a world, and what each verifier says of them, by its name."""

    judged: JudgedPairs
    said: Mapping[str, Said]


def main(
    seed: Annotated[list[int] | None, typer.Option(help="A world that no training saw; give several.")] = None,
    scenes: Annotated[int, typer.Option(min=30, help="Scenes of each.")] = 1000,
    second_clip: Annotated[Path | None, typer.Option(help="A CLIP that `bash scripts/train_clip` made.")] = None,
    to: Annotated[Path, typer.Option(help="Folder for worlds and runs, that of the other scores.")] = Path(
        "runs/scores"
    ),
) -> None:
    """Print what presence and agreement are worth, alone and beside the evidence."""
    clip = find_models(clip=second_clip, maskformer=None).clip_settings() if second_clip else None
    seeds = seed or [41, 42, 43]
    worlds = [find_mined(to, seed=one, scenes=scenes) for one in seeds]
    CONSOLE.print(render(list(compare_checks(worlds, demo_verifiers(clip))), seeds))


def demo_verifiers(second: Clip | None) -> dict[str, AnyVerifier]:
    """The verifiers that know the demo world, by name: the shipped open-vocabulary MaskFormer, and a second CLIP."""
    own = find_models(clip=None, maskformer=None).clip_settings()
    found: dict[str, AnyVerifier] = {
        "open MaskFormer": OpenMaskFormerVerifier(
            kind="open_maskformer", checkpoint=str(_OPEN), clip=own, threshold=_INSTANCE, licence=OPENMOJI_LICENCE
        )
    }
    return found | ({} if second is None else {"second CLIP": SecondClip(kind="clip", clip=second)})


def compare_checks(worlds: Sequence[World], verifiers: Mapping[str, AnyVerifier]) -> Iterator[Line]:
    """The rule of the clean set by the evidence, and by what each verifier and the truth say, alone and beside it."""
    wanted = [float(judge_pairs(world, RULES[0]).right_N.sum()) for world in worlds]
    checked = [check_pairs(world, verifiers) for world in worlds]

    for name in ("no verifier", *verifiers, _TRUTH):
        scores = [_scores(one.judged, one.said.get(name)) for one in checked]
        for score in scores[0]:
            precision = [
                {share: precision_at(values[score], one.judged.right_N, right=share * most) for share in STAYING}
                for values, one, most in zip(scores, checked, wanted, strict=True)
            ]
            yield Line(name, score, [len(one.judged.pairs) for one in checked], precision)


def check_pairs(world: World, verifiers: Mapping[str, AnyVerifier]) -> CheckedPairs:
    """The pairs that the rule of the clean set makes of a world, checked by each verifier and by the truth.

    Raises InputError when a picture cannot be read.
    """
    images = list(judge_images(world, world.rule))
    said = {}
    for name, verifier in verifiers.items():
        CONSOLE.print(f"seed {world.seed}: {name} …", style="dim")
        said[name] = _asked(world, images, verifier)
    return CheckedPairs(judge_pairs(world, world.rule), said | {_TRUTH: truth_says(images)})


def truth_says(images: Sequence[JudgedImage]) -> Said:
    """Presence: 1 where the picture has an object that the noun names. Agreement: the best IoU of boxes with one."""
    presence, agreement = [], []
    for image in images:
        for pair, masks in zip(image.pairs.pairs, image.named, strict=True):
            box_xyxy = image.regions.regions[pair.region].mask.box_xyxy
            presence.append(float(bool(masks)))
            agreement.append(max((box_iou(mask.box_xyxy, box_xyxy) for mask in masks), default=0.0))
    return Said(np.array(presence), np.array(agreement))


def _asked(world: World, images: Sequence[JudgedImage], verifier: AnyVerifier) -> Said:
    check = Checks(verifier=verifier).open(world.run.settings.regions)
    rows = list(check(ImageToCheck(one.image, one.regions, one.pairs) for one in images))
    if lost := next((row.rejection for row in rows if isinstance(row.rejection, Rejection)), None):
        raise InputError(f"seed {world.seed}: a picture is {lost.reason}; delete the world and run this again")
    checks = [check for row in rows for check in row.checks]
    values = ([getattr(check, name) for check in checks] for name in ("presence", "agreement"))
    return Said(*(np.array([np.nan if value is None else value for value in one], np.float64) for one in values))


def _scores(judged: JudgedPairs, said: Said | None) -> dict[str, Array]:
    """Scores of the pairs by name, [N] each: without a verifier those that they have anyway."""
    evidence_N = field_of("evidence")(judged)
    if said is None:
        return {"none": np.zeros(len(judged.pairs)), "evidence": evidence_N, _JUDGED: _fitted(judged)}
    return {
        "presence": said.presence_N,
        "agreement": said.agreement_N,
        f"evidence, agreement ≥ {_AGREES:g}": np.where(said.agreement_N >= _AGREES, evidence_N, np.nan),
        _JUDGED: _fitted(judged, said),
    }


def _fitted(judged: JudgedPairs, *said: Said) -> Array:
    """The most that a calibration can make of the features, and of what a verifier says beside them."""
    features_NF: Array = np.column_stack(
        [calibrated_features(judged.pairs, judged.proposal_N.tolist())]
        + [column_N for one in said for column_N in (one.presence_N, one.agreement_N)]
    )
    has_all_N = ~np.isnan(features_NF).any(axis=1)
    result_N: Array = np.full(len(features_NF), np.nan)
    result_N[has_all_N] = cross_fitted(features_NF[has_all_N], judged.right_N[has_all_N])
    return result_N


if __name__ == "__main__":
    run_command(main, name="compare_rules checks")
