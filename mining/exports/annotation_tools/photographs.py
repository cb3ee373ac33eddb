"""The photographs that people see in an annotation tool: where they are, or upright copies of them.

Masks are in the frame of the upright image, which not every tool turns by itself: so copies are made, not links.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from urllib.parse import quote

from PIL import Image

from maskmine.mining.exports.export_shards import ExportShard, Folder
from maskmine.mining.exports.images import decode_crop
from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.decode import MAX_SIDE_PX
from maskmine.mining.images.encode import encode_image
from maskmine.mining.storage.prefetch import map_in_order
from maskmine.mining.storage.stores import scheme_of
from maskmine.mining.storage.urls import URL_SCHEMES
from maskmine.schemas.rows import Rejection
from maskmine.schemas.sample import StoredSample, safe_id

_DECODING = Decoding()
_GROUND = (226, 224, 219)  # in place of a photograph that is not at hand, as in `maskmine review`


@dataclass(frozen=True, slots=True)
class Photograph:
    """A photograph with its samples: `name` is that of its file, below the folder of copies where it was copied."""

    name: str
    height_px: int
    width_px: int
    samples: Sequence[StoredSample]

    def address(self, prefix: str) -> str:
        """Where a browser finds it: its URL, or `prefix` and its name, quoted as URLs are."""
        return self.name if scheme_of(self.name) in URL_SCHEMES else prefix + quote(self.name)


def photographs(folder: Folder, shard: ExportShard, *, below: Sequence[str]) -> Iterator[Photograph]:
    """The photographs of a shard with their samples, which lie side by side; copied to `below` where that is asked for.

    One that cannot be read any more, or is at a URL, is a plain ground with the crops of its samples.
    """
    copies, quality = shard.pictures.photographs == "copy", shard.pictures.quality

    def make(group: _Group) -> Photograph:
        row, record = group.samples[0].row, group.samples[0].record
        size, name = (record["width_px"], record["height_px"]), group.name
        if copies:
            copy = (*below, f"{safe_id(row.image_id)}.jpg")
            name = "/".join(copy)
            with folder.write(*copy) as file:
                file.write(_upright(shard, group.samples, size, quality=quality))
        return Photograph(name, size[1], size[0], group.samples)

    def groups() -> Iterator[_Group]:
        for _, same in groupby(shard.samples(), key=lambda sample: sample.row.image_id):
            samples = list(same)
            row = samples[0].row
            yield _Group(samples, shard.run.file_name(row))

    for made in map_in_order(make, groups(), threads=shard.pictures.threads if copies else 0):
        yield made
        shard.tick(len(made.samples))


@dataclass(frozen=True, slots=True)
class _Group:
    """The samples of an image, and the name of its file."""

    samples: Sequence[StoredSample]
    name: str


def _upright(shard: ExportShard, samples: Sequence[StoredSample], size: tuple[int, int], *, quality: int) -> bytes:
    """A photograph of this width and height as JPEG."""
    data = shard.run.photograph(samples[0].row, fetch=shard.pictures.fetch)
    decoded = data if isinstance(data, Rejection) else _DECODING.decode(data, max_pixels=MAX_SIDE_PX**2)
    if isinstance(decoded, Rejection) or decoded.rgb_HW3.shape[1::-1] != size:
        image = Image.new("RGB", size, _GROUND)
        for sample in samples:
            image.paste(decode_crop(sample), sample.row.crop_xyxy[:2])
    else:
        image = Image.fromarray(decoded.rgb_HW3)
    return encode_image(image, "jpg", quality=quality)
