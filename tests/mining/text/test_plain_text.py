"""A caption's plain text: what is no text of it is left out, and every character knows its place in the caption."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskmine.mining.nouns import Nouns, load_skip_words
from maskmine.mining.text.plain import plain_text
from maskmine.schemas.rows import CaptionsRow, NounsRow

FindNouns = Callable[[Sequence[CaptionsRow]], list[NounsRow]]

# What may stand in a caption, and what of it is text.
PIECES = {
    **{
        word: word
        for word in ("dog", "R&B", "a <3 b", "x < y > z", "&Co;", "<PERSON>", "AT&T", "3 & 4", "t-shirt", "🐶")
    },
    "&amp;": "&",
    "&amp;amp;": "&",
    "&#39;": "'",
    "&#x27;": "'",
    "&quot;": '"',
    "&eacute;": "é",
    "&nbsp;": " ",
    "&amp": "&",
    "&lt;br&gt;": "\n",
    "&amp;lt;br /&amp;gt;": "\n",
    "<br/>": "\n",
    "<p class='x'>": "\n",
    '<img alt="a > b">': "\n",
    "<b>bus</b>": "bus",
    "fire<wbr>place": "fireplace",
    "<!-- a cat -->": "",
    "<script>var cat;</script>": "\n",
    "foot\u00adball": "football",
    "foot\u00ad\nball": "football",
    "foot&shy;ball": "football",
    "ki\u200dte": "kite",
    "ki\u200cte": "kite",
    "ki\u200bte": "kite",
    "ki\u2060te": "kite",
    "ki\ufeffte": "kite",
    "\ufeffdog": "dog",
    "\u202edog\u202c": "dog",
    "\u2068dog\u2069": "dog",
    "❤\ufe0f": "❤",
    "&zwnj;dog": "dog",
    "\U000e0001dog": "dog",
    "cafe\u0301": "café",
    "e\u0301\u0323": "\u1eb9\u0301",
    "A\u030angstro\u0308m": "Ångström",
    "\u1112\u1161\u11ab": "한",
    "https://example.com/dog.jpg": "\n",
    "www.example.com/cat": "\n",
    "ﬁsh": "fish",
    "ｄｏｇ": "dog",
    "𝗱𝗼𝗴": "dog",
    "a\u00a0dog": "a dog",
    "a\u3000dog": "a dog",
    "a\x00dog": "a dog",
    "\ud800": "\ufffd",
    "می\u200cخواهم": "می\u200cخواهم",
}


@pytest.mark.parametrize("piece", PIECES)
def test_only_what_is_text_is_left(piece: str) -> None:
    assert plain_text(piece).text == PIECES[piece]


@given(st.lists(st.sampled_from(sorted(PIECES)), max_size=8))
def test_every_piece_of_a_caption_keeps_its_place(pieces: list[str]) -> None:
    caption = " ".join(pieces)
    plain = plain_text(caption)
    assert plain.text == " ".join(PIECES[piece] for piece in pieces)
    said = at = 0
    for piece in pieces:
        text = PIECES[piece]
        if text:
            start, end = plain.span(said, said + len(text))
            assert at <= start < end <= at + len(piece)
            assert plain_text(caption[start:end]).text == text
            if text == piece:
                assert (start, end) == (at, at + len(piece))
        said, at = said + len(text) + 1, at + len(piece) + 1


@given(
    st.text(alphabet=st.characters(codec=None) | st.sampled_from("<>&;#/b\u0301\u00ad\u200d\u1112\u1161"), max_size=30)
)
def test_any_text_has_a_plain_text_in_composed_letters_with_places_in_order(caption: str) -> None:
    plain = plain_text(caption)
    assert unicodedata.is_normalized("NFC", plain.text)
    plain.text.encode()
    places = [plain.span(i, i + 1) for i in range(len(plain.text))]
    assert places == sorted(places)
    assert all(0 <= start < end <= len(caption) for start, end in places)
    if plain.text == caption:
        assert places == [(i, i + 1) for i in range(len(caption))]


@pytest.fixture(scope="module")
def find() -> FindNouns:
    return Nouns(compounds=True).open()


@pytest.mark.parametrize(
    ("caption", "nouns"),
    [
        ("a ball &amp; a kite", {"ball": "ball", "kite": "kite"}),
        ("the kid&#39;s ball &amp; kite", {"kid": "kid", "ball": "ball", "kite": "kite"}),
        ("&quot;big&quot; box &lt;br&gt; and a ball", {"box": "box", "ball": "ball"}),
        ("a foot\u00adball on the gra\u200css", {"football": "foot\u00adball", "grass": "gra\u200css"}),
        (
            "a cafe\u0301 with a <b>red</b> fire<!-- --> hydrant",
            {"café": "cafe\u0301", "fire hydrant": "fire<!-- --> hydrant"},
        ),
        ("a dog at https://example.com/cat.jpg", {"dog": "dog"}),
        ("ball\nkite\r\nbox\n", {"ball": "ball", "kite": "kite", "box": "box"}),
        ("a red fire hydrant<br>a fire truck", {"fire hydrant": "fire hydrant", "fire truck": "fire truck"}),
        ("a tennis<br>ball", {"tennis": "tennis", "ball": "ball"}),
    ],
)
def test_nouns_are_those_of_the_text_and_point_into_the_caption(
    find: FindNouns, caption: str, nouns: dict[str, str]
) -> None:
    (row,) = find([CaptionsRow("7", (caption,))])
    assert {noun.text: caption[noun.start : noun.end] for noun in row.nouns} == nouns


@pytest.mark.parametrize("unit", ["adjectives", "chunk", "referring"])
def test_no_larger_unit_reaches_over_a_line_end(unit: str) -> None:
    (row,) = Nouns(unit=unit).open()([CaptionsRow("7", ("red ball\nblue kite\nwooden box\n",))])  # type: ignore[arg-type]
    assert {noun.text.rpartition(" ")[2] for noun in row.nouns} == {"ball", "kite", "box"}
    assert not any("\n" in "red ball\nblue kite\nwooden box\n"[noun.start : noun.end] for noun in row.nouns)


def test_words_to_skip_are_composed_as_captions_are() -> None:
    assert load_skip_words(("cafe\u0301",)) == {"café"}
