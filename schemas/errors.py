"""The errors that a user can mend, each one line that says what, where and what to do; and the exit codes."""

from __future__ import annotations

from enum import IntEnum


class InputError(Exception):
    """Something the user gave is wrong (exit code 2). The message is one line with a remedy."""


class IncompleteError(Exception):
    """The run cannot go on now but nothing is lost (exit code 4): mend the cause and run the same command again."""


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


def exit_of(error: BaseException | None) -> Exit:
    """The exit code for an error that was raised, or for none; FAILED for an error of any other class."""
    if error is None:
        return Exit.COMPLETE
    kinds = {
        OtherPlanError: Exit.OTHER_PLAN,
        InputError: Exit.BAD_INPUT,
        IncompleteError: Exit.INCOMPLETE,
        KeyboardInterrupt: Exit.INTERRUPTED,
    }
    return next((code for kind, code in kinds.items() if isinstance(error, kind)), Exit.FAILED)


class ServerStoppedError(Exception):
    """A server was stopped from outside, which is how every server ends."""
