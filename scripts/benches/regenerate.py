"""What a run with new captions costs where the regions of an earlier run are taken, against making all of it."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.cells import PartReport
from pipelines.grid import Stage
from pipelines.local import run_local
from pipelines.mine import mine
from pipelines.regenerate import open_earlier
from pipelines.run_folder import RunFolder
from pipelines.settings import Mining, load_mining
from scripts.measures import Measure
from scripts.story_world import find_world

_CONFIG = Path(__file__).parents[1] / "configs" / "demo-models.yaml"
_SCENES, _ROUNDS, _GOAL = 200, 3, 0.02
_STEPS = ("nouns", "vocabulary", "pairs", "shards")


@dataclass
class Watched:
    """A watch that tells loading models from work: seconds of each step, of start-up, and of the whole run."""

    seconds: dict[str, float] = field(default_factory=dict)
    start_up_s: float = 0.0
    total_s: float = 0.0
    _begun: float | None = None

    @property
    def work_s(self) -> float:
        """Seconds without start-up."""
        return self.total_s - self.start_up_s

    @property
    def rest_s(self) -> float:
        """Seconds of no step: the plan, what becomes of the earlier run, accounts and checksums at the end."""
        return self.work_s - sum(self.seconds.values())

    def stage_begins(self, stage: Stage, todo: Sequence[int]) -> None:
        self._begun = time.monotonic()

    def tick(self, step: str, records: int) -> None:
        pass

    def part_ends(self, report: PartReport) -> None:
        if self._begun is not None:  # the first part of its stage
            self.start_up_s += time.monotonic() - self._begun - report.seconds
            self._begun = None
        self.seconds[report.step] = self.seconds.get(report.step, 0.0) + report.seconds

    def stage_ends(self, stage: Stage) -> None:
        pass


def bench_regenerate(*, scenes: int = _SCENES) -> list[Measure]:
    """Scenes of the demo world: a run with a caption each, then with other captions and its regions, three times.

    Each step of the second run is held against the whole of the first. Beside the sum stands what every image costs: a
    set this small has not said all its nouns yet, and each new one is embedded once.
    """
    with tempfile.TemporaryDirectory() as scratch:
        world = find_world(Path(scratch, "world"), scenes=scenes, seed=7)
        others = _other_captions(world / "captions.json", Path(scratch, "others.json"))
        full = _mine(_settings(world, world / "captions.json", out=f"{scratch}/full"))
        again = [
            _mine(_settings(world, others, out=f"{scratch}/again-{number}"), regions=f"{scratch}/full")
            for number in range(_ROUNDS)
        ]
        old, new = (_nouns_of(RunFolder(f"{scratch}/{name}")) for name in ("full", "again-0"))
    shares = {step: statistics.median(one.seconds[step] for one in again) / full.work_s for step in _STEPS}
    shares["rest"] = statistics.median(one.rest_s for one in again) / full.work_s
    share = sum(shares.values())
    return [
        Measure("scenes", scenes, "images", "", None),
        Measure("full run, without start-up", full.work_s, "s", "", None),
        *[Measure(f"  {step}", seconds, "s", "", None) for step, seconds in full.seconds.items()],
        Measure("start-up of the full run", full.start_up_s, "s", "", None),
        Measure("start-up with new captions", statistics.median(one.start_up_s for one in again), "s", "", None),
        Measure("nouns of the full run", len(old), "nouns", "", None),
        Measure("nouns that only the new captions say", len(new - old), "nouns", "", None),
        *[Measure(f"  new captions: {step}", 100 * part, "% of full", "", None) for step, part in shares.items()],
        Measure("new captions, without new nouns", 100 * (share - shares["vocabulary"]), "% of full", "", None),
        Measure("new captions", 100 * share, "% of full", f"≤ {_GOAL:.0%}", share <= _GOAL),
    ]


def _nouns_of(run: RunFolder) -> set[str]:
    """The nouns that the captions of a run say."""
    return set(run.read_table("vocabulary.parquet")["noun"].to_pylist())


def _other_captions(captions: Path, to: Path) -> Path:
    """The second caption of each image alone."""
    content = json.loads(captions.read_text(encoding="utf-8"))
    by_image: dict[int, list[dict[str, Any]]] = {}
    for one in sorted(content["annotations"], key=lambda one: one["id"]):
        by_image.setdefault(one["image_id"], []).append(one)
    content["annotations"] = [said[1] for said in by_image.values()]
    to.write_text(json.dumps(content), encoding="utf-8")
    return to


def _settings(world: Path, captions: Path, *, out: str) -> Mining:
    overrides = [
        f"captions.annotations={captions}",
        f"captions.images={world / 'images'}",
        "max_rejected=1.0",
        f"out={out}",
    ]
    return load_mining(str(_CONFIG), overrides=overrides)


def _mine(settings: Mining, *, regions: str | None = None) -> Watched:
    watch, start = Watched(), time.monotonic()
    earlier = open_earlier(regions, settings) if regions else None
    mine(settings, engine=run_local, watch=watch, earlier=earlier)
    watch.total_s = time.monotonic() - start
    return watch
