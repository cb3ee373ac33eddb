"""The load of the engines' bench: the demo world, its scenes listed again and again, and the folders of its runs."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.estimate import estimate
from pipelines.run_folder import RunFolder
from pipelines.settings import parse_mining
from schemas.errors import InputError

FEWEST_PARTS = 16
CLIP = "ViT-S-32-alt"


@dataclass(frozen=True)
class Load:
    """A configuration whose runs are compared: one file and one run folder for each engine."""

    folder: Path
    tree: dict[str, Any]
    sha256: dict[str, str] = field(default_factory=dict)  # by stage, of the run that was checked first

    def config(self, engine: str) -> Path:
        """The file with the settings of an engine's run."""
        path = self.folder / f"{engine}.yaml"
        path.write_text(json.dumps(self.tree | {"out": str(self.out(engine))}))
        return path

    def out(self, engine: str) -> Path:
        """The run folder of an engine."""
        return self.folder / engine

    def parts(self, engine: str) -> int:
        """How many parts the run of an engine has finished."""
        return len(RunFolder(str(self.out(engine))).done("shards"))

    def forget(self, engine: str, stages: Sequence[str], *, parts: int) -> None:
        """Delete the cells of the first parts of some stages, so that a run has these to make."""
        for path in [path for stage in stages for path in (self.out(engine) / stage).glob("*")]:
            if path.stem.isdecimal() and int(path.stem) < parts:
                path.unlink()

    def check_bytes(self, engine: str, stage: str) -> None:
        """Raise InputError if a stage's cells have other bytes than those of the run that was checked first."""
        sha256 = cells_sha256(self.out(engine) / stage)
        if sha256 != self.sha256.setdefault(stage, sha256):
            raise InputError(f"bench: what {engine} wrote into {stage} differs from what was written before")

    def log(self, engine: str) -> Path:
        """A new file for what happens in a run."""
        handle, path = tempfile.mkstemp(prefix=f"{engine}-", suffix=".log", dir=self.folder)
        os.close(handle)
        return Path(path)


def make_load(folder: Path, *, name: str, images: int, images_per_part: int, with_clip: bool) -> Load:
    """Write the annotation files of a load that has so many images of the world in `folder`."""
    own = folder / name
    own.mkdir()
    for kind in ("captions", "instances"):
        world = json.loads((folder / "world" / f"{kind}.json").read_text())
        (own / f"{kind}.json").write_text(json.dumps(repeat_scenes(world, images=images)))
    clip = {"model": CLIP, "pretrained": str(folder / "clip.safetensors"), "batch_size": 4}
    tree = {
        "captions": {
            "annotations": str(own / "captions.json"),
            "images": str(folder / "world/images"),
            "per_image": "all",
        },
        "regions": {
            "proposals": {"kind": "ground_truth", "annotations": str(own / "instances.json")},
            "clip": clip if with_clip else None,
            "device": "cpu",
            "cpu_threads": 1,
            "decode_threads": 1,
        },
        "vocabulary": {"templates": "raw"},
        "pairs": {"rule": "best_region_per_noun" if with_clip else "labels"},
        "shards": {"images_per_part": images_per_part, "threads": 1},
        "max_rejected": 1.0,
    }
    return Load(own, tree)


def repeat_scenes(world: Mapping[str, Any], *, images: int) -> dict[str, Any]:
    """COCO annotations that list the world's images again and again under new ids, until there are `images`."""
    listed: list[dict[str, Any]] = world["images"]
    of_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in listed}
    for annotation in world["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    sources = [listed[number % len(listed)] for number in range(images)]
    pairs = [(image_id, one) for image_id, image in enumerate(sources, start=1) for one in of_image[image["id"]]]
    return {
        **world,
        "images": [{**image, "id": image_id} for image_id, image in enumerate(sources, start=1)],
        "annotations": [
            {**one, "id": number, "image_id": image_id} for number, (image_id, one) in enumerate(pairs, start=1)
        ],
    }


def images_for(*, minutes: float, per_image_s: float, workers: int) -> int:
    """How many images keep so many workers busy for so long, with a tenth more: a calibration may err."""
    return max(2 * FEWEST_PARTS, math.ceil(1.1 * minutes * 60 * workers / per_image_s))


def calibrate(folder: Path) -> dict[str, float]:
    """Seconds of one process for an image, by step; `vocabulary` is left out, for it does not grow with the images."""
    tree = make_load(folder, name="calibration", images=96, images_per_part=32, with_clip=True).tree
    settings = parse_mining({**tree, "out": str(folder / "none")}, place="bench")
    steps = estimate(settings, limit=None, sample=96).steps
    return {step.step: step.per_image_s for step in steps if step.step not in ("plan", "vocabulary")}


def cells_for(seconds: float, *, cell_s: float, cells: int) -> int:
    """How many cells one worker makes in so many seconds: an even number, at least `FEWEST_PARTS` if there are."""
    wanted = max(FEWEST_PARTS, 2 * round(seconds / cell_s / 2))
    return min(wanted, cells - cells % 2)


def cells_sha256(folder: Path) -> str:
    """One hash over the names and bytes of a stage's cells; the accounts of shards hold times and do not count.

    Raises InputError where there are none.
    """
    digest = hashlib.sha256()
    paths = sorted(path for path in folder.glob("*") if path.stem.isdecimal() and path.suffix in (".tar", ".parquet"))
    for path in paths:
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    if not paths:
        raise InputError(f"bench: {folder} has no cells")
    return digest.hexdigest()
