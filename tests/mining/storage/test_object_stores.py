"""Object stores: a run on S3 has the bytes of a run on a disk, and asks for little.

The server is moto's, a process of its own on this machine. What it logs says which requests were made.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskmine.mining.images.read import read_bytes
from maskmine.mining.vocabulary import count_nouns
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.engines.engine import Engine, RunObserver
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.run_folder.folder import RunFolder, read_folder
from maskmine.pipelines.settings.mining import load_mining
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.status import run_status
from maskmine.schemas.rows import ImageRow, Rejection
from tests.support import toy
from tests.support.hostile.in_process import read_image
from tests.support.runs import (
    Finished,
    FunctionEngine,
    Recorder,
    Server,
    as_options,
    everything_at,
    hashes,
    run_toy,
    samples,
)

pytest.importorskip("flask_cors", reason="needs moto's S3 server: pip install 'moto[server]'")
boto3 = pytest.importorskip("boto3", reason="needs moto's S3 server: pip install 'moto[server]'")
s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install '.[s3]'")

# Ray leaves the handles of the processes that it starts to the garbage collector, and so does s3fs with its sockets.
pytestmark = pytest.mark.filterwarnings("ignore:.*:ResourceWarning")


@pytest.fixture(scope="module")
def on_disk(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the disk."""
    out = tmp_path_factory.mktemp("disk") / "run"
    run_toy(toy.write_config(world), f"out={out}")
    return out


def without_places(found: dict[str, str]) -> dict[str, str]:
    """Hashes of files without those that say where the images lie."""
    return {name: sha for name, sha in found.items() if name != "plan.json" and not name.startswith("images/")}


# The whole pipeline.


def test_a_run_on_s3_has_the_bytes_of_a_run_on_a_disk(
    server: Server, world: Path, world_url: str, on_disk: Path, on_s3: str, tmp_path: Path
) -> None:
    copy = server.download(on_s3, tmp_path)
    assert without_places(hashes(str(copy))) == without_places(hashes(str(on_disk)))
    for part in range(3):
        name = f"{part:05d}.parquet"
        there = RunFolder(on_s3).read_rows("images", name, row_type=ImageRow)
        here = RunFolder(str(on_disk)).read_rows("images", name, row_type=ImageRow)
        assert [replace(row, path=str(row.path).replace(world_url, str(world))) for row in there] == here


def test_regions_of_a_run_on_s3_serve_another_one_there(
    server: Server, bucket: str, world: Path, world_url: str, on_disk: Path, on_s3: str, tmp_path: Path
) -> None:
    def regenerate(old: str, new: str, *overrides: str) -> list[str]:
        changes = ["captions.per_image=all", "pairs.min_count=2", f"out={new}", *overrides]
        settings, recorder = load_mining(str(toy.write_config(world)), overrides=changes), Recorder()
        mine(settings, engine=LocalEngine(), observer=recorder, regions_from=old)
        return recorder.steps

    there = f"s3://{bucket}/new"
    assert "proposals" not in regenerate(on_s3, there, *everything_at(world_url))
    regenerate(str(on_disk), str(tmp_path / "here"))
    copy = server.download(there, tmp_path / "copy")
    assert without_places(hashes(str(copy))) == without_places(hashes(str(tmp_path / "here")))
    assert "derived_from.json" in os.listdir(copy)


def test_every_command_works_on_a_run_on_s3(on_s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["status", on_s3, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"]
    assert run_app(["verify", on_s3]) == 0
    assert "7 samples verified" in capsys.readouterr().out
    assert run_app(["errors", on_s3, "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(image["image_id"], image["step"], image["reason"]) for image in told} == toy.REJECTIONS
    assert run_app(["show", on_s3, "--to", str(tmp_path / "sheet.png")]) == 0
    assert "4 photographs, 7 pairs" in capsys.readouterr().out


def test_a_second_run_makes_nothing_and_a_third_what_another_process_deleted(
    server: Server, bucket: str, own_run: str, world: Path, world_url: str, tmp_path: Path
) -> None:
    overrides = [*everything_at(world_url), f"out={own_run}"]
    config = toy.write_config(world)
    before = hashes(str(server.download(own_run, tmp_path / "before")))
    run, outcome, recorder = run_toy(config, *overrides)
    assert (outcome.manifest, recorder.made) == (None, [])
    server.client.delete_object(Bucket=bucket, Key="run/proposals/00001.parquet")
    server.client.delete_object(Bucket=bucket, Key="run/shards/00002.tar")
    assert {step.step: tuple(step.missing) for step in run_status(run).steps if step.missing} == {
        "proposals": (1,),
        "shards": (2,),
    }
    _, _, recorder = run_toy(config, *overrides)
    assert recorder.made == [("proposals", 1), ("shards", 2)]
    assert hashes(str(server.download(own_run, tmp_path / "after"))) == before


def test_what_another_process_writes_and_deletes_is_seen_at_once(server: Server, bucket: str) -> None:
    run = RunFolder(f"s3://{bucket}/run")
    assert (run.names("nouns"), run.exists("nouns", "00000.parquet")) == ([], False)
    server.client.put_object(Bucket=bucket, Key="run/nouns/00000.parquet", Body=b"x")
    assert (run.names("nouns"), run.exists("nouns", "00000.parquet")) == (["00000.parquet"], True)
    server.client.put_object(Bucket=bucket, Key="run/nouns/00001.parquet", Body=b"x")
    assert run.done("nouns") == {0, 1}
    server.client.delete_object(Bucket=bucket, Key="run/nouns/00000.parquet")
    assert (run.done("nouns"), run.exists("nouns", "00000.parquet")) == ({1}, False)


def test_a_cap_on_nouns_counts_over_all_cells_on_s3(
    own_run: str, on_disk: Path, world: Path, world_url: str, tmp_path: Path
) -> None:
    config = toy.write_config(world)
    shutil.copytree(on_disk, tmp_path / "run")
    here, _, _ = run_toy(config, f"out={tmp_path / 'run'}", "pairs.max_per_noun=1")
    there, _, recorder = run_toy(config, *everything_at(world_url), f"out={own_run}", "pairs.max_per_noun=1")
    assert recorder.steps == ["selection", "shards"]
    assert samples(there) == samples(here)
    assert [str(problem) for problem in verify_run(there)] == []


def test_a_file_url_and_a_relative_path_are_the_absolute_path(
    world: Path, on_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = str(toy.write_config(world))
    absolute = load_mining(config, overrides=[*everything_at(str(world)), f"out={on_disk}"])
    for place, out in ((world.as_uri(), on_disk.as_uri()), (os.path.relpath(world), os.path.relpath(on_disk))):
        assert load_mining(config, overrides=[*everything_at(place), f"out={out}"]) == absolute
        assert run_app(["mine", config, *as_options([*everything_at(place), f"out={out}"])]) == 0
        assert "nothing to do" in capsys.readouterr().out
        assert run_app(["verify", out]) == 0


def test_a_run_folder_by_its_file_url_is_the_folder(on_disk: Path, tmp_path: Path) -> None:
    run, same = RunFolder(str(on_disk)), RunFolder(on_disk.as_uri())
    assert same.names("nouns") == run.names("nouns")
    assert samples(same) == samples(run)
    cells = [[folder.cell_path("nouns", part) for part in range(3)] for folder in (run, same)]
    assert list(count_nouns(cells[1])) == list(count_nouns(cells[0]))
    RunFolder(tmp_path.as_uri()).write_json("a", "b.json", value=1)
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == 1
    assert read_bytes((on_disk / "plan.json").as_uri()) == (on_disk / "plan.json").read_bytes()


def engine_bytes(engine: Engine, server: Server, bucket: str, world: Path, world_url: str, folder: Path) -> Path:
    overrides = [*everything_at(world_url), f"out=s3://{bucket}/run"]
    settings = load_mining(str(toy.write_config(world)), overrides=overrides)
    mine(settings, engine=engine, observer=Recorder())
    return server.download(f"s3://{bucket}/run", folder)


def test_the_ray_engine_writes_the_same_bytes_to_s3(
    server: Server, bucket: str, world: Path, world_url: str, on_s3: str, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install '.[ray]'")
    from maskmine.pipelines.engines.ray import RayEngine

    made = engine_bytes(RayEngine(cpu_workers=1), server, bucket, world, world_url, tmp_path / "ray")
    assert hashes(str(made)) == hashes(str(server.download(on_s3, tmp_path / "local")))


def test_the_beam_engine_writes_the_same_bytes_to_s3(
    server: Server, bucket: str, world: Path, world_url: str, on_s3: str, tmp_path: Path
) -> None:
    pytest.importorskip("apache_beam.runners", reason="needs Beam: pip install '.[beam]'")
    from maskmine.pipelines.engines.beam import BeamEngine

    made = engine_bytes(BeamEngine(workers=2), server, bucket, world, world_url, tmp_path / "beam")
    assert hashes(str(made)) == hashes(str(server.download(on_s3, tmp_path / "local")))


# A file appears whole or not at all.


def test_every_file_of_a_run_arrives_by_one_put(server: Server, finished: Finished) -> None:
    writes = [line for line in finished.requests if line.startswith(("PUT", "POST"))]
    keys = [line.removeprefix("PUT /finished/") for line in writes]
    assert len(keys) == len(set(keys))
    assert set(keys) - {"run/.writable"} == set(server.keys("finished"))


def test_a_large_file_is_one_put_too(server: Server, bucket: str) -> None:
    before = len(server.requests())
    with RunFolder(f"s3://{bucket}/run").write("shards", "00000.tar") as file:
        file.truncate(101 * 2**20)  # s3fs itself would send this in three
    writes = [line for line in server.requests()[before:] if not line.startswith(("GET", "HEAD"))]
    assert writes == [f"PUT /{bucket}/run/shards/00000.tar"]
    assert server.client.head_object(Bucket=bucket, Key="run/shards/00000.tar")["ContentLength"] == 101 * 2**20


def test_a_write_that_fails_in_the_middle_leaves_the_old_object_and_no_litter(server: Server, bucket: str) -> None:
    run = RunFolder(f"s3://{bucket}/run")
    run.write_json("a.json", value=1)
    before = len(server.requests())

    def write_half(name: str) -> None:
        with run.write(name) as file:
            file.write(b"half")
            raise ZeroDivisionError

    for name in ("a.json", "b.json"):
        with pytest.raises(ZeroDivisionError):
            write_half(name)
    assert not [line for line in server.requests()[before:] if line.startswith(("PUT", "POST"))]
    assert server.keys(bucket) == ["run/a.json"]
    assert run.read_json("a.json") == 1
    assert server.client.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []


# What a run costs in requests.


def requests_of(server: Server, work: Callable[[], object]) -> list[str]:
    before = len(server.requests())
    work()
    return server.requests()[before:]


def fake_cells(server: Server, bucket: str, *, parts: int) -> RunFolder:
    """A run folder that looks complete from outside."""
    run = RunFolder(f"s3://{bucket}/run")
    plan = {"images": parts, "parts": parts, "images_sha256": "", "captions_sha256": "", "source": {}, "inputs": None}
    run.write_json("plan.json", value=plan)
    steps = {"nouns": ["parquet"], "proposals": ["parquet"], "pairs": ["parquet"], "shards": ["tar", "parquet", "json"]}
    names = [f"{step}/{part:05d}.{suffix}" for step, ends in steps.items() for suffix in ends for part in range(parts)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: server.client.put_object(Bucket=bucket, Key=f"run/{name}", Body=b""), names))
    return run


def test_status_lists_each_folder_once_however_many_parts_there_are(server: Server, bucket: str) -> None:
    run = fake_cells(server, bucket, parts=40)
    made = requests_of(server, lambda: run_status(read_folder(run.root)))
    assert {step.done for step in run_status(run).steps if step.step != "vocabulary"} == {40}
    listed = [match[1] for line in made if (match := re.search(r"[?&]prefix=run/(\w+)/&(?!.*max-keys)", line))]
    assert sorted(listed) == ["nouns", "pairs", "proposals", "shards", "versions"]
    assert len(made) < 26


def finds_the_missing(found: list[tuple[str, list[int]]]) -> Engine:
    """An engine that only says what it would make."""

    def find(run: RunFolder, steps: Sequence[Step], observer: RunObserver) -> None:
        found.extend((step.name, list(todo)) for step in steps if (todo := step.todo()))
        raise KeyboardInterrupt

    return FunctionEngine(find)


def test_a_finished_run_looks_into_no_cell_and_a_resumed_one_into_each_footer_once(
    server: Server, bucket: str, own_run: str, world: Path, world_url: str
) -> None:
    settings = load_mining(str(toy.write_config(world)), overrides=[*everything_at(world_url), f"out={own_run}"])
    run_toy(toy.write_config(world), *everything_at(world_url), f"out={own_run}")  # the captions' hash is known now
    made = requests_of(server, lambda: mine(settings, engine=LocalEngine(), observer=Recorder()))
    assert not [line for line in made if re.search(r"/\d{5}\.", line)]
    for lacking in ("_SUCCESS", "proposals/00000.parquet"):
        server.client.delete_object(Bucket=bucket, Key=f"run/{lacking}")
        found: list[tuple[str, list[int]]] = []

        def resume(found: list[tuple[str, list[int]]] = found) -> None:
            with pytest.raises(KeyboardInterrupt):
                mine(settings, engine=finds_the_missing(found), observer=Recorder())

        made = requests_of(server, resume)
        assert found == ([] if lacking == "_SUCCESS" else [("proposals", [0])])
        looked_into = [line for line in made if re.search(r"/\d{5}\.", line) and "list-type" not in line]
        assert [line for line, times in Counter(looked_into).items() if times > 1] == []  # a HEAD and a GET each
        assert [line for line in looked_into if not re.fullmatch(r"(HEAD|GET) .*\.parquet", line)] == []
        assert len([line for line in made if "list-type" in line]) <= 37  # of folders, whatever their size


def test_an_image_and_a_cell_are_one_request_each(server: Server, bucket: str, world_url: str) -> None:
    path = f"{world_url}/images/{11:012d}.png"
    assert requests_of(server, lambda: read_image(path, max_pixels=10_000)) == [f"GET {path.removeprefix('s3:/')}"]
    run = RunFolder(f"s3://{bucket}/run")
    run.write_rows("images", "00000.parquet", rows=[], row_type=ImageRow, fingerprint="f")
    made = requests_of(server, lambda: run.read_rows("images", "00000.parquet", row_type=ImageRow))
    assert made == [f"GET /{bucket}/run/images/00000.parquet"]


def test_a_query_over_cells_fetches_each_once_whatever_its_folder_is_called(server: Server, own_run: str) -> None:
    bucket = own_run.split("/")[2]
    odd = RunFolder(f"s3://{bucket}/run[1]*?")
    for part in range(3):
        body = RunFolder(own_run).read_bytes("nouns", f"{part:05d}.parquet")
        with odd.write("nouns", f"{part:05d}.parquet") as file:
            file.write(body)
    counted: list[Any] = []
    made = requests_of(server, lambda: counted.extend(count_nouns([odd.cell_path("nouns", part) for part in range(3)])))
    assert counted == list(count_nouns([RunFolder(own_run).cell_path("nouns", part) for part in range(3)]))
    assert len(made) == 3


def test_threads_read_images_side_by_side(world: Path, world_url: str) -> None:
    names = [f"images/{image.id:012d}.png" for image in toy.IMAGES] * 8
    with ThreadPoolExecutor(16) as pool:
        read = list(pool.map(lambda name: read_bytes(f"{world_url}/{name}"), names))
    assert read == [(world / name).read_bytes() for name in names]


def test_an_empty_and_a_missing_object_are_rejected_as_files_are(server: Server, bucket: str) -> None:
    server.client.put_object(Bucket=bucket, Key="images/empty.png", Body=b"")
    assert read_image(f"s3://{bucket}/images/empty.png", max_pixels=99) == Rejection("decode_error", "empty file")
    missing = read_image(f"s3://{bucket}/images/none.png", max_pixels=99)
    assert missing == Rejection("missing_file", "none.png: no such file")


def test_a_mix_of_a_run_on_s3_into_s3_has_the_bytes_of_one_on_a_disk(
    server: Server, bucket: str, on_s3: str, tmp_path: Path
) -> None:
    here = server.download(on_s3, tmp_path / "run")
    for place in (tmp_path / "mix", f"s3://{bucket}/mix"):
        source = here if isinstance(place, Path) else on_s3
        assert run_app(["mix", f"{source}:1", "--shard-size", "3", "--out", str(place)]) == 0
        assert list(verify_run(read_folder(str(place)))) == []
    assert hashes(str(server.download(f"s3://{bucket}/mix", tmp_path / "mixed"))) == hashes(str(tmp_path / "mix"))
    assert run_app(["mix", f"{on_s3}:1", "--shard-size", "3", "--out", f"s3://{bucket}/mix"]) == 0  # nothing to do
