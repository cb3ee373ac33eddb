"""What runs on Beam's workers: it makes cells, and writes a message about each for the driver (see `beam.py`)."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from maskmine.pipelines.engines.orphans import end_with_driver
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.jobs import MakeCell, each_report, no_tick
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.sample import cell_name

# In the message folder, which is a driver's own and lies in the run folder:
OPEN = "open"  # the driver deletes it when it takes no more messages
FAULT = "fault.json"  # the message that ends the run

log = logging.getLogger(__name__)


@dataclass
class CellMaker:
    """What travels to the workers: makes the cell of a part and writes a message with its report.

    Beam may give a part to a worker twice; a cell that is there is left alone. Without a driver, or after a fault
    that a person has to mend, no more cells are made by anyone: a retry would find the same fault.
    """

    run: RunFolder
    step: Step
    messages: str
    _make: MakeCell | None = field(default=None, init=False)

    def __call__(self, part: int, read: object = None) -> None:
        """Make the cell of a part. `read` is what Beam has to have finished before."""
        is_open = not self.run.exists(self.messages, FAULT) and self.run.exists(self.messages, OPEN)
        if not is_open or self._is_made(part):
            return
        try:
            if self._make is None:
                self._make = self.step.job.open()
            for report in each_report(self._make(part, no_tick)):
                self._send(message_name(report.step, part), asdict(report))
        except (InputError, IncompleteError) as error:
            self._send(FAULT, {"fault": type(error).__name__, "line": str(error)})

    def _is_made(self, part: int) -> bool:
        output = self.step.output
        return output.is_current() if output.once else output.exists(part)

    def _send(self, name: str, message: dict[str, Any]) -> None:
        if not self.run.exists(self.messages, OPEN):
            return
        try:
            self.run.write_json(self.messages, name, value=message)
        except IncompleteError as error:  # a full disk, say: the driver sees from its listing what is missing
            if self.run.exists(self.messages, OPEN):  # else the driver has gone meanwhile
                log.error("%s: %s", error, message)


def message_name(step: str, part: int) -> str:
    """The name of the message with the report of a cell."""
    return f"{step}-{cell_name(part, 'json')}"


def main() -> None:
    """A worker process of FnApiRunner: Beam's own, without its chatter, and with an end when the driver goes."""
    root, messages, driver_pid = sys.argv[1:]
    end_with_driver(int(driver_pid), needed=lambda: RunFolder(root).exists(messages, OPEN))
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv[:1])
    os._exit(0)  # Python would take down its modules for seconds, and Beam waits for one worker after the other


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
