"""The README of an export: what is in the folder, what was filtered, under which licences, and how to open it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maskmine.mining.exports.export_shards import Totals
from maskmine.mining.exports.filters import Selection
from maskmine.pipelines.dataset.cards import render_card
from maskmine.pipelines.export.forms import Format
from maskmine.schemas.manifest import Manifest


def export_card(
    name: str,
    form: Format,
    manifest: Manifest,
    totals: Totals,
    shards: Mapping[str, Sequence[int]],
    selection: Selection,
    counts: Mapping[str, int],
) -> str:
    """The dataset card of an export, with the Hugging Face front matter where `datasets` can open the folder.

    `counts` are those of the writers: what could not be exported, and what is not exact.
    """
    splits = [split for split, count in totals.samples.items() if count]
    last = f"{len(shards[splits[0]]) - 1:05d}"
    return render_card(
        "export_card.md",
        manifest=manifest,
        form=name,
        totals=totals,
        data_files={split: form.data_files.replace("SPLIT", split) for split in splits} if form.data_files else {},
        example=form.example.replace("FIRST", splits[0]).replace("LAST", last),
        more=form.more.replace("FIRST", splits[0]).replace("LAST", last),
        filters=_filters(selection),
        counts=dict(sorted(counts.items())),
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
