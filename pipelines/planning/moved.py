"""Images that were moved, or have ids that a run has: whether they are the ones that the run's masks were made from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskmine.mining.images.read import read_bytes
from maskmine.mining.storage.locations import parse_location
from maskmine.mining.storage.stores import scheme_of
from maskmine.mining.storage.urls import URL_SCHEMES
from maskmine.pipelines.planning.external_sort import read_spilled
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.run_folder.region_cells import stored_cells
from maskmine.schemas.errors import InputError, OtherPlanError

_COMPARED = 256
"""Images that are read: of other pictures nearly every one differs, so a few would do."""
_CELLS = 16  # of `proposals`, of which the pictures are taken
_FIRST = 4  # of these the first ones, where images are that come first by their hash
_AT_ONCE = 16


def refuse_other_pictures(
    run: RunFolder, paths: Sequence[str], *, where: str, parts: Sequence[int] | None = None
) -> None:
    """Compare some of the planned images with the hashes of those that the run has regions of, in some parts or all.

    `paths` are the files with the planned images, `where` names their source. Pictures that cannot be read are left
    to the run, which says so of each. Raises OtherPlanError when one is another picture.
    """
    known = _known_pictures(run, parts)
    planned = _planned(paths, known) if known else []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(lambda image: (image[0], _sha256(image[1])), planned)
        for image_id, sha256 in found:
            if sha256 is not None and sha256 != known[image_id]:
                raise OtherPlanError(
                    f"{run.root}: belongs to other pictures (the one of image id {image_id} in {where} is not that "
                    "from which its masks were made); choose another `out`, or delete the folder"
                )


def refuse_ids_of_others(
    run: RunFolder, listed: Sequence[tuple[str, str]], *, parts: Sequence[int], where: str
) -> None:
    """Compare images of a source, `(id, path)`, with those that a run has under the same ids, as far as a few of its
    parts have them: `listed` are the first in the order of the plan, `parts` begin where those can be.

    Raises InputError when one is another picture: then the ids of this source mean others.
    """
    wanted = {image_id: path for image_id, path in listed if not _is_fetched(path)}
    cells, _ = stored_cells(run)
    ids = pa.array(list(wanted), pa.string())
    for part in [*parts[:_FIRST], *parts[_FIRST :: max(1, len(parts) // _CELLS)]][:_CELLS] if wanted else ():
        table = run.read_columns(*cells.names(part), columns=["image_id", "sha256"]).drop_null()
        known = table.filter(pc.is_in(table["image_id"], value_set=ids)).to_pylist()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = pool.map(lambda row: _sha256(wanted[row["image_id"]]), known)
            other = next((row for row, own in zip(known, found, strict=True) if own not in (None, row["sha256"])), None)
        if other is not None:
            raise InputError(
                f"{where}: its image id {other['image_id']} is that of another picture in {run.root}; give its images "
                "ids of their own, such as by `id_col`, or by folders of other names"
            )


def _known_pictures(run: RunFolder, parts: Sequence[int] | None) -> dict[str, str]:
    """The SHA-256 of the files of some images that the run has regions of, by id."""
    cells, _ = stored_cells(run)
    done = sorted(cells.done() if parts is None else cells.done() & set(parts))
    known: dict[str, str] = {}
    for part in done[:: max(1, len(done) // _CELLS)][:_CELLS]:
        with run.open(*cells.names(part)) as file:
            hashes = pq.ParquetFile(file).read(columns=["image_id", "sha256"]).drop_null()
        each = max(1, _COMPARED // min(len(done), _CELLS))
        known.update(zip(*(hashes[name].slice(0, each).to_pylist() for name in hashes.column_names), strict=True))
    return known


def _planned(paths: Sequence[str], known: dict[str, str]) -> list[tuple[str, str]]:
    """`(image id, path)` of the planned images that are known; those at URLs are left out."""
    wanted = pa.array(list(known), pa.string())

    def chosen() -> Iterator[tuple[str, str]]:
        for table in (table for path in paths for table in read_spilled(path)):
            rows = table.filter(pc.is_in(table["image_id"], value_set=wanted)).select(["image_id", "path"]).drop_null()
            yield from zip(rows["image_id"].to_pylist(), rows["path"].to_pylist(), strict=True)

    return [(image_id, path) for image_id, path in chosen() if not _is_fetched(path)]


def _is_fetched(path: str) -> bool:
    location = parse_location(path)
    return isinstance(location, str) and scheme_of(location) in URL_SCHEMES


def _sha256(path: str) -> str | None:
    """The SHA-256 of an image's file; None when it cannot be read."""
    data = read_bytes(path)
    return hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else None
