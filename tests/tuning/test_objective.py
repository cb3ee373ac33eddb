"""The contrastive loss against a loop over every pair, and nouns embedded once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskmine.mining.models.clip import Clip
from maskmine.mining.vocabulary import Vocabulary, text_classifier
from maskmine.tuning.clip.loss import Negatives, Positives, contrastive_loss
from tests.support.models import save_tiny_clip


def unit_vectors(count: int, *, seed: int, dim: int = 6) -> Tensor:
    values = torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


def texts_of(nouns: list[int]) -> Tensor:
    """Equal nouns have equal embeddings."""
    return unit_vectors(max(nouns) + 1, seed=1)[nouns]


def naive_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    nouns: list[int],
    scale: float,
    positives: Positives,
    *,
    further: tuple[Tensor, list[list[bool]]] | None = None,
) -> float:
    count, total = len(nouns), 0.0
    for rows, columns in ((image_BD, text_BD), (text_BD, image_BD)):
        for b in range(count):
            against = 0.0
            if further is not None and rows is image_BD:
                shown = [k for k, hidden in enumerate(further[1][b]) if not hidden]
                against = sum(math.exp(scale * float(image_BD[b] @ further[0][k])) for k in shown)
            logits = [scale * float(rows[b] @ columns[other]) for other in range(count)]
            if positives == "paper":
                right, wrong = [b], [other for other in range(count) if other != b]
            else:
                right = [other for other in range(count) if nouns[other] == nouns[b]]
                wrong = [other for other in range(count) if nouns[other] != nouns[b]]
            for r in right:
                share = math.exp(logits[r]) / (math.exp(logits[r]) + sum(math.exp(logits[w]) for w in wrong) + against)
                total -= math.log(share) / len(right) / count / 2
    return total


@pytest.mark.parametrize("positives", ["equal_nouns", "paper"])
@given(nouns=st.lists(st.integers(0, 4), min_size=1, max_size=9), scale=st.sampled_from([1.0, 5.0, 20.0]))
@settings(max_examples=40)
def test_the_loss_is_that_of_a_loop_over_all_pairs(positives: Positives, nouns: list[int], scale: float) -> None:
    image_BD, text_BD = unit_vectors(len(nouns), seed=2), texts_of(nouns)
    found = contrastive_loss(image_BD, text_BD, nouns_B=torch.tensor(nouns), scale=scale, positives=positives)
    assert float(found) == pytest.approx(naive_loss(image_BD, text_BD, nouns, scale, positives), rel=1e-9, abs=1e-12)


def test_both_forms_are_one_where_all_nouns_differ() -> None:
    nouns_B, image_BD, text_BD = torch.arange(5), unit_vectors(5, seed=2), unit_vectors(5, seed=1)
    losses = [
        float(contrastive_loss(image_BD, text_BD, nouns_B=nouns_B, scale=10.0, positives=form))
        for form in ("equal_nouns", "paper")
    ]
    assert losses[0] == pytest.approx(losses[1])


def gradient(positives: Positives, nouns: list[int]) -> Tensor:
    """Of the loss by the similarity of each region to each noun, [B, B]."""
    similarity_BB = (unit_vectors(len(nouns), seed=2) @ texts_of(nouns).T).requires_grad_()
    identity_BB = torch.eye(len(nouns), dtype=torch.float64)
    loss = contrastive_loss(similarity_BB, identity_BB, nouns_B=torch.tensor(nouns), scale=10.0, positives=positives)
    (found,) = torch.autograd.grad(loss, similarity_BB)
    return found


def test_equal_nouns_draw_each_other_and_are_no_negatives() -> None:
    nouns = [0, 1, 0, 2]
    drawn_BB = gradient("equal_nouns", nouns) < 0
    assert drawn_BB.tolist() == [[a == b for b in nouns] for a in nouns]
    assert float(gradient("paper", nouns)[0, 2]) > 0  # as the paper has it, they push each other away


def test_a_batch_of_one_noun_has_nothing_to_learn_from() -> None:
    image_BD = unit_vectors(3, seed=2).requires_grad_()
    loss = contrastive_loss(image_BD, texts_of([0, 0, 0]), nouns_B=torch.zeros(3), scale=10.0, positives="equal_nouns")
    loss.backward()
    assert image_BD.grad is not None
    assert (loss.item(), image_BD.grad.abs().sum().item()) == (0.0, 0.0)


@pytest.mark.parametrize("templates", ["raw", "vild"])
def test_nouns_are_embedded_as_in_the_vocabulary_of_mining(tmp_path: Path, templates: str) -> None:
    clip = Clip(model=str(save_tiny_clip(tmp_path)))
    table_VD = text_classifier(["cat", "dog", "hat"], embed=Vocabulary(templates=templates).open_names(clip, "cpu"))
    sentences = ["dog"] if templates == "raw" else None
    torch.testing.assert_close(table_VD.norm(dim=1), torch.ones(3))
    if sentences:
        expected_1D = clip.open_text(device="cpu").embed(sentences)
        torch.testing.assert_close(table_VD[1:2], expected_1D, rtol=0, atol=1e-3)
    else:
        raw_VD = text_classifier(["cat", "dog", "hat"], embed=Vocabulary(templates="raw").open_names(clip, "cpu"))
        assert not torch.allclose(table_VD, raw_VD, atol=1e-2)


@pytest.mark.parametrize("positives", ["equal_nouns", "paper"])
@given(
    nouns=st.lists(st.integers(0, 4), min_size=1, max_size=7),
    further=st.integers(0, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_further_nouns_are_in_the_denominator_of_the_regions_that_are_held_against_them(
    positives: Positives, nouns: list[int], further: int, seed: int
) -> None:
    image_BD, text_BD, text_KD = unit_vectors(len(nouns), seed=2), texts_of(nouns), unit_vectors(further, seed=3)
    hidden_BK = torch.rand(len(nouns), further, generator=torch.Generator().manual_seed(seed)) < 0.4
    found = contrastive_loss(
        image_BD,
        text_BD,
        nouns_B=torch.tensor(nouns),
        scale=5.0,
        positives=positives,
        negatives=Negatives(text_KD, hidden_BK),
    )
    expected = naive_loss(image_BD, text_BD, nouns, 5.0, positives, further=(text_KD, hidden_BK.tolist()))
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)
