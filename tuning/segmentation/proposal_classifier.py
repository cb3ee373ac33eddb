"""The classifier that comes with the proposals: by the classes of its training, or by the text of any class.

Shapes: N proposals of one image, C requested classes, D width of CLIP's embeddings, K classes of the training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from maskmine.mining.models.clip import Clip
from maskmine.mining.proposers.open_vocabulary import OpenMaskFormer
from maskmine.mining.proposers.proposals import Proposals
from maskmine.mining.proposers.text_head import class_probabilities
from maskmine.mining.regions import AnyProposals
from maskmine.mining.vocabulary import Vocabulary, text_classifier
from maskmine.tuning.segmentation.semantic_inference import proposal_probabilities

ProposalClassifier = Callable[[Proposals, tuple[str, ...]], Tensor]
"""Proposals and classes to probabilities [N, C], of which a rest to 1 is "no object"."""


def open_proposal_classifier(proposals: AnyProposals, *, clip: Clip, device: str, at_once: bool) -> ProposalClassifier:
    """The classifier that comes with the proposals; an open-vocabulary one embeds classes by the text tower of `clip`.

    It is loaded `at_once` or on the first call. Raises InputError when `clip` is not the one that
    the proposals were trained with.
    """
    if not isinstance(proposals, OpenMaskFormer):
        return by_columns
    load = functools.cache(lambda: _open_by_text(proposals, clip=clip, device=device))
    if at_once:
        load()
    return lambda kept, classes: load()(kept, classes)


def by_columns(kept: Proposals, classes: tuple[str, ...]) -> Tensor:
    """Match the requested classes to those that the proposer was trained on."""
    classes_NK = kept.classes_NK if kept.classes_NK is not None else kept.scores_N.new_empty(len(kept), 0)
    return proposal_probabilities(classes_NK, names=kept.class_names, classes=classes)


def _open_by_text(proposals: OpenMaskFormer, *, clip: Clip, device: str) -> ProposalClassifier:
    space = proposals.text_space()
    embed = Vocabulary(templates=space.record.templates).open_names(clip, device)
    space.refuse_other_clip(
        clip.model, lambda names: text_classifier(names, embed=embed), otherwise=", or use `rule: clip`"
    )

    @functools.lru_cache(maxsize=1)
    def texts(classes: tuple[str, ...]) -> Tensor:
        return text_classifier(classes, embed=embed)

    def classify(kept: Proposals, classes: tuple[str, ...]) -> Tensor:
        assert kept.queries_ND is not None  # these proposals always have them
        return class_probabilities(
            kept.queries_ND,
            texts(classes).to(kept.queries_ND.device),
            space.no_object_D.to(kept.queries_ND.device),
            logit_scale=space.record.logit_scale,
        )

    return classify
