"""A second CLIP: of all the picture's regions, which one would it have chosen for the noun?

Shapes: R regions of a picture, D width of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maskmine.mining.images.crops import PictureCrop
from maskmine.mining.models.clip import Clip, TextTower
from maskmine.mining.models.devices import DeviceKind
from maskmine.mining.models.embeddings import embed_nouns, embed_regions
from maskmine.mining.models.prompt_templates import Templates, fill_template, load_templates, templates_identity
from maskmine.mining.verifiers.checkpoint import refuse_other_kind
from maskmine.mining.verifiers.checks import Found, TextCache, Verify, verify_pairs
from maskmine.schemas.manifest import ModelRecord
from maskmine.schemas.mask import Mask
from maskmine.schemas.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from maskmine.mining.models.clip import ImageTower


class SecondClip(Settings):
    """Which CLIP, and how it sees regions and nouns; of another make than that of the pairs, or it only agrees."""

    kind: Literal["clip"]
    """Another CLIP than that of the pairs, which looks at the same regions."""
    clip: Clip
    """That CLIP."""
    crop: PictureCrop = PictureCrop()
    """What it sees of a region."""
    templates: Templates = "vild"
    """Prompt templates that a noun is put into: `vild`, `imagenet`, `raw` (the bare noun), or a text file with one a
    line. A noun with which one of them is longer than CLIP reads is not checked."""

    def open(self, *, device: str) -> Verify:
        """Load both sides of CLIP.

        `agreement` is the IoU of the paired region with the one that this CLIP finds the likest to the noun: 1 where it
        would have chosen the same. `presence` is by the cosine of that region and the noun. For a CLIP that was trained
        with a bias, as SigLIP, it is the sigmoid of the logit, which is the probability that the two belong together.
        Any other gives no probability without the texts that it might have been instead; then it is the cosine itself,
        or 0 where that is negative, and comparable for one model alone. Raises InputError when settings, weights or
        network do not allow it.
        """
        self._refuse_other_kind()
        templates = load_templates(self.templates)
        images, texts = self.clip.open_image(device=device), self.clip.open_text(device=device)

        def find(rgb_3HW: Tensor, nouns: Sequence[Tensor], regions: Sequence[Mask]) -> Iterator[Found]:
            regions_RD = _embedded(rgb_3HW, regions, tower=images, crop=self.crop)
            for noun_D in nouns:
                cosine_R = regions_RD @ noun_D
                best = int(cosine_R.argmax())
                yield Found(_presence(float(cosine_R[best]), texts), (regions[best],))

        return verify_pairs(TextCache(lambda nouns: read_nouns(nouns, templates=templates, tower=texts)), find)

    def weights_bytes(self) -> int:
        """The size of CLIP's weights; 0 where they are not there."""
        return self.clip.weights_bytes()

    def contents(self) -> dict[str, Any]:
        """The sentences by a hash. Raises InputError when a file of them cannot be read."""
        return {"templates": templates_identity(self.templates)}

    def settled(self, kind: DeviceKind) -> SecondClip:
        """The same CLIP with the precision that it has on a kind of device."""
        return self.model_copy(update={"clip": self.clip.settled(kind)})

    def fetch(self) -> None:
        """Fetch from the hub what is not on this machine. Raises InputError when that cannot be had, or is of another
        kind."""
        self._refuse_other_kind()
        self.clip.fetch()

    def record(self) -> ModelRecord:
        """The weights and their licence, as in `Clip.record`; raises also for another kind."""
        self._refuse_other_kind()
        return self.clip.record().model_copy(update={"role": "verifier"})

    def _refuse_other_kind(self) -> None:
        refuse_other_kind(self.clip.model, kind=self.kind, setting="verifier.clip.model")


def read_nouns(nouns: Sequence[str], *, templates: Sequence[str], tower: TextTower) -> list[Tensor | None]:
    """The vector of each noun, a unit on the CPU [D]; None for one with which a sentence is longer than CLIP reads."""
    whole = [not any(tower.cuts(fill_template(template, noun)) for template in templates) for noun in nouns]
    readable = [noun for noun, is_whole in zip(nouns, whole, strict=True) if is_whole]
    vectors = iter(embed_nouns(readable, templates=templates, tower=tower))
    return [next(vectors) if is_whole else None for is_whole in whole]


def _embedded(rgb_3HW: Tensor, regions: Sequence[Mask], *, tower: ImageTower, crop: PictureCrop) -> Tensor:
    """The regions as unit vectors on the CPU, float32 [R, D]; a batch of masks at a time is in memory."""
    import torch

    parts = [torch.empty(0, tower.dim)]
    for start in range(0, len(regions), tower.batch_size):
        masks = np.stack([mask.to_array() for mask in regions[start : start + tower.batch_size]]).astype(bool)
        (embeddings_ND,) = embed_regions([rgb_3HW], [torch.from_numpy(masks)], tower=tower, crop=crop)
        parts.append(torch.from_numpy(embeddings_ND.astype(np.float32)))
    return torch.cat(parts)


def _presence(cosine: float, tower: TextTower) -> float:
    import torch

    if tower.bias is None:
        return max(0.0, cosine)
    return torch.tensor(tower.scale * cosine + tower.bias).sigmoid().item()
