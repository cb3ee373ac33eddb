"""The shards in the hands of their official readers: webdataset, and open_clip's own training loader."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.support import toy
from tests.support.runs import run_toy


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = toy.write_toy_world(tmp_path_factory.mktemp("readers"))
    run_toy(toy.write_config(folder))
    return folder / "run" / "shards"


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_every_sample_decoded(shards: Path) -> None:
    import webdataset

    data = webdataset.WebDataset(str(shards / "{00000..00002}.tar"), shardshuffle=False).decode("pil")
    samples = list(data)
    assert len(samples) == sum(json.loads((shards / "sizes.json").read_text()).values()) == len(toy.PAIRS)
    for sample in samples:
        record = sample["json"]
        mask = np.asarray(sample["mask.png"].convert("L"))
        assert sample["jpg"].size == (mask.shape[1], mask.shape[0])
        assert (mask > 0).sum() == record["area_px"]
        assert sample["txt"] == record["noun"]
    assert {(s["json"]["image_id"], s["txt"], s["json"]["label"]) for s in samples} == toy.PAIRS


@pytest.mark.filterwarnings("ignore")  # it warns of much that is not ours
def test_open_clips_training_loader_reads_the_shards_as_they_are(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from open_clip_train import data
    from open_clip_train.params import parse_args

    # open_clip 3.3 asks for webdataset up to 0.2.86; a newer one ends each tar with a mark that its loader cannot read.
    monkeypatch.setattr(data, "tar_file_expander", partial(data.tar_file_expander, eof_value=None))

    monkeypatch.setattr(sys, "argv", ["open_clip"])
    arguments = [
        *("--train-data", str(shards / "{00000..00002}.tar"), "--dataset-type", "webdataset"),
        *("--batch-size", "2", "--workers", "1", "--train-num-samples", str(len(toy.PAIRS))),
    ]
    args = parse_args(arguments)
    args.distributed, args.world_size, args.rank, args.seed = False, 1, 0, 0

    def preprocess(image: object) -> torch.Tensor:
        return torch.zeros(3, 8, 8)

    def tokenizer(text: str) -> torch.Tensor:
        return torch.tensor([[len(text)]])

    loader = data.get_data(args, (preprocess, preprocess), epoch=0, tokenizer=tokenizer)["train"].dataloader
    batches = list(loader)
    assert batches
    images, texts = batches[0]
    assert images.shape == (2, 3, 8, 8)
    nouns = {noun for _, noun, _ in toy.PAIRS}
    assert set(texts.flatten().tolist()) <= {len(noun) for noun in nouns}
