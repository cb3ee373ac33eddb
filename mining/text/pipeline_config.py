"""What the configuration of a spaCy pipeline may ask for, read before spaCy reads it.

A pipeline's folder holds tables and weights in msgpack, without pickles, and its `config.cfg` names functions that
spaCy and other installed packages have registered. spaCy runs no file of the folder. What is refused here is what would
load more than the folder: components that are taken from another pipeline, and code of models on a hub.
"""

from __future__ import annotations

import configparser
import re
from pathlib import Path

from maskmine.schemas.errors import InputError

_CONFIG = "config.cfg"
_MAX_BYTES = 1 << 20
_MAX_REFERENCES = 1_000  # `${paths.train}`: each is replaced, and may hold others
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
        parser.read_string(text)
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"nouns.model: `{name}` cannot be loaded ({_CONFIG}: {reason}); install it again") from error
    if len(text) > _MAX_BYTES or text.count("${") > _MAX_REFERENCES:
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
