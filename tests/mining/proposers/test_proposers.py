"""What every proposer promises, whatever its library: one contract for all, on tiny models with random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from pydantic import TypeAdapter

from maskmine.mining.images.crops import tight_boxes
from maskmine.mining.proposers.proposals import Keep, LoadedImage, Proposals, Proposer, keep_proposals
from maskmine.mining.regions import AnyProposals, Regions
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import ImageRow, Rejection
from tests.support.models import SIZE, network
from tests.support.tiny import proposers as tiny_proposers

SIZES = ((48, 72), (200, 31), (1, 1), (1, 3000), (700, 2))
IDS = ("a", "b", "c")
WITH_DETECTRON2 = [
    pytest.mark.skipif(not tiny_proposers.DETECTRON2, reason=tiny_proposers.WITHOUT_DETECTRON2),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]
KINDS = [
    "maskformer",
    "mask2former",
    "open_maskformer",
    "eomt",
    "eomt_dinov3",
    "rf_detr",
    "sam",
    "sam2",
    "sam3",
    pytest.param("detectron2", marks=WITH_DETECTRON2),
    "ground_truth",
]
EVERYTHING = {"points_per_side": 3, "min_predicted_iou": 0.0, "min_stability": 0.0, "max_box_iou": 1.0}


def save(kind: str, folder: Path) -> dict[str, Any]:
    """A model of this kind; returns the settings that name it."""
    if kind in ("maskformer", "mask2former", "open_maskformer"):
        body = network(kind.removeprefix("open_"))
        body.save_pretrained(folder)
        processors = {"mask2former": transformers.Mask2FormerImageProcessor}
        processors.get(kind, transformers.MaskFormerImageProcessor)(size=SIZE).save_pretrained(folder)
        if kind == "open_maskformer":
            tiny_proposers.save_open_maskformer(folder, body=body)
        return {"kind": kind.replace("mask2former", "maskformer"), "checkpoint": str(folder)}
    if kind.startswith("eomt"):
        return {"kind": "eomt", "checkpoint": str(tiny_proposers.save_eomt(folder, kind=kind))}
    if kind == "rf_detr":
        return {"kind": "rf_detr", "checkpoint": str(tiny_proposers.save_rf_detr(folder))}
    if kind.startswith("sam"):
        saved = {"sam": tiny_proposers.save_sam, "sam2": tiny_proposers.save_sam2, "sam3": tiny_proposers.save_sam3}
        return {"kind": "sam", "checkpoint": str(saved[kind](folder)), **EVERYTHING}
    if kind == "detectron2":
        return tiny_proposers.save_detectron2(folder)
    sizes = {
        f"{image_id} {height_px}×{width_px}": (height_px, width_px) for image_id in IDS for height_px, width_px in SIZES
    }
    return {"kind": "ground_truth", "annotations": str(tiny_proposers.save_annotations(folder / "a.json", sizes=sizes))}


@pytest.fixture(scope="module")
def settings_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    saved: dict[str, Any] = {}

    def settings(kind: str) -> Any:
        if kind not in saved:
            tree = {**save(kind, tmp_path_factory.mktemp(kind)), "licence": "Apache-2.0"}
            saved[kind] = TypeAdapter(AnyProposals).validate_python(tree)
        return saved[kind]

    return settings


@pytest.fixture(scope="module")
def opened(settings_of: Callable[[str], Any]) -> Callable[[str], Proposer]:
    loaded: dict[str, Proposer] = {}

    def open_one(kind: str) -> Proposer:
        if kind not in loaded:
            loaded[kind] = settings_of(kind).open(device="cpu")
        return loaded[kind]

    return open_one


def images(height_px: int = 48, width_px: int = 72) -> list[LoadedImage]:
    numbers = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (len(IDS), 3, height_px, width_px), dtype=torch.uint8, generator=numbers)
    return [LoadedImage(f"{image_id} {height_px}×{width_px}", pixels[i]) for i, image_id in enumerate(IDS)]


def proposed(propose: Proposer, shown: Sequence[LoadedImage], *, min_score: float = 0.0) -> list[Proposals]:
    answers = list(propose(shown, min_score=min_score))
    assert all(isinstance(answer, Proposals) for answer in answers)
    return answers  # type: ignore[return-value]


def same(one: Proposals, other: Proposals) -> bool:
    """To the last bit."""
    columns = (
        (p.masks_NHW, p.scores_N, *(x for x in (p.soft_Nhw, p.classes_NK) if x is not None)) for p in (one, other)
    )
    return one.labels == other.labels and all(torch.equal(a, b) for a, b in zip(*columns, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_boolean_of_the_pictures_size_never_empty_and_all_columns_have_their_length(
    opened: Callable[[str], Proposer], kind: str
) -> None:
    for height_px, width_px in SIZES:
        for found in proposed(opened(kind), images(height_px, width_px)[:1]):
            assert found.masks_NHW.dtype == torch.bool
            assert found.masks_NHW.shape == (len(found), height_px, width_px)
            assert bool(found.masks_NHW.flatten(1).any(dim=1).all())
            assert len(found) == len(found.labels) == len(found.scores_N)
            assert {type(label) for label in found.labels} <= {str, type(None)}
            if found.soft_Nhw is not None:
                assert found.soft_Nhw.dtype == torch.float32
                assert len(found.soft_Nhw) == len(found)
                assert bool(((found.soft_Nhw >= 0) & (found.soft_Nhw <= 1)).all())
            if found.classes_NK is not None:
                assert found.classes_NK.shape == (len(found), len(found.class_names))
                assert bool((found.classes_NK >= 0).all())
                assert bool((found.classes_NK.sum(dim=1) <= 1 + 1e-5).all())


@pytest.mark.parametrize("kind", KINDS)
def test_scores_lie_between_0_and_1_and_the_best_comes_first(opened: Callable[[str], Proposer], kind: str) -> None:
    for found in proposed(opened(kind), images()):
        scores = found.scores_N.tolist()
        assert len(scores) > 1
        assert found.scores_N.dtype == torch.float32
        assert all(0 <= score <= 1 for score in scores)
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_of_masks_lie_in_the_picture_and_are_those_of_the_run_lengths(
    opened: Callable[[str], Proposer], kind: str
) -> None:
    for found in proposed(opened(kind), images()):
        boxes = [tuple(box) for box in tight_boxes(found.masks_NHW).tolist()]
        assert boxes == [mask.box_xyxy for mask in Mask.from_arrays(found.masks_NHW.numpy())]
        assert all(0 <= x0 < x1 <= 72 and 0 <= y0 < y1 <= 48 for x0, y0, x1, y1 in boxes)


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_cpu_an_images_proposals_depend_on_no_other_image_nor_on_the_batch(
    opened: Callable[[str], Proposer], kind: str
) -> None:
    propose, shown = opened(kind), images()
    together, backwards = proposed(propose, shown), proposed(propose, shown[::-1])[::-1]
    alone = [proposed(propose, [image])[0] for image in shown]
    for one, other, third in zip(together, alone, backwards, strict=True):
        assert same(one, other)
        assert same(one, third)
    if kind != "ground_truth":
        assert not same(together[0], together[1])
    assert proposed(propose, []) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_settings_opened_again_give_the_same_to_the_last_bit(
    opened: Callable[[str], Proposer], settings_of: Callable[[str], Any], kind: str
) -> None:
    again = settings_of(kind).open(device="cpu")
    assert all(map(same, proposed(opened(kind), images()[:1]), proposed(again, images()[:1])))


@pytest.mark.parametrize("kind", KINDS)
def test_a_least_score_drops_what_is_below_and_changes_nothing_else(
    opened: Callable[[str], Proposer], kind: str
) -> None:
    (every,) = proposed(opened(kind), images()[:1])
    least = sorted(every.scores_N.tolist())[len(every) // 2]
    (some,) = proposed(opened(kind), images()[:1], min_score=least)
    keep = Keep(min_score=least, min_area_px=1, max_area_ratio=1.0, max_iou=1.0)
    assert same(keep_proposals(some, keep=keep), keep_proposals(every, keep=keep))


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_without_masks_is_an_answer(opened: Callable[[str], Proposer], kind: str) -> None:
    stranger = LoadedImage("nobody's", torch.zeros(3, 48, 72, dtype=torch.uint8))
    (answer,) = opened(kind)([stranger], min_score=1.0)
    if kind == "ground_truth":
        assert answer == Rejection("no_masks", "the annotations do not name this image")
        return
    assert isinstance(answer, Proposals)
    assert answer.masks_NHW.shape == (0, 48, 72)
    assert len(keep_proposals(answer, keep=Keep())) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_says_what_was_loaded_and_under_which_licence(settings_of: Callable[[str], Any], kind: str) -> None:
    record = settings_of(kind).record()
    assert (record.role, record.licence) == ("proposals", "Apache-2.0")
    assert len(record.sha256) == 64
    assert settings_of(kind).model_copy(update={"licence": None}).record().licence == "unknown"


@pytest.mark.parametrize("kind", KINDS)
def test_mining_makes_regions_of_the_proposals(settings_of: Callable[[str], Any], kind: str, tmp_path: Path) -> None:
    (image,) = images()[:1]
    picture = tmp_path / "a.png"
    Image.fromarray(image.rgb_3HW.permute(1, 2, 0).numpy()).save(picture)
    keep = Keep(min_score=0.0, min_area_px=1, max_area_ratio=1.0, max_iou=1.0)
    find = Regions(proposals=settings_of(kind), keep=keep, clip=None, device="cpu", cpu_threads=1).open()
    (row,) = find([ImageRow(image.image_id, str(picture))])
    (found,) = proposed(settings_of(kind).open(device="cpu"), [image])
    assert row.rejection is None
    assert sorted(region.score for region in row.regions) == sorted(found.scores_N.tolist())
