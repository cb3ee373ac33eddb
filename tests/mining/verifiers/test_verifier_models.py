"""Each kind of verifier held against its library's own way from outputs to instances, and what is no such model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from torchvision.ops import clip_boxes_to_image

from maskmine.mining.models.clip import Clip
from maskmine.mining.models.embeddings import embed_regions
from maskmine.mining.models.known_licences import licence_of
from maskmine.mining.proposers.open_vocabulary import OpenMaskFormer
from maskmine.mining.proposers.proposals import LoadedImage
from maskmine.mining.proposers.text_head import class_probabilities
from maskmine.mining.verifiers import checks
from maskmine.mining.verifiers.checks import Found
from maskmine.mining.verifiers.kinds import AnyVerifier
from maskmine.mining.verifiers.mm_grounding_dino import as_prompt
from maskmine.mining.verifiers.second_clip import SecondClip
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask, mask_iou
from tests.support.models import WEIGHTS, network, save_tiny_clip
from tests.support.tiny.verifiers import KINDS, OF_TRANSFORMERS

NOUNS = ["cat", "dog", "red car"]
SIZE_PX = (48, 72)


@pytest.fixture
def saved(saved_verifiers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return saved_verifiers


@pytest.fixture
def copied(saved: dict[str, dict[str, Any]], tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """Settings of a copy of a model, which a test may break."""

    def copy(kind: str) -> dict[str, Any]:
        tree = saved[kind]
        if kind == "clip":
            folder = shutil.copytree(tree["clip"]["model"], tmp_path / kind)
            return {**tree, "clip": {**tree["clip"], "model": str(folder)}}
        return {**tree, "checkpoint": str(shutil.copytree(tree["checkpoint"], tmp_path / kind))}

    return copy


def settings_of(tree: dict[str, Any], **changes: Any) -> Any:
    return TypeAdapter(AnyVerifier).validate_python({**tree, **changes})


def folder_of(tree: dict[str, Any]) -> str:
    return str(tree["clip"]["model"] if tree["kind"] == "clip" else tree["checkpoint"])


def picture() -> torch.Tensor:
    numbers = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, *SIZE_PX), dtype=torch.uint8, generator=numbers)


def regions() -> list[Mask]:
    masks_NHW = np.zeros((3, *SIZE_PX), dtype=bool)
    masks_NHW[0, :, :36] = masks_NHW[1, 10:30, 20:70] = masks_NHW[2, 40:] = True
    return Mask.from_arrays(masks_NHW)


def found_by(settings: Any, monkeypatch: pytest.MonkeyPatch) -> list[Found]:
    """What a verifier finds for each of the nouns."""
    seen: list[Found] = []
    monkeypatch.setattr(checks, "_checked", lambda found: [seen.append(found), found][1])
    given = settings.open(device="cpu")(picture(), nouns=NOUNS, regions=regions(), chosen=[0, 1, 2])
    assert [check.presence for check in given] == [found.presence for found in seen]
    assert [check.agreement for check in given] == [
        found.agreement(region) for found, region in zip(seen, regions(), strict=True)
    ]
    return seen


# --- what the library says --------------------------------------------------------------------------------------------


def test_instances_of_sam3_are_those_of_transformers(
    saved: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = saved["sam3"]
    model: Any = transformers.Sam3Model.from_pretrained(tree["checkpoint"])
    model.eval()
    processor: Any = transformers.Sam3Processor.from_pretrained(tree["checkpoint"])
    seen = found_by(settings_of(tree, mask_threshold=0.4), monkeypatch)
    for noun, found in zip(NOUNS, seen, strict=True):
        with torch.inference_mode():
            outputs = model(**processor(images=picture(), text=noun, return_tensors="pt"))
        (every,) = processor.post_process_instance_segmentation(outputs, threshold=0.0, target_sizes=[SIZE_PX])
        (expected,) = processor.post_process_instance_segmentation(
            outputs, threshold=tree["threshold"], mask_threshold=0.4, target_sizes=[SIZE_PX]
        )
        assert found.presence == pytest.approx(every["scores"].max().item(), abs=1e-5)
        assert found.masks is not None
        assert len(found.masks) == len(expected["masks"]) > 0
        for mask, mask_HW in zip(found.masks, expected["masks"], strict=True):
            assert (mask.to_array() != mask_HW.numpy()).mean() < 1e-3


def test_sam3_is_loaded_from_the_form_in_which_it_is_published(
    copied: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The detector of a tracker for videos."""
    tree = copied("sam3")
    before = found_by(settings_of(tree), monkeypatch)
    folder = Path(tree["checkpoint"])
    detector = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "sam3_video", "detector_config": detector}))
    weights = {f"detector_model.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    weights["tracker_model.anything"] = torch.zeros(2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert found_by(settings_of(tree), monkeypatch) == before


def test_boxes_of_owlv2_are_those_of_transformers_within_the_picture(
    saved: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = saved["owlv2"]
    model: Any = transformers.Owlv2ForObjectDetection.from_pretrained(tree["checkpoint"])
    model.eval()
    processor: Any = transformers.Owlv2Processor.from_pretrained(tree["checkpoint"])
    for noun, found in zip(NOUNS, found_by(settings_of(tree, prompt="a {}"), monkeypatch), strict=True):
        inputs = processor(images=picture(), text=[[f"a {noun}"]], return_tensors="pt")
        with torch.inference_mode():
            outputs = model(**inputs)
        assert_boxes(found, outputs, processor, threshold=tree["threshold"])


def test_boxes_of_mm_grounding_dino_are_those_of_transformers_within_the_picture(
    saved: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = saved["mm_grounding_dino"]
    model: Any = transformers.MMGroundingDinoForObjectDetection.from_pretrained(tree["checkpoint"])
    model.eval()
    processor: Any = transformers.GroundingDinoProcessor.from_pretrained(tree["checkpoint"])
    for noun, found in zip(NOUNS, found_by(settings_of(tree), monkeypatch), strict=True):
        inputs = processor(images=picture(), text=[[noun]], return_tensors="pt")  # not filled up, and a text alone
        with torch.inference_mode():
            outputs = model(**inputs)
        assert_boxes(found, outputs, processor, threshold=tree["threshold"])


def assert_boxes(found: Found, outputs: Any, processor: Any, *, threshold: float) -> None:
    read = processor.post_process_grounded_object_detection
    (every,) = read(outputs, threshold=0.0, target_sizes=[SIZE_PX])
    (expected,) = read(outputs, threshold=threshold, target_sizes=[SIZE_PX])
    assert found.presence == pytest.approx(every["scores"].max().item(), abs=1e-5)
    boxes = torch.tensor(found.boxes)
    assert len(boxes) > 0
    assert torch.allclose(boxes, clip_boxes_to_image(expected["boxes"], SIZE_PX), atol=1e-2)


def test_a_noun_is_one_phrase_to_mm_grounding_dino() -> None:
    assert as_prompt("St. Bernard") == "st bernard."
    assert as_prompt(" what? ") == "what."


def test_a_second_clip_chooses_among_the_pictures_regions(
    saved: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(saved["clip"])
    assert isinstance(settings, SecondClip)
    masks_NHW = torch.from_numpy(np.stack([mask.to_array() for mask in regions()]).astype(bool))
    tower = settings.clip.open_image(device="cpu")
    (regions_ND,) = embed_regions([picture()], [masks_NHW], tower=tower, crop=settings.crop)
    cosine_NK = regions_ND.astype(np.float32) @ settings.clip.open_text(device="cpu").embed(NOUNS).numpy().T
    for found, cosine_N in zip(found_by(settings, monkeypatch), cosine_NK.T, strict=True):
        assert found.masks == (regions()[cosine_N.argmax()],)
        assert found.presence == pytest.approx(max(0.0, cosine_N.max()), abs=1e-5)


def test_the_presence_of_a_clip_with_a_bias_is_a_probability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip: dict[str, Any] = {
        "model": str(save_tiny_clip(tmp_path, seed=3, init_logit_scale=2.0, init_logit_bias=-1.5)),
        "batch_size": 4,
    }
    plain = found_by(settings_of({"kind": "clip", "clip": clip, "templates": "raw"}), monkeypatch)
    tower = Clip(**clip).open_text(device="cpu")
    assert tower.scale == pytest.approx(np.exp(2.0), rel=1e-5)
    assert tower.bias == -1.5
    monkeypatch.setattr("maskmine.mining.verifiers.second_clip._presence", lambda cosine, _: cosine)
    for found, raw in zip(
        plain, found_by(settings_of({"kind": "clip", "clip": clip, "templates": "raw"}), monkeypatch), strict=True
    ):
        assert found.presence == pytest.approx(1 / (1 + np.exp(1.5 - np.exp(2.0) * raw.presence)), abs=1e-5)


@pytest.mark.parametrize("noun", ["zebra", "Cat"])
def test_the_score_of_an_open_maskformer_is_the_share_of_the_noun_among_the_classes_of_the_training(
    saved: dict[str, dict[str, Any]], noun: str
) -> None:
    tree = saved["open_maskformer"]
    proposer = OpenMaskFormer(kind="open_maskformer", checkpoint=tree["checkpoint"])
    kept: Any
    (kept,) = proposer.open(device="cpu")([LoadedImage("", picture())], min_score=0.0)
    space, (noun_1D,) = proposer.text_space(), Clip(**tree["clip"]).open_text(device="cpu").embed([noun])[None]
    rivals_KD = space.classes_KD[1:] if noun == "Cat" else space.classes_KD
    shares_NK = class_probabilities(
        kept.queries_ND, torch.cat([normalize(noun_1D), rivals_KD]), space.no_object_D, logit_scale=20.0
    )
    inside_Nhw = kept.soft_Nhw > 0.5
    score_N = shares_NK[:, 0] * torch.stack(
        [soft_hw[in_hw].mean() for soft_hw, in_hw in zip(kept.soft_Nhw, inside_Nhw, strict=True)]
    )
    (check,) = settings_of(tree).open(device="cpu")(picture(), nouns=[noun], regions=regions(), chosen=[1])
    assert check.presence == pytest.approx(score_N.max().item(), abs=1e-5)
    instances = Mask.from_arrays(kept.masks_NHW[score_N > tree["threshold"]].numpy())
    assert check.agreement == pytest.approx(mask_iou(instances, regions()[1:2]).max(initial=0))


# --- what is no such model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_another_kind_is_answered_with_that_kind(saved: dict[str, dict[str, Any]], kind: str) -> None:
    for other in set(KINDS) - {kind}:
        folder = folder_of(saved[other])
        tree = dict(saved[kind])
        if kind == "clip":
            tree["clip"] = {**tree["clip"], "model": folder}
        else:
            tree["checkpoint"] = folder
        with pytest.raises(
            InputError, match=rf"^verifier\.[a-z.]+: `.*` is none for `kind: {kind}`; use `kind: {other}` "
        ):
            settings_of(tree).open(device="cpu")


def test_a_model_that_checks_nothing_is_refused(saved: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    network("maskformer").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    for kind, known in (("sam3", "sam3 or sam3_video"), ("owlv2", "owlv2")):
        with pytest.raises(InputError, match=rf"verifier.checkpoint: `.*` is a maskformer model; give a {known} one"):
            settings_of(saved[kind], checkpoint=str(tmp_path)).open(device="cpu")


@pytest.mark.parametrize("kind", OF_TRANSFORMERS)
def test_a_model_without_its_text_side_is_refused(copied: Callable[[str], dict[str, Any]], kind: str) -> None:
    tree = copied(kind)
    file = Path(tree["checkpoint"], "model.safetensors")
    kept = {name: value for name, value in load_file(file).items() if "text_" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"verifier\.checkpoint: `.*` lacks \d+ weights such as .*; save the whole"):
        settings_of(tree).open(device="cpu")


@pytest.mark.parametrize("kind", ["clip", "open_maskformer"])
def test_a_clip_without_its_text_side_is_refused(
    copied: Callable[[str], dict[str, Any]], saved: dict[str, dict[str, Any]], kind: str
) -> None:
    clip = copied("clip")["clip"]
    tree = {**saved[kind], "clip": clip}
    file = Path(clip["model"], WEIGHTS)
    save_file({name: value for name, value in load_file(file).items() if name.startswith("visual")}, file)
    with pytest.raises(InputError, match=r"clip: the weights `.*` are not those of"):
        settings_of(tree).open(device="cpu")


@pytest.mark.parametrize("kind", OF_TRANSFORMERS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "cannot be loaded, save it again"),
        ("{}", "cannot be loaded, save it again"),
        (None, "cannot be loaded, save it again|knows no words; save the processor again"),
        ("no words", "knows no words; save the processor again"),
    ],
)
def test_an_emptied_tokenizer_is_refused(
    copied: Callable[[str], dict[str, Any]], kind: str, content: str | None, words: str
) -> None:
    tree = copied(kind)
    file = Path(tree["checkpoint"], "tokenizer.json")
    if content is None:
        file.unlink()
    elif content == "no words":
        described = json.loads(file.read_text())
        known = described["model"]["vocab"]
        described["model"]["vocab"] = {word: number for word, number in known.items() if word[0] in "[<"}
        file.write_text(json.dumps(described))
    else:
        file.write_text(content)
    with pytest.raises(InputError, match=rf"verifier\.checkpoint: .*({words})"):
        settings_of(tree).open(device="cpu")


def test_a_tokenizer_of_a_larger_model_is_refused(copied: Callable[[str], dict[str, Any]]) -> None:
    tree = copied("mm_grounding_dino")
    file = Path(tree["checkpoint"], "tokenizer.json")
    described = json.loads(file.read_text())
    described["model"]["vocab"]["cat"] = 5000
    file.write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"is of another model, which knows more than 1030 words; save the processor"):
        settings_of(tree).open(device="cpu")


@pytest.mark.parametrize("kind", OF_TRANSFORMERS)
def test_code_that_a_tokenizer_brings_is_not_run(
    copied: Callable[[str], dict[str, Any]], kind: str, tmp_path: Path
) -> None:
    tree = copied(kind)
    folder, marker = Path(tree["checkpoint"]), tmp_path / "ran"
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Evil: ...\n")
    described = json.loads((folder / "tokenizer_config.json").read_text())
    described |= {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    with suppress(InputError):
        settings_of(tree).open(device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize("prompt", ["a photo", "{} and {}"])
def test_a_prompt_has_one_place_for_the_noun(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"needs exactly one \{\} for the noun"):
        settings_of({"kind": "owlv2", "checkpoint": "x", "prompt": prompt})


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OF_TRANSFORMERS)
def test_what_is_on_this_machine_opens_without_a_network(
    saved: dict[str, dict[str, Any]], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--google--tiny"
    shutil.copytree(saved[kind]["checkpoint"], cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    settings = settings_of(saved[kind], checkpoint="google/tiny")
    settings.fetch()
    assert settings.settled("cpu").revision == commit
    assert len(settings.record().sha256) == 64
    assert settings.contents()["checkpoint"]["sha256"]
    (check,) = settings.open(device="cpu")(picture(), nouns=["cat"], regions=regions(), chosen=[0])
    (of_folder,) = settings_of(saved[kind]).open(device="cpu")(picture(), nouns=["cat"], regions=regions(), chosen=[0])
    assert check == of_folder


def test_licences_of_published_models() -> None:
    assert licence_of("facebook/sam3") == "SAM License"
    assert licence_of("facebook/sam-vit-base") == "Apache-2.0"
    assert licence_of("google/owlv2-base-patch16-ensemble") == "Apache-2.0"
    assert licence_of("openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det") == "Apache-2.0"
