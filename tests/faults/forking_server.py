"""Programs of one environment without their start: a process that has imported the libraries forks for each call.

A hundred commands of a second each would take two minutes to import what they share. `client` is a program that stands
in for `python` and for `maskmine`: it hands its arguments, folder, environment, standard streams and parent to the
server, and ends with the exit code of the forked process.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

from tests.support.paths import ROOT

CLIENT = """#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    call = json.dumps([{program!r}, sys.argv[1:], os.getcwd(), dict(os.environ), os.getppid()]).encode()
    socket.send_fds(server, [len(call).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(call)
    answer = server.recv(1)
sys.exit(answer[0] if answer else 70)
"""

_PR_SET_PDEATHSIG = 1


def write_client(path: Path, address: Path, program: str) -> Path:
    """An executable file that stands in for `program` ("python" or "maskmine")."""
    path.write_text(CLIENT.format(python=sys.executable, address=str(address), program=program))
    path.chmod(0o755)
    return path


@contextmanager
def serving(address: Path, modules: Sequence[str] = ()) -> Iterator[None]:
    """A server that has imported these modules too, while the block runs."""
    words = [sys.executable, "-m", __name__, str(address), *modules]
    wide = os.environ | {"COLUMNS": "180"}  # consoles take the width of the time when they are imported
    with subprocess.Popen(
        words, cwd=ROOT, env=wide, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield
        server.communicate("", timeout=30)


def serve(address: str, modules: Sequence[str]) -> None:
    """Answer calls until the standard input ends."""
    import numpy  # noqa: F401
    import PIL.Image  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import spacy  # noqa: F401

    import maskmine.pipelines.cli.main
    import maskmine.pipelines.mine  # noqa: F401

    for module in modules:
        import_module(module)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        threading.Thread(target=_end_with_input, daemon=True).start()
        while True:
            connection, _ = listening.accept()
            _reap()
            if os.fork() == 0:
                _end_with_parent()
                listening.close()
                _answer(connection)
            connection.close()


def _reap() -> None:
    """Forget the processes that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _end_with_input() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)


def _end_with_parent() -> None:
    """Else tests that are killed leave programs that wait for a parent which they cannot see."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _answer(connection: socket.socket) -> None:
    """In the forked process: run the call in a process of its own, so that its end is seen whatever happens."""
    size, streams, *_ = socket.recv_fds(connection, 4, 3)
    call = b""
    while len(call) < int.from_bytes(size, "big"):
        call += connection.recv(1 << 16)
    child = os.fork()
    if child == 0:
        _end_with_parent()
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        _run(*json.loads(call))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


def _run(program: str, words: list[str], folder: str, environment: dict[str, str], parent: int) -> None:
    os.getppid = lambda: parent  # the client's, of whose life the program may want to know
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    code: object = 0
    try:
        if program == "maskmine":
            from maskmine.pipelines.cli.main import main

            sys.argv = ["maskmine", *words]
            main()
        elif words[0] == "-c":
            sys.argv = words
            sys.path.insert(0, "")
            exec(words[1], {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            sys.stderr.write(f"{code}\n")
            code = 1
    except Exception:  # noqa: BLE001  # as Python ends a program that raises
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0))  # type: ignore[call-overload]


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
