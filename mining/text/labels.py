"""Which nouns name which labels of a proposal model: how `pairs` matches without CLIP.

Labels come in many spellings ("Fire_Hydrant", "tree-merged", "wall-brick", "road, route"); nouns come in lower case
from `maskmine.mining.nouns`. Both are brought to plain words here, and a table of synonyms bridges "man" and "person".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from maskmine.mining.storage.bounded.small_files import MAX_LIST_BYTES, parse_yaml, read_list
from maskmine.mining.storage.stores import open_input
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import fingerprint

Naming = Callable[[str, str], frozenset[str]]
"""From a noun's text and lemma to the labels that it names."""

_SCENES = Path(__file__).parents[1] / "data" / "scene_synonyms.yaml"  # those for COCO-Stuff and ADE20K-150
_COCO = Path(__file__).parents[1] / "data" / "coco_synonyms.yaml"  # nouns for the 80 classes of COCO
# What COCO-Stuff and COCO panoptic append to a name without changing what it names.
_SUFFIX = re.compile(r"(-(merged|other|stuff))+$")
# Their surfaces by material: "wall-brick" is a wall, and a brick wall.
_SURFACE = re.compile(r"(wall|floor|ceiling)-(\w+)")


def load_synonyms(name_or_path: str | None) -> dict[str, frozenset[str]]:
    """The nouns that name each label, both as plain words, from a table.

    `auto` is what is shipped for the labels of COCO, COCO-Stuff, COCO panoptic and ADE20K-150, and `coco` of it what is
    for COCO's 80; or a YAML file of one's own, which maps labels to lists of nouns; or no table. A noun may stand under
    several labels. Raises InputError when the file is absent or of another shape, or names a label twice.
    """
    if name_or_path is None:
        return {}
    if name_or_path == "auto":
        tables = [_read_synonyms(path, str(path)) for path in (_COCO, _SCENES)]
        labels = dict.fromkeys(label for table in tables for label in table)
        return {label: frozenset().union(*(table.get(label, ()) for table in tables)) for label in labels}
    return _read_synonyms(_COCO if name_or_path == "coco" else Path(name_or_path), name_or_path)


def _read_synonyms(path: Path, name_or_path: str) -> dict[str, frozenset[str]]:
    try:
        _, table = parse_yaml(read_list(path), place=f"synonyms: {path}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"synonyms: `{name_or_path}` cannot be read ({type(error).__name__}); use auto, coco, or the path of a "
            "YAML file"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else f"{path}"
        raise InputError(f"synonyms: {place}: no valid YAML; write `label: [noun, noun]` lines") from error
    if not isinstance(table, dict):
        raise InputError(f"synonyms: {path} holds no mapping; write `label: [noun, noun]` lines")
    synonyms: dict[str, frozenset[str]] = {}
    for label, nouns in table.items():
        if not isinstance(label, str) or not isinstance(nouns, list) or not all(isinstance(n, str) for n in nouns):
            raise InputError(
                f"synonyms: {path}: under `{label}` there is no list of words; write `label: [noun, noun]` and put "
                "words that YAML reads otherwise (yes, no, on, off, numbers) in quotes"
            )
        if plain_words(label) in synonyms:
            raise InputError(f"synonyms: {path}: `{label}` is there twice; keep one list for it")
        synonyms[plain_words(label)] = frozenset(plain_words(noun) for noun in nouns)
    return synonyms


def synonyms_identity(name_or_path: str) -> dict[str, str]:
    """The name of a table and a hash of what is in it. Raises as `load_synonyms`."""
    table = {label: sorted(nouns) for label, nouns in load_synonyms(name_or_path).items()}
    return {"name": name_or_path.rpartition("/")[2], "sha256": fingerprint(table)}


def read_class_names(path: str, *, setting: str) -> tuple[str, ...]:
    """The classes in a text file, a line each, of which the first has the number 0.

    A line ends as editors end it, so no other sign of Unicode that ends lines shifts a class. Raises InputError, which
    names the `setting`, for a file that cannot be read, has no name, or has an empty line before a name.
    """
    try:
        with open_input(path) as file:
            content = file.read(MAX_LIST_BYTES + 1)
            text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{setting}: `{path}` cannot be read ({type(error).__name__}); give a UTF-8 text file, a class a line"
        ) from error
    if len(content) > MAX_LIST_BYTES:
        raise InputError(f"{setting}: `{path}` is longer than {MAX_LIST_BYTES:,} bytes; is it a list of classes?")
    names = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise InputError(
            f"{setting}: `{path}` has no names; give a text file, a class a line, the first one for label 0"
        )
    if "" in names:
        raise InputError(
            f"{setting}: `{path}`: line {names.index('') + 1} is empty, and a class's label is its line; take it out, "
            "or give the class a name"
        )
    return tuple(names)


def names_label(noun_text: str, noun_lemma: str, label: str, synonyms: Mapping[str, frozenset[str]]) -> bool:
    """Whether a noun names a label: its text or lemma is the label, or is listed for it in `synonyms`.

    A compound noun that the table does not know names what its last word names: "city bus" names `bus`, and "teddy
    bear" does not name `bear` where the table has a label "teddy bear". The other way round a part never names the
    whole: "sign" does not name `stop sign`.
    """
    forms = {plain_words(noun_text), plain_words(noun_lemma)}
    if _any_names(forms, label, synonyms):
        return True
    heads = {form.rpartition(" ")[2] for form in forms}
    return heads != forms and _any_names(heads, label, synonyms) and not any(_is_known(f, synonyms) for f in forms)


def open_naming(categories: Sequence[str], synonyms: Mapping[str, frozenset[str]]) -> Naming:
    """A function from a noun's text and lemma to the categories that it names; none for a noun that names no category.

    A noun that is the name of a category, by its text or else by its lemma, names that one alone: where there is a
    category "hot dog", hot dogs are no dogs, and where there is an "ox", oxen are no cows. Others name what
    `names_label` says by the table of synonyms.
    """
    # In the table the names of categories are nouns of their own, so that `hot dog` is not looked up as `dog`.
    known = {name: frozenset[str]() for category in categories for name in label_names(category)} | dict(synonyms)

    @functools.lru_cache(maxsize=1 << 16)
    def named(text: str, lemma: str) -> frozenset[str]:
        for form in (plain_words(text), plain_words(lemma)):
            if own := frozenset(category for category in categories if form in label_names(category)):
                return own
        return frozenset(category for category in categories if names_label(text, lemma, category, known))

    return named


@functools.lru_cache(maxsize=1 << 12)
def label_names(label: str) -> frozenset[str]:
    """The names that a label states, as plain words: "wall-brick" is "wall" and "brick wall", "road, route" is both."""
    names = set()
    for part in re.split(r"[,;]", re.sub(r"\(.*?\)", "", label.lower())):
        part = _SUFFIX.sub("", part.strip())
        if surface := _SURFACE.fullmatch(part):
            thing, material = surface.groups()
            names |= {thing, f"{material} {thing}"}
        elif plain := plain_words(part):
            names.add(plain)
    return frozenset(names)


@functools.lru_cache(maxsize=1 << 14)
def plain_words(text: str) -> str:
    """Lower case, with single spaces for `_`, `-` and white space."""
    return " ".join(re.sub(r"[_-]", " ", text.lower()).split())


def _any_names(forms: set[str], label: str, synonyms: Mapping[str, frozenset[str]]) -> bool:
    names = label_names(label)
    return not forms.isdisjoint(names) or any(not forms.isdisjoint(synonyms.get(name, ())) for name in names)


def _is_known(noun: str, synonyms: Mapping[str, frozenset[str]]) -> bool:
    return noun in synonyms or any(noun in nouns for nouns in synonyms.values())
