"""What a model says of a picture, as captions, and what is written down at once of what it said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from pydantic import Field

from maskmine.mining.images.decode import DecodedImage
from maskmine.mining.sources.entries import clean_text
from maskmine.schemas.rows import CaptioningRow, ImageRow, Rejection

MAX_CHARS = 10_000
"""Of a text that a model gives for one picture; no honest one is longer."""

CaptionerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""The name of a captioner is also that of a folder."""

_LIST_MARK = re.compile(r"(?:[-*•–]|\(?\d{1,3}[.)])\s+")
_QUOTES = {'"': '"', "“": "”", "'": "'", "«": "»"}
_SAYS_SOMETHING = re.compile(r"[^\W_]")
_HTML = re.compile(rb"\s*<(?:!doctype|html)", re.IGNORECASE)

DecodeImage = Callable[[ImageRow], DecodedImage | Rejection]
"""Reads and decodes the picture of an image."""


@dataclass(frozen=True)
class Journal:
    """What is known of the images of a part: `known` are the rows that an earlier attempt wrote, by image id; `write`
    makes further ones durable before it returns."""

    known: Mapping[str, CaptioningRow] = field(default_factory=dict)
    write: Callable[[Sequence[CaptioningRow]], None] = lambda rows: None


class CaptionImages(Protocol):
    """What a captioner's `open` returns: the images of a part to their captions, in order. `tick` counts images."""

    def __call__(
        self, images: Sequence[ImageRow], *, journal: Journal = ..., tick: Callable[[int], None] = ...
    ) -> list[CaptioningRow]: ...


@dataclass(frozen=True, slots=True)
class Answered:
    """A server's answer to one request: captions, or why it has none. It counts, and is not asked for again."""

    captions: tuple[str, ...]
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """No answer to one request. `fault` is the same in every run; `said` is what the server said, for people."""

    fault: str
    said: str = ""


def read_answer(body: bytes, *, per_image: int) -> Answered | Unanswered:
    """The captions in the body of a chat completion, in the form of OpenAI's.

    Each line of the answer is a caption; the first `per_image` count. Of a text that was cut off by its length, the
    last word goes, which may be half a word.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return Unanswered("an HTML page instead of an answer" if _HTML.match(body) else "the answer is no JSON")
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list):
        return Unanswered("the answer has no `choices`")
    if not choices:
        return Answered((), "an empty list of choices")
    choice = choices[0] if isinstance(choices[0], dict) else {}
    message = choice.get("message")
    if not isinstance(message, dict):
        return Unanswered("the answer has no message")
    ended = choice.get("finish_reason")
    if message.get("refusal") or ended == "content_filter":
        return Answered((), "the model refuses")
    text = _text_of(message.get("content"))
    if len(text) > MAX_CHARS:
        return Answered((), f"a text of more than {MAX_CHARS:,} characters")
    captions = caption_lines(text, cut_off=ended == "length")[:per_image]
    if captions:
        return Answered(captions)
    return Answered((), "cut off before it said anything" if ended == "length" else "an empty text")


def caption_lines(text: str, *, cut_off: bool = False) -> tuple[str, ...]:
    """The lines of a text that say something, without the marks of a list and quotes around the whole line."""
    text = clean_text(text)
    if cut_off:
        text = text.rstrip().rpartition(" ")[0]
    lines = (_bare(line.strip()) for line in text.replace("\0", " ").splitlines())
    return tuple(line for line in lines if _SAYS_SOMETHING.search(line))


def _bare(line: str) -> str:
    line = _LIST_MARK.sub("", line, count=1) if _LIST_MARK.match(line) else line
    if len(line) > 1 and _QUOTES.get(line[0]) == line[-1] and line[0] not in line[1:-1]:
        return line[1:-1].strip()
    return line


def _text_of(content: Any) -> str:
    """The text of a message: a string, or parts of which some are texts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, dict) and part.get("type", "text") == "text")
    return "\n".join(text for text in texts if isinstance(text, str))
