"""All faults of a configuration: a line each with the place, what was expected there and what was given."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import Settings

Location = tuple[int | str, ...]

# In the place of the line of a setting: it was given by `--set`, or from Python.
OVERRIDDEN, FROM_PYTHON = 0, -1

# How pydantic names the members of a union of plain types in the location of a fault.
_TYPE_LABEL = re.compile(
    r"(str|int|float|bool|nullable|dict\[.*|tuple\[.*|list\[.*|literal\[.*|constrained-.*|function-.*)$"
)
_SHOWN_CHARS = 60  # of a wrong value: enough to recognise it, short enough for one line


class SettingsError(InputError):
    """The faults of a configuration; `args` has a line for each."""

    def __str__(self) -> str:
        return "; ".join(map(str, self.args))


def settings_error(
    error: ValidationError, *, place: str, lines: Mapping[str, int], of: type[Settings]
) -> SettingsError:
    """All faults that pydantic found; `place` is the file, `lines` the line of each setting in it."""
    faults = error.errors(include_url=False)
    # A list whose elements are at fault counts as too short, too; that says nothing more.
    faults = [fault for fault in faults if not (fault["type"] == "too_short" and fault["input"] and len(faults) > 1)]
    misspelt = {guess for fault in faults if (guess := _guess(fault, of))}
    by_path: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for fault in faults:
        path = tuple(locate(of, fault["loc"])[0])
        if fault["type"] != "missing" or path not in misspelt:  # a misspelt key is why the right one is missing
            by_path.setdefault(path, []).append(fault)
    deeper = {
        path[:-1] for path in by_path if path[-1:] != () and path[-1].isdigit()
    }  # an element, not its list, is wrong
    said: dict[tuple[str, ...], str] = {}
    for path, group in by_path.items():
        if path not in deeper:
            said.update(_lacking(path, group, of) or [(path, _message(group, of))])
    return SettingsError(*(f"{_where(path, place, lines)}: {text}" for path, text in said.items()))


def locate(of: type[Settings], location: Location) -> tuple[list[str], list[Any]]:
    """The path of a setting as the user writes it, and the types it may have.

    pydantic's location also names the chosen member of each union, which is no part of the path.
    """
    path: list[str] = []
    types: list[Any] = [of]
    for part in location:
        models = settings_among(types)
        chosen = [model for model in models if part in tags_of(model)] if len(models) > 1 else []
        if chosen:
            types = list(chosen)
        elif fields := [model.model_fields[str(part)] for model in models if part in model.model_fields]:
            path.append(str(part))
            types = [member for field in fields for member in union_members(field.annotation)]
        elif len(models) == 1 or not (models or _is_label(part, types)):
            path.append(str(part))
            types = [] if models else _element_types(types)
        elif isinstance(part, int):
            path.append(str(part))
            types = _element_types(types)
    return path, types


def settings_among(types: Sequence[Any]) -> list[type[Settings]]:
    """The settings classes among some types."""
    return [kind for kind in types if isinstance(kind, type) and issubclass(kind, Settings)]


def union_members(annotation: Any) -> list[Any]:
    """The types of a union, nested ones included, without `Annotated`; of any other type that type."""
    if get_origin(annotation) is Annotated:
        return union_members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for inner in get_args(annotation) for member in union_members(inner)]
    return [annotation]


def tags_of(model: type[Settings]) -> tuple[str, ...]:
    """The values of `kind` or `rule` by which a member of a tagged union is chosen."""
    field = model.model_fields.get("kind") or model.model_fields.get("rule")
    return get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()


def nearest(name: str, known: Sequence[str]) -> str:
    """What to say of an unknown name: the known one like it, or all known ones. It never is that name itself, which may
    be known elsewhere."""
    known = [other for other in known if other != name]
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(sorted(known)) or 'no other'}"


def _lacking(
    path: tuple[str, ...], faults: Sequence[ErrorDetails], of: type[Settings]
) -> list[tuple[tuple[str, ...], str]]:
    """What to say of each setting that is lacking in a section that is missing, or that is of no kind yet."""
    kind = faults[0]["type"]
    if kind not in ("missing", "union_tag_not_found"):
        return []
    types = locate(of, faults[0]["loc"])[1]
    return list(_required(path, types))


def _required(path: tuple[str, ...], types: Sequence[Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """A line for each setting that has to be given at a place that has none."""
    models = settings_among(types)
    if len(models) > 1:
        tag = "rule" if all("rule" in model.model_fields for model in models) else "kind"
        choices = ", ".join(name for model in models for name in tags_of(model))
        yield (*path, tag), f"missing, choose one of {choices}"
        return
    fields = models[0].model_fields.items() if models and type(None) not in types else ()
    required = [(name, union_members(field.annotation)) for name, field in fields if field.is_required()]
    if not required:
        yield path, "missing; add it"
    for name, inner in required:
        yield from _required((*path, name), inner)


def _is_label(part: int | str, types: Sequence[Any]) -> bool:
    if not any(get_origin(kind) in (dict, tuple, list) for kind in types):
        return True
    return isinstance(part, str) and len(types) > 1 and _TYPE_LABEL.match(part) is not None


def _element_types(types: Sequence[Any]) -> list[Any]:
    elements = [get_args(kind) for kind in types if get_origin(kind) in (dict, tuple, list)]
    return [member for inner in elements for kind in inner[-1:] for member in union_members(_element(kind, inner))]


def _element(last: Any, inner: tuple[Any, ...]) -> Any:
    return inner[0] if last is Ellipsis else last


def given_from_python(name: str) -> str:
    """How a setting is called that a function was given."""
    return name if name == "out" else f"settings['{name}']"


def _where(path: tuple[str, ...], place: str, lines: Mapping[str, int]) -> str:
    name = ".".join(path)
    line = lines.get(name, lines.get(".".join(path[:-1])))
    if line == OVERRIDDEN:
        return f"--set {name}"
    if line == FROM_PYTHON:
        return given_from_python(name)
    where = f"{place}, line {line}" if line else place
    return f"{where}: {name}" if name else where


def _message(faults: Sequence[ErrorDetails], of: type[Settings]) -> str:
    """What is wrong with a setting; several faults are those of the members of a union."""
    fault = faults[0]
    if fault["type"] == "extra_forbidden":
        return _unknown_message(fault, of)
    if fault["type"] == "union_tag_invalid":
        return _tag_message(fault, of)
    if fault["type"] in ("model_type", "model_attributes_type"):
        return f"a section, with settings as `key: value` below it, not {_shown(fault.get('input'))}"
    if fault["type"] == "value_error":  # raised by a validator of ours, whose message names the value
        return fault["msg"].removeprefix("Value error, ")
    if isinstance(fault.get("input"), bool) and fault["type"] == "string_type":
        return (
            f"a text is expected, and YAML reads no, yes, on and off as {_shown(False)} and {_shown(True)}: use quotes"
        )
    expected = " or ".join([faults[0]["msg"], *(other["msg"].removeprefix("Input should be ") for other in faults[1:])])
    return f"{expected[0].lower()}{expected[1:]}, not {_shown(fault.get('input'))}"


def _unknown_message(fault: ErrorDetails, of: type[Settings]) -> str:
    """What to say of an unknown key: whose setting it is, or the nearest known one."""
    *place, name = fault["loc"]
    _, types = locate(of, tuple(place[:-1]))
    owners = [tag for model in settings_among(types) if name in model.model_fields for tag in tags_of(model)]
    if owners and place:
        tag = "rule" if any("rule" in model.model_fields for model in settings_among(types)) else "kind"
        return f"a setting of `{tag}: {' | '.join(owners)}`, which `{tag}: {place[-1]}` does not have"
    return f"unknown setting; {nearest(str(name), _siblings(fault, of))}"


def _tag_message(fault: ErrorDetails, of: type[Settings]) -> str:
    context = fault.get("ctx", {})
    tag = str(context["discriminator"]).strip("'")
    known = [name for model in settings_among(locate(of, fault["loc"])[1]) for name in tags_of(model)]
    return f"{tag} `{context['tag']}` is unknown; choose one of {', '.join(known)}"


def _siblings(fault: ErrorDetails, of: type[Settings]) -> list[str]:
    _, types = locate(of, fault["loc"][:-1])
    return sorted({name for model in settings_among(types) for name in model.model_fields})


def _guess(fault: ErrorDetails, of: type[Settings]) -> tuple[str, ...] | None:
    if fault["type"] != "extra_forbidden":
        return None
    path, _ = locate(of, fault["loc"])
    near = difflib.get_close_matches(path[-1], _siblings(fault, of), n=1)
    return (*path[:-1], *near) if near else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}…"
