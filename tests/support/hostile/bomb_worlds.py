"""Commands that read pictures, each on a folder of picture bombs among good ones, with what it must end with."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from maskmine.schemas.errors import Exit
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import SampleRow
from maskmine.schemas.sample import member_names, sample_members, write_end_of_tar, write_members
from maskmine.schemas.tables import from_table, to_table, write_parquet
from maskmine.scripts.demo_world.scene import draw_scene
from tests.support import toy
from tests.support.benchmark_layouts import write_miniature
from tests.support.models import CLIP, CONFIG, MASKFORMER
from tests.support.runs import run_toy
from tests.support.source_formats import WRAPPINGS, Captioned

GOOD = "good.png"
Words = Sequence[object]
Bombs = Mapping[str, bytes]


@dataclass(frozen=True)
class Command:
    """Words of a command, the exit code that it ends with, and some of what it says."""

    words: Words
    code: int = Exit.COMPLETE
    says: tuple[str, ...] = ()


def scene_png() -> bytes:
    """A picture of the demo world, in which its models find something."""
    buffer = io.BytesIO()
    Image.fromarray(draw_scene(33, index=0).picture_HW3).save(buffer, "PNG")
    return buffer.getvalue()


def captioned(bombs: Bombs, kind: str, good: bytes) -> list[Captioned]:
    words = " ".join(f"A {noun.noun}." for noun in draw_scene(33, index=0).nouns)
    named = {**bombs, GOOD: good}
    return [
        Captioned(f"{kind}_{name.replace('.', '_')}", data, (words,), name.rpartition(".")[2])
        for name, data in named.items()
    ]


MODELS = {
    "proposals": {"kind": "maskformer", "checkpoint": str(MASKFORMER), "licence": "CC-BY-SA-4.0"},
    "keep": {"min_score": 0.01, "min_area_px": 60, "top": 3},
    "clip": {"model": str(CLIP), "licence": "CC-BY-SA-4.0"},
    "device": "cpu",
    "decode_threads": 1,
}
SEGMENTER = ("--config", CONFIG, "--set", f"clip.model={CLIP}", "--set", f"proposals.checkpoint={MASKFORMER}")


@dataclass(frozen=True)
class World:
    """A folder in which commands find what they read, made when the first one asks for it; none changes it."""

    folder: Path
    bombs: Bombs

    @cached_property
    def pictures(self) -> Path:
        """The bombs and a good picture."""
        write(self.folder / "pictures", self.bombs, scene_png())
        return self.folder / "pictures"

    @cached_property
    def changed(self) -> Path:
        """The world of a finished run, `run`, whose photographs have become bombs since."""
        folder = self.folder / "changed"
        mined(folder, [*self.bombs, GOOD])
        for name, data in self.bombs.items():
            (folder / "images" / name).write_bytes(data)
        return folder

    @cached_property
    def shards(self) -> Path:
        """A finished run whose shards hold a bomb in each sample but the last, for its crop and its mask in turn.

        All sums are those of its files, as whoever hands it on would have them.
        """
        run = mined(self.folder / "shards", [*self.bombs, GOOD])
        put_in_shard(run, self.bombs)
        return run

    @cached_property
    def maps(self) -> dict[str, str]:
        """Settings that name pictures, label maps, of which every second pair has a bomb, and classes."""
        folder = self.folder / "maps"
        for part in ("images", "maps"):
            (folder / part).mkdir(parents=True)
        picture = Image.fromarray(toy.draw(("square",)))
        labels = Image.fromarray(toy.shape_mask("square").astype(np.uint8))
        for number, data in enumerate([*self.bombs.values(), None]):
            picture.save(folder / "images" / f"{number}.png")
            labels.save(folder / "maps" / f"{number}.png")
            if data is not None:
                (folder / ("images", "maps")[number % 2] / f"{number}.png").write_bytes(data)
        (folder / "names.txt").write_text("goat\npumpkin\n")
        return {name: str(folder / file) for name, file in (("images",) * 2, ("maps",) * 2, ("names", "names.txt"))}

    @cached_property
    def download(self) -> Path:
        """Folder of a benchmark's download with bombs."""
        folder = self.folder / "download"
        write_miniature("voc20", folder)
        voc, good = folder / "VOCdevkit/VOC2012", "2007_000033"
        names = [good, "2007_000042"]
        for number, data in enumerate(self.bombs.values()):
            name = f"bomb_{number}"
            files = f"JPEGImages/{name}.jpg", f"SegmentationClassAug/{name}.png"
            for file in files:
                shutil.copy(voc / file.replace(name, good), voc / file)
            (voc / files[number % 2]).write_bytes(data)
            names.append(name)
        (voc / "ImageSets/Segmentation/val.txt").write_text("\n".join(names) + "\n")
        return folder

    def config(self, name: str, tree: Any) -> Path:
        """A file of settings; JSON is YAML."""
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(tree))
        return path


def write(folder: Path, bombs: Bombs, good: bytes) -> None:
    folder.mkdir(parents=True)
    for name, data in {**bombs, GOOD: good}.items():
        (folder / name).write_bytes(data)


def mined(folder: Path, names: Sequence[str]) -> Path:
    """A finished run of as many pictures as there are names: a square each, of two classes in turn."""
    (folder / "images").mkdir(parents=True)
    rle = {"size": [toy.HEIGHT_PX, toy.WIDTH_PX], "counts": Mask.from_array(toy.shape_mask("square")).counts.decode()}
    images: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number, name in enumerate(names, start=1):
        with (folder / "images" / name).open("wb") as file:
            Image.fromarray(toy.draw(("square",))).save(file, "PNG")
        of_image = {"id": number, "image_id": number}
        images.append({"id": number, "file_name": name, "height": toy.HEIGHT_PX, "width": toy.WIDTH_PX})
        captions.append({**of_image, "caption": "A square and a disc."})
        objects.append({**of_image, "category_id": 1 + number % 2, "segmentation": rle, "iscrowd": 0})
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    classes = [{"id": 1, "name": "square"}, {"id": 2, "name": "disc"}]
    (folder / "instances.json").write_text(
        json.dumps({"images": images, "annotations": objects, "categories": classes})
    )
    run_toy(toy.write_config(folder, shards={"images_per_part": 100}))
    return folder / "run"


def put_in_shard(run: Path, bombs: Bombs) -> None:
    """Put bombs into the first samples of a run's one shard, and all sums right."""
    tar, index = run / "shards" / "00000.tar", run / "shards" / "00000.parquet"
    rows, stored, changed = from_table(pq.read_table(index), SampleRow), tar.read_bytes(), io.BytesIO()
    made = []
    for row, data in itertools.zip_longest(rows, bombs.values()):
        image_format, *contents = sample_members(stored[row.offset : row.offset + row.size_bytes], row.key)
        if data is not None:
            contents[len(made) % 2] = data
        offset = changed.tell()
        size_bytes = write_members(changed, zip(member_names(row.key, image_format), contents, strict=True))
        crc32 = zlib.crc32(changed.getvalue()[offset:])
        made.append(replace(row, offset=offset, size_bytes=size_bytes, crc32=crc32))
    write_end_of_tar(changed, size_bytes=changed.tell())
    tar.write_bytes(changed.getvalue())
    with index.open("wb") as file:
        write_parquet(to_table(made, SampleRow), file)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["shards"][0] |= {"size_bytes": tar.stat().st_size, "sha256": sha256(tar), "index_sha256": sha256(index)}
    (run / "manifest.json").write_text(json.dumps(manifest))
    for name in ("SHA256SUMS", "SHA256SUMS.run"):
        files = [line.split("  ")[1] for line in (run / name).read_text().splitlines()]
        (run / name).write_text("".join(f"{sha256(run / file)}  {file}\n" for file in files))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- the commands -----------------------------------------------------------------------------------------------------


def mine(world: World, *kinds: str, **changes: Any) -> Command:
    """Mine with models from sources of these kinds."""
    sources = []
    for kind in kinds:
        (world.folder / kind).mkdir()
        images = captioned(world.bombs, kind, scene_png())
        sources.append({**WRAPPINGS[kind](world.folder / kind, images), "name": kind})
    folder = world.folder / f"mine {kinds[0]}"
    folder.mkdir()
    pairs = {"rule": "best_region_per_noun"}
    config = toy.write_config(folder, captions=sources, regions=MODELS, pairs=pairs, **changes)
    return Command(("mine", config, "--json", "--quiet"), says=(f'"images": {len(kinds) * (len(world.bombs) + 1)}',))


def segment(world: World) -> Command:
    words = ("segment", world.pictures, "--classes", "goat, pumpkin", *SEGMENTER, "--to", world.folder / "segmented")
    return Command((*words, "--set", "templates=raw"), Exit.TOO_MANY_REJECTED, ("images could not be segmented",))


def benchmark(world: World) -> Command:
    options = [word for name, path in world.maps.items() for word in (f"--{name}", path)]
    words = ("benchmark", "mine", *options, *SEGMENTER, "--set", "templates=raw", "--to", world.folder / "measured")
    return Command(words, Exit.TOO_MANY_REJECTED, ("pictures are not in these figures", "image_too_large"))


def evaluate(world: World, kind: str) -> Command:
    sources: dict[str, dict[str, str]] = {"semantic": world.maps, "crops": {"folder": str(world.folder / "crops")}}
    if kind == "crops":
        write(world.folder / "crops" / "goat", world.bombs, scene_png())
        write(world.folder / "crops" / "pumpkin", {}, scene_png())
    elif kind == "instances":
        places = {"annotations": world.changed / "instances.json", "images": world.changed / "images"}
        sources["instances"] = {name: str(path) for name, path in places.items()}
    regions = {"kind": kind, **sources[kind]}
    tree = {"clip": {"model": str(CLIP)}, "regions": regions, "device": "cpu", "templates": "raw"}
    words = ("evaluate", world.config(kind, tree), "--to", world.folder / f"evaluated {kind}")
    return Command(words, says=("not counted: ", "(image_too_large)"))


def tune(world: World) -> Command:
    tree = {
        "clip": {"model": str(CLIP)},
        "data": {"sources": [{"folder": str(world.shards)}], "workers": 0},
        "mode": "prompts",
        "prompts": {"batch_size": 2, "steps": 20, "warmup_steps": 1},
        "device": "cpu",
        "out": str(world.folder / "tuned"),
    }
    return Command(("tune", world.config("tune", tree)), Exit.BAD_INPUT, ("run `maskmine verify` on the folder",))


def train_proposals(world: World) -> Command:
    rates = {"learning_rate": 1e-3, "weight_decay": 0.0, "backbone_multiplier": 1.0, "max_gradient_norm": 1.0}
    tree = {
        "clip": {"model": str(CLIP)},
        "maps": {**world.maps, "workers": 0},
        "start": {"checkpoint": str(MASKFORMER)},
        "head": {"hidden": 32, "sees": "queries_and_pixels", "templates": "raw"},
        "trains": "head",
        "view": {"crop_px": 64, "scale": [1.0, 1.2], "long_side_px": 240, "jitter": False},
        "optimizer": {**rates, "steps": 12, "batch_size": 4, "warmup_steps": 1},
        "device": "cpu",
        "out": str(world.folder / "trained"),
    }
    words = ("train-proposals", world.config("train", tree))
    return Command(words, Exit.BAD_INPUT, ("cannot be decoded",))


def of_changed(world: World, *words: str, says: str) -> Command:
    """A command on the run whose photographs have changed."""
    command, *options = words
    return Command((command, world.changed / "run", *(option.format(world.folder) for option in options)), says=(says,))


def of_shards(world: World, *words: str, code: int = Exit.INCOMPLETE, says: str = "cannot be read") -> Command:
    """A command on the run whose shards have bombs."""
    command, *options = words
    return Command((command, world.shards, *(option.format(world.folder) for option in options)), code, (says,))


def export(world: World, *words: str) -> Command:
    """An export that decodes; `webdataset` and `hf` copy the shards' pictures byte for byte."""
    command = ("export", "--to", *words, "--out", "{}/exported-" + "-".join(words).replace("--", ""))
    return of_shards(world, *command)


def leakage(world: World) -> Command:
    words = ("leakage", "--root", str(world.download), "--benchmark", "voc20", "--to", "{}/leakage")
    return of_changed(world, *words, says="leakage.json")


COMMANDS: dict[str, Callable[[World], Command]] = {
    "mine": lambda world: mine(world, "coco", "img2dataset", "hf", "folder", "jsonl", "run"),
    "segment": segment,
    "benchmark": benchmark,
    "benchmark --prepare-only": lambda world: Command(
        ("benchmark", "voc20", "--root", world.download, "--prepare-only", "--partial"),
        Exit.TOO_MANY_REJECTED,
        ("2 maps written",),
    ),
    "evaluate, label maps": partial(evaluate, kind="semantic"),
    "evaluate, crops": partial(evaluate, kind="crops"),
    "evaluate, instances": partial(evaluate, kind="instances"),
    "tune": tune,
    "train-proposals": train_proposals,
    "show": lambda world: of_changed(
        world, "show", "--to", "{}/sheet.png", "--images", "99", says="cannot be read are drawn"
    ),
    "report": lambda world: of_changed(world, "report", "--to", "{}/report.html", says="to look up"),
    "duplicates": lambda world: of_changed(world, "duplicates", says="groups of copies: 1"),
    "review": lambda world: of_changed(world, "review", says="missing"),
    "leakage": leakage,
    "verify, shards": lambda world: of_shards(world, "verify", says="a member cannot be read"),
    "export, smaller": lambda world: export(world, "webdataset", "--image-format", "webp", "--max-side", "16"),
    "export, openclip": lambda world: export(world, "openclip"),
    "export, coco": lambda world: export(world, "coco"),
}
"""`audit`, `diff` and `evaluate-pairs` read no picture. Uploads to `serve`: tests/pipelines/serve/."""
