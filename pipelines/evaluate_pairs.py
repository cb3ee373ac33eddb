"""A finished run held against the truth: how many of its pairs are right, and what a threshold would make of them.

Judged are the pairs that are in the shards. The cells of one part are in memory at a time, and the truth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mining.judging import judge_image
from mining.labels import label_names, load_synonyms, plain_words
from mining.precision import CurvePoint, GroupFigures, GroupsOf, ScoreName, Share, Tally, at_least, thin
from mining.truth import Fit, Naming, Truth, open_naming, read_truth
from pipelines.run_folder import RunFolder
from pipelines.status import require_plan
from pipelines.verify import read_manifest
from schemas.errors import InputError
from schemas.rows import NounsRow, Pair, PairsRow, RegionsRow
from schemas.sample import sample_key

FREQUENCIES = (("1 image", 1), ("2–9 images", 2), ("10–99 images", 10), ("≥ 100 images", 100))
"""Groups of nouns with the least number of images that say them."""

SEEN, UNSEEN = "seen", "unseen"
_SCORES: tuple[ScoreName, ...] = ("similarity", "margin")
_UNKNOWN_NOUNS = 20


@dataclass(frozen=True, slots=True)
class Curve:
    """Precision against coverage; `half` is the point of the highest threshold that keeps half of the known pairs."""

    score: ScoreName
    points: tuple[CurvePoint, ...]
    half: CurvePoint

    @property
    def setting(self) -> str:
        """The setting that the thresholds are values of."""
        return f"pairs.min_{self.score}"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a run is against a truth. Images and pairs apart (`missing`, `other_size`) are in no figure of `tally`.

    `unreadable` counts annotations of covered images that have no mask; `no_curves` says why there are none.
    """

    run: str
    rule: str
    truth: Truth
    synonyms: str
    images: Counter[Fit]
    pairs_apart: int
    unreadable: int
    tally: Tally
    frequency: tuple[GroupFigures, ...]
    training: tuple[GroupFigures, ...]
    curves: tuple[Curve, ...]
    no_curves: str | None

    @property
    def precision(self) -> Share:
        """The share of right pairs among those whose nouns the truth knows."""
        return self.tally.share("right")

    def as_json(self) -> dict[str, Any]:
        """Plain values for evaluation.json and `--json`: the same run and truth, the same values."""
        tally = self.tally
        return {
            "run": {"fingerprint": self.run, "rule": self.rule},
            "truth": {
                "name": self.truth.name,
                "sha256": self.truth.sha256,
                "categories": len(self.truth.categories),
                "synonyms": self.synonyms,
                "unreadable_annotations": self.unreadable,
            },
            "images": {fit: self.images[fit] for fit in ("covered", "missing", "other_size")},
            "pairs": {
                "known": tally.known,
                **{name: tally.outcomes[name] for name in ("right", "other", "none", "crowd", "unknown")},
                "noun_without_object": tally.absent,
                "of_images_apart": self.pairs_apart,
            },
            "precision": _share(self.precision),
            "mask_of_another_object": _share(tally.share("other")),
            "mask_of_no_object": _share(tally.share("none")),
            "recall": _share(tally.recall),
            "mean_iou": {
                "right": _rounded(tally.mean_iou("right")),
                "known": _rounded(tally.mean_iou("right", "other", "none")),
            },
            "by_frequency": {group.name: _group(group) for group in self.frequency},
            "by_training": {group.name: _group(group) for group in self.training},
            "curves": {curve.score: _curve(curve) for curve in self.curves},
            "no_curves": self.no_curves,
            "unknown_nouns": dict(self.unknown_nouns(_UNKNOWN_NOUNS)),
        }

    def unknown_nouns(self, most: int) -> list[tuple[str, int]]:
        """The nouns that the truth does not know with their pairs, those with the most pairs first."""
        counted = self.tally.unknown_nouns.items()
        return sorted(counted, key=lambda item: (-item[1], item[0]))[:most]


def evaluate_pairs(
    run: RunFolder,
    *,
    truth: str,
    seen: str | None = None,
    synonyms: str = "coco",
    tick: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Judge the pairs of a finished run by a COCO instances JSON; `tick` is called with 1 for each part.

    `seen` is a text file of nouns, one a line, by which nouns are told apart in two groups; `synonyms` as in the rule
    `labels`, or `none`. Raises IncompleteError when the run is not finished; InputError when a file is not what it
    should be, or the truth has none of the run's images.
    """
    manifest, plan = read_manifest(run), require_plan(run)
    known = read_truth(truth)
    naming = open_naming(known.categories, load_synonyms(None if synonyms == "none" else synonyms))
    groups_of = _open_groups(run, naming, read_nouns(seen) if seen is not None else None)

    tally, images = Tally(), Counter[Fit]()
    pairs_apart = unreadable = 0
    for part in range(plan.parts):
        for nouns, regions, pairs in _rows(run, part, fingerprint=manifest.fingerprint):
            fit = known.fit(regions)
            images[fit] += 1
            if fit != "covered":
                pairs_apart += len(pairs)
                continue
            objects = known.objects(regions.image_id)
            unreadable += known.unreadable(regions.image_id, objects)
            tally.add(judge_image(nouns, regions, pairs, objects=objects, naming=naming), groups_of=groups_of)
        tick(1)

    if not images["covered"]:
        raise InputError(_misfit(run, truth, images))
    curves, no_curves = find_curves(tally)
    return Evaluation(
        run=manifest.fingerprint,
        rule=manifest.settings["pairs"]["rule"],
        truth=known,
        synonyms=synonyms,
        images=images,
        pairs_apart=pairs_apart,
        unreadable=unreadable,
        tally=tally,
        frequency=tuple(tally.group(name) for name, _ in FREQUENCIES),
        training=() if seen is None else (tally.group(SEEN), tally.group(UNSEEN)),
        curves=curves,
        no_curves=no_curves,
    )


def find_curves(tally: Tally) -> tuple[tuple[Curve, ...], str | None]:
    """The curves over similarity and margin; none, and the reason why, when no threshold can tell pairs apart."""
    if not tally.known:
        return (), "no curves: there is no pair of a noun that the truth knows"
    full = {score: tally.scores[score].curve() for score in _SCORES}
    if not full["similarity"]:
        return (), "no curves: the pairs have no similarity, as no CLIP made them (`rule: labels`)"
    if all(len(points) == 1 for points in full.values()):
        return (), "no curves: all pairs have the same similarity and the same margin"
    curves = []
    for score, points in full.items():
        half = at_least(points, kept=-(-tally.known // 2))
        assert half is not None  # the last point keeps all
        curves.append(Curve(score, tuple(thin(points)), half))
    return tuple(curves), None


def read_nouns(path: str) -> frozenset[str]:
    """The nouns of a text file, one a line, as plain words; `#` starts a comment. Raises InputError."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read; give a UTF-8 text file with one noun a line") from error
    nouns = frozenset(plain_words(line.partition("#")[0]) for line in lines) - {""}
    if not nouns:
        raise InputError(f"{path}: holds no noun; give a text file with one noun a line")
    return nouns


def _rows(run: RunFolder, part: int, *, fingerprint: str) -> Iterator[tuple[NounsRow, RegionsRow, list[Pair]]]:
    """The images of a part, each with those of its pairs that are in the shard."""
    name = f"{part:05d}.parquet"
    keys = set(run.read_table("shards", name, fingerprint=fingerprint)["key"].to_pylist())
    rows = zip(
        run.read_rows("nouns", name, row_type=NounsRow),
        run.read_rows("regions", name, row_type=RegionsRow),
        run.read_rows("pairs", name, row_type=PairsRow),
        strict=True,
    )
    for nouns, regions, paired in rows:
        kept = [pair for n, pair in enumerate(paired.pairs) if sample_key(paired.image_id, n) in keys]
        yield nouns, regions, kept


def _open_groups(run: RunFolder, naming: Naming, seen: frozenset[str] | None) -> GroupsOf:
    """A noun belongs to the group of its frequency, and was seen when it or a category that it names is listed."""
    vocabulary = run.read_table("vocabulary.parquet")
    images = dict(zip(vocabulary["noun"].to_pylist(), vocabulary["images"].to_pylist(), strict=True))

    def groups_of(text: str, lemma: str) -> tuple[str, ...]:
        said = images.get(text, 1)
        frequency = next(name for name, least in reversed(FREQUENCIES) if said >= least)
        if seen is None:
            return (frequency,)
        forms = {plain_words(text), plain_words(lemma)}.union(*map(label_names, naming(text, lemma)))
        return frequency, UNSEEN if seen.isdisjoint(forms) else SEEN

    return groups_of


def _misfit(run: RunFolder, truth: str, images: Counter[Fit]) -> str:
    fault = f"{images['missing']:,} of them are not in it"
    if images["other_size"]:
        fault += f", {images['other_size']:,} have another size there"
    return (
        f"{truth}: covers none of the {images.total():,} images of {run.root} ({fault}); give the truth of these images"
    )


def _share(share: Share) -> dict[str, Any]:
    return {
        "count": share.count,
        "of": share.of,
        "share": _rounded(share.value),
        "interval_95": [_rounded(bound) for bound in share.interval],
    }


def _group(group: GroupFigures) -> dict[str, Any]:
    return {"precision": _share(group.precision), "recall": _share(group.recall)}


def _curve(curve: Curve) -> dict[str, Any]:
    return {
        "setting": curve.setting,
        "half_coverage": _point(curve.half),
        "points": [_point(point) for point in curve.points],
    }


def _point(point: CurvePoint) -> dict[str, Any]:
    return {
        "threshold": point.threshold,
        "coverage": _rounded(point.coverage),
        "kept": point.kept,
        "precision": _rounded(point.precision.value),
        "interval_95": [_rounded(bound) for bound in point.precision.interval],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
