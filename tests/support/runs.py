"""Runs of the toy world as tests start and read them, on a disk or on S3."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import MineResult, mine
from maskmine.pipelines.planning.plan import read_plan
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.run_folder.region_cells import older_cells, read_regions, stored_cells
from maskmine.pipelines.settings.mining import Mining, load_mining
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.identity import identify, region_fingerprints
from maskmine.pipelines.steps.jobs import PartReport
from maskmine.schemas.rows import SampleRow
from tests.support import toy


@dataclass
class Recorder(RunObserver):
    """Remembers which cells were made."""

    made: list[tuple[str, int]] = field(default_factory=list)
    ticks: int = 0

    def on_records(self, step: str, records: int) -> None:
        self.ticks += records

    def on_part_done(self, report: PartReport) -> None:
        self.made.append((report.step, report.part))

    @property
    def steps(self) -> list[str]:
        return list(dict.fromkeys(step for step, _ in self.made))


class StopsAfter(Recorder):
    """Interrupts the run after some cells, as a person would."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def on_part_done(self, report: PartReport) -> None:
        super().on_part_done(report)
        if len(self.made) == self.cells:
            raise KeyboardInterrupt


@dataclass(frozen=True)
class FunctionEngine:
    """An engine whose `run` is a function."""

    function: Callable[[RunFolder, Sequence[Step], RunObserver], None]
    models_run_here: bool = True

    def run(self, run: RunFolder, steps: Sequence[Step], observer: RunObserver) -> None:
        self.function(run, steps, observer)


def fake_step(run: RunFolder, name: str, job: Any, *, parts: int, once: bool = False, **changes: Any) -> Step:
    """A step of a job that writes what it likes."""
    return Step(Cells(run, name, SampleRow, "0" * 64, once=once), job, parts, name, **changes)


def run_toy(config: Path, *overrides: str, limit: int | None = None) -> tuple[RunFolder, MineResult, Recorder]:
    settings = load_mining(str(config), overrides=overrides)
    recorder = Recorder()
    outcome = mine(settings, engine=LocalEngine(), observer=recorder, limit=limit)
    return RunFolder(settings.out), outcome, recorder


def hashes(root: str) -> dict[str, str]:
    """SHA-256 of every file below a folder but those of one run: accounts hold times, mining.yaml the folder.

    `SHA256SUMS.run` has their sums, and `_SUCCESS` the sum of that.
    """
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            is_account = path.parent.name == "shards" and name[0].isdigit() and name.endswith(".json")
            if not is_account and name not in ("mining.yaml", "SHA256SUMS.run", "_SUCCESS"):
                found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def as_earlier_version(root: Path, settings: Mining) -> None:
    """Make of a finished run one whose masks and embeddings lie in cells of `regions`, as earlier versions had them."""
    run, plan = RunFolder(str(root)), read_plan(RunFolder(str(root)))
    assert plan is not None
    fingerprint = region_fingerprints(plan, identify(settings).settings["regions"])["regions"]
    older, stored = older_cells(run, fingerprint), stored_cells(run)
    for part in range(plan.parts):
        older.write_blocks(part, read_regions(*stored, part))
    older.mark_current()
    shutil.rmtree(root / "proposals"), shutil.rmtree(root / "embeddings", ignore_errors=True)


def samples(run: RunFolder) -> list[SampleRow]:
    plan = read_plan(run)
    assert plan is not None
    return [
        row for part in range(plan.parts) for row in run.read_rows("shards", f"{part:05d}.parquet", row_type=SampleRow)
    ]


def config(world: Path, regions: dict[str, Any], out: Path, **changes: Any) -> Path:
    return toy.write_config(world, out=out, regions=regions, pairs={"rule": "best_region_per_noun"}, **changes)


@dataclass(frozen=True)
class Server:
    """Moto's S3 server, its log, and a client of it that shares nothing with fsspec, as if it were another process."""

    endpoint: str
    log: Path
    client: Any

    def requests(self) -> list[str]:
        """`PUT /bucket/key?query` for each request so far."""
        log = re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text())
        return re.findall(r'"([A-Z]+ /(?!moto-api)\S*) HTTP', log)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys that begin with a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def put_folder(self, folder: Path, bucket: str, prefix: str) -> str:
        """Upload a folder; returns its URL."""
        for path in (path for path in folder.rglob("*") if path.is_file()):
            self.client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder)}")
        return f"s3://{bucket}/{prefix}"

    def download(self, url: str, folder: Path) -> Path:
        """Fetch all that lies below a URL; returns the folder."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        for key in self.keys(bucket, f"{prefix}/"):
            path = folder / key.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            self.client.download_file(bucket, key, str(path))
        return folder

    def check_rights(self, yes: bool) -> None:
        """Whether the rights of users count; at first they do not."""
        request = urllib.request.Request(
            f"{self.endpoint}/moto-api/reset-auth",
            data=b"0" if yes else b"inf",
            headers={"Content-Type": "text/plain"},
        )
        urllib.request.urlopen(request).close()


@dataclass(frozen=True)
class Finished:
    """A finished run of which everything lies on S3, and the requests that it took."""

    url: str
    requests: list[str]


def everything_at(place: str) -> list[str]:
    """Overrides of the toy world's settings: the images and annotations are there."""
    return [
        f"captions.annotations={place}/captions.json",
        f"captions.images={place}/images",
        f"regions.proposals.annotations={place}/instances.json",
    ]


def as_options(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]
