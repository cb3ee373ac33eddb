"""The base of every settings object: frozen, strict, and without room for a misspelt key.

What is known of a setting stands at the setting: its description as a docstring below the field, and as markers in
`Annotated[…]` whether it is a path (`AnyPath`, `NameOrPath`), whether it only says how the work is done
(`ExecutionOnly`, `LastBits`), whether it is stated for the record alone (`RecordOnly`), and whether earlier versions
had it not (`AddedLater`). A setting without a marker
decides the result by its value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class Settings(BaseModel):
    """Settings are values: compared by content, never changed, passed by hand.

    Strict: `"8"` is no number and `true` is no count; lists from YAML become tuples.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    def contents(self) -> Mapping[str, Any]:
        """What settings that name something stand for, by the names of the fields; none by default.

        A file or model is `{"name": …, "sha256": …}`, with null where it is not on this machine. Further names may be
        given for what belongs to no field alone. Raises InputError for a file that is broken.
        """
        return {}


@dataclass(frozen=True)
class IsPath:
    """Marks the path of a file or folder of the user, on a disk or an object store.

    With `or_name` the value may also be a name, such as that of a model. With a slash it is then a path when something
    lies there, without one when that is of the kind `bare` says and the value is none of the `known` names. Words in a
    list are no paths then.
    """

    or_name: bool = False
    known: tuple[str, ...] = ()
    bare: Literal["anything", "file", "never"] = "anything"

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), **({"x-name-or-path": True} if self.or_name else {"format": "path"})}


@dataclass(frozen=True)
class ExecutionOnly:
    """Marks a setting that says how the work is done, not what comes out: a change of it makes nothing stale.

    It is left out of fingerprints. With `hash_default` its default counts in place of its value: so a setting that
    counted in earlier versions keeps the fingerprints of runs that left it alone.
    """

    hash_default: bool = False

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "x-execution-only": True}


@dataclass(frozen=True)
class LastBits(ExecutionOnly):
    """Marks a setting that says how the work is done, and thereby decides the last bits of what a model answers.

    As `ExecutionOnly`, but where models run its value belongs to a run's identity (`contents`), so that one set is
    never made in two ways.
    """

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "x-last-bits": True}


@dataclass(frozen=True)
class AddedLater:
    """Marks a setting that earlier versions had not: with its default, whatever that is, a run is the same as one of
    theirs, whose cells are taken over. So the default is what they did."""


@dataclass(frozen=True)
class RecordOnly:
    """Marks a setting for the record: the manifest has it, and a change of it makes nothing stale."""


@dataclass(frozen=True)
class FromPreset:
    """Marks a required setting that a preset fills in where a configuration leaves it out."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "x-from-preset": True}


AnyPath = Annotated[str, IsPath()]
NameOrPath = Annotated[str, IsPath(or_name=True)]

Marker = TypeVar("Marker", IsPath, ExecutionOnly, RecordOnly, AddedLater)
PathValue = Callable[[str, IsPath], Any]


def marker_of(field: FieldInfo, kind: type[Marker]) -> Marker | None:
    """The marker of that kind at a field or at a member of its type; None where there is none."""
    return next((mark for mark in (*field.metadata, *_metadata(field.annotation)) if isinstance(mark, kind)), None)


def settings_in(annotation: Any) -> Iterator[type[Settings]]:
    """The classes of settings in the type of a field: the class itself, the members of a union, those in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for inner in get_args(annotation):
        yield from settings_in(inner)


def _metadata(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for inner in get_args(annotation):
        yield from _metadata(inner)


def plain_values(
    settings: Settings, *, path_value: PathValue = lambda path, mark: path, contents: bool = False
) -> dict[str, Any]:
    """The settings that decide the result, as plain values with sorted keys; each path as `path_value` gives it.

    With `contents` what they name stands in place of the names (`Settings.contents`). Those for the record are there.
    """
    known = settings.contents() if contents else {}
    values = dict(known)
    for name, field in sorted(type(settings).model_fields.items()):
        execution = marker_of(field, ExecutionOnly)
        if marker_of(field, AddedLater) and getattr(settings, name) == field.get_default(call_default_factory=True):
            continue
        if name not in known and (execution is None or execution.hash_default):
            value = field.default if execution else getattr(settings, name)
            values[name] = _plain(value, marker_of(field, IsPath), path_value, contents)
    return dict(sorted(values.items()))


def _plain(value: Any, mark: IsPath | None, path_value: PathValue, contents: bool) -> Any:
    if isinstance(value, Settings):
        return plain_values(value, path_value=path_value, contents=contents)
    if isinstance(value, tuple | list):
        mark = None if mark and mark.or_name else mark
        return [_plain(item, mark, path_value, contents) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, mark, path_value, contents) for key, item in sorted(value.items())}
    return path_value(value, mark) if mark and isinstance(value, str) else value


def canonical_json(value: Any) -> str:
    """`value` as JSON that is the same text for the same content: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def fingerprint(value: Any) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
