"""Tars for trainers that read WebDataset: with our own members, or those that open_clip, OVSeg, AlphaCLIP want."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import yaml

from mining.exports.pictures import (
    Pictures,
    cut_to_region,
    decode,
    decode_mask,
    encode_png,
    fill_background,
    map_in_order,
    paint_background,
    read_ahead,
    shrink,
)
from mining.exports.pieces import Ending, Folder, Piece
from mining.exports.stored import StoredSample
from mining.shards import encode_mask
from schemas.mask import Mask
from schemas.sample import member_names, write_end_of_tar, write_members
from schemas.settings import canonical_json

Members = list[tuple[str, bytes]]

# The colour by which OVSeg's loader knows the background, and its neighbour for pixels of the region that have it.
KEY_COLOUR, BESIDE_KEY_COLOUR = (124, 116, 103), (124, 116, 104)


def write_webdataset(folder: Folder, piece: Piece) -> None:
    """A tar of the run's own members; as they lie in the shards where pictures are not to be changed."""

    def members(sample: StoredSample) -> bytes | Members:
        if piece.pictures.keeps(sample):
            return sample.span
        cutout = shrink(decode(sample), max_side_px=piece.pictures.max_side_px)
        image_format = piece.pictures.image_format or sample.image_format
        box = Mask.from_array(cutout.mask_array()).box_xyxy
        record = canonical_json(sample.record | {"box_crop_xyxy": list(box)})
        image, mask_png = piece.pictures.encode(cutout.image, image_format), encode_mask(cutout.mask_array())
        contents = (image, mask_png, sample.row.noun.encode(), record.encode())
        return list(zip(member_names(sample.row.key, image_format), contents, strict=True))

    if piece.pictures.are_stored:
        _write_blocks(folder, piece, read_ahead(piece.spans()))
    else:
        _write_tar(folder, piece, members)


def write_openclip(folder: Folder, piece: Piece) -> None:
    """A tar of masked crops, nouns and records: what open_clip trains on."""

    def members(sample: StoredSample) -> Members:
        image_format = piece.pictures.image_format or sample.image_format
        cutout = cut_to_region(decode(sample), sample.record["box_crop_xyxy"], expand_ratio=piece.pictures.expand_ratio)
        filled = fill_background(shrink(cutout, max_side_px=piece.pictures.max_side_px), piece.pictures.fill)
        return _masked_members(sample, piece.pictures.encode(filled, image_format), image_format, cutout.crop_xyxy)

    _write_tar(folder, piece, members)


def write_ovseg_tar(folder: Folder, piece: Piece) -> None:
    """A tar of keyed crops (see `key_crop`) and nouns: OVSeg's own loader reads it with and without masks."""

    def members(sample: StoredSample) -> Members:
        return [
            (f"{sample.row.key}.png", key_crop(sample, piece.pictures)),
            (f"{sample.row.key}.txt", sample.row.noun.encode()),
        ]

    _write_tar(folder, piece, members)


def write_alpha_clip(folder: Folder, piece: Piece) -> None:
    """A tar of crops, nouns, and the JSON that AlphaCLIP's data set of images with references reads for each.

    There the text is `caption[start:end]` of a reference, its mask the run lengths of the same number.
    """

    def members(sample: StoredSample) -> Members:
        pictures, row = piece.pictures, sample.row
        image_format = pictures.image_format or sample.image_format
        if pictures.keeps(sample):
            image, mask = sample.image, Mask.from_array(decode_mask(sample))
        else:
            cutout = shrink(decode(sample), max_side_px=pictures.max_side_px)
            image, mask = pictures.encode(cutout.image, image_format), Mask.from_array(cutout.mask_array())
        record = {
            "caption": row.caption,
            "noun": row.noun,
            "ref_exps": [[row.start, row.end, row.similarity]],
            "seudo_masks": [{"size": [mask.height_px, mask.width_px], "counts": mask.counts.decode("ascii")}],
        }
        contents = (image, row.noun.encode(), canonical_json(record).encode())
        return list(zip((f"{row.key}.{image_format}", f"{row.key}.txt", f"{row.key}.json"), contents, strict=True))

    _write_tar(folder, piece, members)


def key_crop(sample: StoredSample, pictures: Pictures) -> bytes:
    """The tight crop as a lossless PNG whose background is exactly OVSeg's key colour, its foreground nowhere."""
    cutout = cut_to_region(decode(sample), sample.record["box_crop_xyxy"], expand_ratio=pictures.expand_ratio)
    cutout = shrink(cutout, max_side_px=pictures.max_side_px)
    keyed_HW3 = np.array(paint_background(cutout, KEY_COLOUR))
    red_HW, green_HW, blue_HW = (keyed_HW3[..., n] == value for n, value in enumerate(KEY_COLOUR))
    keyed_HW3[red_HW & green_HW & blue_HW & cutout.mask_array()] = BESIDE_KEY_COLOUR
    return encode_png(keyed_HW3)


def write_sizes(folder: Folder, ending: Ending) -> None:
    """`sizes.json` for each split: where open_clip and OVSeg look for the number of samples of a tar."""
    for split, samples in ending.pieces.items():
        _write_json(folder, split, "sizes.json", value={f"{n:05d}.tar": count for n, count in enumerate(samples)})


def write_energon_templates(folder: Folder, ending: Ending) -> None:
    """What Megatron-Energon's loader is told in `.nv-meta`: the fields of a sample, splits, sizes of tars.

    The index of the tars is its own program's: `energon prepare --tar-index-only` makes it from this.
    """
    write_sizes(folder, ending)
    fields = {"image": ending.image_format, "caption": "txt"}
    sample_type = {"__module__": "megatron.energon", "__class__": "CaptioningSample"}
    _write_yaml(folder, "dataset.yaml", {"sample_type": sample_type, "field_map": fields})
    tars = {split: [f"{split}/{n:05d}.tar" for n in range(len(pieces))] for split, pieces in ending.pieces.items()}
    _write_yaml(folder, "split.yaml", {"split_parts": tars, "exclude": []})
    counts = {name: samples for split in tars for name, samples in zip(tars[split], ending.pieces[split], strict=True)}
    _write_json(folder, ".nv-meta", ".info.json", value={"shard_counts": counts})


def _masked_members(sample: StoredSample, image: bytes, image_format: str, crop_xyxy: tuple[int, ...]) -> Members:
    record = sample.record | {"crop_xyxy": list(crop_xyxy)}
    del record["box_crop_xyxy"]  # it is in the frame of the stored crop, of which this is a part
    key = sample.row.key
    contents = (image, sample.row.noun.encode(), canonical_json(record).encode())
    return list(zip((f"{key}.{image_format}", f"{key}.txt", f"{key}.json"), contents, strict=True))


def _write_tar(folder: Folder, piece: Piece, members: Callable[[StoredSample], bytes | Members]) -> None:
    """`members` gives those of a sample, or their bytes in a tar; it is called in several threads."""

    def block(sample: StoredSample) -> tuple[int, bytes]:
        made = members(sample)
        if isinstance(made, bytes):
            return 1, made
        buffer = io.BytesIO()
        write_members(buffer, made)
        return 1, buffer.getvalue()

    _write_blocks(folder, piece, map_in_order(block, piece.samples(), threads=piece.pictures.threads))


def _write_blocks(folder: Folder, piece: Piece, blocks: Iterable[tuple[int, bytes]]) -> None:
    """Write a tar from numbers of samples and their bytes in it."""
    with folder.write(piece.split, f"{piece.name}.tar") as file:
        size_bytes = 0
        for samples, content in blocks:
            size_bytes += file.write(content)
            piece.tick(samples)
        write_end_of_tar(file, size_bytes=size_bytes)


def _write_json(folder: Folder, *names: str, value: Any) -> None:
    with folder.write(*names) as file:
        file.write((json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def _write_yaml(folder: Folder, name: str, value: Any) -> None:
    with folder.write(".nv-meta", name) as file:
        file.write(yaml.safe_dump(value, sort_keys=False).encode())
