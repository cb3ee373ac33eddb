"""The Beam engine: for each stage `Create(part numbers) | Reshuffle | Map(make the cell)`, all in one pipeline.

A stage takes the output of the stage before it as a side input. Nothing is in it; but on every runner a step waits
until its side inputs are whole, so the stages follow each other. One pipeline costs the runner's start-up once.

Only part numbers travel through Beam. What workers have to say (reports, a fault) they write as small letters into a
folder of the run folder, which every worker can reach on every runner; the driver reads them while the pipeline goes
on, and takes the folder away.
"""

from __future__ import annotations

import io
import logging
import os
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import fsspec
from pydantic import Field

from pipelines.cells import PartReport
from pipelines.engine import Watch
from pipelines.grid import Stage
from pipelines.on_beam_worker import FAULT, OPEN, CellMaker, letter_name
from pipelines.ownership import BEAM, owned_prefix
from pipelines.run_folder import RunFolder
from schemas.errors import IncompleteError, InputError
from schemas.settings import Settings

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.pipeline import Pipeline
    from apache_beam.pvalue import PCollection
    from apache_beam.runners.runner import PipelineRunner
    from apache_beam.transforms.ptransform import PTransform

_FAULTS = {"InputError": InputError, "IncompleteError": IncompleteError}
# FnApiRunner's names for the threads that wait for the end of a worker process, and that talk with it.
_PROCESS_THREAD, _TALK_THREADS = "run_worker", ("beam_control_read", "read_grpc_client_inputs")
_POLL_S = 1.0
_JOIN_S = 5.0
_NOTICE_S = 5.0


class BeamEngine(Settings):
    """Where and how Beam runs the stages.

    `runner` is not Beam's default: that one looks for a binary to download. `workers` are processes of FnApiRunner on
    this machine; other runners have options of their own, given in `pipeline_options` (`--project=…`,
    `--setup_file=./setup.py`). `accelerator` and `min_ram` are Beam's resource hints, the first for the stages that
    want a GPU. A worker process loads a model once for each of its threads: on GPU machines give Dataflow
    `--experiments=no_use_multiple_sdk_containers` and `--number_of_worker_harness_threads=1`.
    """

    runner: str = "FnApiRunner"
    workers: Annotated[int, Field(ge=1)] = 1
    accelerator: str | None = None
    min_ram: str | None = None
    pipeline_options: Annotated[tuple[str, ...], Field(strict=False)] = ()

    def __call__(self, run: RunFolder, stages: Sequence[Stage], watch: Watch) -> None:
        """Make every missing cell, each stage after those that it reads.

        Raises InputError and IncompleteError of the workers as they were raised there; InputError for faults of these
        settings; IncompleteError when a worker process dies, or when the pipeline ends well without all of its cells.
        """
        options = self._options()
        todo = {stage.name: parts for stage in stages if (parts := stage.todo(run))}
        if not todo:
            return
        stages = [stage for stage in stages if stage.name in todo]
        letters = f"{owned_prefix(BEAM)}{secrets.token_hex(4)}"
        postman = _Postman(run, letters, list(stages), todo, watch)
        with _quiet_beam():
            pipeline = self._pipeline(run, letters, stages, todo, options)
            with _deaths_of_workers() as deaths, postman.at_work():
                _run(pipeline, postman, deaths)

    def _options(self) -> PipelineOptions:
        try:
            with _without_warnings():
                from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "apache_beam":
                raise
            raise InputError("engine beam: apache_beam is not installed; pip install 'maskmine[beam]'") from error
        said = io.StringIO()
        try:
            with redirect_stderr(said):
                options = PipelineOptions([f"--runner={self.runner}", *self.pipeline_options])
                options.get_all_options()
        except SystemExit as error:  # so argparse ends, after a page of usage and a line with the fault
            raise InputError(f"engine beam: {said.getvalue().rpartition('error: ')[2].strip()}") from error
        if self.workers > 1:
            options.view_as(DirectOptions).direct_num_workers = self.workers
        return options

    def _pipeline(
        self,
        run: RunFolder,
        letters: str,
        stages: Sequence[Stage],
        todo: dict[str, list[int]],
        options: PipelineOptions,
    ) -> Pipeline:
        import apache_beam as beam
        from apache_beam.pvalue import AsIter

        try:
            pipeline = beam.Pipeline(runner=self._open_runner(run, letters, options), options=options)
        except ValueError as error:  # so Beam's runners refuse their options
            raise InputError(f"engine beam: {_one_line(error)}") from error
        before: list[PCollection] = []
        for stage in stages:
            parts = pipeline | f"{stage.name} parts" >> beam.Create(todo[stage.name], reshuffle=False)
            shuffled = parts | f"{stage.name} shuffle" >> beam.Reshuffle()
            make = beam.Map(CellMaker(run, stage, letters), *map(AsIter, before)).with_output_types(type(None))
            before = [shuffled | stage.name >> self._with_hints(make, stage)]
        return pipeline

    def _open_runner(self, run: RunFolder, letters: str, options: PipelineOptions) -> PipelineRunner:
        from apache_beam.options.pipeline_options import StandardOptions
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner
        from apache_beam.runners.runner import create_runner
        from apache_beam.transforms.environments import SubprocessSDKEnvironment

        name = options.view_as(StandardOptions).runner
        try:
            runner = create_runner(name)
        except (ValueError, ImportError, AttributeError) as error:
            raise InputError(f"engine beam: runner `{name}` cannot be used: {_one_line(error)}") from error
        if self.workers == 1:
            return runner
        if not isinstance(runner, FnApiRunner):
            raise InputError(f"engine beam: `workers` are processes of FnApiRunner; give {name} its own options")
        # FnApiRunner's mode `multi_processing`, but with our own worker program
        words = [sys.executable, "-m", "pipelines.on_beam_worker", run.root, letters, str(os.getpid())]
        # Ctrl-C on a terminal reaches the workers too; it is for the driver, and they end with it
        return FnApiRunner(SubprocessSDKEnvironment.from_command_string(f"trap '' INT; exec {shlex.join(words)}"))

    def _with_hints(self, make: PTransform, stage: Stage) -> PTransform:
        hints = {"min_ram": self.min_ram, "accelerator": self.accelerator if stage.job.device is not None else None}
        try:
            return make.with_resource_hints(**{name: value for name, value in hints.items() if value is not None})
        except ValueError as error:
            raise InputError(f"engine beam: {_one_line(error)}") from error


def _run(pipeline: Pipeline, postman: _Postman, deaths: list[str]) -> None:
    """Run the pipeline in a thread, and bring its letters from this one, as long as all is well."""
    from apache_beam.utils.thread_pool_executor import shared_unbounded_instance

    running = shared_unbounded_instance().submit(lambda: pipeline.run().wait_until_finish())
    try:
        while not wait([running], timeout=_POLL_S).done:
            postman.deliver()
            if deaths:
                raise _death(deaths)
    finally:
        postman.send_workers_home()
        wait([running], timeout=_JOIN_S)  # so that nothing is written or said after the engine has returned
    try:
        running.result()
    except ImportError as error:  # so a runner asks for what it needs, Dataflow for apache-beam[gcp]
        raise InputError(f"engine beam: {_one_line(error)}") from error
    except RuntimeError as error:  # "Channel closed prematurely": the end of a worker is felt before it is known
        if not _comes(deaths, within_s=_NOTICE_S):
            raise
        raise _death(deaths) from error
    postman.close()


def _comes(deaths: list[str], *, within_s: float) -> bool:
    end_s = time.monotonic() + within_s
    while not deaths and time.monotonic() < end_s:
        time.sleep(_POLL_S)
    return bool(deaths)


def _death(deaths: list[str]) -> IncompleteError:
    return IncompleteError(
        f"a worker process of Beam died ({deaths[0]}); was there memory enough? "
        "Set fewer `workers` if not, and run the same command again"
    )


@dataclass
class _Postman:
    """Brings the workers' letters to the watch, stage after stage."""

    run: RunFolder
    letters: str  # the folder of this driver's letters; another driver may be at work in the run folder
    stages: list[Stage]  # that are not finished; the first is the one that the watch was told of
    todo: dict[str, list[int]]
    watch: Watch
    _told: set[str] = field(default_factory=set)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Take letters while the block runs; workers stop when it is over."""
        with self.run.write(self.letters, OPEN):
            pass
        try:
            yield
        finally:
            self._clear()

    def send_workers_home(self) -> None:
        """Tell the workers that nobody waits for cells any more."""
        self.run.delete(self.letters, OPEN)

    def deliver(self) -> None:
        """Hand over what has come. Letters of a later stage wait until the one before it is finished."""
        fs, _ = fsspec.core.url_to_fs(self.run.root)
        fs.invalidate_cache()  # others write here, and fsspec remembers the listings of object stores
        come = set(self.run.names(self.letters))
        while self.stages:
            stage = self.stages[0]
            self._begin(stage)
            for part in [part for part in self.todo[stage.name] if letter_name(stage, part) in come]:
                report = PartReport(**self.run.read_json(self.letters, letter_name(stage, part)))
                self.run.delete(self.letters, letter_name(stage, part))
                self._hand_over(stage, report)
            if self.todo[stage.name]:
                return
            self._end(stage)

    def close(self) -> None:
        """Raise what went wrong; report the cells that came without a letter, of a worker that died after its work."""
        self.deliver()
        fault = self.run.read_json(self.letters, FAULT)
        if fault is not None:
            raise _FAULTS[fault["fault"]](fault["line"])
        missing = {stage.name: len(cells) for stage in self.stages if (cells := stage.todo(self.run))}
        if missing:
            raise IncompleteError(
                f"{self.run.root}: Beam ended, but cells are missing ({missing}); can its workers reach that folder? "
                "Run the same command again"
            )
        while self.stages:
            stage = self.stages[0]
            self._begin(stage)
            for part in list(self.todo[stage.name]):
                self._hand_over(stage, PartReport(stage.name, part, 0, 0, 0, 0.0))
            self._end(stage)

    def _begin(self, stage: Stage) -> None:
        if stage.name not in self._told:
            self._told.add(stage.name)
            self.watch.stage_begins(stage, tuple(self.todo[stage.name]))

    def _hand_over(self, stage: Stage, report: PartReport) -> None:
        self.todo[stage.name].remove(report.part)
        self.watch.tick(report.step, report.images)
        self.watch.part_ends(report)

    def _end(self, stage: Stage) -> None:
        self.watch.stage_ends(stage)
        self.stages.remove(stage)

    def _clear(self) -> None:
        self.send_workers_home()
        fs, path = fsspec.core.url_to_fs(self.run.path(self.letters))
        with suppress(OSError):  # a worker that is not through yet may write into it; the next run takes the rest away
            if fs.exists(path):
                fs.rm(path, recursive=True)


@contextmanager
def _deaths_of_workers() -> Iterator[list[str]]:
    """Learn that a worker process died: FnApiRunner would wait for it for ever, and its thread tells only stderr.

    At the end the processes have ended too, so that nothing is written after the engine has returned.
    """
    from grpc import RpcError

    deaths: list[str] = []
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if args.thread is not None and args.thread.name == _PROCESS_THREAD:
            deaths.append(str(args.exc_value))
        elif not issubclass(args.exc_type, RpcError):  # the threads that talked with the process fail as well
            before(args)

    threading.excepthook = hook
    try:
        yield deaths
    finally:
        for thread in threading.enumerate():
            if thread.name in (_PROCESS_THREAD, *_TALK_THREADS):
                thread.join(timeout=_JOIN_S)
        threading.excepthook = before


@contextmanager
def _quiet_beam() -> Iterator[None]:
    """Beam tells of its inner life on its own logger; unknown options alone are for the user, faults are raised."""
    levels = {"apache_beam": logging.CRITICAL, "apache_beam.options": logging.WARNING}
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Importing Beam warns of each cloud library that is not installed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
