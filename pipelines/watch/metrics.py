"""A run as Prometheus metrics: served on a port, or written into a file for node_exporter's textfile collector."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.jobs import PartReport
from maskmine.pipelines.watch.progress import RunProgress, StepFigures
from maskmine.schemas.errors import Exit, InputError, how_to_install

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_ADDRESS = re.compile(r"(?:(?P<host>.+):)?(?P<port>\d+)")
_COUNTERS: dict[str, tuple[str, Callable[[StepFigures], float]]] = {
    "images": ("Images in the parts that this run made (nouns in vocabulary).", lambda step: step.images_made),
    "rejected_images": ("Images that a step rejected.", lambda step: step.rejected),
    "made": ("Nouns, regions, pairs or samples, whatever the step makes.", lambda step: step.made),
    "parts_made": ("Parts that this run made.", lambda step: step.parts_made),
    "worker_seconds": ("Time that workers took to make parts.", lambda step: step.worker_s),
}
_GAUGES: dict[str, tuple[str, Callable[[StepFigures], float | None]]] = {
    "parts": ("Parts of a step.", lambda step: step.parts),
    "parts_done": ("Parts of a step that are finished, by this run or earlier.", lambda step: step.parts_done),
    "gpu_percent": ("Mean use of the GPUs over the last parts, 0 to 100.", lambda step: step.gpu_percent),
    "gpu_peak_bytes": ("The most memory that was taken on a GPU.", lambda step: step.gpu_peak_bytes),
}


class Metrics(RunObserver):
    """Exports the figures of a run to Prometheus. `say` prints what a person should know.

    `where` is a port of this machine alone (`9400`), an address (`0.0.0.0:9400`), or a file that ends in .prom and is
    replaced as a whole after each part. Raises InputError when the place is none of these or cannot be used.
    """

    def __init__(self, where: str, progress: RunProgress, *, run: str, say: Callable[[str], None]) -> None:
        try:
            from prometheus_client import CollectorRegistry
        except ImportError as error:
            raise InputError(f"--metrics: needs prometheus_client; {how_to_install('metrics')}") from error
        self._registry = CollectorRegistry(auto_describe=False)
        self._collector = _Collector(progress, run)
        self._registry.register(self._collector)
        self._say = say
        self._path: str | None = None
        self._stop: Callable[[], None] | None = None
        address = _ADDRESS.fullmatch(where)
        if address:
            self._stop = self._serve(where, address["host"] or "127.0.0.1", int(address["port"]))
        elif where.endswith(".prom"):
            self._path = where
            try:
                self._replace_file(where)
            except OSError as error:
                raise InputError(
                    f"--metrics {where}: cannot be written ({error.strerror}); give another file"
                ) from error
        else:
            raise InputError(f"--metrics {where}: give a port, HOST:PORT, or a file that ends in .prom")

    def on_step_start(self, step: Step, todo: Collection[int]) -> None:
        self._write()

    def on_part_done(self, report: PartReport) -> None:
        self._write()

    def on_step_done(self, step: Step) -> None:
        self._write()

    def run_ends(self, how: Exit) -> None:
        """Record how the run ended."""
        self._collector.ended = how
        self._write()

    def close(self) -> None:
        """Free the port."""
        if self._stop is not None:
            self._stop()

    def _serve(self, where: str, host: str, port: int) -> Callable[[], None]:
        from prometheus_client import start_http_server

        try:
            server, thread = start_http_server(port, host.strip("[]"), self._registry)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "ports go up to 65535"
            raise InputError(f"--metrics {where}: cannot be served ({reason}); give another port") from error
        self._say(f"metrics: http://{host}:{server.server_port}/metrics")

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            self._replace_file(self._path)
        except OSError as error:
            self._say(
                f"--metrics {self._path}: cannot be written any more ({error.strerror}); the run goes on without it"
            )
            self._path = None

    def _replace_file(self, path: str) -> None:
        from prometheus_client import write_to_textfile

        write_to_textfile(path, self._registry)


class _Collector:
    """A collector of prometheus_client, which reads the progress at each scrape."""

    def __init__(self, progress: RunProgress, run: str) -> None:
        self._progress = progress
        self._run = run
        self.ended: Exit | None = None

    def collect(self) -> Iterator[Metric]:
        """All metrics as they are now."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        steps = self._progress.figures()
        for name, (help_text, count) in _COUNTERS.items():
            counter = CounterMetricFamily(f"maskmine_{name}", help_text, labels=["run", "step"])
            for step in steps:
                counter.add_metric([self._run, step.step], count(step))
            yield counter
        for name, (help_text, read) in _GAUGES.items():
            gauge = GaugeMetricFamily(f"maskmine_{name}", help_text, labels=["run", "step"])
            for step in steps:
                if (value := read(step)) is not None:
                    gauge.add_metric([self._run, step.step], value)
            if gauge.samples:
                yield gauge
        moved = time.time() - self._progress.still_s
        yield self._of_run("last_progress_timestamp_seconds", "When anything was finished last, in Unix time.", moved)
        if self.ended is not None:
            yield self._of_run("exit_code", "How the run ended; 0 is complete.", self.ended)

    def _of_run(self, name: str, help_text: str, value: float) -> Metric:
        from prometheus_client.metrics_core import GaugeMetricFamily

        gauge = GaugeMetricFamily(f"maskmine_{name}", help_text, labels=["run"])
        gauge.add_metric([self._run], value)
        return gauge
