"""Answers of Label Studio: its JSON of tasks with all annotations, or the short one (JSON-MIN), an answer a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maskmine.mining.evaluation.answers.answer import (
    Answer,
    Fault,
    UnfoldMask,
    mask_of,
    pair_in,
    refuse_other_size,
    reviewer_in,
    time_in,
)
from maskmine.mining.evaluation.verdict_tables import verdict_word
from maskmine.mining.images.mask_codes import decode_brush
from maskmine.mining.sources.json_records import json_records
from maskmine.schemas.annotation_tools import BETTER_NOUN, BRUSH, PAIR, VERDICT
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import Verdict

_MOST_BRUSHES = 100  # of one answer
_COLUMNS = ("data", "annotations", PAIR)


def label_studio_answers(path: str) -> Iterator[Answer | Fault]:
    """The answers in a file, annotation by annotation. Raises InputError when it cannot be read."""
    for number, record in json_records(path, columns=_COLUMNS):
        place = f"task {number}"
        if isinstance(record, str):
            yield Fault(place, record)
        elif "annotations" in record:
            yield from _of_task(place, record)
        elif isinstance(record.get("data"), dict):  # a task as it went out, which nobody has answered
            yield _made(place, record["data"], [], [], [], {})
        else:
            yield _short(place, record)


def _of_task(place: str, task: Mapping[str, Any]) -> Iterator[Answer | Fault]:
    data, annotations = task.get("data"), task.get("annotations")
    if not isinstance(data, dict) or not isinstance(annotations, list):
        yield Fault(place, "has no `data` and `annotations` as Label Studio writes them")
        return
    for annotation in annotations:
        if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
            yield Fault(place, "has an annotation without a `result`")
        elif not annotation.get("was_cancelled"):
            yield _answer(place, data, annotation, [r for r in annotation["result"] if isinstance(r, dict)])


def _answer(
    place: str, data: Mapping[str, Any], annotation: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> Answer | Fault:
    try:
        choices = [_values(one).get("choices") for one in results if one.get("from_name") == VERDICT]
        texts = [_values(one).get("text") for one in results if one.get("from_name") == BETTER_NOUN]
        brushes = [{**one, **_values(one)} for one in results if one.get("from_name") == BRUSH and _is_brush(one)]
        return _made(place, data, choices, texts, brushes, annotation)
    except ValueError as error:
        return Fault(place, str(error))


def _short(place: str, record: Mapping[str, Any]) -> Answer | Fault:
    """The one answer of a task in the short form, whose controls stand among its data."""
    brushes = record.get(BRUSH) or []
    try:
        if not isinstance(brushes, list):
            raise ValueError("its region is no list of brushes")
        whole = [one for one in brushes if isinstance(one, dict)]
        return _made(place, record, [record.get(VERDICT)], [record.get(BETTER_NOUN)], whole, record)
    except ValueError as error:
        return Fault(place, str(error))


def _made(
    place: str,
    data: Mapping[str, Any],
    choices: Sequence[Any],
    texts: Sequence[Any],
    brushes: Sequence[Mapping[str, Any]],
    annotation: Mapping[str, Any],
) -> Answer:
    seconds, key = annotation.get("lead_time"), data.get("key")
    return Answer(
        place=place,
        pair=pair_in(data.get(PAIR)),
        key=key if isinstance(key, str) else "",
        verdict=_verdict(choices),
        noun=next(iter(_texts(texts)), None),
        mask=_brush_mask(brushes) if brushes else None,
        reviewer=reviewer_in(annotation.get("completed_by") or annotation.get("annotator")),
        at=time_in(annotation.get("updated_at") or annotation.get("created_at")),
        seconds=float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < 1e9 else None,
    )


def _values(result: Mapping[str, Any]) -> Mapping[str, Any]:
    value = result.get("value")
    return value if isinstance(value, dict) else {}


def _is_brush(result: Mapping[str, Any]) -> bool:
    if _values(result).get("format") != "rle":
        raise ValueError("a region that is no brush; draw masks with the brush of labels.xml")
    return True


def _texts(values: Sequence[Any]) -> Iterator[str]:
    """Texts, each alone or in a list, that are not empty."""
    for value in values:
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text.strip():
                yield text


def _verdict(choices: Sequence[Any]) -> Verdict | None:
    """Raises ValueError for a word that is none, and for several at once."""
    words: list[Any] = [verdict_word(text) for text in _texts(choices)]
    if len(set(words)) > 1:
        raise ValueError(f"says {' and '.join(sorted(set(words)))} at once")
    return words[0] if words else None


def _brush_mask(brushes: Sequence[Mapping[str, Any]]) -> UnfoldMask:
    """All brushes of an answer together: each stroke without a chosen region begins another one."""

    def unfold(height_px: int, width_px: int) -> Mask:
        if len(brushes) > _MOST_BRUSHES:
            raise ValueError(f"a mask of more than {_MOST_BRUSHES} brushes")
        mask_HW = np.zeros((height_px, width_px), np.bool_)
        for brush in brushes:
            stated = brush.get("original_height"), brush.get("original_width")
            refuse_other_size(stated if all(isinstance(s, int) for s in stated) else None, height_px, width_px)  # type: ignore[arg-type]
            packed = brush.get("rle")
            if brush.get("image_rotation") not in (None, 0):
                raise ValueError("a mask on an image that was turned in the tool; turn it back there")
            if not isinstance(packed, list) or not all(type(value) is int for value in packed):
                raise ValueError("the brush's `rle` is no list of bytes")
            mask_HW |= decode_brush(packed, height_px=height_px, width_px=width_px)
        return mask_of(mask_HW)

    return unfold
