"""How fast the step `nouns` is beside plain spaCy, and how near its nouns come to the paper's.

    python -m scripts.bench_nouns captions_val2017.json

The paper (§4.3.1) counts 442,117 pairs, one for each different noun of an image, over 118,287 images with one caption:
3.74 an image; with five captions 1.3 million: 11.0. The goals allow 5 % to either side.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from mining.nouns import Nouns, open_whole_pipeline
from schemas.rows import CaptionsRow, NounsRow
from scripts.measures import Measure

_ROUNDS = 3
_TIMED_IMAGES = 400


def bench_nouns(captions_json: Path) -> list[Measure]:
    """Speed, and different nouns an image, over a COCO captions file.

    The two sides of the ratio read the same captions by turns, so that a busy machine slows both; each is timed in one
    process with the threads that it takes by itself, after a first turn that is not counted.
    """
    rows = _rows_by_image(captions_json)
    settings = Nouns()
    find = settings.open()
    return [*_speeds(rows[:_TIMED_IMAGES], find=find, model=settings.model), *_parity(rows, find=find)]


def _rows_by_image(captions_json: Path) -> list[CaptionsRow]:
    """The captions of each image in the order of their annotation ids, images by id."""
    annotations = json.loads(captions_json.read_text(encoding="utf-8"))["annotations"]
    captions: dict[int, list[str]] = defaultdict(list)
    for annotation in sorted(annotations, key=lambda a: (a["image_id"], a["id"])):
        captions[annotation["image_id"]].append(annotation["caption"])
    return [CaptionsRow(str(image_id), tuple(texts)) for image_id, texts in captions.items()]


def _speeds(
    rows: Sequence[CaptionsRow], *, find: Callable[[Sequence[CaptionsRow]], list[NounsRow]], model: str
) -> list[Measure]:
    texts = [caption for row in rows for caption in row.captions]
    whole_pipeline = open_whole_pipeline(model)

    def read_with_whole_pipeline() -> None:
        for _ in whole_pipeline.pipe(texts):
            pass

    ours_s = whole_s = 0.0
    for turn in range(_ROUNDS + 1):
        ours_turn_s, whole_turn_s = _seconds(lambda: find(rows)), _seconds(read_with_whole_pipeline)
        if turn > 0:
            ours_s, whole_s = ours_s + ours_turn_s, whole_s + whole_turn_s
    read = _ROUNDS * len(texts)
    return [
        Measure("captions a second, step nouns", read / ours_s, "captions/s", "", None),
        Measure("captions a second, whole spaCy pipeline", read / whole_s, "captions/s", "", None),
        Measure("nouns: times faster than the whole pipeline", whole_s / ours_s, "×", "≥ 3.5", whole_s / ours_s >= 3.5),
    ]


def _parity(rows: Sequence[CaptionsRow], *, find: Callable[[Sequence[CaptionsRow]], list[NounsRow]]) -> list[Measure]:
    found = find(rows)
    first = sum(len({noun.text for noun in row.nouns if noun.caption == 0}) for row in found) / len(found)
    every = sum(len({noun.text for noun in row.nouns}) for row in found) / len(found)
    return [
        Measure("different nouns an image, first caption", first, "nouns", "3.55 to 3.93", 3.55 <= first <= 3.93),
        Measure("different nouns an image, all captions", every, "nouns", "10.4 to 11.6", 10.4 <= every <= 11.6),
    ]


def _seconds(do: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    do()
    return time.perf_counter() - start_s


if __name__ == "__main__":
    for measure in bench_nouns(Path(sys.argv[1])):
        verdict = {True: "reached", False: "MISSED", None: ""}[measure.reached]
        print(f"{measure.name:50} {measure.value:10.2f} {measure.unit:12} {measure.goal:14} {verdict}")
