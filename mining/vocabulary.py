"""The nouns of a run: number of images and mentions of each, and CLIP's embedding.

Shapes: V nouns, D width of the embedding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from maskmine.mining.models.clip import Clip
from maskmine.mining.models.embeddings import embed_nouns, pack, unpack
from maskmine.mining.models.prompt_templates import Templates, load_templates, templates_identity
from maskmine.mining.storage.query import query_cells
from maskmine.schemas.rows import VocabularyRow
from maskmine.schemas.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

Count = tuple[str, int, int, str]
"""A noun, the number of images whose captions mention it, the number of its mentions, and its lemma: of several the
first by their bytes."""

EmbedNames = Callable[[Sequence[str]], list[bytes]]
"""Names to their packed embeddings, in order."""

FindKnown = Callable[[Sequence[str]], Mapping[str, bytes]]
"""Nouns, some thousands at a time, to the packed embeddings of those that are known."""

Item = TypeVar("Item")

_ROWS_AT_ONCE = 4096  # of the vocabulary in memory


class EmbedNouns(Protocol):
    """Counted nouns to rows of the vocabulary, in order; embeddings that `known` has are taken as they are."""

    def __call__(self, counts: Iterable[Count], *, known: FindKnown | None = None) -> Iterator[VocabularyRow]: ...


class Vocabulary(Settings):
    """How the nouns of a run are embedded."""

    templates: Templates = "vild"
    """Prompt templates that a noun is put into: `vild`, `imagenet`, `raw` (the bare noun), or a text file with one a
    line."""

    def contents(self) -> dict[str, Any]:
        """The sentences by a hash. Raises InputError when a file of them cannot be read."""
        return {"templates": templates_identity(self.templates)}

    def open(self, clip: Clip | None, device: str) -> EmbedNouns:
        """The function that embeds nouns by CLIP's text side; without CLIP, embeddings are None.

        The first noun that is not known loads CLIP.

        A noun's embedding is the mean of its unit vectors over the templates, made a unit vector again (ViLD; OVSeg
        appendix A.2). It does not depend on the other nouns. Raises InputError for faults of the settings.
        """
        load_templates(self.templates)
        if clip is None:
            return _without_embeddings
        open_names = cache(partial(self.open_names, clip, device))

        def embed(counts: Iterable[Count], *, known: FindKnown | None = None) -> Iterator[VocabularyRow]:
            for rows in _groups(counts, size=_ROWS_AT_ONCE):
                embeddings = dict(known([noun for noun, *_ in rows])) if known is not None else {}
                missing = [noun for noun, *_ in rows if noun not in embeddings]
                embeddings |= zip(missing, open_names()(missing), strict=True) if missing else ()
                for noun, images, mentions, lemma in rows:
                    yield VocabularyRow(noun, images, mentions, embeddings[noun], lemma)

        return embed

    def open_names(self, clip: Clip, device: str) -> EmbedNames:
        """Load CLIP's text side and return the function that embeds names as `open` embeds nouns."""
        templates = load_templates(self.templates)
        tower = clip.open_text(device=device)
        return lambda names: [pack(v_D) for v_D in embed_nouns(names, templates=templates, tower=tower).numpy()]


def text_classifier(names: Sequence[str], *, embed: EmbedNames) -> Tensor:
    """The weights of a zero-shot classifier: a unit vector for each name, float32 [V, D]."""
    import torch
    from torch.nn.functional import normalize

    return normalize(torch.from_numpy(unpack(embed(names))), dim=-1)  # packed in float16, no longer of length 1


def equal_texts(names: Sequence[str], classes_VD: Tensor) -> tuple[int, int] | None:
    """The numbers of the first two names that are one text to CLIP, None when all differ.

    Names are one text when they differ in case and spaces only, or when the classifier [V, D] has one vector for both,
    as for texts that CLIP's tokenizer mends or cuts to the same tokens.
    """
    first_of: dict[str | bytes, int] = {}
    for number, (name, vector_D) in enumerate(zip(names, classes_VD.cpu().numpy(), strict=True)):
        for form in (" ".join(name.split()).casefold(), vector_D.tobytes()):
            if (other := first_of.setdefault(form, number)) != number:
                return other, number
    return None


def count_nouns(
    parquet_paths: Sequence[str], *, memory_limit: str = "1GB", expect: Callable[[int], None] = lambda nouns: None
) -> Iterator[Count]:
    """The nouns of the `NounsRow` tables at these paths, ordered by their UTF-8 bytes; `expect` is told their number
    before the first one comes.

    Counts within `memory_limit` and goes on in temporary files beyond it. Paths are files here, or on any file system
    of fsspec (`s3://…`).
    """
    if not parquet_paths:
        return
    with query_cells(parquet_paths, memory_limit=memory_limit) as (connection, cells):
        connection.execute(_COUNT, [cells])
        ((nouns,),) = connection.execute("SELECT count(*) FROM counted").fetchall()
        expect(nouns)
        counted = connection.execute("SELECT * FROM counted ORDER BY encode(noun)")
        while rows := counted.fetchmany(_ROWS_AT_ONCE):
            yield from rows


# Grouped by noun and image first: unlike count(DISTINCT …), both groupings can spill to disk.
_COUNT = """
    CREATE TEMP TABLE counted AS
    WITH mention AS (SELECT image_id, unnest(nouns) AS noun FROM read_parquet(?)),
         per_image AS (SELECT noun.text AS noun, image_id, count(*) AS mentions, min(encode(noun.lemma)) AS lemma
                       FROM mention GROUP BY noun.text, image_id)
    SELECT noun, count(*) AS images, sum(mentions)::BIGINT AS mentions, decode(min(lemma)) AS lemma
    FROM per_image GROUP BY noun
"""


def _without_embeddings(counts: Iterable[Count], *, known: FindKnown | None = None) -> Iterator[VocabularyRow]:
    return (VocabularyRow(noun, images, mentions, None, lemma) for noun, images, mentions, lemma in counts)


def _groups(items: Iterable[Item], *, size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
