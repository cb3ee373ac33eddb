"""The options of `maskmine export` as settings; every fault names the option and what was expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from maskmine.mining.storage.bounded.small_files import read_list
from maskmine.pipelines.export.export import Export
from maskmine.schemas.errors import InputError

# Settings whose options have another name.
_OPTIONS = {
    "seed": "split-seed",
    "splits": "split",
    "share": "split",
    "name": "split",
    "max_side_px": "max-side",
    "expand_ratio": "expand",
    "samples_per_piece": "shard-size",
    "policy": "licence-policy",
    "prefix": "image-prefix",
}


def parse_export(
    to: str,
    *,
    selection: Mapping[str, Any],
    lists: Mapping[str, str | None],
    split: str,
    pictures: Mapping[str, Any],
    licences: str | None,
    more: Mapping[str, Any],
) -> Export:
    """The settings of an export from the values of the options. Raises InputError.

    `lists` are nouns with commas between, or `@FILE` with one a line; `split` is `train=0.9,val=0.1`.
    """
    listed = {name: _nouns(name, value) for name, value in lists.items() if value is not None}
    chosen = {name: value for name, value in selection.items() if value is not None}
    tree = {
        "format": to,
        "selection": {**chosen, **listed, "splits": _splits(split)},
        "pictures": {name: value for name, value in pictures.items() if value is not None},
        "licences": None if licences is None else tuple(_words(licences)),
        **more,
    }
    try:
        return Export.model_validate(tree)
    except ValidationError as error:
        raise InputError(_first_fault(error)) from error


def _nouns(name: str, value: str) -> tuple[str, ...]:
    """Nouns in small letters, as they are in the index; sorted, because a list in another order is the same one."""
    option = f"--{name.replace('_', '-')} {value}"
    if not value.startswith("@"):
        words = _words(value)
    else:
        try:
            words = [line.strip() for line in read_list(value[1:], encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{option}: cannot be read as a text file; give nouns, one a line") from error
    nouns = tuple(sorted({" ".join(word.lower().split()) for word in words if word}))
    if not nouns:
        raise InputError(f"{option}: names no noun; give some with commas between, or @FILE with one a line")
    return nouns


def _splits(value: str) -> tuple[dict[str, Any], ...]:
    splits = []
    for word in _words(value):
        name, _, share = word.partition("=")
        try:
            splits.append({"name": name, "share": float(share)})
        except ValueError as error:  # also without `=`
            raise InputError(f"--split {value}: expected shares such as train=0.9,val=0.1") from error
    return tuple(splits)


def _words(value: str) -> list[str]:
    return [word.strip() for word in value.split(",") if word.strip()]


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    names = [str(part) for part in fault["loc"] if isinstance(part, str)]
    name = names[-1] if names else "split"
    if name == "selection":  # what its parts say together
        name = "held_out" if "held-out" in fault["msg"] else "split"
    option = f"--{_OPTIONS.get(name, name).replace('_', '-')}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{option}: {message}"
    return f"{option}: {message[0].lower()}{message[1:]}, not {fault.get('input')!r}"
