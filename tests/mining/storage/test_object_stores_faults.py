"""Object stores: each fault of S3 is one line with its exit code, and rights that suffice are enough."""

from __future__ import annotations

import itertools
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.registry import _registry

from maskmine.mining.storage import stores
from maskmine.mining.vocabulary import count_nouns
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining
from maskmine.pipelines.steps.status import rejected_images
from maskmine.schemas.errors import IncompleteError, InputError
from tests.support import toy
from tests.support.hostile.in_process import read_image
from tests.support.runs import (
    Recorder,
    Server,
    as_options,
    everything_at,
    hashes,
)

pytest.importorskip("flask_cors", reason="needs moto's S3 server: pip install 'moto[server]'")
boto3 = pytest.importorskip("boto3", reason="needs moto's S3 server: pip install 'moto[server]'")
s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install '.[s3]'")

# Ray leaves the handles of the processes that it starts to the garbage collector, and so does s3fs with its sockets.
pytestmark = pytest.mark.filterwarnings("ignore:.*:ResourceWarning")

_NUMBERS = itertools.count()


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said at the end; before it there may be lines about the plan and about parts that were made."""
    *earlier, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("maskmine: ")
    assert not [said for said in earlier if "Traceback" in said or said.startswith("maskmine: ")]
    return line


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
    assert [key for key in server.keys(bucket) if "proposals" in key or "nouns" in key] == []


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
    [
        ("s3", "s3fs", "pip install -e '.[s3]' in a checkout, or pip install 'PATH-OF-THE-WHEEL[s3]'"),
        ("gs", "gcsfs", "pip install gcsfs"),
        ("abfs", "adlfs", "pip install adlfs"),
    ],
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
    assert one_line(capsys).endswith(f"the library for {scheme}:// is not installed; {install}")
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

    def on_part_done(self, report: Any) -> None:
        super().on_part_done(report)
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
        server.client.delete_object(Bucket=bucket, Key=f"run/proposals/{part:05d}.parquet")
    settings = load_mining(str(toy.write_config(world)), overrides=[*everything_at(world_url), f"out={own_run}"])
    watch = Locks(lambda: as_user(("Allow", "s3:*", "*"), ("Deny", "s3:*", what), ("Deny", "s3:*", what[:-2])))
    with pytest.raises(IncompleteError, match=r"^s3://\S+: access is refused \(Access Denied\); .*") as caught:
        mine(settings, engine=LocalEngine(), observer=watch)
    assert "\n" not in str(caught.value)
    server.check_rights(False)
    recorder = Recorder()
    mine(settings, engine=LocalEngine(), observer=recorder)
    assert recorder.made == [("proposals", 2)]
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
