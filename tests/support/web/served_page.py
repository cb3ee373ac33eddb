"""The form of `maskmine serve` as a test fills it in, and its answer."""

from __future__ import annotations

import html
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tests.support.web.browser import STREET

if TYPE_CHECKING:
    from starlette.testclient import TestClient


@dataclass(frozen=True)
class Page:
    """An answer as it is read: its status, the lines of faults by field, and the links to files."""

    status: int
    text: str

    @property
    def faults(self) -> dict[str, str]:
        items = re.findall(r'<li data-field="(\w*)">(?:<a [^>]*>)?(.*?)(?:</a>)?</li>', self.text)
        return {field: html.unescape(line) for field, line in items}

    @property
    def files(self) -> list[str]:
        return [
            *re.findall(r'<img[^>]* src="(results/[^"]+)"', self.text),
            *re.findall(r'href="(results/[^"]+)"', self.text),
        ]

    @property
    def rows(self) -> dict[str, str]:
        """The colours of the classes in the legend."""
        return {
            html.unescape(name): colour
            for colour, name in re.findall(
                r'<th scope="row"><svg[^>]*><rect[^>]* fill="(#\w{6})"/></svg>(.*?)</th>', self.text
            )
        }


def ask(client: TestClient, picture: bytes | Path | None = None, *, name: str = "street.jpg", **fields: str) -> Page:
    """Submit the form; without a picture the example is meant."""
    data = picture.read_bytes() if isinstance(picture, Path) else picture
    given = {"classes": STREET, **({} if data is not None else {"example": "0"}), **fields}
    response = client.post("/", data=given, files=None if data is None else {"picture": (name, data)})
    return Page(response.status_code, response.text)


def png(*size_px: int, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size_px, (200, 120, 40)).save(file, "PNG", **options)
    return file.getvalue()
