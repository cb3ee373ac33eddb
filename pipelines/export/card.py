"""The README of an export: what lies in the folder, what was filtered, under which licences, and how to open it."""

from __future__ import annotations

from mining.exports.pieces import Totals
from mining.exports.selection import Selection
from pipelines.cards import render_card
from schemas.manifest import Manifest


def export_card(
    form: str, manifest: Manifest, totals: Totals, pieces: dict[str, list[int]], selection: Selection
) -> str:
    """The dataset card of an export, with the Hugging Face front matter where `datasets` can open the folder."""
    first = next(split for split, count in totals.samples.items() if count)
    return render_card(
        "export_card.md",
        manifest=manifest,
        form=form,
        totals=totals,
        first=first,
        last=f"{len(pieces[first]) - 1:05d}",
        filters=_filters(selection),
    )


def _filters(selection: Selection) -> list[str]:
    """The filters that were set, in words."""
    said = []
    if selection.min_similarity is not None:
        said.append(f"similarity at least {selection.min_similarity:g}")
    if selection.min_margin is not None:
        said.append(f"margin at least {selection.min_margin:g}")
    if selection.nouns is not None:
        said.append(f"only {len(selection.nouns):,} listed nouns")
    if selection.without_nouns:
        said.append(f"without {len(selection.without_nouns):,} listed nouns")
    if selection.held_out:
        said.append(f"{len(selection.held_out):,} nouns held out of `{selection.splits[0].name}`")
    if selection.sources is not None:
        said.append(f"captions of {', '.join(selection.sources)} only")
    return said
