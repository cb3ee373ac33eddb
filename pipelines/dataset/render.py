"""Pages and cards from jinja templates, under the same rules everywhere."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from maskmine.schemas.wording import counted
from maskmine.tuning.tables import percent

# Bytes of a file that an error shows as Python does, with the words that lead to them.
_BYTES = r"(?<!\w)b?(?P<{0}>['\"])(?=(?:(?!(?P={0})).){{0,200}}\\x)(?:(?!(?P={0}))[^\\]|\\.)*(?P={0})"
_SHOWN_BYTES = re.compile(rf" \((?:chunk )?{_BYTES.format('one')}\)|(?:: begins with| )?\s*{_BYTES.format('other')}")


def render(package: str, template: str, **values: Any) -> str:
    """A template of a package's folder `data`, filled in; values are escaped in HTML and not in Markdown.

    Raises jinja2's UndefinedError for a value that the template needs and does not get.
    """
    return _environment(package, template.endswith(".md")).get_template(template).render(**values)


def said(line: str) -> Markup:
    """A line of the program as a page shows it: escaped, `words` in backticks as code, without the bytes of files."""
    pieces = _SHOWN_BYTES.sub("", line).split("`")
    if len(pieces) % 2 == 0:  # a backtick alone is one of a name
        return escape("`".join(pieces))
    shown = (Markup("<code>{}</code>").format(piece) if number % 2 else piece for number, piece in enumerate(pieces))
    return Markup("").join(shown)


@cache
def _environment(package: str, is_markdown: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader(package, "data"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=not is_markdown,
        keep_trailing_newline=is_markdown,
    )
    environment.filters.update(percent=percent, number=lambda count: f"{count:,}", said=said, counted=counted)
    return environment
