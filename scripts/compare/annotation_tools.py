"""Annotation tools as they answer: what people see of an export, and the files that a tool gives back for it.

Masks are decoded and encoded here by the forms alone, with none of the product's code: Label Studio's brush by
label-studio-sdk where it is installed, else by the description of its packing.

Shapes: H, W height and width of a photograph.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np

from maskmine.schemas.annotation_tools import PairId, parse_pair_line

Array = np.ndarray[Any, Any]
Form = Literal["label-studio", "cvat", "cvat-coco"]
FORMS: tuple[Form, ...] = ("label-studio", "cvat", "cvat-coco")


@dataclass(frozen=True)
class Given:
    """What a person says of a pair: a verdict as the tool has it, a noun typed in, a mask [H, W] drawn anew."""

    verdict: str
    noun: str | None = None
    mask_HW: Array | None = None


Judge = Callable[[PairId, Array], Given | None]
"""What a person says of a pair whose mask looks so; None where they leave it as it is."""


def answer(form: Form, export: Path, judge: Judge, *, to: Path) -> Path:
    """The file that a tool gives back for the split `train` of an export; returns its path below the folder `to`."""
    to.mkdir(parents=True, exist_ok=True)
    return _ANSWER[form](export, judge, to)


def _label_studio(export: Path, judge: Judge, to: Path) -> Path:
    encode, decode = _brush()
    tasks = json.loads((export / "train.json").read_text())
    for number, task in enumerate(tasks, start=1):
        (region,) = task["predictions"][0]["result"]
        size = (region["original_height"], region["original_width"])
        seen_HW = np.asarray(decode(region["value"]["rle"])).reshape(*size, 4)[:, :, 3] > 0
        given = judge(_pair(task["data"]["pair"]), seen_HW)
        task |= {"id": number, "annotations": []}
        if given is None:
            continue
        mask_HW = seen_HW if given.mask_HW is None else given.mask_HW
        brush = {**region, "value": {**region["value"], "rle": encode(mask_HW.astype(np.uint8) * 255)}}
        chosen = {"from_name": "verdict", "to_name": "image", "type": "choices", "value": {"choices": [given.verdict]}}
        results: list[Any] = [brush, chosen]
        if given.noun is not None:
            typed = {"from_name": "better_noun", "to_name": "image", "type": "textarea"}
            results.append({**typed, "value": {"text": [given.noun]}})
        about = {"completed_by": {"email": "ann@example.org"}, "updated_at": f"2026-03-01T00:00:00.{number:06d}Z"}
        task["annotations"] = [{"id": number, "result": results, "was_cancelled": False, "lead_time": 4.5, **about}]
    file = to / "project-1.json"
    file.write_text(json.dumps(tasks))
    return file


def _cvat(export: Path, judge: Judge, to: Path) -> Path:
    root = _judged_xml(export, judge)
    file = to / "task.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations.xml", ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
        archive.writestr("images/1.jpg", b"\xff\xd8 no picture")
    return file


def _cvat_coco(export: Path, judge: Judge, to: Path) -> Path:
    root = _judged_xml(export, judge)
    images: list[Any] = []
    annotations: list[Any] = []
    for image in root.iter("image"):
        height_px, width_px = int(image.attrib["height"]), int(image.attrib["width"])
        number = int(image.attrib["id"]) + 1
        images.append({"id": number, "width": width_px, "height": height_px, "file_name": image.attrib["name"]})
        for mask in image.iter("mask"):
            mask_HW = _unfold(mask.attrib, height_px, width_px)
            counts = _run_lengths(mask_HW.ravel(order="F"))
            attributes = {one.attrib["name"]: one.text or "" for one in mask.iter("attribute")}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": {"size": [height_px, width_px], "counts": counts},
                    "area": int(mask_HW.sum()),
                    "bbox": [float(mask.attrib[name]) for name in ("left", "top", "width", "height")],
                    "iscrowd": 1,
                    "attributes": {"occluded": False, **attributes},
                }
            )
    content = {"licenses": [], "info": {"date_created": ""}, "categories": [{"id": 1, "name": "pair"}]}
    file = to / "task-coco.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        whole = content | {"images": images, "annotations": annotations}
        archive.writestr("annotations/instances_default.json", json.dumps(whole))
    return file


_ANSWER: dict[Form, Callable[[Path, Judge, Path], Path]] = {
    "label-studio": _label_studio,
    "cvat": _cvat,
    "cvat-coco": _cvat_coco,
}


def _judged_xml(export: Path, judge: Judge) -> ElementTree.Element:
    """The annotations with what people changed, as CVAT writes them."""
    root = ElementTree.parse(export / "train.xml").getroot()
    (task,) = root.iter("task")
    ElementTree.SubElement(task, "updated").text = "2026-03-01 00:00:00.000001+00:00"
    for image in root.iter("image"):
        size = int(image.attrib["height"]), int(image.attrib["width"])
        for mask in image.iter("mask"):
            attributes = {one.attrib["name"]: one for one in mask.iter("attribute")}
            given = judge(_pair(attributes["pair"].text or ""), _unfold(mask.attrib, *size))
            if given is None:
                continue
            attributes["verdict"].text = given.verdict.replace(" ", "_")
            if given.noun is not None:
                attributes["noun"].text = given.noun
            if given.mask_HW is not None:
                mask.attrib.update(_fold(given.mask_HW))
    return root


def _unfold(attributes: dict[str, str], height_px: int, width_px: int) -> Array:
    """CVAT's runs as a mask [H, W], pixel by pixel."""
    left, top, width, height = (int(attributes[name]) for name in ("left", "top", "width", "height"))
    values = [n % 2 == 1 for n, run in enumerate(attributes["rle"].split(",")) for _ in range(int(run))]
    mask_HW = np.zeros((height_px, width_px), bool)
    mask_HW[top : top + height, left : left + width] = np.reshape(values, (height, width))
    return mask_HW


def _fold(mask_HW: Array) -> dict[str, str]:
    """A mask as CVAT's runs in its tight box."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    inside = mask_HW[top : rows[-1] + 1, left : columns[-1] + 1]
    box = {"left": left, "top": top, "width": inside.shape[1], "height": inside.shape[0]}
    runs = ", ".join(map(str, _run_lengths(inside.ravel())))
    return {"rle": runs, **{name: str(value) for name, value in box.items()}}


def _run_lengths(values: Array) -> list[int]:
    """The lengths of equal values in a row, outside first."""
    runs = [(bool(inside), len(list(same))) for inside, same in groupby(values.tolist())]
    return [0] * runs[0][0] + [length for _, length in runs]


def _pair(line: str) -> PairId:
    pair = parse_pair_line(line)
    if pair is None:
        raise ValueError(f"{line!r} names no pair")
    return pair


def _brush() -> tuple[Callable[[Array], list[int]], Callable[[Sequence[int]], Any]]:
    """How masks of 0 and 255 become a brush, and how a brush becomes RGBA values."""
    try:
        from label_studio_sdk.converter import brush
    except ImportError:
        return _pack, _unpack
    return brush.mask2rle, brush.decode_rle


def _pack(mask_HW: Array) -> list[int]:
    """Every pixel's four values, run by run with lengths of 16 bits."""
    text = f"{4 * mask_HW.size:032b}{7:05b}" + "".join(f"{bits - 1:04b}" for bits in (3, 4, 8, 16))
    for value, same in groupby(np.repeat(mask_HW.ravel(), 4).tolist()):
        length = len(list(same))
        while length:
            part = min(length, 1 << 16)
            text += f"111{part - 1:016b}{value:08b}"
            length -= part
    text += "0" * (-len(text) % 8)
    return [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]


def _unpack(packed: Sequence[int]) -> list[int]:
    bits = io.StringIO("".join(f"{byte:08b}" for byte in packed))

    def read(size: int) -> int:
        return int(bits.read(size), 2)

    count, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        repeated = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(word)] * length if repeated else [read(word) for _ in range(length)]
    return values
