"""JSON as other tools write it, made JSON that a strict reader takes, a chunk at a time.

Python's `json` writes NaN and Infinity and reads them again, and its whole numbers have no end; R, pandas and
pycocotools live with that. A text that is no UTF-8 costs its entry that field and not the whole file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

# Texts, so that nothing within them is touched (one that does not end yet reaches to the end), and what may be wrong:
# NaN and Infinity, whole numbers of nineteen digits and more, exponents of three digits.
_TOKEN = re.compile(
    rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"(?P<key>\s*:)?|(?P<open>\\?\Z))'
    rb"|(?P<word>(?<![\w.+-])-?(?:NaN|Infinity)(?!\w))"
    rb"|(?P<whole>(?<![\w.+-])-?\d{19,}(?![\w.]))"
    rb"|(?P<huge>(?<![\w.+-])-?\d+(?:\.\d+)?[eE]\+?\d{3,})",
    re.DOTALL,
)
# Half of a character that was cut in two, as `\\ud83d` without the other half; also what looks so behind a backslash.
LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
UNREADABLE, HALVED = "\ufdd0", "\ufdd1"
"""Begin a text that holds bytes that are no UTF-8, or halves of characters; no text has these signs, which are none."""
_IN_WORDS = b"-+._0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LARGEST, _LARGEST_DIGITS = 2**63, 19


def repaired(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same JSON with null for NaN, Infinity and numbers beyond float64, with a sign before texts that are no
    UTF-8, and with the digits of whole numbers beyond 64 bits as a text."""
    held = b""
    for chunk in chunks:
        held += chunk
        end = _finished(held)
        yield _TOKEN.sub(_repair, held[:end])
        held = held[end:]
    yield _TOKEN.sub(_repair, held)


def _finished(text: bytes) -> int:
    """Up to where tokens are whole: behind it a text, a word or a number may go on in the next chunk."""
    last: re.Match[bytes] | None = None
    for last in _TOKEN.finditer(text):  # noqa: B007
        pass
    if last is not None and not text[last.end() :].strip():
        return last.start()
    return max(len(text.rstrip(_IN_WORDS)), last.end() if last is not None else 0)


def _repair(token: re.Match[bytes]) -> bytes:
    found = token[0]
    if token["word"]:
        return b"null"
    if token["whole"]:
        fits = len(found.lstrip(b"-")) <= _LARGEST_DIGITS and -_LARGEST <= int(found) < _LARGEST
        return found if fits else b'"' + found + b'"'
    if token["huge"]:
        return b"null" if float(found) in (float("inf"), float("-inf")) else found
    if token["key"] or (_is_utf8(found) and not LONE_SURROGATE.search(found)):
        return found
    return _marked(found)


def _marked(found: bytes) -> bytes:
    """A text that holds what is no character, with its sign before it; another one as it is."""
    try:
        value = json.loads(found.decode("utf-8", "replace"), strict=False)
    except ValueError:
        return b"null"
    clean = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if not _is_utf8(found):
        return json.dumps(UNREADABLE + clean).encode()
    return found if clean == value else json.dumps(HALVED + clean).encode()


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
