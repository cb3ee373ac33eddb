"""The numbers of the pairs that verdicts are about: these name masks, and the cells say which pair has which mask."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow as pa

from maskmine.mining.evaluation.verdicts import PairId
from maskmine.mining.storage.query import check_cell, query_cells
from maskmine.schemas.mask import Mask

PairNumber = tuple[str, int]
"""Image id, and the number of the pair among the image's."""


def find_judged_pairs(
    pair_cells: Sequence[str], region_cells: Sequence[str], *, judged: Collection[PairId], memory_limit: str = "1GB"
) -> dict[PairNumber, PairId]:
    """The pairs of the cells that are among those `judged`, by their numbers.

    Only regions of the images that these name are looked at, so memory is bounded by the verdicts.
    """
    if not judged:
        return {}
    names = ("image_id", "noun", "mask")
    columns = zip(*sorted(judged), strict=True)
    asked_of = pa.table({name: pa.array(values, pa.string()) for name, values in zip(names, columns, strict=True)})
    # Regions are the largest cells of a run, of which verdicts need few.
    with query_cells([*pair_cells, *region_cells], memory_limit=memory_limit, unchecked=frozenset(region_cells)) as (
        connection,
        cells,
    ):
        connection.register("judged", asked_of)
        found = connection.execute(
            """
            WITH numbered AS (
                SELECT image_id, unnest(pairs) AS pair, generate_subscripts(pairs, 1) - 1 AS number
                FROM read_parquet($pairs) WHERE image_id IN (SELECT image_id FROM judged)
            ), said AS (
                SELECT image_id, number, pair.noun AS noun, pair.region AS region FROM numbered
                WHERE (image_id, pair.noun) IN (SELECT (image_id, noun) FROM judged)
            )
            SELECT said.image_id, number, noun, regions[region + 1].mask AS mask, cell.filename
            FROM said JOIN read_parquet($regions, filename = true) AS cell USING (image_id)
            """,
            {"pairs": cells[: len(pair_cells)], "regions": cells[len(pair_cells) :]},
        ).fetchall()
        for file in sorted({file for *_, file in found}):
            check_cell(file)
    asked = set(judged)
    named = {(row[0], row[1]): (row[0], row[2], Mask(**row[3]).digest) for row in found}
    return {number: pair for number, pair in named.items() if pair in asked}
