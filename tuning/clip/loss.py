"""CLIP's contrastive loss between regions and nouns, in both directions.

The text tower is locked in every mode, so each noun of the vocabulary is embedded once, before training, and looked up.

Shapes: B pairs of the global batch, K further nouns that they are held against, V nouns of the vocabulary, D width of
the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

Positives = Literal["equal_nouns", "paper"]


@dataclass(frozen=True, slots=True)
class Negatives:
    """Further texts, and which pairs are not held against which: true in `hidden_BK`."""

    text_KD: Tensor
    hidden_BK: Tensor


def contrastive_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    *,
    nouns_B: Tensor,
    scale: Tensor | float,
    positives: Positives,
    negatives: Negatives | None = None,
) -> Tensor:
    """The mean loss of unit vectors, a number; `nouns_B` are the numbers of the nouns, `scale` multiplies the
    cosines.

    `paper`: the only positive of region b is the noun of pair b, so equal nouns of a batch are negatives of each other.
    `equal_nouns`: all pairs of the same noun are positives of each other, and no positive is in the denominator of
    another. Without equal nouns in the batch the two are the same.

    Where there are `negatives`, a region is held against them in the denominator of the direction from regions to
    nouns; no region is theirs, so the other direction has none of them.
    """
    logits_BB = scale * image_BD @ text_BD.T
    further_BK = logits_BB[:, :0]
    if negatives is not None:
        further_BK = (scale * image_BD @ negatives.text_KD.T).masked_fill(negatives.hidden_BK, -torch.inf)
    if positives == "paper":
        own_B = torch.arange(len(logits_BB), device=logits_BB.device)
        to_nouns = cross_entropy(torch.cat([logits_BB, further_BK], dim=1), own_B)
        return (to_nouns + cross_entropy(logits_BB.T, own_B)) / 2
    equal_BB = nouns_B[:, None] == nouns_B[None, :]
    to_regions = _one_direction(logits_BB.T, equal_BB, further_BK[:, :0])
    return (_one_direction(logits_BB, equal_BB, further_BK) + to_regions) / 2


def _one_direction(logits_BB: Tensor, equal_BB: Tensor, further_BK: Tensor) -> Tensor:
    """The mean over rows of the mean over positives of −log(e^positive / (e^positive + Σ e^negative))."""
    negatives_BN = torch.cat([logits_BB.masked_fill(equal_BB, -torch.inf), further_BK], dim=1)
    negatives_B1 = negatives_BN.logsumexp(1, keepdim=True)
    loss_BB = softplus(negatives_B1 - logits_BB).masked_fill(~equal_BB, 0.0)
    return (loss_BB.sum(1) / equal_BB.sum(1)).mean()
