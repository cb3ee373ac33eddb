"""How counts read in a sentence."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """`1 part`, `16 parts`, `1,000 images`; for nouns whose plural ends in `s`, with or without words before them."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
