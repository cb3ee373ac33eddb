"""The Beam engine: for each step `Create(part numbers) | Reshuffle | Map(make the cell)`, all in one pipeline.

A step takes the output of the step before it as a side input. Nothing is in it; but on every runner a step waits
until its side inputs are whole, so the steps follow each other. One pipeline costs the runner's start-up once.

Only part numbers travel through Beam. Reports and faults are small files, which workers write into a message folder
inside the run folder: every worker can reach that on every runner. The driver reads them while the pipeline runs, and
removes the folder at the end.
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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

import fsspec
from pydantic import Field

from maskmine.mining.storage.ownership import BEAM, owned_prefix
from maskmine.pipelines.engines.beam_worker import FAULT, OPEN, CellMaker, message_name
from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.engines.memory import refuse_too_many
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.grid import Step, missing_cells
from maskmine.pipelines.steps.jobs import Job, PartReport
from maskmine.schemas.errors import IncompleteError, InputError, how_to_install
from maskmine.schemas.settings import Settings

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.pipeline import Pipeline
    from apache_beam.pvalue import PCollection
    from apache_beam.runners.runner import PipelineRunner
    from apache_beam.transforms.ptransform import PTransform

_FAULTS = {"InputError": InputError, "IncompleteError": IncompleteError}
# FnApiRunner's names for the threads that wait for the end of a worker process, and that talk with it.
_PROCESS_THREAD, _TALK_THREADS = "run_worker", ("beam_control_read", "read_grpc_client_inputs")
_POLL_S = 1.0  # how often the driver reads messages
_JOIN_S = 5.0  # a thread that does not end by then is left to itself
_NOTICE_S = 5.0  # a closed channel is noticed at once, the death of its process a little later


class BeamEngine(Settings):
    """Where and how Beam runs the steps.

    A worker process loads a model once for each of its threads: on GPU machines give Dataflow
    `--experiments=no_use_multiple_sdk_containers` and `--number_of_worker_harness_threads=1`.
    """

    models_run_here: ClassVar[bool] = False

    runner: str = "FnApiRunner"
    """Beam runner. Beam's own default is not used because it looks for a binary to download."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes of FnApiRunner on this machine; other runners have options of their own."""
    accelerator: str | None = None
    """Beam's resource hint `accelerator` for the steps that use a GPU."""
    min_ram: str | None = None
    """Beam's resource hint `min_ram`, such as `8GB`."""
    pipeline_options: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Options of the runner, such as `--project=…` or `--setup_file=./setup.py`; on the command line after `--`."""

    def run(self, run: RunFolder, steps: Sequence[Step], observer: RunObserver) -> None:
        """Make every missing cell, each step after those that it reads.

        Raises InputError and IncompleteError of the workers as they were raised there; InputError for faults of these
        settings; IncompleteError when a worker process dies, or when the pipeline ends well without all of its cells.
        """
        options = self._options()
        todo = {step.name: parts for step in steps if (parts := list(step.todo()))}
        if not todo:
            return
        steps = [step for step in steps if step.name in todo]
        self.check_workers({step.name: step.job for step in steps})
        folder = f"{owned_prefix(BEAM)}{secrets.token_hex(4)}"
        messages = _MessageFolder(run, folder, list(steps), todo, observer)
        with _quiet_beam():
            pipeline = self._pipeline(run, folder, steps, todo, options)
            with _worker_deaths() as deaths, messages.opened():
                _run(pipeline, messages, deaths)

    def check_workers(self, jobs: Mapping[str, Job]) -> None:
        """Raises InputError for more workers than the memory holds; those of other runners are not here."""
        if self.workers > 1:
            refuse_too_many(self.workers, jobs.values())

    def _options(self) -> PipelineOptions:
        try:
            with _without_warnings():
                from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "apache_beam":
                raise
            raise InputError(f"engine beam: apache_beam is not installed; {how_to_install('beam')}") from error
        stderr = io.StringIO()
        try:
            with redirect_stderr(stderr):
                options = PipelineOptions([f"--runner={self.runner}", *self.pipeline_options])
                options.get_all_options()
        except SystemExit as error:  # so argparse ends, after a page of usage and a line with the fault
            raise InputError(f"engine beam: {stderr.getvalue().rpartition('error: ')[2].strip()}") from error
        if self.workers > 1:
            options.view_as(DirectOptions).direct_num_workers = self.workers
        return options

    def _pipeline(
        self,
        run: RunFolder,
        messages: str,
        steps: Sequence[Step],
        todo: dict[str, list[int]],
        options: PipelineOptions,
    ) -> Pipeline:
        import apache_beam as beam
        from apache_beam.pvalue import AsIter

        try:
            pipeline = beam.Pipeline(runner=self._open_runner(run, messages, options), options=options)
        except ValueError as error:  # so Beam's runners refuse their options
            raise InputError(f"engine beam: {_one_line(error)}") from error
        before: list[PCollection] = []
        for step in steps:
            parts = pipeline | f"{step.name} parts" >> beam.Create(todo[step.name], reshuffle=False)
            # without a shuffle all parts stay one bundle, which one worker makes
            shuffled = parts if step.one_worker else parts | f"{step.name} shuffle" >> beam.Reshuffle()
            make = beam.Map(CellMaker(run, step, messages), *map(AsIter, before)).with_output_types(type(None))
            before = [shuffled | step.name >> self._with_hints(make, step)]
        return pipeline

    def _open_runner(self, run: RunFolder, messages: str, options: PipelineOptions) -> PipelineRunner:
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
        words = [sys.executable, "-m", "maskmine.pipelines.engines.beam_worker", run.root, messages, str(os.getpid())]
        # Ctrl-C on a terminal reaches the workers too; it is for the driver, and they end with it
        return FnApiRunner(SubprocessSDKEnvironment.from_command_string(f"trap '' INT; exec {shlex.join(words)}"))

    def _with_hints(self, make: PTransform, step: Step) -> PTransform:
        hints = {"min_ram": self.min_ram, "accelerator": self.accelerator if step.uses_models else None}
        try:
            return make.with_resource_hints(**{name: value for name, value in hints.items() if value is not None})
        except ValueError as error:
            raise InputError(f"engine beam: {_one_line(error)}") from error


def _runner_failed(runner: PipelineRunner, error: Exception) -> IncompleteError:
    return IncompleteError(
        f"engine beam: {type(runner).__name__} failed: {_one_line(error)}; what is finished stays: run the same "
        "command again when it can be reached, or with another runner: --engine-opt runner=FnApiRunner"
    )


def _run(pipeline: Pipeline, messages: _MessageFolder, deaths: list[str]) -> None:
    """Run the pipeline in a thread, and read its messages in this one until it ends or a worker dies."""
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.utils.thread_pool_executor import shared_unbounded_instance
    from grpc import FutureTimeoutError, RpcError

    running = shared_unbounded_instance().submit(lambda: pipeline.run().wait_until_finish())
    try:
        while not wait([running], timeout=_POLL_S).done:
            messages.read()
            if deaths:
                raise _death(deaths)
    finally:
        messages.stop_workers()
        wait([running], timeout=_JOIN_S)  # so that nothing is written or printed after the engine has returned
    try:
        running.result()
    except ImportError as error:  # so a runner asks for what it needs, Dataflow for apache-beam[gcp]
        raise InputError(f"engine beam: {_one_line(error)}") from error
    except RuntimeError as error:  # "Channel closed prematurely" may come before the death that is its cause
        if _any_death(deaths, within_s=_NOTICE_S):
            raise _death(deaths) from error
        if isinstance(pipeline.runner, FnApiRunner):
            raise
        raise _runner_failed(pipeline.runner, error) from error
    except (OSError, RpcError, FutureTimeoutError) as error:  # no connection to a runner elsewhere
        raise _runner_failed(pipeline.runner, error) from error
    messages.close()


def _any_death(deaths: list[str], *, within_s: float) -> bool:
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
class _MessageFolder:
    """The workers' messages, brought to the observer step after step.

    `folder` is this driver's own: another driver may be at work in the run folder. `steps` are those that are not
    finished, of which the observer knows the first; `todo` their parts without a report.
    """

    run: RunFolder
    folder: str
    steps: list[Step]
    todo: dict[str, list[int]]
    observer: RunObserver
    _started: set[str] = field(default_factory=set)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Take messages while the block runs; workers stop when it is over."""
        with self.run.write(self.folder, OPEN):
            pass
        try:
            yield
        finally:
            self._delete()

    def stop_workers(self) -> None:
        """Let the workers know that no more cells are wanted."""
        self.run.delete(self.folder, OPEN)

    def read(self) -> None:
        """Report what has come. Messages of a later step wait until the one before it is finished."""
        fs, _ = fsspec.core.url_to_fs(self.run.root)
        fs.invalidate_cache()  # others write here, and fsspec remembers the listings of object stores
        names = set(self.run.names(self.folder))
        while self.steps:
            step = self.steps[0]
            self._start(step)
            for part in [part for part in self.todo[step.name] if message_name(step.name, part) in names]:
                report = PartReport(**self.run.read_json(self.folder, message_name(step.name, part)))
                self.run.delete(self.folder, message_name(step.name, part))
                self._report(step, report)
            if self.todo[step.name]:
                return
            self._finish(step)

    def close(self) -> None:
        """Raise the workers' fault; report the cells without a message, of workers that died after their work."""
        self.read()
        fault = self.run.read_json(self.folder, FAULT)
        if fault is not None:
            raise _FAULTS[fault["fault"]](fault["line"])
        if missing := missing_cells(self.steps):
            raise IncompleteError(
                f"{self.run.root}: Beam ended, but cells are missing ({missing}); can its workers reach that folder? "
                "Run the same command again"
            )
        while self.steps:
            step = self.steps[0]
            self._start(step)
            for part in list(self.todo[step.name]):
                self._report(step, PartReport(step=step.name, part=part, images=0, rejected=0, made=0, seconds=0.0))
            self._finish(step)

    def _start(self, step: Step) -> None:
        if step.name not in self._started:
            self._started.add(step.name)
            self.observer.on_step_start(step, tuple(self.todo[step.name]))

    def _report(self, step: Step, report: PartReport) -> None:
        self.todo[step.name].remove(report.part)
        self.observer.on_records(report.step, report.images)
        self.observer.on_part_done(report)

    def _finish(self, step: Step) -> None:
        self.observer.on_step_done(step)
        self.steps.remove(step)

    def _delete(self) -> None:
        self.stop_workers()
        fs, path = fsspec.core.url_to_fs(self.run.path(self.folder))
        with suppress(OSError):  # a worker that has not ended yet may write into it; the next run deletes the rest
            if fs.exists(path):
                fs.rm(path, recursive=True)


@contextmanager
def _worker_deaths() -> Iterator[list[str]]:
    """The deaths of worker processes while the block runs.

    FnApiRunner waits for a dead worker indefinitely; that it died is an exception in one of its threads, which nothing
    but the hook for such exceptions sees. The threads that talked with the worker fail as well, and are kept quiet.
    When the block ends the processes have ended too, so that nothing is written after the engine has returned.
    """
    from grpc import RpcError

    deaths: list[str] = []
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if args.thread is not None and args.thread.name == _PROCESS_THREAD:
            deaths.append(str(args.exc_value))
        elif not issubclass(args.exc_type, RpcError):
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
    """Silence Beam's own log, but for warnings of unknown options; faults are raised."""
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
