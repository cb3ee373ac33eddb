"""Crops and masks in the shards of an earlier run, for a run that encodes the same ones.

A crop's file follows from the bytes of the picture, the box, format and quality, and from the libraries that decode and
encode. It is taken where all of these are the same, and where it is in its shard as it was written:

    manifest ─▶ format, quality, versions of libraries
        └─▶ index of a part ─▶ boxes, CRC-32 of each sample; its footer names the proposals ─▶ SHA-256 of each picture

A mask's file follows from the mask, the crop's box and the encoder. It is taken where the cell of proposals is the same
one byte for byte, by a name of the region that no other of its image has: box, area, score and label.

Versions do not tell how a library was built, so of each part that files are taken from, the crops of a picture are cut
anew and its masks encoded anew, and compared first. What is not proven is not taken: then it is encoded as ever, to the
same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import IO, Any, NamedTuple

from PIL import Image

from maskmine.mining.images.decode import DecodedImage, StoredImage
from maskmine.mining.images.encode import encode_mask
from maskmine.mining.shards import NOTHING_KNOWN, Known, KnownSamples, ReadFile, RegionName, Shards, encode_crop
from maskmine.mining.storage.stores import scheme_of
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.run_folder.region_cells import PROPOSALS
from maskmine.pipelines.run_folder.reused_regions import ReusedRun
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.manifest import Manifest, parse_manifest
from maskmine.schemas.mask import Box
from maskmine.schemas.rows import ImageRow, Rejection, UncheckedSampleRow
from maskmine.schemas.sample import is_damaged, sample_members

DecodeMask = Callable[[bytes], StoredImage | Rejection]
"""The pixels in the bytes of a mask's file."""


class Readers(NamedTuple):
    """The bytes of a picture's file, the pixels in them, and those in the bytes of a mask's file."""

    file: ReadFile
    picture: Callable[[bytes], DecodedImage | Rejection]
    mask: DecodeMask


_LIBRARIES = ("maskmine", "numpy", "pillow", "pycocotools")  # that decode, cut and encode
_COLUMNS = ("key", "image_id", "crop_xyxy", "offset", "size_bytes", "crc32")
_NAMES = ("box_xyxy", "area_px", "score", "label")
_CORRECTED = "corrected"  # a column of sets that may have other masks than those proposed
_LEAST_SHARE = 8  # an earlier part with fewer than one in so many images of a part is not worth its reading
_TRIED = 3  # images of a part, of which one is cut anew
_COPIED_AT_ONCE_BYTES = 1 << 20
_UNREADABLE = (IncompleteError, InputError, OSError)  # what is wrong with an earlier shard is no fault of this run


class _Span(NamedTuple):
    """Where a sample is in its tar, its crop's box, and its region's name; None for a region that was corrected."""

    key: str
    box: Box
    region: RegionName | None
    offset: int
    size_bytes: int
    crc32: int


@dataclass(frozen=True)
class _EarlierPart:
    """An open shard: its samples by image, and the SHA-256 of each image's file; whether its masks may be taken."""

    file: IO[bytes]
    spans: Mapping[str, Sequence[_Span]]
    sha256: Mapping[str, str]
    image_format: str
    masks: bool

    def samples(self, image_id: str, sha256: str) -> KnownSamples:
        """The whole samples of an image, where they were cut from a file of that hash."""
        if self.sha256.get(image_id) != sha256:
            return NOTHING_KNOWN
        found = [(span, files) for span in self.spans.get(image_id, ()) if (files := self._files(span)) is not None]
        crops = {span.box: crop for span, (crop, _) in found}
        named = ((span.box, span.region, mask) for span, (_, mask) in found)
        return KnownSamples(
            crops, {(box, region): mask for box, region, mask in named if region is not None} if self.masks else {}
        )

    def _files(self, span: _Span) -> tuple[bytes, bytes] | None:
        """The crop and the mask of a sample."""
        with suppress(OSError, ValueError):  # of other members
            content = os.pread(self.file.fileno(), span.size_bytes, span.offset)
            if not is_damaged(content, span.crc32):
                image_format, image, mask_png, *_ = sample_members(content, span.key)
                return (image, mask_png) if image_format == self.image_format else None
        return None


@dataclass(frozen=True)
class ReusedSamples:
    """The samples of an earlier run that were cut, encoded and made by libraries as they would be here.

    `fingerprint` is that of its shards, `proposals` are the cells of the run that takes them.
    """

    reused: ReusedRun
    fingerprint: str
    proposals: Cells[Any]
    shards: Shards

    @classmethod
    def of(cls, reused: ReusedRun | None, proposals: Cells[Any], shards: Shards) -> ReusedSamples | None:
        """None where there are none: another format, quality or library, or masks that lie with their embeddings, as
        earlier versions had them."""
        if reused is None or not reused.manifest_sha256 or reused.proposals.step != PROPOSALS:
            return None
        try:
            content = reused.run.read_bytes("manifest.json")
            manifest = parse_manifest(
                json.loads(content), path=reused.run.path("manifest.json"), open_file=reused.run.open
            )
        except (*_UNREADABLE, ValueError, RecursionError):
            return None
        is_same = hashlib.sha256(content).hexdigest() == reused.manifest_sha256
        if not is_same or not _encodes_alike(manifest, shards):
            return None
        return cls(reused, manifest.shards_fingerprint, proposals, shards)

    @contextmanager
    def open_part(self, part: int, images: Sequence[ImageRow], *, read: Readers) -> Iterator[Known | None]:
        """What is known of the images of a part while the block runs; None where nothing is. Of each earlier part a
        picture and its masks are decoded."""
        own = self.proposals.identity(part)
        with ExitStack() as stack:
            opened = (self._open(earlier, stack, own) for earlier in self._parts_of(part, images))
            tried = (self._tried(one, images, read) for one in opened if one is not None)
            found = [one for one in tried if one is not None]

            def find(image_id: str, sha256: str) -> KnownSamples:
                each = (one.samples(image_id, sha256) for one in found)
                return next((samples for samples in each if samples.crops), NOTHING_KNOWN)

            yield Known(find, read.file) if found else None

    def _parts_of(self, part: int, images: Sequence[ImageRow]) -> list[int]:
        """The earlier parts that have a good part of these images."""
        if self.proposals.fingerprint == self.reused.proposals.fingerprint:  # the same images, cut in the same way
            return [part] if part < self.reused.parts else []
        places = Counter(map(self._part_of, (image.image_id for image in images)))
        return [
            place for place, count in places.most_common() if place is not None and count * _LEAST_SHARE >= len(images)
        ]

    @cached_property
    def _part_of(self) -> Callable[[str], int | None]:
        try:
            return self.reused.open_parts()
        except _UNREADABLE:
            return lambda image_id: None

    def _open(self, part: int, stack: ExitStack, own: str | None) -> _EarlierPart | None:
        """An earlier part, until the stack is closed; None where its shard is gone, damaged, or of other proposals.
        `own` is the identity of the proposals of this run."""
        run, masks = self.reused.run, self.reused.proposals
        indexes = Cells(run, "shards", UncheckedSampleRow, self.fingerprint)
        try:
            index, made_from = indexes.read_columns_with_ties(part, (*_COLUMNS, *_NAMES, _CORRECTED))
            identity = masks.identity(part)
            if made_from is None or identity is None or made_from.get(PROPOSALS) != identity:
                return None
            hashes = run.read_columns(*masks.names(part), columns=["image_id", "sha256"]).drop_null()
            file = stack.enter_context(_open_tar(run, *indexes.names(part, "tar")))
            size_bytes = os.fstat(file.fileno()).st_size
        except _UNREADABLE:
            return None
        spans: dict[str, list[_Span]] = defaultdict(list)
        for row in index.to_pylist():
            offset, length = row["offset"], row["size_bytes"]
            if row.get("crc32") is not None and offset >= 0 and 0 < length <= size_bytes - offset:
                region = (tuple(row["box_xyxy"]), row["area_px"], row["score"], row["label"])
                span = _Span(
                    row["key"],
                    tuple(row["crop_xyxy"]),
                    None if row.get(_CORRECTED) else region,
                    offset,
                    length,
                    row["crc32"],
                )
                spans[row["image_id"]].append(span)
        sha256 = dict(zip(hashes["image_id"].to_pylist(), hashes["sha256"].to_pylist(), strict=True))
        return _EarlierPart(file, spans, sha256, self.shards.image_format, masks=identity == own)

    def _tried(self, earlier: _EarlierPart, images: Sequence[ImageRow], read: Readers) -> _EarlierPart | None:
        """The part, without its masks where these are encoded otherwise here; None where crops are."""
        for image in islice((one for one in images if one.image_id in earlier.spans), _TRIED):
            data = read.file(image.path)
            if not isinstance(data, bytes):
                continue
            crops, masks = earlier.samples(image.image_id, hashlib.sha256(data).hexdigest())
            if not crops:
                continue  # the picture was replaced, or this place of the shard is damaged
            decoded = read.picture(data)
            if isinstance(decoded, Rejection):
                return None
            picture = Image.fromarray(decoded.rgb_HW3)
            if any(encode_crop(picture, box, shards=self.shards) != crop for box, crop in crops.items()):
                return None
            return replace(
                earlier, masks=bool(masks) and all(_is_encoded_alike(one, read.mask) for one in masks.values())
            )
        return None


def _is_encoded_alike(mask_png: bytes, decode: DecodeMask) -> bool:
    """Whether the pixels of a mask have these bytes here."""
    decoded = decode(mask_png)
    return not isinstance(decoded, Rejection) and decoded.mode == "L" and encode_mask(decoded.pixels > 0) == mask_png


@contextmanager
def _open_tar(run: RunFolder, *names: str) -> Iterator[IO[bytes]]:
    """A tar as a file that can be read at any place by several threads; from an object store as a copy without a
    name."""
    if scheme_of(run.root) == "file":
        with run.open(*names) as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy:
        with run.open(*names) as file:
            shutil.copyfileobj(file, copy, _COPIED_AT_ONCE_BYTES)
        copy.flush()
        yield copy


def _encodes_alike(manifest: Manifest, shards: Shards) -> bool:
    there, here = manifest.settings.get("shards", {}), shards.model_dump()
    decides = ("image_format",) if shards.image_format == "png" else ("image_format", "quality")
    return all(there.get(name) == here[name] for name in decides) and all(
        manifest.libraries.get(name) == importlib.metadata.version(name) for name in _LIBRARIES
    )
