"""The two stages together, with the shipped models: votes by every rule, classes, batches, and what is refused."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torch.nn.functional import normalize

from maskmine.mining.images.crops import Crop, cut_masks, cut_regions
from maskmine.mining.models.clip import Clip
from maskmine.mining.models.mask_prompts import new_prompts, tower_sha256
from maskmine.mining.models.prompt_templates import fill_template, load_templates
from maskmine.mining.models.prompts_file import PromptsRecord, load_prompts, save_prompts
from maskmine.mining.proposers.proposals import LoadedImage, Proposals, keep_proposals
from maskmine.mining.storage.prefetch import map_in_order
from maskmine.pipelines.settings.mining import load_settings
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import Rejection
from maskmine.scripts.demo_world.scene import Scene
from maskmine.tuning.segmentation import region_classifier, segmenter
from maskmine.tuning.segmentation.confusion import IGNORE
from maskmine.tuning.segmentation.segmenter import MAX_CLASSES, Segment, Segmentation, Segmenter, check_classes
from maskmine.tuning.segmentation.work_size import enlarged, reduced, work_size
from tests.support.models import CLIP, CONFIG, MASKFORMER, SCENES, SIZE, mean_iou, network
from tests.support.paths import ROOT

PICTURES = [scene.picture_HW3 for scene in SCENES]
CLASSES = ("globe", "church", "goat", "pumpkin")


def settings_of(**changes: Any) -> Segmenter:
    shipped = {
        "clip.model": str(CLIP),
        "proposals.checkpoint": str(MASKFORMER),
        "templates": "raw",
        "cpu_threads": 1,
        **changes,
    }
    return load_settings(
        Segmenter, str(CONFIG), overrides=[f"{place}={json.dumps(value)}" for place, value in shipped.items()]
    )


def segmented(pictures: Sequence[Any], classes: Sequence[str] = CLASSES, **changes: Any) -> list[Segmentation]:
    return whole(opened(json.dumps(changes))(pictures, classes=classes))


@functools.cache
def opened(changes: str) -> Segment:
    """Models are loaded once for the same settings."""
    return settings_of(**json.loads(changes)).open()


def whole(found: Sequence[Segmentation | Rejection]) -> list[Segmentation]:
    assert all(isinstance(one, Segmentation) for one in found)
    return found  # type: ignore[return-value]


def same(one: Segmentation, other: Segmentation) -> bool:
    return np.array_equal(one.labels_HW, other.labels_HW) and one.regions == other.regions


@pytest.fixture(scope="module")
def with_classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random MaskFormer that knows the classes cat, sky and one without a name."""
    folder = tmp_path_factory.mktemp("maskformer")
    network("maskformer").save_pretrained(folder)
    transformers.MaskFormerImageProcessor(size=SIZE).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prompts of nobody's tuning for the shipped CLIP."""
    tower = Clip(model=str(CLIP)).open_whole().model.visual
    path = tmp_path_factory.mktemp("prompts") / "prompts.safetensors"
    record = PromptsRecord(clip="shipped", tower_sha256=tower_sha256(tower), settings={}, shards=())
    save_prompts(path, new_prompts(tower, depth=2, std=0.5, seed=0), record=record)
    return str(path)


def proposals_of(rgb_HW3: Any, **changes: Any) -> Proposals:
    settings = settings_of(**changes)
    image = LoadedImage("0", torch.tensor(rgb_HW3).permute(2, 0, 1).contiguous())
    (answer,) = settings.proposals.open(device="cpu")([image], min_score=settings.keep.min_score)
    assert isinstance(answer, Proposals)
    return keep_proposals(answer, keep=settings.keep)


# --- votes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuned", [False, True])
def test_clip_votes_by_its_embeddings_of_the_masked_crops_with_prompts_where_there_are_some(
    prompts: str, tuned: bool
) -> None:
    (found,) = segmented(PICTURES[:1], **({"tuned.prompts": prompts} if tuned else {}), templates="vild")
    clip = Clip(model=str(CLIP))
    model, geometry = clip.open_whole(), clip.open_image(device="cpu")
    masks_NHW, rgb_3HW = proposals_of(PICTURES[0]).masks_NHW, torch.tensor(PICTURES[0]).permute(2, 0, 1).contiguous()
    crops_NSS3 = cut_regions(
        [rgb_3HW], [masks_NHW], size_px=geometry.size_px, mean=geometry.mean, std=geometry.std, crop=Crop()
    )
    with torch.no_grad():
        if tuned:
            masks_NSS = cut_masks([masks_NHW], size_px=geometry.size_px, crop=Crop())
            embedded_ND = load_prompts(prompts, model.model)(crops_NSS3, masks_NSS)
        else:
            embedded_ND = model.model.visual(crops_NSS3)
        texts = [clip_text(clip, name) for name in CLASSES]
        expected_NC = (100 * normalize(embedded_ND, dim=1) @ torch.stack(texts).T).softmax(dim=1)
    assert len(found.regions) == len(expected_NC) > 3
    for region, expected_C in zip(found.regions, expected_NC, strict=True):
        assert region.class_ == CLASSES[int(expected_C.argmax())]
        assert region.probability == pytest.approx(float(expected_C.max()), abs=5e-3)  # classes are kept as float16
    assert found.scores == pytest.approx(expected_NC.amax(0).tolist(), abs=5e-3)


def clip_text(clip: Clip, name: str) -> torch.Tensor:
    sentences = [fill_template(template, name) for template in load_templates("vild")]
    return normalize(clip.open_text(device="cpu").embed(sentences).mean(0), dim=0)


def test_the_ensemble_multiplies_what_the_two_say_alone(with_classes: str) -> None:
    changes: dict[str, Any] = {"proposals.checkpoint": with_classes, "keep": {"min_area_px": 1, "top": 1}}
    alone = {rule: segmented(PICTURES[:1], ("cat", "sky"), **changes, rule=rule)[0] for rule in ("clip", "proposals")}
    (both,) = segmented(PICTURES[:1], ("cat", "sky"), **changes, rule="ensemble", clip_weight=0.25)
    assert [len(found.regions) for found in (both, *alone.values())] == [1, 1, 1]  # so that scores are its votes
    expected = [
        own**0.75 * clip**0.25  # type: ignore[operator]
        for own, clip in zip(alone["proposals"].scores, alone["clip"].scores, strict=True)
    ]
    assert both.scores == pytest.approx(expected, rel=1e-4)
    assert sum(alone["proposals"].scores) < 0.999  # type: ignore[arg-type]
    assert sum(alone["clip"].scores) == pytest.approx(1)  # type: ignore[arg-type]


def test_the_proposals_own_votes_are_the_probabilities_of_their_classes(with_classes: str) -> None:
    (found,) = segmented(PICTURES[:1], ("sky", "cat"), **{"proposals.checkpoint": with_classes}, rule="proposals")
    kept = proposals_of(PICTURES[0], **{"proposals.checkpoint": with_classes})
    assert kept.classes_NK is not None
    assert kept.class_names == ("cat", "sky", None)
    assert found.scores == pytest.approx(kept.classes_NK[:, [1, 0]].amax(0).tolist())


def test_the_proposals_classifier_alone_needs_no_clip(with_classes: str) -> None:
    changes = {"proposals.checkpoint": with_classes, "clip.model": "/nowhere", "rule": "proposals"}
    assert len(segmented(PICTURES[:1], ("sky", "cat"), **changes)) == 1
    assert [record.role for record in settings_of(**changes).records()] == ["proposals"]


# --- maps -------------------------------------------------------------------------------------------------------------


def test_the_maps_of_scenes_are_mostly_right_and_plain_truth_with_true_masks(tmp_path: Path) -> None:
    nouns = sorted({noun.noun for scene in SCENES for noun in scene.nouns})
    found = segmented(PICTURES, nouns)
    assert np.mean([mean_iou(one, scene) for one, scene in zip(found, SCENES, strict=True)]) > 0.7
    truth = write_truth(tmp_path / "truth.json", SCENES)
    changes = {"proposals": {"kind": "ground_truth", "annotations": truth}, "keep": {"min_area_px": 1, "max_iou": 1.0}}
    for paint in ("sum", "best_per_class"):
        drawn = segmented(PICTURES, nouns, **changes, paint=paint)
        assert np.mean([mean_iou(one, scene) for one, scene in zip(drawn, SCENES, strict=True)]) > 0.8


def write_truth(path: Path, scenes: Sequence[Scene]) -> str:
    images, annotations = [], []
    for number, scene in enumerate(scenes):
        height_px, width_px = scene.picture_HW3.shape[:2]
        images.append({"id": number, "height": height_px, "width": width_px})
        for mask_HW in scene.masks_NHW:
            counts = Mask.from_array(mask_HW).counts.decode()
            drawn = {"size": [height_px, width_px], "counts": counts}
            annotations.append({"image_id": number, "category_id": 1, "segmentation": drawn})
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    return str(path)


@pytest.mark.parametrize("paint", ["sum", "best_per_class"])
def test_a_map_has_the_size_of_its_picture(paint: str) -> None:
    shown = [PICTURES[0][:61, :97], PICTURES[1][:130, :53], PICTURES[0][:61, 20:117]]
    found = segmented(shown, paint=paint)
    assert [one.labels_HW.shape for one in found] == [(61, 97), (130, 53), (61, 97)]


def test_a_picture_does_not_depend_on_the_others_nor_on_the_batch() -> None:
    segment = opened(json.dumps({"paint": "sum"}))
    together = whole(segment(PICTURES, classes=CLASSES))
    alone = [whole(segment([rgb_HW3], classes=CLASSES))[0] for rgb_HW3 in PICTURES]
    backwards = whole(segment(PICTURES[::-1], classes=CLASSES))[::-1]
    for one, other, third in zip(together, alone, backwards, strict=True):
        assert same(one, other)
        assert same(one, third)


def test_maps_are_the_same_where_nothing_is_done_ahead_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = segmented(PICTURES)

    def one_by_one(work: Any, items: Any, **_: Any) -> Any:
        return map_in_order(work, items, threads=0)

    for module in (segmenter, region_classifier):
        monkeypatch.setattr(module, "map_in_order", one_by_one)
    assert all(map(same, segmented(PICTURES), ahead))


def test_a_fault_of_painting_ends_what_is_cut_and_embedded_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    segment, threads = opened("{}"), threading.active_count()

    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError("no room for a map")

    monkeypatch.setattr(segmenter, "_paint", fail)
    with pytest.raises(MemoryError, match="no room for a map") as raised:
        segment(PICTURES[:3], classes=CLASSES)
    assert threading.active_count() == threads, raised  # which keeps the frames of what failed
    monkeypatch.undo()
    assert same(whole(segment(PICTURES[:1], classes=CLASSES))[0], segmented(PICTURES[:1])[0])


def test_a_finer_choice_covers_no_less_of_the_picture_and_leaves_the_votes() -> None:
    models = settings_of(paint="best_per_class").load()
    covered, regions = [], []
    for granularity in (1.0, 0.5, 0.0):
        segment = settings_of(paint="best_per_class", granularity=granularity).open(models=models)
        (found,) = whole(segment(PICTURES[:1], classes=CLASSES[:2]))
        covered.append(int((found.labels_HW != IGNORE).sum()))
        regions.append(found.regions)
    assert covered == sorted(covered)
    assert covered[0] < covered[-1]
    assert regions[0] == regions[1] == regions[2]


def test_models_that_are_loaded_serve_other_rules_and_give_the_same_maps() -> None:
    models = settings_of().load()
    for changes in ({"paint": "sum"}, {"paint": "best_per_class", "granularity": 0.5}, {"keep.min_score": 0.5}):
        (found,) = whole(settings_of(**changes).open(models=models)(PICTURES[:1], classes=CLASSES))
        assert same(found, segmented(PICTURES[:1], **changes)[0])


def test_models_without_clip_serve_no_rule_that_asks_it(with_classes: str) -> None:
    models = settings_of(**{"proposals.checkpoint": with_classes, "rule": "proposals"}).load()
    with pytest.raises(ValueError, match="loaded without CLIP"):
        settings_of(rule="clip").open(models=models)


def test_without_proposals_the_map_is_empty_and_classes_have_no_score() -> None:
    (found,) = segmented(PICTURES[:1], **{"keep.min_score": 1.0})
    assert found.labels_HW.shape == PICTURES[0].shape[:2]
    assert np.unique(found.labels_HW).tolist() == [IGNORE]
    assert found.scores == (None,) * len(CLASSES)
    assert found.regions == ()


# --- classes ----------------------------------------------------------------------------------------------------------


def test_one_class_stands_against_others_which_are_no_class_of_the_map() -> None:
    alone, said = segmented(PICTURES[:1], ("globe",))[0], segmented(PICTURES[:1], ("Others", "globe"))[0]
    assert same(alone, said)
    assert alone.classes == ("globe",)
    assert set(np.unique(alone.labels_HW)) == {IGNORE, 0}
    assert {region.class_ for region in alone.regions} == {"globe", None}
    (summed,) = segmented(PICTURES[:1], ("globe",), paint="sum")
    assert set(np.unique(summed.labels_HW)) == {IGNORE, 0}
    globe_HW = SCENES[0].masks_NHW[[noun.noun for noun in SCENES[0].nouns].index("globe")]
    assert (alone.labels_HW[globe_HW] == 0).mean() > 0.6
    assert (alone.labels_HW[~globe_HW] == 0).mean() < 0.05


def test_with_several_classes_others_join_only_where_they_are_asked_for() -> None:
    assert check_classes(["dog", "cat"]) == ("dog", "cat")
    assert check_classes(["dog", "OTHERS", "cat"]) == ("dog", "cat", "others")
    assert check_classes(["  Saturn  V "]) == ("Saturn V", "others")


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ([], "none is named"),
        (["others"], "none is named"),
        (["dog", " "], "number 2 is empty"),
        (["dog", "cat", "Dog"], "`dog` is there twice"),
        ([f"class {number}" for number in range(MAX_CLASSES + 1)], "too many"),
    ],
)
def test_classes_that_cannot_be_are_refused(classes: list[str], words: str) -> None:
    with pytest.raises(InputError, match=f"classes: .*{words}"):
        check_classes(classes)


def test_names_of_any_language_and_length_are_classes() -> None:
    (found,) = segmented(PICTURES[:1], ("globe", "地球仪", "a very long name " * 40))
    assert found.classes == ("globe", "地球仪", ("a very long name " * 40).strip())


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_configuration_for_real_models_says_what_the_defaults_are() -> None:
    assert load_settings(Segmenter, str(ROOT / "configs" / "segment.yaml")) == load_settings(Segmenter, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rule": "best"}, "rule: input should be 'clip', 'proposals' or 'ensemble', not 'best'"),
        ({"clip_weight": 0}, "clip_weight: input should be greater than 0, not 0"),
        ({"clip_weight": 1.5}, "clip_weight: input should be less than 1, not 1.5"),
        ({"granularity": 1.5}, "granularity: input should be less than or equal to 1, not 1.5"),
        ({"granularity": -0.1}, "granularity: input should be greater than or equal to 0, not -0.1"),
        ({"paint": "sum", "granularity": 0.5}, "`granularity: 0.5` chooses masks, and `paint: sum` takes them all"),
        ({"tuned": {}}, "tuned: names nothing that was tuned"),
        ({"rule": "ensemble", "proposals": {"kind": "ground_truth", "annotations": "x"}}, "annotations have none"),
        ({"rule": "proposals", "proposals": {"kind": "sam", "checkpoint": "x"}}, "Segment Anything has none; use"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_their_place(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        settings_of(**change)


def test_a_rule_that_needs_a_classifier_is_refused_without_one() -> None:
    for rule in ("ensemble", "proposals"):
        with pytest.raises(InputError, match=r"rule: the proposals come without a classifier.*use `rule: clip`"):
            segmented(PICTURES[:1], rule=rule)


def test_prompts_of_another_clip_are_refused(prompts: str, tmp_path: Path) -> None:
    clip = Clip(model=str(CLIP)).open_whole()
    record = PromptsRecord(clip="another", tower_sha256="f" * 64, settings={}, shards=())
    save_prompts(tmp_path / "p.safetensors", new_prompts(clip.model.visual, depth=1, std=0.1, seed=0), record=record)
    with pytest.raises(InputError, match="prompts for the image tower of `another`"):
        settings_of(**{"tuned.prompts": str(tmp_path / "p.safetensors")}).open()


def test_every_model_is_recorded_with_its_hash(prompts: str) -> None:
    records = settings_of(**{"tuned.prompts": prompts}).records()
    assert [record.role for record in records] == ["proposals", "clip", "prompts"]
    assert all(record.sha256 and record.licence == "CC-BY-SA-4.0" for record in records)


def test_arrays_that_are_no_pictures_are_errors_of_the_program() -> None:
    segment = opened("{}")
    for array in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="an image is uint8"):
            segment([array], classes=CLASSES)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        settings_of().rule = "proposals"  # type: ignore[misc]


def test_a_large_image_is_segmented_reduced_and_its_map_enlarged() -> None:
    large = PICTURES[0].repeat(3, axis=0).repeat(3, axis=1)
    size_px = PICTURES[0].shape[:2]
    (of_small,) = segmented([reduced(large, size_px=size_px)])
    (of_large,) = segmented([large], work_pixels=size_px[0] * size_px[1])
    assert (of_large.labels_HW == of_small.labels_HW.repeat(3, axis=0).repeat(3, axis=1)).all()
    assert of_large.scores == of_small.scores
    assert [region.class_ for region in of_large.regions] == [region.class_ for region in of_small.regions]
    for region, other in zip(of_large.regions, of_small.regions, strict=True):
        assert region.box_xyxy == tuple(3 * side for side in other.box_xyxy)
        assert region.area_px == 9 * other.area_px


def test_a_map_is_enlarged_to_the_nearest_label_as_pillow_does() -> None:
    labels_HW = np.arange(7 * 11, dtype=np.int32).reshape(7, 11)
    found = enlarged(Segmentation(("goat",), labels_HW, (None,), (), 0), size_px=(17, 29))
    assert (found.labels_HW == np.asarray(Image.fromarray(labels_HW).resize((29, 17), Image.Resampling.NEAREST))).all()


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 50_000))
def test_a_reduced_image_has_at_most_the_pixels_that_are_allowed(height: int, width: int, most: int) -> None:
    h, w = work_size((height, width), most_pixels=most)
    assert 1 <= h <= height
    assert 1 <= w <= width
    assert h * w <= most
    assert (h, w) == (height, width) or height * width > most
    if min(h, w) > 20:
        assert w / h == pytest.approx(width / height, rel=0.1)
