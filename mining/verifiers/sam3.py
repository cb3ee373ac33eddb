"""Segment Anything 3 through transformers: a mask for every instance of a noun.

The picture is encoded once for all its nouns and a noun once for all pictures; the rest of the model sees both. A
score is, as the model's authors have it, the instance's probability times that of the noun's being in the picture at
all, for which the model has a token of its own.

Shapes: B nouns at once, T tokens of a prompt, D width of the text's features, Q queries, h × w the grid of the masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from maskmine.mining.models.pretrained import Family
from maskmine.mining.verifiers.checkpoint import CheckpointVerifier, Model, Prompt, prompts, read_whole, stacked
from maskmine.mining.verifiers.checks import Found, Verify, fixed_batches, masks_from
from maskmine.schemas.mask import Mask

if TYPE_CHECKING:
    from torch import Tensor

    Read = tuple[Tensor, Tensor]
    """A noun's features, float32 [T, D], and which tokens count, int64 [T]."""


class Sam3(CheckpointVerifier):
    """Which Segment Anything 3, and when it has found something."""

    family: ClassVar[Family] = Family(
        classes={
            "sam3": ("Sam3Model", "Sam3Processor"),
            "sam3_video": ("Sam3Model", "Sam3Processor"),  # as SAM 3 is published
        },
        pickles=False,
        needed=lambda network: (name for name, _ in network.named_parameters()),
        role="verifier",
        texts=True,
    )

    kind: Literal["sam3"]
    """Segment Anything 3 by transformers, such as `facebook/sam3`: masks. It reads 32 tokens; a longer noun is not
    checked."""
    threshold: float = Field(default=0.3, ge=0, le=1)
    """Score above which a mask is an instance of the noun; the default is that of transformers."""
    mask_threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability above which a pixel belongs to a mask."""

    def open(self, *, device: str) -> Verify:
        """Load the model. `presence` is the score of the best instance, `agreement` the best IoU of masks.

        Instances are those of `post_process_instance_segmentation`. A noun in the plural and one of several alike are
        judged alike: by the one instance that fits best. Raises InputError when the checkpoint cannot be had, is of
        another kind, or lacks weights or words.
        """
        model = self.load_on(device)
        network, device_ = model.network, model.device
        prompt_of = prompts(model.processor.tokenizer, length=network.config.text_config.max_position_embeddings)

        def embed(texts: Sequence[Prompt]) -> Iterator[Read]:
            for batch, count in fixed_batches(texts, batch_size=self.batch_size, device=device_):
                tokens_BT, mask_BT = stacked(batch, device_)
                with model.running():
                    features_BTD = network.get_text_features(tokens_BT, attention_mask=mask_BT).pooler_output
                yield from zip(features_BTD.float()[:count], mask_BT, strict=False)

        def find(rgb_3HW: Tensor, texts: Sequence[Read], regions: Sequence[Mask]) -> Iterator[Found]:
            view = _look(rgb_3HW, model=model)
            for batch, count in fixed_batches(texts, batch_size=self.batch_size, device=device_):
                score_BQ, soft_BQhw = _answer(view, batch, model=model)
                for score_Q, soft_Qhw in zip(score_BQ[:count], soft_BQhw, strict=False):
                    masks = masks_from(
                        soft_Qhw[score_Q > self.threshold],
                        threshold=self.mask_threshold,
                        size_px=(rgb_3HW.shape[1], rgb_3HW.shape[2]),
                    )
                    yield Found(score_Q.max().item(), masks)

        return self.verify_with(lambda nouns: read_whole(nouns, prompt_of, embed), find)


def _look(rgb_3HW: Tensor, *, model: Model) -> Any:
    """What the encoder makes of a picture, stretched to the square that the model takes."""
    pixels_13SS = model.processor.image_processor(
        images=[rgb_3HW.to(model.device)],
        return_tensors="pt",
        device=model.device,
        input_data_format="channels_first",
    )["pixel_values"]
    with model.running():
        return model.network.get_vision_features(pixels_13SS)


def _answer(view: Any, texts: Sequence[Read], *, model: Model) -> tuple[Tensor, Tensor]:
    """Scores [B, Q] and masks [B, Q, h, w], both as probabilities in float32."""
    import torch

    features_BTD, mask_BT = (torch.stack(rows) for rows in zip(*texts, strict=True))
    repeated = type(view)(
        fpn_hidden_states=tuple(level.expand(len(texts), -1, -1, -1) for level in view.fpn_hidden_states),
        fpn_position_encoding=tuple(level.expand(len(texts), -1, -1, -1) for level in view.fpn_position_encoding),
    )
    with model.running():
        outputs = model.network(
            vision_embeds=repeated,
            text_embeds=SimpleNamespace(pooler_output=features_BTD),  # what the model takes of its text encoder
            attention_mask=mask_BT,
        )
    score_BQ = outputs.pred_logits.float().sigmoid() * outputs.presence_logits.float().sigmoid()
    return score_BQ, outputs.pred_masks.float().sigmoid()
