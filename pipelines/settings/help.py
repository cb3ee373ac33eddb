"""What there is to set: a JSON schema of each configuration, and from it the settings of a section for people.

A section is named as in `--set`, with the `kind` or `rule` of a choice where it has one: `regions.proposals.sam`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import Settings
from maskmine.tuning.console import TextTable

Node = dict[str, Any]

_TYPES = {"string": "text", "integer": "integer", "number": "number", "boolean": "true | false", "null": "null"}
_SUGGESTED = 3  # names that are offered for an unknown section


@dataclass(frozen=True, slots=True)
class SettingHelp:
    """A setting, or a choice of a section; `default` is None where a value is required or where there is none."""

    key: str
    type: str
    default: str | None
    description: str
    required: bool = False


def json_schema(of: type[Settings], *, name: str) -> Node:
    """The JSON schema (2020-12) of a configuration, for editors and for `maskmine settings`."""
    schema = of.model_json_schema()
    for node in (schema, *schema.get("$defs", {}).values()):
        required = [key for key in node.get("required", ()) if "x-from-preset" not in node["properties"][key]]
        if "required" in node:
            node["required"] = required
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": f"Configuration of `maskmine {name}`",
    }


def schema_text(of: type[Settings], *, name: str) -> str:
    """The JSON schema as it is printed and stored in configs/schema."""
    return json.dumps(json_schema(of, name=name), indent=1, ensure_ascii=False) + "\n"


def section_help(schema: Node, section: str) -> list[SettingHelp]:
    """The settings of a section, the choices of one that has a `kind` or `rule`, or the one setting of that name.

    Raises InputError for an unknown section, with the names most like it.
    """
    nodes, setting = _objects(schema, schema), None
    for part in filter(None, section.split(".")):
        chosen = [node for node in nodes if part in _tags(node)] if len(nodes) > 1 else []
        fields = [(node, node["properties"][part]) for node in nodes if part in node["properties"]]
        if not (chosen or fields):
            raise InputError(f"{section}: unknown section of the settings; {_did_you_mean(schema, section)}")
        setting = None if chosen else _setting(schema, part, *fields[0])
        nodes = chosen or [inner for _, field in fields for inner in _objects(schema, field)]
    if len(nodes) > 1:
        return [_choice(node) for node in nodes]
    if nodes:
        return [_setting(schema, key, nodes[0], field) for key, field in nodes[0]["properties"].items()]
    return [setting] if setting else []


def render_help(settings: list[SettingHelp]) -> TextTable:
    """The settings of a section as a table."""
    table = TextTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, ratio in (("setting", None), ("type", 2), ("default", 1), ("what it does", 5)):
        table.add_column(name, ratio=ratio, overflow="fold", no_wrap=ratio is None)
    for setting in settings:
        default = "required" if setting.required else setting.default or ""
        table.add_row(setting.key, setting.type, default, setting.description)
    return table


def _objects(schema: Node, node: Node) -> list[Node]:
    """The sections that a setting may hold: itself, the members of a union, or the elements of a list."""
    node = _resolved(schema, node)
    if "properties" in node:
        return [node]
    inner = [*node.get("anyOf", ()), *node.get("oneOf", ()), node.get("items"), node.get("additionalProperties")]
    objects = [found for part in inner if isinstance(part, dict) for found in _objects(schema, part)]
    return [node for i, node in enumerate(objects) if node not in objects[:i]]


def _resolved(schema: Node, node: Node) -> Node:
    if "$ref" not in node:
        return node
    target: Node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return target


def _tags(node: Node) -> list[str]:
    tag = node["properties"].get("kind") or node["properties"].get("rule") or {}
    return [tag["const"]] if "const" in tag else list(tag.get("enum", ()))


def _choice(node: Node) -> SettingHelp:
    return SettingHelp(" | ".join(_tags(node)), "section", None, _text(node))


def _setting(schema: Node, key: str, parent: Node, field: Node) -> SettingHelp:
    keeps_cells = field.get("x-execution-only") and field.get("format") != "path"
    objects = _objects(schema, field)
    default = None if "default" not in field else _shown(field["default"])
    if objects and default not in (None, "null"):
        default = "see there"
    return SettingHelp(
        key,
        _type(schema, field),
        "preset" if field.get("x-from-preset") else default,
        _text(field) + (" (A change makes nothing stale.)" if keeps_cells else ""),
        required=key in parent.get("required", ()),
    )


def _text(node: Node) -> str:
    return " ".join(str(node.get("description", "")).split())


def _type(schema: Node, node: Node) -> str:
    if "enum" in node:
        return " | ".join(map(str, node["enum"]))
    if "const" in node:
        return str(node["const"])
    objects = _objects(schema, node)
    if "$ref" in node or (objects and "oneOf" in node):
        return "section" if len(objects) == 1 else f"section, by {_discriminator(node)}"
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_type(schema, inner) for inner in node["anyOf"]))
    if node.get("type") == "array":
        inner = node.get("items") or (node.get("prefixItems") or [{}])[0]
        return f"list of {_type(schema, inner)}"
    if node.get("type") == "object":
        inner = node.get("additionalProperties")
        return f"names, each with {_type(schema, inner)}" if isinstance(inner, dict) else "section"
    if node.get("format") == "path":
        return "path"
    return "name or path" if "x-name-or-path" in node else _TYPES.get(node.get("type", ""), "value") + _range(node)


def _discriminator(node: Node) -> str:
    inner = next((part for part in node.get("oneOf", ()) if "discriminator" in part), node)
    return str(inner.get("discriminator", {}).get("propertyName", "kind"))


def _range(node: Node) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and high is not None:
        return f" {low:,}–{high:,}"
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return "".join(f" {sign} {node[name]:,}" for name, sign in limits.items() if name in node)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _did_you_mean(schema: Node, section: str) -> str:
    names = [name for name in _names(schema, schema) if name != section]
    ending = [name for name in names if name.endswith(f".{section}")]
    near = ending[:_SUGGESTED] or difflib.get_close_matches(section, names, n=_SUGGESTED)
    if near:
        return f"did you mean {' or '.join(f'`{name}`' for name in near)}?"
    return f"known here: {', '.join(name for name in names if '.' not in name)}"


def _names(schema: Node, node: Node, before: str = "") -> Iterator[str]:
    objects = _objects(schema, node)
    for inner in objects:
        prefix = before
        if len(objects) > 1:
            yield from (f"{before}{tag}" for tag in _tags(inner))
            prefix = f"{before}{_tags(inner)[0]}."
        for key, field in inner["properties"].items():
            yield f"{prefix}{key}"
            yield from _names(schema, field, f"{prefix}{key}.")
