"""Captions by Florence-2, with a tiny model of random weights: what it is given, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from maskmine.mining.captioners.florence2 import Florence2, _caption
from maskmine.mining.images.decode import DecodedImage
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import CaptioningRow, ImageRow, Rejection
from tests.support import toy
from tests.support.tiny.captioners import save_florence2, word_tokenizer

SHAPES: dict[str, tuple[str, ...]] = {"1": ("square", "disc"), "2": ("bar",), "3": (), "4": ("disc",)}
IMAGES = [ImageRow(image_id, None) for image_id in SHAPES]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_florence2(tmp_path_factory.mktemp("florence") / "tiny")


def florence2(checkpoint: Path | str, **changes: Any) -> Florence2:
    return Florence2.model_validate({"kind": "florence2", "checkpoint": str(checkpoint), "max_tokens": 8, **changes})


def decode(image: ImageRow) -> DecodedImage | Rejection:
    if image.image_id == "broken":
        return Rejection("decode_error", "broken")
    return DecodedImage(toy.draw(SHAPES[image.image_id]), f"sha-{image.image_id}", 1)


def captioned(settings: Florence2, images: list[ImageRow], *, threads: int = 1) -> list[CaptioningRow]:
    return settings.open(decode, threads=threads, device="cpu", cpu_threads=2)(images)


def test_each_picture_gets_a_caption_of_its_own_whatever_stands_beside_it(checkpoint: Path) -> None:
    settings = florence2(checkpoint)
    rows = captioned(settings, IMAGES)
    assert [row.sha256 for row in rows] == [f"sha-{image.image_id}" for image in IMAGES]
    assert all(len(row.captions) == 1 for row in rows)
    assert len({row.captions for row in rows}) == len(rows)
    mixed = [IMAGES[2], ImageRow("broken", None), IMAGES[0]]
    assert captioned(settings, mixed, threads=2) == [
        rows[2],
        CaptioningRow("broken", None, (), Rejection("decode_error", "broken")),
        rows[0],
    ]


def test_pictures_of_a_batch_come_back_in_order(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = captioned(florence2(checkpoint), IMAGES)
    monkeypatch.setattr(
        "maskmine.mining.captioners.florence2.open_device",
        lambda name: type("Gpu", (), {"type": "cuda"})() if name == "as if cuda" else torch.device("cpu"),
    )
    settings = florence2(checkpoint, batch_size=3, precision="float32")
    monkeypatch.setattr(Florence2, "_open_writer", lambda self, device: _writer(self))
    monkeypatch.setattr("maskmine.mining.captioners.florence2.fix_threads", lambda *_, **__: None)
    caption = settings.open(decode, threads=1, device="as if cuda", cpu_threads=2)
    assert [row.captions for row in caption(IMAGES)] == [row.captions for row in alone]


_real_writer = Florence2._open_writer


def _writer(settings: Florence2) -> Any:
    write, sizes = _real_writer(settings, "cpu"), []

    def counted(pictures: Any) -> Any:
        sizes.append(len(pictures))
        assert sizes in ([3], [3, 1])
        return write(pictures)

    return counted


def test_the_licence_of_published_weights_is_known_and_that_of_a_folder_is_the_users_to_say(checkpoint: Path) -> None:
    published = florence2("florence-community/Florence-2-base").record()
    assert (published.role, published.licence) == ("captions", "MIT")
    assert florence2(checkpoint).record().licence == "unknown"
    assert florence2(checkpoint, licence="MIT").record().licence == "MIT"


def test_pickled_weights_are_not_read(checkpoint: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (pickled / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(checkpoint / "model.safetensors"), pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"captions\.checkpoint: .* holds no weights; add them as model\.safetensors"):
        captioned(florence2(pickled), IMAGES)


def test_another_model_is_refused_by_its_type(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"captions\.checkpoint: .* is a clip model; give a florence2 one"):
        florence2(tmp_path).fetch()


def test_a_caption_that_is_too_long_loses_its_last_word() -> None:
    tokenizer = word_tokenizer()
    dog, cat, end = tokenizer.convert_tokens_to_ids(["dog", "cat", "</s>"])
    assert _caption([end, dog, cat, end], tokenizer, most=8) == ("dog cat",)
    assert _caption([end, dog, cat, dog, cat, end], tokenizer, most=5) == ("dog cat dog",)
    assert _caption([end, end], tokenizer, most=5) == ()
