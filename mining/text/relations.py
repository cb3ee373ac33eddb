"""Which nouns may name the same thing: by their words, by lists of synonyms, and by WordNet where the user has it.

    dog, dogs            one word in two forms
    bus, city bus        the same head, the last word
    ice cream, ice       all words of one are in the other
    sofa, couch          a line of a list of synonyms, or a set of synonyms of WordNet
    poodle, dog          one is a kind of the other, by WordNet, however many steps apart

It says yes where it is in doubt: what is asked is which nouns an image surely does not show.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskmine.mining.storage.bounded.small_files import read_list
from maskmine.mining.text.labels import plain_words
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import fingerprint

WORDNET_FILE = "data.noun"
"""The file of WordNet's database that is read: the sets of synonyms of nouns (`man 5 wndb`)."""

_MAX_WORDNET_BYTES = 100_000_000  # that of WordNet 3.1 has 15 MB
_HYPERNYMS = ("@", "@i")


@dataclass(frozen=True)
class Relations:
    """`groups_of` has the numbers of the groups of synonyms that a word is in; `wordnet` may be missing."""

    groups_of: Mapping[str, frozenset[int]] = field(default_factory=dict)
    wordnet: WordNet | None = None

    def related(self, noun: str, lemma: str, other: str, other_lemma: str) -> bool:
        """Whether two nouns, given by text and lemma, may name the same thing."""
        one, two = forms_of(noun, lemma), forms_of(other, other_lemma)
        return share_words(one, two) or self._synonyms(one, two) or self._kinds(one, two)

    def _synonyms(self, one: frozenset[str], two: frozenset[str]) -> bool:
        groups, others = (
            frozenset[int]().union(*(self.groups_of.get(form, ()) for form in forms)) for forms in (one, two)
        )
        return not groups.isdisjoint(others)

    def _kinds(self, one: frozenset[str], two: frozenset[str]) -> bool:
        return self.wordnet is not None and self.wordnet.related(one, two)


@functools.lru_cache(maxsize=1 << 16)
def forms_of(noun: str, lemma: str) -> frozenset[str]:
    """A noun in the forms that other nouns are compared by: text and lemma, also without an ending of the plural."""
    forms = {plain_words(noun), plain_words(lemma)}
    shorter = {form.removesuffix(end) for form in forms for end in ("s", "es") if len(form) > len(end) + 2}
    return frozenset(forms | shorter) - {""}


def share_words(one: frozenset[str], two: frozenset[str]) -> bool:
    """Whether two nouns in these forms have the same head, or all words of one are in the other."""
    heads, others = ({form.rpartition(" ")[2] for form in forms} for forms in (one, two))
    if not heads.isdisjoint(others):
        return True
    words, more = ([frozenset(form.split()) for form in forms] for forms in (one, two))
    return any(a <= b or b <= a for a in words for b in more)


class WordNet:
    """The nouns of WordNet: the numbers of the sets of synonyms of each, and those right above each set."""

    def __init__(self, sets_of: Mapping[str, Sequence[int]], above: Mapping[int, Sequence[int]]) -> None:
        self.sets_of = sets_of
        self.above = above
        self._of = functools.lru_cache(maxsize=1 << 14)(self._kinds)

    def related(self, one: frozenset[str], two: frozenset[str]) -> bool:
        """Whether nouns in these forms are synonyms, or one is a kind of the other, in any of their meanings."""
        (own, all_above), (other, other_above) = self._of(one), self._of(two)
        return not own.isdisjoint(other_above) or not other.isdisjoint(all_above)

    def _kinds(self, forms: frozenset[str]) -> tuple[frozenset[int], frozenset[int]]:
        """The sets of a noun, or of its head where it is not known, and these with all that are above them."""
        known = [form for form in forms if form in self.sets_of]
        known = known or [head for form in forms if (head := form.rpartition(" ")[2]) in self.sets_of]
        own = frozenset(number for form in known for number in self.sets_of[form])
        reached, waiting = set(own), list(own)
        while waiting:
            new = set(self.above.get(waiting.pop(), ())) - reached
            reached |= new
            waiting += new
        return own, frozenset(reached)


def read_synonym_groups(path: str) -> dict[str, frozenset[int]]:
    """A list of synonyms, a group a line, its words separated by commas; empty lines and what follows a # are left out.

    Returns the numbers of the groups of each word. Raises InputError for what cannot be read, or a line of one word.
    """
    groups: dict[str, set[int]] = {}
    for number, line in enumerate(_text(path, "negatives.synonyms").splitlines(), start=1):
        words = [plain_words(word) for word in line.partition("#")[0].split(",") if word.strip()]
        if len(words) == 1:
            raise InputError(
                f"negatives.synonyms: {path}, line {number}: `{words[0]}` stands alone; write the words that may name "
                "the same thing in one line, with commas between them"
            )
        for word in words:
            groups.setdefault(word, set()).add(number)
    return {word: frozenset(numbers) for word, numbers in groups.items()}


def synonym_groups_identity(path: str) -> dict[str, str]:
    """The name of a list and a hash of what is in it. Raises as `read_synonym_groups`."""
    groups = sorted((word, sorted(numbers)) for word, numbers in read_synonym_groups(path).items())
    return {"name": path.rpartition("/")[2], "sha256": fingerprint(groups)}


def read_wordnet(folder: str) -> WordNet:
    """The nouns of the WordNet database in a folder. Raises InputError when it holds none that can be read."""
    path = str(Path(folder) / WORDNET_FILE)
    text = _text(path, "negatives.wordnet", max_bytes=_MAX_WORDNET_BYTES)
    sets_of: dict[str, list[int]] = {}
    above: dict[int, tuple[int, ...]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if line.startswith("  ") or not line:  # the licence
            continue
        try:
            offset, words, hypernyms = _synset(line.partition("|")[0].split())
        except (ValueError, IndexError) as error:
            raise InputError(
                f"negatives.wordnet: {path}, line {number}: is no set of synonyms; give the folder of a WordNet "
                "database, such as /usr/share/wordnet of Debian's `wordnet-base`"
            ) from error
        above[offset] = hypernyms
        for word in words:
            sets_of.setdefault(plain_words(word), []).append(offset)
    return WordNet(sets_of, above)


def wordnet_identity(folder: str) -> dict[str, str]:
    """The name of a WordNet database and a hash of its nouns. Raises as `read_wordnet`."""
    path = str(Path(folder) / WORDNET_FILE)
    text = _text(path, "negatives.wordnet", max_bytes=_MAX_WORDNET_BYTES)
    return {"name": folder.rstrip("/").rpartition("/")[2], "sha256": fingerprint(text)}


def _synset(fields: list[str]) -> tuple[int, list[str], tuple[int, ...]]:
    """Number, words, and the numbers of the hypernyms of a line: `offset file type n (word id)*n p (pointer)*p`."""
    count = int(fields[3], 16)
    words = fields[4 : 4 + 2 * count : 2]
    first = 5 + 2 * count
    end = first + 4 * int(fields[first - 1])
    if fields[2] != "n" or len(words) != count or end > len(fields):
        raise ValueError("no noun")
    pointers = [fields[start : start + 2] for start in range(first, end, 4)]
    return int(fields[0]), words, tuple(int(to) for kind, to in pointers if kind in _HYPERNYMS)


def _text(path: str, setting: str, **limit: Any) -> str:
    try:
        return read_list(path, **limit)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{setting}: `{path}` cannot be read ({type(error).__name__}); give another path") from error
