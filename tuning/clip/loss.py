"""What tuning makes smaller: CLIP's contrastive loss between regions and nouns, in both directions.

The text tower is locked in every mode, so each noun of the vocabulary is embedded once, before training, and looked up.

Shapes: B pairs of the global batch, V nouns of the vocabulary, D width of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from mining.embeddings import unpack
from mining.models.clip import Clip
from mining.vocabulary import Vocabulary

Positives = Literal["equal_nouns", "paper"]


def contrastive_loss(
    image_BD: Tensor, text_BD: Tensor, *, nouns_B: Tensor, scale: Tensor | float, positives: Positives
) -> Tensor:
    """The mean loss of unit vectors, a number; `nouns_B` tells which pairs have the same noun, `scale` multiplies.

    `paper`: pair b's noun is right for region b alone, so that equal nouns of a batch push each other's regions away.
    `equal_nouns`: regions and nouns of equal nouns are right for each other, and none of them is in the denominator of
    another: each right pair is only told from the wrong ones. Without equal nouns in the batch the two are the same.
    """
    logits_BB = scale * image_BD @ text_BD.T
    if positives == "paper":
        own_B = torch.arange(len(logits_BB), device=logits_BB.device)
        return (cross_entropy(logits_BB, own_B) + cross_entropy(logits_BB.T, own_B)) / 2
    equal_BB = nouns_B[:, None] == nouns_B[None, :]
    return (_one_direction(logits_BB, equal_BB) + _one_direction(logits_BB.T, equal_BB)) / 2


def noun_embeddings(nouns: Sequence[str], *, clip: Clip, templates: str, device: str) -> Tensor:
    """A unit vector for each noun, float32 [V, D], as mining's vocabulary has them.

    `templates` as in `mining.templates.load_templates`. Raises InputError for faults of the settings.
    """
    embed = Vocabulary(templates=templates).open(clip, device)
    rows = embed((noun, 1, 1) for noun in nouns)
    table_VD = torch.from_numpy(unpack([row.embedding or b"" for row in rows]))
    return torch.nn.functional.normalize(table_VD, dim=-1)  # they come in float16


def _one_direction(logits_BB: Tensor, equal_BB: Tensor) -> Tensor:
    """For each row the mean over its right columns of −log(e^right / (e^right + Σ e^wrong)); the mean over rows."""
    wrong_B1 = logits_BB.masked_fill(equal_BB, -torch.inf).logsumexp(1, keepdim=True)
    loss_BB = softplus(wrong_B1 - logits_BB).masked_fill(~equal_BB, 0.0)
    return (loss_BB.sum(1) / equal_BB.sum(1)).mean()
