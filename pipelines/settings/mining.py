"""The settings of a mining run: one YAML file, one typed tree, and a message with its path for every fault."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from maskmine.mining.captioners.kinds import AnyCaptioner
from maskmine.mining.captions import AnySource, SomeSources, source_name
from maskmine.mining.checks import Checks
from maskmine.mining.levels import Levels
from maskmine.mining.negatives import Negatives
from maskmine.mining.nouns import Nouns
from maskmine.mining.pairs import ClipPairs, LabelPairs
from maskmine.mining.regions import Regions
from maskmine.mining.selection import CHECKED
from maskmine.mining.shards import Shards
from maskmine.mining.storage.bounded.limits import Limits
from maskmine.mining.storage.bounded.small_files import MAX_YAML_BYTES, parse_yaml, read_list
from maskmine.mining.vocabulary import Vocabulary
from maskmine.pipelines.settings.faults import FROM_PYTHON, OVERRIDDEN, given_from_python, settings_error
from maskmine.pipelines.settings.licences import Licences
from maskmine.pipelines.settings.presets import AnySettings, find_config, with_absolute_paths
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import AddedLater, AnyPath, ExecutionOnly, Settings


class Mining(Settings):
    """The whole of a mining run."""

    captions: SomeSources
    """Where captions and images come from: one source, or a list of several. `kind` chooses the format, or the model
    that writes captions for the images of the others."""
    nouns: Nouns = Nouns()
    """How nouns are found in captions."""
    regions: Regions
    """Which regions of an image can be named."""
    vocabulary: Vocabulary = Vocabulary()
    """How nouns are embedded by CLIP."""
    levels: Levels = Levels()
    """How it is measured what a noun's similarities mean; without CLIP it is not."""
    pairs: Annotated[ClipPairs | LabelPairs, Field(discriminator="rule")] = ClipPairs()
    """How nouns and regions are matched, and which pairs are written; `rule` chooses how."""
    checks: Annotated[Checks | None, AddedLater()] = None
    """A verifier that looks at every pair before it is written: `presence` and `agreement` of the samples, and what
    `pairs.min_presence` and `pairs.min_agreement` filter by. null: none does, and no model runs for it."""
    negatives: Annotated[Negatives | None, AddedLater()] = None
    """Nouns that an image does not show, near to what its captions say: `negatives` of its samples. They are measured
    with the levels of nouns, so they need CLIP. null: none, and the set is as it always was."""
    shards: Shards = Shards()
    """How samples are written."""
    licences: Licences = Licences()
    """Licences of captions and images, for the record and for exports."""
    limits: Annotated[Limits, ExecutionOnly()] = Limits()
    """How much of one thing captions may hold; they keep a small file from taking all memory, or for ever."""
    max_rejected: Annotated[float, ExecutionOnly(), Field(ge=0, le=1)] = 0.25
    """Share of images, 0–1, that may be rejected for a fault (a file missing, broken or refused, a worker lost) before
    the run ends with exit code 3. Images in which nothing was found are counted by `max_empty`."""
    max_empty: Annotated[float | None, ExecutionOnly(), Field(ge=0, le=1)] = None
    """Share of images, 0–1, that may come to nothing (no caption, noun, mask or match, or no pair after the filters)
    before the run ends with exit code 3; null for no limit."""
    out: Annotated[AnyPath, ExecutionOnly()]
    """Folder of the run, on a disk or an object store. Run the same command again to continue it."""

    @property
    def sources(self) -> tuple[AnySource, ...]:
        """The caption sources in their order, also when there is but one; without captioners, which list no images."""
        return tuple(one for one in self._all_captions if not isinstance(one, AnyCaptioner))

    @property
    def captioners(self) -> tuple[AnyCaptioner, ...]:
        """The models that write captions, in their order."""
        return tuple(one for one in self._all_captions if isinstance(one, AnyCaptioner))

    @property
    def _all_captions(self) -> tuple[AnySource | AnyCaptioner, ...]:
        return self.captions if isinstance(self.captions, tuple) else (self.captions,)

    @model_validator(mode="after")
    def _sources_have_names_of_their_own(self) -> Mining:
        names = [source_name(one) for one in self._all_captions]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"two of `captions` are called `{twice}`; give each a `name` of its own")
        return self

    @model_validator(mode="after")
    def _images_for_captioners(self) -> Mining:
        if not self.sources:
            kind = self.captioners[0].kind
            raise ValueError(
                f"`captions` names no images: `kind: {kind}` writes captions for the images of other sources; make it "
                "a list with a source beside it, such as {kind: folder, files: FOLDER}"
            )
        return self

    @model_validator(mode="after")
    def _embeddings_where_the_rule_needs_them(self) -> Mining:
        if isinstance(self.pairs, ClipPairs) and self.regions.clip is None:
            raise ValueError(f"`pairs.rule: {self.pairs.rule}` needs `regions.clip`; add it, or use `rule: labels`")
        return self

    @model_validator(mode="after")
    def _checks_where_a_filter_needs_them(self) -> Mining:
        needing = [f"pairs.min_{name}" for name in CHECKED if getattr(self.pairs, f"min_{name}") is not None]
        if needing and self.checks is None:
            raise ValueError(f"`{needing[0]}` needs a verifier; set `checks.verifier`, or leave it out")
        return self

    @model_validator(mode="after")
    def _levels_where_negatives_need_them(self) -> Mining:
        if self.negatives is not None and not isinstance(self.pairs, ClipPairs):
            raise ValueError(
                "`negatives` needs the levels of nouns, which `pairs.rule: labels` does not measure; use another rule, "
                "or leave it out"
            )
        return self


Overrides = Sequence[str] | Mapping[str, Any]
"""Changed settings: `a.b=c` as of `--set`, where the value is YAML; or from Python, plain values by their names."""


def load_mining(config: str | Mapping[str, Any], *, overrides: Overrides = ()) -> Mining:
    """Read a configuration file and apply overrides.

    `config` is a file, the name of a packaged preset, or a tree of plain values. Local paths become absolute, so that
    the run folder can be used from anywhere. Raises SettingsError, an InputError, with the place of each fault and what
    was expected there.
    """
    tree, lines, package = _read_tree(config, overrides, of=Mining)
    if isinstance(tree.get("pairs"), dict):
        tree["pairs"].setdefault("rule", "best_region_per_noun")
    if isinstance(tree.get("captions"), dict) and "annotations" in tree["captions"]:  # which no other kind has
        tree["captions"].setdefault("kind", "coco")
    return with_absolute_paths(parse_mining(tree, place=_place(config), lines=lines), package=package)


def load_settings(
    of: type[AnySettings], config: str | Mapping[str, Any] | None, *, overrides: Overrides = ()
) -> AnySettings:
    """`load_mining` for settings of another kind, such as those of a tuning; without a file, their defaults."""
    tree, lines, package = _read_tree(config, overrides, of=of)
    return with_absolute_paths(_parse(of, tree, place=_place(config), lines=lines), package=package)


def _place(config: str | Mapping[str, Any] | None) -> str:
    return config if isinstance(config, str) else "settings"


def read_settings(config: str | Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a configuration as it has them, not checked. Raises InputError when it cannot be read."""
    return _read_tree(config, (), of=Mining)[0]


def top_settings(config: str) -> frozenset[str]:
    """The names of the settings at the top of a configuration, of whatever command. Raises InputError."""
    return frozenset(map(str, _read_tree(config, (), of=None)[0]))


def parse_mining(tree: Mapping[str, Any], *, place: str, lines: Mapping[str, int] | None = None) -> Mining:
    """Check a tree of plain values; `place` is named in the message, with the line where `lines` knows it."""
    return _parse(Mining, tree, place=place, lines=lines or {})


_OF_ANOTHER_COMMAND = 3  # unknown sections, more than known ones
_EXPECTED = "give a configuration in YAML, such as `maskmine init --from PATH` writes for images and captions"


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-1` is a number, as it is in YAML 1.2 and in JSON."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: the text "1e-1" in quotes."""


# Numbers with an exponent and without a point: https://yaml.org/spec/1.2.2/#1032-tag-resolution
for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+"), list("-+0123456789")
    )


def _parse(of: type[AnySettings], tree: Mapping[str, Any], *, place: str, lines: Mapping[str, int]) -> AnySettings:
    try:
        return of.model_validate(tree)
    except ValidationError as error:
        unknown = [name for name in map(str, tree) if name not in of.model_fields]
        if len(unknown) >= _OF_ANOTHER_COMMAND and len(unknown) > len(tree) / 2:
            raise InputError(
                f"{place}: a configuration of another command, it seems: {', '.join(unknown)} are unknown here, where "
                f"{', '.join(of.model_fields)} can be set"
            ) from error
        raise settings_error(error, place=place, lines=lines, of=of) from error


def dump_yaml(settings: Settings) -> str:
    """The resolved settings as YAML, every default written out."""
    return yaml.dump(settings.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _read_tree(
    config: str | Mapping[str, Any] | None, overrides: Overrides, *, of: type[Settings] | None
) -> tuple[dict[str, Any], dict[str, int], Path | None]:
    """The tree of plain values with the overrides, the line of each setting, and the package for a packaged preset."""
    package: Path | None = None
    tree: dict[str, Any] = {}
    lines: dict[str, int] = {}
    if isinstance(config, str):
        file, package = find_config(config, of)
        tree, lines = _read_yaml(file, config)
    elif config is not None:
        tree = copy.deepcopy(dict(config))
    for name, value, given in _changes(overrides):
        _apply(tree, name, value, given=given)
        lines = {inner: line for inner, line in lines.items() if not f"{inner}.".startswith(f"{name}.")}
        lines[name] = FROM_PYTHON if isinstance(overrides, Mapping) else OVERRIDDEN
    return tree, lines, package


def _read_yaml(file: Path, config: str) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        text = read_list(file, encoding="utf-8-sig", max_bytes=MAX_YAML_BYTES)
        node, tree = parse_yaml(text, place=config, loader=_Loader)
        lines = dict(_lines(node))
    except (OSError, UnicodeDecodeError) as error:
        what = "is a folder" if file.is_dir() else "cannot be read as a text file"
        raise InputError(f"{config}: {what}; {_EXPECTED}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{config}: {_yaml_fault(error)}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{config}: has no settings (`key: value`); {_EXPECTED}")
    return tree, lines


def _yaml_fault(error: yaml.YAMLError) -> str:
    """What is wrong, in which line, and what to look for there."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"not valid YAML: {' '.join(str(error).split())}"
    what = " ".join(str(part) for part in (error.context, error.problem) if part)  # type: ignore[attr-defined]
    return (
        f"not valid YAML, line {mark.line + 1}, column {mark.column + 1}: {what}; look there and in the line above for "
        "spaces at the beginning (no tabs), a missing `: ` after a key, or a bracket or quote that is not closed"
    )


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


def _changes(overrides: Overrides) -> Iterator[tuple[str, Any, str]]:
    """The name of each changed setting, its value, and how it was given."""
    if isinstance(overrides, Mapping):
        for name, value in overrides.items():
            given = given_from_python(name)
            if not all(name.split(".")):
                raise InputError(f"{given}: expected the name of a setting, such as pairs.min_similarity")
            yield name, value, given
        return
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not all(name.split(".")):
            raise InputError(f"--set {override}: expected key=value, such as --set pairs.min_similarity=0.2")
        try:
            _, value = parse_yaml(text, place=f"--set {name}", loader=_Loader)
        except yaml.YAMLError as error:
            raise InputError(f"--set {override}: the value is not valid YAML; use quotes around a text") from error
        yield name, value, f"--set {override}"


def _apply(tree: dict[str, Any], name: str, value: Any, *, given: str) -> None:
    """Change a setting in the tree."""
    *parents, last = name.split(".")
    for parent in parents:
        inner = tree.get(parent)
        if inner is None:  # absent, or switched off by null
            inner = tree[parent] = {}
        if not isinstance(inner, dict):
            raise InputError(f"{given}: `{parent}` is a value, and has no settings of its own")
        tree = inner
    tree[last] = value
