"""What a training leaves to be looked at: a line of JSON every few steps, and a picture of the curves."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def append_row(path: Path, row: Row) -> None:
    """Add a line to the log."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path, *, upto_step: int) -> list[Row]:
    """The log's lines of steps that the checkpoint knows; a line that was cut off is none."""
    rows = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return [row for row in rows if row["step"] <= upto_step]


def rewrite_rows(path: Path, rows: Sequence[Row]) -> None:
    """Make the log hold these lines and no others."""
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(partial, path)


def draw_curves(path: Path, rows: Sequence[Row]) -> None:
    """Loss, accuracy within the batch, and zero-shot accuracy over the pictures seen, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    losses, shares = figure.subplots(1, 2)
    losses.plot(*_series(rows, "loss"), color="tab:blue")
    losses.set(xlabel="pictures seen", ylabel="contrastive loss of crops", ylim=(0, None))
    shares.plot(*_series(rows, "in_batch_top1"), color="tab:grey", label="right caption in the batch")
    for name, said in (
        ("surroundings", "single objects with surroundings"),
        ("tight", "tight crops of crowded scenes"),
        ("masked", "masked crops of crowded scenes"),
    ):
        shares.plot(*_series(rows, name), marker=".", label=f"zero-shot: {said}")
    shares.set(xlabel="pictures seen", ylabel="share right", ylim=(0, 1))
    shares.legend(loc="lower right", fontsize="small")
    for axes in (losses, shares):
        axes.grid(alpha=0.3)
    partial = path.with_suffix(".partial")
    figure.savefig(partial, format="png", dpi=120)
    os.replace(partial, path)


def _series(rows: Sequence[Row], name: str) -> tuple[list[int], list[float]]:
    found = [(row["images"], row[name]) for row in rows if name in row]
    return [images for images, _ in found], [value for _, value in found]
