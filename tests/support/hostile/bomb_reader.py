"""Reads a caption source as a plan does, under limits of its own, and prints what came of it and what it took."""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
import time
from pathlib import Path

from pydantic import TypeAdapter

from maskmine.mining.captions import AnySource
from maskmine.mining.images.read import read_bytes
from maskmine.mining.storage.bounded import parquet_child
from maskmine.mining.storage.locations import parse_location
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection

TIMEOUT_S = 60


def main() -> None:
    """Read the source in the JSON of the last argument."""
    signal.alarm(TIMEOUT_S)
    resource.setrlimit(resource.RLIMIT_AS, (_status_bytes("VmSize") + 6 * 10**9, resource.RLIM_INFINITY))
    source = TypeAdapter(AnySource).validate_python(json.loads(sys.argv[-1]), strict=False)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started = _status_bytes("VmRSS"), time.process_time()
    found: dict[str, object] = {"good": [], "rejected": [], "entries": 0, "said": None}
    good, rejected = set[str](), set[str]()
    try:
        for table in source.read(images_per_part=1000):
            found["entries"] = int(str(found["entries"])) + len(table)
            for image_id, path in zip(table["image_id"].to_pylist(), table["path"].to_pylist(), strict=True):
                location = parse_location(path) if path is not None else None
                if isinstance(location, Rejection):
                    rejected.add(location.detail)
                elif len(good) < 100:
                    good.add(image_id)
                    data = read_bytes(path) if path is not None and path.startswith("cell:") else b""
                    rejected |= {data.detail} if isinstance(data, Rejection) else set()
    except InputError as error:
        found["said"] = str(error)
    peak = _status_bytes("VmHWM") - before
    parquet_child._end_children()
    child = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = time.process_time() - started + child.ru_utime + child.ru_stime
    found |= {"good": sorted(good), "rejected": sorted(rejected)[:100], "peak_bytes": peak, "seconds": seconds}
    sys.stdout.write(json.dumps({**found, "child_bytes": child.ru_maxrss * 1024}))


def _status_bytes(name: str) -> int:
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024
