"""The bytes of every file that a set of runs writes, recorded once and held against later code.

    python -m tests.golden_bytes record tests/golden     # before a change that must not change any output
    python -m tests.golden_bytes check tests/golden      # after it; --case NAME for some of them

Each case is a real command on real or drawn images. A file counts by two digests: of its bytes, and of what it decodes
to (Parquet: schema and values, without where samples lie in a tar; tar: its members; PNG: pixels; JPEG and WebP: size
alone, because their encoders are not bound to give the same pixels). Where a library of the record's list has another
version, or the processor is another, bytes may differ for reasons that are not the project's: then the decoded digests
are compared, and the check says so.
Text embeddings, region embeddings and tuned weights depend on the processor as well; on another machine record first.

Times and the paths of this machine are left out before hashing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import io
import json
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from PIL import Image

from tests.support.paths import COCO_MINI, ROOT

LIBRARIES = (
    "pillow",
    "pyarrow",
    "numpy",
    "torch",
    "torchvision",
    "open_clip_torch",
    "transformers",
    "spacy",
    "pycocotools",
)
EXPORTS = (
    *("webdataset", "openclip", "ovseg", "ovseg-shards", "alpha-clip", "coco", "lvis", "sa-co", "odvg", "yolo-seg"),
    *("hf", "hf-images", "energon", "parquet"),  # lance names its files at random, MDS's writer is no dependency
)
SCENES, SEED, STEPS = 100, 7, 20
_TIMES = re.compile(r'"(seconds|finished|images_per_s|seconds_left|elapsed_s|wait_share)": *("[^"]*"|[-0-9.eE]+|null)')
_DECODED_ONLY = (".jpg", ".webp")
# They hold hashes of files with times and paths in them: all else is compared here, those files by themselves.
_HASHES_OF_OTHERS = ("SHA256SUMS", "SHA256SUMS.run", "_SUCCESS", "export.json")
_SIZES = re.compile(rb'[0-9a-f]{64}|"(bytes|size_bytes|version)": *[^,}\n]+|[\d.,]+ [kMG]?B\b')  # and versions
_IN_TAR = ("offset", "size_bytes")  # where a sample lies: other encoders write images of other sizes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=["record", "check"])
    parser.add_argument("folder", type=Path, help="where the records lie")
    parser.add_argument("--case", action="append", choices=list(CASES), help="one case; may be given several times")
    parser.add_argument("--work", type=Path, help="where the runs are made; kept (default: a temporary folder)")
    options = parser.parse_args(arguments)
    work = options.work or Path(tempfile.mkdtemp(prefix="golden-"))
    work.mkdir(parents=True, exist_ok=True)
    absent = [] if COCO_MINI.is_dir() else [name for name in CASES if name.startswith("coco")]
    cases = [name for name in options.case or CASES if name not in absent]
    try:
        faults = [line for name in cases for line in _case(name, work, options.folder, options.action)]
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)
    if absent:
        print(f"{', '.join(absent)}: left out, {COCO_MINI} is absent")
        faults = faults if cases else ["nothing was compared"]
    print("\n".join(faults) if faults else "nothing differs")
    return bool(faults)


def _case(name: str, work: Path, records: Path, action: str) -> Iterator[str]:
    """Make one case and record it, or yield a line for each file that differs from the record."""
    file = records / f"{_RECORD_OF.get(name, name)}.json"
    if (action == "check" or name in _RECORD_OF) and not file.is_file():
        yield f"{name}: there is no record {file}; make one by `record` with the code before the change"
        return
    files = {
        f"{folder.name}/{path.relative_to(folder).as_posix()}": _digests(
            path, {folder: "RUN", work: "WORK", COCO_MINI: "COCO", ROOT: "ROOT"}
        )
        for folder in CASES[name](work)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".nfs")
    }
    if action == "record":
        if name in _RECORD_OF:
            yield from _differences(name, files, json.loads(file.read_text()))
            return
        records.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"environment": _environment(), "files": files}, indent=1, sort_keys=True) + "\n")
        print(f"{name}: {len(files)} files recorded")
        return
    yield from _differences(name, files, json.loads(file.read_text()))


def _differences(name: str, files: dict[str, list[str]], record: dict[str, Any]) -> Iterator[str]:
    recorded, now_here = record["environment"], _environment()
    same = recorded == now_here
    if not same:
        others = [
            f"{key} {recorded.get(key)} → {value}" for key, value in now_here.items() if recorded.get(key) != value
        ]
        print(f"{name}: not the record's environment ({', '.join(others)}): what is decoded is compared, not the bytes")
    column = 0 if same else 1
    then, now = record["files"], files
    for path in sorted(then.keys() | now.keys()):
        if path not in now:
            yield f"{name}: {path}: is not written any more"
        elif path not in then:
            yield f"{name}: {path}: was not written before"
        elif then[path][column] != now[path][column]:
            what = (
                "decodes to something else" if then[path][1] != now[path][1] else "the same when decoded, other bytes"
            )
            yield f"{name}: {path}: {what}"
    print(f"{name}: {len(now)} files compared")


def _environment() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {**versions, "python": platform.python_version(), "processor": _processor()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _digests(path: Path, names: dict[Path, str]) -> list[str]:
    """SHA-256 of a file's bytes without times and paths of this machine, and of what they decode to."""
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl", ".yaml", ".md", ".csv", ".txt"):
        text = _TIMES.sub(r'"\1": 0', data.decode())
        for folder, name in names.items():
            text = text.replace(str(folder), name)
        data = text.encode()
    decoded = _decoded(path.name, data, names)
    holds_paths = path.suffix in (".parquet", ".safetensors") and decoded != _decoded(path.name, data, {})
    if holds_paths or path.name in _HASHES_OF_OTHERS:
        return [decoded, decoded]
    return [hashlib.sha256(data).hexdigest(), decoded]


def _decoded(name: str, data: bytes, names: dict[Path, str]) -> str:
    digest = hashlib.sha256()
    suffix = Path(name).suffix
    if suffix == ".tar":
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                file = tar.extractfile(member)
                content = _decoded(member.name, file.read() if file else b"", names)
                digest.update(f"{member.name} {content}\n".encode())
    elif suffix == ".safetensors":
        header_size = int.from_bytes(data[:8], "little")
        header = json.dumps(_plain(json.loads(data[8 : 8 + header_size]), names), sort_keys=True)
        digest.update(header.encode() + data[8 + header_size :])
    elif suffix == ".parquet":
        table = pq.read_table(io.BytesIO(data))
        table = table.drop_columns([name for name in _IN_TAR if name in table.column_names])
        digest.update(f"{table.schema.remove_metadata()}\n{_plain(table.to_pylist(), names)}".encode())
    elif suffix in (".png", *_DECODED_ONLY):
        with Image.open(io.BytesIO(data)) as image:
            digest.update(f"{image.mode} {image.size}".encode())
            if suffix not in _DECODED_ONLY:
                digest.update(image.tobytes())
    elif name in (*_HASHES_OF_OTHERS, "README.md") or suffix == ".json":
        digest.update(_SIZES.sub(b"", data))
    else:
        digest.update(data)
    return digest.hexdigest()


def _plain(value: Any, names: dict[Path, str]) -> Any:
    """Values as text can show them: bytes of images by what they decode to, paths without what is of this machine."""
    if isinstance(value, dict):
        return {key: _plain(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, names) for inner in value]
    if isinstance(value, str):
        for folder, name in names.items():
            value = value.replace(str(folder), name)
    if isinstance(value, bytes):
        for magic, suffix in ((b"\x89PNG", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"RIFF", ".webp")):
            if value.startswith(magic):
                return _decoded(f"x{suffix}", value, names)
    return value


# --- the cases -------------------------------------------------------------------------------------------------------


def _coco(work: Path, per_image: int) -> list[Path]:
    out = work / f"coco-{per_image}"
    _mine(_write(work / f"coco-{per_image}.yaml", _labels(COCO_MINI, out, per_image)))
    return [out]


def _labels(coco: Path, out: Path, per_image: int) -> dict[str, Any]:
    return {
        "captions": {
            "kind": "coco",
            "annotations": str(coco / "annotations" / "captions_train2017.json"),
            "images": str(coco / "train2017"),
            "per_image": per_image,
        },
        "nouns": {"model": "en_core_web_sm", "compounds": True},
        "regions": {
            "proposals": {
                "kind": "ground_truth",
                "annotations": str(coco / "annotations" / "instances_train2017.json"),
            },
            "clip": None,
        },
        "pairs": {"rule": "labels", "synonyms": "coco"},
        "shards": {"images_per_part": 16},
        "out": str(out),
    }


def _demo(work: Path, engine: str) -> list[Path]:
    out = work / engine / "demo"
    if not (out / "_SUCCESS").exists():
        settings = yaml.safe_load((ROOT / "configs" / "demo-models.yaml").read_text())
        world = _world(work)
        settings["captions"] |= {"annotations": str(world / "captions.json"), "images": str(world / "images")}
        settings |= {"out": str(out)}
        options = [] if engine == "local" else ["--engine", engine, "--engine-opt", _WORKERS[engine]]
        _mine(_write(work / f"demo-{engine}.yaml", settings), *options)
    return [out]


_WORKERS = {"ray": "cpu_workers=2", "beam": "workers=2"}


def _world(work: Path) -> Path:
    world = work / "world"
    if not world.exists():
        _python("-m", "maskmine.scripts.demo_world.draw", str(world), "--scenes", str(SCENES), "--seed", str(SEED))
    return world


def _exports(work: Path) -> list[Path]:
    run, out = _demo(work, "local")[0], work / "exports"
    for form in EXPORTS:
        shutil.rmtree(out / form, ignore_errors=True)
        _maskmine("export", str(run), "--to", form, "--out", str(out / form))
    return [out]


def _tuned(work: Path) -> list[Path]:
    run, out = _demo(work, "local")[0], work / "tuned"
    settings = yaml.safe_load((ROOT / "configs" / "tune-demo.yaml").read_text())
    settings["data"]["sources"][0]["folder"] = str(run)
    settings["prompts"] |= {"steps": STEPS}
    settings |= {"out": str(out)}
    shutil.rmtree(out, ignore_errors=True)
    _maskmine("tune", str(_write(work / "tune.yaml", settings)))
    return [out]


CASES: dict[str, Callable[[Path], list[Path]]] = {
    "coco-1": lambda work: _coco(work, 1),
    "coco-5": lambda work: _coco(work, 5),
    "demo": lambda work: _demo(work, "local"),
    "demo-ray": lambda work: _demo(work, "ray"),
    "demo-beam": lambda work: _demo(work, "beam"),
    "exports": _exports,
    "tuned": _tuned,
}
# the same bytes are promised, so the same record serves
_RECORD_OF = {"demo-ray": "demo", "demo-beam": "demo"}


def _write(path: Path, settings: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def _mine(config: Path, *options: str) -> None:
    _maskmine("mine", str(config), *options)


def _maskmine(*words: str) -> None:
    _python("-m", "maskmine.pipelines.cli.main", *words)


def _python(*words: str) -> None:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
