"""What the proposer itself says of the classes asked for: by the columns that it knows, or by the text of any class.

Shapes: N proposals of one picture, C classes asked for, D width of CLIP's embeddings, K classes of the training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from mining.models.clip import Clip
from mining.models.open_maskformer import OpenMaskFormer, TextSpace
from mining.models.text_head import class_probabilities
from mining.proposals import Proposals
from mining.regions import AnyProposals
from mining.vocabulary import EmbedNouns, Vocabulary
from schemas.errors import InputError
from tuning.segmentation_rules import own_probabilities
from tuning.towers import embed_classes

OwnClassifier = Callable[[Proposals, tuple[str, ...]], Tensor]
"""Proposals and classes to probabilities [N, C], of which a rest to 1 is "no object"."""

_COMPARED = 8
_SAME_COSINE = 0.98  # half precision moves the text of a class by less than 0.001


def open_own(proposals: AnyProposals, *, clip: Clip, device: str, at_once: bool) -> OwnClassifier:
    """The classifier that the proposals bring along; an open-vocabulary one reads classes by the text side of `clip`.

    It is loaded `at_once` or when it is asked for the first time. Raises InputError when `clip` is not the one that
    the proposals were trained with.
    """
    if not isinstance(proposals, OpenMaskFormer):
        return by_columns
    open_texts = functools.cache(lambda: _open_texts(proposals, clip=clip, device=device))
    if at_once:
        open_texts()
    return lambda kept, classes: open_texts()(kept, classes)


def by_columns(kept: Proposals, classes: tuple[str, ...]) -> Tensor:
    """By the names of the classes that the proposer was trained on."""
    classes_NK = kept.classes_NK if kept.classes_NK is not None else kept.scores_N.new_empty(len(kept), 0)
    return own_probabilities(classes_NK, names=kept.class_names, classes=classes)


def _open_texts(proposals: OpenMaskFormer, *, clip: Clip, device: str) -> OwnClassifier:
    space = proposals.text_space()
    embed = Vocabulary(templates=space.record.templates).open(clip, device)
    _refuse_other_clip(space, clip, embed=embed)

    @functools.lru_cache(maxsize=1)
    def texts(classes: tuple[str, ...]) -> Tensor:
        return embed_classes(classes, embed=embed)

    def classify(kept: Proposals, classes: tuple[str, ...]) -> Tensor:
        assert kept.queries_ND is not None  # these proposals always have them
        where = kept.queries_ND.device
        return class_probabilities(
            kept.queries_ND,
            texts(classes).to(where),
            space.no_object_D.to(where),
            logit_scale=space.record.logit_scale,
        )

    return classify


def _refuse_other_clip(space: TextSpace, clip: Clip, *, embed: EmbedNouns) -> None:
    """By what some classes of the training are to it, so a file in another form or precision is the same CLIP."""
    known_KD = space.classes_KD[:_COMPARED]
    here_KD = embed_classes(space.record.classes[:_COMPARED], embed=embed)
    same = here_KD.shape == known_KD.shape and torch.linalg.vecdot(here_KD, known_KD).min() >= _SAME_COSINE
    if not same:
        sha256 = f" with SHA-256 {space.record.clip_sha256[:16]}…" if space.record.clip_sha256 else ""
        raise InputError(
            f"clip: the proposals were trained in the text space of `{space.record.clip}`{sha256}, and `{clip.model}` "
            "has another one; set `clip` to that model, or use `rule: clip`"
        )
