"""How fast the step `nouns` is beside plain spaCy, and how near its nouns come to the paper's; what `levels` costs.

The paper (§4.3.1) counts 442,117 pairs, one for each different noun of an image, over 118,287 images with one caption:
3.74 an image; with five captions 1.3 million: 11.0. The goals allow 5 % to either side.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import spacy

from maskmine.mining.levels import measure_levels
from maskmine.mining.nouns import Nouns, find_pipeline
from maskmine.mining.scores.noun_tables import NounTables
from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining
from maskmine.pipelines.steps.cells_of_run import run_cells
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import CaptionsRow, Noun, NounsRow, Region, RegionsRow, VocabularyRow
from maskmine.scripts.demo_world.on_disk import find_world
from maskmine.scripts.measures import Measure, at_least, at_most, in_turns, peak_bytes

_TIMED_IMAGES = 400
# COCO with one caption an image has fewer nouns; D is that of ViT-L/14, regions about those of MaskFormer.
_LEVELS = {"nouns": 30_000, "images": 5_000, "regions": 30, "dim": 768, "said": 4}
_COCO_IMAGES = 118_287
_MINED_SCENES = 60
_VOCABULARIES = (200_000, 5_000_000)
_TABLES = (200_000, 2_000_000)
_DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo-models.yaml"


def bench_nouns(captions_json: Path) -> list[Measure]:
    """Speed, and different nouns an image, over a COCO captions file.

    The two sides of the ratio read the same captions by turns, so that a busy machine slows both; each is timed in one
    process with the threads that it takes by itself, after a first turn that is not counted.
    """
    rows = _rows_by_image(captions_json)
    settings = Nouns()
    find = settings.open()
    return [*_speeds(rows[:_TIMED_IMAGES], find=find, model=settings.model), *_parity(rows, find=find)]


def _rows_by_image(captions_json: Path) -> list[CaptionsRow]:
    """The captions of each image in the order of their annotation ids, images by id."""
    annotations = json.loads(captions_json.read_text(encoding="utf-8"))["annotations"]
    captions: dict[int, list[str]] = defaultdict(list)
    for annotation in sorted(annotations, key=lambda a: (a["image_id"], a["id"])):
        captions[annotation["image_id"]].append(annotation["caption"])
    return [CaptionsRow(str(image_id), tuple(texts)) for image_id, texts in captions.items()]


def _speeds(
    rows: Sequence[CaptionsRow], *, find: Callable[[Sequence[CaptionsRow]], list[NounsRow]], model: str
) -> list[Measure]:
    texts = [caption for row in rows for caption in row.captions]
    whole_pipeline = spacy.load(find_pipeline(model))
    ours_s, whole_s = in_turns(lambda: find(rows), lambda: list(whole_pipeline.pipe(texts)), warm_up=True)
    return [
        Measure("captions a second, step nouns", len(texts) / ours_s, "captions/s"),
        Measure("captions a second, whole spaCy pipeline", len(texts) / whole_s, "captions/s"),
        at_least("nouns: times faster than the whole pipeline", whole_s / ours_s, "×", 3.5),
    ]


def _parity(rows: Sequence[CaptionsRow], *, find: Callable[[Sequence[CaptionsRow]], list[NounsRow]]) -> list[Measure]:
    found = find(rows)
    first = sum(len({noun.text for noun in row.nouns if noun.caption == 0}) for row in found) / len(found)
    every = sum(len({noun.text for noun in row.nouns}) for row in found) / len(found)
    return [
        Measure("different nouns an image, first caption", first, "nouns", "3.55 to 3.93", 3.55 <= first <= 3.93),
        Measure("different nouns an image, all captions", every, "nouns", "10.4 to 11.6", 10.4 <= every <= 11.6),
    ]


def bench_levels() -> Iterator[Measure]:
    """CPU of the step `levels` at COCO's size, beside the whole run's, and its memory as the vocabulary grows."""
    rng = np.random.default_rng(0)
    nouns, images, said = _LEVELS["nouns"], _LEVELS["images"], _LEVELS["said"]
    vocabulary = list(_vocabulary(nouns, dim=_LEVELS["dim"]))
    sample = _sample(rng, images=images, regions=_LEVELS["regions"], dim=_LEVELS["dim"], nouns=nouns, said=said)
    start_s = time.process_time()
    _, blocks = measure_levels(sample, lambda: vocabulary)
    rows = sum(len(block) for block in blocks)
    levels_s = time.process_time() - start_s
    image_s = _mining_cpu_s() / _MINED_SCENES
    share = 100 * levels_s / (_COCO_IMAGES * image_s)
    yield Measure(f"levels of {rows:,} nouns on {images:,} images of {_LEVELS['regions']} regions", levels_s, "CPU s")
    yield Measure("mining a drawn scene with the demo's tiny models", 1000 * image_s, "CPU ms")
    yield at_most(f"levels, share of mining {_COCO_IMAGES:,} such images", share, "%", 2)
    few, many = (_in_own_process("measure_memory", count) for count in _VOCABULARIES)
    yield Measure(f"levels of {_VOCABULARIES[0]:,} nouns: peak memory", few, "MB")
    yield Measure(f"levels of {_VOCABULARIES[1]:,} nouns: peak memory", many, "MB")
    yield at_most("levels: memory of the many / of the few", many / few, "×", 1.15)


def bench_noun_memory() -> Iterator[Measure]:
    """What a noun of the vocabulary costs a worker of `pairs` or of `shards`."""
    few, many = (_in_own_process("measure_tables", count) for count in _TABLES)
    cost = (many - few) / (_TABLES[1] - _TABLES[0])
    yield Measure(f"worker's own memory with {_TABLES[1]:,} nouns", many / 2**20, "MB")
    yield at_most("a noun more, own memory", cost, "bytes", 64)


def measure_tables(nouns: int) -> None:
    """Print the bytes of memory of its own, not mapped from files, that a process has which looks nouns up."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        cells = run_cells(RunFolder(folder))
        cells.vocabulary.write_blocks(0, _vocabulary(nouns, dim=64))
        sample = _sample(rng, images=200, regions=3, dim=64, nouns=1000, said=4)
        scale, blocks = measure_levels(sample, cells.vocabulary.read_blocks)
        cells.levels.write_blocks(0, blocks, metadata=scale.metadata())
        tables = NounTables.open(scale, cells.levels.read_groups(), cells.vocabulary.read_groups())
        tables.of_nouns(pa.array([f"n{number:08d}" for number in range(0, nouns, nouns // 1000)]))
        pa.default_memory_pool().release_unused()
        status = Path("/proc/self/status").read_text()
    sys.stdout.write(str(1024 * int(status.partition("RssAnon:")[2].split()[0])))


def measure_memory(nouns: int) -> None:
    """Print the peak memory in MB of measuring the levels of a stored vocabulary; run in a process of its own."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        cells = run_cells(RunFolder(folder))
        cells.vocabulary.write_blocks(0, _vocabulary(nouns, dim=8))
        sample = _sample(rng, images=200, regions=3, dim=8, nouns=1000, said=4)
        scale, blocks = measure_levels(sample, cells.vocabulary.read_blocks)
        cells.levels.write_blocks(0, blocks, metadata=scale.metadata())
    sys.stdout.write(f"{peak_bytes() / 2**20}\n")


def _in_own_process(measure: str, nouns: int) -> float:
    program = f"from maskmine.scripts.benches.nouns import {measure}; {measure}({nouns})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _vocabulary(nouns: int, *, dim: int) -> Iterator[list[VocabularyRow]]:
    """Random nouns in blocks, the same each time."""
    for start in range(0, nouns, 4096):
        count = min(4096, nouns - start)
        vectors = np.random.default_rng(start).normal(size=(count, dim)).astype("<f2")
        yield [
            VocabularyRow(f"n{start + i:08d}", 1, 1, vectors[i].tobytes(), f"n{start + i:08d}") for i in range(count)
        ]


def _sample(
    rng: np.random.Generator, *, images: int, regions: int, dim: int, nouns: int, said: int
) -> Iterator[tuple[NounsRow, RegionsRow]]:
    """Random images; a few nouns are said often, most of them hardly ever, as in captions."""
    for number in range(images):
        chosen = {f"n{min(nouns - 1, int(rng.pareto(0.7) * 3)):08d}" for _ in range(said)}
        mentions = tuple(Noun(text=noun, lemma=noun, caption=0, start=0, end=1) for noun in sorted(chosen))
        vectors = rng.normal(size=(regions, dim)).astype("<f2")
        found = tuple(
            Region(
                mask=Mask(1, 1, b""),
                box_xyxy=(0, 0, 1, 1),
                area_px=1,
                score=1.0,
                label=None,
                embedding=vector.tobytes(),
            )
            for vector in vectors
        )
        row = RegionsRow(image_id=str(number), sha256="", height_px=1, width_px=1, regions=found, rejection=None)
        yield NounsRow(str(number), mentions, (), None), row


def _mining_cpu_s() -> float:
    """CPU seconds of this process and its children while the demo's models mine scenes."""
    with tempfile.TemporaryDirectory() as folder:
        world = find_world(Path(folder) / "world", scenes=_MINED_SCENES, seed=12)
        overrides = [
            f"captions.annotations={world}/captions.json",
            f"captions.images={world}/images",
            f"out={folder}/run",
        ]
        settings = load_mining(str(_DEMO), overrides=overrides)
        before = _cpu_s()
        mine(settings, engine=LocalEngine(), observer=RunObserver())
        return _cpu_s() - before


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
