"""What is known of the images of the sets: names, file hashes, and how they look, read once and kept until the end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from maskmine.mining.images.looks import look_of
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.export.file_names import FileNames
from maskmine.pipelines.mix.sources import MixSource
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.rows import ImageRow, OriginRow, RegionsRow
from maskmine.schemas.sample import cell_name
from maskmine.schemas.tables import check_index, read_parquet

WORK_FOLDER = ".work"  # of a mix that is not complete
Tick = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image with pairs of set number `of_set`; None for what is not known, as in `OriginRow`."""

    of_set: int
    image_id: str
    file: str | None
    sha256: str | None
    look: str | None


def parts_of(run: FinishedRun) -> range:
    """The numbers of the shards of a set, which may have lost its plan."""
    return range(len(run.manifest.shards))


def check_indexes(run: FinishedRun) -> None:
    """Raises IncompleteError where an index is not the one of the manifest, or names what no run writes."""
    for part in parts_of(run):
        _read_index(run, part)


def read_facts(
    folder: RunFolder, sources: list[MixSource], *, looks: bool, threads: int, fingerprint: str, tick: Tick
) -> list[str]:
    """Write what is known of the images to cells of the work folder, but for those that are there; returns their paths.

    `tick` counts images. With `looks` the images are read, and hashed, where no set did it before.
    """
    paths = []
    with ThreadPoolExecutor(threads) as pool:
        for number, source in enumerate(sources):
            names = None if source.run.is_mix else FileNames(source.run)
            for part in parts_of(source.run):
                cell = (WORK_FOLDER, f"{number:03d}-{cell_name(part)}")
                paths.append(folder.path(*cell))
                if folder.read_fingerprint(*cell) == fingerprint:
                    continue
                wanted = set(_read_index(source.run, part)["image_id"].to_pylist())
                read = _of_mix if names is None else partial(_of_run, names=names, pool=pool, looks=looks)
                rows = [facts for facts in read(number, source, part, wanted) if facts.image_id in wanted]
                folder.write_rows(*cell, rows=rows, row_type=ImageFacts, fingerprint=fingerprint)
                tick(len(rows))
    return paths


def _of_mix(number: int, source: MixSource, part: int, wanted: set[str]) -> Iterator[ImageFacts]:
    for row in source.run.rows(part, OriginRow):
        file = None if row.file is None else f"{source.name}/{row.file}"
        yield ImageFacts(number, row.image_id, file, row.sha256, row.look)


def _of_run(
    number: int,
    source: MixSource,
    part: int,
    wanted: set[str],
    *,
    names: FileNames,
    pool: ThreadPoolExecutor,
    looks: bool,
) -> Iterator[ImageFacts]:
    """Of a run of which the cells are gone only the ids are known."""
    try:
        images = source.run.rows(part, ImageRow)
        digests = source.run.columns(part, RegionsRow, ["sha256"])["sha256"].to_pylist()
        known = [(image, digest) for image, digest in zip(images, digests, strict=True) if image.image_id in wanted]
        files = [names.name(image.image_id, image.path) for image, _ in known]
    except (IncompleteError, InputError, ValueError):
        yield from (ImageFacts(number, image_id, None, None, None) for image_id in sorted(wanted))
        return
    hashes = pool.map(look_of, [image.path for image, _ in known], [digest for _, digest in known]) if looks else None
    for (image, digest), file in zip(known, files, strict=True):
        look = next(hashes) if hashes is not None else None
        where = file if "://" in file else f"{source.name}/{file}"
        yield ImageFacts(number, image.image_id, where, digest, None if look is None else f"{look:016x}")


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
