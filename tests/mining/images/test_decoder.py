"""A poisonous picture costs itself alone: it is rejected in bounded time, and the next picture is read as ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from maskmine.mining.images import child_decoder as decoder
from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.decode import DecodedImage
from maskmine.mining.images.read import read_head
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection
from tests.support import toy
from tests.support.hostile.in_process import image_size, read_image
from tests.support.paths import ROOT

MAX_PIXELS = 10**6


def picture(folder: Path, *, poison: str | None = None, name: str = "picture.png") -> str:
    path = folder / name
    (toy.poison if poison else toy.save_picture)(path, ("square", "bar"), *([poison] if poison else []))
    return str(path)


def read(path: str, **limits: float) -> DecodedImage | Rejection:
    return Decoding(**limits).read(path, max_pixels=MAX_PIXELS)  # type: ignore[arg-type]


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pids of the children that are started in a test, which begins without any."""
    decoder._end_children()
    pids: list[int] = []
    start = decoder._start_child

    def counted(**tries: int) -> decoder._Child:
        child = start(**tries)
        pids.append(child.process.pid)
        return child

    monkeypatch.setattr(decoder, "_start_child", counted)
    return pids


def test_a_child_reads_what_this_process_would_read(tmp_path: Path) -> None:
    for name, mode in [("a.png", "RGBA"), ("b.jpg", "RGB"), ("c.png", "L"), ("d.webp", "RGB"), ("e.gif", "P")]:
        Image.fromarray(toy.draw(("disc",))).convert(mode).save(tmp_path / name)
        here, there = read_image(str(tmp_path / name), max_pixels=MAX_PIXELS), read(str(tmp_path / name))
        assert isinstance(here, DecodedImage)
        assert isinstance(there, DecodedImage)
        assert np.array_equal(here.rgb_HW3, there.rgb_HW3)
        assert (here.sha256, here.orientation) == (there.sha256, there.orientation)
        assert there.rgb_HW3.flags.writeable
        assert Decoding().size(str(tmp_path / name), max_pixels=MAX_PIXELS) == image_size(str(tmp_path / name))


def test_a_child_rejects_what_this_process_would_reject(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(Path(picture(tmp_path)).read_bytes()[:-40])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_text("<html>")
    for name in ("broken.png", "empty.jpg", "page.jpg", "absent.jpg"):
        path = str(tmp_path / name)
        answer = read(path)
        assert isinstance(answer, Rejection)
        assert answer == read_image(path, max_pixels=MAX_PIXELS)
    assert Decoding().read(picture(tmp_path), max_pixels=9) == read_image(picture(tmp_path), max_pixels=9)


def test_the_size_is_read_from_the_head_of_a_large_file(tmp_path: Path) -> None:
    path = picture(tmp_path)
    with open(path, "ab") as file:
        file.write(bytes(1 << 20))
    assert len(read_head(path)) == 1 << 18  # type: ignore[arg-type]
    assert Decoding().size(path, max_pixels=MAX_PIXELS) == (toy.HEIGHT_PX, toy.WIDTH_PX)


@pytest.mark.parametrize(
    ("poison", "rejection", "started"),
    [
        ("segfault", Rejection("worker_crash", "decoding ended its process with SIGSEGV, tried 2 times"), 3),
        ("loop", Rejection("record_timeout", "decoding took more than 0.5 s, tried 2 times"), 3),
        ("sleep", Rejection("record_timeout", "decoding took more than 0.5 s, tried 2 times"), 3),
        ("memory", Rejection("worker_crash", "decoding needs more than 2 GB of memory"), 1),
        ("exception", Rejection("worker_crash", "decoding ended its process with exit code 1, tried 2 times"), 3),
    ],
)
def test_a_poisonous_picture_is_rejected_after_its_attempts_and_harms_no_other(
    starts: list[int], tmp_path: Path, poison: str, rejection: Rejection, started: int
) -> None:
    limits = {"timeout_s": 0.5, "memory_gb": 2.0, "attempts": 2}
    good, bad = picture(tmp_path), picture(tmp_path, poison=poison, name="bad.png")
    assert read(bad, **limits) == rejection
    assert isinstance(read(good, **limits), DecodedImage)
    assert len(starts) == started


def test_a_header_that_never_ends_is_found_when_sizes_are_read(tmp_path: Path) -> None:
    path = picture(tmp_path, poison="header loop")
    answer = Decoding(timeout_s=0.5, attempts=1).size(path, max_pixels=MAX_PIXELS)
    assert answer == Rejection("record_timeout", "decoding took more than 0.5 s, tried once")


def test_a_process_that_is_killed_once_rejects_no_picture(starts: list[int], tmp_path: Path) -> None:
    assert isinstance(read(picture(tmp_path, poison=f"once:{tmp_path}/died")), DecodedImage)
    assert len(starts) == 2


def test_an_idle_child_that_was_killed_rejects_no_picture(starts: list[int], tmp_path: Path) -> None:
    path = picture(tmp_path)
    assert isinstance(read(path), DecodedImage)
    os.kill(starts[0], signal.SIGKILL)
    assert isinstance(read(path), DecodedImage)
    assert len(starts) == 2


def test_idle_children_that_were_all_killed_reject_no_picture(starts: list[int], tmp_path: Path) -> None:
    path = picture(tmp_path)
    idle = [decoder._start_child() for _ in range(3)]
    decoder._idle.extend(idle)
    for child in idle:
        os.kill(child.process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)
    assert isinstance(read(path), DecodedImage)
    assert len(starts) == 4


def test_threads_use_as_many_children_as_there_are_threads(starts: list[int], tmp_path: Path) -> None:
    paths = [picture(tmp_path, name=f"{n}.png") for n in range(40)]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(read, paths))
    assert all(isinstance(answer, DecodedImage) for answer in answers)
    assert 1 <= len(starts) <= 3


def test_poison_in_one_thread_leaves_the_pictures_of_the_others_alone(tmp_path: Path) -> None:
    good = [picture(tmp_path, name=f"{n}.png") for n in range(6)]
    bad = [picture(tmp_path, poison=poison, name=f"{poison}.png") for poison in ("segfault", "loop", "exception")]
    paths = [path for pair in zip(good, bad * 2, strict=True) for path in pair]
    with ThreadPoolExecutor(4) as pool:
        answers = dict(zip(paths, pool.map(lambda path: read(path, timeout_s=0.5), paths), strict=True))
    assert all(isinstance(answers[path], DecodedImage) for path in good)
    assert all(isinstance(answers[path], Rejection) for path in bad)


def test_threads_wait_for_no_harmful_picture_when_decoding_is_over(
    starts: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "_is_over", False)
    paths = [picture(tmp_path, poison="sleep", name=f"{n}.png") for n in range(8)]
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(read, path, timeout_s=60) for path in paths]
        until = time.monotonic() + 30
        while len(decoder._asked) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        decoder.end_decoding()
        errors = [one.exception(timeout=20) for one in asked]
    assert [type(error) for error in errors] == [decoder.DecodingOverError] * 8
    assert len(starts) == 2
    assert not any(psutil.pid_exists(pid) for pid in starts)


def test_a_child_without_a_parent_ends_by_itself_even_in_an_endless_loop(tmp_path: Path) -> None:
    path = picture(tmp_path, poison="loop")
    program = (
        "import sys; from maskmine.mining.images.child_decoder import *; "
        "Decoding(timeout_s=3).read(sys.argv[1], max_pixels=10**6)"
    )
    parent = psutil.Popen([sys.executable, "-c", program, path], cwd=ROOT)
    children = _wait_for_busy_children(parent)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_children_that_wait_end_with_their_parent(tmp_path: Path) -> None:
    program = (
        "import sys; from maskmine.mining.images import child_decoder as decoder; "
        "decoder.Decoding().read(sys.argv[1], max_pixels=10**6); "
        "print(decoder._idle[0].process.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, picture(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert not psutil.pid_exists(int(done.stdout))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # so Python 3.12 comments on any fork
def test_a_forked_process_does_not_talk_through_its_parents_pipes(starts: list[int], tmp_path: Path) -> None:
    path = picture(tmp_path)
    assert isinstance(read(path), DecodedImage)
    pid = os.fork()
    if not pid:  # nothing but a plain exit may leave this branch
        os._exit(0 if isinstance(read(path), DecodedImage) and len(starts) == 2 else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_child_that_does_not_start_is_told_in_one_line(
    starts: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InputError, match=r"does not start \(it ended with 1\)"):
        read(picture(tmp_path))
    assert starts == []


def test_a_child_that_is_killed_while_it_starts_is_replaced(
    starts: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\n[ -e {tmp_path}/twice ] && exec {sys.executable} "$@"\n'
        f"[ -e {tmp_path}/once ] && touch {tmp_path}/twice\ntouch {tmp_path}/once\nkill -9 $$\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert isinstance(read(picture(tmp_path)), DecodedImage)


def test_an_interrupted_request_leaves_no_half_answer_for_the_next(
    starts: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> bytearray:
        raise KeyboardInterrupt

    path = picture(tmp_path)
    assert isinstance(read(path), DecodedImage)
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "read_exactly", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read(path)
    assert isinstance(read(path), DecodedImage)
    assert len(starts) == 2


def _wait_for_busy_children(parent: psutil.Process) -> list[psutil.Process]:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        children = parent.children()
        if children and children[0].cpu_times().user > 0.5:
            return list(children)
        threading.Event().wait(0.05)
    raise AssertionError("no child began to loop")
