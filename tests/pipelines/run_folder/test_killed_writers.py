"""Every command that writes, killed at each file that it opens, renames or removes: run again it comes to the bytes of
an undisturbed one, and nothing else is left. Mining has tests of its own (`test_crashes.py`), and so has tuning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmine.mining.exports.filters import Selection
from maskmine.mining.images.decode import DecodedImage
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.review import server
from maskmine.pipelines.review.store import Store
from maskmine.pipelines.run_folder.folder import read_folder
from maskmine.pipelines.segment import segment
from maskmine.tuning.segmentation.segmenter import Segmentation, Segmenter
from tests.support.killed import killed_at_each_write
from tests.support.toy_shards import contents, export

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # so Python 3.12 comments on any fork

Write = Callable[[Path], object]


def assert_same_after_each_kill(write: Write, scratch: Path, *, at_least: int) -> None:
    write(scratch / "undisturbed")
    expected = contents(scratch / "undisturbed")
    moments = 0
    for moment, found in killed_at_each_write(write, scratch):
        assert found.keys() == expected.keys(), moment
        assert [name for name in found if found[name] != expected[name]] == [], moment
        moments += 1
    assert moments >= at_least


def command(*words: str) -> Write:
    """A command that writes below a folder, in the words of the command line."""

    def run(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        assert run_app([word.replace("FOLDER", str(folder)) for word in words]) == 0

    return run


COMMANDS: dict[str, Sequence[str]] = {
    "show": ("show", "RUN", "--to", "FOLDER/sheet.png", "--images", "1"),
    "diff": ("diff", "RUN", "RUN", "--to", "FOLDER/diff.html"),
    "evaluate-pairs": ("evaluate-pairs", "RUN", "--truth", "WORLD/instances.json", "--to", "FOLDER"),
    "leakage": ("leakage", "RUN", "--to", "FOLDER"),
    "audit": ("audit", "RUN", "--draw", "FOLDER/sample.csv"),
    "init": ("init", "--from", "WORLD/captions.json", "--to", "FOLDER/my.yaml"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_killed_while_it_writes_is_run_again(
    mined: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("RUN", str(mined)).replace("WORLD", str(mined.parent)) for word in COMMANDS[name]]
    assert_same_after_each_kill(command(*words), tmp_path, at_least=2)


@pytest.mark.parametrize("to", ["ovseg"])
def test_an_export_that_is_killed_goes_on_to_the_same_folder(scored: Path, tmp_path: Path, to: str) -> None:
    few = Selection(nouns=("sky",), min_similarity=0.15)  # two samples
    assert_same_after_each_kill(lambda folder: export(scored, folder, to, selection=few), tmp_path, at_least=15)


def test_a_segmentation_that_is_killed_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb_HW3 = np.zeros((8, 8, 3), np.uint8)

    def decode(paths: Sequence[str], *, settings: Segmenter) -> Iterator[tuple[list[int], list[DecodedImage]]]:
        for number, path in enumerate(paths):
            yield [number], [DecodedImage(rgb_HW3, sha256=path, orientation=1)]

    def open_fake(settings: Segmenter) -> Any:
        one = Segmentation(("a", "b"), np.zeros((8, 8), np.int32), (None, None), (), 0)
        return lambda images, **_: [one for _ in images]

    monkeypatch.setattr(segment, "decode_batches", decode)

    def render(path: str, *_: object, name: str, **__: object) -> tuple[dict[str, str], dict[str, bytes]]:
        figures = {"image": path, "image_sha256": path}
        return figures, {f"{name}.json": json.dumps(figures).encode(), f"{name}.labels.png": b"", f"{name}.png": b""}

    monkeypatch.setattr(segment, "describe", lambda settings: {})
    monkeypatch.setattr(segment, "render_files", render)
    monkeypatch.setattr(Segmenter, "open", open_fake)
    settings = Segmenter.model_construct()

    def write(folder: Path) -> None:
        for _ in segment.segment_images(settings, ["one.png", "two.png"], classes=["a", "b"], to=str(folder)):
            pass

    assert_same_after_each_kill(write, tmp_path, at_least=12)


def test_a_review_that_is_killed_leaves_verdicts_alone(
    mined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "run_server", lambda *_, **__: None)

    def write(folder: Path) -> None:
        run = read_folder(str(folder))
        server.review(run, reviewer="ann", order="random", size=1, seed=0, host="", port=0, say=lambda line: None)
        Store(run).add(("11", "disc", "0" * 64), "right", reviewer="ann", seconds=None)

    def copy(folder: Path) -> None:
        shutil.copytree(mined, folder)

    moments = 0
    for moment, found in killed_at_each_write(write, tmp_path, prepare=copy):
        verdicts = [name for name in found if name.startswith("verdicts/")]
        assert verdicts
        assert all(name.endswith(".parquet") for name in verdicts), moment
        moments += 1
    assert moments == 2  # open and renamed
