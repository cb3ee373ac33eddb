"""What programs see of a run: JSON lines, Prometheus metrics, and the use of the GPU in each part's report."""

from __future__ import annotations

import io
import json
import re
import socket
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest
from rich.console import Console

from maskmine.pipelines.steps import gpu_use
from maskmine.pipelines.steps import jobs as cells
from maskmine.pipelines.steps.gpu_use import watch_gpu
from maskmine.pipelines.steps.jobs import PartReport
from maskmine.pipelines.watch.observers import RunObservers, observe
from maskmine.schemas.errors import IncompleteError, InputError
from tests.support.progress import PART_IMAGES, PARTS, PLAN, make_step, report

prometheus_client = pytest.importorskip("prometheus_client", reason="needs pip install '.[metrics]'")


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(by: Console) -> str:
    return by.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def some_work(watch: RunObservers) -> None:
    """A run goes on that had 30 parts, and makes two."""
    watch.on_plan(PLAN)
    watch.on_step_start(make_step(), range(30, PARTS))
    for part in (30, 31):
        watch.on_records("proposals", PART_IMAGES)
        watch.on_part_done(report(part, 2.0, gpu_percent=75.0, gpu_peak_bytes=2**30))


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def values(text: str) -> dict[str, float]:
    """The samples of the step `proposals`, by name, from what Prometheus reads."""
    lines = [line for line in text.splitlines() if 'step="proposals"' in line]
    return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_the_log_has_a_line_for_each_event_with_all_of_the_report(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with observe(console(), run="runs/coco", engine="ray", log_json=str(path)) as watch:
        some_work(watch)
        watch.on_step_done(make_step())
    lines = events(path)
    assert [line["event"] for line in lines] == [
        "run_begins",
        "planned",
        "stage_begins",
        "part",
        "part",
        "stage_ends",
        "run_ends",
    ]
    assert {line["run"] for line in lines} == {"runs/coco"}
    for line in lines:
        assert datetime.now(UTC) - datetime.fromisoformat(line["time"]) < timedelta(minutes=1)
        assert line["time"].endswith("Z")
    assert lines[1]["images"] == PLAN.images
    assert (lines[2]["parts"], lines[2]["todo"]) == (PARTS, 10)
    assert PartReport(**{name: lines[3][name] for name in PartReport.__slots__}) == report(
        30, 2.0, gpu_percent=75.0, gpu_peak_bytes=2**30
    )
    (step,) = lines[-1]["steps"]
    assert (step["parts_made"], step["images_made"], step["worker_s"]) == (2, 2 * PART_IMAGES, 4.0)


def test_a_line_can_be_read_as_soon_as_its_event_is_over_and_another_run_appends(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with observe(console(), run="run", engine="local", log_json=str(path)) as watch:
        some_work(watch)
        assert [line["part"] for line in events(path) if line["event"] == "part"] == [30, 31]
    with observe(console(), run="run", engine="local", log_json=str(path)):
        pass
    assert [line["event"] for line in events(path)].count("run_ends") == 2


@pytest.mark.parametrize(
    ("fault", "reason", "code"),
    [
        (KeyboardInterrupt(), "interrupted", 130),
        (IncompleteError("disk: full;\nfree some"), "incomplete", 4),
        (InputError("images: gone"), "bad_input", 2),
        (ZeroDivisionError("of nobody"), "failed", 1),
    ],
)
def test_the_last_line_says_why_the_run_ended(tmp_path: Path, fault: BaseException, reason: str, code: int) -> None:
    path = tmp_path / "log.jsonl"

    def run() -> None:
        metrics = str(tmp_path / "m.prom")
        with observe(console(), run="run", engine="local", log_json=str(path), metrics=metrics) as watch:
            some_work(watch)
            raise fault

    with pytest.raises(type(fault)):
        run()
    last = events(path)[-1]
    assert (last["event"], last["reason"], last["exit_code"]) == ("run_ends", reason, code)
    assert last["error"] == (" ".join(str(fault).split()) or "KeyboardInterrupt")
    assert last["steps"][0]["parts_made"] == 2
    assert f'maskmine_exit_code{{run="run"}} {code}.0' in (tmp_path / "m.prom").read_text()


def test_a_stalled_run_is_an_event_too(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    by = console()
    with observe(by, run="run", engine="local", log_json=str(path), stalled_after_s=0.05) as watch:
        some_work(watch)
        until = time.monotonic() + 10
        while "nothing has moved" not in said(by):
            assert time.monotonic() < until
            time.sleep(0.01)
    stalled = [line for line in events(path) if line["event"] == "stalled"]
    assert "proposals, unfinished parts 32-39; see whether" in stalled[0]["line"]
    assert events(path)[-1]["event"] == "run_ends"


def test_a_full_disk_ends_the_log_and_not_the_run(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    by = console()
    with pytest.raises(InputError, match=r"--log-json /nowhere/log: cannot be written \(No such file"):
        observe(by, run="run", engine="local", log_json="/nowhere/log").__enter__()
    with observe(by, run="run", engine="local", log_json="/dev/full") as watch:
        some_work(watch)
    assert said(by).count("--log-json /dev/full: cannot be written any more (No space left on device)") == 1


def test_the_file_for_prometheus_is_whole_after_each_part_and_counts_only_this_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.prom"
    with observe(console(), run="runs/coco", engine="local", metrics=str(path)) as watch:
        some_work(watch)
        text = path.read_text()
        assert values(text) == {
            "maskmine_images_total": 2 * PART_IMAGES,
            "maskmine_rejected_images_total": 2,
            "maskmine_made_total": 6 * PART_IMAGES,
            "maskmine_parts_made_total": 2,
            "maskmine_worker_seconds_total": 4,
            "maskmine_parts": PARTS,
            "maskmine_parts_done": 32,
            "maskmine_gpu_percent": 75,
            "maskmine_gpu_peak_bytes": 2**30,
        }
        moved = re.search(r'maskmine_last_progress_timestamp_seconds\{run="runs/coco"\} (\S+)', text)
        assert moved is not None
        assert abs(time.time() - float(moved[1])) < 60
        assert "maskmine_exit_code" not in text
    assert 'maskmine_exit_code{run="runs/coco"} 0.0' in path.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["mine.prom"]


def test_what_is_written_is_what_prometheus_parses(tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    path = tmp_path / "mine.prom"
    with observe(console(), run='a "run"\\', engine="local", metrics=str(path)) as watch:
        some_work(watch)
    families = {family.name: family for family in text_string_to_metric_families(path.read_text())}
    assert families["maskmine_images"].type == "counter"
    assert families["maskmine_parts"].type == "gauge"
    assert families["maskmine_images"].samples[0].labels == {"run": 'a "run"\\', "step": "proposals"}


def test_a_port_answers_while_the_run_goes_on_and_is_free_after_it() -> None:
    by = console()
    with observe(by, run="run", engine="local", metrics="0") as watch:
        some_work(watch)
        url = said(by).split()[1]
        assert url.startswith("http://127.0.0.1:")
        with urlopen(url, timeout=10) as answer:
            assert values(answer.read().decode())["maskmine_parts_done"] == 32
    port = int(url.split(":")[2].partition("/")[0])
    with socket.create_server(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize("place", ["70000", "nowhere.invalid:9400", "metrics.txt", "none/m.prom", "TAKEN"])
def test_a_place_for_metrics_that_cannot_be_used_is_refused_before_any_work(place: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = place.replace("TAKEN", str(taken.getsockname()[1]))
        log = tmp_path / "log.jsonl"
        with pytest.raises(InputError, match=f"^--metrics {re.escape(place)}: .*give a") as caught:
            observe(console(), run="run", engine="local", log_json=str(log), metrics=place).__enter__()
    assert "\n" not in str(caught.value)


def test_a_metrics_file_that_cannot_be_written_any_more_ends_the_metrics_and_not_the_run(tmp_path: Path) -> None:
    by = console()
    folder = tmp_path / "there"
    folder.mkdir()
    with observe(by, run="run", engine="local", metrics=str(folder / "m.prom")) as watch:
        (folder / "m.prom").unlink()
        folder.rmdir()
        some_work(watch)
    assert said(by).count("cannot be written any more (No such file or directory)") == 1


def test_without_the_library_metrics_say_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[metrics\]' in a checkout"):
        observe(console(), run="run", engine="local", metrics="0").__enter__()


class FakeNvml:
    """NVML of a machine with one GPU, whose use goes up and down."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, breaks_after: int = 10**6) -> None:
        self.asked = 0
        self.breaks_after = breaks_after

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != "GPU-1":
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:  # noqa: N802
        self.asked += 1
        if self.asked > self.breaks_after:
            raise self.NVMLError("GPU is lost")
        return SimpleNamespace(gpu=40 if self.asked % 2 else 80)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=1000 + self.asked)


@pytest.fixture
def fake_nvml(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeNvml]:
    def install(*, uuid: str | None = "GPU-1", **changes: Any) -> FakeNvml:
        nvml = FakeNvml(**changes)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.setattr(gpu_use, "_gpu_uuid", lambda device: uuid)
        return nvml

    return install


def test_the_use_of_the_gpu_is_the_mean_of_samples_and_its_memory_their_peak(
    fake_nvml: Callable[..., FakeNvml],
) -> None:
    nvml = fake_nvml()
    with watch_gpu("cuda", every_s=0.001) as use:
        while nvml.asked < 50:
            time.sleep(0.001)
    assert use.percent == pytest.approx(60, abs=1)
    assert use.peak_bytes == 1000 + nvml.asked


def test_a_part_shorter_than_the_pause_between_samples_has_one(fake_nvml: Callable[..., FakeNvml]) -> None:
    nvml = fake_nvml()
    with watch_gpu("cuda") as use:
        pass
    assert (use.percent, use.peak_bytes, nvml.asked) == (80, 1002, 2)  # the first is asked whether it can answer


@pytest.mark.parametrize("uuid", [None, "GPU-2"])
def test_without_a_gpu_or_one_that_nvml_knows_nothing_is_known(
    fake_nvml: Callable[..., FakeNvml], uuid: str | None
) -> None:
    fake_nvml(uuid=uuid)
    with watch_gpu("auto") as use:
        pass
    assert (use.percent, use.peak_bytes) == (None, None)


def test_a_gpu_that_is_lost_or_a_missing_library_does_not_end_the_part(
    fake_nvml: Callable[..., FakeNvml], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvml(breaks_after=1)
    with watch_gpu("cuda", every_s=0.001) as use:
        time.sleep(0.01)
    assert use.percent is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with watch_gpu("cuda") as use:
        pass
    assert use.percent is None


def test_reports_carry_the_use_of_the_gpu_and_none_on_the_cpu(fake_nvml: Callable[..., FakeNvml]) -> None:
    def make(part: int, tick: cells.Tick) -> PartReport:
        return report(part, 1.0)

    fake_nvml()
    (on_gpu,) = cells.each_report(cells.with_gpu_use(make, device="cuda")(3, lambda _: None))
    assert (on_gpu.part, on_gpu.gpu_percent, on_gpu.gpu_peak_bytes) == (3, 80.0, 1002)
    assert cells.with_gpu_use(make, device="cpu")(3, lambda _: None) == [report(3, 1.0)]
