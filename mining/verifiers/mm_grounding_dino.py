"""MM-Grounding-DINO through transformers: boxes for a noun.

The backbone sees the picture once for all its nouns. Everything after it looks at picture and text together, and the
words of one prompt at each other, so every noun has a prompt and a row of its own: nouns cannot disturb each other.

Shapes: B nouns at once, T tokens of a prompt, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from maskmine.mining.models.pretrained import Family
from maskmine.mining.verifiers.checkpoint import CheckpointVerifier, Model, Prompt, prompts, stacked
from maskmine.mining.verifiers.checks import Found, Verify, boxes_from, fixed_batches
from maskmine.schemas.mask import Mask

if TYPE_CHECKING:
    from torch import Tensor

_TOKENS = 32  # of a prompt; the model would take 256, and filling costs time
_SEPARATORS = str.maketrans(".?", "  ")  # between them the model sees phrases of their own
# Longer pictures have fewer places than the model has queries; their lines are repeated.
_LONG_TO_SHORT_SIDE = 16


class MMGroundingDino(CheckpointVerifier):
    """Which MM-Grounding-DINO, and when it has found something."""

    family: ClassVar[Family] = Family(
        classes={"mm-grounding-dino": ("MMGroundingDinoForObjectDetection", "GroundingDinoProcessor")},
        pickles=False,
        needed=lambda network: (name for name, _ in network.named_parameters() if ".swin.layernorm." not in name),
        role="verifier",
        texts=True,
    )

    kind: Literal["mm_grounding_dino"]
    """MM-Grounding-DINO by transformers, such as `openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det`:
    boxes. It reads 32 tokens; a longer noun is not checked."""
    threshold: float = Field(default=0.25, ge=0, le=1)
    """Score above which a box is an instance of the noun; the default is that of transformers."""

    def open(self, *, device: str) -> Verify:
        """Load the model. `presence` is the score of the best box, `agreement` the best IoU of boxes.

        The score is the greatest sigmoid of a query's logits for the prompt's tokens, as in
        `post_process_grounded_object_detection`. Raises InputError when the checkpoint cannot be had, is of another
        kind, or lacks weights or words.
        """
        import torch

        model = self.load_on(device)
        backbone = model.network.model.backbone
        encode = backbone.forward
        prompt_of = prompts(model.processor.tokenizer, length=min(_TOKENS, model.network.config.max_text_len))

        def read(nouns: Sequence[str]) -> list[Prompt | None]:
            return [prompt_of(as_prompt(noun)) for noun in nouns]

        def find(rgb_3HW: Tensor, texts: Sequence[Prompt], regions: Sequence[Mask]) -> Iterator[Found]:
            height_px, width_px = rgb_3HW.shape[1:]
            pixels_13HW = _prepared(rgb_3HW.to(model.device), processor=model.processor)
            mask_1HW = torch.ones_like(pixels_13HW[:, 0], dtype=torch.long)
            with model.running():
                seen = encode(pixels_13HW, mask_1HW)
            for batch, count in fixed_batches(texts, batch_size=self.batch_size, device=model.device):
                backbone.forward = partial(_repeated, seen)
                score_BQ, boxes_BQ4 = _answer(pixels_13HW, mask_1HW, batch, model=model)
                for score_Q, boxes_Q4 in zip(score_BQ[:count], boxes_BQ4, strict=False):
                    scaled_Q4 = boxes_Q4 * boxes_Q4.new_tensor([width_px, height_px, width_px, height_px])
                    boxes = boxes_from(scaled_Q4[score_Q > self.threshold], size_px=(height_px, width_px))
                    yield Found(score_Q.max().item(), boxes=boxes)

        return self.verify_with(read, find)


def as_prompt(noun: str) -> str:
    """The noun in small letters as one phrase, with the full stop that ends it."""
    return " ".join(noun.lower().translate(_SEPARATORS).split()) + "."


def _repeated(seen: Any, pixels_B3HW: Tensor, mask_BHW: Tensor) -> Any:
    """In the place of the backbone: what it has seen, once for each noun."""
    maps, places = seen
    count = len(pixels_B3HW)
    return (
        [(map_.expand(count, -1, -1, -1), mask.expand(count, -1, -1)) for map_, mask in maps],
        [place.expand(count, -1, -1, -1) for place in places],
    )


def _answer(
    pixels_13HW: Tensor, mask_1HW: Tensor, prompts_B: Sequence[Prompt], *, model: Model
) -> tuple[Tensor, Tensor]:
    """Scores [B, Q] and boxes [B, Q, 4] as shares of the picture, centre and size, both in float32."""
    tokens_BT, mask_BT = stacked(prompts_B, model.device)
    with model.running():
        outputs = model.network(
            pixel_values=pixels_13HW.expand(len(prompts_B), -1, -1, -1),
            pixel_mask=mask_1HW.expand(len(prompts_B), -1, -1),
            input_ids=tokens_BT,
            attention_mask=mask_BT,
        )
    return outputs.logits.float().amax(dim=-1).sigmoid(), outputs.pred_boxes.float()


def _prepared(rgb_3HW: Tensor, *, processor: Any) -> Tensor:
    """The model's input, float32 [1, 3, H', W']: the picture resized and normalised as the checkpoint says."""
    height_px, width_px = rgb_3HW.shape[1:]
    for dim, side_px, other_px in ((1, height_px, width_px), (2, width_px, height_px)):
        if other_px > _LONG_TO_SHORT_SIDE * side_px:
            rgb_3HW = rgb_3HW.repeat_interleave(-(-other_px // (_LONG_TO_SHORT_SIDE * side_px)), dim=dim)
    prepared: Tensor = processor.image_processor(
        images=[rgb_3HW], return_tensors="pt", device=rgb_3HW.device, input_data_format="channels_first"
    )["pixel_values"]
    return prepared
