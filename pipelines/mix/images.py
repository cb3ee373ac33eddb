"""What is known of the images of the sets: names, file hashes, and how they look, read once and kept until the end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from maskmine.mining.images.looks import look_of
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.export.file_names import FileNames
from maskmine.pipelines.mix.sources import MixSource
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.run_folder.region_cells import stored_cells
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.rows import ImageRow, OriginRow, RegionsRow
from maskmine.schemas.sample import cell_name
from maskmine.schemas.settings import fingerprint
from maskmine.schemas.tables import check_index, read_parquet

WORK_FOLDER = ".work"  # of a mix that is not complete
Tick = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image with pairs; None for what is not known, as in `OriginRow`."""

    image_id: str
    file: str | None
    sha256: str | None
    look: str | None


@dataclass(frozen=True, slots=True)
class FactCells:
    """The cells of a mix's work folder that say what is known of the images of a set."""

    folder: RunFolder
    made_from: str

    def name(self, part: int) -> tuple[str, str]:
        """The name of that of a part, below the folder of the mix."""
        return WORK_FOLDER, f"{self.made_from[:16]}-{cell_name(part)}"

    def path(self, part: int) -> str:
        """The path of that of a part."""
        return self.folder.path(*self.name(part))


def parts_of(run: FinishedRun) -> range:
    """The numbers of the shards of a set, which may have lost its plan."""
    return range(len(run.manifest.shards))


def check_indexes(run: FinishedRun) -> None:
    """Raises IncompleteError where an index is not the one of the manifest, or names what no run writes."""
    for part in parts_of(run):
        _read_index(run, part)


def read_facts(
    folder: RunFolder, sources: Sequence[MixSource], *, looks: bool, threads: int, tick: Tick
) -> list[FactCells]:
    """Write what is known of the images to cells of the work folder, but for those that are there; returns those of
    each set.

    `tick` counts images. With `looks` the images are read, and hashed, where no set did it before.
    """
    with ThreadPoolExecutor(threads) as pool:
        return [_write_cells(folder, source, pool, looks=looks, tick=tick) for source in sources]


def _write_cells(
    folder: RunFolder, source: MixSource, pool: ThreadPoolExecutor, *, looks: bool, tick: Tick
) -> FactCells:
    cells = FactCells(folder, fingerprint([source.content, source.name, looks]))
    names = None if source.run.is_mix else FileNames(source.run)
    for part in parts_of(source.run):
        cell = cells.name(part)
        if folder.read_fingerprint(*cell) == cells.made_from:
            tick(len(folder.read_columns(*cell, columns=["image_id"])))
        else:
            wanted = set(_read_index(source.run, part)["image_id"].to_pylist())
            known = _of_mix(source, part) if names is None else _of_run(source, part, wanted, names, pool, looks=looks)
            rows = [facts for facts in known if facts.image_id in wanted]
            folder.write_rows(*cell, rows=rows, row_type=ImageFacts, fingerprint=cells.made_from)
            tick(len(rows))
    return cells


def _of_mix(source: MixSource, part: int) -> Iterator[ImageFacts]:
    for row in source.run.rows(part, OriginRow):
        file = None if row.file is None else f"{source.name}/{row.file}"
        yield ImageFacts(row.image_id, file, row.sha256, row.look)


def _of_run(
    source: MixSource, part: int, wanted: set[str], names: FileNames, pool: ThreadPoolExecutor, *, looks: bool
) -> Iterator[ImageFacts]:
    """Of a run of which the cells are gone only the ids are known."""
    folder = source.run.folder
    if not all(folder.exists(step, cell_name(part)) for step in ("images", stored_cells(folder)[0].folder)):
        yield from (ImageFacts(image_id, None, None, None) for image_id in sorted(wanted))
        return
    images = source.run.rows(part, ImageRow)
    digests = source.run.columns(part, RegionsRow, ["sha256"])["sha256"].to_pylist()
    known = [(image, digest) for image, digest in zip(images, digests, strict=True) if image.image_id in wanted]
    files = [names.name(image.image_id, image.path) for image, _ in known]
    hashes = pool.map(look_of, [image.path for image, _ in known], [digest for _, digest in known]) if looks else None
    for (image, digest), file in zip(known, files, strict=True):
        look = next(hashes) if hashes is not None else None
        where = file if "://" in file else f"{source.name}/{file}"
        yield ImageFacts(image.image_id, where, digest, None if look is None else f"{look:016x}")


def _read_index(run: FinishedRun, part: int) -> pa.Table:
    """The index of a shard. Raises IncompleteError where it is not the one that the manifest names."""
    shard, name = run.manifest.shards[part], cell_name(part)
    path = run.folder.path("shards", name)
    try:
        content = run.folder.read_bytes("shards", name)
    except FileNotFoundError as error:
        raise IncompleteError(f"{path}: missing; {run.again}") from error
    if hashlib.sha256(content).hexdigest() != shard.index_sha256:
        raise IncompleteError(f"{path}: its SHA-256 is not the one in manifest.json; delete it and {run.again}")
    table = read_parquet(pa.BufferReader(content))
    check_index(table, shard=shard, path=path)
    return table
