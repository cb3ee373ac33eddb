"""Ultralytics' data for segmentation: photographs, a text file with polygons for each, and `data.yaml`.

The form is that of https://docs.ultralytics.com/datasets/segment/. One polygon stands for an instance, however many
parts and holes its mask has; see `polygons.py` for what Ultralytics makes of it.
"""

from __future__ import annotations

import yaml

from maskmine.mining.exports.export_shards import ExportShard, ExportSummary, Folder
from maskmine.mining.exports.photographs import Photograph, photographs
from maskmine.mining.exports.polygons import Outline, outline_of
from maskmine.mining.storage.prefetch import map_in_order

# Each file is on the disk before it has its name; while some threads wait for that, others encode.
_WAITING = 6
_VALIDATION = ("val", "valid", "validation", "dev")


def write_yolo(folder: Folder, shard: ExportShard) -> None:
    """`images/SPLIT/ID.jpg` and `labels/SPLIT/ID.txt`: a line for each pair, its class and the points of its polygon.

    Counts the masks whose parts lie apart, so that a bridge of a pixel's width joins them in the polygon, and the
    pixels of all bridges.
    """
    classes = {noun: number for number, noun in enumerate(shard.totals.nouns)}

    def write(photograph: Photograph) -> list[int]:
        """Returns the pixels under bridges of each mask."""
        outlines = [outline_of(mask_HW) for mask_HW in photograph.masks]
        lines = (
            f"{classes[sample.row.noun]} {_points(outline, photograph)}\n"
            for sample, outline in zip(photograph.samples, outlines, strict=True)
        )
        with folder.write("images", shard.split, f"{photograph.name}.{photograph.image_format}") as file:
            file.write(photograph.content)
        with folder.write("labels", shard.split, f"{photograph.name}.txt") as file:
            file.write("".join(lines).encode())
        return [outline.bridge_px for outline in outlines]

    for bridges in map_in_order(write, photographs(shard), threads=shard.pictures.threads + _WAITING):
        shard.counts["masks"] += len(bridges)
        shard.counts["masks_with_bridges"] += sum(px > 0 for px in bridges)
        shard.counts["pixels_under_bridges"] += sum(bridges)


def write_data_yaml(folder: Folder, summary: ExportSummary) -> None:
    """`data.yaml`: the folders of the splits, and the nouns as classes. Without a second split, the first validates."""
    filled = [split for split, shards in summary.shards.items() if sum(shards)]
    others = [split for split in filled[1:] if split != "test"]
    named = [split for split in others if split in _VALIDATION]
    folders = {"train": filled[0], "val": next(iter(named or others), filled[0])}
    if "test" in filled[1:]:
        folders["test"] = "test"
    content = {name: f"images/{split}" for name, split in folders.items()}
    names = {"names": dict(enumerate(summary.nouns))}
    with folder.write("data.yaml") as file:
        file.write(yaml.safe_dump(content | names, sort_keys=False, allow_unicode=True).encode())


def _points(outline: Outline, photograph: Photograph) -> str:
    """`x y x y …` as shares of the photograph's sides, six digits after the point."""
    shares_N2 = outline.points_N2 / (photograph.width_px, photograph.height_px)
    return " ".join(f"{value:.6f}" for value in shares_N2.ravel().tolist())
