"""Dataset cards: the README files that are written beside the data, from templates in `pipelines/data`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from maskmine.pipelines.dataset.render import render
from maskmine.pipelines.run_folder.caption_cells import CAPTIONER_KINDS
from maskmine.pipelines.settings.licences import strictest, terms_of
from maskmine.schemas.manifest import Manifest, MixedSource

# Hugging Face's `size_categories`, each with its upper limit.
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_PROMPT_CHARS = 300  # of a prompt in a card; `manifest.json` has all of it
# SPDX licences that Hugging Face knows, under its own names: SPDX in lower case.
_HUB_LICENCES = {"cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "mit", "apache-2.0"}


def render_card(template: str, *, manifest: Manifest, **values: Any) -> str:
    """A card as Markdown. Raises jinja2's UndefinedError for a value that a template needs and does not get."""
    licence, size = hub_licence(manifest.licences), size_category(manifest.totals.samples)
    terms = {name: known.asks for name in sorted(set(manifest.licences)) if (known := terms_of(name))}
    shared = {"manifest": manifest, "licence": licence, "size": size, "terms": terms, "ancestors": _ancestors}
    given = {**shared, "reviewed": verdicts_of(manifest), "captioners": captioners_of(manifest), **values}
    return render("maskmine.pipelines.dataset", template, **given)


def _ancestors(sets: Sequence[MixedSource], depth: int = 0) -> Iterator[tuple[int, MixedSource]]:
    """The sets of a mix, each followed by those that it was mixed from itself, with how deep these lie."""
    for one in sets:
        yield depth, one
        yield from _ancestors(one.mixed_from, depth + 1)


def captioners_of(manifest: Manifest) -> dict[str, dict[str, str]]:
    """The models that wrote captions, by the name of their source: the model, and what it was asked for."""
    stored = manifest.settings.get("captions")
    found = {}
    for one in stored if isinstance(stored, list) else []:
        if one.get("kind") not in CAPTIONER_KINDS:
            continue
        model = one["model"] if one["kind"] == "endpoint" else one["checkpoint"]["name"]
        asked = one.get("prompt") or one["task"]
        shown = " ".join(asked.split()).replace("|", r"\|")
        found[str(one.get("name") or one["kind"])] = {
            "model": model,
            "asked": shown if len(shown) <= _PROMPT_CHARS else f"{shown[:_PROMPT_CHARS]}…",
            "sha256": hashlib.sha256(asked.encode()).hexdigest()[:16],
        }
    return found


def filters_of(manifest: Manifest) -> dict[str, Any]:
    """The settings that decided which of the rule's pairs were written, such as `pairs.min_evidence`, if they were set.

    They all are called `min_…` or `max_…`, but for the verdicts of reviewers.
    """
    pairs = manifest.settings["pairs"]
    named = {name: value for name, value in pairs.items() if name.startswith(("min_", "max_")) and value is not None}
    if named.get("min_count") == 1:
        del named["min_count"]
    filters = {f"pairs.{name}": value for name, value in sorted(named.items())}
    verdicts = manifest.settings["shards"].get("verdicts")
    if isinstance(verdicts, Mapping) and verdicts.get("wrong"):
        filters["shards.verdicts"] = f"{verdicts['wrong']:,} pairs that reviewers called wrong are left out"
    return filters


def verdicts_of(manifest: Manifest) -> Mapping[str, Mapping[str, int]]:
    """What reviewers said of how many pairs, and of how many they corrected the noun or the mask; empty where nobody.

    Runs made before these were counted have only the number of those that are left out, see `filters_of`.
    """
    verdicts = manifest.settings.get("shards", {}).get("verdicts")
    counts = verdicts if isinstance(verdicts, Mapping) else {}
    return {name: counts[name] for name in ("verdicts", "corrected") if isinstance(counts.get(name), Mapping)}


def hub_licence(licences: Sequence[str]) -> str:
    """What the card's front matter gives as licence: the one of all parts, else `other`."""
    shared = strictest(licences).lower() if licences else "other"
    return shared if shared in _HUB_LICENCES else "other"


def size_category(samples: int) -> str:
    """Hugging Face's word for the size of a set."""
    return next((word for below, word in _SIZES if samples < below), "n>10M")
