"""The limits on images without pairs: a run that exceeds one is finished, and not published until that is mended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from maskmine.pipelines.run_folder.folder import FINGERPRINT_FILE, SUCCESS_FILE, RunFolder
from maskmine.pipelines.settings.mining import Mining, parse_mining
from maskmine.schemas.errors import InputError
from maskmine.schemas.manifest import Manifest, Totals, parse_manifest


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A limit that a finished run exceeds: `images` of its `of` images, and the most frequent reason of these."""

    setting: Literal["max_rejected", "max_empty"]
    limit: float
    images: int
    of: int
    reason: str

    def line(self, *, out: str) -> str:
        """What is exceeded, by how much and why, and what to do; `out` is the folder of the run."""
        what, mend = {
            "max_rejected": ("were rejected", "mend their files"),
            "max_empty": ("came to nothing", "change captions, masks, rule or filters"),
        }[self.setting]
        return (
            f"{self.images / self.of:.1%} of the images {what} ({self.images:,} of {self.of:,}), most by "
            f"`{self.reason}`, and {self.setting} allows {self.limit:.1%}: see `maskmine errors {out}`, "
            f"{mend}, or raise {self.setting}"
        )


def find_exceeded(totals: Totals, settings: Mining) -> Iterator[Exceeded]:
    """The limits on images without pairs that a run exceeds."""
    limits: tuple[tuple[Literal["max_rejected", "max_empty"], float | None, dict[str, int]], ...] = (
        ("max_rejected", settings.max_rejected, totals.faults),
        ("max_empty", settings.max_empty, totals.empty),
    )
    for setting, limit, counts in limits:
        images = sum(counts.values())
        if limit is not None and images / totals.images > limit:
            yield Exceeded(setting, limit, images, totals.images, max(counts, key=counts.__getitem__))


def read_manifest(stored: Any, folder: RunFolder) -> Manifest:
    """The manifest of a folder from the content of its `manifest.json`. Raises as `parse_manifest`."""
    return parse_manifest(stored, path=folder.path("manifest.json"), open_file=folder.open)


def why_not_published(run: RunFolder) -> str | None:
    """What keeps a run from being published though all of it is made; None where nothing does.

    Then it is published, or the same command makes what is missing.
    """
    stored = None if run.exists(SUCCESS_FILE) else run.read_json("manifest.json")
    if stored is None:
        return None
    try:
        manifest = read_manifest(stored, run)
        if run.read_json("shards", FINGERPRINT_FILE) != {"fingerprint": manifest.shards_fingerprint}:
            return None
        if len(run.done("shards", suffixes=("json",))) < len(manifest.shards):
            return None
        with run.open("mining.yaml") as file:
            settings = parse_mining(yaml.safe_load(file), place=run.path("mining.yaml"))
    except (FileNotFoundError, InputError, yaml.YAMLError):
        return None
    exceeded = next(find_exceeded(manifest.totals, settings), None)
    return f"finished, and not published: {exceeded.line(out=run.root)}, then mine again" if exceeded else None
