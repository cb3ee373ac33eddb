"""The pairs of a finished run against ground truth: precision, recall, and what a threshold would give.

Only pairs that are in the shards count. The cells of one large part, or of some small ones, and the annotations are in
memory at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from maskmine.mining.evaluation.annotations import Annotations, Coverage, read_annotations
from maskmine.mining.evaluation.pair_matching import MatchOutcome, match_image
from maskmine.mining.evaluation.pair_metrics import (
    LABELLED,
    SCORES,
    Curve,
    CurvePoint,
    GroupMetrics,
    GroupsOf,
    PairMetrics,
    ScoreCounts,
    ScoreName,
    Share,
    at_least,
    thin,
)
from maskmine.mining.storage.bounded.small_files import read_list
from maskmine.mining.text.labels import Naming, label_names, load_synonyms, open_naming, plain_words
from maskmine.pipelines.dataset.finished_run import FinishedRun, read_noun_counts
from maskmine.pipelines.dataset.mined_images import MinedImage
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import InputError
from maskmine.tuning.tables import rounded

FREQUENCIES = (("1 image", 1), ("2–9 images", 2), ("10–99 images", 10), ("≥ 100 images", 100))
"""Groups of nouns by how many images mention them, with the smallest number of each group."""

# Names of the two groups of `seen`, in JSON and tables.
SEEN, UNSEEN = "seen", "unseen"
_READ_AT_ONCE = 4  # parts, of a group that has so many images and parts at most, and is in memory
_IMAGES_AT_ONCE, _PARTS_AT_ONCE = 512, 64
_UNLABELLED_NOUNS = 20  # of them in the JSON; a run can have thousands
# The names of outcomes in evaluation.json, which came before those in the code.
_OUTCOME_KEYS: Mapping[MatchOutcome, str] = {
    "correct": "right",
    "wrong_object": "other",
    "background": "none",
    "crowd": "crowd",
    "unlabelled": "unknown",
}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A run against annotations. `metrics` cover the images that are annotated in the size of the run.

    `uncovered_pairs` are those of the other images; `unreadable` counts annotations of covered images without a mask
    that can be read. `precision_of_rule` is over every pair that the rule made, also those that a filter left out.
    `curves_of_all` are over all pairs, `curves` over those whose nouns name a category; `no_curves`
    says why there are none of either.
    """

    run: str
    rule: str
    annotations: Annotations
    synonyms: str
    images: Counter[Coverage]
    uncovered_pairs: int
    unreadable: int
    metrics: PairMetrics
    precision_of_rule: Share
    frequency: tuple[GroupMetrics, ...]
    training: tuple[GroupMetrics, ...]
    curves_of_all: tuple[Curve, ...]
    curves: tuple[Curve, ...]
    no_curves: str | None

    @property
    def precision_of_all(self) -> Share:
        """The share of correct pairs among all; a noun that names no category counts as wrong.

        It is exact where the annotations have every object that captions name, and a lower bound elsewhere.
        """
        return self.metrics.precision_of_all

    @property
    def precision(self) -> Share:
        """The share of correct pairs among those whose nouns name a category."""
        return self.metrics.precision

    def as_json(self) -> dict[str, Any]:
        """Plain values for evaluation.json and `--json`: the same run and annotations, the same values."""
        metrics = self.metrics
        return {
            "run": {"fingerprint": self.run, "rule": self.rule},
            "truth": {
                "name": self.annotations.name,
                "sha256": self.annotations.sha256,
                "categories": len(self.annotations.categories),
                "synonyms": self.synonyms,
                "unreadable_annotations": self.unreadable,
                "not_used": list(self.annotations.left_out),
            },
            "images": {name: self.images[name] for name in ("covered", "missing", "other_size")},
            "pairs": {
                "all": metrics.precision_of_all.of,
                "known": metrics.labelled,
                **{key: metrics.outcomes[outcome] for outcome, key in _OUTCOME_KEYS.items()},
                "noun_without_object": metrics.without_object,
                "of_images_apart": self.uncovered_pairs,
            },
            "precision_of_every_pair_of_the_rule": _share(self.precision_of_rule),
            "precision_of_all_pairs": _share(self.precision_of_all),
            "precision": _share(self.precision),
            "mask_of_another_object": _share(metrics.share("wrong_object")),
            "mask_of_no_object": _share(metrics.share("background")),
            "recall": _share(metrics.recall),
            "mean_iou": {"right": rounded(metrics.mean_iou("correct")), "known": rounded(metrics.mean_iou(*LABELLED))},
            "by_frequency": {group.name: _group(group) for group in self.frequency},
            "by_training": {group.name: _group(group) for group in self.training},
            "curves_of_all_pairs": _curves(self.curves_of_all),
            "curves": _curves(self.curves),
            "no_curves": self.no_curves,
            "unknown_nouns": dict(self.unlabelled_nouns(_UNLABELLED_NOUNS)),
        }

    def unlabelled_nouns(self, max_nouns: int) -> list[tuple[str, int]]:
        """The nouns that name no category with their pairs, those with the most pairs first."""
        counts = self.metrics.unlabelled_nouns.items()
        return sorted(counts, key=lambda item: (-item[1], item[0]))[:max_nouns]


def evaluate_pairs(run: RunFolder, *, truth: str, seen: str | None = None, synonyms: str = "auto") -> Evaluation:
    """Evaluate the pairs of a finished run against `truth`, a COCO instances JSON.

    `seen` is a text file of nouns, one a line, that split the nouns into two groups; `synonyms` as in the rule
    `labels`, or `none`. Raises IncompleteError when the run is not finished; InputError when a file is not what it
    should be, or none of the run's images is annotated.
    """
    finished = FinishedRun.open(run)
    annotations = read_annotations(truth)
    naming = open_naming(annotations.categories, load_synonyms(None if synonyms == "none" else synonyms))
    groups_of = _open_groups(run, naming, read_nouns(seen) if seen is not None else None)

    # Match the pairs of every image that is annotated in the size of the run, and count the others.
    metrics, made, images = PairMetrics(), PairMetrics(), Counter[Coverage]()
    uncovered_pairs = unreadable = with_regions = 0
    for image, every in _images(finished):
        key = annotations.key_of(image.image)
        coverage = annotations.coverage(key, image.regions)
        images[coverage] += 1
        if coverage != "covered":
            uncovered_pairs += len(image.pairs)
            continue
        with_regions += bool(image.regions.regions)
        objects = annotations.objects(key)
        unreadable += annotations.unreadable(key, objects)
        match = partial(match_image, image.nouns, image.regions, objects=objects, naming=naming)
        matches = match(image.pairs)
        metrics.add(matches, groups_of=groups_of)
        made.add(matches if every.pairs == image.pairs else match(every.pairs))
    if not with_regions and (images["other_size"] or not images["covered"]):  # without regions any size will do
        raise InputError(_not_covered(run, truth, images))

    # Summarise the counts.
    curves_of_all, curves, no_curves = find_curves(metrics)
    return Evaluation(
        run=finished.manifest.fingerprint,
        rule=finished.manifest.setting("pairs", "rule"),
        annotations=annotations,
        synonyms=synonyms,
        images=images,
        uncovered_pairs=uncovered_pairs,
        unreadable=unreadable,
        metrics=metrics,
        precision_of_rule=made.precision_of_all,
        frequency=tuple(metrics.group(name) for name, _ in FREQUENCIES),
        training=() if seen is None else (metrics.group(SEEN), metrics.group(UNSEEN)),
        curves_of_all=curves_of_all,
        curves=curves,
        no_curves=no_curves,
    )


def _images(finished: FinishedRun) -> Iterator[tuple[MinedImage, MinedImage]]:
    """Each image with its written pairs and with all, in order; small parts are read some at a time."""

    def read(part: int) -> list[tuple[MinedImage, MinedImage]]:
        return list(finished.written_and_mined(part, bare=True))

    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        for parts in finished.groups_of_parts(images=_IMAGES_AT_ONCE, parts=_PARTS_AT_ONCE):
            for of_part in pool.map(read, parts):
                yield from of_part


def find_curves(metrics: PairMetrics) -> tuple[tuple[Curve, ...], tuple[Curve, ...], str | None]:
    """The curves over all pairs and those over labelled pairs, a curve for each score that some pair has.

    Where no threshold tells pairs apart there are no curves, and a line says why.
    """
    if not metrics.labelled:
        return (), (), "no curves: there is no pair of a noun that the truth knows"
    if not any(counts.pairs for counts in metrics.scores_of_all.values()):
        return (), (), "no curves: the pairs have no similarity, as no CLIP made them (`rule: labels`)"
    curves_of_all = _curves_over(metrics.scores_of_all)
    if not curves_of_all:
        return (), (), f"no curves: all pairs have the same {' and the same '.join(SCORES)}"
    return curves_of_all, _curves_over(metrics.scores), None


def _curves_over(scores: Mapping[ScoreName, ScoreCounts]) -> tuple[Curve, ...]:
    """A curve for each score that some pair has; none where the highest threshold of every score keeps all pairs."""
    found = {score: points for score, counts in scores.items() if (points := counts.curve())}
    if all(points[0].kept == points[0].pairs for points in found.values()):
        return ()
    return tuple(
        Curve(score, tuple(thin(points)), at_least(points, kept=-(-points[-1].pairs // 2)) or points[-1])
        for score, points in found.items()
    )


def read_nouns(path: str) -> frozenset[str]:
    """The nouns of a text file, one a line, as plain words; `#` starts a comment. Raises InputError."""
    try:
        lines = read_list(path, encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read; give a UTF-8 text file with one noun a line") from error
    nouns = frozenset(plain_words(line.partition("#")[0]) for line in lines) - {""}
    if not nouns:
        raise InputError(f"{path}: holds no noun; give a text file with one noun a line")
    return nouns


def _open_groups(run: RunFolder, naming: Naming, seen: frozenset[str] | None) -> GroupsOf:
    """The groups of a noun: by its frequency, and as seen when the noun or a category that it names is in `seen`."""
    images = read_noun_counts(run, least=2)  # per noun; one that is not in it is of one image

    def groups_of(text: str, lemma: str) -> tuple[str, ...]:
        mentioned_in = images.get(text, 1)
        frequency = next(name for name, least in reversed(FREQUENCIES) if mentioned_in >= least)
        if seen is None:
            return (frequency,)
        forms = {plain_words(text), plain_words(lemma)}.union(*map(label_names, naming(text, lemma)))
        return frequency, UNSEEN if seen.isdisjoint(forms) else SEEN

    return groups_of


def _not_covered(run: RunFolder, truth: str, images: Counter[Coverage]) -> str:
    counts = {"of them are not in it": images["missing"], "have another size there": images["other_size"]}
    fault = ", ".join(f"{count:,} {words}" for words, count in counts.items() if count)
    return (
        f"{truth}: covers none of the {images.total() - images['covered']:,} images of {run.root} ({fault}); give the "
        "truth of these images"
    )


def _share(share: Share) -> dict[str, Any]:
    return {
        "count": share.count,
        "of": share.of,
        "share": rounded(share.value),
        "interval_95": [rounded(bound) for bound in share.interval],
    }


def _curves(curves: tuple[Curve, ...]) -> dict[str, Any]:
    return {
        curve.score: {
            "setting": curve.setting,
            "half_coverage": _point(curve.half),
            "points": [_point(point) for point in curve.points],
        }
        for curve in curves
    }


def _group(group: GroupMetrics) -> dict[str, Any]:
    return {"precision": _share(group.precision), "recall": _share(group.recall)}


def _point(point: CurvePoint) -> dict[str, Any]:
    return {
        "threshold": point.threshold,
        "coverage": rounded(point.coverage),
        "kept": point.kept,
        "precision": rounded(point.precision.value),
        "interval_95": [rounded(bound) for bound in point.precision.interval],
    }
