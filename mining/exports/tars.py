"""Tars in WebDataset form: with the members of the run, or those that open_clip, OVSeg and AlphaCLIP read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import yaml

from maskmine.mining.exports.export_shards import ExportShard, ExportSummary, Folder
from maskmine.mining.exports.images import (
    Pictures,
    cut_to_region,
    decode,
    decode_mask,
    fill_background,
    paint_background,
    shrink,
)
from maskmine.mining.images.encode import encode_mask, encode_png
from maskmine.mining.storage.prefetch import map_in_order, read_ahead
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import SampleRow
from maskmine.schemas.sample import StoredSample, member_names, write_end_of_tar, write_members
from maskmine.schemas.settings import canonical_json

Members = list[tuple[str, bytes]]

# The colour that OVSeg's loader takes for background, and its neighbour for pixels of the region that have it.
KEY_COLOUR, BESIDE_KEY_COLOUR = (124, 116, 103), (124, 116, 104)


def write_webdataset(folder: Folder, shard: ExportShard) -> None:
    """A tar of the run's own members, copied from the shards where images stay as they are."""

    def members(sample: StoredSample) -> bytes | Members:
        if shard.pictures.keeps(sample):
            return sample.span
        cutout = shrink(decode(sample), max_side_px=shard.pictures.max_side_px)
        image_format = shard.pictures.image_format or sample.image_format
        box = Mask.from_array(cutout.mask_array()).box_xyxy
        record = canonical_json(sample.record | {"box_crop_xyxy": list(box)})
        image, mask_png = shard.pictures.encode(cutout.image, image_format), encode_mask(cutout.mask_array())
        contents = (image, mask_png, sample.row.noun.encode(), record.encode())
        return list(zip(member_names(sample.row.key, image_format), contents, strict=True))

    if shard.pictures.are_stored:
        _write_blocks(folder, shard, read_ahead(shard.spans()))
    else:
        _write_tar(folder, shard, members)


def write_openclip(folder: Folder, shard: ExportShard) -> None:
    """A tar of masked crops, nouns and records: what open_clip trains on."""

    def members(sample: StoredSample) -> Members:
        image_format = shard.pictures.image_format or sample.image_format
        cutout = cut_to_region(decode(sample), sample.record["box_crop_xyxy"], expand_ratio=shard.pictures.expand_ratio)
        filled = fill_background(shrink(cutout, max_side_px=shard.pictures.max_side_px), shard.pictures.fill)
        record = sample.record | {"crop_xyxy": list(cutout.crop_xyxy)}
        del record["box_crop_xyxy"]  # it is in the frame of the stored crop, of which this is a part
        return _masked_members(sample.row, shard.pictures.encode(filled, image_format), image_format, record)

    _write_tar(folder, shard, members)


def write_ovseg_tar(folder: Folder, shard: ExportShard) -> None:
    """A tar of keyed crops (see `key_crop`) and nouns: OVSeg's own loader reads it with and without masks."""

    def members(sample: StoredSample) -> Members:
        return [
            (f"{sample.row.key}.png", key_crop(sample, shard.pictures)),
            (f"{sample.row.key}.txt", sample.row.noun.encode()),
        ]

    _write_tar(folder, shard, members)


def write_alpha_clip(folder: Folder, shard: ExportShard) -> None:
    """A tar of crops, nouns, and the JSON that AlphaCLIP's data set of images with references reads for each.

    There the text is `caption[start:end]` of a reference, its mask the run lengths of the same number.
    """

    def members(sample: StoredSample) -> Members:
        row = sample.row
        image_format, image, mask_png = shard.pictures.files(sample)
        mask = Mask.from_array(decode_mask(replace(sample, mask_png=mask_png)))
        record = {
            "caption": row.caption,
            "noun": row.noun,
            "ref_exps": [[row.start, row.end, row.similarity]],
            "seudo_masks": [mask.as_json()],
        }
        return _masked_members(row, image, image_format, record)

    _write_tar(folder, shard, members)


def key_crop(sample: StoredSample, pictures: Pictures) -> bytes:
    """The tight crop as a lossless PNG whose background, and no other pixel, has OVSeg's key colour."""
    cutout = cut_to_region(decode(sample), sample.record["box_crop_xyxy"], expand_ratio=pictures.expand_ratio)
    cutout = shrink(cutout, max_side_px=pictures.max_side_px)
    keyed_HW3 = np.array(paint_background(cutout, KEY_COLOUR))
    red_HW, green_HW, blue_HW = (keyed_HW3[..., n] == value for n, value in enumerate(KEY_COLOUR))
    keyed_HW3[red_HW & green_HW & blue_HW & cutout.mask_array()] = BESIDE_KEY_COLOUR
    return encode_png(keyed_HW3)


def write_sizes(folder: Folder, summary: ExportSummary) -> None:
    """`sizes.json` for each split: where open_clip and OVSeg look for the number of samples of a tar."""
    for split, samples in summary.shards.items():
        _write_json(folder, split, "sizes.json", value={f"{n:05d}.tar": count for n, count in enumerate(samples)})


def write_energon_templates(folder: Folder, summary: ExportSummary) -> None:
    """`.nv-meta` of Megatron-Energon: the fields of a sample, splits, sizes of tars.

    The index of the tars is its own program's: `energon prepare --tar-index-only` makes it from this.
    """
    write_sizes(folder, summary)
    fields = {"image": summary.image_format, "caption": "txt"}
    sample_type = {"__module__": "megatron.energon", "__class__": "CaptioningSample"}
    _write_yaml(folder, "dataset.yaml", {"sample_type": sample_type, "field_map": fields})
    tars = {split: [f"{split}/{n:05d}.tar" for n in range(len(shards))] for split, shards in summary.shards.items()}
    _write_yaml(folder, "split.yaml", {"split_parts": tars, "exclude": []})
    counts = {name: samples for split in tars for name, samples in zip(tars[split], summary.shards[split], strict=True)}
    _write_json(folder, ".nv-meta", ".info.json", value={"shard_counts": counts})


def _masked_members(row: SampleRow, image: bytes, image_format: str, record: dict[str, Any]) -> Members:
    contents = {image_format: image, "txt": row.noun.encode(), "json": canonical_json(record).encode()}
    return [(f"{row.key}.{suffix}", content) for suffix, content in contents.items()]


def _write_tar(folder: Folder, shard: ExportShard, members: Callable[[StoredSample], bytes | Members]) -> None:
    """`members` gives those of a sample, or their bytes in a tar; it is called in several threads."""

    def block(sample: StoredSample) -> tuple[int, bytes]:
        encoded = members(sample)
        if isinstance(encoded, bytes):
            return 1, encoded
        buffer = io.BytesIO()
        write_members(buffer, encoded)
        return 1, buffer.getvalue()

    _write_blocks(folder, shard, map_in_order(block, shard.samples(), threads=shard.pictures.threads))


def _write_blocks(folder: Folder, shard: ExportShard, blocks: Iterable[tuple[int, bytes]]) -> None:
    """Write a tar from numbers of samples and their bytes in it."""
    with folder.write(shard.split, f"{shard.name}.tar") as file:
        size_bytes = 0
        for samples, content in blocks:
            size_bytes += file.write(content)
            shard.tick(samples)
        write_end_of_tar(file, size_bytes=size_bytes)


def _write_json(folder: Folder, *names: str, value: Any) -> None:
    with folder.write(*names) as file:
        file.write((json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def _write_yaml(folder: Folder, name: str, value: Any) -> None:
    with folder.write(".nv-meta", name) as file:
        file.write(yaml.safe_dump(value, sort_keys=False).encode())
