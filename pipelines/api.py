"""What `import maskmine` offers: mining, reading a run, tuning and segmenting from Python.

Each function takes a configuration as the command line does (a file, or the name of a preset) or as a dictionary, and
raises InputError, IncompleteError or OtherPlanError with the line that the command would print.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.perceptual_hash import COPY_BITS
from maskmine.pipelines.append import append as run_append
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.limits import Exceeded
from maskmine.pipelines.engines.choose import choose_engine
from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.mine import mine as run_mining
from maskmine.pipelines.mix.choice import parse_mixing
from maskmine.pipelines.mix.mix import mix_sets
from maskmine.pipelines.mix.sources import parse_weight
from maskmine.pipelines.run_folder.claim import writing_alone
from maskmine.pipelines.run_folder.folder import SUCCESS_FILE, RunFolder, read_folder
from maskmine.pipelines.settings.appended import captions_to_append
from maskmine.pipelines.settings.licences import LicencePolicy
from maskmine.pipelines.settings.mining import load_mining, load_settings
from maskmine.pipelines.settings.source_kinds import SourceKind
from maskmine.schemas.columns import arrow_schema
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.manifest import Manifest
from maskmine.schemas.rows import Rejection, SampleRow
from maskmine.schemas.sample import StoredSample, cell_name
from maskmine.schemas.tables import from_pieces

if TYPE_CHECKING:
    from maskmine.pipelines.push.push import Pushed
    from maskmine.pipelines.settings.licences import LicencePolicy
    from maskmine.tuning.clip.train import Tuned
    from maskmine.tuning.segmentation.segmenter import Segmenter

Configuration = str | Path | Mapping[str, Any]
"""A YAML file, the name of a preset such as `coco`, or settings as a dictionary."""


@dataclass(frozen=True)
class MinedPair:
    """A pair of a run: `key`, `noun`, the `record` of its JSON, and the row of the index in `row`."""

    row: SampleRow
    stored: StoredSample = field(repr=False)

    @property
    def key(self) -> str:
        """The name of its members in the shard."""
        return self.row.key

    @property
    def noun(self) -> str:
        """The noun as the caption has it."""
        return self.row.noun

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of `KEY.json`."""
        return self.stored.record

    @cached_property
    def image(self) -> Image.Image:
        """The crop around the mask, RGB, not blanked."""
        return Image.fromarray(self._pixels(self.stored.image, mode="RGB"))

    @cached_property
    def mask(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """The mask in the crop, bool [H, W]."""
        return self._pixels(self.stored.mask_png, mode="L") > 0

    def _pixels(self, data: bytes, *, mode: str) -> np.ndarray[Any, Any]:
        # Shards are handed on, so their pictures are decoded as all from outside are.
        decoded = _DECODING.decode_stored(data, max_pixels=_MAX_CROP_PIXELS, mode=mode)
        if isinstance(decoded, Rejection):
            raise IncompleteError(f"{self.row.shard}: {self.key}: {decoded.detail}; see `maskmine verify`")
        return decoded.pixels


_DECODING = Decoding()
_MAX_CROP_PIXELS = 1 << 28  # a crop has at most 16,383 pixels a side


@dataclass(frozen=True)
class Run:
    """A run with a manifest; `exceeded` are the limits on images without pairs for which it was not published."""

    finished: FinishedRun = field(repr=False)
    exceeded: tuple[Exceeded, ...] = ()

    def __repr__(self) -> str:
        return f"Run({self.folder!r}, pairs={self.manifest.totals.samples}, published={self.published})"

    @property
    def folder(self) -> str:
        """Where it lies: a local folder, or an address on an object store."""
        return self.finished.folder.root

    @property
    def published(self) -> bool:
        """Whether the set is whole and within its limits."""
        return self.finished.folder.exists(SUCCESS_FILE)

    @property
    def manifest(self) -> Manifest:
        """Counts, settings, models and licences of the run."""
        return self.finished.manifest

    @property
    def shards(self) -> list[str]:
        """The paths of its tars, in order, as `webdataset.WebDataset` takes them."""
        folder = self.finished.folder
        return [folder.path("shards", cell_name(part, "tar")) for part in self.finished.parts]

    def index(self) -> pa.Table:
        """The index of all shards, a row a pair: `run.index().to_pandas()`, or a table for DuckDB."""
        tables = [self.finished.table(part, SampleRow) for part in self.finished.parts]
        return pa.concat_tables(tables) if tables else arrow_schema(SampleRow).empty_table()

    def pairs(self) -> Iterator[MinedPair]:
        """All pairs with crop and mask, in the order of the shards. Raises IncompleteError for a damaged one."""
        for part in self.finished.parts:
            for row in from_pieces(self.finished.table(part, SampleRow), SampleRow):
                yield MinedPair(row, self.finished.sample(row))


def mine(
    config: Configuration,
    *,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    limit: int | None = None,
    regions_from: str | None = None,
    engine: str = "local",
    engine_options: Mapping[str, Any] | None = None,
    observer: RunObserver | None = None,
) -> Run:
    """Mine, or go on with what is left, as `maskmine mine`; returns the finished run.

    `settings` are single ones by their names, such as `{"pairs.min_evidence": 1.25}`. `limit` mines a random sample of
    so many images, `regions_from` uses the regions of an earlier run. `observer` sees the run go on.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit: at least 1 image, not {limit}")
    asked = load_mining(_as_config(config), overrides=_overrides(settings, out))
    options = [f"{name}={json.dumps(value)}" for name, value in (engine_options or {}).items()]
    chosen = choose_engine(engine, options=options)
    with writing_alone(asked.out):
        outcome = run_mining(
            asked, engine=chosen, observer=observer or RunObserver(), limit=limit, regions_from=regions_from
        )
    return Run(FinishedRun.open(RunFolder(asked.out)), outcome.exceeded)


def append(
    run: str | Path,
    captions: str | Path | None = None,
    *,
    images: str | Path | None = None,
    kind: SourceKind | None = None,
    config: Configuration | None = None,
    engine: str = "local",
    engine_options: Mapping[str, Any] | None = None,
    observer: RunObserver | None = None,
) -> Run:
    """Append new images to the finished run in a folder, or go on with it, as `maskmine append`; returns the run.

    `captions` is a file or folder of images or captions, whose `kind` is found out from it; or `config` has `captions`
    as a configuration does.
    """
    folder = read_folder(str(run))
    sources = captions_to_append(
        FinishedRun.open(folder).settings,
        captions=str(captions) if captions is not None else None,
        kind=kind,
        images=str(images) if images is not None else None,
        config=_as_config(config) if config is not None else None,
    )
    options = [f"{name}={json.dumps(value)}" for name, value in (engine_options or {}).items()]
    chosen = choose_engine(engine, options=options)
    with writing_alone(folder.root):
        outcome = run_append(folder, sources, engine=chosen, observer=observer or RunObserver())
    return Run(FinishedRun.open(folder), outcome.exceeded)


def open_run(folder: str | Path) -> Run:
    """A finished run. Raises InputError when there is none, IncompleteError when it is not finished."""
    return Run(FinishedRun.open(read_folder(str(folder))))


def mix(
    sets: Mapping[str | Path, float],
    *,
    out: str | Path,
    samples: int | None = None,
    seed: int = 0,
    keep_duplicates: bool = False,
    bits: int = COPY_BITS,
    shard_size: int = 10_000,
    licence_policy: LicencePolicy = "any",
    threads: int = 2,
) -> Run:
    """Mix finished sets by weights into one, or go on with that, as `maskmine mix`: `{"runs/a": 0.7, "runs/b": 0.3}`.

    The mix is opened as a run; `manifest.mixed_from` says what is in it.
    """
    mixing = parse_mixing(
        samples=samples, seed=seed, copy_bits=None if keep_duplicates else bits, samples_per_shard=shard_size
    )
    given = [(str(folder), parse_weight(weight, of=str(folder))) for folder, weight in sets.items()]
    with writing_alone(str(out)):
        mix_sets(given, mixing, out=str(out), policy=licence_policy, threads=threads)
    return open_run(out)


def push(
    folder: str | Path,
    address: str,
    *,
    form: str | None = None,
    policy: LicencePolicy = "any",
    private: bool = False,
    replace: bool = False,
    dry_run: bool = False,
) -> Pushed:
    """Put a finished run or export on the Hugging Face hub, as `maskmine push`; returns what was sent."""
    from maskmine.pipelines.push.address import parse_address
    from maskmine.pipelines.push.push import Push, push_set

    asked = Push(str(folder), parse_address(address), form, policy=policy, private=private, replace=replace)
    return push_set(asked, dry_run=dry_run, say=lambda line: None)


def tune(config: Configuration, *, settings: Mapping[str, Any] | None = None, out: str | Path | None = None) -> Tuned:
    """Tune CLIP on mined pairs in this process, as `maskmine tune`; returns what was written."""
    from maskmine.tuning.clip.settings import Tuning
    from maskmine.tuning.clip.train import tune as run_tuning
    from maskmine.tuning.console import plain_console

    asked = load_settings(Tuning, _as_config(config), overrides=_overrides(settings, out))
    return run_tuning(asked, console=plain_console(stderr=True))


def segmenter(config: Configuration | None = None, *, settings: Mapping[str, Any] | None = None) -> Segmenter:
    """Settings of a segmenter, whose `open()` loads the models: images and classes to label maps."""
    from maskmine.tuning.segmentation.segmenter import Segmenter

    return load_settings(Segmenter, _as_config(config or {}), overrides=_overrides(settings))


def _as_config(config: Configuration) -> str | Mapping[str, Any]:
    return config if isinstance(config, Mapping) else str(config)


def _overrides(settings: Mapping[str, Any] | None, out: str | Path | None = None) -> Mapping[str, Any]:
    """As plain values: of paths their names, of tuples lists."""
    plain: dict[str, Any] = json.loads(json.dumps({**(settings or {})}, default=str))
    return {**plain, **({"out": str(out)} if out is not None else {})}
