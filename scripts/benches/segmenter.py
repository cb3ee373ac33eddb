"""How fast images are segmented: `Segmenter` beside the loop that a user would write and beside its tower alone, how
much memory hundreds of classes take, and at full size on a GPU.

The loop goes image by image and mask by mask: crop and fill with Pillow, open_clip's own preprocessing, the image
tower on one crop, the softmax, and a sum of masks for each class. Texts are embedded once, in both. Thirty masks a
image of 640 × 480 pixels, and CLIP with random weights; masks are given, so that what follows them is compared. The
tower alone has the same crops, cut before, in the batches that it is fastest in.
"""

from __future__ import annotations

import subprocess
import sys
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
from torch.nn.functional import interpolate

from maskmine.mining.images.crops import Crop, cut_regions, tight_boxes
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
from maskmine.scripts.measures import Measure, at_least, at_most, in_turns, peak_bytes
from maskmine.tuning.segmentation.confusion import IGNORE
from maskmine.tuning.segmentation.region_classifier import open_region_classifier
from maskmine.tuning.segmentation.segmenter import Models, Rgb, Segmentation, Segmenter

MASKS, IMAGES, ROUNDS = 30, 2, 3
CLASSES = ("dog", "cat", "horse", "bird", "tree", "flower", "car", "bus", "bicycle", "house", "ball", "book")
GPU_IMAGES, GPU_BATCHES = 8, 12
DEMO_CLIP = Path(__file__).parents[1] / "models" / "clip"
GOAL, OF_TOWER_GOAL = 3.0, 95.0
MANY_CLASSES, MANY_MASKS, LARGE_PX, GRID_PX = 847, 100, (1024, 2048), (256, 512)
PAINTS = ("soft", "sum", "best_per_class")
"""Sums of soft masks on the proposer's grid, of binary ones, and the best mask of each class."""
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

    With the demo world's CLIP, where a batch saves most, and with one of real size, which is held to the rate of its
    tower. Then the memory of many classes in a large image, each kind of map in a process of its own.
    """
    threads, load = torch.get_num_threads(), _load(photos, images)
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            weights = save_random_clip(Path(scratch) / "clip.safetensors", model=model)
            yield from _compare(load, clip=Clip(model=str(DEMO_CLIP)), name="the demo's CLIP", rounds=rounds)
            large = Clip(model=model, pretrained=str(weights))
            yield from _compare(load, clip=large, name=model, rounds=rounds, of_tower=OF_TOWER_GOAL)
    finally:
        torch.set_num_threads(threads)
    for paint in PAINTS:
        yield from _measure_apart(paint)


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


def measure_memory(paint: str) -> None:
    """Print the bytes that a map of `MANY_CLASSES` takes at its peak beside models and image, and its seconds."""
    settings = _given_masks(Clip(model=str(DEMO_CLIP)), masks=MANY_MASKS)
    if paint == "best_per_class":
        settings = settings.model_copy(update={"paint": paint})
    device = torch.device("cpu")
    classifier = open_region_classifier(settings.clip, None, crop=settings.crop, templates=_TEMPLATES, device=device)

    def propose(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals]:
        for image in images:
            size_px = (image.rgb_3HW.shape[1], image.rgb_3HW.shape[2])
            soft_Nhw = _soft_discs(size_px=GRID_PX)
            masks_NHW = torch.empty(MANY_MASKS, *size_px, dtype=torch.bool)
            for number, soft_hw in enumerate(soft_Nhw):
                masks_NHW[number] = interpolate(soft_hw[None, None], size_px, mode="bilinear")[0, 0] > 0.5
            scores_N = torch.linspace(0.1, 1.0, MANY_MASKS)  # sorted the other way round, so that masks are copied
            yield Proposals(masks_NHW, scores_N, (None,) * MANY_MASKS, soft_Nhw if paint == "soft" else None)

    segment = settings.open(models=Models(device, propose, classifier))
    names = [f"class {number}" for number in range(MANY_CLASSES)]
    classifier.embed_classes(tuple(names))
    small, large = (np.random.default_rng(0).integers(0, 256, (*px, 3), np.uint8) for px in ((64, 64), LARGE_PX))
    segment([small], classes=names)  # libraries and models take their memory
    before, start_s = peak_bytes(), time.perf_counter()
    segment([large], classes=names)
    sys.stdout.write(f"{peak_bytes() - before} {time.perf_counter() - start_s}")


def _measure_apart(paint: str) -> list[Measure]:
    program = f"from maskmine.scripts.benches.segmenter import measure_memory; measure_memory({paint!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    peak, seconds = map(float, done.stdout.split())
    what = f"{MANY_CLASSES} classes × {MANY_MASKS} proposals, {LARGE_PX[1]} × {LARGE_PX[0]}, {paint}"
    bound = LARGE_PX[0] * LARGE_PX[1] * (2 * MANY_MASKS + 60) + GRID_PX[0] * GRID_PX[1] * 8 * MANY_MASKS
    return [
        at_most(f"{what}: peak memory", peak / 1e6, "MB", bound / 1e6),
        Measure(f"{what}: the demo's CLIP", seconds, "s"),
    ]


def _soft_discs(*, size_px: tuple[int, int]) -> Tensor:
    """Discs with soft edges, float32 [N, h, w]."""
    random = np.random.default_rng(0)
    y_h1, x_1w = torch.linspace(0, 1, size_px[0])[:, None], torch.linspace(0, 1, size_px[1])
    places = zip(random.uniform(0, 1, (MANY_MASKS, 2)), random.uniform(0.03, 0.3, MANY_MASKS), strict=True)
    return torch.stack(
        [(40 * (radius - ((x_1w - x) ** 2 + (y_h1 - y) ** 2).sqrt())).sigmoid() for (x, y), radius in places]
    ).float()


def _given_masks(clip: Clip, *, masks: int) -> Segmenter:
    return Segmenter(
        proposals=GroundTruth(kind="ground_truth", annotations="given.json"),
        keep=Keep(max_iou=1.0, top=masks, min_score=0.0, min_area_px=1, max_area_ratio=1.0),
        clip=clip,
        templates=_TEMPLATES,
        device="cpu",
        cpu_threads=1,
    )


def _compare(load: _Load, *, clip: Clip, name: str, rounds: int, of_tower: float | None = None) -> list[Measure]:
    """Both ways, and the tower alone, with a goal of its rate where there is one."""
    settings = _given_masks(clip, masks=MASKS)
    device = torch.device("cpu")
    classifier = open_region_classifier(clip, None, crop=settings.crop, templates=_TEMPLATES, device=device)
    segment = settings.open(models=Models(device, _given(load.masks), classifier))
    plainly = _open_plain_loop(clip, load.classes)

    def ours() -> Maps:
        found = segment(load.images, classes=load.classes, image_ids=[str(i) for i in range(len(load.images))])
        return [one.labels_HW for one in found if isinstance(one, Segmentation)]

    def plain() -> Maps:
        return [plainly(rgb, masks) for rgb, masks in zip(load.images, load.masks, strict=True)]

    towers = _open_tower_alone(clip, load, crop=settings.crop)
    times = in_turns(ours, plain, *towers, rounds=rounds, warm_up=True)
    ours_s, plain_s, *alone_s = (seconds / len(load.images) for seconds in times)
    share = 100 * min(alone_s) / ours_s
    same = np.mean([(one == other).mean() for one, other in zip(ours(), plain(), strict=True)])
    return [
        Measure(f"{name}: Segmenter, CPU, {MASKS} masks an image", ours_s, "s an image"),
        Measure(f"{name}: plain loop", plain_s, "s an image"),
        Measure(f"{name}: plain loop / Segmenter", plain_s / ours_s, "×")
        if of_tower
        else at_least(f"{name}: plain loop / Segmenter", plain_s / ours_s, "×", GOAL),
        Measure(f"{name}: the tower alone", min(alone_s), "s an image"),
        at_least(f"{name}: Segmenter, of the tower's rate", share, "%", of_tower)
        if of_tower
        else Measure(f"{name}: Segmenter, of the tower's rate", share, "%"),
        Measure(f"{name}: pixels with the same class", 100 * float(same), "%"),
    ]


def _open_tower_alone(clip: Clip, load: _Load, *, crop: Crop) -> list[Callable[[], None]]:
    """The image tower on the crops of all images, which are cut before: an image's at once, or half of them."""
    plain = clip.open_whole()
    visual = plain.model.visual.eval()
    crops = [
        cut_regions(
            [torch.from_numpy(rgb_HW3).permute(2, 0, 1).contiguous()],
            [masks_NHW],
            size_px=plain.size_px,
            mean=plain.mean,
            std=plain.std,
            crop=crop,
        )
        for rgb_HW3, masks_NHW in zip(load.images, load.masks, strict=True)
    ]

    def embed(batches: int) -> None:
        with torch.inference_mode():
            for crops_R3SS in crops:
                for batch_B3SS in crops_R3SS.tensor_split(batches):
                    visual(batch_B3SS)

    return [lambda: embed(1), lambda: embed(2)]


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
