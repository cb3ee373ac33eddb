"""The regions of a run: cells of `proposals` and, with CLIP, of `embeddings`, joined by whoever needs both; and of
`checks`, where a verifier checks the pairs.

    proposals/00017.parquet                  masks, scores, labels
    embeddings/_fingerprint.json             which of the folders below is that of the set
    embeddings/3f5b0c77a1d2/00017.parquet    what one CLIP sees in these masks; those of other CLIPs stand beside it
    checks/…                                 what one verifier says of the pairs, in the same way

Earlier versions had both in cells of `regions`. They are read as they are, and a run that goes on splits them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, zip_longest
from typing import Any

from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.folder import FINGERPRINT_FILE, RunFolder
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.rows import ChecksRow, EmbeddingsRow, ProposalsRow, RegionsRow, Rejection
from maskmine.schemas.tables import from_table

PROPOSALS, EMBEDDINGS, CHECKS = "proposals", "embeddings", "checks"
OLDER = "regions"


def proposals_cells(run: RunFolder, fingerprint: str = "") -> Cells[ProposalsRow]:
    """The cells of proposals."""
    return Cells(run, PROPOSALS, ProposalsRow, fingerprint)


def embeddings_cells(run: RunFolder, fingerprint: str) -> Cells[EmbeddingsRow]:
    """The cells of embeddings of one fingerprint."""
    return Cells(run, EMBEDDINGS, EmbeddingsRow, fingerprint, by_fingerprint=True)


def checks_cells(run: RunFolder, fingerprint: str) -> Cells[ChecksRow]:
    """The cells of checks of one fingerprint; other pairs take over what is known of the same."""
    return Cells(run, CHECKS, ChecksRow, fingerprint, by_fingerprint=True, keep_earlier=True)


def stored_checks(run: RunFolder) -> Cells[ChecksRow] | None:
    """The cells of checks of a run; None where no verifier checks its pairs."""
    current = run.read_json(CHECKS, FINGERPRINT_FILE)
    return checks_cells(run, current["fingerprint"]) if current is not None else None


def older_cells(run: RunFolder, fingerprint: str = "") -> Cells[RegionsRow]:
    """The cells of an earlier version, which have both."""
    return Cells(run, OLDER, RegionsRow, fingerprint)


def stored_cells(run: RunFolder) -> tuple[Cells[Any], Cells[EmbeddingsRow] | None]:
    """The cells with the masks of a run of any version, and those with embeddings where these have their own."""
    if run.read_json(PROPOSALS, FINGERPRINT_FILE) is None and run.read_json(OLDER, FINGERPRINT_FILE) is not None:
        return older_cells(run), None
    current = run.read_json(EMBEDDINGS, FINGERPRINT_FILE)
    embeddings = embeddings_cells(run, current["fingerprint"]) if current is not None else None
    return proposals_cells(run), embeddings


def read_regions(
    proposals: Cells[Any], embeddings: Cells[EmbeddingsRow] | None, part: int
) -> Iterator[list[RegionsRow]]:
    """The regions of a part with what is known of them, one row group in memory at a time.

    Raises IncompleteError as `RunFolder.read_table`, and for embeddings of other regions.
    """
    seen = embeddings.read_rows(part) if embeddings is not None else iter(())
    for table in proposals.read_groups(part):
        rows = from_table(table, RegionsRow)
        yield rows if embeddings is None else _joined(rows, list(islice(seen, len(rows))), embeddings.path(part))
    if next(seen, None) is not None:
        raise _other_regions(embeddings.path(part) if embeddings is not None else "")


def read_masks(proposals: Cells[Any], embeddings: Cells[EmbeddingsRow] | None, part: int) -> Iterator[RegionsRow]:
    """`read_regions` without the embeddings, of which it is only read which images have none; raises as there."""
    rows = (row for table in proposals.read_groups(part) for row in from_table(table, RegionsRow))
    if embeddings is None:
        yield from (replace(row, regions=tuple(replace(one, embedding=None) for one in row.regions)) for row in rows)
        return
    seen = embeddings.read_columns_with_ties(part, ["image_id", "rejection"])[0].to_pylist()
    row: RegionsRow | None
    one: dict[str, Any] | None
    for row, one in zip_longest(rows, seen):
        if row is None or one is None or row.image_id != one["image_id"]:
            raise _other_regions(embeddings.path(part))
        why = one["rejection"]
        yield row if why is None else replace(row, regions=(), rejection=Rejection(**why))


def drop_older(run: RunFolder) -> int:
    """Delete the cells of an earlier version; returns how many there were."""
    if run.read_json(OLDER, FINGERPRINT_FILE) is None:  # without a listing
        return 0
    names = run.names(OLDER)
    for name in names:  # the fingerprint last
        run.delete(OLDER, name)
    return len(set(names) - {FINGERPRINT_FILE})


def _joined(rows: Sequence[RegionsRow], seen: Sequence[EmbeddingsRow], path: str) -> list[RegionsRow]:
    try:
        return [row.with_embeddings(one) for row, one in zip(rows, seen, strict=True)]
    except ValueError as error:
        raise _other_regions(path) from error


def _other_regions(path: str) -> IncompleteError:
    return IncompleteError(f"{path}: are not of the regions of this part; delete it and run the same command again")
