"""Metrics where numbers fail, or nothing is to be told apart: a refusal in one line, never a good figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskmine.mining.models.clip import Clip, WholeClip, embed_in_batches
from maskmine.mining.models.mask_prompts import new_prompts
from maskmine.mining.vocabulary import equal_texts
from maskmine.schemas.errors import InputError
from maskmine.tuning.clip.towers import Tuned, bare_tower, tuned_tower
from maskmine.tuning.clip.weights_files import save_clip
from maskmine.tuning.evaluation.region_accuracy import MASKED, RegionEvaluation, evaluate_regions, ranks_of
from maskmine.tuning.evaluation.report import render_results
from tests.support.models import save_tiny_clip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def opened(folder: Path) -> WholeClip:
    return Clip(model=str(folder)).open_whole()


def crops(folder: Path, *names: str) -> Path:
    """A folder for each class with one region of its own colour."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        shade = 250 - 60 * number
        Image.fromarray(np.full((20, 20, 3), (shade, 10, 90), np.uint8)).save(folder / name / "1.png")
    return folder


def evaluation(clip: Path, folder: Path, **changes: Any) -> RegionEvaluation:
    tree = {"clip": {"model": str(clip), "batch_size": 4}, "device": "cpu", "templates": "raw"}
    return RegionEvaluation.model_validate(tree | {"regions": {"kind": "crops", "folder": str(folder)}} | changes)


@pytest.mark.parametrize(
    ("similarity_C", "ranks"),
    [
        ([0.3, 0.2, 0.1], [0, 1, 2]),
        ([0.2, 0.2, 0.2], [0, 1, 2]),
        ([0.1, 0.2, 0.2], [2, 0, 1]),
        ([0.2, 0.1, 0.2], [0, 2, 1]),
    ],
)
def test_ranks_are_places_in_a_stable_sort(similarity_C: list[float], ranks: list[int]) -> None:
    similarity_RC = torch.tensor(similarity_C).expand(3, 3)
    assert ranks_of(similarity_RC, torch.arange(3)).tolist() == ranks


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_similarities_that_are_not_finite_have_no_rank(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        ranks_of(torch.tensor([[0.1, bad]]), torch.tensor([0]))


def test_a_clip_that_diverged_has_no_accuracy(clip: Path, tmp_path: Path) -> None:
    broken = opened(clip)
    with torch.no_grad():
        broken.model.visual.proj.fill_(float("nan"))
    save_clip(tmp_path / "tuned", broken)
    settings = evaluation(
        clip, crops(tmp_path / "crops", "disc", "bar"), tuned={"mine": {"clip": {"model": str(tmp_path / "tuned")}}}
    )
    with pytest.raises(InputError, match=r"tuned\.mine: the embeddings of 2 of 2 regions are not finite") as error:
        evaluate_regions(settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("features", [[1.0, float("nan")], [1.0, float("inf")], [1e30, 1e30], [0.0, 0.0]])
def test_an_embedding_without_a_direction_is_refused_wherever_clip_runs(features: list[float]) -> None:
    features_RE = torch.tensor([[1.0, 2.0], features])
    with pytest.raises(InputError, match=r"clip: the embeddings of 1 of 2 regions"):
        bare_tower(lambda pixels: features_RE)(torch.zeros(2, 3, 4, 4), None)
    with pytest.raises(InputError, match=r"clip\.precision: CLIP's embeddings of 1 of 2 inputs"):
        embed_in_batches(torch.zeros(2, 1), forward=lambda _: features_RE, batch_size=2, dim=2)


@pytest.mark.parametrize(
    "names", [("fire_truck", "fire truck"), ("Bar", "bar"), ("bar", "bar "), ("café", "cafe\u0301")]
)
def test_classes_of_one_text_are_refused_by_name(clip: Path, tmp_path: Path, names: tuple[str, str]) -> None:
    lines = [name.replace("_", " ") for name in names]
    (tmp_path / "names.txt").write_text("disc\n" + "\n".join(lines) + "\n", encoding="utf-8")
    folder = crops(tmp_path / "crops", "a", "b", "c")
    regions = {"kind": "crops", "folder": str(folder), "names": str(tmp_path / "names.txt")}
    with pytest.raises(InputError, match=r"regions: classes `.*` \(2\) and `.*` \(3\) of 3 are one text"):
        evaluate_regions(evaluation(clip, folder, regions=regions))


def test_names_of_one_vector_are_one_text() -> None:
    classes_VD = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert equal_texts(["a", "b", "c"], classes_VD) == (0, 2)
    assert equal_texts(["a", "b"], classes_VD[:2]) is None


def test_one_class_alone_is_refused(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="every guess is right"):
        evaluate_regions(evaluation(clip, crops(tmp_path, "disc")))


def test_what_the_figures_leave_out_stands_below_them(clip: Path, tmp_path: Path) -> None:
    folder = crops(tmp_path, "disc", "bar")
    (folder / "square").mkdir()
    found = evaluate_regions(evaluation(clip, folder))
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as capture:
        console.print(render_results(found))
    assert found.masked[MASKED].classes == 2
    assert "by class: the mean of 2 classes; 1 have no region here" in capture.get()
    assert "top-5: no figure" in capture.get()


# ------------------------------------------------------------------------------------- which tower is measured


def ovseg_file(folder: Path, plain: WholeClip, prompts: dict[str, torch.Tensor]) -> Path:
    torch.save({**plain.model.state_dict(), **prompts}, folder / "ovseg.pth")
    return folder / "ovseg.pth"


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"visual.mask_embedding": torch.zeros(2, 9, 64)}, "for 9 patches of width 64"),
        ({"visual.mask_embedding": torch.zeros(16, 64)}, r"has shape \(16, 64\)"),
        ({"visual.mask_embedding": torch.zeros(99, 16, 64)}, r"prompts\.depth: 99"),
        ({"visual.mask_embedding": torch.zeros(2, 16, 64), "ema.mask_embedding": torch.ones(2, 16, 64)}, "holds 2 of"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused_not_left_out(
    clip: Path, tmp_path: Path, prompts: dict[str, torch.Tensor], message: str
) -> None:
    plain = opened(clip)
    tensors = {name: value for name, value in prompts.items() if name.startswith("visual")}
    others = {name: value for name, value in prompts.items() if name not in tensors}
    path = tmp_path / "ovseg.pth"
    whole = {f"clip.{name}": value for name, value in {**plain.model.state_dict(), **tensors}.items()}
    torch.save(whole | others, path)
    with pytest.raises(InputError, match=message):
        tuned_tower(Tuned(ovseg=str(path)), plain, device=CPU, place="tuned")


def test_a_file_of_ovseg_is_measured_with_its_prompts_or_without_any(clip: Path, tmp_path: Path) -> None:
    plain = opened(clip)
    pixels_R3SS, masks_RSS = torch.rand(1, 3, 32, 32), torch.zeros(1, 32, 32)
    masks_RSS[:, :9] = 1
    seen_RE = bare_tower(plain.model.visual)(pixels_R3SS, None)
    without = tuned_tower(Tuned(ovseg=str(ovseg_file(tmp_path, plain, {}))), plain, device=CPU, place="tuned")
    assert torch.equal(without(pixels_R3SS, masks_RSS), seen_RE)
    prompts = {"visual.mask_embedding": new_prompts(plain.model.visual, depth=2, std=2.0, seed=0)}
    prompted = tuned_tower(Tuned(ovseg=str(ovseg_file(tmp_path, plain, prompts))), plain, device=CPU, place="tuned")
    assert not torch.allclose(prompted(pixels_R3SS, masks_RSS), seen_RE, atol=0.01)


@pytest.mark.parametrize("how", ["clip", "ovseg"])
def test_an_unrelated_clip_of_the_same_sizes_is_refused(clip: Path, tmp_path: Path, how: str) -> None:
    plain, other = opened(clip), opened(save_tiny_clip(tmp_path / "other", seed=7))
    save_clip(tmp_path / "saved", other)
    tuned = Tuned(clip=Clip(model=str(tmp_path / "saved")))
    if how == "ovseg":
        tuned = Tuned(ovseg=str(ovseg_file(tmp_path, other, {})))
    with pytest.raises(InputError, match=r"tuned\.x: its text side \(\w{12}\) is not that of the plain CLIP"):
        tuned_tower(tuned, plain, device=CPU, place="tuned.x")


def test_half_precision_and_a_trained_scale_are_the_same_text_side(clip: Path, tmp_path: Path) -> None:
    plain, tuned = opened(clip), opened(clip)
    with torch.no_grad():
        tuned.model.half().float().logit_scale.add_(1.0)
        tuned.model.visual.proj.mul_(2.0)
    save_clip(tmp_path / "tuned", tuned)
    tuned_tower(Tuned(clip=Clip(model=str(tmp_path / "tuned"))), plain, device=CPU, place="tuned")
