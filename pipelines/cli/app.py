"""What the commands share: the app, the two consoles, the options that several commands have, ways to print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.status import Status
from rich.text import Text

from maskmine.schemas.errors import InputError
from maskmine.tuning.console import plain_console, plain_status

app = typer.Typer(
    name="maskmine",
    help="Mine mask–noun pairs from captioned images, and tune CLIP on them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
out = plain_console(soft_wrap=False)
err = plain_console(stderr=True, soft_wrap=True, highlight=False)

ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a preset, such as coco.")
]
FolderArgument = Annotated[str, typer.Argument(metavar="DIR", help="The `out` folder of a run.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a setting (YAML value).")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only estimate time and disk, from a few images.")]
EngineOption = Annotated[str, typer.Option("--engine", metavar="local|ray|beam", help="Where the steps run.")]
EngineOptOption = Annotated[list[str] | None, typer.Option("--engine-opt", metavar="K=V", help="An engine's option.")]
FetchOption = Annotated[
    Literal["allow", "refuse"] | None,
    typer.Option("--fetch", help="Whether images are read from URLs, with limits; refuse unless the settings allow."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress, only what should be known.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="A line for each part, on a terminal too.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Mine only N images, a random sample.")]
LogOption = Annotated[
    str | None, typer.Option("--log-json", metavar="FILE", help="Append a line of JSON for each step and part.")
]
MetricsOption = Annotated[
    str | None,
    typer.Option(metavar="PORT|FILE.prom", help="Prometheus metrics: served on [HOST:]PORT, or written to a file."),
]
NounsOption = Annotated[
    str | None, typer.Option(metavar="A,B|@FILE", help="Only pairs of these nouns (or lemmas); @FILE: one a line.")
]
StalledOption = Annotated[
    float, typer.Option(min=0, metavar="MINUTES", help="Report when nothing has moved for this long; 0: never.")
]
SynonymsOption = Annotated[
    str, typer.Option(metavar="auto|coco|none|FILE", help="Nouns that name categories; FILE is YAML.")
]


@app.callback()
def _options(
    version_only: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=lambda asked: _print_version(asked), help="Show it.")
    ] = False,
) -> None:
    pass


def _print_version(asked: bool) -> None:
    if asked:
        print_line(f"maskmine {version('maskmine')}")
        raise typer.Exit


def detail_of(*, quiet: bool, verbose: bool) -> Literal["quiet", "normal", "verbose"]:
    """How much of a run is shown. Raises InputError where both are asked for."""
    if quiet and verbose:
        raise InputError("--quiet and --verbose: give one of them")
    return "quiet" if quiet else "verbose" if verbose else "normal"


def print_line(text: str) -> None:
    """A line on stdout as it is: not cut at the width of the terminal, no markup."""
    out.print(text, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """A line of JSON on stdout."""
    sys.stdout.write(json.dumps(value) + "\n")


def tell_replaced(*files: Path) -> None:
    """Say, before the work begins, which results of earlier commands it will replace."""
    there = ", ".join(str(file) for file in files if file.exists())
    if there:
        err.print(f"{there}: there already, and replaced in the end; another --to keeps it")


@dataclass
class _Counter:
    status: Status
    of: str
    count: int = 0

    def __call__(self, more: int) -> None:
        self.count += more
        self.status.update(Text(f"{self.count:,} {self.of}"))


@contextmanager
def counting(of: str) -> Iterator[Callable[[int], None]]:
    """A spinner on stderr; yields the function that adds to its count of `of`, such as `images`."""
    with plain_status("reading", console=err) as status:
        yield _Counter(status, of)
