"""Which nouns name which labels of a proposal model: how `pairs` matches without CLIP.

Labels come in many spellings ("Fire_Hydrant", "tree-merged", "wall-brick", "road, route"); nouns come in lower case
from `mining.nouns`. Both are brought to plain words here, and a table of synonyms bridges "man" and "person".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from schemas.errors import InputError

_COCO = Path(__file__).with_name("data") / "coco_synonyms.yaml"
# What COCO-Stuff and COCO panoptic append to a name without changing what it names.
_SUFFIX = re.compile(r"(-(merged|other|stuff))+$")
# Their surfaces by material: "wall-brick" is a wall, and a brick wall.
_SURFACE = re.compile(r"(wall|floor|ceiling)-(\w+)")


def load_synonyms(name_or_path: str | None) -> dict[str, frozenset[str]]:
    """The nouns that name each label, both as plain words: `coco` (shipped), a YAML file of one's own, or no table.

    The file maps labels to lists of nouns. A noun may stand under several labels. Raises InputError when the file is
    absent or of another shape, or names a label twice.
    """
    if name_or_path is None:
        return {}
    path = _COCO if name_or_path == "coco" else Path(name_or_path)
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"synonyms: `{name_or_path}` cannot be read ({type(error).__name__}); use coco or the path of a YAML file"
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
