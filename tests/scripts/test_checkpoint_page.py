"""The page on checkpoints: it is what its script writes, and what it promises is what the tests of a hub do."""

from __future__ import annotations

from maskmine.scripts.checkpoint_page import COLUMNS, PAGE, page
from tests.support.hub.repositories import CLIPS, PROPOSERS, VERIFIERS


def test_the_page_is_what_its_script_writes() -> None:
    assert PAGE.read_text() == page(), "bash scripts/checkpoints"


def test_the_page_knows_each_licence_and_says_what_the_repositories_of_the_hub_do() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    said = {cells[0].strip("`"): dict(zip(COLUMNS, cells, strict=True)) for cells in rows}
    assert [name for name, cells in said.items() if cells["licence"].startswith("[unknown]")] == []
    for column, kinds in {"mines": PROPOSERS, "checks": VERIFIERS}.items():
        for name in {*PROPOSERS, *VERIFIERS}:
            assert said[name][column] == ("yes" if name in kinds else "–"), (name, column)
            assert name not in kinds or f"`{kinds[name]}`" in said[name]["kind"]
    for architecture, tag in CLIPS.values():
        assert said[f"{architecture} {tag}"]["mask prompts"] == "yes"
