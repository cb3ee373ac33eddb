"""The models that are shipped: they open, they are small, and they know what they are said to know."""

from __future__ import annotations

import torch

from maskmine.mining.images.crops import cut_regions
from maskmine.pipelines.settings.mining import load_mining
from maskmine.scripts.accuracy.clip import MASKED, noun_embeddings
from maskmine.scripts.accuracy.open_vocabulary import CLIP, OWN, TAUGHT, demo_segmenter, measure_open
from maskmine.scripts.accuracy.proposals import measure_proposals
from maskmine.scripts.demo_world.nouns import demo_nouns
from maskmine.scripts.demo_world.scene import draw_scene
from tests.support.paths import ROOT

MODELS = ROOT / "scripts" / "models"
SCENES = [draw_scene(33, index=index) for index in range(8)]


def test_all_models_together_are_small_enough_to_be_cloned_without_a_thought() -> None:
    assert sum(file.stat().st_size for file in MODELS.rglob("*") if file.is_file()) < 12_000_000


def test_the_clip_names_most_masked_objects_among_all_nouns() -> None:
    clip = load_mining(str(ROOT / "configs" / "demo-models.yaml")).regions.clip
    assert clip is not None
    clip = clip.model_copy(update={"model": str(MODELS / "clip")})
    image, nouns_KD = clip.open_image(device="cpu"), noun_embeddings(clip.open_text(device="cpu"))
    pixels = [torch.from_numpy(scene.picture_HW3).permute(2, 0, 1) for scene in SCENES]
    masks = [torch.from_numpy(scene.masks_NHW) for scene in SCENES]
    crops_R3SS = cut_regions(pixels, masks, size_px=image.size_px, mean=image.mean, std=image.std, crop=MASKED)
    guessed = [demo_nouns()[number] for number in (image.embed(crops_R3SS) @ nouns_KD.T).argmax(1).tolist()]
    truth = [noun for scene in SCENES for noun in scene.nouns]
    assert sum(one == other for one, other in zip(guessed, truth, strict=True)) > len(truth) / 2


def test_the_maskformer_finds_most_objects_of_scenes_that_it_never_saw() -> None:
    proposals = load_mining(str(ROOT / "configs" / "demo-models.yaml")).regions.proposals
    proposer = proposals.model_copy(update={"checkpoint": str(MODELS / "maskformer")}).open(device="cpu")
    recall = measure_proposals(proposer, SCENES)
    assert recall.all.objects > 20
    assert recall.all.at_50 > 0.7
    assert recall.proposals_a_scene <= 30


def test_the_open_maskformer_names_most_objects_that_it_was_taught_and_helps_clip() -> None:
    scenes = (draw_scene(33, index=index) for index in range(100, 116))
    taught = measure_open(demo_segmenter(MODELS / "open_maskformer", clip=MODELS / "clip"), scenes)[TAUGHT]
    assert taught.matched > 10
    assert taught.top1_of_kind[OWN] > 0.5
    assert taught.top1_of_kind["both, λ 0.3"] >= taught.top1_of_kind[CLIP]
