"""What a model's JSON files say and its weights cannot be is one line, whether it shows at once or at first use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskmine.mining.models.pretrained import tried
from maskmine.mining.proposers.eomt import Eomt
from maskmine.mining.proposers.open_vocabulary_checkpoint import read_head, read_record
from maskmine.mining.proposers.proposals import LoadedImage
from maskmine.mining.proposers.rf_detr import RfDetr
from maskmine.mining.proposers.sam import Sam
from maskmine.mining.verifiers.owlv2 import Owlv2
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask
from maskmine.tuning.clip.weights_files import load_ovseg_prompts
from tests.support.tiny.proposers import save_eomt, save_rf_detr, save_sam
from tests.support.tiny.verifiers import save_owlv2

RGB_3HW = torch.zeros(3, 48, 64, dtype=torch.uint8)
SAVED: dict[str, tuple[Callable[[Path], Path], type[Any]]] = {
    "eomt": (save_eomt, Eomt),
    "rf_detr": (save_rf_detr, RfDetr),
    "sam": (save_sam, Sam),
    "owlv2": (save_owlv2, Owlv2),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    saved = tmp_path_factory.mktemp("models")
    return {kind: save(saved / kind) for kind, (save, _) in SAVED.items()}


def use(kind: str, folder: Path) -> None:
    """Open the model and show it a picture."""
    opened = SAVED[kind][1](kind=kind, checkpoint=str(folder)).open(device="cpu")
    if kind == "owlv2":
        opened(RGB_3HW, nouns=["cat"], regions=[Mask.from_array(np.ones((48, 64), bool))], chosen=[0])
    else:
        list(opened([LoadedImage("1", RGB_3HW)], min_score=0.0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "file", "place", "value"),
    [
        ("eomt", "config.json", "num_hidden_layers", 10**9),
        ("eomt", "config.json", "id2label.1", 0.5),
        ("eomt", "preprocessor_config.json", "image_std", "x"),
        ("rf_detr", "config.json", "decoder_self_attention_heads", 0),
        ("rf_detr", "preprocessor_config.json", "image_mean", []),
        ("sam", "config.json", "mask_decoder_config.iou_head_depth", 10**9),
        ("sam", "config.json", "prompt_encoder_config.num_point_embeddings", 2**31),
        ("sam", "preprocessor_config.json", "resample", -1),
        ("owlv2", "config.json", "vision_config.num_hidden_layers", 10**30),
        ("owlv2", "config.json", "vision_config.patch_size", 0),
        ("owlv2", "processor_config.json", "image_processor.size.width", "x"),
    ],
)
def test_a_value_that_does_not_fit_is_one_line(
    folders: dict[str, Path], tmp_path: Path, kind: str, file: str, place: str, value: Any
) -> None:
    for each in folders[kind].iterdir():
        (tmp_path / each.name).symlink_to(each)
    described = json.loads((folders[kind] / file).read_text())
    *above, last = place.split(".")
    inner = described
    for key in above:
        inner = inner[key]
    assert last in inner
    inner[last] = value
    (tmp_path / file).unlink()
    (tmp_path / file).write_text(json.dumps(described))
    with pytest.raises(InputError) as error:
        use(kind, tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "index", [{"metadata": {}, "weight_map": {"a": name}} for name in ("/dev/zero", "../x", "gone", 1)] + [[], {}]
)
def test_an_index_of_weights_names_files_beside_it(folders: dict[str, Path], tmp_path: Path, index: Any) -> None:
    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).symlink_to(folders["sam"] / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"the index of weights in .* names no file there"):
        use("sam", tmp_path)


def test_a_head_of_numbers_that_become_no_others_is_one_line(tmp_path: Path) -> None:
    header = b'{"classes_KD": {"dtype": "F4", "shape": [32], "data_offsets": [0, 16]}}'
    (tmp_path / "head.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(InputError, match="cannot be loaded"):
        read_head(tmp_path)


@pytest.mark.parametrize("content", [b"\x80\x02.", b"\x80\x02]" + b"(" * 9 + b".", b"\x80\x02h\x05.", b"\x80\x02)}b."])
def test_a_pickle_that_makes_no_value_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "prompts.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"prompts.pth: (cannot be read as weights|holds no weights)"):
        load_ovseg_prompts(tmp_path / "prompts.pth", None)


def test_a_model_that_has_answered_once_is_not_to_blame() -> None:
    answer = tried(lambda number: 1 / number, name="it", setting="clip.model")
    with pytest.raises(InputError, match=r"clip.model: `it` does not run as .* \(ZeroDivisionError: .*\)"):
        answer(0)
    assert answer(1) == 1
    with pytest.raises(ZeroDivisionError):
        answer(0)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError)])
def test_a_gpu_without_room_or_with_a_fault_is_not_the_models_fault(kind: type[Exception]) -> None:
    def full() -> None:
        raise kind("CUDA error")

    with pytest.raises(kind):
        tried(full, name="it", setting="clip.model")()


@pytest.mark.parametrize("change", [{"layers": 10**9}, {"hidden": "x"}, {"logit_scale": "x"}, {"more": 1}])
def test_a_record_of_a_head_that_describes_none_is_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    record: dict[str, Any] = {
        "clip": "x",
        "clip_sha256": None,
        "templates": "raw",
        "logit_scale": 1.0,
        "hidden": 8,
        "layers": 1,
    }
    record |= {"pixels": False, "classes": ["cat"], "format": 1}
    path = tmp_path / "open_vocabulary.json"
    path.write_text(json.dumps(record))
    assert read_record(tmp_path).hidden == 8
    path.write_text(json.dumps({**record, **change}))
    with pytest.raises(InputError, match="cannot be read"):
        read_record(tmp_path)
