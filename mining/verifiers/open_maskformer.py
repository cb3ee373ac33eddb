"""An open-vocabulary MaskFormer that `maskmine train-proposals` made: its masks, and what a noun is to each of them.

Shapes: N masks of a picture, D width of CLIP's embeddings, K classes that the model was trained on, L these and "no
object", h × w the grid of the masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from maskmine.mining.models.clip import Clip
from maskmine.mining.models.devices import DeviceKind, open_device
from maskmine.mining.models.embeddings import embed_nouns
from maskmine.mining.models.prompt_templates import load_templates
from maskmine.mining.proposers.open_vocabulary import OpenMaskFormer, TextSpace
from maskmine.mining.proposers.open_vocabulary_checkpoint import RECORD_FILE, is_open
from maskmine.mining.proposers.proposals import LoadedImage, Proposals
from maskmine.mining.verifiers.checkpoint import refuse_other_kind
from maskmine.mining.verifiers.checks import Found, TextCache, Verify, verify_pairs
from maskmine.mining.verifiers.second_clip import read_nouns
from maskmine.schemas.errors import InputError
from maskmine.schemas.manifest import ModelRecord
from maskmine.schemas.mask import Mask
from maskmine.schemas.settings import AnyPath, RecordOnly, Settings

if TYPE_CHECKING:
    from torch import Tensor

    Read = tuple[str, Tensor]
    """A noun and its unit vector [D]."""


class OpenMaskFormerVerifier(Settings):
    """Which open-vocabulary MaskFormer, and when it has found something."""

    kind: Literal["open_maskformer"]
    """A MaskFormer that `maskmine train-proposals` made, whose classifier takes any names: masks."""
    checkpoint: AnyPath
    """The folder that `maskmine train-proposals` wrote."""
    clip: Clip
    """The CLIP that it was trained with, which reads the nouns; a noun that is longer than it reads is not checked."""
    threshold: float = Field(default=0.3, ge=0, le=1)
    """Score above which a mask is an instance of the noun."""
    mask_threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability above which a pixel belongs to a mask."""
    short_side_px: int | None = Field(default=None, ge=32)
    """Short side of the model's input in pixels, the long side at most 5/3 of it; null takes the checkpoint's."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the model; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    licence: Annotated[str | None, RecordOnly()] = None
    """Licence of the weights (SPDX) where it is not known."""

    def open(self, *, device: str) -> Verify:
        """Load the model and the text side of CLIP.

        A mask's score is the probability that it is the noun rather than any other class of the training or no object,
        times the mean probability of its pixels, as in `read_queries`. `presence` is that of the best mask, `agreement`
        the best IoU of masks. Raises InputError when the checkpoint cannot be had, lacks weights, or was trained with
        another CLIP.
        """
        self._refuse_others()
        space = self._model.text_space()
        target, propose = open_device(device), self._model.open(device=device)
        templates = load_templates(space.record.templates)
        tower = self.clip.open_text(device=device)
        space.refuse_other_clip(self.clip.model, lambda names: embed_nouns(names, templates=templates, tower=tower))

        def read(nouns: Sequence[str]) -> list[Read | None]:
            vectors = read_nouns(nouns, templates=templates, tower=tower)
            return [
                None if vector_D is None else (noun, vector_D) for noun, vector_D in zip(nouns, vectors, strict=True)
            ]

        def find(rgb_3HW: Tensor, texts: Sequence[Read], regions: Sequence[Mask]) -> Iterator[Found]:
            (proposals,) = propose([LoadedImage("", rgb_3HW.to(target))], min_score=0.0)
            assert isinstance(proposals, Proposals)  # such a proposer rejects nothing
            masks = Mask.from_arrays(proposals.masks_NHW.cpu().numpy())
            for score_N in noun_scores(proposals, texts, space=space, mask_threshold=self.mask_threshold):
                scores = score_N.tolist()
                instances = tuple(mask for mask, score in zip(masks, scores, strict=True) if score > self.threshold)
                yield Found(max(scores, default=0.0), instances)

        return verify_pairs(TextCache(read), find)

    def weights_bytes(self) -> int:
        """The size of the weights of both models; 0 for those that are not there."""
        return self._model.weights_bytes() + self.clip.weights_bytes()

    def contents(self) -> dict[str, Any]:
        """The checkpoint as `OpenMaskFormer` has it."""
        return self._model.contents()

    def settled(self, kind: DeviceKind) -> OpenMaskFormerVerifier:
        """The same models with the precisions that they have on a kind of device."""
        precision = self._model.settled(kind).precision
        return self.model_copy(update={"precision": precision, "clip": self.clip.settled(kind)})

    def fetch(self) -> None:
        """Fetch CLIP from the hub where it is not on this machine. Raises InputError when that cannot be had, and for
        another checkpoint."""
        self._refuse_others()
        self.clip.fetch()

    def record(self) -> ModelRecord:
        """The weights and their licence, as in `OpenMaskFormer.record`; raises also for another kind."""
        self._refuse_others()
        return self._model.record().model_copy(update={"role": "verifier"})

    def _refuse_others(self) -> None:
        refuse_other_kind(self.checkpoint, kind=self.kind)
        if not is_open(self.checkpoint):
            raise InputError(
                f"verifier.checkpoint: `{self.checkpoint}` holds no {RECORD_FILE}; give a folder that "
                "`maskmine train-proposals` made"
            )

    @property
    def _model(self) -> OpenMaskFormer:
        return OpenMaskFormer(
            kind="open_maskformer",
            checkpoint=self.checkpoint,
            mask_threshold=self.mask_threshold,
            short_side_px=self.short_side_px,
            precision=self.precision,
            licence=self.licence,
        )


def noun_scores(
    proposals: Proposals, texts: Sequence[Read], *, space: TextSpace, mask_threshold: float
) -> Iterator[Tensor]:
    """What each noun is to the masks, float32 [N], 0–1: the share of the noun, of the classes of the training that have
    another name, and of "no object", times the mean probability of the mask's pixels.

    The other classes are there so that a noun has rivals, and are always the same, whatever is asked for beside it.
    """
    import torch

    from maskmine.mining.proposers.text_head import class_logits

    assert proposals.queries_ND is not None  # these proposals always have them
    assert proposals.soft_Nhw is not None
    soft_Nhw, queries_ND = proposals.soft_Nhw.cpu(), proposals.queries_ND.float().cpu()
    inside_Nhw = soft_Nhw > mask_threshold
    mean_N = (soft_Nhw * inside_Nhw).sum(dim=(1, 2)) / inside_Nhw.sum(dim=(1, 2)).clamp(min=1)
    scale = space.record.logit_scale
    rivals_NL = class_logits(queries_ND, space.classes_KD, space.no_object_D, logit_scale=scale)
    names = [" ".join(name.split()).casefold() for name in space.record.classes]
    for noun, vector_D in texts:
        own = [k for k, name in enumerate(names) if name == " ".join(noun.split()).casefold()]
        others_NL = rivals_NL.index_fill(1, torch.tensor(own, dtype=torch.long), -torch.inf)
        logit_N = scale * queries_ND @ vector_D
        yield (logit_N - torch.logsumexp(torch.cat([logit_N[:, None], others_NL], dim=1), dim=1)).exp() * mean_N
