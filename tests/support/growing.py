"""The toy world in pieces: a set that is mined of the first images, and captions of the others to append to it."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from maskmine.pipelines.append import AppendResult, append
from maskmine.pipelines.engines.engine import Engine
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.appended import captions_to_append
from maskmine.pipelines.settings.mining import load_mining
from tests.support import toy
from tests.support.runs import Recorder

FIRST, SECOND, THIRD = (11, 12, 15, 16), (13, 17), (14, 18)
"""The images of the toy world that a set is mined of, that are appended to it, and that are appended later."""


def write_captions(world: Path, name: str, ids: Collection[int]) -> Path:
    """Write the captions of some images of the toy world as COCO has them; returns the file."""
    whole = json.loads((world / "captions.json").read_text())
    images = [image for image in whole["images"] if image["id"] in ids]
    captions = [one for one in whole["annotations"] if one["image_id"] in ids]
    file = world / f"{name}.json"
    file.write_text(json.dumps({"images": images, "annotations": captions}))
    return file


def write_pieces(folder: Path) -> Path:
    """The toy world with `first.json`, `second.json` and `third.json`."""
    world = toy.write_toy_world(folder)
    for name, ids in (("first", FIRST), ("second", SECOND), ("third", THIRD)):
        write_captions(world, name, ids)
    return world


def base_config(world: Path, out: Path, **changes: Any) -> Path:
    """The configuration of the set that is mined first."""
    captions = {"kind": "coco", "annotations": str(world / "first.json"), "images": str(world / "images")}
    config = toy.write_config(world, out=out, captions=captions, **changes)
    return config.rename(world / f"{out.parent.name}-{out.name}.yaml")


def append_file(
    out: Path, file: Path, *, images: Path | None = None, engine: Engine | None = None, **named: Any
) -> tuple[AppendResult, Recorder]:
    """Append the images of a file of captions, as the command does; `images` lie beside it."""
    run, recorder = RunFolder(str(out)), Recorder()
    settings = load_mining(str(out / "mining.yaml"))
    sources = captions_to_append(settings, captions=str(file), images=str(images or file.parent / "images"), **named)
    return append(run, sources, engine=engine or LocalEngine(), observer=recorder), recorder
