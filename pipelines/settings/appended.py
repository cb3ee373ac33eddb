"""What is appended to a set: the `captions` of a configuration, or found out from the files as `maskmine init` does."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from maskmine.pipelines.settings.mining import Mining, load_mining, parse_mining, read_settings
from maskmine.pipelines.settings.presets import with_absolute_paths
from maskmine.pipelines.settings.source_kinds import SourceKind, captions_section
from maskmine.pipelines.settings.starter import check_source
from maskmine.schemas.errors import InputError

# What `maskmine init` calls things, and what `append` does.
_WORDS = {
    "--from:": "--captions:",
    "the configuration": "a --config",
    "give one of ": "give --kind, one of ",
    "if it is another kind, give that": "if it is another kind, give --kind",
    "give the kind `hugging_face`": "give --kind hugging_face",
}


def captions_to_append(
    run: Mining,
    *,
    captions: str | None = None,
    kind: SourceKind | None = None,
    images: str | None = None,
    caption_col: str | None = None,
    path_col: str | None = None,
    config: str | Mapping[str, Any] | None = None,
) -> Any:
    """The caption sources to append to a run of these settings, as plain values with absolute paths.

    What is found out takes as many captions of an image as the run does, and has its source's name where both are of
    one kind. Models that write captions for the run write them for these images too. Raises InputError when both or
    neither of `captions` and `config` is given, when the files are of no known kind, or when a configuration has other
    settings than the run.
    """
    if (captions is None) == (config is None):
        raise InputError("append: give --captions with a file or folder, or --config with `captions:`, and not both")
    tree = json.loads(json.dumps(run.model_dump(mode="json")))
    if config is not None:
        if images or kind or caption_col or path_col:
            raise InputError("append: --config says all of the source; leave --images, --kind and columns out")
        place = config if isinstance(config, str) else "settings"
        asked = with_absolute_paths(parse_mining({**tree, **_given(config, place=place)}, place=place), package=None)
        _refuse_other_settings(run, asked, place=place)
    else:
        found = _found(str(captions), kind=kind, images=images, caption_col=caption_col, path_col=path_col)
        asked = load_mining({**tree, "captions": {**_like(run, found), **found}})
        check_source(asked)
    sources = [source.model_dump(mode="json") for source in asked.sources]
    return json.loads(json.dumps(sources if isinstance(asked.captions, tuple) else sources[0]))


def _given(config: str | Mapping[str, Any], *, place: str) -> dict[str, Any]:
    """The settings of a configuration that count: `out` is the run's. Raises InputError without `captions`."""
    tree = read_settings(config)
    if "captions" not in tree:
        raise InputError(f"{place}: has no `captions`; say what to append")
    return {name: value for name, value in tree.items() if name != "out"}


def _found(source: str, *, kind: SourceKind | None, **named: Any) -> dict[str, Any]:
    try:
        return captions_section(source, kind=kind, **named)
    except InputError as error:
        text = str(error)
        for of_init, here in _WORDS.items():
            text = text.replace(of_init, here)
        if kind is None and "--kind" not in text and os.path.exists(source):
            text += " (if it is of another kind than its name says, give --kind)"
        raise InputError(text) from error


def _like(run: Mining, found: Mapping[str, Any]) -> dict[str, Any]:
    """What the run says of its own sources that holds for further ones."""
    per_image = {source.per_image for source in run.sources}
    names = {source.name for source in run.sources if source.kind == found["kind"]}
    alike: dict[str, Any] = {"per_image": per_image.pop()} if len(per_image) == 1 else {}
    return alike | ({"name": names.pop()} if len(names) == 1 else {})


def _refuse_other_settings(run: Mining, asked: Mining, *, place: str) -> None:
    """Raises InputError when a configuration asks for anything else than the run was mined with."""
    names = (name for name in Mining.model_fields if name not in ("captions", "out"))
    other = next((name for name in names if getattr(asked, name) != getattr(run, name)), None)
    if other is None and asked.captioners and asked.captioners != run.captioners:
        other = "captions"
    if other is not None:
        raise InputError(
            f"{place}: `{other}` is not that of the run, whose own settings count for all that is appended; leave it "
            "out, or change the whole set by `maskmine mine` first"
        )
