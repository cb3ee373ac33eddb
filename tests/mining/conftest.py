"""Checkpoints, and a finished run on S3, that several files of tests read."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.support import toy
from tests.support.models import KINDS, SIZE, network
from tests.support.paths import ROOT
from tests.support.runs import (
    Finished,
    Server,
    everything_at,
    run_toy,
)
from tests.support.tiny import verifiers as tiny_verifiers
from tests.support.tiny.verifiers import save_verifier


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        network(kind).save_pretrained(folder)
    transformers.MaskFormerImageProcessor(size=SIZE).save_pretrained(folders["maskformer"])
    transformers.Mask2FormerImageProcessor(size=SIZE).save_pretrained(folders["mask2former"])
    return folders


@pytest.fixture(scope="session")
def saved_verifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The settings of a tiny verifier of each kind; tests that break one copy it first."""
    return {kind: save_verifier(kind, tmp_path_factory.mktemp(kind)) for kind in tiny_verifiers.KINDS}


STARTS_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Moto's S3 server as a process of its own; the tests of a file share it."""
    import boto3
    import s3fs

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
