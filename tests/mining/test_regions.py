"""The step `regions`: rows in, rows out in the same order, whatever the threads, the batches and the company."""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from maskmine.mining import region_stages
from maskmine.mining.images import batches as batches_module
from maskmine.mining.images.batches import plan_batches
from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.crops import PictureCrop
from maskmine.mining.images.decode import DecodedImage
from maskmine.mining.models import embeddings
from maskmine.mining.models.clip import RegionClip
from maskmine.mining.proposers import proposals as proposals_module
from maskmine.mining.proposers.ground_truth import GroundTruth
from maskmine.mining.proposers.maskformer import MaskFormer
from maskmine.mining.proposers.proposals import Keep, LoadedImage, Proposals
from maskmine.mining.regions import Regions
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import ImageRow, ProposalsRow, RegionsRow, Rejection
from maskmine.schemas.tables import from_table, to_table
from tests.support.models import save_tiny_clip

ALL = Keep(min_score=0.0, min_area_px=1, max_area_ratio=1.0, max_iou=1.0)
BOX = {"square": (2, 3, 10, 12), "bar": (0, 14, 20, 16), "dot": (19, 0, 20, 1), "all": (0, 0, 20, 16)}


def box_mask(name: str, height_px: int = 16, width_px: int = 20) -> np.ndarray:
    x0, y0, x1, y1 = BOX[name]
    mask_HW = np.zeros((height_px, width_px), dtype=bool)
    mask_HW[y0:y1, x0:x1] = True
    return mask_HW


class World:
    """A folder of pictures and the annotations of their masks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[ImageRow] = []
        self.content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
        self.content["categories"] = [{"id": name, "name": name} for name in BOX]

    def add(self, image_id: str, *names: str, height_px: int = 16, width_px: int = 20) -> Path:
        path = self.folder / f"{image_id}.png"
        numbers = np.random.default_rng(list(image_id.encode()))
        Image.fromarray(numbers.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)).save(path)
        self.rows.append(ImageRow(image_id, str(path)))
        self.content["images"].append({"id": image_id, "height": height_px, "width": width_px})
        for name in names:
            counts = Mask.from_array(box_mask(name, height_px, width_px)).counts.decode()
            segmentation = {"size": [height_px, width_px], "counts": counts}
            self.content["annotations"].append(
                {"image_id": image_id, "category_id": name, "segmentation": segmentation}
            )
        return path

    def regions(self, **changes: Any) -> Regions:
        path = self.folder / "instances.json"
        path.write_text(json.dumps(self.content))
        truth = GroundTruth(kind="ground_truth", annotations=str(path))
        return Regions(**{"proposals": truth, "clip": None, "keep": ALL, "device": "cpu"} | changes)


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.add("a", "bar", "square")
    world.add("wide", "square", width_px=40)
    world.add("b", "dot")
    world.add("c", "all", "square", "dot")
    return world


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> RegionClip:
    return RegionClip(model=str(save_tiny_clip(tmp_path_factory.mktemp("clip"))), batch_size=4)


def found(regions: Regions, rows: Sequence[ImageRow]) -> list[RegionsRow]:
    return regions.open()(rows)


def labels(row: RegionsRow) -> list[str | None]:
    return [region.label for region in row.regions]


class Seen(list[list[str]]):
    """The batches that a proposer was shown."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Replaces the proposer by one that finds a square of one colour in every picture, and notes its batches."""
    seen = Seen()

    def open_double(self: GroundTruth, *, device: str) -> Callable[..., Iterator[Proposals | Rejection]]:
        def propose(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals | Rejection]:
            assert len({image.rgb_3HW.shape for image in images}) == 1
            seen.append([image.image_id for image in images])
            for image in images:
                mask_HW = torch.zeros(image.rgb_3HW.shape[1:], dtype=torch.bool)
                mask_HW[1:9, 1:9] = True
                yield Proposals(mask_HW[None], torch.ones(1), (None,))

        return propose

    monkeypatch.setattr(GroundTruth, "open", open_double)
    return seen


# --- rows -------------------------------------------------------------------------------------------------------------


def test_every_image_has_its_row_in_the_order_of_the_part(world: World) -> None:
    rows = found(world.regions(), world.rows)
    assert [row.image_id for row in rows] == ["a", "wide", "b", "c"]
    assert [labels(row) for row in rows] == [["square", "bar"], ["square"], ["dot"], ["all", "square", "dot"]]
    assert [(row.height_px, row.width_px) for row in rows] == [(16, 20), (16, 40), (16, 20), (16, 20)]
    assert all(row.rejection is None for row in rows)


def test_a_region_is_its_mask_with_box_and_area(world: World) -> None:
    square, bar = found(world.regions(), world.rows)[0].regions
    assert square.mask == Mask.from_array(box_mask("square"))
    assert (square.box_xyxy, square.area_px) == (BOX["square"], 72)
    assert (bar.box_xyxy, bar.area_px) == (BOX["bar"], 40)
    assert (square.score, square.embedding) == (1.0, None)


def test_rows_survive_a_table(world: World, clip: RegionClip) -> None:
    rows = found(world.regions(clip=clip), world.rows)
    assert from_table(to_table(rows, RegionsRow), RegionsRow) == rows


def test_what_goes_wrong_with_one_image_is_its_rejection(world: World) -> None:
    world.add("gone", "bar").unlink()
    world.add("page", "bar").write_bytes(b"<html>not found")
    world.add("huge", "bar", height_px=50, width_px=50)
    world.add("unannotated")
    world.add("tiny", "dot")
    world.rows.append(ImageRow("nowhere", None))
    regions = world.regions(max_image_pixels=1000, keep=ALL.model_copy(update={"min_area_px": 5}))
    rows = {row.image_id: row for row in found(regions, world.rows)}
    assert {image_id: row.rejection for image_id, row in rows.items() if row.rejection} == {
        "gone": Rejection("missing_file", "gone.png: no such file"),
        "page": Rejection("decode_error", "not a picture: begins with '<html>not found'"),
        "huge": Rejection("image_too_large", "50 × 50 = 2,500 pixels, more than `max_image_pixels: 1000`"),
        "unannotated": Rejection("no_masks", "the annotations have no mask of this image"),
        "tiny": Rejection("no_masks", "0 of 1 proposals kept"),
        "b": Rejection("no_masks", "0 of 1 proposals kept"),
        "nowhere": Rejection("missing_file", "the captions name this image, the image list does not"),
    }
    assert all(row.regions == () for row in rows.values() if row.rejection)
    assert rows["tiny"].sha256 is not None
    assert (rows["tiny"].height_px, rows["tiny"].width_px) == (16, 20)
    assert (rows["page"].sha256, rows["page"].height_px, rows["page"].width_px) == (None, 0, 0)


@pytest.mark.parametrize(
    ("orientation", "size_px", "detail"),
    [
        (6, (20, 16), "masks for 16 × 20 pixels (H × W), and the upright picture has 20 × 16, turned by its EXIF"),
        (3, (16, 20), "EXIF turns the picture, and the annotations do not say if they are turned too"),
    ],
)
def test_masks_drawn_on_a_picture_before_its_turn_are_refused(
    world: World, orientation: int, size_px: tuple[int, int], detail: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = world.add("turned", "square")
    Image.open(path).copy().save(path, exif=exif)
    row = found(world.regions(), world.rows)[-1]
    assert (row.height_px, row.width_px) == size_px
    assert row.rejection == Rejection("no_masks", detail)


def test_a_part_without_images_has_no_rows(world: World) -> None:
    assert found(world.regions(), []) == []


def test_a_fault_of_the_disk_stops_the_part(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> DecodedImage:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Decoding, "read", read)
    with pytest.raises(OSError, match="Input/output error"):
        found(world.regions(), world.rows)


def test_every_finished_image_is_counted_once(world: World) -> None:
    world.add("gone").unlink()
    ticks: list[int] = []
    world.regions(batch_size=2).open()(world.rows, tick=ticks.append)
    assert sum(ticks) == len(world.rows)
    assert all(tick > 0 for tick in ticks)
    assert len(ticks) == 4  # one without a size, two and one of 16 × 20, one of 16 × 40


def test_the_records_are_those_of_the_models(world: World, clip: RegionClip) -> None:
    assert [record.role for record in world.regions().records()] == ["proposals"]
    assert [record.role for record in world.regions(clip=clip).records()] == ["proposals", "clip"]


def test_the_proposer_is_chosen_by_its_kind() -> None:
    read = Regions.model_validate({"proposals": {"kind": "maskformer", "checkpoint": "x"}, "clip": None})
    assert isinstance(read.proposals, MaskFormer)
    with pytest.raises(ValidationError, match="expected tags"):
        Regions.model_validate({"proposals": {"kind": "magic"}, "clip": None})


# --- batches ----------------------------------------------------------------------------------------------------------


sizes = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)) | st.just(Rejection("missing_file")), max_size=30)


@given(sizes, st.integers(1, 5), st.integers(1, 12))
def test_batches_hold_every_image_once_and_one_size_each(
    sizes: list[tuple[int, int] | Rejection], batch_size: int, most_px: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches_module, "_MAX_BATCH_PX", most_px)
        batches = plan_batches(sizes, batch_size=batch_size)
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len({repr(sizes[i]) for i in batch}) == 1
        assert batch == sorted(batch)
        size_px = sizes[batch[0]]
        assert len(batch) == 1 or isinstance(size_px, Rejection) or len(batch) * size_px[0] * size_px[1] <= most_px


def test_batches_are_as_large_as_they_may_be() -> None:
    sizes: list[tuple[int, int] | Rejection] = [(4, 6), (6, 4), (4, 6), (4, 6), (6, 4), (4, 6)]
    assert plan_batches(sizes, batch_size=3) == [[0, 2, 3], [5], [1, 4]]


def test_the_proposer_sees_the_planned_batches(world: World, seen: Seen) -> None:
    world.add("d")
    found(world.regions(batch_size=2), world.rows)
    assert seen == [["a", "b"], ["c", "d"], ["wide"]]


def test_a_picture_that_fails_leaves_its_batch_smaller_and_moves_no_other(world: World, seen: Seen) -> None:
    path = world.add("d")
    world.add("e")
    path.write_bytes(path.read_bytes()[:-30])  # the header is whole, so it has a place
    rows = found(world.regions(batch_size=2), world.rows)
    assert seen == [["a", "b"], ["c"], ["e"], ["wide"]]
    assert [row.rejection.reason if row.rejection else None for row in rows] == [None] * 4 + ["decode_error", None]


def test_pictures_that_are_not_as_large_as_their_header_says_are_sorted_again(
    world: World, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoding, "size", lambda *_, **__: (16, 20))
    rows = found(world.regions(batch_size=8), world.rows)
    assert seen == [["a", "b", "c"], ["wide"]]
    assert [row.image_id for row in rows] == ["a", "wide", "b", "c"]
    assert [row.width_px for row in rows] == [20, 40, 20, 20]
    assert [row.regions[0].mask.width_px for row in rows] == [20, 40, 20, 20]


def test_a_picture_whose_size_is_not_in_its_head_is_read_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = found(world.regions(), world.rows)
    monkeypatch.setattr(Decoding, "size", lambda *_, **__: Rejection("decode_error", "no header"))
    assert found(world.regions(), world.rows) == expected


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory, clip: RegionClip) -> tuple[World, dict[str, RegionsRow]]:
    """A world of eight images, two of which cannot be read, and the rows that it gives in its own order."""
    world = World(tmp_path_factory.mktemp("eight"))
    for number, names in enumerate([("square", "bar"), ("all",), ("dot", "square"), (), ("bar",), ("square",)]):
        world.add(f"image{number}", *names, width_px=20 + number % 2)
    world.rows += [ImageRow("nowhere", None), ImageRow("absent", "absent.png")]
    return world, {row.image_id: row for row in found(world.regions(clip=clip), world.rows)}


@settings(max_examples=15)
@given(st.permutations(range(8)), st.sampled_from([1, 2, 3, 8]), st.sampled_from([1, 2, 4]))
def test_neither_order_nor_batches_nor_threads_change_a_row(
    eight: tuple[World, dict[str, RegionsRow]], clip: RegionClip, order: list[int], batch_size: int, threads: int
) -> None:
    world, expected = eight
    shuffled = [world.rows[i] for i in order]
    rows = found(world.regions(clip=clip, batch_size=batch_size, decode_threads=threads), shuffled)
    assert rows == [expected[row.image_id] for row in shuffled]


def test_the_pixels_of_two_batches_are_in_memory_at_most(
    world: World, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        world.add(f"more{number}")
    alive: list[int] = []
    arrays: set[int] = set()
    lock = threading.Lock()
    read = Decoding.read

    def counted(decoding: Decoding, path: str | None, *, max_pixels: int) -> DecodedImage | Rejection:
        picture = read(decoding, path, max_pixels=max_pixels)
        assert isinstance(picture, DecodedImage)
        with lock:
            arrays.add(id(picture.rgb_HW3))
            weakref.finalize(picture.rgb_HW3, arrays.discard, id(picture.rgb_HW3))
            alive.append(len(arrays))
        return picture

    load = region_stages.load

    def load_slowly(*values: Any, **options: Any) -> LoadedImage:
        time.sleep(0.02)  # a model takes longer than decoding, so that the next batch is there
        return load(*values, **options)

    monkeypatch.setattr(region_stages, "load", load_slowly)
    monkeypatch.setattr(Decoding, "read", counted)
    found(world.regions(batch_size=3), world.rows)
    assert 3 < max(alive) <= 6


# --- masks and models -------------------------------------------------------------------------------------------------


def test_degenerate_masks_have_embeddings_like_others(world: World, clip: RegionClip) -> None:
    rows = found(world.regions(clip=clip), world.rows)
    for row in rows:
        for region in row.regions:
            assert region.embedding is not None
            vector_D = np.frombuffer(region.embedding, "<f2").astype(np.float32)
            assert vector_D.shape == (32,)
            assert np.linalg.norm(vector_D) == pytest.approx(1, abs=1e-3)
    assert len({region.embedding for row in rows for region in row.regions}) == 7


def test_an_image_without_regions_has_no_part_in_the_embeddings(world: World, clip: RegionClip) -> None:
    world.rows.insert(0, ImageRow("absent", None))
    small = ALL.model_copy(update={"min_area_px": 50})
    rows = {row.image_id: row for row in found(world.regions(clip=clip, keep=small), world.rows)}
    everything = {row.image_id: row for row in found(world.regions(clip=clip), world.rows)}
    assert rows["b"].regions == ()
    assert rows["c"].regions == everything["c"].regions[:2]


def test_long_lists_of_masks_are_encoded_piece_by_piece(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = found(world.regions(), world.rows)
    monkeypatch.setattr(proposals_module, "_MAX_ENCODED_PX", 2 * 16 * 20)
    assert found(world.regions(), world.rows) == whole


@pytest.mark.parametrize("kind", ["maskformer", "mask2former"])
def test_a_real_proposer_and_a_real_clip_work_together(
    world: World,
    clip: RegionClip,
    checkpoints: dict[str, Path],
    kind: str,
) -> None:
    world.add("thread", height_px=1, width_px=900)
    world.add("pixel", height_px=1, width_px=1)
    proposals = MaskFormer(kind="maskformer", checkpoint=str(checkpoints[kind]))
    rows = found(world.regions(proposals=proposals, clip=clip), world.rows)
    assert [row.image_id for row in rows] == ["a", "wide", "b", "c", "thread", "pixel"]
    for row in rows:
        assert bool(row.regions) != bool(row.rejection)
        scores = [region.score for region in row.regions]
        assert scores == sorted(scores, reverse=True)
        for region in row.regions:
            assert (region.mask.height_px, region.mask.width_px) == (row.height_px, row.width_px)
            assert region.area_px > 0
            assert region.embedding is not None
    assert sum(len(row.regions) for row in rows) > 6
    alone = found(world.regions(proposals=proposals, clip=clip, batch_size=1), world.rows[::-1])
    assert alone[::-1] == rows


# --- embedding again --------------------------------------------------------------------------------------------------


def proposed(rows: Sequence[RegionsRow]) -> list[ProposalsRow]:
    """What a cell of proposals gives back of these rows."""
    return list(from_table(to_table(rows, ProposalsRow), ProposalsRow))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("crop", [{}, {"short_side_px": 32}, {"fill": "zero", "expand_ratio": 1.5}])
def test_embedding_alone_gives_the_bits_of_one_pass(
    eight: tuple[World, dict[str, RegionsRow]], clip: RegionClip, batch_size: int, crop: dict[str, Any]
) -> None:
    world, _ = eight
    regions = world.regions(clip=clip, batch_size=batch_size, crop=PictureCrop(**crop))
    rows = found(regions, world.rows)
    alone = regions.open_embedding()(world.rows, proposed(rows))
    assert alone == [row.embeddings() for row in rows]
    assert sum(len(row.embeddings) for row in alone) == 7
    assert [
        row.with_embeddings(one) for row, one in zip(found(world.regions(), world.rows), alone, strict=True)
    ] == rows


def test_embedding_alone_shows_clip_the_batches_of_one_pass(
    eight: tuple[World, dict[str, RegionsRow]], clip: RegionClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, _ = eight
    seen: list[bytes] = []
    embed = embeddings.embed_crops

    def spy(crops: embeddings.Crops, **options: Any) -> Any:
        seen.append(crops.pixels_R3SS.numpy().tobytes())
        return embed(crops, **options)

    for module in (embeddings, region_stages):
        monkeypatch.setattr(module, "embed_crops", spy)
    regions = world.regions(clip=clip, batch_size=3)
    rows = found(regions, world.rows)
    together, seen[:] = list(seen), []
    regions.open_embedding()(world.rows, proposed(rows))
    assert seen == together
    assert len(seen) >= 3


def test_a_picture_that_is_no_longer_that_of_its_masks_is_rejected_and_no_other_is(
    world: World, clip: RegionClip
) -> None:
    regions = world.regions(clip=clip)
    rows = found(regions, world.rows)
    world.add("b", height_px=10), (world.folder / "wide.png").unlink()
    ticks: list[int] = []
    alone = regions.open_embedding()(world.rows[:4], proposed(rows), tick=ticks.append)
    assert [one.rejection and one.rejection.reason for one in alone] == [None, "missing_file", "image_changed", None]
    assert [len(one.embeddings) for one in alone] == [2, 0, 0, 3]
    assert alone[0] == rows[0].embeddings()
    assert sum(ticks) == 4
    lost = rows[1].with_embeddings(alone[1])
    assert (lost.regions, lost.rejection) == ((), alone[1].rejection)


def test_embeddings_of_other_regions_are_refused(world: World, clip: RegionClip) -> None:
    rows = found(world.regions(clip=clip), world.rows)
    with pytest.raises(ValueError, match="image a: embeddings of other regions"):
        rows[0].with_embeddings(rows[1].embeddings())
    with pytest.raises(ValueError, match="image a: 2 regions have no embedding"):
        found(world.regions(), world.rows)[0].embeddings()
    with pytest.raises(InputError, match=r"regions\.clip: null"):
        world.regions().open_embedding()
