"""The settings of a run: one YAML file, one typed tree, and an answer with its place for every fault in it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from mining.captions import AnySource, SomeSources, source_name
from mining.licences import Licences
from mining.nouns import Nouns
from mining.pairs import ClipPairs, LabelPairs
from mining.regions import Regions
from mining.shards import Shards
from mining.stores import plain_path, scheme_of
from mining.vocabulary import Vocabulary
from schemas.errors import InputError
from schemas.settings import Settings


class Mining(Settings):
    """The whole of a mining run. `max_rejected` is the share of images that may be rejected (0–1; filters apart)."""

    captions: SomeSources
    nouns: Nouns = Nouns()
    regions: Regions
    vocabulary: Vocabulary = Vocabulary()
    pairs: Annotated[ClipPairs | LabelPairs, Field(discriminator="rule")] = ClipPairs()
    shards: Shards = Shards()
    licences: Licences = Licences()
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.25
    out: str

    @property
    def sources(self) -> tuple[AnySource, ...]:
        """The caption sources in their order, also when there is but one."""
        return self.captions if isinstance(self.captions, tuple) else (self.captions,)

    @model_validator(mode="after")
    def _sources_have_names_of_their_own(self) -> Mining:
        names = [source_name(source) for source in self.sources]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"two of `captions` are called `{twice}`; give each a `name` of its own")
        return self

    @model_validator(mode="after")
    def _embeddings_where_the_rule_needs_them(self) -> Mining:
        if isinstance(self.pairs, ClipPairs) and self.regions.clip is None:
            raise ValueError(f"`pairs.rule: {self.pairs.rule}` needs `regions.clip`; add it, or use `rule: labels`")
        return self


AnySettings = TypeVar("AnySettings", bound=Settings)

# These name files or folders of the user, whatever they look like.
_PATH_KEYS = {"annotations", "images", "segments", "out", "folder", "files", "weights"}


def load_mining(config: str, *, overrides: Sequence[str] = ()) -> Mining:
    """Read a configuration file and apply `a.b=c` overrides (the value is YAML).

    Local paths become absolute, so that the run folder can be used from anywhere. Raises InputError with the place
    of the first fault and what was expected there.
    """
    tree, lines = _read_tree(config, overrides)
    if isinstance(tree.get("pairs"), dict):
        tree["pairs"].setdefault("rule", "best_region_per_noun")
    if isinstance(tree.get("captions"), dict):
        tree["captions"].setdefault("kind", "coco")
    return parse_mining(tree, place=config, lines=lines)


def load_settings(of: type[AnySettings], config: str | None, *, overrides: Sequence[str] = ()) -> AnySettings:
    """`load_mining` for settings of another kind, such as those of a tuning; without a file, their defaults."""
    tree, lines = _read_tree(config, overrides)
    return _parse(of, tree, place=config or "settings", lines=lines)


def parse_mining(tree: Mapping[str, Any], *, place: str, lines: Mapping[str, int] | None = None) -> Mining:
    """Check a tree of plain values; `place` is named in the message, with the line where `lines` knows it."""
    return _parse(Mining, tree, place=place, lines=lines or {})


def _parse(of: type[AnySettings], tree: Mapping[str, Any], *, place: str, lines: Mapping[str, int]) -> AnySettings:
    try:
        return of.model_validate(tree)
    except ValidationError as error:
        raise InputError(_first_fault(error, place, lines, of=of)) from error


def dump_yaml(settings: Settings) -> str:
    """The resolved settings as YAML, every default written out."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_tree(config: str | None, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, int]]:
    tree, lines = ({}, {}) if config is None else _read_yaml(config)
    for override in overrides:
        _apply(tree, override)
    return _absolute_paths(tree), lines


def _read_yaml(config: str) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        text = Path(config).read_text(encoding="utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise InputError(
            f"{config}: no such file; give the path of a configuration, such as configs/coco.yaml"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{config}: cannot be read as a text file; give the path of a configuration in YAML"
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"{config}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{config}: a configuration is a mapping, such as those in configs/")
    return tree, dict(_lines(node))


def _lines(node: Any, place: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = f"{place}.{key.value}" if place else str(key.value)
            yield inner, key.start_mark.line + 1
            yield from _lines(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield f"{place}.{number}", value.start_mark.line + 1
            yield from _lines(value, f"{place}.{number}")


def _apply(tree: dict[str, Any], override: str) -> None:
    place, equals, text = override.partition("=")
    if not equals or not all(place.split(".")):
        raise InputError(f"--set {override}: expected key=value, such as --set pairs.min_similarity=0.2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: the value is not valid YAML") from error
    *parents, last = place.split(".")
    for name in parents:
        inner = tree.get(name)
        if inner is None:  # absent, or switched off by null
            inner = tree[name] = {}
        if not isinstance(inner, dict):
            raise InputError(f"--set {override}: `{name}` is a value, and has no settings of its own")
        tree = inner
    tree[last] = value


def _absolute_paths(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _absolute_paths(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list) and key == "captions":
        return [_absolute_paths(inner) for inner in value]
    if isinstance(value, str) and value and scheme_of(value) == "file":
        expanded = os.path.expanduser(plain_path(value))
        if key in _PATH_KEYS or ("/" in value and os.path.exists(expanded)):
            return os.path.abspath(expanded)
    return value


def _first_fault(error: ValidationError, place: str, lines: Mapping[str, int], *, of: type[Settings]) -> str:
    faults = error.errors(include_url=False)
    # A misspelt key is the cause of the missing one beside it, so it is named first.
    fault = min(faults, key=lambda f: f["type"] != "extra_forbidden")
    path = [str(part) for part in fault["loc"] if not _is_tag(part, fault["loc"])]
    name = ".".join(path)
    line = lines.get(name) or lines.get(".".join(path[:-1]))
    where = f"{place}, line {line}: {name}" if line else f"{place}: {name}"
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown setting{_did_you_mean(path, of)}"
    if fault["type"] == "missing":
        return f"{where}: missing; add it"
    if fault["type"] == "union_tag_invalid":
        context = fault["ctx"]
        known = context["expected_tags"].replace("'", "")
        return (
            f"{where}: {context['discriminator'].strip(chr(39))} `{context['tag']}` is unknown; choose one of {known}"
        )
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":  # our own words, which name what was given
        return f"{where}: {message}" if name else f"{place}: {message}"
    return f"{where}: {message[0].lower()}{message[1:]}, not {_shown(fault.get('input'))}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


# The names of union members that pydantic puts into a fault's location.
_TAGS = {
    *("best_region_per_noun", "mutual_best", "one_to_one", "labels"),
    *("maskformer", "open_maskformer", "sam", "detectron2", "ground_truth"),
    *("instances", "crops", "semantic"),
    *("one source", "sources", "coco", "img2dataset", "parquet", "jsonl", "csv", "tsv", "hf", "folder", "run"),
    *("int", "float"),
}


def _is_tag(part: Any, location: tuple[Any, ...]) -> bool:
    return location.index(part) > 0 and (
        part in _TAGS or str(part).startswith(("constrained-", "literal[", "function-"))
    )


def _did_you_mean(path: Sequence[str], of: type[Settings]) -> str:
    """The known settings beside the misspelt one, the nearest first."""
    known = sorted(_known_settings(of, path[:-1]))
    near = difflib.get_close_matches(path[-1], known, n=1)
    return f"; did you mean `{near[0]}`?" if near else f"; known here: {', '.join(known)}"


def _known_settings(model: Any, path: Sequence[str]) -> set[str]:
    if not path:
        return set(model.model_fields)
    if path[0].isdecimal():  # one of a list, whose members are of this model
        return _known_settings(model, path[1:])
    field = model.model_fields.get(path[0])
    members = _settings_in(field.annotation) if field else []
    return set().union(*[_known_settings(member, path[1:]) for member in members]) if members else set()


def _settings_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in _settings_in(inner)]
