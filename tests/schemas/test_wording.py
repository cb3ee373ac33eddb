"""Counts in sentences."""

from __future__ import annotations

from maskmine.schemas.wording import counted


def test_one_is_singular_and_thousands_are_grouped() -> None:
    assert [counted(count, "part") for count in (0, 1, 2, 1000)] == ["0 parts", "1 part", "2 parts", "1,000 parts"]
