"""Plain text: a caption as it would be seen on a page, each character with its place in the caption as it was given.

Alt texts come with entities and tags, captions from editors with soft hyphens, joiners and decomposed letters. Nouns
are looked for in the plain text, so that none of these is a noun or stands inside one, and their spans point into the
caption that the source has.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

UNREADABLE = "\N{REPLACEMENT CHARACTER}"
_MOST_ROUNDS = 8  # text that was escaped more often stays as it is

_ODD_ASCII = re.compile(r"[<&\x00-\x08\x0e-\x1b\x7f]|://|www\.", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#[0-9]{1,8}|#[xX][0-9a-fA-F]{1,8}|[A-Za-z][A-Za-z0-9]{1,31});|&(?:amp|lt|gt|quot|nbsp)\b")
_TAG = re.compile(
    r"<!--.*?-->|<(script|style)\b[^<>]*>.*?</\1\s*>"
    r"|</?([A-Za-z][A-Za-z0-9]*)(?:[\s/](?:[^<>\"']|\"[^\"]*\"|'[^']*')*)?>",
    re.DOTALL | re.IGNORECASE,
)
# Elements of HTML that stand inside a line on a page, and those that end it. Others, such as the <PERSON> of data sets
# without names, are text.
_INLINE = re.compile(
    "a|abbr|acronym|b|bdi|bdo|big|cite|code|data|del|dfn|em|font|i|ins|kbd|label|mark|nobr|q|s|samp|small|span|strike|"
    "strong|sub|sup|time|tt|u|var|wbr",
    re.IGNORECASE,
)
_BLOCK = re.compile(
    "address|article|aside|audio|base|blockquote|body|br|button|canvas|caption|center|col|colgroup|dd|details|dialog|"
    "div|dl|dt|embed|fieldset|figcaption|figure|footer|form|frame|frameset|h[1-6]|head|header|hgroup|hr|html|iframe|"
    "image|img|input|legend|li|link|main|map|menu|meta|nav|noscript|object|ol|optgroup|option|p|param|picture|pre|"
    "script|section|select|source|style|summary|svg|table|tbody|td|template|textarea|tfoot|th|thead|title|tr|track|ul|"
    "video",
    re.IGNORECASE,
)
_URL = re.compile(r"\b(?:https?|ftp)://\S+|\bwww\.\S+", re.IGNORECASE)
# Format characters are not seen (joiners, direction marks, byte order marks, tags), nor variation selectors. A soft
# hyphen at a line end is seen, and joins the halves of a word.
_UNSEEN = re.compile(
    "\u00ad\r?\n|[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e01ef]"
)
# In scripts from Hebrew on, joiners shape words and zero-width spaces part them.
_SHAPING = {"\u200b": " ", "\u200c": None, "\u200d": None}
_FIRST_SHAPED = "\u0590"
# Letters in another dress: ligatures, full width, mathematical alphabets.
_DRESSED = re.compile("[\ufb00-\ufb06\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\U0001d400-\U0001d7ff]")
# Spaces of every width and controls, but for tabs and line ends; halves of surrogate pairs, which cannot be encoded.
_SPACE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class PlainText:
    """`text`, and where each of its characters begins and ends in the caption; both are empty where nothing moved."""

    text: str
    starts: Sequence[int] = ()
    ends: Sequence[int] = ()

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The characters `[start, end)` of the text as a span of the caption; `start < end`."""
        return (self.starts[start], self.ends[end - 1]) if self.starts else (start, end)


def plain_text(caption: str) -> PlainText:
    """What a caption says, in composed letters (Unicode's NFC).

    Entities are decoded, also those escaped twice; tags of known elements and web addresses are left out, and end a
    line unless the element stands inside one; what is not seen is left out; controls are spaces.
    """
    plain = PlainText(caption)
    if caption.isascii() and not _ODD_ASCII.search(caption):
        return plain
    for _ in range(_MOST_ROUNDS):
        before = plain.text
        for pattern, replace in _REWRITES:
            plain = _rewrite(plain, pattern, replace)
        plain = _compose(plain)
        if plain.text == before:
            break
    return plain


def _rewrite(plain: PlainText, pattern: re.Pattern[str], replace: Callable[[re.Match[str]], str | None]) -> PlainText:
    """Every match replaced, unless `replace` gives None."""
    found = ((match.start(), match.end(), replace(match)) for match in pattern.finditer(plain.text))
    return _edit(plain, [(start, end, new) for start, end, new in found if new is not None])


def _compose(plain: PlainText) -> PlainText:
    """Letters and their accents as one character each, where there is one."""
    if unicodedata.is_normalized("NFC", plain.text):
        return plain
    clusters = ((start, end, plain.text[start:end]) for start, end in _clusters(plain.text))
    composed = ((start, end, old, unicodedata.normalize("NFC", old)) for start, end, old in clusters)
    return _edit(plain, [(start, end, new) for start, end, old, new in composed if new != old])


def _clusters(text: str) -> Iterator[tuple[int, int]]:
    """Every character with the marks, or the letters of a syllable of Hangul, that join it."""
    start = 0
    for end in range(1, len(text) + 1):
        if end == len(text) or not (unicodedata.category(text[end])[0] == "M" or "\u1161" <= text[end] <= "\u11c2"):
            yield start, end
            start = end


def _edit(plain: PlainText, edits: Sequence[tuple[int, int, str]]) -> PlainText:
    """The text with each `[start, end)` replaced; every new character has the place of the whole that it replaces."""
    if not edits:
        return plain
    starts, ends = plain.starts or range(len(plain.text)), plain.ends or range(1, len(plain.text) + 1)
    parts: list[str] = []
    new_starts: list[int] = []
    new_ends: list[int] = []
    done = 0
    for start, end, new in edits:
        parts += (plain.text[done:start], new)
        new_starts += (*starts[done:start], *[starts[start]] * len(new))
        new_ends += (*ends[done:start], *[ends[end - 1]] * len(new))
        done = end
    text = "".join([*parts, plain.text[done:]])
    return PlainText(text, (*new_starts, *starts[done:]), (*new_ends, *ends[done:]))


def _decoded(match: re.Match[str]) -> str | None:
    """The characters of an entity; None for a name that is none, such as `&Co;`."""
    new = html.unescape(match[0])
    return None if new == match[0] else new


def _line_end(match: re.Match[str]) -> str | None:
    """What a tag leaves: nothing inside a line, else its end; None for what is in angle brackets and no element."""
    name = match[2] or ""
    if match[0].startswith("<!--") or _INLINE.fullmatch(name):
        return ""
    return "\n" if match[1] or _BLOCK.fullmatch(name) else None


def _unseen(match: re.Match[str]) -> str | None:
    if match[0] in _SHAPING:
        beside = match.string[max(match.start() - 1, 0) : match.end() + 1]
        if any(letter >= _FIRST_SHAPED and unicodedata.category(letter)[0] in "LM" for letter in beside):
            return _SHAPING[match[0]]
    return ""


_REWRITES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str | None]], ...] = (
    (_ENTITY, _decoded),
    (_TAG, _line_end),
    (_URL, lambda _: "\n"),
    (_UNSEEN, _unseen),
    (_DRESSED, lambda match: unicodedata.normalize("NFKC", match[0])),
    (_SPACE, lambda _: " "),
    (_SURROGATE, lambda _: UNREADABLE),
)
