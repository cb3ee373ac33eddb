"""`--json` prints one line of JSON and nothing else on stdout; `--quiet` and `--verbose` say how much is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskmine.pipelines.cli.main import run_app
from tests.support import toy


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["verify", "RUN"], {"verified": True, "problems": []}),
        (["export", "RUN", "--to", "parquet", "--out", "FOLDER/to"], {"samples": {"train": len(toy.PAIRS)}}),
        (["report", "RUN", "--to", "FOLDER/page.html", "--samples", "0"], {"shown": 0}),
        (["status", "RUN"], {"complete": True, "not_published": None}),
    ],
)
def test_a_result_as_json_is_one_object(
    mined: Path, tmp_path: Path, words: list[str], expected: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("RUN", str(mined)).replace("FOLDER", str(tmp_path)) for word in words]
    assert run_app([*words, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert expected.items() <= json.loads(line).items()


def test_what_verify_finds_is_json_too(mined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("plan.json", "manifest.json"):
        (tmp_path / name).write_bytes((mined / name).read_bytes())
    assert run_app(["verify", str(tmp_path), "--json"]) == 4
    found = json.loads(capsys.readouterr().out)
    assert not found["verified"]
    assert found["problems"][0]["file"] == "_SUCCESS"


def test_a_quiet_mine_says_what_should_be_known_and_a_loud_one_a_line_a_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(toy.write_config(toy.write_toy_world(tmp_path)))
    assert run_app(["mine", config, "--quiet", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["totals"]["samples"] == len(toy.PAIRS)
    assert shown.err == ""
    assert run_app(["mine", config, "--quiet", "--set", "shards.quality=90"]) == 0
    assert "shards of the set that is there are made again (shards.quality was 95, is 90)" in capsys.readouterr().err
    assert run_app(["mine", config, "--verbose", "--set", "shards.quality=91"]) == 0
    assert "shards 00002: 3 → " in capsys.readouterr().err
    assert run_app(["mine", config, "--verbose", "--quiet"]) == 2
