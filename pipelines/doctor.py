"""What a run needs, looked up before it starts: libraries, machine, input and models. Nothing is fetched or loaded."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
from rich.filesize import decimal
from rich.text import Text

from maskmine.mining.captioners.endpoint import Endpoint
from maskmine.mining.captions import AnySource
from maskmine.mining.models.devices import open_device
from maskmine.mining.nouns import Nouns
from maskmine.mining.proposers.ground_truth import GroundTruth, read_masks
from maskmine.mining.sources.coco import CocoCaptions
from maskmine.mining.storage.locations import file_name_of
from maskmine.mining.storage.names import is_file
from maskmine.pipelines.dataset.calibrations import check_calibration
from maskmine.pipelines.engines.memory import free_memory_bytes
from maskmine.pipelines.findings import Finding, State, fault, find_endpoint
from maskmine.pipelines.planning.listing import count_urls, means_urls, refuse_urls
from maskmine.pipelines.planning.plan import check_folder
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.fingerprints import portable
from maskmine.pipelines.settings.mining import Mining
from maskmine.pipelines.steps.identity import identify
from maskmine.schemas.errors import IncompleteError, InputError, OtherPlanError, how_to_install
from maskmine.schemas.manifest import ModelRecord
from maskmine.schemas.settings import IsPath, Settings, marker_of
from maskmine.tuning.console import TextTable

_REQUIRED = ("torch", "transformers", "open_clip_torch", "spacy", "pyarrow", "duckdb", "pillow", "pycocotools")
# distribution → what it is for, how to get it
_OPTIONAL = {
    "ray": ("the Ray engine", how_to_install("ray")),
    "apache-beam": ("the Beam engine", how_to_install("beam")),
    "detectron2": (
        "proposals of detectron2 models",
        "python -m pip install 'git+https://github.com/facebookresearch/detectron2.git'",
    ),
}
_FEW_FREE_BYTES = 2_000_000_000
_LISTED = 100
_SETTINGS = {"clip": "regions.clip", "verifier": "checks.verifier", "captions": "captions"}  # by what a model does
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "missing": ("✗", "red")}


def diagnose(settings: Mining | None) -> list[Finding]:
    """The libraries and the machine, and, for given settings, whether all that they name is there.

    Files are listed, the beginning of each source is read and weights are hashed; no model is loaded and nothing is
    fetched. A server that writes captions is asked for the list of its models. Whatever a run refuses before it begins
    is found.
    """
    disk = _disk(settings.out if settings else os.getcwd())
    findings = [*_libraries(settings), *_gpus(settings), _cpus(), _memory(), disk]
    if settings is None:
        return [*findings, _nouns_model(Nouns(), absent="warning")]
    return [
        *findings,
        *_out(settings),
        *_captions(settings),
        _nouns_model(settings.nouns, absent="missing"),
        *_models(settings),
        *_masks(settings),
        *_lists(settings),
    ]


def diagnose_others(settings: Settings) -> list[Finding]:
    """`diagnose` for the settings of another command: libraries, machine, and all models, files and folders named."""
    out = getattr(settings, "out", None)
    return [
        *_libraries(None),
        *_gpus(None),
        _cpus(),
        _memory(),
        _disk(out or os.getcwd()),
        *([_writable(out)] if out else []),
        *_named(settings, ""),
        *_contents(settings),
    ]


def diagnose_without(package: str) -> list[Finding]:
    """The libraries and the machine, where settings cannot be looked at as this package is missing."""
    findings = [*_libraries(None), _cpus(), _memory()]
    if package.partition(".")[0] not in {finding.name for finding in findings if finding.state == "missing"}:
        findings.append(Finding(package, "missing", "cannot be imported", how_to_install()))
    return findings


def ready(findings: Sequence[Finding]) -> bool:
    """Whether nothing is missing that the run needs; else the command ends with exit code 2."""
    return not any(finding.state == "missing" for finding in findings)


def render(findings: Sequence[Finding]) -> TextTable:
    """A line a finding, and a verdict at the end. A remedy has the whole width, so that commands can be copied."""
    page = TextTable.grid()
    name_width = max((len(finding.name) for finding in findings), default=0)
    for finding in findings:
        mark, colour = _MARKS[finding.state]
        line = TextTable.grid(padding=(0, 1))
        line.add_column(width=1)
        line.add_column(width=name_width)
        line.add_column(overflow="fold")
        line.add_row(Text(mark, style=colour), Text(finding.name), Text(finding.detail))
        page.add_row(line)
        if finding.remedy:
            page.add_row(Text(f"→ {finding.remedy}", overflow="fold"))
    missing = [finding.name for finding in findings if finding.state == "missing"]
    page.add_row(Text(f"missing: {', '.join(missing)}" if missing else "nothing that is needed is missing"))
    return page


def _libraries(settings: Mining | None) -> Iterator[Finding]:
    yield Finding("Python", "ok", platform.python_version())
    yield Finding("maskmine", "ok", _version("maskmine") or "not installed; run from its folder")
    for name in _REQUIRED:
        missing = Finding(name, "missing", "not installed", how_to_install())
        yield Finding(name, "ok", version) if (version := _version(name)) else missing
    kind = str(settings.regions.proposals.kind) if settings else ""
    for name, (use, remedy) in _OPTIONAL.items():
        if version := _version(name):
            yield Finding(name, "ok", version)
        elif name == kind:
            yield Finding(name, "missing", f"not installed; `regions.proposals.kind: {kind}` needs it", remedy)
        else:
            yield Finding(name, "warning", f"not installed; only for {use}", remedy)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus(settings: Mining | None) -> Iterator[Finding]:
    try:
        import torch
    except ImportError:
        return  # named above
    with warnings.catch_warnings(record=True) as said:  # torch reports an old driver by a warning
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        gpu = torch.cuda.get_device_properties(number)
        bfloat16 = "bf16" if gpu.major >= 8 else "no bf16"  # in hardware from Ampere on
        yield Finding(f"GPU {number}", "ok", f"{gpu.name}, {decimal(gpu.total_memory)}, {bfloat16}")
    if not count:
        yield _no_gpu(
            settings, cuda=torch.version.cuda, reason=" ".join(str(w.message) for w in said).partition(".")[0]
        )
    if settings:
        try:
            open_device(settings.regions.device)
        except InputError as error:
            yield fault("regions.device", error)


def _no_gpu(settings: Mining | None, *, cuda: str | None, reason: str) -> Finding:
    if not _has_driver():
        if settings is None or settings.regions.runs_models or settings.checks is not None:
            return Finding("GPU", "warning", "none; models run on the CPU, many times slower")
        return Finding("GPU", "ok", "none, and these settings need none")
    if cuda is None:
        remedy = "install torch for CUDA, see https://pytorch.org/get-started"
        return Finding("GPU", "warning", "an NVIDIA driver is here, but this torch is built without CUDA", remedy)
    detail = f"an NVIDIA driver is here, but torch for CUDA {cuda} sees no GPU" + (f" ({reason})" if reason else "")
    return Finding("GPU", "warning", detail, "look at `nvidia-smi` and CUDA_VISIBLE_DEVICES; the driver may be too old")


def _has_driver() -> bool:
    return shutil.which("nvidia-smi") is not None or os.path.exists("/proc/driver/nvidia/version")


def _cpus() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("CPUs", "ok", f"{usable}; {os.getloadavg()[0]:.1f} processes run or wait for one")


def _memory() -> Finding:
    free_bytes = free_memory_bytes()
    if free_bytes is None:
        return Finding("memory", "warning", "unknown on this system")
    return _free_space("memory", free_bytes, "free", remedy="end other programs, or take a larger machine")


def _free_space(name: str, free_bytes: int, free: str, *, remedy: str) -> Finding:
    detail = f"{decimal(free_bytes)} {free}"
    return Finding(name, "ok", detail) if free_bytes >= _FEW_FREE_BYTES else Finding(name, "warning", detail, remedy)


def _disk(out: str) -> Finding:
    if "://" in out:
        return Finding("disk", "ok", f"{out} is an object store")
    free_bytes = shutil.disk_usage(_existing(out)).free
    return _free_space("disk", free_bytes, f"free at {out}", remedy="free some space, or set another `out`")


def _writable(out: str) -> Finding:
    """Tried, not asked: permissions do not tell of read-only file systems and full disks."""
    if "://" in out:
        return _remote("out", out)
    place = _existing(out)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
    except NotADirectoryError:
        return Finding("out", "missing", f"{place} is a file, and a folder is needed", "set another `out`")
    except OSError as error:
        detail = f"{place} cannot be written ({error.strerror})"
        return Finding("out", "missing", detail, "set another `out`, or get the right to write there")
    return Finding("out", "ok", f"{out} can be written")


def _out(settings: Mining) -> Iterator[Finding]:
    writable = _writable(settings.out)
    yield writable
    if writable.state == "ok":
        try:
            check_folder(RunFolder(settings.out), settings)
        except (InputError, OtherPlanError, IncompleteError) as error:
            yield fault("out", error)


def _named(settings: Settings, place: str) -> Iterator[Finding]:
    """Whether the models, files and folders are there that settings name, and the device."""
    for name, field in type(settings).model_fields.items():
        value, inner = getattr(settings, name), f"{place}.{name}" if place else name
        values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else (value,)
        mark = marker_of(field, IsPath)
        for one in values:
            if isinstance(one, Settings):
                yield from [_model(inner, one)] if hasattr(one, "record") else _named(one, inner)
            elif mark and not mark.or_name and isinstance(one, str) and name != "out" and "://" not in one:
                there = os.path.exists(one)
                yield Finding(inner, "ok" if there else "missing", one if there else f"there is no {one}")
        if name == "device":
            try:
                open_device(value)
            except InputError as error:
                yield fault(inner, error)


def _contents(settings: Settings) -> Iterator[Finding]:
    """What hashing of all that settings name stumbles over, and a run of pairs that cannot be tuned on."""
    try:
        portable(settings)
        if hasattr(settings, "data"):
            from maskmine.tuning.clip.data import open_sets

            asked = getattr(getattr(settings, "objective", None), "negatives", None)
            open_sets(settings.data, negatives=asked is not None)
    except (InputError, IncompleteError) as error:
        yield fault("settings", error)


def _existing(path: str) -> Path:
    """The path itself, or the nearest above it that exists."""
    absolute = Path(path).absolute()
    return next(place for place in (absolute, *absolute.parents) if os.path.exists(place))


def _captions(settings: Mining) -> Iterator[Finding]:
    for source in settings.sources:
        yield from _coco(source) if isinstance(source, CocoCaptions) else [_source(source, settings)]


def _source(source: AnySource, settings: Mining) -> Finding:
    """The beginning of a source is read, for a name of a column may be wrong."""
    try:
        source.check()
        table = next(iter(source.read(images_per_part=settings.shards.images_in_part(None))), None)
        paths = table["path"].drop_null() if table is not None else []
        if (urls := count_urls(paths)) and (means_urls(source) or urls == len(paths)):
            refuse_urls(settings, source.location)
    except (InputError, IncompleteError) as error:
        return fault("captions", error)
    return Finding("captions", "ok", f"{source.kind}: {source.location}")


def _coco(source: CocoCaptions) -> Iterator[Finding]:
    place, folder = source.annotations, source.images
    if "://" in place:
        yield _remote("captions", place)
        return
    try:
        listed = list(islice(source.read_images(), _LISTED))
    except InputError as error:
        yield fault("captions", error)
        yield _image_folder(folder)
        return
    except OSError as error:
        yield Finding(
            "captions", "missing", f"{place} cannot be read ({error.strerror})", "check the rights of the file"
        )
        return
    yield Finding("captions", "ok", f"{place}, {decimal(os.path.getsize(place))}")
    found = _image_folder(folder)
    yield found if found.state != "ok" or "://" in folder else _images(folder, [path for _, path in listed])


def _image_folder(folder: str) -> Finding:
    if "://" in folder:
        return _remote("images", folder)
    if not os.path.isdir(folder):
        return Finding("images", "missing", f"no folder {folder}", "`captions.images` names the folder of the images")
    return Finding("images", "ok", folder)


def _images(folder: str, paths: Sequence[str]) -> Finding:
    """Whether the files that the captions list first are in the folder."""
    there = sum(is_file(path) for path in paths)
    if there == len(paths):
        return Finding("images", "ok", f"{folder}, the first {there} listed are there")
    example = next(path for path in paths if not is_file(path))
    detail = f"{len(paths) - there} of the first {len(paths)} listed are not there, such as {example}"
    remedy = "`captions.images` names the folder that the listed file names start from"
    return Finding("images", "warning" if there else "missing", detail, remedy)


def _nouns_model(nouns: Nouns, *, absent: State) -> Finding:
    try:
        record = nouns.record()
    except InputError as error:
        return replace(fault("nouns", error), state=absent)
    return Finding("nouns", "ok", f"{record.name}, installed, licence {record.licence}")


def _models(settings: Mining) -> Iterator[Finding]:
    proposals, clip = settings.regions.proposals, settings.regions.clip
    yield _model("proposals", proposals)
    yield from _missing_folders(proposals)
    if clip is not None:
        yield _model("clip", clip)
    if settings.checks is not None:
        yield _model("verifier", settings.checks.verifier)
        yield from _missing_folders(settings.checks.verifier)
    for captioner in settings.captioners:
        if isinstance(captioner, Endpoint):
            yield from find_endpoint(captioner)
        else:
            yield _model("captions", captioner)
            yield from _missing_folders(captioner)


def _masks(settings: Mining) -> Iterator[Finding]:
    """Whether annotated masks can be read, and are of the first images."""
    proposals = settings.regions.proposals
    if not isinstance(proposals, GroundTruth):
        return
    try:
        truth = read_masks(proposals)
        for source in settings.sources:
            tables = source.read(images_per_part=settings.shards.images_in_part(None))
            table = next(iter(tables), None)
            if table is None or not table["path"].is_valid().to_pylist().count(True):
                continue
            images = zip(table["image_id"].to_pylist(), table["path"].to_pylist(), strict=True)
            if not any(truth.key_of(image_id, file_name_of(path)) for image_id, path in images):
                detail = f"{proposals.annotations} names none of the first images of {source.location}"
                yield Finding("masks", "missing", detail, "give the annotations of these images")
                return
    except (InputError, IncompleteError, OSError) as error:
        yield fault("masks", error)
        return
    for line in truth.left_out.lines():
        yield Finding("masks", "warning", f"not used, {line}")


def _lists(settings: Mining) -> Iterator[Finding]:
    """Lists, verdicts and a calibration that the settings name."""
    try:
        check_calibration(settings, identify(settings).settings)
    except (InputError, IncompleteError, ImportError, OSError) as error:
        yield fault("settings", error)


def _model(role: str, model: Any) -> Finding:
    try:
        return _recorded(model.record(), local=any(os.path.exists(path) for path in _paths(model)))
    except InputError as error:
        return fault(role, error)
    except ImportError as error:
        return Finding(role, "missing", f"cannot be looked up: {error}", how_to_install())


def _missing_folders(proposals: Any) -> Iterator[Finding]:
    """What a record does not tell: weights that are not in their folder, and panoptic pictures without theirs."""
    folder, segments = getattr(proposals, "checkpoint", ""), getattr(proposals, "segments", None)
    if os.path.isdir(folder) and not any(name.endswith((".safetensors", ".bin")) for name in os.listdir(folder)):
        yield Finding("weights", "missing", f"{folder} holds no weights", "add them as model.safetensors")
    if segments and "://" not in segments and not os.path.isdir(segments):
        remedy = "`regions.proposals.segments` names the folder of the panoptic PNG files"
        yield Finding("segments", "missing", f"no folder {segments}", remedy)


def _paths(model: Any) -> list[str]:
    """What a model's settings may name files or folders with."""
    values = [getattr(model, key, None) for key in ("annotations", "checkpoint", "weights", "model", "pretrained")]
    return [value.removeprefix("local-dir:") for value in values if value]


def _recorded(record: ModelRecord, *, local: bool) -> Finding:
    where = "local" if local else "cached" if record.sha256 else "not on this machine yet"
    no_trade = ", not for commercial use" if "-NC" in record.licence else ""
    detail = f"{record.name}, {where}, licence {record.licence}{no_trade}"
    remedies = []
    if where == "not on this machine yet":
        remedies.append("the first run downloads it; without a network, name a local file or folder")
    if record.licence == "unknown":
        setting = _SETTINGS.get(record.role, "regions.proposals")
        remedies.append(f"state the licence as `{setting}.licence`")
    return Finding(record.role, "warning" if remedies else "ok", detail, "; ".join(remedies))


def _remote(name: str, url: str) -> Finding:
    try:
        fsspec.get_filesystem_class(url.partition("://")[0])
    except (ImportError, ValueError) as error:
        return Finding(name, "missing", f"{url} cannot be reached: {error}", "install the library that it names")
    return Finding(name, "warning", f"{url} is remote and was not looked into")
