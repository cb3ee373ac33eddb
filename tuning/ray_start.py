"""Ray when it does not start: one line instead of its traceback."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from maskmine.schemas.errors import IncompleteError


@contextmanager
def starting_ray(who: str) -> Iterator[None]:
    """Ray is started or joined in the block; `who` begins the line.

    Whatever keeps it from that, for which Ray has no class of errors, becomes an IncompleteError.
    """
    try:
        yield
    except Exception as error:
        raise IncompleteError(
            f"{who}: Ray does not start ({last_line(error)}); mend the cause (memory, a full disk or /dev/shm, a home "
            "or RAY_TMPDIR that cannot be written), and run the same command again"
        ) from error


def last_line(error: object) -> str:
    """The last line of what Ray says, which has the reason."""
    lines = str(error).strip().splitlines() or [type(error).__name__ if isinstance(error, Exception) else "no reason"]
    return textwrap.shorten(lines[-1], width=200, placeholder=" …")
