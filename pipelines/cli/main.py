"""The command line. Exit codes (`Exit`): 0 complete, 2 bad settings or arguments, 3 finished but more rejected than
allowed, 4 incomplete (run again), 5 the folder belongs to another plan, 130 interrupted."""

from __future__ import annotations

import logging
import signal
import sys
from typing import NoReturn

import typer

from maskmine.pipelines.cli.app import app, err
from maskmine.pipelines.settings.faults import SettingsError
from maskmine.schemas.errors import (
    Exit,
    IncompleteError,
    InputError,
    OtherPlanError,
    ServerStoppedError,
    exit_of,
    how_to_install,
)
from maskmine.schemas.memory import share_memory

try:
    # Each file brings its commands; the help lists them in this order.
    # isort: off
    from maskmine.pipelines.cli import settings, mine, append, reports, audit, review, export, mix, push, tune, segment  # noqa: F401
    # isort: on
except KeyboardInterrupt:  # loading them takes most of a second
    sys.exit(Exit.INTERRUPTED)


def main() -> NoReturn:
    """The console command `maskmine`."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("huggingface_hub").propagate = False  # it prints its lines itself
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in the background
        signal.signal(signal.SIGINT, _interrupt)
    try:
        sys.exit(run_app())
    except KeyboardInterrupt:  # before a command had begun
        sys.exit(Exit.INTERRUPTED)


def run_app(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; expected faults are printed as one line each on stderr."""
    share_memory()
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="maskmine", standalone_mode=False)
    except SettingsError as error:
        for line in error.args:
            _print_fault(line)
        return Exit.BAD_INPUT
    except (InputError, IncompleteError, OtherPlanError) as error:
        _print_fault(error)
        return exit_of(error)
    except ModuleNotFoundError as error:
        if (error.name or "maskmine").partition(".")[0] == "maskmine":
            raise
        _print_fault(
            f"the package `{error.name}` is not installed; {how_to_install()}; `maskmine doctor` looks for all"
        )
        return Exit.BAD_INPUT
    except typer.TyperException as error:  # a wrong option or argument, or none: then it is the help
        message = error.format_message().replace("Value error, ", "")
        if message.startswith("Usage:"):
            err.print(message)
        else:
            _print_fault(message)
        return Exit.BAD_INPUT
    except ServerStoppedError:
        _print_fault("stopped")
        return Exit.INTERRUPTED
    if code == Exit.INTERRUPTED:  # what typer returns for an interrupt
        err.print("interrupted; what is finished stays, run the same command again to continue")
    return int(code or 0)


def _print_fault(error: Exception | str) -> None:
    err.print(f"maskmine: {' '.join(str(error).splitlines())}")


def _interrupt(*_: object) -> NoReturn:
    decoder = sys.modules.get("maskmine.mining.images.child_decoder")
    if decoder is not None:
        decoder.end_decoding()  # else the end waits for pictures that take long
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
