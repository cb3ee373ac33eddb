"""Captioned images as their sources give them: which images there are, their locations and captions.

One kind of source a class; each reads its files once, as a stream of entries (`mining/sources/entries.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Discriminator, Field, Tag

from maskmine.mining.sources.coco import CocoCaptions
from maskmine.mining.sources.earlier_run import EarlierRun
from maskmine.mining.sources.hugging_face import HuggingFace
from maskmine.mining.sources.image_folder import Folder
from maskmine.mining.sources.tables import TableCaptions
from maskmine.mining.sources.webdataset import Img2dataset

AnySource = Annotated[
    CocoCaptions | Img2dataset | TableCaptions | HuggingFace | Folder | EarlierRun, Field(discriminator="kind")
]
"""Every source of captioned images."""

SomeSources = Annotated[
    Annotated[AnySource, Tag("one source")]
    | Annotated[tuple[AnySource, ...], Field(min_length=1, strict=False), Tag("sources")],
    Discriminator(lambda value: "sources" if isinstance(value, list | tuple) else "one source"),
]
"""One source or several; an image may be listed by one and have captions from all of them."""


def source_name(source: AnySource) -> str:
    """What the samples call the source of their captions."""
    return source.name or source.kind


def max_captions(source: AnySource) -> int | None:
    """How many captions of an image are read; None for all."""
    return None if source.per_image == "all" else source.per_image


def guesses(sources: Iterable[AnySource]) -> Iterator[str]:
    """What was found out of how text files are to be read, a line each. Raises InputError when one cannot be read."""
    for source in sources:
        if isinstance(source, TableCaptions):
            yield from source.guesses()
