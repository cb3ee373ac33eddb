"""Which worlds and which nouns' masks a model may learn from.

The seeds of training, of validation and of evaluation never meet. A scene follows from its world's seed and its number,
so worlds of different seeds share no scene. A mask model's proposals for nouns that it has not seen show how it
generalises.
"""

from __future__ import annotations

import functools
import hashlib

from maskmine.schemas.errors import InputError
from maskmine.scripts.demo_world.nouns import DemoNoun, demo_nouns

HELD_OUT_SEEDS = range(1_000_000)
"""Worlds of users, tests and evaluations: no model ever sees them in training."""

TRAINING_SEEDS = range(1_000_000, 2_000_000)
"""The world that a training with `--seed N` draws is the one of `TRAINING_SEEDS[N]`."""

VALIDATION_SEEDS = range(2_000_000, 3_000_000)
"""Worlds that a training looks at for its curve and its choices."""

SEEN_SHARE = 0.8
"""Of the nouns. A hash of the name decides, so that a new noun in the table changes no other's part."""


def check_held_out(seed: int) -> None:
    """Raise InputError for a seed that training may have seen."""
    if seed not in HELD_OUT_SEEDS:
        raise InputError(
            f"seed {seed} may have been seen in training; use one from {HELD_OUT_SEEDS[0]} to {HELD_OUT_SEEDS[-1]}"
        )


def is_seen(noun: str) -> bool:
    """Whether masks of this noun are trained on."""
    return noun_share(noun) < SEEN_SHARE


def noun_share(noun: str) -> float:
    """Where a hash of the name puts the noun, from 0 to 1."""
    return int.from_bytes(hashlib.sha256(noun.encode()).digest()[:8], "big") / 2**64


@functools.cache
def seen_nouns() -> frozenset[DemoNoun]:
    """The nouns whose masks are trained on."""
    return frozenset(noun for noun in demo_nouns() if is_seen(noun.noun))
