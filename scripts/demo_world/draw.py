"""Write a demo world: COCO captions, COCO instances and JPEGs, drawn from the OpenMoji colour font.

    python -m maskmine.scripts.demo_world.draw demo-world --scenes 200 --seed 7

The ground truth is exact to the pixel: which nouns are in an image, and where. Scenes are drawn by `draw_scene`
(demo_scene.py), which training calls directly; here they are put on disk. The same seed gives the same bytes, for any
number of workers, as long as Pillow, NumPy and the font are the same.

OpenMoji (https://openmoji.org) is licensed CC BY-SA 4.0, and so are the images drawn with it; the files say so.
"""

from __future__ import annotations

import functools
import io
import multiprocessing
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask
from maskmine.schemas.settings import canonical_json
from maskmine.scripts.demo_world.nouns import demo_nouns, openmoji_version
from maskmine.scripts.demo_world.scene import draw_scene

JPEG_QUALITY = 92
app = typer.Typer(add_completion=False)
_LICENCE = {"id": 1, "name": "CC BY-SA 4.0", "url": "https://creativecommons.org/licenses/by-sa/4.0/"}
_ATTRIBUTION = "All emojis designed by OpenMoji – the open-source emoji and icon project. License: CC BY-SA 4.0"


@dataclass(frozen=True, slots=True)
class _Record:
    """What the annotation files say of a scene: its size, and the category number and mask of every object."""

    index: int
    height_px: int
    width_px: int
    captions: tuple[str, ...]
    objects: tuple[tuple[int, Mask], ...]


def draw_world(out: Path, *, scenes: int, seed: int, workers: int = 1) -> None:
    """Write `out/images/*.jpg`, `out/captions.json` and `out/instances.json`, whole or not at all.

    Raises InputError when the folder has something in it, a number is out of range, or the font is not installed.
    """
    _check(out, scenes, seed, workers)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    records = list(_records(partial / "images", scenes, seed, workers))
    for name, body in (("captions", _captions(records)), ("instances", _instances(records))):
        content = {**_head(records, scenes, seed), **body}
        (partial / f"{name}.json").write_text(canonical_json(content), encoding="utf-8")
    if out.exists():
        out.rmdir()
    partial.rename(out)


def image_name(index: int) -> str:
    """The file of scene number `index`; its COCO image id is `index + 1`."""
    return f"{index + 1:012d}.jpg"


def jpeg(image: Image.Image) -> bytes:
    """The image as the demo world stores it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _check(out: Path, scenes: int, seed: int, workers: int) -> None:
    openmoji_version()
    if scenes < 1 or workers < 1 or seed < 0:
        raise InputError(f"scenes {scenes}, seed {seed}, workers {workers}: at least 1, 0 and 1 are needed")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not an empty folder: name a new one, or delete it")


def _records(images: Path, scenes: int, seed: int, workers: int) -> Iterator[_Record]:
    """Draw every scene, in order; workers take turns, and no scene depends on who drew it."""
    jobs = zip(repeat(images), repeat(seed), range(scenes), strict=False)
    if workers == 1:
        yield from (_draw(job) for job in jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_draw, jobs, chunksize=16)


def _draw(job: tuple[Path, int, int]) -> _Record:
    images, seed, index = job
    scene = draw_scene(seed, index=index)
    (images / image_name(index)).write_bytes(jpeg(Image.fromarray(scene.picture_HW3)))
    height_px, width_px = scene.picture_HW3.shape[:2]
    numbers = [_category_numbers()[noun.noun] for noun in scene.nouns]
    objects = tuple(zip(numbers, Mask.from_arrays(scene.masks_NHW), strict=True))
    return _Record(index, height_px, width_px, scene.captions, objects)


@functools.cache
def _category_numbers() -> dict[str, int]:
    return {noun.noun: number for number, noun in enumerate(demo_nouns(), start=1)}


def _head(records: list[_Record], scenes: int, seed: int) -> dict[str, Any]:
    """What both annotation files begin with; no year and no date, for the bytes are to be the same tomorrow."""
    info = {
        "description": f"maskmine demo world: {scenes} scenes of seed {seed}, drawn with OpenMoji {openmoji_version()}",
        "url": "https://openmoji.org",
        "version": "1",
        "contributor": _ATTRIBUTION,
    }
    images = [
        {
            "id": record.index + 1,
            "file_name": image_name(record.index),
            "height": record.height_px,
            "width": record.width_px,
            "license": _LICENCE["id"],
        }
        for record in records
    ]
    return {"info": info, "licenses": [_LICENCE], "images": images}


def _captions(records: list[_Record]) -> dict[str, Any]:
    pairs = [(record.index + 1, caption) for record in records for caption in record.captions]
    return {
        "annotations": [
            {"id": number, "image_id": image_id, "caption": caption}
            for number, (image_id, caption) in enumerate(pairs, start=1)
        ]
    }


def _instances(records: list[_Record]) -> dict[str, Any]:
    categories = [
        {"id": number, "name": noun.noun, "supercategory": noun.kind}
        for number, noun in enumerate(demo_nouns(), start=1)
    ]
    found = [(record.index + 1, category, mask) for record in records for category, mask in record.objects]
    annotations = [
        coco_object(number, image_id, category, mask)
        for number, (image_id, category, mask) in enumerate(found, start=1)
    ]
    return {"categories": categories, "annotations": annotations}


def coco_object(number: int, image_id: int, category: int, mask: Mask) -> dict[str, Any]:
    """An annotation of a COCO instances JSON: a mask as compressed run lengths, its box as x, y, width and height."""
    left, top, right, bottom = mask.box_xyxy
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "segmentation": {"size": [mask.height_px, mask.width_px], "counts": mask.counts.decode("ascii")},
        "area": mask.area_px,
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": 0,
    }


@app.command()
def _command(
    out: Annotated[Path, typer.Argument(help="the folder to write; new, or empty")],
    scenes: Annotated[int, typer.Option(help="number of images")] = 200,
    seed: Annotated[int, typer.Option(help="the same seed draws the same world")] = 7,
    workers: Annotated[int, typer.Option(help="processes; the result does not depend on it")] = 1,
) -> None:
    """Draw a demo world: images with captions and exact masks, in COCO's format."""
    try:
        draw_world(out, scenes=scenes, seed=seed, workers=workers)
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"{scenes} scenes in {out}")


if __name__ == "__main__":
    app()
