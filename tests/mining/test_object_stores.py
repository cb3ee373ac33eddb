"""Object stores: a run on S3 has the bytes of a run on a disk, asks for little, and each of its faults is one line.

The server is moto's, a process of its own on this machine. What it logs says which requests were made.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fsspec.registry import _registry

from mining import stores
from mining.images import read_bytes, read_image
from mining.vocabulary import count_nouns
from pipelines.cli import run_app
from pipelines.engine import Engine, Watch
from pipelines.grid import Stage
from pipelines.local import run_local
from pipelines.mine import mine
from pipelines.regenerate import open_earlier
from pipelines.run_folder import RunFolder, read_folder
from pipelines.settings import load_mining
from pipelines.status import rejected_images, run_status
from pipelines.verify import verify_run
from schemas.errors import IncompleteError, InputError
from schemas.rows import ImageRow, Rejection
from tests import toy
from tests.test_mine import Recorder, hashes, run_toy, samples

pytest.importorskip("flask_cors", reason="needs moto's S3 server: pip install 'moto[server]'")
boto3 = pytest.importorskip("boto3", reason="needs moto's S3 server: pip install 'moto[server]'")
s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install 'maskmine[s3]'")

ROOT = Path(__file__).resolve().parents[1]
STARTS_WITHIN_S = 60.0
# Ray leaves the handles of the processes that it starts to the garbage collector, and so does s3fs with its sockets.
pytestmark = pytest.mark.filterwarnings("ignore:.*:ResourceWarning")


@dataclass(frozen=True)
class Server:
    """Moto's S3 server, its log, and a client of it that shares nothing with fsspec, as if it were another process."""

    endpoint: str
    log: Path
    client: Any

    def requests(self) -> list[str]:
        """`PUT /bucket/key?query` for each request so far."""
        log = re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text())
        return re.findall(r'"([A-Z]+ /(?!moto-api)\S*) HTTP', log)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys that begin with a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def put_folder(self, folder: Path, bucket: str, prefix: str) -> str:
        """Upload a folder; returns its URL."""
        for path in (path for path in folder.rglob("*") if path.is_file()):
            self.client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder)}")
        return f"s3://{bucket}/{prefix}"

    def download(self, url: str, folder: Path) -> Path:
        """Fetch all that lies below a URL; returns the folder."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        for key in self.keys(bucket, f"{prefix}/"):
            path = folder / key.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            self.client.download_file(bucket, key, str(path))
        return folder

    def check_rights(self, yes: bool) -> None:
        """Whether the rights of users count; at first they do not."""
        request = urllib.request.Request(
            f"{self.endpoint}/moto-api/reset-auth",
            data=b"0" if yes else b"inf",
            headers={"Content-Type": "text/plain"},
        )
        urllib.request.urlopen(request).close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("moto") / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "any secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    with log.open("wb") as file, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            _await_answer(process, port)
            yield Server(endpoint, log, boto3.client("s3"))
        finally:
            process.terminate()
            process.wait(timeout=30)
            s3fs.S3FileSystem.clear_instance_cache()


def _await_answer(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + STARTS_WITHIN_S
    while True:
        assert process.poll() is None, "moto's server has ended"
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < until, "moto's server does not answer"
            time.sleep(0.1)


_NUMBERS = itertools.count()


@pytest.fixture
def bucket(server: Server) -> str:
    name = f"bucket-{next(_NUMBERS)}"
    server.client.create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy_world(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def world_url(server: Server, world: Path) -> str:
    """The toy world on S3: its images and its annotations."""
    server.client.create_bucket(Bucket="world")
    return server.put_folder(world, "world", "toy")


@pytest.fixture(scope="module")
def on_disk(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the disk."""
    out = tmp_path_factory.mktemp("disk") / "run"
    run_toy(toy.write_config(world), f"out={out}")
    return out


@dataclass(frozen=True)
class Finished:
    """A finished run of which everything lies on S3, and the requests that it took."""

    url: str
    requests: list[str]


@pytest.fixture(scope="module")
def finished(server: Server, world: Path, world_url: str) -> Finished:
    server.client.create_bucket(Bucket="finished")
    before = len(server.requests())
    run_toy(toy.write_config(world), *everything_at(world_url), "out=s3://finished/run")
    return Finished("s3://finished/run", server.requests()[before:])


@pytest.fixture(scope="module")
def on_s3(finished: Finished) -> str:
    """The finished run; tests leave it as it is."""
    return finished.url


@pytest.fixture
def own_run(server: Server, bucket: str, on_s3: str) -> str:
    """A copy of the finished run."""
    for key in server.keys("finished"):
        server.client.copy_object(Bucket=bucket, Key=key, CopySource={"Bucket": "finished", "Key": key})
    return f"s3://{bucket}/run"


def everything_at(place: str) -> list[str]:
    """Overrides of the toy world's settings: the images and annotations are there."""
    return [
        f"captions.annotations={place}/captions.json",
        f"captions.images={place}/images",
        f"regions.proposals.annotations={place}/instances.json",
    ]


def as_options(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def without_places(found: dict[str, str]) -> dict[str, str]:
    """Hashes of files without those that say where the images lie."""
    return {name: sha for name, sha in found.items() if name != "plan.json" and not name.startswith("images/")}


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said at the end; before it there may be lines about the plan and about parts that were made."""
    *earlier, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("maskmine: ")
    assert not [said for said in earlier if "Traceback" in said or said.startswith("maskmine: ")]
    return line


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
        mine(settings, engine=run_local, watch=recorder, earlier=open_earlier(old, settings))
        return recorder.steps

    there = f"s3://{bucket}/new"
    assert "regions" not in regenerate(on_s3, there, *everything_at(world_url))
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
    server.client.delete_object(Bucket=bucket, Key="run/regions/00001.parquet")
    server.client.delete_object(Bucket=bucket, Key="run/shards/00002.tar")
    assert {step.step: step.missing for step in run_status(run).steps if step.missing} == {
        "regions": (1,),
        "shards": (2,),
    }
    _, _, recorder = run_toy(config, *overrides)
    assert recorder.made == [("regions", 1), ("shards", 2)]
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
    mine(settings, engine=engine, watch=Recorder(), models_run_here=False)
    return server.download(f"s3://{bucket}/run", folder)


def test_the_ray_engine_writes_the_same_bytes_to_s3(
    server: Server, bucket: str, world: Path, world_url: str, on_s3: str, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'maskmine[ray]'")
    from pipelines.on_ray import RayEngine

    made = engine_bytes(RayEngine(cpu_workers=2), server, bucket, world, world_url, tmp_path / "ray")
    assert hashes(str(made)) == hashes(str(server.download(on_s3, tmp_path / "local")))


def test_the_beam_engine_writes_the_same_bytes_to_s3(
    server: Server, bucket: str, world: Path, world_url: str, on_s3: str, tmp_path: Path
) -> None:
    pytest.importorskip("apache_beam.runners", reason="needs Beam: pip install 'maskmine[beam]'")
    from pipelines.on_beam import BeamEngine

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
    steps = {"nouns": ["parquet"], "regions": ["parquet"], "pairs": ["parquet"], "shards": ["tar", "parquet", "json"]}
    names = [f"{step}/{part:05d}.{suffix}" for step, ends in steps.items() for suffix in ends for part in range(parts)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: server.client.put_object(Bucket=bucket, Key=f"run/{name}", Body=b""), names))
    return run


def test_status_lists_each_folder_once_however_many_parts_there_are(server: Server, bucket: str) -> None:
    run = fake_cells(server, bucket, parts=40)
    made = requests_of(server, lambda: run_status(read_folder(run.root)))
    assert {step.done for step in run_status(run).steps if step.step != "vocabulary"} == {40}
    listed = [match[1] for line in made if (match := re.search(r"[?&]prefix=run/(\w+)/&(?!.*max-keys)", line))]
    assert sorted(listed) == ["nouns", "pairs", "regions", "shards"]
    assert len(made) < 20


def finds_the_missing(found: list[tuple[str, list[int]]]) -> Engine:
    """An engine that only says what it would make."""

    def engine(run: RunFolder, stages: Sequence[Stage], watch: Watch) -> None:
        found.extend((stage.name, todo) for stage in stages if (todo := stage.todo(run)))
        raise KeyboardInterrupt

    return engine


def test_finding_out_what_is_left_looks_into_no_cell(
    server: Server, bucket: str, own_run: str, world: Path, world_url: str
) -> None:
    settings = load_mining(str(toy.write_config(world)), overrides=[*everything_at(world_url), f"out={own_run}"])
    run_toy(toy.write_config(world), *everything_at(world_url), f"out={own_run}")  # the captions' hash is known now
    made = requests_of(server, lambda: mine(settings, engine=run_local, watch=Recorder()))
    assert not [line for line in made if re.search(r"/\d{5}\.", line)]
    for lacking in ("_SUCCESS", "regions/00000.parquet"):
        server.client.delete_object(Bucket=bucket, Key=f"run/{lacking}")
        found: list[tuple[str, list[int]]] = []

        def resume(found: list[tuple[str, list[int]]] = found) -> None:
            with pytest.raises(KeyboardInterrupt):
                mine(settings, engine=finds_the_missing(found), watch=Recorder())

        made = requests_of(server, resume)
        assert found == ([] if lacking == "_SUCCESS" else [("regions", [0])])
        assert not [line for line in made if re.search(r"/\d{5}\.", line)]
        assert len([line for line in made if "list-type" in line]) <= 24


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


# Faults.


def test_an_empty_and_a_missing_object_are_rejected_as_files_are(server: Server, bucket: str) -> None:
    server.client.put_object(Bucket=bucket, Key="images/empty.png", Body=b"")
    assert read_image(f"s3://{bucket}/images/empty.png", max_pixels=99) == Rejection("decode_error", "empty file")
    missing = read_image(f"s3://{bucket}/images/none.png", max_pixels=99)
    assert missing == Rejection("missing_file", "none.png: no such file")


@pytest.fixture
def newly_connected() -> Iterator[None]:
    """Connections of s3fs hold the environment of their first use, so a changed one needs others."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def as_user(server: Server, newly_connected: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function: from here on, everything is asked by a user with only these rights, `(effect, action, resource)`."""

    def become(*rights: tuple[str, str, str]) -> None:
        iam, name = boto3.client("iam"), f"user-{next(_NUMBERS)}"
        iam.create_user(UserName=name)
        statements = [{"Effect": e, "Action": a, "Resource": f"arn:aws:s3:::{r}"} for e, a, r in rights]
        if statements:
            policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
            iam.put_user_policy(UserName=name, PolicyName="rights", PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        s3fs.S3FileSystem.clear_instance_cache()
        server.check_rights(True)

    yield become
    server.check_rights(False)


READ = [("Allow", "s3:GetObject", "*"), ("Allow", "s3:ListBucket", "*")]


def mine_there(world: Path, place: str, out: str) -> int:
    return run_app(["mine", str(toy.write_config(world)), *as_options([*everything_at(place), f"out={out}"])])


@pytest.mark.parametrize("command", ["status", "verify", "errors", "show", "mine"])
def test_a_bucket_that_does_not_exist_ends_with_2(
    command: str, world: Path, world_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = "s3://no-such-bucket/run"
    assert (mine_there(world, world_url, out) if command == "mine" else run_app([command, out])) == 2
    assert "s3://no-such-bucket/run" in (line := one_line(capsys))
    assert "there is no such bucket" in line


@pytest.mark.parametrize("setting", range(3))
def test_a_missing_bucket_of_any_input_ends_with_2_before_anything_is_written(
    setting: int, server: Server, bucket: str, world: Path, world_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = everything_at(world_url)
    overrides[setting] = everything_at("s3://no-such-bucket")[setting]
    options = as_options([*overrides, f"out=s3://{bucket}/run"])
    assert run_app(["mine", str(toy.write_config(world)), *options]) == 2
    assert "there is no such bucket" in one_line(capsys)
    assert [key for key in server.keys(bucket) if "regions" in key or "nouns" in key] == []


def test_a_folder_that_is_no_run_and_inputs_that_are_not_there_are_told_as_on_a_disk(
    bucket: str, world: Path, world_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["status", f"s3://{bucket}/run"]) == 2
    assert "not a run folder" in one_line(capsys)
    for number, said in enumerate(["captions.json: no such file", "images is no folder", "there is no file"]):
        overrides = everything_at(world_url)
        overrides[number] = everything_at(f"{world_url}/elsewhere")[number]
        options = as_options([*overrides, f"out=s3://{bucket}/run{number}"])
        assert run_app(["mine", str(toy.write_config(world)), *options]) == 2
        assert said in one_line(capsys)


@pytest.mark.parametrize("url", ["foo://bucket/run", "http://127.0.0.1/run", "simplecache::s3://bucket/run", "s3://"])
def test_paths_that_are_not_ours_end_with_2(
    url: str, world: Path, world_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["status", url]) == 2
    assert f"maskmine: {url}: " in one_line(capsys)
    assert mine_there(world, world_url, url) == 2
    assert f"maskmine: {url}: " in one_line(capsys)


@pytest.mark.parametrize(
    ("scheme", "library", "install"),
    [("s3", "s3fs", "maskmine[s3]"), ("gs", "gcsfs", "gcsfs"), ("abfs", "adlfs", "adlfs")],
)
def test_without_its_library_the_install_command_of_a_store_is_told(
    scheme: str,
    library: str,
    install: str,
    world: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(_registry, scheme, raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    assert mine_there(world, str(world), f"{scheme}://bucket/run") == 2
    assert one_line(capsys).endswith(f"the library for {scheme}:// is not installed; pip install '{install}'")
    with pytest.raises(InputError, match="pip install"):
        read_image(f"{scheme}://bucket/a.jpg", max_pixels=99)


@pytest.mark.usefixtures("newly_connected")
def test_missing_credentials_end_with_2(
    world: Path, world_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert mine_there(world, world_url, "s3://world/run") == 2
    assert "Unable to locate credentials" in (line := one_line(capsys))
    assert "AWS_ACCESS_KEY_ID" in line


@pytest.mark.parametrize("command", ["status", "mine"])
def test_refused_credentials_end_with_2(
    command: str,
    world: Path,
    world_url: str,
    as_user: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    as_user()
    out = "s3://world/run"
    assert (mine_there(world, world_url, out) if command == "mine" else run_app([command, out])) == 2
    assert "access is refused (Access Denied)" in one_line(capsys)


def test_the_right_to_read_alone_ends_with_2_before_the_captions_are_read(
    server: Server,
    bucket: str,
    world: Path,
    world_url: str,
    as_user: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    as_user(*READ)
    assert mine_there(world, world_url, f"s3://{bucket}/run") == 2
    assert f"s3://{bucket}/run/.writable: access is refused (Access Denied)" in one_line(capsys)
    server.check_rights(False)
    assert server.keys(bucket) == []


def test_the_right_to_list_images_without_reading_any_ends_with_2(
    bucket: str, world: Path, world_url: str, as_user: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    as_user(("Allow", "s3:*", "*"), ("Deny", "s3:GetObject", "world/toy/images/*"))
    assert mine_there(world, world_url, f"s3://{bucket}/run") == 2
    assert ".png: access is refused (Access Denied)" in one_line(capsys)


def test_a_finished_run_can_be_looked_at_with_the_right_to_read_alone(
    on_s3: str, world: Path, world_url: str, as_user: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    as_user(*READ)
    assert run_app(["verify", on_s3]) == 0
    assert mine_there(world, world_url, on_s3) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_rights_that_begin_below_a_folder_are_enough_and_one_image_that_may_not_be_read_is_missing(
    bucket: str, world: Path, world_url: str, as_user: Callable[..., None]
) -> None:
    as_user(
        ("Allow", "s3:ListBucket", "*"),
        ("Allow", "s3:*", f"{bucket}/run/*"),
        ("Allow", "s3:GetObject", "world/toy/*"),
        ("Deny", "s3:GetObject", f"world/toy/images/{12:012d}.png"),
    )
    assert mine_there(world, world_url, f"s3://{bucket}/run") == 0
    rejected = {(image.image_id, image.reason) for image in rejected_images(RunFolder(f"s3://{bucket}/run"))}
    assert rejected == {(image_id, reason) for image_id, _, reason in toy.REJECTIONS} | {("12", "missing_file")}


class Locks(Recorder):
    """A watch that takes rights away when the first cell is made."""

    def __init__(self, lock: Callable[[], None]) -> None:
        super().__init__()
        self.lock = lock

    def part_ends(self, report: Any) -> None:
        super().part_ends(report)
        if len(self.made) == 1:
            self.lock()


@pytest.mark.parametrize("what", ["world/*", "bucket-*"], ids=["the images", "the run folder"])
def test_rights_that_end_in_the_middle_leave_a_run_that_goes_on_later(
    what: str,
    server: Server,
    bucket: str,
    own_run: str,
    world: Path,
    world_url: str,
    as_user: Callable[..., None],
    tmp_path: Path,
) -> None:
    before = hashes(str(server.download(own_run, tmp_path / "before")))
    for part in (1, 2):
        server.client.delete_object(Bucket=bucket, Key=f"run/regions/{part:05d}.parquet")
    settings = load_mining(str(toy.write_config(world)), overrides=[*everything_at(world_url), f"out={own_run}"])
    watch = Locks(lambda: as_user(("Allow", "s3:*", "*"), ("Deny", "s3:*", what), ("Deny", "s3:*", what[:-2])))
    with pytest.raises(IncompleteError, match=r"^s3://\S+: access is refused \(Access Denied\); .*") as caught:
        mine(settings, engine=run_local, watch=watch)
    assert "\n" not in str(caught.value)
    server.check_rights(False)
    recorder = Recorder()
    mine(settings, engine=run_local, watch=recorder)
    assert recorder.made == [("regions", 2)]
    assert hashes(str(server.download(own_run, tmp_path / "after"))) == before


@pytest.mark.usefixtures("newly_connected")
def test_an_endpoint_that_is_down_ends_with_2_and_in_the_middle_with_4(
    world: Path, world_url: str, on_s3: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        assert mine_there(world, world_url, "s3://world/run") == 2
        assert "no connection (Could not connect to the endpoint URL" in one_line(capsys)
        assert run_app(["status", on_s3]) == 2
        assert "no connection" in one_line(capsys)
        run = RunFolder(on_s3)
        for work in (
            lambda: run.names("nouns"),
            lambda: run.exists("plan.json"),
            lambda: run.delete("plan.json"),
            lambda: run.read_json("plan.json"),
            lambda: run.read_fingerprint("nouns", "00000.parquet"),
            lambda: run.write_json("plan.json", value=1),
            lambda: list(count_nouns([run.cell_path("nouns", 0)])),
            lambda: read_image(f"{world_url}/images/{11:012d}.png", max_pixels=99),
        ):
            with pytest.raises(IncompleteError, match=r"no connection \(Could not connect") as caught:
                work()
            assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("newly_connected")
def test_an_endpoint_that_never_answers_does_not_hang_a_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(stores, "ANSWER_S", 0.5)
        begin = time.monotonic()
        assert run_app(["status", "s3://bucket/run"]) == 2
        assert time.monotonic() - begin < 10  # botocore alone would wait for six minutes
    assert "no connection (no answer in time)" in one_line(capsys)


@pytest.mark.usefixtures("newly_connected")
def test_an_endpoint_that_is_no_url_ends_with_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    assert run_app(["status", "s3://bucket/run"]) == 2
    assert "Invalid endpoint: nonsense" in one_line(capsys)
