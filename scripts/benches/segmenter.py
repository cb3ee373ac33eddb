"""How fast pictures are segmented: `Segmenter` beside the loop that one would write, and at full size on a GPU.

The loop goes picture by picture and mask by mask: crop and fill with Pillow, open_clip's own preprocessing, the image
tower on one crop, the softmax, and a sum of masks for each class. Texts are embedded once, in both. Thirty masks a
picture of 640 × 480 pixels, and CLIP with random weights; masks are given, so that what follows them is compared.

*The tower alone* is what no batching can take away: the arithmetic of the image tower on as many crops as there are,
ready in memory and in batches. So `at most` is the ratio that a segmenter would reach that does nothing else. On a CPU
that is below the goal with any CLIP of real size: batches save overhead and no arithmetic.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mining.crops import tight_boxes
from mining.devices import open_device
from mining.models.clip import Clip
from mining.models.ground_truth import GroundTruth
from mining.models.maskformer import MaskFormer
from mining.models.sam import Sam
from mining.proposals import Keep, LoadedImage, Proposals
from mining.segmentation_scores import NOTHING
from mining.templates import fill_template, load_templates
from scripts.bench_gpu import SWIN_B
from scripts.bench_mining import save_random_clip, save_random_maskformer
from scripts.bench_regions import ellipses, noise, read_photo
from scripts.measures import Measure, in_turns
from tuning.segmenter import Models, Rgb, Segmentation, Segmenter, open_look

MASKS, PICTURES, ROUNDS = 30, 2, 3
CLASSES = ("dog", "cat", "horse", "bird", "tree", "flower", "car", "bus", "bicycle", "house", "ball", "book")
GPU_PICTURES, GPU_BATCHES = 8, 12
DEMO_CLIP = Path(__file__).parent / "models" / "clip"
GOAL = 3.0
_TEMPLATES = "raw"  # texts are embedded once, in both ways, and are not timed

Maps = list[np.ndarray[Any, Any]]


@dataclass(frozen=True)
class _Load:
    """Pictures, their masks, and the names of the classes."""

    pictures: list[Rgb]
    masks: list[Tensor]
    classes: tuple[str, ...]


def bench_segmenter(
    photos: Sequence[Path] = (), *, model: str = "ViT-B-32", pictures: int = PICTURES, rounds: int = ROUNDS
) -> Iterator[Measure]:
    """Seconds a picture of both ways on the CPU with one thread, in turns; their ratio; how far their maps agree.

    With the demo world's CLIP, where a batch saves most, and with one of real size.
    """
    threads, load = torch.get_num_threads(), _load(photos, pictures)
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            weights = save_random_clip(Path(scratch) / "clip.safetensors", model=model)
            yield from _compare(load, clip=Clip(model=str(DEMO_CLIP)), name="the demo's CLIP", rounds=rounds)
            yield from _compare(load, clip=Clip(model=model, pretrained=str(weights)), name=model, rounds=rounds)
    finally:
        torch.set_num_threads(threads)


def bench_gpu_segment(photos: Sequence[Path] = (), *, device: str = "cuda") -> list[Measure]:
    """Pictures a second with Swin-B and ViT-L/14, and with SAM ViT-L. Raises InputError without a GPU."""
    open_device(device)
    load = _load(photos, GPU_PICTURES)
    measures = []
    with tempfile.TemporaryDirectory() as scratch:
        clip = Clip(
            model="ViT-L-14", pretrained=str(save_random_clip(Path(scratch) / "clip.safetensors", model="ViT-L-14"))
        )
        # random weights score every proposal alike: keep as many as a trained model would
        keep = Keep(max_iou=1.0, top=MASKS, min_score=0.0, min_area_px=1, max_area_ratio=1.0)
        for name, proposals in _full_size(Path(scratch)):
            settings = Segmenter(proposals=proposals, keep=keep, clip=clip, device=device, batch_size=GPU_PICTURES)
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
    look = open_look(settings, device=device)
    segment = settings.open(models=Models(device, _given(load.masks), look))
    plainly = _open_plain_loop(clip, load.classes)

    def ours() -> Maps:
        found = segment(load.pictures, classes=load.classes, image_ids=[str(i) for i in range(len(load.pictures))])
        return [one.labels_HW for one in found if isinstance(one, Segmentation)]

    def plain() -> Maps:
        return [plainly(rgb, masks) for rgb, masks in zip(load.pictures, load.masks, strict=True)]

    tower = _open_tower(clip)
    crops = MASKS * len(load.pictures)
    times = in_turns(ours, plain, lambda: tower(crops), rounds=rounds, warm_up=True)
    ours_s, plain_s, tower_s = (seconds / len(load.pictures) for seconds in times)
    ratio = plain_s / ours_s
    same = np.mean([(one == other).mean() for one, other in zip(ours(), plain(), strict=True)])
    return [
        Measure(f"{name}: Segmenter, CPU, {MASKS} masks a picture", ours_s, "s a picture", "", None),
        Measure(f"{name}: plain loop", plain_s, "s a picture", "", None),
        Measure(f"{name}: plain loop / Segmenter", ratio, "×", f"≥ {GOAL:g}", ratio >= GOAL),
        Measure(f"{name}: plain loop / the tower alone in batches: at most", plain_s / tower_s, "×", "", None),
        Measure(f"{name}: the tower alone, share of Segmenter's time", tower_s / ours_s, "", "", None),
        Measure(f"{name}: pixels with the same class", 100 * float(same), "%", "", None),
    ]


def _load(photos: Sequence[Path], pictures: int) -> _Load:
    images = [read_photo(path) for path in photos[:pictures]] if photos else noise(pictures)
    masks = [ellipses(MASKS, seed=number) for number in range(len(images))]
    return _Load(
        [image_3HW.permute(1, 2, 0).contiguous().numpy() for image_3HW in images],
        masks,
        CLASSES,
    )


def _given(masks: Sequence[Tensor]) -> Callable[..., Iterator[Proposals]]:
    """A proposer that has the masks already, by the number that is a picture's id."""

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
        picture = Image.fromarray(rgb_HW3)
        sums_CHW = torch.zeros(len(classes), *masks_NHW.shape[1:])
        for mask_HW, box in zip(masks_NHW, tight_boxes(masks_NHW).tolist(), strict=True):
            shown = Image.new("RGB", picture.size, colour)
            shown.paste(picture, mask=Image.fromarray(mask_HW.numpy()))
            image_D = clip.encode_image(preprocess(shown.crop(box))[None], normalize=True)[0]
            votes_C = (100 * texts_CD @ image_D).softmax(dim=0)
            sums_CHW += votes_C[:, None, None] * mask_HW
        best_HW, labels_HW = sums_CHW.max(dim=0)
        return torch.where(best_HW > 0, labels_HW, NOTHING).numpy()

    return segment


def _open_tower(which: Clip) -> Callable[[int], Tensor]:
    """The image tower on so many ready crops, eight at a time."""
    import open_clip

    visual = open_clip.create_model(_open_clip_name(which), pretrained=which.pretrained).visual.eval()
    size_px = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
    crops_8 = torch.randn(8, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def run(crops: int) -> Tensor:
        return torch.cat([visual(crops_8[: min(8, crops - done)]) for done in range(0, crops, 8)])

    return run


def _open_clip_name(clip: Clip) -> str:
    """What open_clip calls it: a folder has a prefix."""
    return clip.model if clip.pretrained else f"local-dir:{clip.model}"


def _full_size(folder: Path) -> Iterator[tuple[str, MaskFormer | Sam]]:
    """The proposers by name, with random weights."""
    maskformer = save_random_maskformer(folder / "maskformer", **SWIN_B)
    yield "Swin-B, ViT-L/14", MaskFormer(kind="maskformer", checkpoint=str(maskformer))
    # random masks are neither sure nor stable: keep what there is
    sam = Sam(kind="sam", checkpoint=str(_save_random_sam(folder / "sam")), min_predicted_iou=0.0, min_stability=0.0)
    yield "SAM ViT-L, ViT-L/14", sam


def _save_random_sam(folder: Path) -> Path:
    """A SAM with random weights, of the size of facebook/sam-vit-large."""
    from transformers import SamConfig, SamImageProcessor, SamModel

    torch.manual_seed(0)
    vision = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "mlp_dim": 4096,
        "global_attn_indexes": [5, 11, 17, 23],
        "num_pos_feats": 128,
    }
    SamModel(SamConfig(vision_config=vision)).save_pretrained(folder)
    SamImageProcessor().save_pretrained(folder)
    return folder


def _on_gpu(settings: Segmenter, load: _Load, *, name: str) -> list[Measure]:
    segment = settings.open()
    segment(load.pictures, classes=load.classes)  # kernels are chosen, memory is taken
    torch.cuda.reset_peak_memory_stats()
    regions, start_s = 0, time.perf_counter()
    for _ in range(GPU_BATCHES):
        found = segment(load.pictures, classes=load.classes)
        regions += sum(len(one.regions) for one in found if isinstance(one, Segmentation))
    torch.cuda.synchronize()
    pictures = GPU_BATCHES * len(load.pictures)
    picture_s = (time.perf_counter() - start_s) / pictures
    return [
        Measure(f"{name}: pictures a second", 1 / picture_s, "pictures/s", "", None),
        Measure(f"{name}: seconds a picture (the paper: 0.8)", picture_s, "s", "", None),
        Measure(f"{name}: regions a picture", regions / pictures, "regions", "", None),
        Measure(f"{name}: peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB", "", None),
    ]
