"""Published mIoU on the five sets, to stand beside one's own: figures of others, never measured here.

Each row says where its figures can be read. Some are those of the paper that proposed the method, others as a later
paper cites them. Where a source leaves out a set, or counts it in another way, there is no figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

OVSEG = "arXiv 2210.04150 (OVSeg)"
_CITED = "as cited in arXiv 2308.02487, table 3"


@dataclass(frozen=True, slots=True)
class Published:
    """A row of somebody's table: mIoU in percent by the name of the set; `trained_on` is what the masks learnt from."""

    method: str
    trained_on: str
    miou: Mapping[str, float]
    source: str


def _ablation(method: str, table: str, ade847: float, ade150: float, pc59: float) -> Published:
    miou = {"ade847": ade847, "ade150": ade150, "pc59": pc59}
    return Published(method, "COCO-Stuff-171", miou, f"{OVSEG}, table {table}")


PUBLISHED: tuple[Published, ...] = (
    Published("SPNet", "Pascal VOC", {"pc59": 24.3}, _CITED),
    Published("ZS3Net", "Pascal VOC", {"pc59": 19.4}, _CITED),
    Published("SimBaseline", "COCO-Stuff", {"ade150": 15.3}, _CITED),
    Published("ZegFormer", "COCO-Stuff", {"ade150": 16.4}, _CITED),
    Published("LSeg+", "COCO", {"ade847": 3.8, "pc459": 7.8, "ade150": 18.0, "pc59": 46.5}, _CITED),
    Published("OpenSeg", "COCO, captions", {"ade847": 6.3, "pc459": 9.0, "ade150": 21.1, "pc59": 42.1}, _CITED),
    Published("OVSeg, R101c, CLIP ViT-B/16", "COCO-Stuff-171", {"ade150": 24.8}, f"{OVSEG}, table 1"),
    Published(
        "OVSeg, Swin-B, CLIP ViT-L/14",
        "COCO-Stuff-171",
        {"ade847": 9.0, "pc459": 12.4, "ade150": 29.6, "pc59": 55.7, "voc20": 94.5},
        f"{OVSEG}, table 1; {_CITED}",
    ),
    Published("MaskFormer's classes alone, Swin-B", "COCO-Stuff-171", {"ade150": 19.6}, f"{OVSEG}, table 4"),
    Published("plain CLIP alone, Swin-B", "COCO-Stuff-171", {"ade150": 14.3}, f"{OVSEG}, table 4"),
    Published("tuned CLIP alone, Swin-B", "COCO-Stuff-171", {"ade150": 25.1}, f"{OVSEG}, table 4"),
    _ablation("baseline: both, plain CLIP", "3", 7.3, 21.8, 51.4),
    _ablation("mask prompts", "3", 8.4, 26.5, 55.4),
    _ablation("fine-tuned", "3", 8.8, 28.8, 55.7),
    _ablation("fine-tuned, then mask prompts", "3", 9.0, 29.6, 55.7),
    _ablation("fine-tuned on true masks, 171 classes", "2", 5.3, 23.0, 57.3),
    _ablation("fine-tuned on true masks, nouns of 1 caption", "2", 7.9, 24.2, 53.2),
    _ablation("fine-tuned on mined pairs, 5 captions", "2", 8.8, 28.6, 55.5),
    Published("true masks, plain CLIP, masked crops", "–", {"ade150": 20.1}, f"{OVSEG}, section 1"),
    Published("true masks, plain CLIP, unmasked crops", "–", {"ade150": 13.8}, f"{OVSEG}, appendix A.1"),
    Published("MaskFormer's masks, true classes", "COCO-Stuff-171", {"ade150": 66.5}, f"{OVSEG}, section 1"),
)


def published_on(name: str) -> Iterator[tuple[Published, float]]:
    """The rows that have a figure for a set, with it (percent)."""
    for row in PUBLISHED:
        if name in row.miou:
            yield row, row.miou[name]
