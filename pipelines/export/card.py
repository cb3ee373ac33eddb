"""The README of an export: what is in the folder, what was filtered, under which licences, and how to open it."""

from __future__ import annotations

from maskmine.mining.exports.export_shards import Totals
from maskmine.mining.exports.filters import Selection
from maskmine.pipelines.dataset.cards import render_card
from maskmine.schemas.manifest import Manifest


def export_card(
    form: str, manifest: Manifest, totals: Totals, shards: dict[str, list[int]], selection: Selection
) -> str:
    """The dataset card of an export, with the Hugging Face front matter where `datasets` can open the folder."""
    first = next(split for split, count in totals.samples.items() if count)
    return render_card(
        "export_card.md",
        manifest=manifest,
        form=form,
        totals=totals,
        first=first,
        last=f"{len(shards[first]) - 1:05d}",
        filters=_filters(selection),
    )


def _filters(selection: Selection) -> list[str]:
    """The filters that were set, in words."""
    words = [f"{score} at least {least:g}" for score, least in selection.thresholds.items()]
    if selection.nouns is not None:
        words.append(f"only {len(selection.nouns):,} listed nouns")
    if selection.without_nouns:
        words.append(f"without {len(selection.without_nouns):,} listed nouns")
    if selection.held_out:
        words.append(f"{len(selection.held_out):,} nouns held out of `{selection.splits[0].name}`")
    if selection.sources is not None:
        words.append(f"captions of {', '.join(selection.sources)} only")
    return words
