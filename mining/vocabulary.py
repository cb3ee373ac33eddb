"""The nouns of a run: in how many images and how often each is said, and what CLIP makes of it.

Shapes: V nouns, T templates, D width of the embedding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from mining.embeddings import pack
from mining.models.clip import Clip
from mining.query import query_cells
from mining.templates import fill_template, load_templates
from schemas.rows import VocabularyRow
from schemas.settings import Settings

if TYPE_CHECKING:
    from mining.models.clip import TextTower

Count = tuple[str, int, int]
"""A noun, the number of images that it is said of, and the number of its mentions."""

Item = TypeVar("Item")

_ROWS_AT_ONCE = 4096


class EmbedNouns(Protocol):
    """Counted nouns to rows of the vocabulary, in order; embeddings in `known` are taken as they are."""

    def __call__(
        self, counts: Iterable[Count], *, known: Mapping[str, bytes] | None = None
    ) -> Iterator[VocabularyRow]: ...


class Vocabulary(Settings):
    """`templates` is `vild`, `imagenet`, `raw` or a text file: what a noun is said in (`mining/templates.py`)."""

    templates: str = "vild"

    def open(self, clip: Clip | None, device: str) -> EmbedNouns:
        """Load CLIP's text side and return the function that embeds nouns; without CLIP, embeddings are None.

        A noun's embedding is the mean of its unit vectors over the templates, made a unit vector again (ViLD; OVSeg
        appendix A.2). It does not depend on the other nouns. Raises InputError for faults of the settings.
        """
        templates = load_templates(self.templates)
        if clip is None:
            return _without_embeddings
        tower = clip.open_text(device=device)

        def embed(counts: Iterable[Count], *, known: Mapping[str, bytes] | None = None) -> Iterator[VocabularyRow]:
            known = known or {}
            for rows in _groups(counts, size=_ROWS_AT_ONCE):
                missing = [noun for noun, _, _ in rows if noun not in known]
                new = dict(_embed_nouns(missing, templates=templates, tower=tower))
                for noun, images, mentions in rows:
                    yield VocabularyRow(noun, images, mentions, new[noun] if noun in new else known[noun])

        return embed


def count_nouns(parquet_paths: Sequence[str], *, memory_limit: str = "1GB") -> Iterator[Count]:
    """The nouns of the `NounsRow` tables at these paths, ordered by their UTF-8 bytes.

    Counts within `memory_limit` and goes on in temporary files beyond it. Paths are files here, or on any file system
    of fsspec (`s3://…`).
    """
    if not parquet_paths:
        return
    with query_cells(parquet_paths, memory_limit=memory_limit) as (connection, cells):
        counted = connection.execute(_COUNT, [cells])
        while rows := counted.fetchmany(_ROWS_AT_ONCE):
            yield from rows


# Grouped by noun and image first: unlike count(DISTINCT …), both groupings can spill to disk.
_COUNT = """
    WITH mention AS (SELECT image_id, unnest(nouns).text AS noun FROM read_parquet(?)),
         said AS (SELECT noun, image_id, count(*) AS mentions FROM mention GROUP BY noun, image_id)
    SELECT noun, count(*) AS images, sum(mentions)::BIGINT AS mentions FROM said GROUP BY noun
    ORDER BY encode(noun)
"""


def _without_embeddings(
    counts: Iterable[Count], *, known: Mapping[str, bytes] | None = None
) -> Iterator[VocabularyRow]:
    return (VocabularyRow(noun, images, mentions, None) for noun, images, mentions in counts)


def _embed_nouns(nouns: Sequence[str], *, templates: Sequence[str], tower: TextTower) -> Iterator[tuple[str, bytes]]:
    """Each noun with its packed embedding; as many nouns at once as fill whole batches with their sentences."""
    from torch.nn.functional import normalize

    for group in _groups(nouns, size=tower.batch_size):
        sentences = [fill_template(template, noun) for noun in group for template in templates]
        embeddings_VTD = tower.embed(sentences).view(len(group), len(templates), tower.dim)
        means_VD = normalize(embeddings_VTD.mean(1), dim=1).cpu().numpy()
        yield from zip(group, map(pack, means_VD), strict=True)


def _groups(items: Iterable[Item], *, size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
