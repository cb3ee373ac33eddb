"""What every verifier promises, whatever its library: one contract for all, on tiny models with random weights."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from maskmine.mining.verifiers import checks
from maskmine.mining.verifiers.checks import Check, Found, Verify
from maskmine.mining.verifiers.kinds import AnyVerifier
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask
from maskmine.schemas.settings import plain_values
from tests.support.tiny.verifiers import KINDS, OF_TRANSFORMERS

SIZES = ((48, 72), (200, 31), (1, 1), (1, 3000), (700, 2))
NOUNS = ["cat", "dog", "red car"]


@pytest.fixture(scope="module")
def settings_of(saved_verifiers: dict[str, dict[str, Any]]) -> Callable[[str], Any]:
    return lambda kind: TypeAdapter(AnyVerifier).validate_python(saved_verifiers[kind])


@pytest.fixture(scope="module")
def opened(settings_of: Callable[[str], Any]) -> Callable[[str], Verify]:
    loaded: dict[str, Verify] = {}

    def open_one(kind: str) -> Verify:
        if kind not in loaded:
            loaded[kind] = settings_of(kind).open(device="cpu")
        return loaded[kind]

    return open_one


def picture(height_px: int = 48, width_px: int = 72, *, seed: int = 1) -> torch.Tensor:
    numbers = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height_px, width_px), dtype=torch.uint8, generator=numbers)


def regions(height_px: int = 48, width_px: int = 72) -> list[Mask]:
    """The whole picture, its left half and its upper half."""
    masks_NHW = torch.ones(3, height_px, width_px, dtype=torch.bool)
    masks_NHW[1, :, -(-width_px // 2) :] = masks_NHW[2, -(-height_px // 2) :] = False
    return Mask.from_arrays(masks_NHW.numpy())


def checked(verify: Verify, nouns: Sequence[str], chosen: Sequence[int], **changes: Any) -> list[Check]:
    return verify(picture(**changes), nouns=nouns, regions=regions(), chosen=chosen)


@pytest.mark.parametrize("kind", KINDS)
def test_a_check_lies_between_0_and_1_whatever_the_pictures_shape(opened: Callable[[str], Verify], kind: str) -> None:
    for size_px in SIZES:
        found = opened(kind)(picture(*size_px), nouns=NOUNS, regions=regions(*size_px), chosen=[0, 1, 2])
        assert len(found) == 3
        for check in found:
            assert check.reason is None
            assert check.presence is not None
            assert check.agreement is not None
            assert 0 <= check.presence <= 1
            assert 0 <= check.agreement <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_checks_have_the_order_of_the_pairs_and_a_noun_twice_has_one_presence(
    opened: Callable[[str], Verify], kind: str
) -> None:
    nouns, chosen = ["dog", "cat", "dog", "red car", "dog"], [0, 1, 2, 0, 0]
    found = checked(opened(kind), nouns, chosen)
    assert found[0] == found[4]
    assert found[0].presence == found[2].presence
    backwards = checked(opened(kind), nouns[::-1], chosen[::-1])
    assert backwards[::-1] == found
    assert len({check.presence for check in found}) > 1  # nouns are told apart


@pytest.mark.parametrize("kind", KINDS)
def test_neither_other_nouns_nor_other_pictures_change_a_check_on_a_cpu(
    opened: Callable[[str], Verify], kind: str
) -> None:
    many = [f"thing {number}" for number in range(6)]
    (alone,) = checked(opened(kind), ["dog"], [1])
    assert checked(opened(kind), [*many, "dog"], [0] * 6 + [1])[-1] == alone
    assert checked(opened(kind), ["dog"], [1], seed=2) != [alone]
    assert checked(opened(kind), ["dog"], [1]) == [alone]


@pytest.mark.parametrize("kind", OF_TRANSFORMERS)
def test_a_batch_of_nouns_changes_rounding_only(
    opened: Callable[[str], Verify], settings_of: Callable[[str], Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where batches have one size, the last one filled up."""
    one_by_one = checked(opened(kind), NOUNS, [0, 1, 2])

    def in_pairs(items: Sequence[Any], **_: Any) -> Any:
        return (([*items[i : i + 2], items[-1]][:2], len(items[i : i + 2])) for i in range(0, len(items), 2))

    module = type(settings_of(kind)).__module__
    monkeypatch.setattr(f"{module}.fixed_batches", in_pairs)
    for check, other in zip(checked(settings_of(kind).open(device="cpu"), NOUNS, [0, 1, 2]), one_by_one, strict=True):
        assert check.presence == pytest.approx(other.presence, abs=1e-4)
        assert check.agreement == pytest.approx(other.agreement, abs=1e-3)


def test_batches_have_one_size_on_a_gpu_and_one_item_on_a_cpu() -> None:
    gpu = torch.device("cuda")
    assert list(checks.fixed_batches("abcde", batch_size=2, device=gpu)) == [
        (["a", "b"], 2),
        (["c", "d"], 2),
        (["e", "e"], 1),
    ]
    assert list(checks.fixed_batches("ab", batch_size=2, device=torch.device("cpu"))) == [(["a"], 1), (["b"], 1)]
    assert list(checks.fixed_batches("", batch_size=2, device=gpu)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_looked_at_once_and_a_noun_read_once_for_all_pictures(
    settings_of: Callable[[str], Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, reads = spied(kind, monkeypatch)
    verify = settings_of(kind).open(device="cpu")
    looks.clear()
    reads.clear()
    checked(verify, [*NOUNS, "dog"], [0, 1, 2, 0])
    read = len(reads)
    assert (len(looks), read > 0) == (1, True)
    checked(verify, NOUNS, [0, 1, 2], seed=2)
    assert (len(looks), len(reads)) == (2, read)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_without_pairs_or_without_a_readable_noun_is_not_looked_at(
    settings_of: Callable[[str], Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, _ = spied(kind, monkeypatch)
    verify = settings_of(kind).open(device="cpu")
    looks.clear()
    too_long = Check(None, None, "text_too_long")
    assert checked(verify, [], []) == []
    assert checked(verify, ["very " * 200 + "long"], [0]) == [too_long]
    assert looks == []
    first, second = checked(verify, ["very " * 200 + "long", "dog"], [0, 1])
    assert (first, second) == (too_long, *checked(verify, ["dog"], [1]))


def spied(kind: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[None], list[None]]:
    """Where the part that looks at a picture is called, and the part that reads texts."""
    looking = {
        "sam3": "transformers.models.sam3.modeling_sam3.Sam3VisionModel.forward",
        "owlv2": "transformers.models.owlv2.modeling_owlv2.Owlv2VisionTransformer.forward",
        "mm_grounding_dino": "transformers.models.swin.modeling_swin.SwinBackbone.forward",
        "clip": "maskmine.mining.verifiers.second_clip.embed_regions",
        "open_maskformer": "transformers.models.maskformer.modeling_maskformer.MaskFormerModel.forward",
    }
    reading = {
        "sam3": "transformers.models.clip.modeling_clip.CLIPTextModelWithProjection.forward",
        "owlv2": "transformers.models.owlv2.modeling_owlv2.Owlv2TextTransformer.forward",
        "mm_grounding_dino": "maskmine.mining.verifiers.mm_grounding_dino.as_prompt",
        "clip": "open_clip.CLIP.encode_text",
        "open_maskformer": "open_clip.CLIP.encode_text",
    }
    return spy(looking[kind], monkeypatch), spy(reading[kind], monkeypatch)


def spy(path: str, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    calls: list[None] = []
    module, _, name = path.rpartition(".")
    owner = pkgutil.resolve_name(module)
    original = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


@pytest.mark.parametrize("kind", KINDS)
def test_instances_lie_in_the_picture_and_have_its_size(
    settings_of: Callable[[str], Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Found] = []
    monkeypatch.setattr(checks, "_checked", lambda found: [seen.append(found), found][1])
    checked(settings_of(kind).open(device="cpu"), NOUNS, [0, 1, 2])
    assert len(seen) == 3
    assert sum(len(found.masks or found.boxes) for found in seen) > 3 * (kind != "clip")
    for found in seen:
        assert all((mask.height_px, mask.width_px) == (48, 72) for mask in found.masks or ())
        assert all(0 <= x0 <= x1 <= 72 and 0 <= y0 <= y1 <= 48 for x0, y0, x1, y1 in found.boxes)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_gives_finite_checks_near_those_of_float32(
    opened: Callable[[str], Verify], settings_of: Callable[[str], Any], kind: str
) -> None:
    exact = checked(opened(kind), NOUNS, [0, 1, 2])
    change = {"clip": settings_of(kind).clip.model_copy(update={"precision": "bfloat16"})} if kind == "clip" else {}
    half = settings_of(kind).model_copy(update=change or {"precision": "bfloat16"}).open(device="cpu")
    for check, other in zip(checked(half, NOUNS, [0, 1, 2]), exact, strict=True):
        assert check.presence == pytest.approx(other.presence, abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_may_have_hundreds_of_nouns_and_no_batch_is_larger_than_the_setting(
    opened: Callable[[str], Verify], settings_of: Callable[[str], Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nouns, size, settings = [f"n{number}" for number in range(300)], 64, settings_of(kind)
    if kind in OF_TRANSFORMERS:  # in batches as on a GPU
        settings = settings.model_copy(update={"batch_size": size})
        in_batches = partial(checks.fixed_batches, device=torch.device("cuda"))
        module = type(settings).__module__
        monkeypatch.setattr(
            f"{module}.fixed_batches", lambda items, *, batch_size, device: in_batches(items, batch_size=batch_size)
        )
    else:
        settings = settings.model_copy(update={"clip": settings.clip.model_copy(update={"batch_size": size})})
    verify = settings.open(device="cpu")
    rows = [rows_at(path, monkeypatch) for path in READING[kind]]
    found = checked(verify, nouns, [0] * len(nouns))
    assert [check.reason for check in found] == [None] * len(nouns)
    assert [set(counts) for counts in rows] == [{size}] * len(rows)
    assert {len(counts) for counts in rows} == {5}
    (alone,) = checked(opened(kind), ["n7"], [0])
    assert found[7].presence == pytest.approx(alone.presence, abs=1e-4)


READING = {
    "sam3": ("transformers.CLIPTextModelWithProjection.forward", "transformers.Sam3Model.forward"),
    "owlv2": ("transformers.models.owlv2.modeling_owlv2.Owlv2TextTransformer.forward",),
    "mm_grounding_dino": ("transformers.MMGroundingDinoForObjectDetection.forward",),
    "clip": ("open_clip.CLIP.encode_text",),
    "open_maskformer": ("open_clip.CLIP.encode_text",),
}
"""Where nouns are looked at together."""


def rows_at(path: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many nouns are looked at by each call."""
    counts: list[int] = []
    owner, _, name = path.rpartition(".")
    original = getattr(pkgutil.resolve_name(owner), name)

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        texts = kwargs.get("attention_mask", kwargs.get("input_ids", args[0] if args else None))
        counts.append(len(texts))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(pkgutil.resolve_name(owner), name, counted)
    return counts


def test_answers_that_are_no_numbers_are_refused() -> None:
    verify = checks.verify_pairs(list, lambda *_: iter([Found(float("nan"))]))
    with pytest.raises(InputError, match=r"verifier\.precision: the model's answers are not finite; use bfloat16"):
        verify(picture(), nouns=["cat"], regions=regions(), chosen=[0])


def test_regions_of_another_picture_are_a_mistake_of_the_caller(opened: Callable[[str], Verify]) -> None:
    with pytest.raises(ValueError, match=r"regions of \[\(48, 72\)\] pixels for a picture of \(8, 8\)"):
        opened("clip")(picture(8, 8), nouns=["cat"], regions=regions(), chosen=[0])


def test_the_agreement_is_the_best_iou_with_an_instance_and_0_without_one() -> None:
    whole, left, upper = regions()
    assert Found(0.9, (left, upper)).agreement(whole) == 0.5
    assert Found(0.9, (left, whole)).agreement(whole) == 1.0
    assert Found(0.1, ()).agreement(whole) == 0.0
    assert Found(0.9, boxes=((0, 0, 36, 48), (70, 40, 72, 48))).agreement(left) == 1.0
    assert Found(0.9, boxes=((18, 0, 54, 48),)).agreement(left) == pytest.approx(1 / 3)
    assert Found(0.9, boxes=((72, 10, 72, 40),)).agreement(left) == 0.0
    assert Found(0.1).agreement(whole) == 0.0


def test_only_the_last_texts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_KEPT_TEXTS", 2)
    read: list[str] = []

    def lengths(nouns: Sequence[str]) -> list[int | None]:
        read.extend(nouns)
        return [len(noun) if noun != "x" else None for noun in nouns]

    cache = checks.TextCache(lengths)
    assert cache(["a", "bb", "x"]) == [1, 2, None]
    assert cache(["bb", "x"]) == [2, None]
    assert read == ["a", "bb", "x"]
    assert cache(["a"]) == [1]
    assert cache(["x", "bb"]) == [None, 2]
    assert read == ["a", "bb", "x", "a", "bb"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_says_what_was_loaded_and_under_which_licence(settings_of: Callable[[str], Any], kind: str) -> None:
    record = settings_of(kind).record()
    assert (record.role, record.licence) == ("verifier", "Apache-2.0")
    assert len(record.sha256) == 64


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_identified_by_the_files_that_they_name(
    settings_of: Callable[[str], Any], kind: str, tmp_path: Path
) -> None:
    settings = settings_of(kind)
    content = plain_values(settings.settled("cpu"), contents=True)
    assert "auto" not in str(content)
    settings.fetch()  # which has nothing to do for a folder
    if kind in OF_TRANSFORMERS:
        tokenizer = Path(settings.checkpoint) / "tokenizer_config.json"
        before = tokenizer.read_text()
        try:
            tokenizer.write_text(before + " ")
            assert plain_values(settings.settled("cpu"), contents=True) != content
        finally:
            tokenizer.write_text(before)
    assert plain_values(settings.settled("cpu"), contents=True) == content
