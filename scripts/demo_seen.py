"""Which nouns of the demo world a mask model may learn from; its proposals for all others show how it generalises.

The share is fixed by a hash of the name, so it does not depend on the order of the table, and a new noun changes no
other's part.
"""

from __future__ import annotations

import functools
import hashlib

from scripts.demo_nouns import DemoNoun, demo_nouns

SEEN_SHARE = 0.8


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
