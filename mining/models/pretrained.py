"""Folders that transformers saved, on a disk or on the Hugging Face hub: fetched, checked, loaded and hashed.

A proposer or a verifier that runs through transformers states the types of model that it takes; the rest is common.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, ParamSpec, Protocol, Self, TypeVar, runtime_checkable

from maskmine.mining.models.devices import PROPOSALS_ON_GPU, DeviceKind, Precision, settled_precision
from maskmine.mining.models.foreign_code import check_described, nothing_is_run, read_described
from maskmine.mining.models.hub import refusal, require_hub
from maskmine.mining.models.known_licences import licence_of
from maskmine.mining.storage.content_hash import WEIGHT_SUFFIXES, files_sha256, weights_sha256
from maskmine.schemas.errors import InputError
from maskmine.schemas.manifest import ModelRecord
from maskmine.schemas.settings import Settings

# In the order of preference; the indexes belong to weights in several files.
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# Names that the hub can have; everything else is a path.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# Files of a tokenizer of transformers; which of them there are depends on its class.
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_VOCABULARY = ("vocab.json", "merges.txt", "vocab.txt")

# What transformers and torch raise where values of a description do not fit; of `Exception` itself are those of
# tokenizers.
_UNFIT = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError)

Given = ParamSpec("Given")
Answer = TypeVar("Answer")

Role = Literal["proposals", "verifier", "captions"]
"""What a model of transformers does in mining, which is also the setting that names it."""


@runtime_checkable
class HasWeights(Protocol):
    """Settings that name weights."""

    def weights_bytes(self) -> int:
        """The size of the weights; 0 for those that are not on this machine."""


KINDS: Mapping[Role, Mapping[str, str]] = {
    "proposals": {
        **dict.fromkeys(("maskformer", "mask2former"), "maskformer"),
        **dict.fromkeys(("eomt", "eomt_dinov3"), "eomt"),
        "rf_detr": "rf_detr",
        **dict.fromkeys(("sam", "sam2", "sam2_video", "sam3_tracker", "sam3_video"), "sam"),
    },
    "verifier": {
        "sam3": "sam3",
        "sam3_video": "sam3",
        "owlv2": "owlv2",
        "mm-grounding-dino": "mm_grounding_dino",
    },
    "captions": {"florence2": "florence2"},
}
"""Which `kind` takes a model, by the type in its config.json."""


@dataclass(frozen=True, slots=True)
class Family:
    """The types of model of one `kind`, each with the names of transformers' classes for it and for its input.

    `pickles`: whether weights may be torch files, which are read with `weights_only`; `needed`: the names of the
    weights of a network without which it cannot be used; `texts`: whether its input has texts, so that a tokenizer
    belongs to it.
    """

    classes: Mapping[str, tuple[str, str]]
    pickles: bool
    needed: Callable[[Any], Iterable[str]]
    role: Role = "proposals"
    texts: bool = False

    @property
    def setting(self) -> str:
        """What messages call the setting that names the checkpoint."""
        return f"{self.role}.checkpoint"


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A network in float32 on the CPU, ready to predict, what prepares its input, and the type of the model."""

    network: Any
    processor: Any
    model_type: str


class FromTransformers(Settings):
    """What settings that name a checkpoint of transformers do alike. The fields are theirs, in their own order."""

    family: ClassVar[Family]
    if TYPE_CHECKING:
        checkpoint: str
        revision: str | None
        precision: Precision
        licence: str | None

    def contents(self) -> dict[str, Any]:
        """The checkpoint by the hash of what is loaded."""
        contents = pretrained_contents(self.checkpoint, revision=self.revision, family=self.family)
        return {"checkpoint": contents}

    def settled(self, kind: DeviceKind) -> Self:
        """The same model, at the commit that is on this machine, with the precision that it has on a kind of device."""
        precision = settled_precision(self.precision, kind, on_gpu=PROPOSALS_ON_GPU)
        revision = commit_of(self.checkpoint, self.revision, family=self.family)
        return self.model_copy(update={"precision": precision, "revision": revision})

    def fetch(self) -> None:
        """Fetch from the hub what is not on this machine. Raises InputError when that cannot be had."""
        fetch_pretrained(self.checkpoint, revision=self.revision, family=self.family)

    def weights_bytes(self) -> int:
        """The size of its weights; 0 where they are not on this machine."""
        folder = _local_folder(self.checkpoint, self.family) or _cached(
            self.checkpoint, self.revision, family=self.family
        )
        files = _loaded_files(folder, self.family) if folder is not None else []
        return sum(file.stat().st_size for file in files if file.suffix in WEIGHT_SUFFIXES)

    def load(self) -> Pretrained:
        """The checkpoint, as `load_pretrained`."""
        return load_pretrained(self.checkpoint, revision=self.revision, family=self.family)

    def tried(self, answer: Callable[Given, Answer]) -> Callable[Given, Answer]:
        """A function of this model, as `tried`."""
        return tried(answer, name=self.checkpoint, setting=self.family.setting)

    def record(self) -> ModelRecord:
        """The weights and their licence, as in `pretrained_record`."""
        return pretrained_record(self.checkpoint, revision=self.revision, licence=self.licence, family=self.family)


def tried(answer: Callable[Given, Answer], *, name: str, setting: str) -> Callable[Given, Answer]:
    """The same function of a model; until it has answered once, what goes wrong in it is a fault of the model's files.

    No library checks all that such files say: a size that is a word shows when the first picture is prepared. Raises
    InputError for that; a GPU that fails, or has no room for the model, is no such fault.
    """
    sound = False

    def try_(*args: Given.args, **kwargs: Given.kwargs) -> Answer:
        nonlocal sound
        try:
            answered = answer(*args, **kwargs)
        except Exception as error:
            if sound or not (isinstance(error, _UNFIT) or type(error) is Exception) or _is_of_the_machine(error):
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            raise InputError(
                f"{setting}: `{name}` does not run as its files describe it, save it again ({reason})"
            ) from error
        sound = True
        return answered

    return try_


def _is_of_the_machine(error: Exception) -> bool:
    """Whether a GPU failed, or the machine has no room for the model."""
    import torch

    failed = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)  # since torch 2.8
    return isinstance(error, torch.OutOfMemoryError | failed) or "can't allocate memory" in str(error)


def load_pretrained(checkpoint: str, *, revision: str | None, family: Family) -> Pretrained:
    """Load a folder, or a name on the hub, whose files are fetched when they are not here.

    Raises InputError when it cannot be had, is of another type, which is found out before any weights are fetched, or
    lacks weights.
    """
    folder = _local_folder(checkpoint, family)
    if folder is None:
        _model_type(_fetched(checkpoint, revision, ["*.json"], family=family), name=checkpoint, family=family)
        folder = _snapshot(checkpoint, revision, family=family)
    return _from_folder(folder, name=checkpoint, family=family)


def pretrained_record(checkpoint: str, *, revision: str | None, licence: str | None, family: Family) -> ModelRecord:
    """The weights and their licence; without a network, so `sha256` is None while a hub's weights are not here.

    The hash is that of a folder's weights and JSON files, or of the one file of weights from the hub. Raises
    InputError for a name that can be neither.
    """
    local = _local_folder(checkpoint, family)
    folder = local or _cached(checkpoint, revision, family=family)
    return ModelRecord(
        role=family.role,
        name=f"{checkpoint}@{revision}"
        if revision
        else os.path.basename(checkpoint.rstrip("/"))
        if local
        else checkpoint,
        sha256=_sha256(folder, whole=local is not None) if folder else None,
        licence=licence or licence_of(checkpoint),
    )


def pretrained_contents(checkpoint: str, *, revision: str | None, family: Family) -> dict[str, str | None]:
    """A checkpoint's name, revision and the hash of what is loaded: weights, configuration, processor, tokenizer.

    `sha256` is None where the hub's files are not on this machine, or nothing has this name.
    """
    try:
        local = _local_folder(checkpoint, family)
        folder = local or _cached(checkpoint, revision, family=family)
    except InputError:
        folder = None
    files = _loaded_files(folder, family) if folder else []
    name = os.path.basename(checkpoint.rstrip("/")) if folder and local else checkpoint
    sha256 = files_sha256(files, below=folder) if folder and files else None
    return {"name": name, "revision": revision, "sha256": sha256}


def fetch_pretrained(checkpoint: str, *, revision: str | None, family: Family) -> None:
    """Fetch from the hub what is not on this machine; of a folder only its type is looked at. Raises as
    `load_pretrained`."""
    folder = _local_folder(checkpoint, family)
    if folder is not None:
        _model_type(folder, name=checkpoint, family=family)
    elif _cached(checkpoint, revision, family=family) is None:
        _model_type(_fetched(checkpoint, revision, ["*.json"], family=family), name=checkpoint, family=family)
        _snapshot(checkpoint, revision, family=family)


def commit_of(checkpoint: str, revision: str | None, *, family: Family) -> str | None:
    """The commit at which a hub's files are on this machine, else the revision as it is."""
    try:
        folder = None if _local_folder(checkpoint, family) else _cached(checkpoint, revision, family=family)
    except InputError:
        folder = None
    return folder.name if folder is not None and folder.parent.name == "snapshots" else revision


def _loaded_files(folder: Path, family: Family) -> list[Path]:
    """The files that a checkpoint is loaded from: of several kinds of weights the first."""
    described = ["config.json", "preprocessor_config.json", "processor_config.json"]
    described += [*_TOKENIZER, *_VOCABULARY] if family.texts else []
    weights = _weights_in(folder, pickles=family.pickles)[:1]
    if weights and weights[0].suffix == ".json":
        stem = weights[0].name.partition(".")[0]
        weights += [file for file in folder.glob(f"{stem}-*") if file.suffix in WEIGHT_SUFFIXES]
    return [*(folder / name for name in described if (folder / name).is_file()), *weights] if weights else []


def _from_folder(folder: Path, *, name: str, family: Family) -> Pretrained:
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    kind = _model_type(folder, name=name, family=family)
    if absent := [class_ for class_ in family.classes[kind] if not hasattr(transformers, class_)]:
        raise InputError(
            f"{family.setting}: `{name}` is a {kind} model, and transformers {transformers.__version__} has no "
            f"{absent[0]}; install a newer one: pip install -U transformers"
        )
    if not _weights_in(folder, pickles=family.pickles):
        raise InputError(f"{family.setting}: `{name}` holds no weights; add them as {_SAFETENSORS[0]}")
    network_class, processor_class = (getattr(transformers, class_) for class_ in family.classes[kind])
    check_described(folder, name=name, setting=family.setting)
    unreadable = (*_UNFIT, OSError, EOFError, ImportError)
    try:
        with nothing_is_run(name, setting=family.setting), without_progress_bars():
            network, report = network_class.from_pretrained(
                folder,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
                weights_only=True,
                use_safetensors=None if family.pickles else True,
                trust_remote_code=False,
            )
            processor = processor_class.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        known = isinstance(error, (*unreadable, StrictDataclassError, SafetensorError, pickle.UnpicklingError))
        if not known and type(error) is not Exception:  # of that very class are the errors of tokenizers
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{family.setting}: `{name}` cannot be loaded, save it again ({reason})") from error
    # transformers only warns and goes on with random weights
    if missing := sorted(set(family.needed(network)) & set(report["missing_keys"])):
        raise InputError(
            f"{family.setting}: `{name}` lacks {len(missing)} weights such as {missing[0]}; save the whole model"
        )
    return Pretrained(network.eval().requires_grad_(False), processor, kind)


def _model_type(folder: Path, *, name: str, family: Family) -> str:
    """The type of the model in a folder, which is one of the family."""
    for files in (("config.json",), ("preprocessor_config.json", "processor_config.json")):
        if not any((folder / file).is_file() for file in files):
            raise InputError(
                f"{family.setting}: `{name}` holds no {files[0]}; give a folder saved with `save_pretrained` of "
                f"the model and of its {'' if family.texts else 'image '}processor"
            )
    config = read_described(folder / "config.json", name=name, setting=family.setting)
    kind = str(config.get("model_type")) if isinstance(config, dict) else "None"
    if kind not in family.classes:
        *others, last = family.classes
        known = f"{', '.join(others)} or {last}" if others else last
        kinds = KINDS[family.role]
        remedy = f"use `kind: {kinds[kind]}` for it, or give" if kind in kinds else "give"
        raise InputError(f"{family.setting}: `{name}` is a {kind} model; {remedy} a {known} one")
    return kind


def _local_folder(checkpoint: str, family: Family) -> Path | None:
    """The folder of this name, None for a name on the hub."""
    path = Path(checkpoint)
    if path.is_dir():
        return path
    if path.is_file():
        raise InputError(
            f"{family.setting}: `{checkpoint}` is a file; give a folder that transformers saved, with "
            "config.json and model.safetensors, or the name of one on the hub"
        )
    if not _HUB_NAME.fullmatch(checkpoint):
        raise InputError(f"{family.setting}: there is no folder `{checkpoint}`; check the path")
    return None


def _snapshot(checkpoint: str, revision: str | None, *, family: Family, cached: bool = False) -> Path:
    """The folder with a hub's files, fetched when they are not here.

    Files are fetched first and then loaded as a folder, because transformers would have the hub convert a checkpoint
    that has no safetensors.
    """
    folder = Path()
    for patterns in _patterns(family):
        folder = _fetched(checkpoint, revision, patterns, family=family, cached=cached)
        if _weights_in(folder, pickles=family.pickles):
            break
    return folder


def _fetched(
    checkpoint: str, revision: str | None, patterns: list[str], *, family: Family, cached: bool = False
) -> Path:
    """The folder with some of a hub's files. Raises InputError; with `cached` also when they are not here."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(checkpoint, revision=revision, allow_patterns=patterns, local_files_only=cached))
    except (OSError, ValueError) as error:
        if asks := refusal(error, checkpoint):
            raise InputError(f"{family.setting}: `{checkpoint}`: {asks}") from error
        if not cached:
            require_hub(family.setting, checkpoint)
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{family.setting}: `{checkpoint}` is no folder here and the hub does not give it ({reason}); "
            "check the name, or give a folder with the files"
        ) from error


def _cached(checkpoint: str, revision: str | None, *, family: Family) -> Path | None:
    """The folder with a hub's files where they, with weights, have been fetched before."""
    try:
        folder = _snapshot(checkpoint, revision, family=family, cached=True)
    except InputError:
        return None
    return folder if _weights_in(folder, pickles=family.pickles) else None


def _patterns(family: Family) -> Iterator[list[str]]:
    """Which files of a hub to ask for; pickled weights only where there are no others."""
    texts = [name for name in _VOCABULARY if name.endswith(".txt")] if family.texts else []
    yield ["*.json", *texts, "model.safetensors", "model-*.safetensors"]
    if family.pickles:
        yield ["*.json", "pytorch_model.bin", "pytorch_model-*.bin"]


def _weights_in(folder: Path, *, pickles: bool) -> list[Path]:
    names = (*_SAFETENSORS, *(_PICKLES if pickles else ()))
    return [folder / name for name in names if (folder / name).is_file()]


def _sha256(folder: Path, *, whole: bool) -> str:
    """Of the folder, or of its file of weights: other programs may keep further files in a hub's folder."""
    files = _weights_in(folder, pickles=True)
    return weights_sha256(folder if whole or not files or files[0].suffix == ".json" else files[0])


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Loading from a disk takes a second; the bar would cross those of the command line."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
