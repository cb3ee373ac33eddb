"""How fast images are segmented: `Segmenter` beside the loop that a user would write, and at full size on a GPU.

The loop goes image by image and mask by mask: crop and fill with Pillow, open_clip's own preprocessing, the image
tower on one crop, the softmax, and a sum of masks for each class. Texts are embedded once, in both. Thirty masks a
image of 640 × 480 pixels, and CLIP with random weights; masks are given, so that what follows them is compared.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskmine.mining.images.crops import tight_boxes
from maskmine.mining.models.clip import Clip
from maskmine.mining.models.devices import open_device
from maskmine.mining.models.prompt_templates import fill_template, load_templates
from maskmine.mining.proposers.ground_truth import GroundTruth
from maskmine.mining.proposers.maskformer import MaskFormer
from maskmine.mining.proposers.proposals import Keep, LoadedImage, Proposals
from maskmine.mining.proposers.sam import Sam
from maskmine.pipelines.steps.gpu_use import watch_gpu
from maskmine.scripts.benches.fixtures import (
    SWIN_B,
    ellipses,
    noise,
    read_photo,
    save_random_clip,
    save_random_maskformer,
    save_random_sam,
)
from maskmine.scripts.benches.gpu import use_of_gpu
from maskmine.scripts.measures import Measure, at_least, in_turns
from maskmine.tuning.segmentation.confusion import IGNORE
from maskmine.tuning.segmentation.segmenter import Models, Rgb, Segmentation, Segmenter, open_region_classifier

MASKS, IMAGES, ROUNDS = 30, 2, 3
CLASSES = ("dog", "cat", "horse", "bird", "tree", "flower", "car", "bus", "bicycle", "house", "ball", "book")
GPU_IMAGES, GPU_BATCHES = 8, 12
DEMO_CLIP = Path(__file__).parents[1] / "models" / "clip"
GOAL = 3.0
_TEMPLATES = "raw"  # texts are embedded once, in both ways, and are not timed

Maps = list[np.ndarray[Any, Any]]


@dataclass(frozen=True)
class _Load:
    """Images, their masks, and the names of the classes."""

    images: list[Rgb]
    masks: list[Tensor]
    classes: tuple[str, ...]


def bench_segmenter(
    photos: Sequence[Path] = (), *, model: str = "ViT-B-32", images: int = IMAGES, rounds: int = ROUNDS
) -> Iterator[Measure]:
    """Seconds an image of both ways on the CPU with one thread, in turns; their ratio; how far their maps agree.

    With the demo world's CLIP, where a batch saves most, and with one of real size.
    """
    threads, load = torch.get_num_threads(), _load(photos, images)
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            weights = save_random_clip(Path(scratch) / "clip.safetensors", model=model)
            yield from _compare(load, clip=Clip(model=str(DEMO_CLIP)), name="the demo's CLIP", rounds=rounds)
            yield from _compare(load, clip=Clip(model=model, pretrained=str(weights)), name=model, rounds=rounds)
    finally:
        torch.set_num_threads(threads)


def bench_gpu_segment(photos: Sequence[Path] = (), *, device: str = "cuda") -> list[Measure]:
    """Images a second with Swin-B and ViT-L/14, and with SAM ViT-L. Raises InputError without a GPU."""
    open_device(device)
    load = _load(photos, GPU_IMAGES)
    measures = []
    with tempfile.TemporaryDirectory() as scratch:
        clip = Clip(
            model="ViT-L-14", pretrained=str(save_random_clip(Path(scratch) / "clip.safetensors", model="ViT-L-14"))
        )
        # random weights score every proposal alike: keep as many as a trained model would
        keep = Keep(max_iou=1.0, top=MASKS, min_score=0.0, min_area_px=1, max_area_ratio=1.0)
        for name, proposals in _full_size(Path(scratch)):
            settings = Segmenter(proposals=proposals, keep=keep, clip=clip, device=device, batch_size=GPU_IMAGES)
            measures += _on_gpu(settings, load, name=name)
    return measures


def _compare(load: _Load, *, clip: Clip, name: str, rounds: int) -> list[Measure]:
    settings = Segmenter(
        proposals=GroundTruth(kind="ground_truth", annotations="given.json"),
        keep=Keep(max_iou=1.0, top=MASKS, min_score=0.0, min_area_px=1, max_area_ratio=1.0),
        clip=clip,
        templates=_TEMPLATES,
        device="cpu",
        cpu_threads=1,
    )
    device = torch.device("cpu")
    classifier = open_region_classifier(clip, None, crop=settings.crop, templates=_TEMPLATES, device=device)
    segment = settings.open(models=Models(device, _given(load.masks), classifier))
    plainly = _open_plain_loop(clip, load.classes)

    def ours() -> Maps:
        found = segment(load.images, classes=load.classes, image_ids=[str(i) for i in range(len(load.images))])
        return [one.labels_HW for one in found if isinstance(one, Segmentation)]

    def plain() -> Maps:
        return [plainly(rgb, masks) for rgb, masks in zip(load.images, load.masks, strict=True)]

    times = in_turns(ours, plain, rounds=rounds, warm_up=True)
    ours_s, plain_s = (seconds / len(load.images) for seconds in times)
    same = np.mean([(one == other).mean() for one, other in zip(ours(), plain(), strict=True)])
    return [
        Measure(f"{name}: Segmenter, CPU, {MASKS} masks an image", ours_s, "s an image"),
        Measure(f"{name}: plain loop", plain_s, "s an image"),
        at_least(f"{name}: plain loop / Segmenter", plain_s / ours_s, "×", GOAL),
        Measure(f"{name}: pixels with the same class", 100 * float(same), "%"),
    ]


def _load(photos: Sequence[Path], image_count: int) -> _Load:
    images = [read_photo(path) for path in photos[:image_count]] if photos else noise(image_count)
    masks = [ellipses(MASKS, seed=number) for number in range(len(images))]
    return _Load(
        [image_3HW.permute(1, 2, 0).contiguous().numpy() for image_3HW in images],
        masks,
        CLASSES,
    )


def _given(masks: Sequence[Tensor]) -> Callable[..., Iterator[Proposals]]:
    """A proposer that has the masks already, by the number that is an image's id."""

    def propose(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals]:
        for image in images:
            masks_NHW = masks[int(image.image_id)]
            yield Proposals(masks_NHW, torch.ones(len(masks_NHW)), (None,) * len(masks_NHW))

    return propose


def _open_plain_loop(which: Clip, classes: Sequence[str]) -> Callable[[Rgb, Tensor], Any]:
    """What one would write with open_clip and Pillow."""
    import open_clip

    name = _open_clip_name(which)
    clip, _, preprocess = open_clip.create_model_and_transforms(
        name, pretrained=which.pretrained, image_resize_mode="squash"
    )
    clip.eval()
    tokenize = open_clip.get_tokenizer(name)
    with torch.inference_mode():
        texts = []
        for class_ in classes:
            sentences = [fill_template(template, class_) for template in load_templates(_TEMPLATES)]
            embedded = clip.encode_text(tokenize(sentences), normalize=True).mean(dim=0)
            texts.append(embedded / embedded.norm())
        texts_CD = torch.stack(texts)
    colour = tuple(round(255 * value) for value in clip.visual.image_mean)

    @torch.inference_mode()
    def segment(rgb_HW3: Rgb, masks_NHW: Tensor) -> Any:
        image = Image.fromarray(rgb_HW3)
        sums_CHW = torch.zeros(len(classes), *masks_NHW.shape[1:])
        for mask_HW, box in zip(masks_NHW, tight_boxes(masks_NHW).tolist(), strict=True):
            shown = Image.new("RGB", image.size, colour)
            shown.paste(image, mask=Image.fromarray(mask_HW.numpy()))
            image_D = clip.encode_image(preprocess(shown.crop(box))[None], normalize=True)[0]
            votes_C = (100 * texts_CD @ image_D).softmax(dim=0)
            sums_CHW += votes_C[:, None, None] * mask_HW
        best_HW, labels_HW = sums_CHW.max(dim=0)
        return torch.where(best_HW > 0, labels_HW, IGNORE).numpy()

    return segment


def _open_clip_name(clip: Clip) -> str:
    """What open_clip calls it: a folder has a prefix."""
    return clip.model if clip.pretrained else f"local-dir:{clip.model}"


def _full_size(folder: Path) -> Iterator[tuple[str, MaskFormer | Sam]]:
    """The proposers by name, with random weights."""
    maskformer = save_random_maskformer(folder / "maskformer", **SWIN_B)
    yield "Swin-B, ViT-L/14", MaskFormer(kind="maskformer", checkpoint=str(maskformer))
    # random masks are neither sure nor stable: keep what there is
    sam = Sam(
        kind="sam",
        checkpoint=str(save_random_sam(folder / "sam", large=True)),
        min_predicted_iou=0.0,
        min_stability=0.0,
    )
    yield "SAM ViT-L, ViT-L/14", sam


def _on_gpu(settings: Segmenter, load: _Load, *, name: str, batches: int = GPU_BATCHES) -> list[Measure]:
    segment = settings.open()
    segment(load.images, classes=load.classes)  # kernels are chosen, memory is taken
    regions = 0
    with watch_gpu(settings.device) as use:
        start_s = time.perf_counter()
        for _ in range(batches):
            found = segment(load.images, classes=load.classes)  # maps in host memory, so it waits for the device
            regions += sum(len(one.regions) for one in found if isinstance(one, Segmentation))
        whole_s = time.perf_counter() - start_s
    images = batches * len(load.images)
    measures = [
        Measure("images a second", images / whole_s, "images/s"),
        Measure("seconds an image (the paper: 0.8)", whole_s / images, "s"),
        Measure("crops a second", regions / whole_s, "crops/s"),
        Measure("regions an image", regions / images, "regions"),
        *use_of_gpu(use, settings.device),
    ]
    return [replace(measure, name=f"{name}: {measure.name}") for measure in measures]
