"""The captions that models wrote: cells of a step for each captioner, joined to those of the plan by whoever reads
them.

    captioning-NAME/_fingerprint.json              which of the folders below is that of the set
    captioning-NAME/3f5b0c77a1d2/00017.parquet     what one model says to one prompt; those of others stand beside it
    captioning-NAME/3f5b0c77a1d2-answers/          what came for parts that are being captioned (`Cells.write_answers`)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import pyarrow as pa

from maskmine.mining.sources.entries import NOTHING_MORE
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.folder import FINGERPRINT_FILE, IDENTITY_FILE, RunFolder
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.rows import CaptioningRow, CaptionsRow, Rejection
from maskmine.schemas.tables import to_table

CAPTIONING = "captioning-"
"""Begins the name of a step whose cells a captioner writes; what follows is the captioner's name."""
CAPTIONER_KINDS = ("endpoint", "florence2")
"""The kinds of `captions` that are captioners."""


def captioning_cells(run: RunFolder, step: str, fingerprint: str) -> Cells[CaptioningRow]:
    """The cells of a captioner."""
    return Cells(run, step, CaptioningRow, fingerprint, by_fingerprint=True, keep_answers=True)


def captioner_names(captions: Any) -> list[str]:
    """The names of the captioners in the `captions` of settings that were identified, in their order."""
    entries = [one for one in captions if isinstance(one, dict)] if isinstance(captions, list) else []
    return [str(one.get("name") or one["kind"]) for one in entries if one.get("kind") in CAPTIONER_KINDS]


def stored_captioning(run: RunFolder) -> tuple[Cells[CaptioningRow], ...]:
    """The cells of all captioners of a run, in their order; none where no model wrote captions."""
    identity = run.read_json(IDENTITY_FILE)
    names = captioner_names(identity.get("captions")) if isinstance(identity, dict) else []
    found = []
    for step in (f"{CAPTIONING}{name}" for name in names):
        current = run.read_json(step, FINGERPRINT_FILE)
        if current is not None:
            found.append(captioning_cells(run, step, current["fingerprint"]))
    return tuple(found)


def read_captions(
    planned: Cells[CaptionsRow], written: Sequence[Cells[CaptioningRow]], part: int
) -> Iterator[CaptionsRow]:
    """The captions of a part: those of the plan, then those of each captioner, which is the source of them.

    Raises IncompleteError as `RunFolder.read_table`, and for captions of other images.
    """
    if not written:
        yield from planned.read_rows(part)
        return
    names = [cells.step.removeprefix(CAPTIONING) for cells in written]
    rows: Iterator[tuple[Any, ...]] = zip_longest(
        planned.read_rows(part), *(cells.read_rows(part) for cells in written)
    )
    for row, *others in rows:
        if len({one and one.image_id for one in (row, *others)}) != 1:
            raise IncompleteError(
                f"{written[0].path(part)}: has captions of other images than part {part}; delete it and run the same "
                "command again"
            )
        more = [(text, name) for name, one in zip(names, others, strict=True) for text in one.captions]
        yield CaptionsRow(
            row.image_id,
            (*row.captions, *(text for text, _ in more)),
            (*row.sources, *(name for _, name in more)),
            (*row.additional, *(NOTHING_MORE for _ in more)),
        )


def read_captions_table(planned: Cells[CaptionsRow], written: Sequence[Cells[CaptioningRow]], part: int) -> pa.Table:
    """`read_captions` as a table."""
    return to_table(read_captions(planned, written, part), CaptionsRow)


def read_failures(written: Sequence[Cells[CaptioningRow]], part: int) -> Iterator[tuple[str, str, Rejection]]:
    """`(image id, captioner, why)` for each image of a part to which a captioner wrote nothing."""
    for cells in written:
        name = cells.step.removeprefix(CAPTIONING)
        for row in cells.read_rows(part):
            if row.rejection is not None:
                yield row.image_id, name, row.rejection
