"""Text from outside is printed as it is: nowhere in the tree is it read as Rich's markup or as an emoji."""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from maskmine.pipelines.steps.status import RejectedImage, render_rejected
from maskmine.tuning.console import TextTable, plain_console, plain_progress, plain_status
from maskmine.tuning.tables import number_table
from tests.support.paths import ROOT

ODD = ["photo[final].jpg", "shop?set=key[a],b[/model/x.jpg]", "[/]", "[object Object]", ":dog: [bold]x[/bold]", r"\[a]"]
HOME = ROOT / "tuning" / "console.py"
SOURCES = sorted(
    path for layer in ("schemas", "mining", "tuning", "pipelines", "scripts") for path in (ROOT / layer).rglob("*.py")
)
# What reads markup or makes a console that does, and is only for `tuning/console.py`.
KEPT_AT_HOME = {"Console", "Table", "Progress", "TextColumn", "Status", "Spinner", "Panel", "Prompt", "Confirm"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    text = path.read_text()
    if "rich" not in text and "markup" not in text.lower():  # parsing takes long
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield name, node


def faults(path: Path) -> list[str]:
    found = []
    for name, call in calls(path):
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        owner = call.func.value if isinstance(call.func, ast.Attribute) else None
        foreign = isinstance(owner, ast.Name) and owner.id == "pa"  # Arrow has tables, too
        if name in KEPT_AT_HOME and not foreign:
            found.append(f"{name}( at line {call.lineno}")
        if name in ("from_markup", "render_markup"):
            found.append(f"{name} at line {call.lineno}")
        if any(
            isinstance(options.get(option), ast.Constant) and options[option].value for option in ("markup", "emoji")
        ):
            found.append(f"markup=True at line {call.lineno}")
    return found


def test_no_code_prints_or_makes_a_table_that_reads_markup() -> None:
    found = {str(path.relative_to(ROOT)): lines for path in SOURCES if path != HOME and (lines := faults(path))}
    assert not found


@pytest.mark.parametrize("text", ODD)
def test_every_way_to_print_shows_text_as_it_is(text: str) -> None:
    table = TextTable(text, title=text, caption=text)
    table.add_column(text)
    table.add_row(text, Text(text))
    numbers = number_table(text, "count")
    numbers.add_row(text, "1")
    rejected = render_rejected(
        [RejectedImage(image_id=text, part=0, step="proposals", reason="decode_error", detail=text)], examples=1
    )
    for console in (Console(file=io.StringIO(), width=400), plain_console(file=io.StringIO(), width=400)):
        for block, times in ((table, 6), (numbers, 2), (rejected, 2)):
            console.file = io.StringIO()
            console.print(block)
            assert console.file.getvalue().count(text) == times
    console = plain_console(file=io.StringIO(), width=400)
    console.print(text, soft_wrap=True)
    assert console.file.getvalue() == f"{text}\n"
    with plain_progress(console=plain_console(file=io.StringIO(), width=400, force_terminal=True)) as progress:
        progress.add_task(text, total=1, state=text)
        progress.refresh()
        assert progress.console.file.getvalue().count(text) >= 2
    with console.capture() as shown:
        console.print(plain_status(text, console=console).renderable)
    assert text in shown.get()
