"""How a run can end: one exit code and one word for each way, on the command line and in logs alike."""

from __future__ import annotations

from enum import IntEnum

from schemas.errors import IncompleteError, InputError, OtherPlanError


class Exit(IntEnum):
    """The exit codes of `maskmine`; the names in small letters are the words for them."""

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
    """How a run ends that raises `error`, or nothing; FAILED is a fault that nobody expected."""
    if error is None:
        return Exit.COMPLETE
    kinds = {
        OtherPlanError: Exit.OTHER_PLAN,
        InputError: Exit.BAD_INPUT,
        IncompleteError: Exit.INCOMPLETE,
        KeyboardInterrupt: Exit.INTERRUPTED,
    }
    return next((code for kind, code in kinds.items() if isinstance(error, kind)), Exit.FAILED)
