"""The errors that a user can mend, each one line that says what, where and what to do; and the exit codes."""

from __future__ import annotations

from enum import IntEnum


class InputError(Exception):
    """Something the user gave is wrong (exit code 2). The message is one line with a remedy."""


class IncompleteError(Exception):
    """The run cannot go on now but nothing is lost (exit code 4): mend the cause and run the same command again."""


class NotPublishedError(IncompleteError):
    """A run is finished and not published, as a limit of its settings is exceeded (exit code 3): running it again is
    of no use before the setting or the cause is mended."""


class OtherPlanError(Exception):
    """The output folder belongs to another plan (exit code 5)."""


class Exit(IntEnum):
    """The exit codes of `maskmine`. In logs the lower-case name stands for the code."""

    COMPLETE = 0
    FAILED = 1
    BAD_INPUT = 2
    TOO_MANY_REJECTED = 3
    INCOMPLETE = 4
    OTHER_PLAN = 5
    INTERRUPTED = 130

    @property
    def word(self) -> str:
        """Such as `too_many_rejected`."""
        return self.name.lower()


def how_to_install(extra: str = "") -> str:
    """How maskmine, which is on no package index, is installed with the libraries of one of its extras (`setup.py`)."""
    wanted = f"[{extra}]" if extra else ""
    return f"pip install -e '.{wanted}' in a checkout, or pip install 'PATH-OF-THE-WHEEL{wanted}'"


def exit_of(error: BaseException | None) -> Exit:
    """The exit code for an error that was raised, or for none; FAILED for an error of any other class."""
    if error is None:
        return Exit.COMPLETE
    kinds = {
        OtherPlanError: Exit.OTHER_PLAN,
        NotPublishedError: Exit.TOO_MANY_REJECTED,
        InputError: Exit.BAD_INPUT,
        IncompleteError: Exit.INCOMPLETE,
        KeyboardInterrupt: Exit.INTERRUPTED,
    }
    return next((code for kind, code in kinds.items() if isinstance(error, kind)), Exit.FAILED)


class ServerStoppedError(Exception):
    """A server was stopped from outside, which is how every server ends."""
