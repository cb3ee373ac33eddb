"""How a script runs as a command: errors that a user can mend are one line, with the exit codes of `maskmine`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from maskmine.schemas.errors import IncompleteError, InputError, OtherPlanError, exit_of


def run_command(main: Callable[..., Any], *, name: str) -> None:
    """Parse the arguments, call `main`, and exit with a code that says how it ended."""
    try:
        typer.run(main)
    except (InputError, IncompleteError, OtherPlanError) as error:
        typer.echo(f"{name}: {error}", err=True)
        sys.exit(exit_of(error))
