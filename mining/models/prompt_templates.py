"""Sentences that a noun is put into before CLIP reads it."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Annotated

from maskmine.mining.models.clip_weights import imagenet_templates
from maskmine.mining.storage.bounded.small_files import read_list
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import IsPath, fingerprint

TEMPLATE_SETS = ("imagenet", "raw", "vild")
"""Names of sets of sentences; anything else is a file."""
_VILD = Path(__file__).parents[1] / "data" / "templates_vild.txt"  # from ViLD's published code, as OVSeg uses them


Templates = Annotated[str, IsPath(or_name=True, known=TEMPLATE_SETS)]
"""The setting for them: the name of a set, or a file."""


def load_templates(name: str) -> tuple[str, ...]:
    """Sentences with one `{}` each: `vild` (14, OVSeg's choice), `imagenet` (OpenAI's 80), `raw`, or a file's lines.

    The article stays "a" whatever the noun. Raises InputError for a file that is absent, empty or has another line.
    """
    if name == "raw":
        return ("{}",)
    if name == "imagenet":
        return imagenet_templates()
    return _read_templates(_VILD if name == "vild" else Path(name))


def templates_identity(name: str) -> dict[str, str]:
    """The name and a hash of the sentences, wherever they come from. Raises as `load_templates`."""
    return {"name": posixpath.basename(name), "sha256": fingerprint(list(load_templates(name)))}


def fill_template(template: str, noun: str) -> str:
    """The sentence about `noun`; the noun's own braces stay as they are."""
    return template.replace("{}", noun)


def _read_templates(path: Path) -> tuple[str, ...]:
    try:
        lines = read_list(path).splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"templates: `{path}` cannot be read ({type(error).__name__}); use vild, imagenet, raw or a UTF-8 text file"
        ) from error
    for number, line in enumerate(lines, start=1):
        if line.strip() and line.count("{}") != 1:
            raise InputError(f"templates: line {number} of `{path}` needs exactly one {{}} for the noun: `{line}`")
    templates = tuple(line.strip() for line in lines if line.strip())
    if not templates:
        raise InputError(f"templates: `{path}` is empty; write one sentence a line, with {{}} for the noun")
    return templates
