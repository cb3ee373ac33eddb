"""The bench of proposers: that the models are as large as the published ones, and which pictures are shown to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from maskmine.schemas.errors import InputError
from maskmine.scripts.benches.fixtures import eomt_config, owlv2_config, sam2_config, sam_config
from maskmine.scripts.benches.proposers import read_coco


def millions(network_class: Any, config: Any) -> float:
    with torch.device("meta"):  # sizes without weights
        return sum(parameter.numel() for parameter in network_class(config).parameters()) / 1e6


def test_the_sizes_are_those_of_the_published_models() -> None:
    """facebook/sam-vit-base has 93.7 million parameters, sam-vit-large 312.3, sam2.1-hiera-large 224.4 with videos and
    sam2.1-hiera-base-plus 80.8. The tables of EoMT's authors have 93 for the base and 316 for the large one. OWLv2 base
    is CLIP's ViT-B/16, 149.6, with positions for 960 pixels, 2.6, and heads, 2.4."""
    assert millions(transformers.SamModel, sam_config(large=False)) == pytest.approx(93.7, rel=0.01)
    assert millions(transformers.SamModel, sam_config(large=True)) == pytest.approx(312.3, rel=0.01)
    assert millions(transformers.Sam2Model, sam2_config(large=True)) == pytest.approx(224.4 - 8, rel=0.03)
    assert millions(transformers.Sam2Model, sam2_config(large=False)) == pytest.approx(80.8 - 8, rel=0.03)
    assert millions(transformers.Owlv2ForObjectDetection, owlv2_config()) == pytest.approx(149.6 + 2.6 + 2.4, rel=0.01)
    assert millions(transformers.EomtForUniversalSegmentation, eomt_config(large=False)) == pytest.approx(93, rel=0.02)
    assert millions(transformers.EomtForUniversalSegmentation, eomt_config(large=True)) == pytest.approx(316, rel=0.02)


def test_the_first_pictures_with_annotations_are_shown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there; give the folder of COCO with --coco-mini"):
        read_coco(tmp_path, images=1)
    (tmp_path / "annotations").mkdir()
    content = {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in (1, 2, 3, 4)],
        "annotations": [{"image_id": 1, "iscrowd": 1}, {"image_id": 2, "iscrowd": 0}, {"image_id": 4, "iscrowd": 0}],
        "categories": [{"name": "cat"}, {"name": "dog"}],
    }
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    shown, names = read_coco(tmp_path, images=2)
    assert shown == [("2", str(tmp_path / "train2017" / "2.jpg")), ("4", str(tmp_path / "train2017" / "4.jpg"))]
    assert names == ["cat", "dog"]
