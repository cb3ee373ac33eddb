"""The configuration that `maskmine init` writes: what must be set, and beside it each setting with its meaning."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from maskmine.mining.sources.files import source_root
from maskmine.mining.storage.files import put_whole
from maskmine.mining.storage.locations import parse_location
from maskmine.pipelines.settings.help import json_schema, section_help
from maskmine.pipelines.settings.mining import Mining, parse_mining
from maskmine.pipelines.settings.presets import PACKAGE, with_absolute_paths
from maskmine.pipelines.settings.source_kinds import Models, SourceKind, captions_section
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection

# The models of configs/coco.yaml, which are the paper's; or those of configs/demo-models.yaml, which are included.
_DEMO, _DEMO_LICENCE = PACKAGE / "scripts" / "models", "CC-BY-SA-4.0"
_REGIONS: dict[Models, dict[str, Any]] = {
    "paper": {
        "proposals": {"kind": "maskformer", "checkpoint": "facebook/maskformer-swin-base-coco"},
        "clip": {"model": "ViT-L-14", "pretrained": "openai"},
    },
    "demo": {
        "proposals": {"kind": "maskformer", "checkpoint": str(_DEMO / "maskformer"), "licence": _DEMO_LICENCE},
        "clip": {"model": str(_DEMO / "clip"), "licence": _DEMO_LICENCE},
    },
}
# Captions of the web name much that cannot be seen.
_WEB, _WEB_NOUNS = ("img2dataset",), {"skip_words": "not_visual"}
_LOOKED_AT = 20  # images that are looked for before their folder is taken for the wrong one
_COUNTED = 16_000  # images that are counted at most
_WIDTH = 110  # columns of a comment
_FETCH_NOTE = "the images are at URLs, which are read only with `maskmine mine --fetch allow`"
_CAPTIONS_NOTE = "{:.1f} captions an image, of which the first is read; `captions.per_image: all` reads every one"
_DEMO_NOTE = (
    "the demo world's models know drawn objects only: a try of all commands without a download, whose pairs on "
    "photographs are of no use; `--models paper` for a set to keep"
)


@dataclass(frozen=True, slots=True)
class Starter:
    """What was written: the kind of the source, and what else the user should know."""

    kind: str
    notes: tuple[str, ...]


def write_starter(
    source: str,
    *,
    kind: SourceKind | None,
    to: Path,
    images: str | None,
    caption_col: str | None,
    path_col: str | None = None,
    models: Models = "paper",
    out: str | None,
    force: bool,
) -> Starter:
    """Write a configuration for the images and captions at a path. Raises InputError and writes nothing else.

    The source is opened, and its first entries are read, so that what is written can be mined.
    """
    captions = captions_section(source, kind=kind, images=images, caption_col=caption_col, path_col=path_col)
    if to.exists() and not force:
        raise InputError(f"{to}: exists; give --force to write over it, or another --to")
    files = source_root(source) if "*" in source else source
    name = Path(files).name.partition(".")[0] or "mined"
    tree: dict[str, Any] = {
        "captions": captions,
        "nouns": {"model": "en_core_web_sm", **(_WEB_NOUNS if captions["kind"] in _WEB else {})},
        "regions": _REGIONS[models],
        "vocabulary": {"templates": "vild"},
        "pairs": {"rule": "best_region_per_noun"},
        "shards": {"images_per_part": "auto"},
        "out": out or f"runs/{name}",
    }
    settings = with_absolute_paths(parse_mining(tree, place=str(to)))
    check_source(settings)
    images_found, captions_found = _count(settings)
    try:
        put_whole(to, _render(tree).encode())
    except OSError as error:
        raise InputError(f"{to}: cannot be written ({error.strerror}); give another --to") from error
    notes = [_FETCH_NOTE] if "url_col" in captions else []
    notes += [_DEMO_NOTE] if models == "demo" else []
    if settings.sources[0].per_image == 1 and captions_found > images_found:
        notes.append(_CAPTIONS_NOTE.format(captions_found / images_found))
    return Starter(captions["kind"], tuple(notes))


def check_source(settings: Mining) -> None:
    """Read the beginning of the source. Raises InputError when it cannot be mined as it is."""
    source = settings.sources[0]
    source.check()
    table = next(iter(source.read(images_per_part=settings.shards.images_in_part(None))), None)
    paths = table["path"].to_pylist()[:_LOOKED_AT] if table is not None else []
    if getattr(source, "path_col", None) and not any(path and os.path.exists(path) for path in paths):
        first = parse_location(paths[0])
        why = first.detail if isinstance(first, Rejection) else paths[0]
        raise InputError(
            f"{source.location}: none of its first images is there ({why}); give the folder that their paths "
            "start from by --images DIR"
        )
    column = getattr(source, "caption_col", None)
    captions = table["caption"].drop_null().to_pylist() if table is not None else []
    if column and captions and not any(captions):
        raise InputError(
            f"{source.location}: none of its first {len(captions):,} records has a caption in `{column}`; "
            "give --caption-col NAME"
        )


def _count(settings: Mining) -> tuple[int, int]:
    """How many images the source has, and captions of them; of a large source, its first ones."""
    image_ids: set[str] = set()
    captions = 0
    for table in settings.sources[0].read(images_per_part=settings.shards.images_in_part(None)):
        image_ids.update(table["image_id"].to_pylist())
        captions += len(table) - table["caption"].null_count
        if len(image_ids) >= _COUNTED:
            break
    return len(image_ids), captions


def _render(tree: Mapping[str, Any]) -> str:
    schema = json_schema(Mining, name="mine")
    head = [
        f"# yaml-language-server: $schema={(PACKAGE / 'configs' / 'schema' / 'mine.json').as_posix()}",
        "# Written by `maskmine init`. A line that begins with `# key:` shows a default; remove the `# ` to change it.",
        "# `maskmine settings SECTION` lists what else there is, such as `maskmine settings regions.proposals`.",
    ]
    return "\n".join([*head, *_section(schema, "", tree, indent="")]) + "\n"


def _section(schema: dict[str, Any], section: str, values: Mapping[str, Any], *, indent: str) -> Iterator[str]:
    """The lines of a section: what is given as settings, the other plain settings as comments with their defaults."""
    tag = values.get("kind") or values.get("rule")
    for setting in section_help(schema, f"{section}.{tag}" if tag else section):
        name = f"{section}.{setting.key}" if section else setting.key
        value = values.get(setting.key)
        if isinstance(value, dict):
            yield from ([""] if not indent else [])
            yield from _comment(setting.description, indent)
            yield f"{indent}{setting.key}:"
            yield from _section(schema, name, value, indent=f"{indent}  ")
        elif setting.key in values:
            yield from ([""] if not indent else [])
            yield from _comment(setting.description, indent)
            yield f"{indent}{setting.key}: {_yaml(value)}"
        elif setting.type.startswith("section") or setting.default == "see there":
            yield f"{indent}# {setting.key}: see `maskmine settings {name}`"
        else:
            yield from _comment(setting.description, indent)
            yield f"{indent}# {setting.key}: {setting.default}"


def _comment(text: str, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(text, _WIDTH - len(indent), break_on_hyphens=False):
        yield f"{indent}# {line}"


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()  # which marks the end of a document that is a single value
