"""The open-vocabulary MaskFormer: its data, its training, and any classes from its queries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import settings as laws
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from maskmine.mining.models.clip import Clip
from maskmine.mining.proposers.maskformer import MaskFormer
from maskmine.mining.proposers.open_vocabulary import OpenMaskFormer
from maskmine.mining.proposers.open_vocabulary_checkpoint import HEAD_FILE, read_head, read_record
from maskmine.mining.proposers.proposals import LoadedImage, Proposals
from maskmine.mining.proposers.text_head import TextHead, class_probabilities, layer_answers
from maskmine.mining.storage.content_hash import weights_sha256
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.settings.mining import load_settings
from maskmine.schemas.errors import InputError, OtherPlanError
from maskmine.tuning.open_vocabulary.data import MapBatch, MapBatches, open_maps, show
from maskmine.tuning.open_vocabulary.initial_model import from_backbone, from_maskformer, new_losses
from maskmine.tuning.open_vocabulary.settings import Maps, MapView, Optimizer, ProposalTraining
from maskmine.tuning.open_vocabulary.step import MaskLearner, new_optimizer, targets_of
from maskmine.tuning.open_vocabulary.train import train_proposals
from maskmine.tuning.segmentation.confusion import IGNORE
from maskmine.tuning.segmentation.proposal_classifier import open_proposal_classifier
from maskmine.tuning.segmentation.segmenter import Segmenter
from maskmine.tuning.training.batches import load_batches
from tests.support.models import SIZE, network, save_tiny_clip, units
from tests.support.paths import ROOT

NAMES = ("cat", "dog", "sky")
COLOURS = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [90, 90, 90]], np.uint8)
VIEW = {"crop_px": 32, "scale": [1.0, 1.5], "long_side_px": 64, "jitter": False}
FAST = {"learning_rate": 1e-2, "weight_decay": 0.01, "backbone_multiplier": 1.0, "max_gradient_norm": 1.0}
CONSOLE = Console(quiet=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP and another one, a tiny MaskFormer, and eight pictures in three colours with their maps."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny_clip(folder / "clip")
    save_tiny_clip(folder / "other-clip", seed=1)
    network("maskformer").save_pretrained(folder / "plain")
    transformers.MaskFormerImageProcessor(size=SIZE).save_pretrained(folder / "plain")
    chance = np.random.default_rng(0)
    for name in ("images", "maps"):
        (folder / name).mkdir()
    for number in range(8):
        labels_HW = np.kron(chance.integers(0, 4, (3, 4)), np.ones((16, 16), int))
        Image.fromarray(COLOURS[labels_HW]).save(folder / "images" / f"{number}.png")
        stored = np.where(labels_HW == 3, 255, labels_HW).astype(np.uint8)
        Image.fromarray(stored).save(folder / "maps" / f"{number}.png")
    (folder / "names.txt").write_text("\n".join(NAMES))
    return folder


def settings_of(world: Path, out: Path, **changes: Any) -> ProposalTraining:
    tree: dict[str, Any] = {
        "clip": {"model": str(world / "clip")},
        "maps": {"images": str(world / "images"), "maps": str(world / "maps"), "names": str(world / "names.txt")},
        "start": {"checkpoint": str(world / "plain")},
        "head": {"hidden": 16, "templates": "raw"},
        "view": VIEW,
        "optimizer": {**FAST, "steps": 4, "batch_size": 3, "warmup_steps": 1},
        "device": "cpu",
        "log_every": 1,
        "out": str(out),
        **changes,
    }
    tree["maps"] = {**tree["maps"], "workers": 0}
    return ProposalTraining.model_validate(tree)


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole MaskFormer after four steps."""
    return train_proposals(settings_of(world, tmp_path_factory.mktemp("trained")), console=CONSOLE)


@pytest.fixture(scope="module")
def head_only(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head after four steps, on the MaskFormer as it was."""
    out = tmp_path_factory.mktemp("head")
    return train_proposals(settings_of(world, out, trains="head"), console=CONSOLE)


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def proposed(checkpoint: Path) -> Proposals:
    pixels = torch.randint(256, (3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    open_settings = OpenMaskFormer(kind="open_maskformer", checkpoint=str(checkpoint))
    (found,) = open_settings.open(device="cpu")([LoadedImage("it", pixels)], min_score=0.0)
    assert isinstance(found, Proposals)
    return found


# ---- losses


def test_every_layer_of_the_decoder_has_its_losses(world: Path) -> None:
    body, head = from_maskformer(str(world / "plain")), TextHead(units(3, 8), width=16, pixels=0, hidden=8, layers=2)
    pixels_B3HW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    answers = layer_answers(body.network, head, pixels_B3HW)
    assert [tuple(queries_BQD.shape) for queries_BQD, _ in answers] == [(2, 6, 8)] * 2
    expected = body.network(pixels_B3HW)
    torch.testing.assert_close(answers[-1][1], expected.masks_queries_logits)
    torch.testing.assert_close(answers[-1][0], head(expected.transformer_decoder_last_hidden_state))
    scored = [(torch.zeros(2, 6, 4), masks_BQhw) for _, masks_BQhw in answers]
    targets = targets_of(torch.tensor(np.random.default_rng(0).integers(0, 3, (2, 32, 32)), dtype=torch.int32))
    losses = new_losses(classes=3, device=torch.device("cpu"))(scored, *targets)
    assert set(losses) == {"class", "mask", "dice", "class_0", "mask_0", "dice_0"}


# ---- pictures and maps


@laws(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(20, 70), st.integers(20, 70))
def test_labels_stay_on_their_pixels_and_grey_is_nothing(seed: int, height_px: int, width_px: int) -> None:
    labels_HW = np.random.default_rng(seed).integers(0, 3, (height_px // 10 + 1, width_px // 10 + 1))
    labels_HW = np.kron(labels_HW, np.ones((10, 10), int))[:height_px, :width_px]
    view = MapView(crop_px=48, scale=(0.5, 2.0), long_side_px=80, jitter=False, max_class_share=0.75)
    pixels_3SS, shown_SS = show(COLOURS[labels_HW], labels_HW, view=view, seed=(seed,))
    assert pixels_3SS.shape == (3, 48, 48)
    assert pixels_3SS.dtype == torch.uint8
    assert (pixels_3SS[:, shown_SS == IGNORE] == 128).all()
    known = shown_SS != IGNORE
    nearest = (pixels_3SS.permute(1, 2, 0)[known][:, None].float() - torch.tensor(COLOURS[:3]).float()).norm(dim=2)
    assert (nearest.argmin(1) == shown_SS[known]).float().mean() > 0.9  # but for mixed colours at borders
    again = show(COLOURS[labels_HW], labels_HW, view=view, seed=(seed,))
    assert torch.equal(pixels_3SS, again[0])


def test_jitter_changes_colours_and_no_label() -> None:
    labels_HW = np.zeros((40, 40), int)
    shown = [
        show(
            COLOURS[labels_HW],
            labels_HW,
            view=MapView(crop_px=32, scale=(0.8, 0.8), long_side_px=64, mirror=False, jitter=on),
            seed=(n,),
        )
        for on in (False, True)
        for n in range(6)
    ]
    assert len({bytes(pixels.numpy()) for pixels, _ in shown[6:]}) > 3
    assert all(torch.equal(one[1], other[1]) for one, other in zip(shown[:6], shown[6:], strict=True))


def test_batches_follow_from_their_number_and_processes_share_them(world: Path, tmp_path: Path) -> None:
    settings = settings_of(world, tmp_path)
    dataset = open_maps(settings.maps)

    def batches(start: int, **more: int) -> list[MapBatch]:
        batches = MapBatches(dataset, settings.view, batch_size=4, seed=0, **more)
        return list(load_batches(batches, start=start, stop=3, workers=0))

    whole, rest = batches(0), batches(2)
    assert torch.equal(whole[2].pixels_B3SS, rest[0].pixels_B3SS)
    parts = [batches(0, rank=rank, processes=2)[1] for rank in range(2)]
    assert torch.equal(whole[1].labels_BSS[0::2], parts[0].labels_BSS)
    assert torch.equal(whole[1].labels_BSS[1::2], parts[1].labels_BSS)


def test_maps_of_sixteen_bits_hold_more_than_255_classes(tmp_path: Path) -> None:
    for name in ("images", "maps"):
        (tmp_path / name).mkdir()
    numbers_HW = np.array([[300, 65_535], [0, 255]], np.uint16)
    Image.fromarray(numbers_HW).save(tmp_path / "maps" / "a.png")
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "images" / "a.jpg")
    (tmp_path / "names.txt").write_text("\n".join(f"class {number}" for number in range(301)))
    places = {name: str(tmp_path / name) for name in ("images", "maps")}
    dataset = open_maps(Maps(**places, names=str(tmp_path / "names.txt")))
    view = MapView(crop_px=32, scale=(1.0, 1.0), long_side_px=64, mirror=False, jitter=False)
    batch = MapBatches(dataset, view, batch_size=1, seed=0)[0]
    assert isinstance(batch, MapBatch)
    assert sorted(set(batch.labels_BSS.flatten().tolist())) == [IGNORE, 0, 255, 300]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing map", "lacks the maps of 1 of 8 images, such as 0.png"),
        ("class outside", r"has class 3, and `names` has 3 \(0 to 2; 255 is no class\)"),
        ("other size", "its image"),
        ("wrong count", "has 3 names, not the 171 of maps.classes"),
        ("name twice", "2 different names in 3 lines"),
        ("no names", "cannot be read"),
        ("no pictures", "holds no picture"),
        ("no folder", "there is no folder"),
        ("no picture", "cannot be decoded"),
        ("colours", "has mode RGB"),
    ],
)
def test_wrong_data_is_one_line(world: Path, tmp_path: Path, fault: str, message: str) -> None:
    here = Path(shutil.copytree(world, tmp_path / "here", ignore=shutil.ignore_patterns("clip", "other-clip", "plain")))
    mapped, classes = here / "maps" / "0.png", None
    if fault == "missing map":
        mapped.unlink()
    elif fault == "class outside":
        Image.fromarray(np.full((48, 64), 3, np.uint8)).save(mapped)
    elif fault == "other size":
        Image.fromarray(np.zeros((48, 63), np.uint8)).save(mapped)
    elif fault == "colours":
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(mapped)
    elif fault == "wrong count":
        classes = 171
    elif fault == "name twice":
        (here / "names.txt").write_text("cat\ndog\ncat\n")
    elif fault == "no names":
        (here / "names.txt").unlink()
    elif fault == "no picture":
        (here / "images" / "0.png").write_bytes(b"no picture")
    elif fault == "no pictures":
        shutil.rmtree(here / "images")
        (here / "images").mkdir()
    elif fault == "no folder":
        shutil.rmtree(here / "maps")
    places = {name: str(here / name) for name in ("images", "maps")}
    with pytest.raises(InputError, match=message) as error:
        open_maps(Maps(**places, names=str(here / "names.txt"), classes=classes))
    assert one_line(error).startswith("maps")


def test_a_fault_in_a_later_map_ends_the_training_in_one_line(world: Path, tmp_path: Path) -> None:
    here = Path(shutil.copytree(world, tmp_path / "here"))
    for number in range(1, 8):
        Image.fromarray(np.full((48, 64), 9, np.uint8)).save(here / "maps" / f"{number}.png")
    with pytest.raises(InputError, match="has class 9") as error:
        train_proposals(settings_of(here, tmp_path / "out"), console=CONSOLE)
    one_line(error)


# ---- groups of parameters


def test_norms_and_embeddings_do_not_decay_and_the_backbone_has_its_own_rate() -> None:
    body = network("maskformer")
    head = TextHead(units(3, 8), width=16, pixels=0, hidden=8, layers=2)
    chosen = Optimizer(**{**FAST, "learning_rate": 1.0, "weight_decay": 0.5, "backbone_multiplier": 0.1})
    names = {id(value): name for name, value in (*body.named_parameters(), *head.named_parameters())}
    groups = {
        names[id(value)]: (group["lr"], group["weight_decay"])
        for group in new_optimizer(body, head, optimizer=chosen).param_groups
        for value in group["params"]
    }
    assert len(groups) == len(names)
    encoder, decoder = "model.pixel_level_module.encoder.", "model.transformer_module."
    assert groups["project.0.weight"] == groups["project.0.bias"] == (1.0, 0.5)
    assert groups["no_object_D"] == groups[f"{decoder}queries_embedder.weight"] == (1.0, 0.0)
    assert groups[f"{decoder}decoder.layernorm.weight"] == (1.0, 0.0)
    assert {groups[name] for name in groups if name.startswith(encoder)} == {(0.1, 0.5), (0.1, 0.0)}
    tables = [name for name in groups if name.endswith("relative_position_bias_table")]
    assert tables
    assert all(groups[name] == (0.1, 0.0) for name in tables)


# ---- training


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [{**json.loads(line), "images_per_s": 0} for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_training_that_was_cut_off_has_the_same_losses_and_weights(
    world: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, taken = MaskLearner.step, 0

    def cut_off(*arguments: Any, **more: Any) -> dict[str, float]:
        nonlocal taken
        taken += 1
        if taken == 3:
            raise KeyboardInterrupt
        return step(*arguments, **more)

    settings = settings_of(world, tmp_path / "out", checkpoint_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(MaskLearner, "step", cut_off)
        with pytest.raises(KeyboardInterrupt):
            train_proposals(settings, console=CONSOLE)
    assert len(rows_of(tmp_path / "out")) == 2
    resumed = train_proposals(settings, console=CONSOLE)
    assert rows_of(tmp_path / "out") == rows_of(trained.parent)
    assert weights_sha256(resumed) == weights_sha256(trained)
    with pytest.raises(OtherPlanError):
        train_proposals(settings.model_copy(update={"seed": 1}), console=CONSOLE)


def test_training_makes_the_losses_fall(world: Path, tmp_path: Path) -> None:
    changes = {"optimizer": {**FAST, "steps": 20, "batch_size": 2, "warmup_steps": 4}}
    train_proposals(settings_of(world, tmp_path, **changes), console=CONSOLE)
    rows = rows_of(tmp_path)
    first, last = (
        {name: np.mean([row[name] for row in part]) for name in rows[0] if "loss" in name}
        for part in (rows[:5], rows[-5:])
    )
    assert last["loss"] < 0.8 * first["loss"]
    assert last["class_loss"] < first["class_loss"]


def test_a_head_that_looks_under_the_masks_learns_and_is_found_again(world: Path, tmp_path: Path) -> None:
    head = {"hidden": 16, "templates": "raw", "sees": "queries_and_pixels"}
    folder = train_proposals(settings_of(world, tmp_path, head=head, trains="head"), console=CONSOLE)
    assert read_record(folder).pixels
    assert read_head(folder)["project.0.weight"].shape == (16, 16 + 8 + 16 + 32 + 64)
    assert proposed(folder).queries_ND is not None


def test_with_the_head_alone_the_body_keeps_its_bits_and_is_not_copied(world: Path, head_only: Path) -> None:
    before = weights_sha256(world / "plain")
    record = read_record(head_only)
    assert sorted(path.name for path in head_only.iterdir()) == [HEAD_FILE, "open_vocabulary.json"]
    assert (head_only / str(record.body)).resolve() == (world / "plain").resolve()
    plain = MaskFormer(kind="maskformer", checkpoint=str(world / "plain")).open(device="cpu")
    pixels = torch.randint(256, (3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (expected,) = plain([LoadedImage("it", pixels)], min_score=0.0)
    found = proposed(head_only)
    assert isinstance(expected, Proposals)
    assert torch.equal(found.masks_NHW, expected.masks_NHW)
    assert torch.equal(found.scores_N, expected.scores_N)
    assert found.labels == expected.labels
    assert weights_sha256(world / "plain") == before


def test_a_body_that_is_another_one_now_is_refused(world: Path, head_only: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(head_only, tmp_path / "head" / "maskformer"))
    with pytest.raises(InputError, match="was trained on a MaskFormer that is no longer in") as error:
        proposed(moved)
    one_line(error)


def test_half_precision_is_half_as_large_and_nearly_the_same(world: Path, trained: Path, tmp_path: Path) -> None:
    half = train_proposals(settings_of(world, tmp_path, half=True), console=CONSOLE)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (half, trained)]
    assert sizes[0] < 0.6 * sizes[1]
    torch.testing.assert_close(proposed(half).scores_N, proposed(trained).scores_N, rtol=0, atol=0.02)


def test_a_backbone_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"backbone: `.*absent` cannot be had") as error:
        from_backbone(str(tmp_path / "absent"), decoder={"d_model": 32}, short_side_px=64, long_side_px=128)
    one_line(error)


# ---- as a proposer


def test_scores_are_one_less_no_object_by_the_classes_of_the_training(trained: Path) -> None:
    found, head = proposed(trained), read_head(trained)
    assert found.queries_ND is not None
    assert found.classes_NK is not None
    expected = class_probabilities(found.queries_ND, head["classes_KD"], head["no_object_D"], logit_scale=100.0)
    torch.testing.assert_close(found.classes_NK, expected, rtol=0, atol=1e-5)
    assert found.class_names == NAMES
    assert (found.scores_N <= expected.sum(1) + 1e-6).all()


def test_any_classes_can_be_asked_for_and_their_order_does_not_matter(world: Path, trained: Path) -> None:
    settings = OpenMaskFormer(kind="open_maskformer", checkpoint=str(trained))
    own = open_proposal_classifier(settings, clip=Clip(model=str(world / "clip")), device="cpu", at_once=True)
    found = proposed(trained)
    one, other = own(found, ("saturn v", "cat", "others")), own(found, ("others", "saturn v", "cat"))
    torch.testing.assert_close(one, other[:, [1, 2, 0]])
    assert one.shape == (len(found), 3)
    torch.testing.assert_close(own(found, NAMES), found.classes_NK, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", ["proposals", "ensemble"])
def test_pictures_are_segmented_by_classes_that_it_never_saw(world: Path, trained: Path, rule: str) -> None:
    settings = load_settings(
        Segmenter,
        None,
        overrides=[
            f"proposals={json.dumps({'kind': 'open_maskformer', 'checkpoint': str(trained)})}",
            f"clip={json.dumps({'model': str(world / 'clip')})}",
            *("templates=raw", f"rule={rule}", "device=cpu", "cpu_threads=1", "keep.min_score=0"),
        ],
    )
    (found,) = settings.open()([COLOURS[np.zeros((40, 48), int)]], classes=["comet", "blossom"])
    assert set(np.unique(found.labels_HW)) <= {IGNORE, 0, 1}  # type: ignore[union-attr]
    assert all(score is None or 0 < score < 1 for score in found.scores)  # type: ignore[union-attr]
    assert [record.role for record in settings.records()] == ["proposals", "clip"]


def test_the_text_of_another_clip_is_refused(world: Path, trained: Path) -> None:
    settings = OpenMaskFormer(kind="open_maskformer", checkpoint=str(trained))
    with pytest.raises(InputError, match=r"were trained in the text space of `.*clip`") as error:
        open_proposal_classifier(settings, clip=Clip(model=str(world / "other-clip")), device="cpu", at_once=True)
    one_line(error)
    open_proposal_classifier(settings, clip=Clip(model=str(world / "other-clip")), device="cpu", at_once=False)


def test_the_two_kinds_are_not_taken_for_each_other(world: Path, trained: Path) -> None:
    with pytest.raises(InputError, match="use kind: open_maskformer") as error:
        MaskFormer(kind="maskformer", checkpoint=str(trained)).open(device="cpu")
    one_line(error)
    with pytest.raises(InputError, match="use kind: maskformer") as error:
        OpenMaskFormer(kind="open_maskformer", checkpoint=str(world / "plain")).open(device="cpu")
    one_line(error)


def test_a_damaged_folder_is_one_line(trained: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(trained, tmp_path / "damaged"))
    (damaged / HEAD_FILE).write_bytes(b"no tensors")
    with pytest.raises(InputError, match=f"{HEAD_FILE}: cannot be loaded") as error:
        proposed(damaged)
    one_line(error)
    (damaged / "open_vocabulary.json").write_text('{"format": 2}')
    with pytest.raises(InputError, match="has format 2, not 1"):
        read_record(damaged)


def test_the_command_says_in_one_line_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_app(["train-proposals", str(ROOT / "configs" / "train-proposals-swin-b.yaml")]) == 2
    assert capsys.readouterr().err.startswith(
        f"maskmine: maps.names: `{tmp_path}/coco/stuffthingmaps_detectron2/train2017.names.txt` cannot be read"
    )
