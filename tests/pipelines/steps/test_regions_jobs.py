"""The cells of regions: made a table batch by batch, they have the bytes of rows written one after the other."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from maskmine.mining import regions as regions_module
from maskmine.mining.images.decode import DecodedImage
from maskmine.mining.region_stages import Decoded, RegionTables, to_tables
from maskmine.mining.regions import FindRegions
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.run_folder.region_cells import embeddings_cells, proposals_cells
from maskmine.pipelines.steps import jobs, regions_jobs
from maskmine.pipelines.steps.ties import Input, identities
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import ImageRow, Region, RegionsRow, Rejection
from maskmine.schemas.tables import write_parquet_pieces, write_parquet_rows

IMAGES, WINDOW, BATCH = 45, 19, 4
EMBEDDING_BYTES, GROUP_BYTES = 100, 2500  # a row group ends with the piece of 16 rows that passes its bytes


def row(number: int) -> RegionsRow:
    """Each ninth image is rejected; all others have a region."""
    if number % 9 == 4:
        return RegionsRow.rejected(str(number), Rejection("decode_error", "cut short"))
    mask = Mask.from_array(np.arange(48).reshape(6, 8) % (number + 2) == 0)
    embedding = number.to_bytes(2, "little") * (EMBEDDING_BYTES // 2)
    region = Region(mask=mask, box_xyxy=mask.box_xyxy, area_px=mask.area_px, score=0.5, label=None, embedding=embedding)
    return RegionsRow(
        image_id=str(number), sha256="0" * 64, height_px=6, width_px=8, regions=(region,), rejection=None, left_out=()
    )


def batches(images: Sequence[ImageRow]) -> Iterator[Decoded]:
    """Not in the order of the images, as those of one size are together."""
    order = sorted(range(len(images)), key=lambda number: (number % 3, number))
    for start in range(0, len(images), BATCH):
        numbers = order[start : start + BATCH]
        yield numbers, [DecodedImage(np.zeros((6, 8, 3), np.uint8), "0" * 64, 1, "EXIF")] * len(numbers)


def find_batches(images: Sequence[ImageRow], of: Iterable[Decoded]) -> Iterator[tuple[list[int], list[RegionsRow]]]:
    return ((numbers, [row(int(images[i].image_id)) for i in numbers]) for numbers, _ in of)


@pytest.mark.parametrize("overlap", [True, False])
def test_tables_of_batches_give_the_bytes_of_rows_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    monkeypatch.setattr(regions_jobs, "IMAGES_AT_ONCE", WINDOW)
    for write in (write_parquet_pieces, write_parquet_rows):
        monkeypatch.setitem(write.__kwdefaults__, "max_bytes", GROUP_BYTES)
    find = FindRegions(find_batches, batches, overlap, embeds=True)
    run, plain = RunFolder(str(tmp_path / "run")), RunFolder(str(tmp_path / "plain"))
    images, rows = [ImageRow(str(n), None) for n in range(IMAGES)], [row(n) for n in range(IMAGES)]

    found = regions_jobs._find_in_windows(find.tables, images, jobs.no_tick)
    cells = proposals_cells(run, "f"), embeddings_cells(run, "f")
    proposed, embedded = regions_jobs.write_both(found, *cells, 0, start_s=0.0, embedded_s=())

    proposals_cells(plain, "f").write(0, rows)
    made_from = identities([Input(proposals_cells(plain, "f"))], 0)
    embeddings_cells(plain, "f").write(0, (one.embeddings() for one in rows), made_from=made_from)
    for cell in cells:
        assert Path(cell.path(0)).read_bytes() == Path(cell.path(0).replace("/run/", "/plain/")).read_bytes()
    assert [len(group) for group in cells[1].read_groups(0)] == [32, IMAGES - 32]
    assert (proposed.images, proposed.rejected, proposed.made) == (IMAGES, 5, IMAGES - 5)
    assert (embedded.images, embedded.rejected, embedded.made) == (IMAGES, 0, IMAGES - 5)


def test_a_batch_becomes_a_table_while_the_next_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=10)  # who waits alone raises

    def tables_of(rows: Sequence[RegionsRow], *, embedded: bool) -> list[RegionTables]:
        both.wait()
        return to_tables(rows, embedded=embedded)

    def found(images: Sequence[ImageRow], of: Iterable[Decoded]) -> Iterator[tuple[list[int], list[RegionsRow]]]:
        for numbers, _ in of:
            yield numbers, [RegionsRow.rejected(images[i].image_id, Rejection("no_masks")) for i in numbers]
            both.wait()

    monkeypatch.setattr(regions_module, "to_tables", tables_of)
    find = FindRegions(found, batches, overlap=True, embeds=True)
    tables = find.tables([ImageRow(str(n), None) for n in range(10)])
    assert [one.proposals["image_id"].to_pylist() for one in tables] == [[str(n)] for n in range(10)]
