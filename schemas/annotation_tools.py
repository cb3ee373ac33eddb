"""What exports to annotation tools and the readers of their answers agree on: how pairs and fields are called.

A pair is known by image, noun and mask, also as one line of text that a tool can keep.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

PairId = tuple[str, str, str]
"""Image id, noun, and `Mask.digest` of the region's mask."""

PAIR, NOUN, VERDICT = "pair", "noun", "verdict"
"""Attributes of a mask: its `pair_line`, the noun, which people may change, and the verdict, which they choose."""
UNJUDGED = "unjudged"
"""The verdict before anybody has looked."""
CVAT_LABEL = "pair"
"""The one label of CVAT's task."""
BRUSH, BETTER_NOUN = "region", "better_noun"
"""Controls of Label Studio, beside the one for the verdict; none is called as a field of a task's data."""

_DIGEST = re.compile(r"[0-9a-f]{16}")


def pair_line(pair: PairId) -> str:
    """A pair as one line, such as `42/red%20couch/3f…`: image id and noun as in URLs, and the digest of the mask."""
    return "/".join(quote(part, safe="", errors="surrogatepass") for part in pair)


def parse_pair_line(line: str) -> PairId | None:
    """The pair of a line that `pair_line` made; None for any other."""
    parts = [unquote(part, errors="surrogatepass") for part in line.strip().split("/")] if line.isascii() else []
    if len(parts) != 3 or not parts[1] or not _DIGEST.fullmatch(parts[2]):
        return None
    return parts[0], parts[1], parts[2]
