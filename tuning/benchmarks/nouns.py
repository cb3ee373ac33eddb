"""Which mined nouns name which classes of a benchmark, and how: what a "zero-shot" figure has to be read with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

from mining.labels import label_names, plain_words
from tuning.benchmark_classes import synonyms_of

Kind = Literal[
    "exact",  # the noun is one of the names that the class states
    "plural",  # it is one of them in another number
    "synonym",  # it is listed for the class
    "compound",  # its last word is one of these, and the whole is not a thing of its own ("city bus")
]
KINDS: tuple[Kind, ...] = get_args(Kind)

Find = Callable[[str, str], dict[str, Kind]]


def open_classes(classes: Sequence[str], synonyms: Mapping[str, Iterable[str]]) -> Find:
    """A function from a noun's text and lemma to the classes that it names, each with the first kind that holds.

    `synonyms` is a table as `mining.labels.load_synonyms` gives it. Its nouns count for a class that is called as the
    label is, or as `class_lists/seen_classes.yaml` says is the same: "jet", listed for "airplane", names "aeroplane".
    """
    table = {_key(label): {_key(noun) for noun in nouns} for label, nouns in synonyms.items()}
    known = table.keys() | set[str]().union(*table.values())
    named: dict[str, list[str]] = {}
    listed: dict[str, list[str]] = {}
    for name in classes:
        own = {_key(stated) for stated in label_names(name)}
        same = own | synonyms_of(own)
        for key in own:
            named.setdefault(key, []).append(name)
        for key in same.union(*(table.get(label, ()) for label in same)) - own:
            listed.setdefault(key, []).append(name)

    def find_whole(text: str, lemma: str) -> dict[str, Kind]:
        found: dict[str, Kind] = {}
        numbers = {lemma, *_plurals(text), *_plurals(lemma)}
        ways: tuple[tuple[Kind, dict[str, list[str]], set[str]], ...] = (
            ("exact", named, {text}),
            ("plural", named, numbers),
            ("synonym", listed, {text, *numbers}),
        )
        for kind, names, forms in ways:
            for form in forms:
                for name in names.get(_key(form), ()):
                    found.setdefault(name, kind)
        return found

    def find(text: str, lemma: str) -> dict[str, Kind]:
        text, lemma = plain_words(text), plain_words(lemma)
        found = find_whole(text, lemma)
        heads = text.rpartition(" ")[2], lemma.rpartition(" ")[2]
        if found or heads == (text, lemma) or _key(text) in known or _key(lemma) in known:
            return found
        return dict.fromkeys(find_whole(*heads), "compound")

    return find


def _key(words: str) -> str:
    """Without blanks, as some benchmarks write their classes ("diningtable")."""
    return plain_words(words).replace(" ", "")


def _plurals(words: str) -> tuple[str, ...]:
    """How the plural may be spelled, for classes that are named by one ("shelves")."""
    if words.endswith("y"):
        return f"{words[:-1]}ies", f"{words}s"
    if words.endswith(("s", "x", "z", "ch", "sh")):
        return (f"{words}es",)
    stem = words.removesuffix("e").removesuffix("f")
    return (f"{stem}ves", f"{words}s") if words.endswith(("f", "fe")) else (f"{words}s",)
