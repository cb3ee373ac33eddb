"""Files that people write by hand: lists of words, sentences, tables in YAML; bounded, whatever a path leads to.

A device never ends, an alias in YAML may stand for thousands of others, and a number of a megabyte of digits takes
minutes. So no file is read whole before it is known that it is short, and no YAML is made values before its parts are
counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from maskmine.schemas.errors import InputError

MAX_LIST_BYTES = 50_000_000
"""The longest list: a line for each of some hundred thousand words, classes or keys."""
MAX_YAML_BYTES = 400_000
"""The longest YAML, which takes ten seconds to read."""
MAX_YAML_DEPTH = 50
MAX_YAML_VALUES = 100_000
"""Values with all aliases written out."""
_MAX_NUMBER_CHARS = 100  # of what YAML takes for a number or a date
# What PyYAML raises of a number, a date or a tag that is none, beside its own errors.
_NO_VALUE = (ValueError, LookupError, AttributeError, TypeError, OverflowError)


def read_list(path: str | Path, *, encoding: str = "utf-8", max_bytes: int = MAX_LIST_BYTES) -> str:
    """The text of a file. Raises OSError, UnicodeDecodeError, and InputError for one that is longer."""
    with open(path, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise InputError(f"{path}: longer than {max_bytes:,} bytes; is it the right file?")
    return content.decode(encoding)


def parse_yaml(text: str | bytes, *, place: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> tuple[Any, Any]:
    """The node at the top and its value. Raises YAMLError for what is no YAML, InputError beyond the limits and for a
    key that a mapping has twice, of which PyYAML would drop the first."""
    if len(text) > MAX_YAML_BYTES:
        raise InputError(f"{place}: longer than {MAX_YAML_BYTES:,} characters; is it the right file?")
    reader = loader(text)
    try:
        node = reader.get_single_node()
        if node is None:
            return None, None
        _check(node, place)
        return node, reader.construct_document(node)
    except RecursionError as error:
        raise InputError(_too_deep(place)) from error
    except _NO_VALUE as error:
        raise yaml.YAMLError(f"a value that is none: {' '.join(str(error).split())[:80]}") from error
    finally:
        reader.dispose()


def _check(top: yaml.Node, place: str) -> None:
    """Refuse what would take long to make values of: depth, the number of values, and long numbers."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()
    waiting: list[tuple[yaml.Node, Iterator[yaml.Node]]] = [(top, _inside(top))]
    while waiting:
        node, inside = waiting[-1]
        open_nodes.add(id(node))
        for inner in inside:
            if id(inner) in open_nodes:
                line = inner.start_mark.line + 1
                raise InputError(f"{place}, line {line}: an alias that holds itself; write out what is meant")
            if id(inner) not in sizes:
                waiting.append((inner, _inside(inner)))
                break
        else:
            sizes[id(node)] = 1 + sum(sizes[id(inner)] for inner in _inside(node))
            open_nodes.discard(id(node))
            waiting.pop()
            _refuse_twice(node, place)
            if sizes[id(node)] > MAX_YAML_VALUES:
                line = node.start_mark.line + 1
                raise InputError(
                    f"{place}, line {line}: more than {MAX_YAML_VALUES:,} values with all aliases written out; use "
                    "fewer aliases"
                )
        if len(waiting) > MAX_YAML_DEPTH:
            raise InputError(_too_deep(place))


def _refuse_twice(node: yaml.Node, place: str) -> None:
    first: dict[tuple[str, str], int] = {}
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode):
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in first:
                raise InputError(f"{place}, line {line}: `{key.value}` is set in line {first[name]} too; remove one")
            first[name] = line


def _inside(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif not node.tag.endswith(":str") and len(node.value) > _MAX_NUMBER_CHARS and not node.tag.endswith(":binary"):
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a number of {len(node.value):,} characters")


def _too_deep(place: str) -> str:
    return f"{place}: nested deeper than {MAX_YAML_DEPTH} levels; write it flatter"
