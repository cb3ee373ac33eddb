"""Checks: what a verifier says of every mined pair. The picture is decoded for pairs that are not known, and no other.

images, proposals, pairs ─▶ those without a known check ─▶ decoded some ahead ─▶ verifier, a picture at a time ─▶ rows
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from maskmine.mining.images.decode import DecodedImage
from maskmine.mining.models.devices import DeviceKind, fix_threads, kind_of
from maskmine.mining.models.pretrained import HasWeights
from maskmine.mining.regions import OTHER_PICTURE, Regions
from maskmine.mining.storage.prefetch import map_in_order
from maskmine.mining.verifiers.checks import Verify
from maskmine.mining.verifiers.kinds import AnyVerifier
from maskmine.schemas.manifest import ModelRecord
from maskmine.schemas.rows import ChecksRow, ImageRow, Pair, PairCheck, PairsRow, ProposalsRow, Rejection
from maskmine.schemas.settings import Settings

Known = Mapping[tuple[str, str], PairCheck]
"""Checks by noun and the digest of the region's mask."""
CheckImages = Callable[[Iterable["ImageToCheck"]], Iterator[ChecksRow]]
"""What `Checks.open()` returns: the images of a part to their rows, in order."""


@dataclass(frozen=True, slots=True)
class ImageToCheck:
    """An image with its regions and pairs. `known` is an earlier row of it, whose checks are used again where the
    picture is the same."""

    image: ImageRow
    proposals: ProposalsRow
    pairs: PairsRow
    known: ChecksRow | None = None

    @property
    def keys(self) -> list[tuple[str, str]]:
        """What each pair is known by: noun, and digest of the region's mask."""
        return [(pair.noun, self.proposals.regions[pair.region].mask.digest) for pair in self.pairs.pairs]

    def known_checks(self) -> dict[tuple[str, str], PairCheck]:
        """The checks that an earlier row has of this picture."""
        if self.known is None or self.known.sha256 != self.proposals.sha256:
            return {}
        return {(check.noun, check.mask): check for check in self.known.checks}


class Checks(Settings):
    """A verifier that checks every pair; decoding, device and threads are those of `regions`."""

    verifier: AnyVerifier
    """The model that checks pairs; `kind` chooses which. It should be of another make than the models of the pairs, or
    it only agrees with them."""

    def open(self, regions: Regions) -> CheckImages:
        """A function from the images of a part to their checks; the verifier is loaded for the first pair that is new.

        Pictures are decoded as `regions` says, a few ahead of the verifier; one is in its memory at a time. An image
        whose picture cannot be had, or is another than that of its regions, is rejected. Raises InputError when the
        verifier cannot be had.
        """

        @functools.cache
        def verifier() -> Verify:
            fix_threads(regions.device, cpu_threads=regions.cpu_threads)
            return self.verifier.open(device=regions.device)

        def decoded(item: ImageToCheck) -> tuple[ImageToCheck, DecodedImage | Rejection | None]:
            if not _new_pairs(item):
                return item, None
            picture = regions.decoding.read(item.image.path, max_pixels=regions.max_image_pixels)
            if isinstance(picture, DecodedImage) and picture.sha256 != item.proposals.sha256:
                return item, OTHER_PICTURE
            return item, picture

        def check(images: Iterable[ImageToCheck]) -> Iterator[ChecksRow]:
            threads = regions.decode_threads
            for item, picture in map_in_order(decoded, images, threads=threads, ahead=threads):
                if isinstance(picture, Rejection):
                    yield ChecksRow(item.image.image_id, None, (), picture)
                else:
                    new = {} if picture is None else _verify(item, picture, verifier())
                    known = item.known_checks() | new
                    checks = tuple(known[key] for key in item.keys)
                    sha256 = item.proposals.sha256 if checks else None
                    yield ChecksRow(item.image.image_id, sha256, checks, None)

        return check

    def settled(self, kind: DeviceKind) -> Checks:
        """The same with the precision that the verifier has on a kind of device."""
        return self.model_copy(update={"verifier": self.verifier.settled(kind)})

    def fetch(self) -> None:
        """Fetch the verifier where it is not on this machine. Raises InputError when it cannot be had."""
        self.verifier.fetch()

    def weights_bytes(self) -> int:
        """The size of the verifier's weights; 0 where they are not on this machine."""
        return self.verifier.weights_bytes() if isinstance(self.verifier, HasWeights) else 0

    def record(self) -> ModelRecord:
        """The verifier and its licence. Raises InputError for settings that name nothing."""
        return self.verifier.record()


def how_checked(regions: Regions) -> dict[str, Any]:
    """What of the way in which a verifier runs decides the last bits."""
    kind = kind_of(regions.device)
    return {"device": kind, "cpu_threads": regions.cpu_threads if kind == "cpu" else None}


def _new_pairs(item: ImageToCheck) -> list[tuple[tuple[str, str], Pair]]:
    """The pairs that are not known, each once, with what they are known by."""
    known = item.known_checks()
    new = {key: pair for key, pair in zip(item.keys, item.pairs.pairs, strict=True) if key not in known}
    return list(new.items())


def _verify(item: ImageToCheck, picture: DecodedImage, verify: Verify) -> dict[tuple[str, str], PairCheck]:
    import torch

    new = _new_pairs(item)
    checks = verify(
        torch.from_numpy(picture.rgb_HW3).permute(2, 0, 1).contiguous(),
        nouns=[pair.noun for _, pair in new],
        regions=[region.mask for region in item.proposals.regions],
        chosen=[pair.region for _, pair in new],
    )
    return {
        (noun, mask): PairCheck(
            noun=noun,
            mask=mask,
            presence=_rounded(check.presence),
            agreement=_rounded(check.agreement),
            reason=check.reason,
        )
        for ((noun, mask), _), check in zip(new, checks, strict=True)
    }


def _rounded(value: float | None) -> float | None:
    """As the scores of pairs are, since the last bits depend on the machine."""
    return None if value is None else round(value, 6)
