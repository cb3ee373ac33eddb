"""What the configuration of a spaCy pipeline may ask for, read before spaCy reads it.

A pipeline's folder holds tables and weights in msgpack, without pickles, and its `config.cfg` names functions that
spaCy and other installed packages have registered. spaCy runs no file of the folder. What is refused here is what would
load more than the folder: components that are taken from another pipeline, functions that read any file, and code of
models on a hub.
"""

from __future__ import annotations

import configparser
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskmine.mining.storage.bounded.json_limits import keys_in
from maskmine.schemas.errors import InputError

_CONFIG = "config.cfg"
_MAX_BYTES = 1 << 20
_MAX_REFERENCES = 1_000  # `${paths.train}`: each is replaced, and may hold others
_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_BEYOND = ("@readers", "@callbacks")  # functions that read any path, or take parts from another pipeline
_MAX_NUMBER = 1 << 31
_TRUST = re.compile(r"trust_remote_code[\"'\s]*[=:]\s*(?!\s*false\b)", re.IGNORECASE)


def check_pipeline(folder: Path, *, name: str) -> None:
    """Raises InputError for a configuration that asks for what lies outside of the folder, or that is none."""
    path = folder / _CONFIG
    if not path.is_file():
        return  # spaCy says so
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1).decode("utf-8")
        parser = configparser.ConfigParser(interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]  # keeps the case of keys, as spaCy does
        parser.read_string(text)
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"nouns.model: `{name}` cannot be loaded ({_CONFIG}: {reason}); install it again") from error
    if len(text) > _MAX_BYTES or text.count("${") > _MAX_REFERENCES or _written_out_chars(parser) > _MAX_BYTES:
        raise InputError(f"nouns.model: {_CONFIG} of `{name}` is far too long for a pipeline; install it again")
    if _TRUST.search(text):
        raise InputError(
            f"nouns.model: `{name}` asks for code that a model of a hub brings, and nothing that a model brings is run"
        )
    taken = [
        section for section in parser.sections() if section.startswith("components.") and "source" in parser[section]
    ]
    if taken:
        raise InputError(
            f"nouns.model: `{name}` takes its `{taken[0].partition('.')[2]}` from another pipeline; save it with "
            "`nlp.to_disk`, which writes all components"
        )


def check_loaded(config: Mapping[str, Any], *, name: str) -> None:
    """Raises InputError for a configuration, with its references replaced, whose pipeline calls what reads other files
    while it is loaded, or has a number that is none of a pipeline. What belongs to training may."""
    for key, value in keys_in([config.get("nlp"), config.get("components")]):
        if key in _BEYOND:
            raise InputError(
                f"nouns.model: `{name}` asks for what lies outside of its folder (`{key} = {str(value)[:60]}` in "
                f"{_CONFIG}); take it out, or give another pipeline"
            )
        if isinstance(value, int) and abs(value) > _MAX_NUMBER:
            raise InputError(f"nouns.model: `{name}` has a `{key}` that no pipeline has; install it again")


def _written_out_chars(parser: configparser.ConfigParser) -> int:
    """The characters of all values with their references replaced, counted and not written."""
    values = {f"{section}.{key}": value for section in parser.sections() for key, value in parser[section].items()}

    @functools.cache
    def chars_of(place: str) -> int:
        inside = [place] if place in values else [name for name in values if name.startswith(f"{place}.")]
        return sum(chars_in(values[name]) for name in inside)

    def chars_in(value: str) -> int:
        return len(value) + sum(chars_of(place.replace(":", ".")) for place in _REFERENCE.findall(value))

    try:
        return sum(map(chars_in, values.values()))
    except RecursionError:  # one that holds itself
        return _MAX_BYTES + 1
