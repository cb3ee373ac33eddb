"""Three hosts of one Ray cluster, each in a network namespace with an address of its own, while a run goes on.

One joins late, one is killed, one is cut off and comes back. The bytes are those of a local run, and no part is made
twice but those in hand.

Needs root and iproute2 on Linux; no service, and nothing outside of the namespaces.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
import typer

from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import InputError
from maskmine.scripts.crashes.trial import hashes
from maskmine.scripts.demo_world.on_disk import find_world
from maskmine.tuning.console import TextTable, plain_console

_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo-models.yaml"
_BRIDGE, _SUBNET, _PORT = "maskmine-br", "10.77.31", 6379
_HEAD, _SECOND, _LATE = HOSTS = ("head", "second", "late")
_CUT_OFF_S = 30.0
_ENDS_WITHIN_S = 1500.0
CONSOLE = plain_console(width=max(110, plain_console().width))


@dataclass
class Host:
    """A network namespace on the bridge, and the Ray that runs in it."""

    name: str
    number: int
    scratch: Path
    cpus: int
    ray: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def address(self) -> str:
        """Its own address."""
        return f"{_SUBNET}.{self.number}"

    @property
    def namespace(self) -> str:
        """What `ip netns` calls it."""
        return f"maskmine-{self.name}"

    def run(self, *command: str, log: str) -> subprocess.Popen[bytes]:
        """Start a command on this host; what it says goes into a file."""
        with open(self.scratch / log, "ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *command],
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"RAY_TMPDIR": str(self.scratch / self.name), "OMP_WAIT_POLICY": "PASSIVE"},
                start_new_session=True,
            )

    def start_ray(self) -> None:
        """The head of the cluster, or a node that joins it."""
        where = ["--head", f"--port={_PORT}", "--include-dashboard=false"] if self.name == _HEAD else []
        where = where or [f"--address={_SUBNET}.1:{_PORT}"]
        os.makedirs(self.scratch / self.name, exist_ok=True)
        self.ray = self.run(
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
            *(
                f"--node-ip-address={self.address}",
                f"--num-cpus={self.cpus}",
                "--object-store-memory=100000000",
                *where,
            ),
            log=f"{self.name}.log",
        )

    def kill(self) -> None:
        """Kill all processes of its Ray at once, as a machine that loses its power."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()

    def processes(self) -> list[psutil.Process]:
        """Its Ray and all that came from it."""
        if self.ray is None:
            return []
        with suppress(psutil.Error):
            parent = psutil.Process(self.ray.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def link(self, state: str) -> None:
        """Cut the host off (`down`), or bring it back (`up`)."""
        _ip("link", "set", f"mm-{self.number}", state)


def main(
    scenes: Annotated[int, typer.Option(min=60, help="Images of the demo world.")] = 400,
    per_part: Annotated[int, typer.Option(min=1, help="Images of a part.")] = 10,
) -> None:
    """Mine on three hosts of which one joins late, one dies and one is cut off; exit code 1 for other bytes."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise InputError("hosts: needs root and `ip` (iproute2), for network namespaces; run it as root")
    with tempfile.TemporaryDirectory(prefix="hosts-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        world = find_world(folder / "world", scenes=scenes, seed=7)
        CONSOLE.print("a run of one process …")
        alone = _command(world, folder / "local", per_part=per_part)
        subprocess.run(alone, check=True, stdout=subprocess.DEVNULL, cwd=_CONFIG.parents[1])
        hosts = stack.enter_context(_network(folder))
        seen = _watch(world, folder, hosts, per_part=per_part)
        expected, found = hashes(folder / "local"), hashes(folder / "cluster")
        problems = [str(problem) for problem in verify_run(RunFolder(str(folder / "cluster")))]
        table = TextTable("what", "value", box=None, pad_edge=False)
        for name, value in seen.items():
            table.add_row(name, value)
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        table.add_row("files that differ from the local run's", str(len(differing)))
        table.add_row("problems that verify names", str(len(problems)))
        CONSOLE.print(table)
        if differing or problems or seen["exit code"] != "0" or seen["made twice beyond those in hand"] != "0":
            shutil.copytree(folder, kept := Path(tempfile.mkdtemp(prefix="hosts-failed-")), dirs_exist_ok=True)
            CONSOLE.print(f"what failed is in {kept}: {', '.join([*differing, *problems][:5])}")
            raise typer.Exit(1)


def _watch(world: Path, folder: Path, hosts: Sequence[Host], *, per_part: int) -> dict[str, str]:
    """The run on the cluster, with what happens to its hosts, and what came of it."""
    head, second, late = hosts
    head.start_ray()
    second.start_ray()
    _await(lambda: _nodes(head) == 2, "the cluster of two hosts")
    events, out = folder / "events.jsonl", folder / "cluster"
    options = ["--engine", "ray", "--engine-opt", f"address={head.address}:{_PORT}", "--log-json", str(events)]
    driver = head.run(*_command(world, out, per_part=per_part), *options, log="driver.log")
    happened = []
    _await(lambda: len(_made(events)) >= 3, "the first parts", of=driver)
    late.start_ray()
    joined_at = len(_made(events))
    happened.append(f"late joins after {joined_at} cells")
    _await(lambda: _nodes(head) == len(HOSTS), "the host that joins late", of=driver)
    _await(lambda: _works(late), "a worker on the host that joined late", of=driver)
    second.kill()
    happened.append(f"second is killed after {len(_made(events))} cells")
    _await(lambda: _nodes(head) == len(HOSTS) - 1, "the cluster to notice", of=driver)
    late.link("down")
    happened.append(f"late is cut off for {_CUT_OFF_S:g} s after {len(_made(events))} cells")
    time.sleep(_CUT_OFF_S)
    late.link("up")
    if not any("raylet" in process.name() for process in late.processes()):
        late.start_ray()  # as whatever supervises a host does
    code = driver.wait(timeout=_ENDS_WITHIN_S)
    twice = {cell: count - 1 for cell, count in Counter(_made(events)).items() if count > 1}
    in_hand = second.cpus + late.cpus
    return {
        "hosts": "; ".join(happened),
        "exit code": str(code),
        "cells made": str(len(_made(events))),
        "of them reported twice": str(sum(twice.values())),
        "made twice beyond those in hand": str(max(0, sum(twice.values()) - in_hand)),
    }


def _command(world: Path, out: Path, *, per_part: int) -> list[str]:
    values = {
        "captions.annotations": world / "captions.json",
        "captions.images": world / "images",
        "shards.images_per_part": per_part,
        "out": out,
        **{name: _CONFIG.parents[1] / "scripts" / "models" / folder for name, folder in _MODELS.items()},
    }
    sets = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    return [sys.executable, "-m", "maskmine", "mine", str(_CONFIG), "--quiet", *sets]


_MODELS = {"regions.proposals.checkpoint": "maskformer", "regions.clip.model": "clip"}


@contextmanager
def _network(folder: Path) -> Iterator[list[Host]]:
    """Three namespaces on one bridge, which go at the end with all that runs in them."""
    hosts = [
        Host(name, number, folder, cpus)
        for number, (name, cpus) in enumerate(zip(HOSTS, (2, 1, 1), strict=True), start=1)
    ]
    try:
        _ip("link", "add", _BRIDGE, "type", "bridge")
        _ip("link", "set", _BRIDGE, "up")
        for host in hosts:
            _ip("netns", "add", host.namespace)
            inside = f"mm-{host.number}-in"
            _ip("link", "add", f"mm-{host.number}", "type", "veth", "peer", "name", inside)
            _ip("link", "set", f"mm-{host.number}", "master", _BRIDGE, "up")
            _ip("link", "set", inside, "netns", host.namespace)
            for words in (
                ("addr", "add", f"{host.address}/24", "dev", inside),
                ("link", "set", inside, "up"),
                ("link", "set", "lo", "up"),
            ):
                _ip("-n", host.namespace, *words)
        yield hosts
    finally:
        for host in hosts:
            for process in host.processes():
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
            _ip("netns", "pids", host.namespace, kill=True)
            _ip("netns", "del", host.namespace, check=False)
            _ip("link", "del", f"mm-{host.number}", check=False)
        _ip("link", "del", _BRIDGE, check=False)


def _ip(*words: str, check: bool = True, kill: bool = False) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if kill:
        for pid in done.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    elif check and done.returncode:
        raise InputError(
            f"hosts: `ip {' '.join(words)}` failed ({done.stderr.strip()}); are network namespaces allowed?"
        )


def _nodes(head: Host) -> int:
    """How many hosts of the cluster are alive, as its head says."""
    program = (
        "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); "
        "print(sum(node['Alive'] for node in ray.nodes()))"
    )
    command = ["ip", "netns", "exec", head.namespace, sys.executable, "-c", program, f"{head.address}:{_PORT}"]
    environment = os.environ | {"RAY_TMPDIR": str(head.scratch / head.name)}
    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
        return int(done.stdout.strip() or 0)
    return 0


def _works(host: Host) -> bool:
    """Whether an actor of the run makes cells on the host."""
    with suppress(psutil.Error):
        return any("Worker.make" in " ".join(process.cmdline()) for process in host.processes())
    return False


def _made(events: Path) -> list[tuple[str, int]]:
    """The cells that were reported as made, in order."""
    if not events.exists():
        return []
    lines = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return [(line["step"], line["part"]) for line in lines if line.get("event") == "part"]


def _await(is_so: Callable[[], bool], what: str, *, of: subprocess.Popen[bytes] | None = None) -> None:
    until = time.monotonic() + 300
    while not is_so():
        if of is not None and of.poll() is not None:
            raise InputError(f"hosts: the run ended with {of.returncode} before {what}; give it more --scenes")
        if time.monotonic() > until:
            raise InputError(f"hosts: waited 300 s for {what}")
        time.sleep(0.5)


if __name__ == "__main__":
    try:
        typer.run(main)
    except InputError as error:
        sys.exit(str(error))
