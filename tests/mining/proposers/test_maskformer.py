"""MaskFormer and Mask2Former, tiny and with random weights, by the path that real checkpoints take."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmine.mining.models import pretrained
from maskmine.mining.proposers import maskformer, queries
from maskmine.mining.proposers.maskformer import MaskFormer
from maskmine.mining.proposers.proposals import LoadedImage, Proposals
from maskmine.mining.proposers.queries import prepared_pixels, read_queries
from maskmine.mining.storage.content_hash import weights_sha256
from maskmine.schemas.errors import InputError
from tests.support.models import KINDS, SIZE, network


@pytest.fixture
def copied(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints["maskformer"], tmp_path / "copied"))


def settings_of(checkpoint: Path | str, **changes: Any) -> MaskFormer:
    return MaskFormer(kind="maskformer", checkpoint=str(checkpoint), **changes)


def images(count: int, height_px: int = 48, width_px: int = 72) -> list[LoadedImage]:
    numbers = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 3, height_px, width_px), dtype=torch.uint8, generator=numbers)
    return [LoadedImage(str(i), pixels[i]) for i in range(count)]


def proposed(settings_: MaskFormer, shown: list[LoadedImage], *, min_score: float = 0.0) -> list[Proposals]:
    answers = list(settings_.open(device="cpu")(shown, min_score=min_score))
    assert all(isinstance(answer, Proposals) for answer in answers)
    return answers  # type: ignore[return-value]


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- from logits to proposals -----------------------------------------------------------------------------------------


def read(classes: list[list[float]], masks: list[list[list[float]]], **changes: Any) -> Proposals:
    options = {"labels": ["cat", "sky"], "size_px": (2, 2), "mask_threshold": 0.5, "max_proposals": 9, "min_score": 0.0}
    return read_queries(torch.tensor(classes), torch.tensor(masks), **options | changes)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_the_score_is_that_it_is_something_times_how_sure_its_pixels_are() -> None:
    classes = [[math.log(0.1), math.log(0.5), math.log(0.4)]]  # 0.4 for "no object"
    masks = [[[logit(0.9), logit(0.7)], [logit(0.2), logit(0.4)]]]
    proposals = read(classes, masks)
    assert proposals.scores_N.tolist() == pytest.approx([0.6 * 0.8])
    assert proposals.masks_NHW.tolist() == [[[True, True], [False, False]]]
    assert proposals.labels == ("sky",)


def test_proposals_come_best_first_and_only_the_best_are_made() -> None:
    classes = [[0.0, 0.0, 2.0], [0.0, 3.0, 0.0], [4.0, 0.0, 0.0]]
    masks = [[[5.0, 5.0], [5.0, 5.0]]] * 3
    assert read(classes, masks).labels == ("cat", "sky", "cat")
    scores = read(classes, masks).scores_N.tolist()
    assert scores == sorted(scores, reverse=True)
    assert read(classes, masks, max_proposals=1).scores_N.tolist() == scores[:1]
    assert read(classes, masks, min_score=scores[1]).scores_N.tolist() == scores[:2]


def test_a_query_without_a_pixel_is_no_proposal() -> None:
    proposals = read([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [[[-1.0, -1.0], [-1.0, 0.0]], [[1.0, -1.0], [-1.0, -1.0]]])
    assert len(proposals) == 1
    assert read([[3.0, 0.0, 0.0]], [[[-1.0, -1.0], [-1.0, -1.0]]]).masks_NHW.shape == (0, 2, 2)


def test_the_threshold_decides_which_pixels_belong() -> None:
    masks = [[[logit(0.3), logit(0.45)], [logit(0.6), logit(0.2)]]]
    assert read([[1.0, 0.0, 0.0]], masks, mask_threshold=0.4).masks_NHW.tolist() == [[[False, True], [True, False]]]


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 5))
def test_a_half_of_the_models_grid_is_the_half_of_the_picture(height_px: int, width_px: int, chunk: int) -> None:
    masks = torch.full((3, 4, 4), -30.0)
    masks[0, :, :2] = masks[1, :2, :] = masks[2] = 30.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queries, "_CHUNK_VALUES", chunk * height_px * width_px)
        proposals = read([[5.0, 0.0, 0.0]] * 3, masks.tolist(), size_px=(height_px, width_px))
    columns, rows = torch.arange(width_px) + 0.5, torch.arange(height_px) + 0.5
    left = (columns < width_px / 2).expand(height_px, -1)
    upper = (rows < height_px / 2)[:, None].expand(-1, width_px)
    expected = [half for half in (left, upper, torch.ones_like(left)) if half.any()]  # of one line there is no half
    assert torch.equal(proposals.masks_NHW, torch.stack(expected))


# --- a checkpoint -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_transformers_made_up_is_none(checkpoints: dict[str, Path], kind: str) -> None:
    (proposals,) = proposed(settings_of(checkpoints[kind]), images(1))
    assert set(proposals.labels) <= {"cat", "sky", None}
    assert proposals.class_names == ("cat", "sky", None)  # its LABEL_2 says nothing


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_batch_of_one_size_neighbours_change_rounding_only(checkpoints: dict[str, Path], kind: str) -> None:
    predict, _ = maskformer._load(settings_of(checkpoints[kind]), device=torch.device("cpu"))
    pixels = [image.rgb_3HW for image in images(3)]
    for together_B, alone in zip(predict(pixels), predict(pixels[:1]), strict=True):
        assert torch.allclose(together_B[0], alone[0], atol=1e-4)


def test_what_is_shown_is_found_by_the_whole_network(checkpoints: dict[str, Path]) -> None:
    """The queries of the network itself, through transformers' own preparation, are those that are read."""
    folder, (image,) = checkpoints["maskformer"], images(1)
    model = transformers.MaskFormerForInstanceSegmentation.from_pretrained(folder)
    processor = transformers.MaskFormerImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        outputs = model(**processor(images=[image.rgb_3HW], return_tensors="pt"))
    expected = read_queries(
        outputs.class_queries_logits[0],
        outputs.masks_queries_logits[0],
        labels=["cat", "sky", None],
        size_px=(48, 72),
        mask_threshold=0.5,
        max_proposals=100,
        min_score=0.0,
    )
    (proposals,) = proposed(settings_of(folder), [image])
    assert torch.equal(proposals.masks_NHW, expected.masks_NHW)
    assert torch.equal(proposals.scores_N, expected.scores_N)
    assert proposals.labels == expected.labels


@settings(max_examples=25)
@given(st.integers(10, 300), st.integers(10, 300))
def test_images_are_prepared_as_the_checkpoint_says(height_px: int, width_px: int) -> None:
    processor = transformers.MaskFormerImageProcessor(size=SIZE)
    pixels = [image.rgb_3HW for image in images(2, height_px, width_px)]
    expected = processor(images=pixels, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    if min(expected.shape[2:]) > 0:
        assert torch.equal(prepared_pixels(pixels, processor=processor, short_side_px=None), expected)


def test_a_short_side_of_ones_own_keeps_the_shape() -> None:
    pixels = [image.rgb_3HW for image in images(1, 100, 200)]
    for processor in (
        transformers.MaskFormerImageProcessor(size=SIZE),
        transformers.Mask2FormerImageProcessor(size={"height": 64, "width": 64}),
    ):
        prepared = prepared_pixels(pixels, processor=processor, short_side_px=96)
        assert prepared.shape == (1, 3, 96, 160)  # 200 / 100 is more than 5 / 3: the long side decides


def test_an_input_of_one_fixed_size_is_kept() -> None:
    processor = transformers.Mask2FormerImageProcessor(size={"height": 64, "width": 96})
    pixels = [image.rgb_3HW for image in images(1, 100, 200)]
    assert prepared_pixels(pixels, processor=processor, short_side_px=None).shape == (1, 3, 64, 96)


def test_images_are_never_padded(checkpoints: dict[str, Path], copied: Path) -> None:
    edit_json(copied / "preprocessor_config.json", pad_size={"height": 256, "width": 256})
    (expected,), (proposals,) = (proposed(settings_of(f), images(1)) for f in (checkpoints["maskformer"], copied))
    assert torch.equal(proposals.masks_NHW, expected.masks_NHW)


def test_a_checkpoint_of_the_first_release_is_prepared_alike(checkpoints: dict[str, Path], copied: Path) -> None:
    old = {"feature_extractor_type": "MaskFormerFeatureExtractor", "size": 64, "max_size": 128, "size_divisibility": 32}
    (copied / "preprocessor_config.json").write_text(json.dumps(old))
    (expected,), (proposals,) = (proposed(settings_of(f), images(1)) for f in (checkpoints["maskformer"], copied))
    assert torch.equal(proposals.masks_NHW, expected.masks_NHW)


def test_auxiliary_losses_of_training_do_not_matter(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for kind, trained_with in (("maskformer", True), ("mask2former", False)):
        folder = Path(shutil.copytree(checkpoints[kind], tmp_path / kind))
        edit_json(folder / "config.json", use_auxiliary_loss=trained_with)
        (expected,), (proposals,) = (proposed(settings_of(f), images(1)) for f in (checkpoints[kind], folder))
        assert torch.equal(proposals.masks_NHW, expected.masks_NHW)


def test_lower_precision_gives_nearly_the_same_scores(checkpoints: dict[str, Path]) -> None:
    (exact,), (rounded,) = (
        proposed(settings_of(checkpoints["maskformer"], precision=p), images(1)) for p in ("float32", "bfloat16")
    )
    assert rounded.scores_N.dtype == torch.float32
    assert torch.allclose(exact.scores_N, rounded.scores_N, atol=0.05)
    assert not torch.equal(exact.scores_N, rounded.scores_N)


def test_pickled_weights_are_read_and_never_run(copied: Path, tmp_path: Path) -> None:
    expected = proposed(settings_of(copied), images(1))[0]
    (copied / "model.safetensors").unlink()
    torch.save(network("maskformer").state_dict(), copied / "pytorch_model.bin")
    assert torch.equal(proposed(settings_of(copied), images(1))[0].masks_NHW, expected.masks_NHW)

    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"weight": Trap()}, copied / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded"):
        settings_of(copied).open(device="cpu")
    assert not (tmp_path / "sprung").exists()


def test_answers_that_are_no_numbers_stop_the_run(copied: Path) -> None:
    broken = network("maskformer")
    torch.nn.init.constant_(broken.class_predictor.bias, float("nan"))
    broken.save_pretrained(copied)
    with pytest.raises(InputError, match=r"proposals\.precision: .* not finite"):
        proposed(settings_of(copied), images(1))


def test_progress_bars_are_left_as_they_were(checkpoints: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    settings_of(checkpoints["maskformer"]).open(device="cpu")
    assert "Loading weights" not in capfd.readouterr().err
    assert transformers.utils.logging.is_progress_bar_enabled()


# --- faults of the settings -------------------------------------------------------------------------------------------


def remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def lose_a_weight(folder: Path) -> None:
    model = network("maskformer")
    weights = {key: value for key, value in model.state_dict().items() if key != "class_predictor.weight"}
    model.save_pretrained(folder, state_dict=weights)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "holds no config.json; give a folder saved with `save_pretrained`"),
        (remove("preprocessor_config.json"), "holds no preprocessor_config.json"),
        (remove("model.safetensors"), "holds no weights; add them as model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json of .* is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is a None model; give a maskformer or mask2former"),
        (lambda folder: edit_json(folder / "config.json", model_type="bert"), "is a bert model"),
        (lambda folder: edit_json(folder / "config.json", mask_feature_size="x"), "cannot be loaded"),
        (lambda folder: edit_json(folder / "config.json", mask_feature_size=64), "cannot be loaded"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x08" + b"\0" * 40), "cannot be loaded"),
        (lose_a_weight, "lacks 1 weights such as class_predictor.weight; save the whole model"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused_in_one_line(copied: Path, damage: Any, message: str) -> None:
    damage(copied)
    with pytest.raises(InputError, match=message) as caught:
        settings_of(copied).open(device="cpu")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("proposals.checkpoint: ")


def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(InputError, match="there is no folder"):
        settings_of(tmp_path / "absent").open(device="cpu")
    with pytest.raises(InputError, match="there is no folder"):
        settings_of("./absent").record()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="is a file; give a folder that transformers saved"):
        settings_of(tmp_path / "model.safetensors").record()


# --- the hub ----------------------------------------------------------------------------------------------------------


def fake_hub(monkeypatch: pytest.MonkeyPatch, answer: Path | Exception) -> list[tuple[list[str], bool]]:
    """Answers every download with `answer`; returns what was asked for, and whether only on this machine."""
    asked: list[tuple[list[str], bool]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool) -> str:
        assert (name, revision) == ("facebook/maskformer-test", "v1")
        asked.append((allow_patterns, local_files_only))
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def on_the_hub() -> MaskFormer:
    return settings_of("facebook/maskformer-test", revision="v1")


def test_a_name_on_the_hub_is_fetched_and_then_loaded_as_a_folder(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fake_hub(monkeypatch, checkpoints["maskformer"])
    assert len(list(on_the_hub().open(device="cpu")(images(1), min_score=0.0))) == 1
    assert asked == [(["*.json"], False), (["*.json", "model.safetensors", "model-*.safetensors"], False)]


def test_pickled_weights_are_asked_for_only_where_there_are_no_others(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "model.safetensors").unlink()
    asked = fake_hub(monkeypatch, copied)
    with pytest.raises(InputError, match="holds no weights"):
        on_the_hub().open(device="cpu")
    assert [patterns[1] for patterns, _ in asked[1:]] == ["model.safetensors", "pytorch_model.bin"]


def test_what_the_hub_has_under_a_name_is_looked_at_before_its_weights_are_fetched(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_json(copied / "config.json", model_type="sam")
    asked = fake_hub(monkeypatch, copied)
    with pytest.raises(InputError, match="is a sam model; use `kind: sam` for it, or give a maskformer or mask2form"):
        on_the_hub().open(device="cpu")
    assert asked == [(["*.json"], False)]


def test_a_hub_that_does_not_answer_is_one_line_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, huggingface_hub.errors.LocalEntryNotFoundError("no\nconnection"))
    monkeypatch.setattr(pretrained, "require_hub", lambda *_: None)  # it takes connections and gives nothing
    with pytest.raises(InputError, match=r"the hub does not give it \(no connection\); check the name, or give a fol"):
        on_the_hub().open(device="cpu")


def test_the_record_names_weights_and_licence(
    checkpoints: dict[str, Path], copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints["maskformer"]
    record = settings_of(folder, licence="Apache-2.0").record()
    assert (record.role, record.name, record.licence) == ("proposals", folder.name, "Apache-2.0")
    assert record.sha256 == weights_sha256(folder)
    assert settings_of(folder).record().licence == "unknown"

    (copied / "notes.json").write_text("{}")  # whatever else lies in the hub's folder does not count
    asked = fake_hub(monkeypatch, copied)
    record = on_the_hub().record()
    assert (record.name, record.licence) == ("facebook/maskformer-test@v1", "CC-BY-NC-4.0")
    assert record.sha256 == weights_sha256(folder / "model.safetensors")
    assert asked[0][1] is True

    fake_hub(monkeypatch, huggingface_hub.errors.LocalEntryNotFoundError("not here"))
    assert on_the_hub().record().sha256 is None
