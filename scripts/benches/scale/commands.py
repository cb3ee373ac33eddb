"""The commands that are measured at scale, with what they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

WordsOf = Callable[[Path, Path], list[str]]
"""The words of a command from the folder of a run and one to write into."""


@dataclass(frozen=True)
class Command:
    """A command. One that has something done `before`, or nothing but a copy made, works on a copy of the run."""

    words: WordsOf
    before: Callable[[Path], None] | None = None
    says: str = ""
    """What its output has, or it was not what is to be measured."""
    in_proportion: bool = True
    """Whether its time is to grow as the parts; else it depends on what is printed."""


def _as_it_is(run: Path) -> None:
    """A copy suffices."""


def _unpublished(run: Path) -> None:
    (run / "manifest.json").unlink()


def _mine(run: Path, out: Path) -> list[str]:
    return ["mine", str(run / "mining.yaml"), "--set", f"out={run}", "--quiet"]


COMMANDS: dict[str, Command] = {
    "status": Command(lambda run, out: ["status", str(run)]),
    "errors": Command(lambda run, out: ["errors", str(run)], in_proportion=False),
    "show": Command(lambda run, out: ["show", str(run), "--to", str(out / "sheet.png")], in_proportion=False),
    "report": Command(lambda run, out: ["report", str(run), "--to", str(out / "report.html")]),
    "export": Command(
        lambda run, out: ["export", str(run), "--to", "parquet", "--nouns", "clock", "--out", str(out / "export")]
    ),
    "evaluate-pairs": Command(
        lambda run, out: [
            *("evaluate-pairs", str(run), "--truth", str(run.parent / "world" / "instances.json")),
            *("--to", str(out / "evaluation")),
        ]
    ),
    "resume": Command(_mine, before=_as_it_is, says="nothing to do"),
    "publish": Command(_mine, before=_unpublished, says="different nouns"),
    "verify": Command(lambda run, out: ["verify", str(run), "--index-only"], says="samples verified"),
}
"""The commands by name. The export is of one noun: its plan reads every part, and little is written. `resume` finds all
parts done; `publish` also looks whether each cell was made of those that are there, and then writes what describes the
set."""
