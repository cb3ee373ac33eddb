"""CLIPs evaluated on regions with a known class: the results equal a computation by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskmine.mining.images.crops import Crop, cut_masks, cut_regions
from maskmine.mining.models.clip import Clip
from maskmine.mining.models.mask_prompts import PromptedTower, new_prompts, tower_sha256
from maskmine.mining.models.prompt_templates import fill_template, load_templates
from maskmine.mining.models.prompts_file import PromptsRecord, save_prompts
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.settings.mining import load_settings
from maskmine.schemas.errors import InputError
from maskmine.tuning.clip.weights_files import save_clip
from maskmine.tuning.evaluation import region_accuracy as evaluation
from maskmine.tuning.evaluation.labelled_regions import KEY_RGB, Crops, Instances, Semantic
from maskmine.tuning.evaluation.region_accuracy import (
    MASKED,
    UNMASKED,
    RegionEvaluation,
    RegionResults,
    TopK,
    evaluate_regions,
)
from maskmine.tuning.evaluation.report import FREQUENCIES, draw_examples, group_by_frequency, write_results
from tests.support import toy
from tests.support.models import save_tiny_clip

NAMES = ("square", "disc", "bar")
CROP = Crop(expand_ratio=2.0)  # so wide that some patches of each region are blank


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy world; also as label maps, and as regions in folders; with a CLIP, prompts for it, and another CLIP."""
    folder = toy.write_toy_world(tmp_path_factory.mktemp("world"))
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "maps").mkdir()
    for image in toy.IMAGES:
        map_HW = np.full((toy.HEIGHT_PX, toy.WIDTH_PX), 255, np.uint8)
        for shape in image.shapes:
            map_HW[toy.shape_mask(shape)] = NAMES.index(shape)
            save_crop(folder / "crops" / shape / f"{image.id}.png", shape, image.shapes)
        Image.fromarray(map_HW).save(folder / "maps" / f"{image.id:012d}.png")
    save_tiny_clip(folder / "clip")
    whole = Clip(model=str(folder / "clip")).open_whole()
    tower = whole.model.visual
    record = PromptsRecord(clip=whole.name, tower_sha256=tower_sha256(tower), settings={}, shards=())
    save_prompts(folder / "prompts.safetensors", new_prompts(tower, depth=2, std=2.0, seed=3), record=record)
    with torch.no_grad():
        tower.proj.add_(torch.randn(tower.proj.shape, generator=torch.Generator().manual_seed(4)), alpha=0.5)
    save_clip(folder / "fine-tuned", whole)
    return folder


def save_crop(path: Path, shape: str, shapes: tuple[str, ...]) -> None:
    """A region cut out tightly, with the key colour around it."""
    rgb_HW3, mask_HW = toy.draw(shapes), toy.shape_mask(shape)
    rgb_HW3[~mask_HW] = KEY_RGB
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb_HW3[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]).save(path)


def instances(world: Path) -> Instances:
    return Instances(kind="instances", annotations=str(world / "instances.json"), images=str(world / "images"))


def semantic(world: Path, **changes: Any) -> Semantic:
    paths = {"images": str(world / "images"), "maps": str(world / "maps"), "names": str(world / "names.txt")}
    return Semantic(kind="semantic", **(paths | changes))


def examination(world: Path, **changes: Any) -> RegionEvaluation:
    tuned = {
        "prompts": {"prompts": str(world / "prompts.safetensors")},
        "fine-tuned": {"clip": {"model": str(world / "fine-tuned")}},
    }
    tree = {"clip": {"model": str(world / "clip"), "batch_size": 4}, "tuned": tuned, "device": "cpu"}
    regions = {"regions": instances(world).model_dump(), "crop": CROP.model_dump()}
    return RegionEvaluation.model_validate(tree | regions | changes)


@pytest.fixture(scope="module")
def found(world: Path) -> RegionResults:
    return evaluate_regions(examination(world))


def by_hand(world: Path, row: str) -> dict[str, list[int]]:
    """How many classes are nearer to each region than its own: one region at a time, without the code under test."""
    clip = Clip(model=str(world / "clip"))
    text, image = clip.open_text(device="cpu"), clip.open_image(device="cpu")
    names = sorted(NAMES)
    means = [text.embed([fill_template(t, name) for t in load_templates("vild")]).mean(0) for name in names]
    classes_CE = torch.stack([mean / mean.norm() for mean in means])
    visual = Clip(model=str(world / ("fine-tuned" if row == "fine-tuned" else "clip"))).open_whole().model.visual
    prompts_PND = new_prompts(visual, depth=2, std=2.0, seed=3)
    ranks: dict[str, list[int]] = {name: [] for name in names}
    for one in toy.IMAGES:
        rgb_3HW = torch.from_numpy(toy.draw(one.shapes)).permute(2, 0, 1)
        for shape in one.shapes:
            mask_1HW = torch.from_numpy(toy.shape_mask(shape))[None]
            fill = "none" if row == UNMASKED else "mean"
            crop = CROP.model_copy(update={"fill": fill})
            pixels = cut_regions([rgb_3HW], [mask_1HW], size_px=32, mean=image.mean, std=image.std, crop=crop)
            with torch.inference_mode():
                if row == "prompts":
                    seen = PromptedTower(visual, prompts_PND)(pixels, cut_masks([mask_1HW], size_px=32, crop=CROP))
                else:
                    seen = visual(pixels)
            nearness_C = (seen @ classes_CE.T)[0]
            ranks[shape].append(int((nearness_C > nearness_C[names.index(shape)]).sum()))
    return ranks


@pytest.mark.parametrize("row", [UNMASKED, MASKED, "prompts", "fine-tuned"])
def test_the_figures_are_those_of_one_region_at_a_time(world: Path, found: RegionResults, row: str) -> None:
    ranks = by_hand(world, row)
    top_k = found.masked[row]
    assert found.classes == tuple(sorted(NAMES))
    assert top_k.counts == tuple(len(ranks[name]) for name in found.classes)
    assert top_k.top1 == tuple(sum(rank < 1 for rank in ranks[name]) for name in found.classes)
    assert top_k.top5 == top_k.counts, "there are only three classes"


def test_prompts_leave_whole_pictures_as_they_are_to_the_bit_and_fine_tuning_does_not(found: RegionResults) -> None:
    assert found.identical == {"prompts"}
    assert found.whole["prompts"] == found.whole["plain CLIP"]
    assert found.whole["fine-tuned"].counts == found.whole["plain CLIP"].counts


def test_label_maps_and_instances_of_the_same_regions_have_the_same_figures(world: Path, found: RegionResults) -> None:
    maps = evaluate_regions(examination(world, regions=semantic(world).model_dump()))
    for row, top_k in found.masked.items():
        assert per_class(maps, row, maps.masked[row]) == per_class(found, row, top_k)


def per_class(found: RegionResults, row: str, top_k: TopK) -> dict[str, tuple[int, int]]:
    return {name: (of, right) for name, of, right in zip(found.classes, top_k.counts, top_k.top1, strict=True)}


def test_regions_in_folders_have_masks_by_their_colour_or_by_transparency(world: Path, tmp_path: Path) -> None:
    for path in (world / "crops").rglob("*.png"):
        rgb_HW3 = np.asarray(Image.open(path))
        alpha_HW = (rgb_HW3 != np.array(KEY_RGB)).any(2) * np.uint8(255)
        to = tmp_path / path.parent.name / path.name
        to.parent.mkdir(exist_ok=True)
        Image.fromarray(np.dstack([rgb_HW3, alpha_HW])).save(to)
    keyed, transparent = (
        list(Crops(kind="crops", folder=str(folder)).open().images) for folder in (world / "crops", tmp_path)
    )
    whole = list(Crops(kind="crops", folder=str(world / "crops"), key_rgb=None).open().images)
    assert len(keyed) == len(transparent) == sum(len(image.shapes) for image in toy.IMAGES)
    for one, other in zip(keyed, transparent, strict=True):
        assert (one.name, one.classes) == (other.name, other.classes)
        assert torch.equal(one.masks_NHW, other.masks_NHW)
    disc = next(one for one in keyed if one.name.startswith("disc"))
    assert int(disc.masks_NHW.sum()) == int(toy.shape_mask("disc").sum())
    assert all(bool(one.masks_NHW.all()) for one in whole)


def test_regions_without_background_are_examined_masked_only(world: Path) -> None:
    regions = {"kind": "crops", "folder": str(world / "crops")}
    cut = evaluate_regions(examination(world, regions=regions))
    assert list(cut.masked) == [MASKED, "prompts", "fine-tuned"]
    assert not cut.whole


def test_whole_pictures_in_folders_take_the_place_of_regions_in_context(world: Path, tmp_path: Path) -> None:
    for shape, count in (("disc", 2), ("bar", 1)):
        (tmp_path / shape).mkdir()
        for number in range(count):
            toy.save_picture(tmp_path / shape / f"{number}.png", (shape,))
    retention = {"kind": "crops", "folder": str(tmp_path), "key_rgb": None}
    found = evaluate_regions(examination(world, retention=retention))
    assert found.whole["plain CLIP"].counts == (1, 2)
    assert found.identical == {"prompts"}


def test_a_broken_picture_is_counted_and_the_others_are_examined(world: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in (world / "images").iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    (images / "000000000011.png").write_bytes(b"no picture")
    (images / "000000000012.png").unlink()
    Image.new("RGB", (toy.WIDTH_PX + 1, toy.HEIGHT_PX)).save(images / "000000000013.png")
    changed = instances(world).model_copy(update={"images": str(images)}).open()
    left = sum(len(picture.classes) for picture in changed.images)
    assert left == sum(len(image.shapes) for image in toy.IMAGES) - 2 - 1 - 2
    assert changed.left_out == {"decode_error": 1, "missing_file": 1, "another size than its masks": 1}


def test_a_map_may_count_its_classes_from_one_and_leave_some_out(world: Path, tmp_path: Path) -> None:
    for path in (world / "maps").iterdir():
        map_HW = np.asarray(Image.open(path)).astype(np.uint16)
        shifted_HW = np.where(map_HW == 255, 65535, map_HW + 1)
        Image.fromarray(np.where(map_HW == 2, 65535, shifted_HW).astype(np.uint16)).save(tmp_path / path.name)
    source = semantic(world, maps=str(tmp_path), first=1, ignore=65535).open()
    shown = [NAMES[number] for picture in source.images for number in picture.classes]
    expected = [shape for image in toy.IMAGES for shape in image.shapes if shape != "bar"]
    assert sorted(shown) == sorted(expected)


def test_examples_are_regions_on_which_plain_and_tuned_differ_and_one_is_right(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes_CE = torch.stack([look_of(world, name) for name in sorted(NAMES)])
    classes_CE = torch.nn.functional.normalize(classes_CE - classes_CE.mean(0), dim=1)
    monkeypatch.setattr(evaluation, "_embed_classes", lambda *_, place: classes_CE)
    found = evaluate_regions(examination(world))
    assert found.masked[MASKED].accuracy() == 1.0, "each class is what its regions look like to plain CLIP"
    assert found.lost
    assert all(one.plain == one.class_ != one.tuned for one in found.lost)
    assert len(found.lost) == found.masked[MASKED].regions - sum(found.masked["prompts"].top1)
    sheet = draw_examples(found.lost)
    assert sheet.width > 100
    assert len(sheet.getcolors(1 << 20) or ()) > 50

    same = evaluate_regions(examination(world, tuned={"again": {"clip": {"model": str(world / "clip")}}}))
    assert not same.won
    assert not same.lost


def look_of(world: Path, shape: str) -> torch.Tensor:
    image = Clip(model=str(world / "clip")).open_image(device="cpu")
    rgb_3HW = torch.from_numpy(toy.draw((shape,))).permute(2, 0, 1)
    mask_1HW = torch.from_numpy(toy.shape_mask(shape))[None]
    return image.embed(cut_regions([rgb_3HW], [mask_1HW], size_px=32, mean=image.mean, std=image.std, crop=Crop()))[0]


def test_classes_are_grouped_by_how_many_images_say_any_of_their_names() -> None:
    groups = group_by_frequency(("fire hydrant", "road, route", "yak"), {"Fire-Hydrant": 1, "route": 250, "road": 3})
    names = [name for name, _ in FREQUENCIES]
    assert groups == {names[1]: [0], names[4]: [1], names[0]: [2]}


def test_macro_accuracy_is_the_mean_over_classes_that_have_regions() -> None:
    top_k = TopK(counts=(8, 0, 2), top1=(4, 0, 2), top5=(8, 0, 2))
    assert top_k.macro() == pytest.approx(0.75)
    assert top_k.accuracy() == pytest.approx(0.6)
    assert top_k.classes == 2, "one has no region"
    assert top_k.accuracy(top=5) is None, "five guesses at three classes are always right"
    assert TopK((1,) * 6, (0,) * 6, (1, 1, 1, 0, 0, 0)).accuracy(top=5) == 0.5
    assert top_k.accuracy(classes=[1]) is None


def test_the_command_writes_figures_and_pictures_and_prints_them(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "evaluate.yaml"
    config.write_text(json.dumps(examination(world).model_dump(mode="json")))
    assert run_app(["evaluate", str(config), "--to", str(tmp_path / "to"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "to" / "evaluation.json").read_text())
    assert set(printed["masked_regions"]) == {UNMASKED, MASKED, "prompts", "fine-tuned"}
    assert printed["whole_pictures"]["prompts"]["identical"] is True
    assert run_app(["evaluate", str(config), "--to", str(tmp_path / "to")]) == 0
    assert "none, to the bit" in capsys.readouterr().out


def test_a_second_evaluation_removes_pictures_that_it_does_not_have(tmp_path: Path, found: RegionResults) -> None:
    write_results(found, tmp_path)
    (tmp_path / "won.png").touch()
    without = RegionResults(found.classes, found.masked, found.whole, found.identical, {}, won=(), lost=())
    assert write_results(without, tmp_path) == ["evaluation.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regions": {"kind": "crops", "folder": "absent"}}, "absent`; check the path"),
        ({"tuned": {"x": {}}}, "names nothing that was tuned"),
        ({"tuned": {"x": {"prompts": "p", "ovseg": "o"}}}, "give it alone"),
        ({"tuned": {MASKED: {"prompts": "p"}}}, "choose another"),
        ({"tuned": {"x": {"prompts": "absent.safetensors"}}}, "absent.safetensors"),
        ({"regions": {"kind": "photos"}}, "`photos` is unknown; choose one of instances, crops, semantic"),
        ({"region": {}}, "did you mean `regions`?"),
    ],
)
def test_faults_of_the_settings_are_one_line(
    world: Path, tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tree = examination(world).model_dump(mode="json") | changes
    Path("evaluate.yaml").write_text(json.dumps(tree))
    with pytest.raises(InputError) as error:
        evaluate_regions(load_settings(RegionEvaluation, "evaluate.yaml"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_leftovers_are_no_class_and_no_region_and_namesakes_in_subfolders_stay_two(tmp_path: Path) -> None:
    for name in ("dog/a/1.png", "dog/b/1.jfif", "dog/._1.png", "__MACOSX/dog/._1.png", ".ipynb_checkpoints/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), "red").save(tmp_path / name, "PNG")
    regions = Crops(kind="crops", folder=str(tmp_path)).open()
    assert regions.classes == ("dog",)
    assert [image.name for image in regions.images] == ["dog/a/1.png", "dog/b/1.jfif"]
    assert not regions.left_out


def test_a_photograph_comes_before_a_map_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("dog\n")
    Image.new("RGB", (4, 4), "red").save(tmp_path / "1.jpg")
    Image.new("L", (4, 4), 0).save(tmp_path / "1.png")
    folder = str(tmp_path)
    regions = Semantic(kind="semantic", images=folder, maps=folder, names=str(tmp_path / "names.txt")).open()
    (image,) = regions.images
    assert int(image.rgb_3HW[0].float().mean()) > 200


def test_names_that_do_not_fit_and_maps_without_pictures_are_refused(world: Path, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("one\ntwo\n")
    with pytest.raises(InputError, match="2 names for the 3 folders"):
        Crops(kind="crops", folder=str(world / "crops"), names=str(tmp_path / "two.txt")).open()
    with pytest.raises(InputError, match="none of its 0 maps has the name of a picture"):
        semantic(world, maps=str(tmp_path)).open()
    (tmp_path / "gap.txt").write_text("one\n\ntwo\n")
    with pytest.raises(InputError, match="line 2 is empty"):
        semantic(world, names=str(tmp_path / "gap.txt")).open()


def test_no_region_at_all_is_one_line_with_the_reasons(world: Path, tmp_path: Path) -> None:
    (tmp_path / "disc").mkdir()
    (tmp_path / "bar").mkdir()
    (tmp_path / "disc" / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"none that can be read \(1 decode_error\)"):
        evaluate_regions(examination(world, regions={"kind": "crops", "folder": str(tmp_path)}))
