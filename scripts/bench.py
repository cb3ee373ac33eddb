"""What the README and the release notes claim, measured in one run against the plain way to do the same."""

from __future__ import annotations

import io
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from mining.crops import grow_box
from mining.decoder import Decoding
from mining.embeddings import pack
from mining.pairs import ClipPairs
from mining.shards import ImageToWrite, Shards, write_shard
from schemas.errors import InputError
from schemas.mask import Mask
from schemas.rows import ImageRow, Noun, NounsRow, Pair, PairsRow, Region, RegionsRow
from schemas.sample import sample_key
from scripts.bench_engines import SECTIONS, bench_engines
from scripts.bench_export import bench_export
from scripts.bench_gpu import bench_gpu
from scripts.bench_gpu_tuning import bench_gpu_tuning
from scripts.bench_mining import bench_coco, bench_full_size
from scripts.bench_nouns import bench_nouns
from scripts.bench_proposers import bench_proposers
from scripts.bench_regenerate import bench_regenerate
from scripts.bench_regions import bench_region_cutting
from scripts.bench_segmenter import bench_gpu_segment, bench_segmenter
from scripts.bench_sources import PLANNED, bench_planning, bench_sources
from scripts.bench_tuning import bench_tuning
from scripts.measures import Measure, in_turns, peak_bytes

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CONSOLE = Console(width=max(110, Console().width))


def main(
    only: Annotated[
        list[str] | None,
        typer.Argument(
            help="nouns, regions, pairs, shards, export, regenerate, memory, coco, full-size, segmenter, tuning, "
            "proposers, engines (or a part of it: engines-start-up, engines-time, engines-kills, engines-memory), "
            "sources, planning, gpu, gpu-tuning, gpu-segment."
        ),
    ] = None,
    captions: Annotated[Path, typer.Option(help="COCO captions JSON.")] = SHARED / "captions_val2017_half.json",
    photos: Annotated[Path, typer.Option(help="A folder of JPEG photographs.")] = SHARED / "coco-mini" / "train2017",
    coco_mini: Annotated[Path, typer.Option(help="COCO's folder with train2017 and annotations.")] = SHARED
    / "coco-mini",
    proposer_images: Annotated[int, typer.Option(min=1, help="Pictures that each proposer is measured on.")] = 2,
    planning_images: Annotated[
        int, typer.Option(min=1, help="Generated images that planning is measured on.")
    ] = PLANNED,
    engine_minutes: Annotated[float, typer.Option(help="How long two processes are at work on the engines' load.")] = 3,
) -> None:
    """Print a table of measures, each with its goal."""
    pictures = sorted(photos.glob("*.jpg"))
    benches: dict[str, Callable[[], Iterable[Measure]]] = {
        "nouns": lambda: bench_nouns(_present(captions, "--captions")),
        "regions": lambda: bench_region_cutting(pictures or None),
        "pairs": bench_pairs,
        "shards": lambda: bench_shards(pictures),
        "export": lambda: bench_exports(pictures),
        "regenerate": bench_regenerate,
        "memory": bench_memory,
        "coco": lambda: bench_coco(_present(photos, "--photos").parent),
        "full-size": lambda: bench_full_size(_present(photos, "--photos").parent),
        "segmenter": lambda: bench_segmenter(pictures),
        "tuning": bench_tuning,
        "proposers": lambda: bench_proposers(_present(coco_mini, "--coco-mini"), images=proposer_images),
        "engines": lambda: bench_engines(minutes=engine_minutes),
        **{f"engines-{one}": partial(bench_engines, minutes=engine_minutes, sections=[one]) for one in SECTIONS},
        "sources": bench_sources,
        "planning": lambda: bench_planning(planning_images),
        "gpu": lambda: bench_gpu(pictures),
        "gpu-tuning": bench_gpu_tuning,
        "gpu-segment": lambda: bench_gpu_segment(pictures),
    }
    unknown = set(only or ()) - benches.keys()
    if unknown:
        raise InputError(f"bench: unknown {', '.join(sorted(unknown))}; known: {', '.join(benches)}")
    table = Table("bench", "measure", "value", "unit", "goal", "reached", box=None, pad_edge=False)
    try:
        for name in only or [name for name in benches if _is_default(name)]:
            CONSOLE.print(f"{name} …", style="dim")
            for measure in benches[name]():
                reached = "" if measure.reached is None else "yes" if measure.reached else "NO"
                table.add_row(name, measure.name, f"{measure.value:,.4g}", measure.unit, measure.goal, reached)
    finally:  # what was found stays, whatever comes after
        CONSOLE.print(table)


def _is_default(name: str) -> bool:
    """Parts of another bench and what takes an hour are only run by name, and those of the GPU where there is one."""
    return not name.startswith(("engines-", "planning", "proposers")) and (not name.startswith("gpu") or _has_gpu())


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def bench_pairs(*, images: int = 500, nouns: int = 11, regions: int = 30, dim: int = 768) -> list[Measure]:
    """Pairs a second of the paper's rule, with five captions' nouns and 30 regions an image, ViT-L/14 embeddings."""
    random = np.random.default_rng(0)
    text = {f"noun{n}": pack(random.normal(size=dim)) for n in range(1000)}
    names = [[f"noun{n}" for n in random.choice(1000, nouns, replace=False)] for _ in range(images)]
    said = [NounsRow(str(i), tuple(Noun(n, n, 0, 0, 1) for n in row), (), None) for i, row in enumerate(names)]
    seen = [
        RegionsRow(str(i), "", 480, 640, tuple(_random_region(random, dim) for _ in range(regions)), None)
        for i in range(images)
    ]
    match = ClipPairs().open()
    seconds, rows = _best(lambda: match(said, seen, text))
    made = sum(len(row.pairs) for row in rows)
    return [Measure("best_region_per_noun", made / seconds, "pairs/s", "", None)]


def bench_shards(photos: Sequence[Path]) -> list[Measure]:
    """Our writer against webdataset.ShardWriter fed with PIL crops, from the same pictures and masks, in turns."""
    import webdataset
    from webdataset.writer import default_handlers

    with tempfile.TemporaryDirectory() as scratch:
        paths = list(photos) or _drawn_photos(Path(scratch))
        items = [_to_write(path, number) for number, path in enumerate(paths)]

        def ours() -> int:
            with (Path(scratch) / "ours.tar").open("wb") as file:
                index, _ = write_shard(
                    file,
                    items,
                    shards=Shards(),
                    keep=lambda *_: True,
                    shard="ours.tar",
                    read=partial(Decoding().read, max_pixels=10**8),
                )
            return len(index)

        def plain(**encoders: Any) -> int:
            written = 0
            with webdataset.ShardWriter(f"{scratch}/plain-%05d.tar", verbose=0, **encoders) as writer:
                for item in items:
                    written += _write_plainly(writer, item)
            return written

        def at_our_quality(image: Image.Image) -> bytes:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=Shards().quality)
            return buffer.getvalue()

        def plain_same_quality() -> int:
            return plain(encoder={**default_handlers, "jpg": at_our_quality})

        timings = in_turns(ours, plain, plain_same_quality)
        samples = ours()
    rate, plain_rate, same_rate = (samples / seconds for seconds in timings)
    return [
        Measure("our writer", rate, "samples/s", "", None),
        Measure("webdataset.ShardWriter, PIL images", plain_rate, "samples/s", "", None),
        Measure("ours / ShardWriter", rate / plain_rate, "×", "≥ 1.5", rate / plain_rate >= 1.5),
        Measure("ours / ShardWriter at our JPEG quality", rate / same_rate, "×", "", None),
    ]


def bench_exports(photos: Sequence[Path]) -> Iterator[Measure]:
    """Each export of about a thousand pairs from photographs."""
    with tempfile.TemporaryDirectory() as scratch:
        paths = list(photos) or _drawn_photos(Path(scratch))
        rounds = max(1, 160 // len(paths))
        items = [_to_write(path, number) for number, path in enumerate(paths * rounds)]
        yield from bench_export(items)


def bench_memory(*, images: int = 300) -> list[Measure]:
    """Peak memory of a whole run in a process of its own, over N and 4 N images of the demo world."""
    from scripts.demo_world import draw_world

    with tempfile.TemporaryDirectory() as scratch:
        draw_world(Path(scratch) / "world", scenes=4 * images, seed=1)
        peaks = [_peak_of_run(Path(scratch), limit) for limit in (images, 4 * images)]
    growth = peaks[1] / peaks[0]
    return [
        Measure(f"peak memory, {images} images", peaks[0], "MB", "", None),
        Measure(f"peak memory, {4 * images} images", peaks[1], "MB", "", None),
        Measure("growth from N to 4 N", growth, "×", "≤ 1.1", growth <= 1.1),
    ]


def _peak_of_run(folder: Path, limit: int) -> float:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_mine_and_measure, (str(folder), limit))


def _mine_and_measure(folder: str, limit: int) -> float:
    from pipelines.cli import run_app

    world = f"{folder}/world"
    tree = {
        "captions": {"annotations": f"{world}/captions.json", "images": f"{world}/images"},
        "regions": {"proposals": {"kind": "ground_truth", "annotations": f"{world}/instances.json"}, "clip": None},
        "pairs": {"rule": "labels"},
        "shards": {"images_per_part": 100},
        "out": f"{folder}/run-{limit}",
    }
    config = Path(folder, f"mining-{limit}.yaml")
    config.write_text(json.dumps(tree))
    code = run_app(["mine", str(config), "--limit", str(limit)])
    if code:
        raise InputError(f"bench: the run ended with exit code {code}")
    return peak_bytes() / 2**20


def _random_region(random: np.random.Generator, dim: int) -> Region:
    return Region(Mask(480, 640, b""), (0, 0, 9, 9), 81, 1.0, None, pack(random.normal(size=dim)))


def _to_write(path: Path, number: int, *, regions: int = 6) -> ImageToWrite:
    """A picture with elliptic masks of sizes as proposals have them, each with a pair."""
    import hashlib

    with Image.open(path) as image:
        width_px, height_px = image.size
    random = np.random.default_rng(number)
    y, x = np.mgrid[:height_px, :width_px]
    made, pairs = [], []
    for index in range(regions):
        ry, rx = random.uniform(0.08, 0.35, 2) * (height_px, width_px)
        cy, cx = random.uniform(0.2, 0.8, 2) * (height_px, width_px)
        mask = Mask.from_array(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1)
        made.append(Region(mask, mask.box_xyxy, mask.area_px, 1.0, None, None))
        pairs.append(Pair("thing", "thing", 0, 0, 5, index, 0.3, 0.1, 0))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    seen = RegionsRow(str(number), sha256, height_px, width_px, tuple(made), None)
    image_id = str(number)
    return ImageToWrite(ImageRow(image_id, str(path)), ("thing",), seen, PairsRow(image_id, tuple(pairs), None), None)


def _write_plainly(writer: Any, item: ImageToWrite) -> int:
    """What a user writes without this project: PIL crops and masks into ShardWriter."""
    image = Image.open(str(item.image.path)).convert("RGB")
    for number, pair in enumerate(item.pairs.pairs):
        region = item.regions.regions[pair.region]
        box = grow_box(region.box_xyxy, ratio=Shards().expand_ratio, height_px=image.height, width_px=image.width)
        mask = Image.fromarray(region.mask.to_array() * 255)
        record = {"image_id": item.image.image_id, "caption": item.captions[0], "box": region.box_xyxy}
        writer.write(
            {
                "__key__": sample_key(item.image.image_id, number),
                "jpg": image.crop(box),
                "mask.png": mask.crop(box),
                "txt": pair.noun,
                "json": record,
            }
        )
    return len(item.pairs.pairs)


def _drawn_photos(folder: Path, *, photos: int = 24) -> list[Path]:
    """Smooth noise as JPEGs of COCO's size, where no photographs are at hand."""
    paths = []
    for number in range(photos):
        noise = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        path = folder / f"{number}.jpg"
        Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=92)
        paths.append(path)
    return paths


def _best(work: Callable[[], Any], *, repeats: int = 3) -> tuple[float, Any]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return min(times), result


def _present(path: Path, option: str) -> Path:
    if not path.exists():
        raise InputError(f"bench: {path} is not there; give {option}")
    return path


if __name__ == "__main__":
    try:
        typer.run(main)
    except InputError as error:
        sys.exit(str(error))
