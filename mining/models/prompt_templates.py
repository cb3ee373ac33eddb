"""Sentences that a noun is put into before CLIP reads it."""

from __future__ import annotations

from pathlib import Path

from mining.models.clip import imagenet_templates
from schemas.errors import InputError

_VILD = Path(__file__).parent / "data" / "templates_vild.txt"


def load_templates(name: str) -> tuple[str, ...]:
    """Sentences with one `{}` each: `vild` (14, OVSeg's choice), `imagenet` (OpenAI's 80), `raw`, or a file's lines.

    The article stays "a" whatever the noun. Raises InputError for a file that is absent, empty or has another line.
    """
    if name == "raw":
        return ("{}",)
    if name == "imagenet":
        return imagenet_templates()
    return _read_templates(_VILD if name == "vild" else Path(name))


def fill_template(template: str, noun: str) -> str:
    """The sentence about `noun`; the noun's own braces stay as they are."""
    return template.replace("{}", noun)


def _read_templates(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text("utf-8").splitlines()
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
