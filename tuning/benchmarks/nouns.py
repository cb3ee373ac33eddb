"""Which mined nouns name which classes of a benchmark: how "zero-shot" a result on it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

from maskmine.mining.text.labels import label_names, plain_words
from maskmine.tuning.benchmarks.classes import synonyms_of

Kind = Literal[
    "exact",  # the noun is a name of the class
    "plural",  # it is one in singular or plural
    "synonym",  # it is listed for the class
    "compound",  # its last word is one of these, and the whole is not listed as something else ("city bus")
]
KINDS: tuple[Kind, ...] = get_args(Kind)

Find = Callable[[str, str], dict[str, Kind]]


def open_classes(classes: Sequence[str], synonyms: Mapping[str, Iterable[str]]) -> Find:
    """A function from a noun's text and lemma to the classes that it names, each with the first matching kind.

    `synonyms` is a table as `maskmine.mining.text.labels.load_synonyms` returns it. Its nouns count for a class with
    the name of the label or with a synonym of it in `class_lists/seen_classes.yaml`: "jet", listed for "airplane",
    names "aeroplane".
    """
    table = {_key(label): {_key(noun) for noun in nouns} for label, nouns in synonyms.items()}
    listed_nouns = table.keys() | set[str]().union(*table.values())
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
        kinds: dict[str, Kind] = {}
        numbers = {lemma, *_plurals(text), *_plurals(lemma)}
        ways: tuple[tuple[Kind, dict[str, list[str]], set[str]], ...] = (
            ("exact", named, {text}),
            ("plural", named, numbers),
            ("synonym", listed, {text, *numbers}),
        )
        for kind, names, forms in ways:
            for form in forms:
                for name in names.get(_key(form), ()):
                    kinds.setdefault(name, kind)
        return kinds

    def find(text: str, lemma: str) -> dict[str, Kind]:
        text, lemma = plain_words(text), plain_words(lemma)
        kinds = find_whole(text, lemma)
        heads = text.rpartition(" ")[2], lemma.rpartition(" ")[2]
        if kinds or heads == (text, lemma) or _key(text) in listed_nouns or _key(lemma) in listed_nouns:
            return kinds
        return dict.fromkeys(find_whole(*heads), "compound")

    return find


def _key(words: str) -> str:
    """Without spaces, as some benchmarks write their classes ("diningtable")."""
    return plain_words(words).replace(" ", "")


def _plurals(words: str) -> tuple[str, ...]:
    """Possible spellings of the plural, for classes in plural ("shelves")."""
    if words.endswith("y"):
        return f"{words[:-1]}ies", f"{words}s"
    if words.endswith(("s", "x", "z", "ch", "sh")):
        return (f"{words}es",)
    stem = words.removesuffix("e").removesuffix("f")
    return (f"{stem}ves", f"{words}s") if words.endswith(("f", "fe")) else (f"{words}s",)
