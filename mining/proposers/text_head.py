"""The head of an open-vocabulary MaskFormer: its queries as vectors in the space of CLIP's texts.

A query is classified by its cosine with the texts of the requested classes, and with a learned vector
for "no object" (OVSeg, arXiv 2210.04150, section 3.1). Imports torch, so it is imported where a model is opened.

Shapes: B images, Q queries of any number of images, E mask features, W width of the decoder, P channels of all the
backbone's maps together, D width of CLIP's embeddings, K classes; h × w the grid of the masks, c × y × x one of the
backbone's maps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize


class TextHead(nn.Module):
    """In the place of MaskFormer's class layer: an MLP from queries [Q, W] to unit vectors [Q, D].

    With `pixels` P above 0 it also looks at what the backbone sees under the queries' masks [Q, P]; a norm makes both
    of one size. `no_object_D` begins as normal noise of deviation D^-0.5 and counts by its direction alone.
    `classes_KD` are the unit vectors of the classes that it was trained on.
    """

    classes_KD: Tensor

    def __init__(self, classes_KD: Tensor, *, width: int, pixels: int, hidden: int, layers: int) -> None:
        super().__init__()
        dim = classes_KD.shape[1]
        self.pixels = pixels
        sizes = [width + pixels, *[hidden] * (layers - 1), dim]
        steps: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            steps += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.norm = nn.LayerNorm(width + pixels) if pixels else nn.Identity()
        self.project = nn.Sequential(*steps[:-1])
        self.no_object_D = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.register_buffer("classes_KD", classes_KD)

    def forward(self, queries_QW: Tensor, seen_QP: Tensor | None = None) -> Tensor:
        """Unit vectors, in float32 whatever the precision around it: cosines times a hundred need it."""
        parts = [queries_QW.float()] if seen_QP is None else [queries_QW.float(), seen_QP.float()]
        with torch.autocast(queries_QW.device.type, enabled=False):
            return normalize(self.project(self.norm(torch.cat(parts, dim=-1))), dim=-1)


def layer_answers(network: Any, head: TextHead, pixels_B3HW: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The outputs of every layer of the decoder, the last one last: unit vectors [B, Q, D] and masks [B, Q, h, w].

    The outputs of inner layers go through the decoder's last norm, as in DETR; transformers leaves that out.
    """
    outputs = network.model(pixels_B3HW, output_hidden_states=True)
    _, *inner, last = outputs.transformer_decoder_hidden_states  # the first is what goes into the decoder
    norm = network.model.transformer_module.decoder.layernorm
    return [_answer(network, head, state_BQW, outputs) for state_BQW in (*map(norm, inner), last)]


def last_answer(network: Any, head: TextHead, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The last of `layer_answers`, and the logits of the network's own class layer [B, Q, its classes].

    Its last class is "no object".
    """
    outputs = network.model(pixels_B3HW, output_hidden_states=True)
    state_BQW = outputs.transformer_decoder_last_hidden_state
    return *_answer(network, head, state_BQW, outputs), network.class_predictor(state_BQW)


def under_masks(masks_BQhw: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """The mean of each of the backbone's maps [B, c, y, x] under every mask, side by side, float32 [B, Q, P].

    Of a mask count the pixels that are rather in it than not, by how much they are; a mask without one sees zeros.
    """
    soft_BQhw = masks_BQhw.float().sigmoid()
    inside_BQhw = soft_BQhw * (soft_BQhw > 0.5)
    means = []
    for map_Bcyx in maps:
        weight_BQyx = adaptive_avg_pool2d(inside_BQhw, (map_Bcyx.shape[2], map_Bcyx.shape[3]))
        total_BQ1 = weight_BQyx.flatten(2).sum(dim=2, keepdim=True)
        means.append(torch.einsum("bqyx,bcyx->bqc", weight_BQyx, map_Bcyx.float()) / total_BQ1.clamp(min=1e-6))
    return torch.cat(means, dim=-1)


def class_logits(queries_QD: Tensor, classes_KD: Tensor, no_object_D: Tensor, *, logit_scale: float) -> Tensor:
    """`logit_scale` × cosine with every class, and with "no object" last, [Q, K + 1]. Queries and classes are units."""
    known_LD = torch.cat([classes_KD.float(), normalize(no_object_D.float(), dim=-1)[None]])
    with torch.autocast(queries_QD.device.type, enabled=False):
        return logit_scale * queries_QD.float() @ known_LD.T


def class_probabilities(queries_QD: Tensor, classes_KD: Tensor, no_object_D: Tensor, *, logit_scale: float) -> Tensor:
    """The softmax of `class_logits` without the share of "no object", so rows sum to less than 1, [Q, K]."""
    return class_logits(queries_QD, classes_KD, no_object_D, logit_scale=logit_scale).softmax(dim=-1)[..., :-1]


def _answer(network: Any, head: TextHead, state_BQW: Tensor, outputs: Any) -> tuple[Tensor, Tensor]:
    features_BEhw = outputs.pixel_decoder_last_hidden_state
    masks_BQhw = torch.einsum("bqe,behw->bqhw", network.mask_embedder(state_BQW), features_BEhw)
    seen_BQP = under_masks(masks_BQhw.detach(), outputs.encoder_hidden_states) if head.pixels else None
    return head(state_BQW, seen_BQP), masks_BQhw
