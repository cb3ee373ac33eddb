"""What runs on Beam's workers: it makes cells, and writes a letter about each for the driver (see `on_beam.py`)."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.cells import MakeCell
from pipelines.grid import Stage
from pipelines.run_folder import RunFolder
from schemas.errors import IncompleteError, InputError

# In the folder of letters, which is a driver's own and lies in the run folder:
OPEN = "open"  # the driver deletes it when nobody waits for letters any more
FAULT = "fault.json"  # the letter that ends the run
_WATCH_S = 0.5

log = logging.getLogger(__name__)


@dataclass
class CellMaker:
    """What travels to the workers: makes the cell of a part and writes a letter that says how it went.

    Beam may give a part to a worker twice; a cell that is there is left alone. Without a driver, or after a fault
    that a person has to mend, no more cells are made by anyone: a retry would find the same fault.
    """

    run: RunFolder
    stage: Stage
    letters: str
    _make: MakeCell | None = field(default=None, init=False)

    def __call__(self, part: int, read: object = None) -> None:
        """Make the cell of a part. `read` is what Beam has to have finished before."""
        if self.run.exists(self.letters, FAULT) or not self.run.exists(self.letters, OPEN) or self._is_made(part):
            return
        try:
            if self._make is None:
                self._make = self.stage.job.open()
            self._post(letter_name(self.stage, part), asdict(self._make(part, _no_tick)))
        except (InputError, IncompleteError) as error:
            self._post(FAULT, {"fault": type(error).__name__, "line": str(error)})

    def _is_made(self, part: int) -> bool:
        if self.stage.once:
            return not self.stage.todo(self.run)
        return all(self.run.exists(self.stage.name, f"{part:05d}.{suffix}") for suffix in self.stage.suffixes)

    def _post(self, name: str, letter: dict[str, Any]) -> None:
        if not self.run.exists(self.letters, OPEN):
            return
        try:
            self.run.write_json(self.letters, name, value=letter)
        except IncompleteError as error:  # a full disk, say: the driver sees from its listing what is missing
            if self.run.exists(self.letters, OPEN):  # else it has gone meanwhile
                log.error("%s: %s", error, letter)


def letter_name(stage: Stage, part: int) -> str:
    """The name of the letter that brings the report of a cell."""
    return f"{stage.name}-{part:05d}.json"


def main() -> None:
    """A worker process of FnApiRunner: Beam's own, without its chatter, and with an end when the driver goes."""
    from apache_beam.runners.worker import sdk_worker_main

    root, letters, driver_pid = sys.argv[1:]
    watch = threading.Thread(target=_end_with_driver, args=(RunFolder(root), letters, int(driver_pid)), daemon=True)
    watch.start()
    sdk_worker_main.main(sys.argv[:1])
    os._exit(0)  # Python would take down its modules for seconds, and Beam waits for one worker after the other


def _end_with_driver(run: RunFolder, letters: str, driver_pid: int) -> None:
    while os.getppid() == driver_pid and run.exists(letters, OPEN):
        time.sleep(_WATCH_S)
    os._exit(0)


def _no_tick(records: int) -> None:
    """Workers do not report single images; the driver counts a cell's images when it is made."""


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
