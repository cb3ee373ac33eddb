"""Files of annotation tools: which answers are in them, and what happens to files that are broken or do harm."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmine.mining.evaluation.answers.answer import Answer, Fault
from maskmine.mining.evaluation.answers.files import answer_files
from maskmine.mining.images.mask_codes import encode_brush
from maskmine.schemas.annotation_tools import PairId, pair_line
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask

DRAWN = np.array([[0, 0, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
MASK = Mask.from_array(DRAWN)
PAIR: PairId = ("42", "red couch", MASK.digest)
LINE = pair_line(PAIR)
XML = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{}</annotations>'
IMAGE = '<image id="0" name="a.jpg" width="6" height="3">{}</image>'
SHAPE = (
    '<mask label="pair" rle="2, 2, 0, 3, 1" left="0" top="0" width="4" height="2">'
    '<attribute name="verdict">bad_mask</attribute><attribute name="noun">sofa</attribute>'
    f'<attribute name="pair">{LINE}</attribute></mask>'
)


def read(path: Path, keys: dict[str, PairId] | None = None, **options: Any) -> list[Answer | Fault]:
    with answer_files(str(path), **options) as files:
        return [answer for file in files for answer in file.answers(keys or {})]


def faults(found: list[Answer | Fault]) -> list[str]:
    return [one.what for one in found if isinstance(one, Fault)]


def unfolded(answer: Answer | Fault, height_px: int = 3, width_px: int = 6) -> Mask:
    assert isinstance(answer, Answer)
    assert answer.mask is not None
    return answer.mask(height_px, width_px)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "answers"


def brush(mask_HW: np.ndarray[Any, Any], **changes: Any) -> dict[str, Any]:
    value = {"format": "rle", "rle": encode_brush(mask_HW), "brushlabels": ["mask"]}
    size = {"original_height": 3, "original_width": 6, "image_rotation": 0}
    return {"from_name": "region", "to_name": "image", "type": "brushlabels", "value": value, **size, **changes}


def chosen(*words: str) -> dict[str, Any]:
    return {"from_name": "verdict", "to_name": "image", "type": "choices", "value": {"choices": list(words)}}


def task(*results: dict[str, Any], **about: Any) -> dict[str, Any]:
    annotation = {"result": list(results), "completed_by": 7, "updated_at": "2026-03-01T12:00:00.5+01:00", **about}
    return {"id": 1, "data": {"image": "a.jpg", "pair": LINE, "key": "42-000"}, "annotations": [annotation]}


# --- Label Studio -----------------------------------------------------------------------------------------------------


def test_a_task_has_an_answer_for_each_annotation(file: Path) -> None:
    typed = {"from_name": "better_noun", "type": "textarea", "value": {"text": ["sofa"]}}
    two = task(brush(DRAWN), chosen("Bad mask"), typed, lead_time=4.5)
    two["annotations"] += [
        {"result": [chosen("right")], "completed_by": {"email": "bob@example.org"}},
        {"result": [chosen("wrong noun")], "was_cancelled": True},
    ]
    file.write_text(json.dumps([two]))
    first, second = read(file)
    assert isinstance(first, Answer)
    assert isinstance(second, Answer)
    assert (first.pair, first.verdict, first.noun, first.reviewer) == (PAIR, "bad_mask", "sofa", "7")
    assert (first.at, first.seconds) == ("2026-03-01T11:00:00.500000+00:00", 4.5)
    assert unfolded(first) == MASK
    assert (second.verdict, second.mask, second.noun, second.reviewer) == ("right", None, None, "bob@example.org")


def test_all_brushes_of_an_annotation_are_its_mask(file: Path) -> None:
    left, right = DRAWN.copy(), DRAWN.copy()
    left[:, 2:], right[:, :2] = False, False
    file.write_text(json.dumps([task(brush(left), brush(right), chosen("right"))]))
    (answer,) = read(file)
    assert unfolded(answer) == MASK


def test_the_short_form_has_its_answers_among_the_data(file: Path) -> None:
    whole = brush(DRAWN)
    short = {"pair": LINE, "verdict": "wrong noun", "better_noun": "sofa", "annotator": 3, "updated_at": "2026-03-01"}
    file.write_text(json.dumps([{**short, "region": [{**whole["value"], "original_height": 3, "original_width": 6}]}]))
    (answer,) = read(file)
    assert isinstance(answer, Answer)
    assert (answer.pair, answer.verdict, answer.noun, answer.reviewer) == (PAIR, "wrong_noun", "sofa", "3")
    assert unfolded(answer) == MASK


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"original_height": 30}, "a mask for 30 × 6 pixels, the image has 3 × 6"),
        ({"image_rotation": 90}, "turned in the tool"),
        ({"value": {"format": "rle", "rle": encode_brush(np.zeros((3, 6)))}}, "has no pixel"),
        ({"value": {"format": "rle", "rle": encode_brush(np.ones((9, 9)))}}, "of 81 pixels"),
        ({"value": {"format": "rle", "rle": "AAAA"}}, "no list of bytes"),
        ({"value": {"format": "rle", "rle": [10**30]}}, "no list of bytes"),
        ({"value": {"format": "rle"}}, "no list of bytes"),
    ],
)
def test_a_brush_that_cannot_be_is_told_when_it_is_unfolded(file: Path, changes: Any, words: str) -> None:
    file.write_text(json.dumps([task(brush(DRAWN, **changes), chosen("right"))]))
    (answer,) = read(file)
    with pytest.raises(ValueError, match=re.escape(words)):
        unfolded(answer)


def test_a_task_that_cannot_be_read_costs_no_other(file: Path) -> None:
    polygon = {"from_name": "region", "type": "polygonlabels", "value": {"points": [[1, 2]]}}
    some: list[Any] = [
        {"data": {}, "annotations": 3},
        5,
        task(polygon),
        task(chosen("maybe")),
        task(chosen("right", "bad mask")),
        {"data": {}, "annotations": [3, {"result": None}]},
        task(chosen("right")),
    ]
    file.write_text(json.dumps(some))
    found = read(file)
    assert faults(found) == [
        "has no `data` and `annotations` as Label Studio writes them",
        "entry 1 is no JSON object",
        "a region that is no brush; draw masks with the brush of labels.xml",
        "`maybe` is no verdict; expected right, wrong_noun, bad_mask, cannot_say",
        "says bad_mask and right at once",
        *["has an annotation without a `result`"] * 2,
    ]
    assert isinstance(found[-1], Answer)


# --- CVAT -------------------------------------------------------------------------------------------------------------


def test_a_mask_of_cvat_is_an_answer(file: Path) -> None:
    meta = "<meta><task><updated>2026-03-01 10:00:00.5+00:00</updated></task></meta>"
    file.write_text(XML.format(meta + IMAGE.format(SHAPE)))
    (answer,) = read(file)
    assert isinstance(answer, Answer)
    assert (answer.pair, answer.verdict, answer.noun) == (PAIR, "bad_mask", "sofa")
    assert answer.at == "2026-03-01T10:00:00.500000+00:00"
    assert unfolded(answer) == MASK


def test_a_polygon_is_a_mask_too_and_other_shapes_are_told(file: Path) -> None:
    attribute = f'<attribute name="pair">{LINE}</attribute>'
    polygon = f'<polygon label="pair" points="0.0,0.0;4.0,0.0;4.0,3.0;0.0,3.0">{attribute}</polygon>'
    box = f'<box label="pair" xtl="0" ytl="0" xbr="4" ybr="3">{attribute}</box>'
    file.write_text(XML.format(IMAGE.format(polygon + box + '<tag label="pair"></tag>')))
    shape, *others = read(file)
    full = np.zeros((3, 6))
    full[:, :4] = 1
    assert unfolded(shape) == Mask.from_array(full)
    assert faults(others) == ["is no mask; draw masks or polygons"] * 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (SHAPE.replace('left="0"', 'left="5"'), "does not lie in the image"),
        (SHAPE.replace("2, 2, 0, 3, 1", "2, 2"), "do not fill its box"),
        (SHAPE.replace("2, 2, 0, 3, 1", "99999999999"), "is no number of pixels"),
        (SHAPE.replace("2, 2, 0, 3, 1", "-8, 16"), "is no number of pixels"),
        (SHAPE.replace("2, 2, 0, 3, 1", "8"), "has no pixel"),
        (SHAPE.replace('width="4"', 'width="x"'), "is no number of pixels"),
    ],
)
def test_runs_that_do_not_fit_are_told_when_they_are_unfolded(file: Path, changed: str, words: str) -> None:
    file.write_text(XML.format(IMAGE.format(changed)))
    (answer,) = read(file)
    with pytest.raises(ValueError, match=re.escape(words)):
        unfolded(answer)
    file.write_text(XML.format(IMAGE.format(SHAPE)))
    with pytest.raises(ValueError, match="a mask for 3 × 6 pixels, the image has 6 × 3"):
        unfolded(read(file)[0], 6, 3)


LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS + "<annotations>&b;</annotations>", "has a document type, which CVAT never writes"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotations/>', "has a document type"),
        ("<annotations><image>", "not valid XML (no element found, line 1)"),
        ("<annotations>&b;</annotations>", "not valid XML (undefined entity, line 1)"),
        ("<html></html>", "begins with <html>, not <annotations>"),
        ("<annotations>" + "<a>" * 40, "deeper than 30 levels"),
        ("<annotations><track/></annotations>", "tracks of a video"),
        ("<annotations>\0</annotations>", "not valid XML"),
        ('{"images": [1, 2', "not valid JSON"),
        ('{"images": []}', "no list `annotations` at the top"),
        ('[{"data": ', "is no JSON"),
        ("", "no column `image_id`"),
        ("null", "one JSON value, and no answers in it; give what Label Studio, CVAT or FiftyOne exported"),
        (" 17\n", "one JSON value, and no answers in it"),
        ("\x00\x01\x02", "give a file of verdicts"),
    ],
)
def test_a_file_that_is_broken_or_does_harm_is_one_line_with_its_name(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_attribute_without_end_is_not_kept_in_memory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskmine.mining.evaluation.answers.cvat._MOST_PENDING_BYTES", 1 << 18)
    file.write_text('<annotations><image name="' + "x" * (1 << 19))
    with pytest.raises(InputError, match="an element is longer than 262,144 bytes"):
        read(file)
    file.write_text(XML.format(IMAGE.format(SHAPE) * 3000))  # longer in all, and each of them short
    assert len(read(file)) == 3000


# --- COCO -------------------------------------------------------------------------------------------------------------


def coco(annotation: dict[str, Any], **image: Any) -> str:
    runs = {"size": [3, 6], "counts": MASK.counts.decode()}
    whole = {"id": 1, "image_id": 5, "category_id": 2, "segmentation": runs, **annotation}
    return json.dumps(
        {
            "annotations": [whole],
            "categories": [{"id": 2, "name": "sofa"}],
            "images": [{"id": 5, "height": 3, "width": 6, "file_name": "a.jpg", **image}],
        }
    )


@pytest.mark.parametrize(
    ("annotation", "noun", "verdict"),
    [
        ({"attributes": {"pair": LINE, "verdict": "right", "noun": "couch", "occluded": False}}, "couch", "right"),
        ({"pair": LINE, "verdict": "wrong_noun", "iscrowd": 1}, "sofa", "wrong_noun"),
        ({"pair": LINE, "verdict": "unjudged"}, "sofa", None),
        ({"pair": LINE, "verdict": None, "category_id": 9}, None, None),
    ],
)
def test_an_annotation_of_coco_is_an_answer(file: Path, annotation: Any, noun: Any, verdict: Any) -> None:
    file.write_text(coco(annotation))
    (answer,) = read(file)
    assert isinstance(answer, Answer)
    assert (answer.pair, answer.noun, answer.verdict) == (PAIR, noun, verdict)
    assert unfolded(answer) == MASK
    with pytest.raises(ValueError, match="a mask for 3 × 6 pixels"):
        unfolded(answer, 4, 6)


def test_a_word_that_is_no_verdict_and_a_mask_that_is_none_are_told(file: Path) -> None:
    file.write_text(coco({"pair": LINE, "verdict": "maybe"}))
    assert faults(read(file)) == ["`maybe` is no verdict; expected right, wrong_noun, bad_mask, cannot_say"]
    file.write_text(coco({"pair": LINE, "segmentation": {"size": [3, 6], "counts": [10**9, 1]}}))
    with pytest.raises(ValueError, match="do not cover the image"):
        unfolded(read(file)[0])


# --- zips and tables --------------------------------------------------------------------------------------------------


def zipped(file: Path, members: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def test_a_zip_is_read_whatever_its_members_are_called(file: Path) -> None:
    members = {
        "../../annotations.xml": XML.format(IMAGE.format(SHAPE)),
        "annotations/instances_default.json": coco({"pair": LINE}),
        "images/a.jpg": b"\xff\xd8",
    }
    assert len(read(zipped(file, dict(members)))) == 2
    assert [path.name for path in file.parent.iterdir()] == ["answers"]


def test_a_zip_that_unfolds_to_far_too_much_is_refused(file: Path) -> None:
    zipped(file, {"annotations.xml": b" " * (40 << 20)})
    assert file.stat().st_size < 100_000
    with pytest.raises(InputError, match="unfolds to more than 200 times its size"):
        read(file)


def damaged(content: bytes) -> Iterator[bytes]:
    yield content[: len(content) // 2] + content[len(content) // 2 + 9 :]
    at = content.index(b"annotations.xml") + 20
    yield content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :]


def test_a_zip_that_is_broken_or_empty_is_told(file: Path) -> None:
    with pytest.raises(InputError, match="a zip without annotations"):
        read(zipped(file, {"a.txt": "x"}))
    whole = zipped(file, {"annotations.xml": XML.format(IMAGE.format(SHAPE))}).read_bytes()
    for content in damaged(whole):
        file.write_bytes(content)
        with pytest.raises(InputError, match="answers"):
            read(file)
    assert zipfile.is_zipfile(io.BytesIO(whole))


def test_lines_of_a_table_that_cannot_be_read_cost_no_other(file: Path) -> None:
    lines = ["key,verdict,corrected_noun", "42-000,bad mask,", "43-000,right,", "42-000,maybe,", "42-000,right,café"]
    file.write_bytes("\n".join(lines).encode("cp1252"))
    found = read(file, {"42-000": PAIR})
    assert [(one.pair, one.key) for one in found if isinstance(one, Answer)] == [(PAIR, ""), (None, "43-000")]
    assert [what.partition(";")[0] for what in faults(found)] == [
        "line 4: `maybe` is no verdict",
        "line 5 is no text in utf-8",
    ]
    last = read(file, {"42-000": PAIR}, encoding="cp1252")[-1]
    assert isinstance(last, Answer)
    assert (last.verdict, last.noun) == ("right", "café")
