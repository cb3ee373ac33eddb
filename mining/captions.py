"""Captioned images as their sources give them: which images there are, their locations and captions.

One kind of source a class; each reads its files once, as a stream of entries (`mining/sources/entries.py`). Captioners
stand among them in the settings: they list no images, and write captions for those that the sources list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Discriminator, Field, Tag

from maskmine.mining.captioners.endpoint import Endpoint
from maskmine.mining.captioners.florence2 import Florence2
from maskmine.mining.captioners.kinds import AnyCaptioner
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

AnyCaptions = Annotated[
    CocoCaptions | Img2dataset | TableCaptions | HuggingFace | Folder | EarlierRun | Endpoint | Florence2,
    Field(discriminator="kind"),
]
"""Wherever captions come from: a source, or a captioner, which lists no images."""

SomeSources = Annotated[
    Annotated[AnyCaptions, Tag("one source")]
    | Annotated[tuple[AnyCaptions, ...], Field(min_length=1, strict=False), Tag("sources")],
    Discriminator(lambda value: "sources" if isinstance(value, list | tuple) else "one source"),
]
"""One source or several; an image may be listed by one and have captions from all of them."""


def source_name(source: AnySource | AnyCaptioner) -> str:
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
