"""Pages and cards from jinja templates, under the same rules everywhere."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from maskmine.tuning.tables import percent


def render(package: str, template: str, **values: Any) -> str:
    """A template of a package's folder `data`, filled in; values are escaped in HTML and not in Markdown.

    Raises jinja2's UndefinedError for a value that the template needs and does not get.
    """
    return _environment(package, template.endswith(".md")).get_template(template).render(**values)


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
    environment.filters |= {"percent": percent, "number": lambda count: f"{count:,}"}
    return environment
