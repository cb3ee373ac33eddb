"""Every input of `shared/faults` gives what is right. Each was wrong, or a traceback, in version 0.1.0.

A folder of the corpus makes its input (`make.py`) and runs the program on it (`run.sh`); what is right stands here.
Its pictures show a red ball, a blue kite and a green box, so that the colour below a mask tells whose mask it is.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.faults.forking_server import serving, write_client
from tests.support.paths import ROOT

CORPUS = ROOT.parent / "shared" / "faults"
COLOURS = {"ball": (195, 33, 32), "kite": (33, 60, 191), "box": (34, 158, 62)}
ALL = {"ball", "kite", "box"}

pytestmark = pytest.mark.skipif(not CORPUS.is_dir(), reason=f"{CORPUS} is not there")


@dataclass
class Outcome:
    """What a case printed, and the folder that it worked in."""

    text: str
    folder: Path

    def after(self, command: str) -> str:
        """What the calls of `maskmine` that begin so printed, with their exit codes."""
        return "\n".join(
            re.findall(rf"^\$ maskmine {re.escape(command)}.*?exit code \d+", self.text, re.DOTALL | re.MULTILINE)
        )

    def nouns(self, run: str = "run", *, check_masks: bool = True) -> dict[str, set[str]]:
        """Image → nouns; one whose mask is not that of the object that it names is a failed test."""
        found: dict[str, set[str]] = {}
        for record, colour in samples(self.folder / run):
            noun, image = record["noun"], record["image_id"]
            if check_masks and noun in COLOURS:
                assert np.abs(colour - COLOURS[noun]).max() < 8, f"{noun} of {image} has colour {colour}"
            found.setdefault(image, set()).add(noun)
        return found


def samples(run: Path) -> Iterator[tuple[dict[str, str], np.ndarray]]:
    """Each pair's JSON, and the mean colour below its mask."""
    for shard in sorted((run / "shards").glob("*.tar")):
        members: dict[str, dict[str, bytes]] = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                members.setdefault(key, {})[suffix] = tar.extractfile(member).read()  # type: ignore[union-attr]  # files only
        for parts in members.values():
            crop = np.asarray(Image.open(io.BytesIO(parts["jpg"])).convert("RGB"))
            mask = np.asarray(Image.open(io.BytesIO(parts["mask.png"]))) > 0
            yield json.loads(parts["json"]), crop[mask].mean(axis=0)


def whole(*images: str, run: str = "run", nouns: set[str] = ALL) -> Callable[[Outcome], None]:
    """These images, and no other, have these nouns with their own masks."""

    def right(outcome: Outcome) -> None:
        assert outcome.nouns(run) == dict.fromkeys(images, nouns)

    return right


def broken_records(outcome: Outcome) -> None:
    assert outcome.nouns() == {"1": {"ball"}}
    assert outcome.nouns("run2") == {"a": ALL}
    assert "no_caption" not in outcome.text
    assert re.search(r"broken_record +max_rejected +3 ", outcome.after("errors run\n"))
    assert re.search(r"broken_record +max_rejected +1 +b: ", outcome.after("errors run2"))


def coco_numbers(outcome: Outcome) -> None:
    for run in ("run-nan", "run-bigid", "run-float"):
        assert outcome.nouns(run) == {"1": ALL}


def crowds(outcome: Outcome) -> None:
    assert "crowds: true" in outcome.after("errors run")


def dialects(outcome: Outcome) -> None:
    bars, semicolons = (outcome.after(f"mine c.yaml{more}") for more in ("\n", " --set"))
    assert "results.csv: read as bar-separated" in bars
    assert re.search(r"^images +2$", bars, re.MULTILINE)
    assert "exit code 0" in bars
    assert "semicolon.csv: read as semicolon-separated" in semicolons
    assert "exit code 5" in semicolons  # other images in the same folder


def starts(outcome: Outcome) -> None:
    assert "exit code 0" in outcome.text
    assert outcome.nouns() == {"a": ALL}


def markup_in_errors(outcome: Outcome) -> None:
    assert "exit code 0" in outcome.after("errors run")
    assert "[/model/2013/x.jpg]" in outcome.after("errors run")


def exported_names(outcome: Outcome) -> None:
    assert "'train/0001.jpg'" in outcome.text
    assert "'val/0001.jpg'" in outcome.text


def latin1(outcome: Outcome) -> None:
    assert "exit code 0" in outcome.text
    found = outcome.nouns()
    assert found.pop("a") == ALL
    assert len(found) <= 1


def ids(outcome: Outcome) -> None:
    assert outcome.nouns() == {"1": ALL, "2": ALL}
    assert "00000000-0000-0000-0000-000000000005" in outcome.after("errors run2")


def entities(outcome: Outcome) -> None:
    found = outcome.nouns(check_masks=False)
    assert found == {"a": {"ball", "kite"}, "b": {"kid", "ball", "kite"}, "c": {"box", "ball"}}


def leftovers(outcome: Outcome) -> None:
    assert re.search(r"^images +1$", outcome.text, re.MULTILINE)
    assert outcome.nouns() == {"a": ALL}


def brackets(outcome: Outcome) -> None:
    for shown in ("photo[final]", "[object Object]"):
        assert shown in outcome.after("errors")
    assert "runs/coco [v1]: 1 sample verified" in outcome.after("verify")
    assert "e [x]: train 1 pair," in outcome.after("export")


def lines_that_help(outcome: Outcome) -> None:
    similarity, skipped, share, checkpoint, braces, prism = re.split(r"(?<=exit code \d)\n", outcome.text.strip())
    assert "best_region_per_noun" in similarity
    assert "did you mean `min_similarity`" not in similarity
    assert "exit code 0" in skipped or "quotes" in skipped
    assert "exit code 0" in share or "0.1" in share
    assert "with config.json and model.safetensors" in checkpoint
    assert "00000.tar" in braces
    assert "Traceback" not in outcome.text
    assert "RuntimeError" not in prism
    assert "exit code 4" in prism


def both_runs(outcome: Outcome) -> None:
    assert outcome.nouns() == {"1": ALL}
    assert outcome.nouns("run2") == {"1": ALL}


def turned(outcome: Outcome) -> None:
    # A square shows in no size whether its masks are turned with it, so none is taken, as with every other format.
    assert outcome.nouns() == {}
    assert re.search(r"PNG text turns the\s+picture", outcome.after("errors run"))


def suffixes(outcome: Outcome) -> None:
    assert outcome.nouns() == {"a": ALL}
    assert "missing_file" not in outcome.text
    for image in "ce":
        assert f"{image}: the annotations do not name this image" in outcome.after("errors run\n")
    for image in "bc":
        assert f"{image}: the annotations do not name this image" in outcome.after("errors run2")


def binary_text(outcome: Outcome) -> None:
    for run in ("run", "run2"):
        assert outcome.nouns(run) == {"1": ALL, "2": ALL}


def pattern(outcome: Outcome) -> None:
    assert outcome.nouns() == {"a": {"ball"}}


def kept_apart(outcome: Outcome) -> None:
    first = hashlib.sha256((outcome.folder / "cam1" / "frame1.jpg").read_bytes()).hexdigest()
    described = [json.loads(path.read_text()) for path in (outcome.folder / "maps").rglob("*.json")]
    assert first in {each["image_sha256"] for each in described}
    assert len(described) == 2 or "exit code 2" in outcome.after("segment cam2")


def categories(outcome: Outcome) -> None:
    for run in ("run-text", "run-float"):
        assert outcome.nouns(run) == {"1": ALL}


def flat_polygon(outcome: Outcome) -> None:
    assert {noun for nouns in outcome.nouns(check_masks=False).values() for noun in nouns} == ALL


def no_size(outcome: Outcome) -> None:
    assert outcome.nouns() == {"1": ALL}
    assert "exit code 0" in outcome.text


def unquoted(outcome: Outcome) -> None:
    assert outcome.nouns() == {"a": {"ball"}, "b": {"kite"}, "c": {"box"}, "d": {"ball"}}


RIGHT: dict[str, Callable[[Outcome], None]] = {
    "broken-record-masked": broken_records,
    "coco-json-numbers": coco_numbers,
    "coco-name-backslash": both_runs,
    "compounds-across-lines": whole("a"),
    "crowds-called-no-mask": crowds,
    "csv-dialects": dialects,
    "cwd-package-schemas": starts,
    "errors-markup-crash": markup_in_errors,
    "export-coco-file-name": exported_names,
    "first-caption-empty": whole("1"),
    "folder-latin1-name": latin1,
    "hf-float-or-binary-ids": ids,
    "hf-some-bytes-null": whole("a", "b"),
    "html-entities": entities,
    "json-list-as-jsonl": whole("1"),
    "macos-leftovers": leftovers,
    "markup-in-details": brackets,
    "messages": lines_that_help,
    "nested-captions": both_runs,
    "orientation-png": turned,
    "other-picture-suffixes": suffixes,
    "parquet-binary-text": binary_text,
    "pattern-below-brackets": pattern,
    "png-large-text": whole("a", "b"),
    "segment-overwrites": kept_apart,
    "truth-category-as-text": categories,
    "truth-flat-polygon": flat_polygon,
    "truth-one-image-without-size": no_size,
    "truth-size-as-text": whole("1"),
    "tsv-quote-swallows-rows": unquoted,
    "webdataset-dotted-keys": whole("a", "b.v2", "c_jpg.rf.01"),
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Stand-ins for `python` and `maskmine` that start at once."""
    folder = tmp_path_factory.mktemp("programs")
    address = folder / "server"
    with serving(address):
        yield {name: write_client(folder / name, address, name) for name in ("python", "maskmine")}


def test_every_case_of_the_corpus_is_judged() -> None:
    assert {path.parent.name for path in CORPUS.glob("*/run.sh")} == set(RIGHT)


@pytest.mark.parametrize("name", RIGHT)
def test_corpus(name: str, programs: dict[str, Path], tmp_path: Path) -> None:
    environment = os.environ | {
        "LINES_SHOWN": "20",
        "MASKMINE": str(programs["maskmine"]),
        "PLAIN_MASKMINE": str(programs["maskmine"]),
        "PY": str(programs["python"]),
        "PROJECT": str(ROOT),
        "WORK": str(tmp_path / "case"),
    }
    command = ["sh", str(CORPUS / name / "run.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, errors="replace")
    assert done.returncode == 0, done.stderr
    outcome = Outcome(text=done.stdout, folder=tmp_path / "case")
    try:
        RIGHT[name](outcome)
    except AssertionError as error:
        error.add_note(done.stdout)
        raise
