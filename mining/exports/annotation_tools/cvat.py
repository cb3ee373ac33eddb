"""Annotations for CVAT: `CVAT for images 1.1`, a mask a pair, with its noun and a verdict as attributes.

The form is that of https://docs.cvat.ai/docs/manual/advanced/xml_format/, the task's labels those of its constructor.
"""

from __future__ import annotations

import json
import re
from typing import IO
from xml.sax.saxutils import escape, quoteattr

from maskmine.mining.exports.annotation_tools.photographs import Photograph, photographs
from maskmine.mining.exports.coco import whole_mask
from maskmine.mining.exports.export_shards import ExportShard, ExportSummary, Folder
from maskmine.mining.images.mask_codes import encode_box_runs
from maskmine.schemas.annotation_tools import CVAT_LABEL, NOUN, PAIR, UNJUDGED, VERDICT, pair_line
from maskmine.schemas.rows import VERDICTS
from maskmine.schemas.sample import StoredSample

_ATTRIBUTES = ((VERDICT, "select", (UNJUDGED, *VERDICTS)), (NOUN, "text", ("",)), (PAIR, "text", ("",)))
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_cvat(folder: Folder, shard: ExportShard) -> None:
    """`SPLIT.xml`: an image with a mask for each of its pairs. Images are known by their names."""
    with folder.write(f"{shard.split}.xml") as file:
        file.write(b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n')
        file.write(_meta(shard.split, images=shard.totals.images[shard.split]).encode())
        for number, photograph in enumerate(photographs(folder, shard, below=("images",))):
            _write_image(file, number, photograph)
        file.write(b"</annotations>\n")


def write_cvat_labels(folder: Folder, summary: ExportSummary) -> None:
    """`labels.json`, for the constructor of a task (`Raw`): one label and its attributes."""
    attributes = [
        {"name": name, "input_type": kind, "mutable": False, "values": list(values), "default_value": values[0]}
        for name, kind, values in _ATTRIBUTES
    ]
    label = {"name": CVAT_LABEL, "type": "mask", "color": "#d60093", "attributes": attributes}
    with folder.write("labels.json") as file:
        file.write((json.dumps([label], indent=1) + "\n").encode())


def _meta(split: str, *, images: int) -> str:
    """What CVAT says of a task before its images: its size and its label, with the attributes of the masks."""
    attributes = "".join(
        f"<attribute><name>{name}</name><mutable>False</mutable><input_type>{kind}</input_type>"
        f"<default_value>{values[0]}</default_value><values>{chr(10).join(values)}</values></attribute>"
        for name, kind, values in _ATTRIBUTES
    )
    label = f"<label><name>{CVAT_LABEL}</name><type>mask</type><attributes>{attributes}</attributes></label>"
    about = f"<name>{split}</name><size>{images}</size><mode>annotation</mode>"
    return f"  <meta><task>{about}<labels>{label}</labels></task></meta>\n"


def _write_image(file: IO[bytes], number: int, photograph: Photograph) -> None:
    size = f'width="{photograph.width_px}" height="{photograph.height_px}"'
    name = photograph.name.removeprefix("images/")  # as CVAT calls files that are uploaded one by one
    file.write(f'  <image id="{number}" name={_attribute(name)} {size}>\n'.encode())
    for sample in photograph.samples:
        file.write(_mask_element(sample).encode())
    file.write(b"  </image>\n")


def _mask_element(sample: StoredSample) -> str:
    row, mask = sample.row, whole_mask(sample)
    x0, y0, x1, y1 = row.box_xyxy
    runs = ", ".join(map(str, encode_box_runs(mask.to_array(), row.box_xyxy)))
    box = f'left="{x0}" top="{y0}" width="{x1 - x0}" height="{y1 - y0}"'
    given = {NOUN: row.noun, VERDICT: UNJUDGED, PAIR: pair_line((row.image_id, row.noun, mask.digest))}
    attributes = "".join(
        f'      <attribute name="{name}">{_text(value)}</attribute>\n' for name, value in given.items()
    )
    head = f'<mask label="{CVAT_LABEL}" source="file" occluded="0" rle="{runs}" {box} z_order="0">'
    return f"    {head}\n{attributes}    </mask>\n"


def _text(value: str) -> str:
    return escape(_plain(value))


def _attribute(value: str) -> str:
    return quoteattr(_plain(value))


def _plain(value: str) -> str:
    """A text without what XML 1.0 cannot have."""
    return "".join("�" if _NO_XML.match(character) else character for character in value)
