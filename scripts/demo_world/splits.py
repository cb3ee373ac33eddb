"""Which worlds a model may learn from: the seeds of training, of validation and of evaluation never meet.

A scene follows from its world's seed and its number, so worlds of different seeds share no scene.
"""

from __future__ import annotations

from schemas.errors import InputError

HELD_OUT_SEEDS = range(1_000_000)
"""Worlds of users, tests and evaluations: no model ever sees them in training."""

TRAINING_SEEDS = range(1_000_000, 2_000_000)
"""The world that a training with `--seed N` draws is the one of `TRAINING_SEEDS[N]`."""

VALIDATION_SEEDS = range(2_000_000, 3_000_000)
"""Worlds that a training looks at for its curve and its choices."""


def check_held_out(seed: int) -> None:
    """Raise InputError for a seed that training may have seen."""
    if seed not in HELD_OUT_SEEDS:
        raise InputError(
            f"seed {seed} may have been seen in training; use one from {HELD_OUT_SEEDS[0]} to {HELD_OUT_SEEDS[-1]}"
        )
