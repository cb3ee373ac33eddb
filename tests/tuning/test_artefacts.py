"""What tuning hands on: prompts with the CLIP that they belong to, tuned weights, and the files of OVSeg."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from maskmine.mining.models.clip import Clip, WholeClip
from maskmine.mining.models.mask_prompts import tower_sha256, weights_sha256_of
from maskmine.mining.models.prompts_file import PromptsRecord, load_prompts, read_prompts, save_prompts
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.tuning.clip.weights_files import load_ovseg_clip, load_ovseg_prompts, save_clip
from tests.support.models import ARCHITECTURE, save_tiny_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> WholeClip:
    folder = save_tiny_clip(tmp_path_factory.mktemp("clip"))
    (folder / "tokenizer.txt").write_text("a file that lies beside")
    return Clip(model=str(folder)).open_whole()


def prompts() -> Tensor:
    return torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(3))


def record_of(clip: WholeClip) -> PromptsRecord:
    return PromptsRecord(
        clip="tiny", tower_sha256=tower_sha256(clip.model.visual), settings={"depth": 2}, shards=("f" * 64,)
    )


def pixels() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))


def masks() -> Tensor:
    masks_BHW = torch.zeros(2, 32, 32)
    masks_BHW[:, :9] = 1
    return masks_BHW


def another_clip(**changes: Any) -> Any:
    torch.manual_seed(99)
    return open_clip.CLIP(**{**ARCHITECTURE, **changes}).eval()


def test_prompts_come_back_to_the_bit_with_their_record(clip: WholeClip, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for path in paths:
        save_prompts(path, prompts(), record=record_of(clip))
    found, record = read_prompts(paths[0])
    assert torch.equal(found, prompts())
    assert record == record_of(clip)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_other_teams_load_prompts_in_three_lines(clip: WholeClip, tmp_path: Path) -> None:
    path = tmp_path / "prompts.safetensors"
    save_prompts(path, prompts(), record=record_of(clip))
    weights = weights_sha256_of(clip.model.state_dict())
    with torch.no_grad():
        tower = load_prompts(path, clip.model)
        embeddings = tower(pixels(), masks())
        assert embeddings.shape == (2, 32)
        assert torch.equal(tower(pixels()), clip.model.visual(pixels()))
    assert not torch.equal(embeddings, tower(pixels()))
    assert weights_sha256_of(clip.model.state_dict()) == weights


def test_prompts_of_another_clip_are_refused_and_it_is_said_whose_they_are(clip: WholeClip, tmp_path: Path) -> None:
    path = tmp_path / "prompts.safetensors"
    save_prompts(path, prompts(), record=record_of(clip))
    with pytest.raises(InputError, match=r"prompts for the image tower of `tiny` .* this CLIP has another") as error:
        load_prompts(path, another_clip())
    assert record_of(clip).tower_sha256[:12] in str(error.value)


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no prompts")
    os.mkfifo(tmp_path / "pipe")  # which nobody writes to
    nothing = "holds no mask prompts of maskmine"
    for name, told in (("text", nothing), ("pipe", nothing), ("absent", "there is no such file")):
        with pytest.raises(InputError, match=told):
            read_prompts(tmp_path / name)


@pytest.mark.parametrize(
    "wrong", [torch.tensor(1.0), prompts().long(), prompts() * torch.nan], ids=["0d", "int", "nan"]
)
def test_prompts_that_are_no_finite_numbers_are_refused(clip: WholeClip, tmp_path: Path, wrong: Tensor) -> None:
    metadata = {"maskmine": record_of(clip).model_dump_json()}
    save_file({"mask_embedding": wrong}, tmp_path / "prompts.safetensors", metadata)
    with pytest.raises(InputError, match="has no finite numbers"):
        read_prompts(tmp_path / "prompts.safetensors")


def test_a_full_disk_leaves_the_file_before(clip: WholeClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prompts.safetensors"
    save_prompts(path, prompts(), record=record_of(clip))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IncompleteError, match="the disk is full; free some space and run the same command again"):
        save_prompts(path, prompts() + 1, record=record_of(clip))
    assert torch.equal(read_prompts(path)[0], prompts())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_tuned_clip_opens_in_open_clip_and_in_mining(clip: WholeClip, tmp_path: Path) -> None:
    clip.model.visual.ln_post.bias.data += 1
    try:
        with torch.no_grad():
            expected = clip.model.encode_image(pixels(), normalize=True)
        save_clip(tmp_path / "tuned", clip)
    finally:
        clip.model.visual.ln_post.bias.data -= 1
    opened = open_clip.create_model(f"local-dir:{tmp_path / 'tuned'}").eval()
    by_file = another_clip()
    open_clip.load_checkpoint(by_file, str(tmp_path / "tuned" / "open_clip_model.safetensors"))
    with torch.no_grad():
        assert torch.equal(opened.encode_image(pixels(), normalize=True), expected)
        assert torch.equal(by_file.encode_image(pixels(), normalize=True), expected)
    mined = Clip(model=str(tmp_path / "tuned"), batch_size=2).open_image(device="cpu")
    torch.testing.assert_close(mined.embed(pixels()), expected, rtol=0, atol=1e-6)
    assert (mined.mean, mined.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert (tmp_path / "tuned" / "tokenizer.txt").exists()


def test_a_file_of_weights_serves_a_built_in_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of the architecture, as `open_clip.create_model(NAME, pretrained=FILE)`."""
    (tmp_path / "models").mkdir()
    model = another_clip()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {"tiny-made-up": ARCHITECTURE})
    whole = Clip(model="tiny-made-up", pretrained=str(tmp_path / "weights.pt")).open_whole()
    save_clip(tmp_path / "tuned", whole)
    file = tmp_path / "tuned" / "open_clip_model.safetensors"
    again = open_clip.create_model("tiny-made-up", pretrained=str(file))
    assert weights_sha256_of(again.state_dict()) == weights_sha256_of(model.state_dict())


def nestings(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "plain": tensors,
        "state_dict": {"epoch": 5, "state_dict": tensors},
        "module": {"state_dict": {f"module.{name}": value for name, value in tensors.items()}},
        "segmenter": {
            "model": {
                **{f"clip_adapter.clip_model.{name}": value for name, value in tensors.items()},
                "sem_seg_head.weight": torch.zeros(2),
            }
        },
    }


@pytest.mark.parametrize("nesting", ["plain", "state_dict", "module", "segmenter"])
def test_clip_and_prompts_are_read_from_files_named_as_ovseg_names_them(tmp_path: Path, nesting: str) -> None:
    tuned, here = another_clip(), another_clip()
    tuned.visual.proj.data += 0.1
    tensors = {
        **tuned.state_dict(),
        "visual.mask_embedding": prompts(),
        "input_resolution": torch.tensor(32),
        "logit_scale": tuned.logit_scale.detach().reshape(1),
    }
    torch.save(nestings(tensors)[nesting], tmp_path / "ovseg.pth")
    load_ovseg_clip(tmp_path / "ovseg.pth", here)
    assert weights_sha256_of(here.state_dict()) == weights_sha256_of(tuned.state_dict())
    tower = load_ovseg_prompts(tmp_path / "ovseg.pth", here)
    assert torch.equal(tower.prompts_PND, prompts())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lacks", "lacks 1 weights of this CLIP, such as ln_final.bias; create the model"),
        ("has more", "has weights that this CLIP lacks, such as visual.extra"),
        ("other shape", r"visual.proj is \(64, 5\), and this CLIP has \(64, 32\)"),
        ("no clip", "holds no CLIP with a vision transformer"),
        ("no weights", "holds no weights"),
        ("a pickle", "cannot be read as weights"),
        ("a pipe", "cannot be read as weights"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path, change: str, message: str) -> None:
    model = another_clip()
    before, path = weights_sha256_of(model.state_dict()), tmp_path / "ovseg.pth"
    tensors: Any = dict(another_clip().state_dict())
    if change == "lacks":
        del tensors["ln_final.bias"]
    elif change == "has more":
        tensors["visual.extra"] = torch.zeros(3)
    elif change == "other shape":
        tensors["visual.proj"] = torch.zeros(64, 5)
    elif change == "no clip":
        tensors = {"weight": torch.zeros(3)}
    elif change == "no weights":
        tensors = {"epoch": 3}
    elif change == "a pickle":
        tensors = Path  # anything that only a program could unpickle
    if change == "a pipe":
        os.mkfifo(path)
    else:
        torch.save(tensors, path)
    with pytest.raises(InputError, match=message) as error:
        load_ovseg_clip(path, model)
    assert "\n" not in str(error.value)
    assert weights_sha256_of(model.state_dict()) == before


def test_a_file_of_ovseg_without_prompts_is_told_from_one_with_them(tmp_path: Path) -> None:
    torch.save(another_clip().state_dict(), tmp_path / "ovseg.pth")
    with pytest.raises(InputError, match="holds no `mask_embedding`"):
        load_ovseg_prompts(tmp_path / "ovseg.pth", another_clip())
    torch.save({"visual.mask_embedding": torch.zeros(2, 9, 64)}, tmp_path / "ovseg.pth")
    with pytest.raises(InputError, match="for 9 patches of width 64, the image tower has 16"):
        load_ovseg_prompts(tmp_path / "ovseg.pth", another_clip())
