"""How the image of a file looks, as a perceptual hash, and whether the file is still the one that a run read."""

from __future__ import annotations

from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.perceptual_hash import image_hash
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.rows import Rejection

_MAX_PIXELS = 50_000_000  # as `regions.max_image_pixels` by default
_MIN_CONTRAST = 2.0  # standard deviation of the pixels; images of one colour all have one hash


def look_of(path: str | None, sha256: str | None) -> int | None:
    """The hash of the image at a path; None where the file is not the one of this SHA-256, or cannot be read without
    fetching, or has too little contrast to be told from others. Raises IncompleteError for a fault of the disk."""
    if path is None or sha256 is None:
        return None
    try:
        image = Decoding().read(path, max_pixels=_MAX_PIXELS)
    except OSError as error:
        why = f"cannot be read ({error.strerror or error}); mend the cause and run the same command again"
        raise IncompleteError(f"{path}: {why}") from error
    if isinstance(image, Rejection) or image.sha256 != sha256 or image.rgb_HW3[::4, ::4].std() < _MIN_CONTRAST:
        return None
    return image_hash(image.rgb_HW3)
