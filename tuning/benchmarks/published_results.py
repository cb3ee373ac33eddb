"""Published mIoU on the five sets, for comparison: results of others, not reproduced here.

They are from OVSeg's paper (arXiv 2210.04150): its table 1, which cites earlier methods, its ablations, and its text;
one is from its users. A set that a table leaves out is left out here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

OVSEG = "arXiv 2210.04150 (OVSeg)"

Classes = Literal["all", "seen", "unseen"]


@dataclass(frozen=True, slots=True)
class PublishedResult:
    """A row of a published table: mIoU in percent by the name of the set, over `classes` of it.

    `trained_on` is the training set of the masks, `location` the table or section of the source.
    """

    method: str
    trained_on: str
    miou: Mapping[str, float]
    location: str
    classes: Classes = "all"
    source: str = OVSEG


def _main(method: str, trained_on: str, **miou: float) -> PublishedResult:
    return PublishedResult(method, trained_on, miou, "table 1")


def _ablation(method: str, location: str, **miou: float) -> PublishedResult:
    """OVSeg's larger model, Swin-B and CLIP ViT-L/14, with one thing changed."""
    return PublishedResult(method, "COCO-Stuff-171", miou, location)


PUBLISHED: tuple[PublishedResult, ...] = (
    _main("SPNet, R101", "15 classes of VOC", pc59=24.3, voc20=18.3),
    _main("ZS3Net, R101", "15 classes of VOC", pc59=19.4, voc20=38.3),
    _main("LSeg, R101", "15 classes of VOC", voc20=47.4),
    _main("LSeg+, R101", "COCO Panoptic", ade847=2.5, pc459=5.2, ade150=13.0, pc59=36.0, voc20=59.0),
    _main("SimBaseline, R101c", "COCO-Stuff-156", ade150=15.3, voc20=74.5),
    _main("ZegFormer, R50", "COCO-Stuff-156", ade150=16.4, voc20=80.7),
    _main("OpenSeg, R101", "COCO Panoptic", ade847=4.0, pc459=6.5, ade150=15.3, pc59=36.9, voc20=60.0),
    _main("OVSeg, R101c, CLIP ViT-B/16", "COCO-Stuff-156", ade847=7.0, pc459=10.4, ade150=24.0, pc59=51.7, voc20=89.2),
    _main("OVSeg, R101c, CLIP ViT-B/16", "COCO-Stuff-171", ade847=7.1, pc459=11.0, ade150=24.8, pc59=53.3, voc20=92.6),
    _main("LSeg+, EfficientNet-B7", "COCO Panoptic", ade847=3.8, pc459=7.8, ade150=18.0, pc59=46.5),
    _main("OpenSeg, EfficientNet-B7", "COCO Panoptic", ade847=6.3, pc459=9.0, ade150=21.1, pc59=42.1),
    _main("OVSeg, Swin-B, CLIP ViT-L/14", "COCO-Stuff-171", ade847=9.0, pc459=12.4, ade150=29.6, pc59=55.7, voc20=94.5),
    _main("supervised: FCN-8s", "the set itself", ade150=29.4, pc59=37.8),
    _main("supervised: DeepLab, R101", "the set itself", pc59=45.7, voc20=77.7),
    _main("supervised: SelfTrain, EfficientNet-L2", "the set itself", voc20=90.0),
    _main("supervised: MaskFormer, R101c", "the set itself", ade847=17.4, ade150=46.0),
    _ablation("baseline: both, plain CLIP", "tables 2, 3 and 4", ade847=7.3, ade150=21.8, pc59=51.4),
    _ablation("mask prompts", "table 3", ade847=8.4, ade150=26.5, pc59=55.4),
    _ablation("fine-tuned", "tables 2, 3 and 8", ade847=8.8, ade150=28.8, pc59=55.7),
    _ablation("fine-tuned, then mask prompts", "tables 3, 4 and 5", ade847=9.0, ade150=29.6, pc59=55.7),
    _ablation("fine-tuned on true masks, 171 classes", "tables 2 and 8", ade847=5.3, ade150=23.0, pc59=57.3),
    _ablation("fine-tuned on true masks, nouns of 1 caption", "table 2", ade847=7.9, ade150=24.2, pc59=53.2),
    _ablation("fine-tuned on mined pairs, 5 captions", "table 2", ade847=8.8, ade150=28.6, pc59=55.5),
    _ablation("fine-tuned on mined pairs and true masks", "table 8", ade150=26.7),
    _ablation("mask prompts, then fine-tuned", "table 5", ade847=8.5, ade150=28.1),
    _ablation("fine-tuned and mask prompts at once", "table 5", ade847=8.8, ade150=29.0),
    _ablation("mask prompts, depth 1", "table 6", ade150=25.7),
    _ablation("mask prompts, depth 6", "table 6", ade150=26.8),
    _ablation("mask prompts, depth 12", "table 6", ade150=26.8),
    _ablation("fine-tuned, then mask prompts, depth 1", "table 6", ade150=29.3),
    _ablation("fine-tuned, then mask prompts, depth 6", "table 6", ade150=29.4),
    _ablation("fine-tuned, then mask prompts, depth 12", "table 6", ade150=29.3),
    _ablation("visual prompts, 50 tokens, depth 6", "table 7", ade150=25.5),
    _ablation("MaskFormer's classes alone", "table 4", ade150=19.6),
    _ablation("plain CLIP alone", "table 4", ade150=14.3),
    _ablation("tuned CLIP alone", "table 4", ade150=25.1),
    PublishedResult("OVSeg", "COCO-Stuff-171", {"ade150": 37.6}, "appendix A.8", "seen"),
    PublishedResult("OVSeg", "COCO-Stuff-171", {"ade150": 21.9}, "appendix A.8", "unseen"),
    PublishedResult("true masks, plain CLIP, masked crops", "–", {"ade150": 20.1}, "section 1"),
    PublishedResult("true masks, plain CLIP, unmasked crops", "–", {"ade150": 13.8}, "appendix A.1"),
    PublishedResult("MaskFormer's masks, true classes", "COCO-Stuff-171", {"ade150": 66.5}, "section 1"),
    PublishedResult(
        "the baseline after 10,000 of 120,000 steps",
        "COCO-Stuff-171",
        {"ade150": 18.0},
        "issue 20, a user's run",
        source="github.com/facebookresearch/ov-seg",
    ),
)


def published_on(name: str) -> Iterator[tuple[PublishedResult, float]]:
    """The rows with a result for a set, and that result (percent)."""
    for row in PUBLISHED:
        if name in row.miou:
            yield row, row.miou[name]
