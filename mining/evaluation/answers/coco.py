"""Answers in COCO's form, as CVAT (`COCO 1.0`) and FiftyOne export them: an annotation a pair.

CVAT has what people chose in `attributes`, FiftyOne beside the form's keys. The noun is the attribute of that name, or
else the name of the category.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from maskmine.mining.evaluation.answers.answer import Answer, Fault, coco_mask, given_verdict, pair_in
from maskmine.mining.storage.coco_json import FaultLines, coco_id, coco_lists, coco_size_px, too_much
from maskmine.schemas.annotation_tools import NOUN, PAIR, VERDICT
from maskmine.schemas.rows import Verdict

_REMEDY = "give what CVAT or FiftyOne exported"
_LINES = FaultLines(
    absent=f"{{path}}: no such file; {_REMEDY}",
    folder=f"{{path}}: is a folder; {_REMEDY}",
    broken=f"{{path}}: not valid JSON ({{reason}}); {_REMEDY}",
    lacking=f"{{path}}: no list `{{name}}` at the top; {_REMEDY}",
    unreadable="{path}: cannot be read ({reason})",
)


def coco_answers(path: str) -> Iterator[Answer | Fault]:
    """The answers in a file, which is read twice, as a stream. Raises InputError when it cannot be read."""
    sizes: dict[str, tuple[int, int] | None] = {}
    names: dict[str, str] = {}
    for name, _, item in coco_lists(path, {"images": "nothing", "categories": "nothing"}, lines=_LINES):
        if item is None or (known := coco_id(item.get("id"))) is None:
            continue
        if name == "categories" and isinstance(item.get("name"), str):
            names[known] = item["name"]
        if name == "images":
            sizes[known] = coco_size_px(item)
    for _, number, item in coco_lists(path, {"annotations": "list"}, lines=_LINES):
        place = f"annotation {number}"
        if item is None or too_much(item):
            yield Fault(place, too_much(item) or "is no object")
            continue
        attributes = item.get("attributes")
        given = {**item, **attributes} if isinstance(attributes, dict) else item
        try:
            verdict = given_verdict(given.get(VERDICT))
        except ValueError as error:
            yield Fault(place, str(error))
            continue
        yield _answer(place, item, given, verdict, sizes, names)


def _answer(
    place: str,
    item: Mapping[str, Any],
    given: Mapping[str, Any],
    verdict: Verdict | None,
    sizes: Mapping[str, tuple[int, int] | None],
    names: Mapping[str, str],
) -> Answer:
    noun, segmentation = given.get(NOUN), item.get("segmentation")
    if NOUN not in given:
        noun = names.get(coco_id(item.get("category_id")) or "")
    size_px = sizes.get(coco_id(item.get("image_id")) or "")
    return Answer(
        place=place,
        pair=pair_in(given.get(PAIR)),
        verdict=verdict,
        noun=noun if isinstance(noun, str) else None,
        mask=coco_mask(segmentation, size_px=size_px) if segmentation else None,
    )
