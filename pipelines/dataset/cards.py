"""Dataset cards: the README files that are written beside the data, from templates in `pipelines/data`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mining.licences import strictest
from schemas.manifest import Manifest

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
# What Hugging Face calls the licences that it knows by other names than SPDX in small letters.
_HUB_LICENCES = {"cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "mit", "apache-2.0"}


def render_card(template: str, *, manifest: Manifest, **values: Any) -> str:
    """A card as Markdown. Raises jinja2's UndefinedError for a value that a template needs and does not get."""
    environment = Environment(
        loader=PackageLoader("pipelines", "data"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(
        manifest=manifest, licence=hub_licence(manifest.licences), size=size_category(manifest.totals.samples), **values
    )


def hub_licence(licences: Sequence[str]) -> str:
    """What the card's front matter gives as licence: the one of all parts, else `other`."""
    shared = strictest(licences).lower() if licences else "other"
    return shared if shared in _HUB_LICENCES else "other"


def size_category(samples: int) -> str:
    """Hugging Face's word for the size of a set."""
    return next((word for below, word in _SIZES if samples < below), "n>10M")
