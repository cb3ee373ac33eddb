"""Kill a run at random moments while a server captions its images, run it again, and look at bytes and requests.

    bash scripts/chaos captions --kills 20

What is guaranteed: an answer is on the disk before it counts, so no image whose answer was there is asked for again.
What was on its way at the kill may be: at most `requests_at_once` requests, with the same token as before.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.run_folder.caption_cells import stored_captioning
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import InputError
from maskmine.scripts.captioner.server import Asked, Captioner, captioner_on_loopback, picture_key
from maskmine.scripts.captioner.truth import picture_ids, says_what_is_left_out
from maskmine.scripts.crashes.trial import differences, hashes, keep_where_failed
from maskmine.scripts.demo_world.draw import draw_world
from maskmine.tuning.console import TextTable, plain_console

CONSOLE = plain_console(width=max(110, plain_console().width))
_LIMIT_S = 300.0
_POLL_S = 0.005


@dataclass
class Ending:
    """How a kill went: answers that the server had given, and that were on the disk; images asked for again, and those
    of them whose answer had been there. Without `faults` all is as in an undisturbed run."""

    answered: int = 0
    kept: int = 0
    again: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Trial:
    """A configuration, how many requests it has on their way at once, and what an undisturbed run makes of it."""

    config: Path
    at_once: int
    images: int
    expected: Mapping[str, str]


class AskedImages:
    """The images that a server was asked for, in order."""

    def __init__(self, world: Path, *, answer_s: float) -> None:
        self._ids, self._says = picture_ids(world), says_what_is_left_out(world)
        self._answer_s = answer_s
        self.images: list[str] = []

    def __call__(self, asked: Asked) -> str:
        image_id = self._ids[picture_key(asked.jpeg)]
        self.images.append(image_id)
        time.sleep(self._answer_s * random.Random(image_id).uniform(0.5, 1.5))
        return self._says(asked)


def main(
    kills: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    scenes: Annotated[int, typer.Option(min=10, help="Images.")] = 60,
    at_once: Annotated[int, typer.Option(min=1, help="Requests on their way at once.")] = 4,
    answer_s: Annotated[float, typer.Option(min=0, help="Seconds that an answer takes.")] = 0.08,
    seed: Annotated[int, typer.Option(help="The same seed kills at the same moments.")] = 0,
) -> None:
    """Kill, run again, compare. Exit code 1 when bytes differ, or an answer that was kept was asked for again."""
    scratch = Path(tempfile.mkdtemp(prefix="chaos-captions-"))
    os.environ["TMPDIR"] = str(scratch)
    failed = False
    try:
        draw_world(scratch / "world", scenes=scenes, seed=7)
        asked = AskedImages(scratch / "world", answer_s=answer_s)
        with captioner_on_loopback(asked) as server:
            trial = prepare(scratch, server, asked, at_once=at_once, images=scenes)
            endings = []
            for number, ending in enumerate(kill_each(scratch, trial, asked, kills=kills, seed=seed), start=1):
                endings.append(ending)
                what = "; ".join(ending.faults) or f"same bytes, {ending.again} asked for again"
                CONSOLE.print(f"{number}/{kills}: {ending.answered} answered, {ending.kept} kept: {what}", style="dim")
        CONSOLE.print(summary(endings, trial))
        failed = any(ending.faults for ending in endings)
    finally:
        keep_where_failed(scratch, failed=failed, console=CONSOLE)
    if failed:
        raise typer.Exit(1)


def prepare(scratch: Path, server: Captioner, asked: AskedImages, *, at_once: int, images: int) -> Trial:
    """Mine the world undisturbed. Raises InputError where that fails, or asks for an image twice."""
    world, config = scratch / "world", scratch / "config.json"
    human = {"kind": "coco", "annotations": str(world / "captions.json"), "images": str(world / "images")}
    endpoint = {"kind": "endpoint", "url": server.url, "model": "m", "requests_at_once": at_once}
    proposals = {"kind": "ground_truth", "annotations": str(world / "instances.json")}
    tree = {
        "captions": [human, endpoint],
        "regions": {"proposals": proposals, "clip": None},
        "pairs": {"rule": "labels"},
        "shards": {"images_per_part": max(1, images // 5)},
        "out": "given with --set",
    }
    config.write_text(json.dumps(tree))  # JSON is YAML
    out = scratch / "undisturbed"
    log = scratch / "undisturbed.txt"
    code = _start(config, out, log).wait(_LIMIT_S)
    if code or sorted(asked.images) != sorted(set(asked.images)) or len(asked.images) != images:
        raise InputError(f"chaos: an undisturbed run ended with {code}, {len(asked.images)} requests; see {log}")
    return Trial(config, at_once, images, hashes(out))


def kill_each(scratch: Path, trial: Trial, asked: AskedImages, *, kills: int, seed: int) -> Iterator[Ending]:
    """Kill when the server was asked for a random number of images, and a random moment later."""
    for number in range(kills):
        chance = random.Random(f"{seed} {number}")
        folder = scratch / f"{number:03d}"
        folder.mkdir()
        asked.images.clear()
        out, ending = folder / "run", Ending()
        driver = _start(trial.config, out, folder / "log-0.txt")
        due, delay_s = chance.randint(1, trial.images), chance.uniform(0, 0.2)
        while len(asked.images) < due and driver.poll() is None:
            time.sleep(_POLL_S)
        time.sleep(delay_s)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        time.sleep(0.3)  # answers that are on their way to nobody
        ending.answered, before = len(asked.images), set(asked.images)
        kept = _kept(out)
        ending.kept = len(kept)
        asked.images.clear()
        code = _start(trial.config, out, folder / "log-1.txt").wait(_LIMIT_S)
        ending.again = len(before & set(asked.images))
        _look(ending, trial, out, code=code, kept=kept, asked_then=list(asked.images))
        if not ending.faults:
            shutil.rmtree(folder)
        yield ending


def summary(endings: list[Ending], trial: Trial) -> TextTable:
    """One row."""
    table = TextTable(box=None, pad_edge=False)
    for name in ("kills", "same bytes", "answers kept", "asked for again", "of those kept", "most allowed"):
        table.add_column(name, justify="right")
    failed = sum(bool(ending.faults) for ending in endings)
    kept = [ending.kept for ending in endings]
    again = [ending.again for ending in endings]
    table.add_row(
        str(len(endings)),
        str(len(endings) - failed),
        f"{min(kept)}–{max(kept)} of {trial.images}",
        f"{sum(again)}, ≤ {max(again)} a kill",
        "0" if not failed else "see above",
        f"{trial.at_once} a kill",
    )
    return table


def _start(config: Path, out: Path, log: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "maskmine.pipelines.cli.main", "mine", str(config), "--set", f"out={out}"]
    with log.open("wb") as file:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def _kept(out: Path) -> set[str]:
    """The images whose answers are on the disk."""
    found: set[str] = set()
    for cells in stored_captioning(RunFolder(str(out))):
        for folder in (cells.folder, cells.answers_folder):
            for name in cells.run.names(folder):
                rows = cells.run.read_rows(folder, name, row_type=cells.row_type, fingerprint=cells.fingerprint)
                found.update(row.image_id for row in rows)
    return found


def _look(ending: Ending, trial: Trial, out: Path, *, code: int, kept: set[str], asked_then: list[str]) -> None:
    if code:
        ending.faults.append(f"the second run ended with {code}")
        return
    ending.faults += differences(hashes(out), trial.expected)[:5]
    ending.faults += [f"verify: {problem}" for problem in verify_run(RunFolder(str(out)))][:5]
    if twice := kept & set(asked_then):
        ending.faults.append(f"{len(twice)} images were asked for again, whose answers were kept")
    if more := [image for image, count in Counter(asked_then).items() if count > 1]:
        ending.faults.append(f"{len(more)} images were asked for twice by the second run")
    if ending.again > trial.at_once:
        ending.faults.append(f"{ending.again} images were asked for again, more than were on their way")


if __name__ == "__main__":
    try:
        typer.run(main)
    except InputError as error:
        sys.exit(str(error))
