"""Ids and captions in the types that tables and JSON files have them in, as text.

Bytes are text in an encoding, UTF-8 by default, and raise UnicodeDecodeError where they are not.
"""

from __future__ import annotations

import ast
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

# Of a record, the fields that a caption stands in, the most telling first: COCO and Karpathy's splits have `raw`,
# LLaVA's turns `value`, messages `content`.
_CAPTION_FIELDS = ("raw", "caption", "captions", "text", "sentence", "sentences", "value", "content", "description")
_SPEAKERS = ("from", "role")  # of a turn of a conversation
_ASKING = frozenset({"human", "user", "system", "instruction", "tool"})
_LISTED = re.compile(r"\[\s*['\"{].*['\"}]\s*\]", re.DOTALL)
_MAX_LISTED_CHARS = 1_000_000
_MOST_TEXTS, _DEEPEST = 1_024, 100  # captions of one record that are read, and lists around them
_NO_VALUE = frozenset({"", "nan", "null", "none", "<na>", "#n/a"})
_FLOAT = re.compile(r"[+-]?\d+\.0+|[+-]?\d(?:\.\d+)?[eE][+-]\d+")  # as programs write them for whole numbers
_UUID_BYTES = 16
_DIGEST_BYTES = (12, 20, 32, 64)  # MongoDB's ids; SHA-1, SHA-256 and SHA-512


def id_text(value: Any, *, encoding: str = "utf-8") -> str | None:
    """An id as text: a whole number in any type (1.0 is `1`), a text, a UUID, or bytes of one of these.

    None for anything else, and for a float that is too large to tell whole numbers apart.
    """
    if isinstance(value, bytes):
        return _id_of_bytes(value, encoding=encoding)
    if isinstance(value, str):
        return value or None
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | np.floating):
        exact = float(value)
        return str(int(exact)) if exact.is_integer() and abs(exact) < _exact_limit(value) else None
    if isinstance(value, Decimal):
        return str(int(value)) if value.is_finite() and value == value.to_integral_value() else None
    return None


def typeless(value: Any) -> Any:
    """A field of a file without types: None for the ways in which programs write that there is no value."""
    return None if isinstance(value, str) and value.strip().lower() in _NO_VALUE else value


def typeless_id(value: Any) -> Any:
    """An id of a file without types: pandas writes a column of numbers with gaps as 1.0, 2.0, and 1e+16 above."""
    value = typeless(value)
    return float(value) if isinstance(value, str) and _FLOAT.fullmatch(value.strip()) else value


def parquet_values(column: pa.Array) -> list[Any]:
    """The values; texts that are no UTF-8 as bytes, short floats as numpy's, which know how exact they are."""
    if pa.types.is_float16(column.type) or pa.types.is_float32(column.type):
        exact = np.float16 if pa.types.is_float16(column.type) else np.float32
        return [None if value is None else exact(value) for value in column.to_pylist()]
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return list(column.cast(_as_binary(column.type)).to_pylist())


def shown(value: Any) -> str:
    """A value in a message, in few characters."""
    value = float(value) if isinstance(value, np.floating) else value
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def texts_in(value: Any, *, encoding: str = "utf-8") -> list[str]:
    """The captions in a field; one that is missing or no text is empty, so there is at least one.

    A field holds a text, a list of texts (also as the JSON or Python list that a text spells out), or records with one
    of `raw`, `caption`, `text`, … in them. Of a conversation the answers are taken, not what was asked; of more than a
    thousand texts the first.
    """
    return list(islice(_texts(value, encoding), _MOST_TEXTS)) or [""]


def _texts(value: Any, encoding: str, depth: int = 0) -> Iterator[str]:
    if depth > _DEEPEST:
        yield ""
        return
    if isinstance(value, bytes):
        value = value.decode(encoding)
    if isinstance(value, str):
        listed = _spelt_list(value)
        if listed is None:
            yield value
            return
        value = listed
    if isinstance(value, list | tuple | np.ndarray):
        turns = [one for one in value if not _asks(one)]
        for one in turns:
            yield from _texts(one, encoding, depth + 1)
    elif isinstance(value, Mapping):
        field = next((name for name in _CAPTION_FIELDS if value.get(name) is not None), None)
        if field is not None:
            yield from _texts(value[field], encoding, depth + 1)
        elif "type" not in value:  # parts of a message that are no text, such as its image, are no captions
            yield ""
    else:
        yield ""


def _asks(value: Any) -> bool:
    """Whether a record is a turn of a conversation that asks, and so says nothing of the image."""
    return isinstance(value, Mapping) and any(value.get(name) in _ASKING for name in _SPEAKERS)


def _spelt_list(text: str) -> list[Any] | None:
    """The list that a text spells out in JSON or Python, as CSV files hold lists; None for any other text."""
    text = text.strip()
    if len(text) > _MAX_LISTED_CHARS or not _LISTED.fullmatch(text):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, list) and all(isinstance(one, str | dict) for one in value) else None
    return None


def _id_of_bytes(value: bytes, *, encoding: str) -> str | None:
    """Bytes are a text, else a UUID or a digest by their length."""
    try:
        text = value.decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    if not text or text.isprintable():
        return text or None
    if len(value) == _UUID_BYTES:
        return str(uuid.UUID(bytes=value))
    if len(value) in _DIGEST_BYTES:
        return value.hex()
    return value.decode(encoding)


def _exact_limit(value: float | np.floating[Any]) -> float:
    """The first whole number that a float of this type does not tell from the next."""
    bits = np.finfo(type(value)).nmant + 1 if isinstance(value, np.floating) else np.finfo(float).nmant + 1
    return float(2**bits)


def _as_binary(kind: pa.DataType) -> pa.DataType:
    """A type with bytes in place of texts."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_as_binary(kind.value_type))
    if pa.types.is_dictionary(kind):
        return _as_binary(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([(kind.field(n).name, _as_binary(kind.field(n).type)) for n in range(kind.num_fields)])
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return pa.large_binary() if is_text else kind
