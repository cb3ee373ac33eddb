"""What another CLIP costs a run that is there: its proposals stay, and its regions are embedded again."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from maskmine.pipelines.dataset.publish import RUN_SUMS_FILE, SUMS_FILE
from maskmine.schemas.errors import InputError
from maskmine.scripts.benches.regenerate import Watched, mine_watched, settings_of
from maskmine.scripts.demo_world.on_disk import find_world
from maskmine.scripts.measures import Measure, at_most

_CLIP = Path(__file__).resolve().parents[1] / "models" / "clip"
_SCENES = 200
_OF_ONE_RUN = ("mining.yaml", "shards/")  # times and folders


def bench_another_clip(*, scenes: int = _SCENES) -> list[Measure]:
    """Scenes of the demo world: mined by one CLIP, in the same folder by another, and by the first one again.

    Held against a fresh run by the other CLIP, whose bytes the second run must have, and against its own step
    `embeddings` alone.
    """
    with tempfile.TemporaryDirectory() as scratch:
        world = find_world(Path(scratch, "world"), scenes=scenes, seed=7)
        other = _other_clip(Path(scratch, "clip"))

        def mined(name: str, clip: Path) -> Watched:
            return mine_watched(settings_of(world, out=f"{scratch}/{name}", overrides=[f"regions.clip.model={clip}"]))

        mined("run", _CLIP)
        before = _sums(Path(scratch, "run"))
        fresh, again = mined("fresh", other), mined("run", other)
        _refuse_difference(_sums(Path(scratch, "run")), _sums(Path(scratch, "fresh")), "another CLIP")
        back = mined("run", _CLIP)
        _refuse_difference(_sums(Path(scratch, "run")), before, "the first CLIP again")
    if "proposals" in again.seconds or {"proposals", "embeddings"} & back.seconds.keys():
        raise InputError("bench: regions were looked for again")
    alone_s, spared_s = again.seconds["embeddings"], fresh.seconds["proposals"] + fresh.seconds["nouns"]
    return [
        Measure("fresh run by another CLIP, without start-up", fresh.work_s, "s"),
        *[Measure(f"  {step}", fresh.seconds[step], "s") for step in ("proposals", "embeddings")],
        Measure("another CLIP on the same folder", again.work_s, "s"),
        *[Measure(f"  {step}", seconds, "s") for step, seconds in again.seconds.items()],
        Measure("another CLIP / fresh run", again.work_s / fresh.work_s, "×"),
        at_most("  without its proposals and nouns", again.work_s / (fresh.work_s - spared_s), "×", 1.15),
        Measure("another CLIP / its embeddings alone", again.work_s / alone_s, "×"),
        Measure("embeddings alone / in one pass with proposals", alone_s / fresh.seconds["embeddings"], "×"),
        Measure("the first CLIP again / fresh run", back.work_s / fresh.work_s, "×"),
    ]


def _other_clip(folder: Path) -> Path:
    """The demo world's CLIP with other weights, so that it costs the same."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(_CLIP, folder)
    (weights,) = folder.glob("*.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in load_file(weights).items()}, weights)
    return folder


def _sums(run: Path) -> set[str]:
    """Names and SHA-256 of what does not tell when and where a run was made."""
    of_set, of_rest = ((run / name).read_text().splitlines() for name in (SUMS_FILE, RUN_SUMS_FILE))
    return {*of_set, *(line for line in of_rest if not line.partition("  ")[2].startswith(_OF_ONE_RUN))}


def _refuse_difference(one: set[str], other: set[str], what: str) -> None:
    if one != other:
        raise InputError(f"bench: {what} does not give the bytes of a fresh run: {sorted(one ^ other)[:3]}")
