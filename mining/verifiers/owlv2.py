"""OWLv2 through transformers: boxes everywhere in a picture, and how well a noun names what is in each.

The picture is encoded once; a noun is then a vector that all boxes are compared with (OWLv2, arXiv 2306.09683,
section 3.1), so a noun's answer has nothing to do with other nouns. The model sees the picture in the upper left corner
of a square, and its boxes are shares of that square.

Pictures of more than four times the sides of the input are reduced to that before transformers prepares them.

Shapes: P boxes, one for each patch of the input; D width of a query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from maskmine.mining.models.pretrained import Family
from maskmine.mining.models.prompt_templates import fill_template
from maskmine.mining.verifiers.checkpoint import CheckpointVerifier, Prompt, prompts, read_whole, stacked
from maskmine.mining.verifiers.checks import Found, Verify, boxes_from, fixed_batches
from maskmine.schemas.mask import Mask

if TYPE_CHECKING:
    from torch import Tensor

# Of sides. Larger pictures are first reduced to it: the square around a very long one would not fit into any memory,
# and the blur before the checkpoint's own resizing takes hours.
_MAX_TO_INPUT = 4


def _with_one_place(prompt: str) -> str:
    if prompt.count("{}") != 1:
        raise ValueError("needs exactly one {} for the noun")
    return prompt


class Owlv2(CheckpointVerifier):
    """Which OWLv2, and when it has found something."""

    family: ClassVar[Family] = Family(
        classes={"owlv2": ("Owlv2ForObjectDetection", "Owlv2Processor")},
        pickles=False,
        needed=lambda network: (name for name, _ in network.named_parameters()),
        role="verifier",
        texts=True,
    )

    kind: Literal["owlv2"]
    """OWLv2 by transformers, such as `google/owlv2-base-patch16-ensemble`: boxes."""
    threshold: float = Field(default=0.1, ge=0, le=1)
    """Score above which a box is an instance of the noun; the default is that of transformers."""
    prompt: Annotated[str, AfterValidator(_with_one_place)] = "a photo of a {}"
    """What the model is asked for, with `{}` for the noun. It reads 16 tokens; a longer one is not checked."""

    def open(self, *, device: str) -> Verify:
        """Load the model. `presence` is the score of the best box, `agreement` the IoU of boxes.

        The score is the sigmoid of the box's logit for the noun, as in `post_process_grounded_object_detection`. Raises
        InputError when the checkpoint cannot be had, is of another kind, or lacks weights or words.
        """
        import torch
        from torch.nn.functional import normalize

        model = self.load_on(device)
        network = model.network
        prompt_of = prompts(model.processor.tokenizer, length=network.config.text_config.max_position_embeddings)

        def read(nouns: Sequence[str]) -> list[Tensor | None]:
            return read_whole(nouns, lambda noun: prompt_of(fill_template(self.prompt, noun)), embed)

        def embed(texts: Sequence[Prompt]) -> Iterator[Tensor]:
            for batch, count in fixed_batches(texts, batch_size=self.batch_size, device=model.device):
                tokens_BT, mask_BT = stacked(batch, model.device)
                with model.running():
                    query_BD = network.owlv2.get_text_features(tokens_BT, attention_mask=mask_BT).pooler_output
                yield from normalize(query_BD.float(), dim=-1)[:count]

        def find(rgb_3HW: Tensor, queries: Sequence[Tensor], regions: Sequence[Mask]) -> Iterator[Found]:
            size_px = (rgb_3HW.shape[1], rgb_3HW.shape[2])
            with model.running():
                map_1hwD, _ = network.image_embedder(_prepared(rgb_3HW.to(model.device), processor=model.processor))
            map_1hwD = map_1hwD.float()  # the heads are small, and their boxes need all digits
            features_1PD = map_1hwD.flatten(1, 2)
            with torch.inference_mode():
                boxes_P4 = network.box_predictor(features_1PD, map_1hwD)[0] * max(size_px)
            for query_D in queries:
                with torch.inference_mode():
                    logits_1P1, _ = network.class_predictor(features_1PD, query_D[None, None])
                score_P = logits_1P1[0, :, 0].sigmoid()
                boxes = boxes_from(boxes_P4[score_P > self.threshold], size_px=size_px)
                yield Found(score_P.max().item(), boxes=boxes)

        return self.verify_with(read, find)


def _prepared(rgb_3HW: Tensor, *, processor: Any) -> Tensor:
    """The model's input, float32 [1, 3, S, S]: the picture padded to a square and resized as the checkpoint says."""
    from torch.nn.functional import interpolate

    long_px, most_px = max(rgb_3HW.shape[1:]), _MAX_TO_INPUT * processor.image_processor.size.height
    if long_px > most_px:
        reduced_px = tuple(max(1, round(side * most_px / long_px)) for side in rgb_3HW.shape[1:])
        rgb_3HW = interpolate(rgb_3HW[None].float(), reduced_px, mode="bilinear", antialias=True)[0].round().byte()
    prepared: Tensor = processor.image_processor(
        images=[rgb_3HW], return_tensors="pt", device=rgb_3HW.device, input_data_format="channels_first"
    )["pixel_values"]
    return prepared
