"""Models of detectron2: what their output says, what is refused, and the real thing where it is installed."""

from __future__ import annotations

import importlib.util
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from maskmine.mining.proposers import detectron2 as module
from maskmine.mining.proposers.detectron2 import Detectron2, Names, read_output
from maskmine.mining.proposers.proposals import LoadedImage, Proposals
from maskmine.mining.storage.content_hash import weights_sha256
from maskmine.schemas.errors import InputError
from tests.support.tiny import proposers as tiny_proposers
from tests.support.tiny.proposers import save_detectron2

NAMES = Names(things=("cat", "dog"), stuff=("things", "sky", "grass"))
REAL = [
    pytest.mark.skipif(not tiny_proposers.DETECTRON2, reason=tiny_proposers.WITHOUT_DETECTRON2),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x"


@dataclass
class Instances:
    """As much of detectron2's `Instances` as is read."""

    fields: dict[str, Any]

    def has(self, name: str) -> bool:
        return name in self.fields

    def __getattr__(self, name: str) -> Any:
        return self.fields[name]


def instances(*masks: list[list[int]], scores: list[float], classes: list[int]) -> Instances:
    drawn = torch.tensor(masks, dtype=torch.bool).reshape(len(masks), 2, 2)
    return Instances({"pred_masks": drawn, "scores": torch.tensor(scores), "pred_classes": torch.tensor(classes)})


def read(answer: dict[str, Any], *, output: Any = "auto", names: Names = NAMES, min_score: float = 0.0) -> Proposals:
    return read_output(answer, names=names, output=output, min_score=min_score)


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_instances_come_best_first_with_their_names_and_without_empty_masks() -> None:
    found = instances([[1, 0], [0, 0]], [[0, 0], [0, 0]], [[1, 1], [1, 1]], scores=[0.3, 0.9, 0.6], classes=[0, 0, 1])
    proposals = read({"instances": found})
    assert proposals.masks_NHW.int().tolist() == [[[1, 1], [1, 1]], [[1, 0], [0, 0]]]
    assert proposals.scores_N.tolist() == pytest.approx([0.6, 0.3])
    assert proposals.labels == ("dog", "cat")
    assert proposals.class_names == ("cat", "dog")
    assert proposals.classes_NK is not None
    assert proposals.classes_NK.tolist() == [pytest.approx([0, 0.6]), pytest.approx([0.3, 0])]
    assert read({"instances": found}, min_score=0.5).labels == ("dog",)


def test_instances_in_a_mask_structure_and_without_names_are_read_alike() -> None:
    found = instances([[1, 0], [0, 0]], scores=[0.3], classes=[7])
    wrapped = Instances({**found.fields, "pred_masks": SimpleNamespace(tensor=found.pred_masks)})
    proposals = read({"instances": wrapped}, names=Names())
    assert torch.equal(proposals.masks_NHW, found.pred_masks)
    assert (proposals.labels, proposals.class_names, proposals.classes_NK) == ((None,), (), None)


def test_panoptic_segments_are_things_with_scores_and_stuff_which_has_none() -> None:
    segments_HW = torch.tensor([[1, 1], [2, 0]])
    said = [{"id": 1, "isthing": True, "category_id": 1, "score": 0.7}, {"id": 2, "isthing": False, "category_id": 2}]
    proposals = read({"panoptic_seg": (segments_HW, said)})
    assert proposals.labels == ("grass", "dog")
    assert proposals.scores_N.tolist() == pytest.approx([1.0, 0.7])
    assert proposals.masks_NHW.int().tolist() == [[[0, 0], [1, 0]], [[1, 1], [0, 0]]]
    assert proposals.class_names == ("cat", "dog", "things", "sky", "grass")
    assert len(read({"panoptic_seg": (segments_HW * 0, [])})) == 0


def test_panoptic_segments_without_a_list_are_the_numbers_in_the_map() -> None:
    proposals = read({"panoptic_seg": (torch.tensor([[7, -1], [7000, 7]]), None)})
    assert proposals.masks_NHW.int().tolist() == [[[1, 0], [0, 1]], [[0, 0], [1, 0]]]
    assert proposals.labels == (None, None)


def test_a_semantic_map_gives_a_mask_for_every_class_that_is_the_best_of_some_pixel() -> None:
    logits_KHW = torch.tensor([[[2.0, -1.0]], [[0.0, 1.0]], [[-3.0, -3.0]]])
    proposals = read({"sem_seg": logits_KHW})
    shares = logits_KHW.softmax(dim=0)
    assert proposals.labels == ("things", "sky")
    assert proposals.masks_NHW.int().tolist() == [[[1, 0]], [[0, 1]]]
    assert proposals.scores_N.tolist() == pytest.approx([float(shares[0, 0, 0]), float(shares[1, 0, 1])])
    weights_KHW = torch.tensor([[[3.0, 0.0]], [[1.0, 0.5]], [[0.0, 0.0]]])  # sums of votes, as of a MaskFormer
    assert read({"sem_seg": weights_KHW}).scores_N.tolist() == pytest.approx([1.0, 0.75])
    assert read({"sem_seg": torch.zeros(3, 1, 2)}).scores_N.tolist() == [0.0]


def test_of_several_outputs_the_one_that_is_asked_for_is_read() -> None:
    answer = {
        "instances": instances([[1, 0], [0, 0]], scores=[0.3], classes=[0]),
        "panoptic_seg": (torch.tensor([[1, 1], [1, 1]]), [{"id": 1, "isthing": False, "category_id": 1}]),
        "sem_seg": torch.rand(3, 2, 2),
    }
    assert read(answer).labels == ("sky",)
    assert read(answer, output="instances").labels == ("cat",)
    assert set(read(answer, output="sem_seg").labels) <= set(NAMES.stuff)
    del answer["panoptic_seg"]
    with pytest.raises(InputError, match=r"proposals\.output: .* `panoptic_seg`; use instances or sem_seg"):
        read(answer, output="panoptic_seg")


def test_an_output_without_masks_and_scores_that_are_no_numbers_are_refused() -> None:
    boxes = Instances({"pred_boxes": None, "scores": torch.tensor([0.5]), "pred_classes": torch.tensor([0])})
    with pytest.raises(InputError, match=r"the model's output has no masks \(it gives instances\); use one for"):
        read({"instances": boxes})
    broken = instances([[1, 0], [0, 0]], scores=[float("nan")], classes=[0])
    with pytest.raises(InputError, match="scores are not finite"):
        read({"instances": broken})


# --- files and hashes -------------------------------------------------------------------------------------------------


def settings_of(**changes: Any) -> Detectron2:
    return Detectron2.model_validate({"kind": "detectron2", "config": "model.yaml", "weights": "model.pth", **changes})


def test_pickled_weights_need_the_hash_that_they_have_and_are_not_read_before(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    weights = tmp_path / "model.pkl"
    weights.write_bytes(pickle.dumps({"model": Trap()}))
    true = weights_sha256(weights)
    with pytest.raises(InputError, match=f"is a pickle, which can run any code; .*add `weights_sha256: {true}`"):
        module._checked_weights(settings_of(weights=str(weights)))
    with pytest.raises(InputError, match=f"has {true}, not {'0' * 64}; get the file again"):
        module._checked_weights(settings_of(weights=str(weights), weights_sha256="0" * 64))
    assert module._checked_weights(settings_of(weights=str(weights), weights_sha256=true)) == weights
    assert not (tmp_path / "sprung").exists()


def test_safetensors_need_no_hash_and_one_that_is_given_counts(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(1)}, weights)
    assert module._checked_weights(settings_of(weights=str(weights))) == weights
    with pytest.raises(InputError, match=r"weights_sha256: .* has"):
        module._checked_weights(settings_of(weights=str(weights), weights_sha256="0" * 64))


def test_a_hash_is_64_hex_digits() -> None:
    with pytest.raises(ValidationError):
        settings_of(weights_sha256="abc")


def test_without_the_library_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        InputError, match=r"detectron2 is not installed; python -m pip install 'git\+https://github.com"
    ):
        settings_of().open(device="cpu")


def test_the_record_changes_with_the_weights_and_with_every_file_of_the_configuration(tmp_path: Path) -> None:
    for name, text in (("base.yaml", "VERSION: 2"), ("model.yaml", "_BASE_: base.yaml"), ("model.pth", "weights")):
        (tmp_path / name).write_text(text)
    settings = settings_of(config=str(tmp_path / "model.yaml"), weights=str(tmp_path / "model.pth"))
    hashes = [settings.record().sha256]
    for name in ("base.yaml", "model.yaml", "model.pth"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
        hashes.append(settings.record().sha256)
    assert len(set(hashes)) == 4
    assert settings.record().name == "model.pth"


@pytest.mark.parametrize(
    ("absent", "message"),
    [("model.pth", "proposals.weights: there is no file"), ("model.yaml", "proposals.config: there is no file")],
)
def test_a_file_that_is_absent_is_named(tmp_path: Path, absent: str, message: str) -> None:
    for name in {"model.yaml", "model.pth"} - {absent}:
        (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=message):
        settings_of(config=str(tmp_path / "model.yaml"), weights=str(tmp_path / "model.pth")).record()


# --- the real library -------------------------------------------------------------------------------------------------


def image() -> LoadedImage:
    numbers = torch.Generator().manual_seed(1)
    return LoadedImage("0", torch.randint(0, 256, (3, 48, 72), dtype=torch.uint8, generator=numbers))


def proposed(tree: dict[str, Any]) -> Proposals:
    (answer,) = Detectron2.model_validate(tree).open(device="cpu")([image()], min_score=0.0)
    assert isinstance(answer, Proposals)
    return answer


def real(function: Any) -> Any:
    for mark in REAL:
        function = mark(function)
    return function


@real
def test_masks_are_those_of_detectron2s_own_predictor(tmp_path: Path) -> None:
    from detectron2.config import get_cfg
    from detectron2.engine import DefaultPredictor

    tree = save_detectron2(tmp_path)
    config = get_cfg()
    config.merge_from_file(tree["config"])
    config.MODEL.WEIGHTS, config.MODEL.DEVICE = tree["weights"], "cpu"
    bgr_HW3 = image().rgb_3HW.permute(1, 2, 0).numpy()[:, :, ::-1]
    expected = DefaultPredictor(config)(bgr_HW3)["instances"]
    full = [mask for mask, score in zip(expected.pred_masks, expected.scores, strict=True) if mask.any() and score >= 0]
    found = proposed(tree)
    assert len(found) == len(full) > 1
    assert torch.equal(found.masks_NHW, torch.stack(full))
    assert found.labels[0] is not None


@real
@pytest.mark.parametrize(
    ("architecture", "output"), [("PanopticFPN", "panoptic_seg"), ("SemanticSegmentor", "sem_seg")]
)
def test_panoptic_and_semantic_models_give_masks_with_names(tmp_path: Path, architecture: str, output: str) -> None:
    tree = save_detectron2(tmp_path, base=PANOPTIC, architecture=architecture)
    auto, chosen = proposed(tree), proposed({**tree, "output": output})
    assert len(auto) > 1
    assert torch.equal(auto.masks_NHW, chosen.masks_NHW)
    assert not bool((auto.masks_NHW.sum(dim=0) > 1).any())  # such segments do not overlap
    assert None not in auto.labels
    assert set(auto.labels) <= set(auto.class_names)


@real
def test_a_detector_of_boxes_is_refused_at_the_first_image(tmp_path: Path) -> None:
    tree = save_detectron2(tmp_path, base="COCO-Detection/faster_rcnn_R_50_FPN_1x", masks=False)
    with pytest.raises(InputError, match="the model's output has no masks"):
        proposed(tree)


@real
def test_a_state_dict_as_safetensors_gives_the_same_and_needs_no_hash(tmp_path: Path) -> None:
    tree = save_detectron2(tmp_path)
    save_file(torch.load(tree["weights"])["model"], tmp_path / "model.safetensors")
    plain = {**tree, "weights": str(tmp_path / "model.safetensors"), "weights_sha256": None}
    assert torch.equal(proposed(tree).masks_NHW, proposed(plain).masks_NHW)


@real
def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    tree = save_detectron2(tmp_path)
    weights = torch.load(tree["weights"])
    del weights["model"]["roi_heads.mask_head.predictor.weight"]
    torch.save(weights, tree["weights"])
    with pytest.raises(
        InputError, match=r"lacks 1 of the model's weights, such as roi_heads\.mask_head\.predictor\.wei"
    ):
        proposed({**tree, "weights_sha256": weights_sha256(tree["weights"])})
    (tmp_path / "model.pth").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"proposals\.weights: .* cannot be loaded"):
        proposed({**tree, "weights_sha256": weights_sha256(tree["weights"])})


PROJECT = """
import torch
from detectron2.modeling import META_ARCH_REGISTRY


def add_config(config):
    config.MODEL.HALVES = False


@META_ARCH_REGISTRY.register()
class {name}(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.halves = config.MODEL.HALVES
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs):
        (one,) = inputs
        sem_seg = torch.zeros(2, one["height"], one["width"])
        sem_seg[1, :, : one["width"] // 2 if self.halves else None] = 1.0
        return [{{"sem_seg": sem_seg}}]
"""


@real
def test_a_project_registers_its_model_only_where_the_user_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_project_of_halves.py").write_text(PROJECT.format(name="Halves"))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "model.yaml").write_text("MODEL: {META_ARCHITECTURE: Halves, HALVES: true}\nVERSION: 2\n")
    save_file({"weight": torch.ones(1)}, tmp_path / "model.safetensors")
    tree = {"kind": "detectron2", "config": str(tmp_path / "model.yaml")}
    tree |= {"weights": str(tmp_path / "model.safetensors")}
    with pytest.raises(InputError, match=r"does not fit \(.*HALVES.*\); for a project's own keys name the function"):
        proposed(tree)
    with pytest.raises(InputError, match=r"import_modules: `a_project_of_halves:nothing` cannot be had"):
        proposed({**tree, "import_modules": ["a_project_of_halves:nothing"]})
    with pytest.raises(InputError, match=r"import_modules: `no_such_project` cannot be had .*PYTHONPATH"):
        proposed({**tree, "import_modules": ["no_such_project"]})
    found = proposed({**tree, "import_modules": ["a_project_of_halves:add_config"]})
    assert len(found) == 2
    assert bool(found.masks_NHW[0, :, :36].all())


@real
def test_a_model_that_nobody_registered_and_yaml_that_makes_objects_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1)}, tmp_path / "model.safetensors")
    tree = {"kind": "detectron2", "config": str(tmp_path / "model.yaml")}
    tree |= {"weights": str(tmp_path / "model.safetensors")}
    (tmp_path / "model.yaml").write_text("MODEL: {META_ARCHITECTURE: Nowhere}\nVERSION: 2\n")
    with pytest.raises(InputError, match=r"the model cannot be built \(.*Nowhere.*\); name the project"):
        proposed(tree)
    (tmp_path / "model.yaml").write_text(f"A: !!python/object/apply:os.mkdir ['{tmp_path / 'sprung'}']\n")
    with pytest.raises(InputError, match=r"proposals\.config: .* does not fit"):
        proposed(tree)
    assert not (tmp_path / "sprung").exists()
