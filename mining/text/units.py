"""Text units: what of a caption is paired with a mask, from a single noun to a referring expression.

Documents and tokens are spaCy's, handed in; nothing is imported from it here.

    A large brown dog on the wooden stage      noun: dog, stage
                                               adjectives: large brown dog, wooden stage
                                               chunk: the same, by the parser: large brown dog, wooden stage
                                               referring: large brown dog on the wooden stage, wooden stage
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from maskmine.schemas.rows import Noun

Unit = Literal["noun", "adjectives", "chunk", "referring"]
PARSED: tuple[Unit, ...] = ("chunk", "referring")
"""The units that need a parser."""

# Between the words of a compound: spaces, or a hyphen that touches both ("t-shirt"). A tab or the end of a line parts
# them: many captions are lists with a tag a line.
_JOINT = re.compile(r" *|-")
_LINE_ENDS = frozenset("\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029")
# What may stand between adjectives.
_LINKS = frozenset({",", "-", "/"})
_MAX_LINKS = 3  # "black-and-white"
# How the parsers of spaCy's pipelines attach a prepositional phrase: by the preposition, whose object is a child of it
# (English, German), or by its noun, of which the preposition is a child (Universal Dependencies).
_PREPOSITIONS = {"prep": "pobj", "mnr": "nk"}
_NOMINAL, _CASE = "nmod", "case"


class Mention(NamedTuple):
    """A noun as the tagger found it: characters `[start, end)` of its text, and the lemma in lower case.

    Of a larger unit the lemma is that of its noun alone.
    """

    start: int
    end: int
    lemma: str


@dataclass(frozen=True)
class Words:
    """How a pipeline classifies words; each function takes a token.

    `is_leading`: what a noun chunk may begin with and is no part of the unit, such as articles. `lemma_of` gives None
    for what is no word. `adjectives_follow`: they may stand behind their noun, too.
    """

    is_noun: Callable[[Any], bool]
    is_adjective: Callable[[Any], bool]
    is_leading: Callable[[Any], bool]
    lemma_of: Callable[[Any], str | None]
    adjectives_follow: bool


def find_mentions(doc: Any, *, unit: Unit, words: Words) -> list[Mention]:
    """The mentions of a unit in a tagged (and, for `PARSED` units, parsed) document, in order."""
    nouns = [
        Mention(token.idx, token.idx + len(token), lemma)
        for token in doc
        if words.is_noun(token) and (lemma := words.lemma_of(token)) is not None
    ]
    if unit == "noun":
        return nouns
    compounds = _compounds(doc, nouns)
    if unit == "adjectives":
        return [_with_adjectives(doc, compound, words=words) for compound in compounds]
    return sorted(_chunks(doc, compounds, words=words, referring=unit == "referring"))


def join_compounds(mentions: Sequence[Mention], *, caption: str) -> list[Mention]:
    """Every longest run of nouns of a line with nothing but spaces, or one hyphen, between them as one mention.

    The lemma is the run with its last word replaced by that word's lemma: "fire hydrants" has "fire hydrant".
    """
    runs: list[list[Mention]] = []
    for mention in mentions:
        if runs and _JOINT.fullmatch(caption, runs[-1][-1].end, mention.start):
            runs[-1].append(mention)
        else:
            runs.append([mention])
    return [
        Mention(run[0].start, run[-1].end, one_line(caption[run[0].start : run[-1].start] + run[-1].lemma))
        for run in runs
    ]


def one_line(text: str) -> str:
    """In lower case, any run of white space as one space."""
    return " ".join(text.split()).lower()


@dataclass(frozen=True, slots=True)
class _Compound:
    """Tokens `[first, end)` of a document that are one noun."""

    first: int
    end: int
    lemma: str


def _compounds(doc: Any, nouns: Sequence[Mention]) -> list[_Compound]:
    first = {token.idx: token.i for token in doc}
    end = {token.idx + len(token): token.i + 1 for token in doc}
    return [_Compound(first[noun.start], end[noun.end], noun.lemma) for noun in join_compounds(nouns, caption=doc.text)]


def _mention(doc: Any, first: int, end: int, lemma: str) -> Mention:
    last = doc[end - 1]
    return Mention(doc[first].idx, last.idx + len(last), lemma)


def _with_adjectives(doc: Any, compound: _Compound, *, words: Words) -> Mention:
    """A noun with the adjectives that stand directly before it, also with a comma or an "and" between them."""
    first, end = compound.first, compound.end
    while first > 0:
        if words.is_adjective(doc[first - 1]):
            first -= 1
            continue
        linked = first - 1
        while linked > 0 and first - linked <= _MAX_LINKS and _is_link(doc[linked]):
            linked -= 1
        if first == compound.first or not words.is_adjective(doc[linked]):
            break
        first = linked
    while words.adjectives_follow and end < len(doc) and words.is_adjective(doc[end]):
        end += 1
    return _mention(doc, first, end, compound.lemma)


def _is_link(token: Any) -> bool:
    return token.text in _LINKS or token.tag_ == "CC" or token.pos_ == "CCONJ"


def _chunks(doc: Any, compounds: Sequence[_Compound], *, words: Words, referring: bool) -> Iterator[Mention]:
    """Noun chunks without their articles; `referring`: with the prepositional phrases that they govern."""
    lemmas = {token: compound.lemma for compound in compounds for token in range(compound.first, compound.end)}
    chunks = {chunk.root.i: chunk for chunk in doc.noun_chunks}
    for root, chunk in chunks.items():
        if root not in lemmas:  # a pronoun, or what is no word
            continue
        first, end = chunk.start, _end_with_phrases(chunk, chunks) if referring else chunk.end
        # A chunk of several lines is cut to that of its noun; the nouns on the others stand alone.
        first = max([first, *(token + 1 for token in range(first, root) if _ends_line(doc[token]))])
        end = min([end, *(token for token in range(root + 1, end) if _ends_line(doc[token]))])
        for noun in compounds:
            if (chunk.start <= noun.first and noun.end <= min(first, chunk.end)) or end <= noun.first < chunk.end:
                yield _mention(doc, noun.first, noun.end, noun.lemma)
        while first < root and (words.is_leading(doc[first]) or not _has_letter(doc[first])):
            first += 1
        while end > root + 1 and not _has_letter(doc[end - 1]):
            end -= 1
        yield _mention(doc, first, end, lemmas[root])


def _end_with_phrases(chunk: Any, chunks: Mapping[int, Any]) -> int:
    """Where a chunk ends with the phrases that its noun governs, as far as they follow without a gap."""
    end: int = chunk.end
    for child in chunk.root.rights:
        if child.i < end:
            continue
        inner = _object(child, chunks)
        if inner is None or child.left_edge.i != end:
            break
        end = _end_with_phrases(inner, chunks)
    return end


def _object(child: Any, chunks: Mapping[int, Any]) -> Any | None:
    """The noun chunk in a prepositional phrase ("on the stage", "next to a car"); None when it is no such phrase."""
    if child.dep_ == _NOMINAL and any(inner.dep_ == _CASE for inner in child.lefts):
        return chunks.get(child.i)
    if child.dep_ in _PREPOSITIONS:
        objects = (inner for inner in child.rights if inner.dep_ == _PREPOSITIONS[child.dep_])
        return next((chunks[inner.i] for inner in objects if inner.i in chunks), None)
    return next((_object(inner, chunks) for inner in child.rights if inner.dep_ in _PREPOSITIONS), None)


def _ends_line(token: Any) -> bool:
    return not _LINE_ENDS.isdisjoint(token.text)


def _has_letter(token: Any) -> bool:
    return any(character.isalnum() for character in token.text)


def first_mentions(nouns: Sequence[Noun]) -> list[Noun]:
    """The image's different nouns, each at its first mention; the text is in lower case already."""
    first: dict[str, Noun] = {}
    for noun in nouns:
        first.setdefault(noun.text, noun)
    return list(first.values())
