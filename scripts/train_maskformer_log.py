"""The curves of a training of the tiny MaskFormer, as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from scripts.train_clip_log import Row

_LOSSES = {"speak": "which query speaks", "cell": "masks, by cell", "dice": "masks, dice", "object": "object or not"}
_RECALLS = {"seen": "seen nouns, IoU 0.5", "unseen": "unseen nouns, IoU 0.5", "all_at_75": "all nouns, IoU 0.75"}


def draw_curves(path: Path, rows: Sequence[Row]) -> None:
    """The losses, and the recall of proposals, over the pictures seen, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    losses, recalls = figure.subplots(1, 2)
    for axes, names, marker in ((losses, _LOSSES, ""), (recalls, _RECALLS, ".")):
        for name, said in names.items():
            axes.plot(*_series(rows, name), marker=marker, label=said)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    losses.set(xlabel="pictures seen", ylabel="loss", ylim=(0, None))
    recalls.set(xlabel="pictures seen", ylabel="recall with 30 proposals", ylim=(0, 1))
    partial = path.with_suffix(".partial")
    figure.savefig(partial, format="png", dpi=120)
    os.replace(partial, path)


def _series(rows: Sequence[Row], name: str) -> tuple[list[int], list[float]]:
    found = [(row["images"], row[name]) for row in rows if name in row]
    return [images for images, _ in found], [value for _, value in found]
