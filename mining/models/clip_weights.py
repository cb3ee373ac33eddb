"""CLIP's weights through open_clip: what `model` and `pretrained` of the settings name, where it is, how it is loaded.

`model` is an architecture, a name on the hub, a folder, or a JSON file; `pretrained` a tag or a file of weights.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskmine.mining.models.clip_description import CONFIG_FILE, model_config, refuse_foreign, refuse_larger
from maskmine.mining.models.foreign_code import nothing_is_run
from maskmine.mining.models.hub import refusal, require_hub
from maskmine.mining.storage.content_hash import WEIGHT_SUFFIXES, file_sha256, files_sha256, weights_sha256
from maskmine.mining.storage.ownership import SCRATCH, owned_prefix
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import fingerprint

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# How open_clip marks a name on the hub and a folder.
_HUB, _FOLDER = "hf-hub:", "local-dir:"
# What `create_model` calls the precisions of the settings.
_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, slots=True)
class ClipSource:
    """What the settings name: `name` as open_clip takes it, and the weights if they are on this machine.

    `hashed`: the files that identify the weights. `published`: the tag or the hub's name, empty for files of one's
    own. `tag`: open_clip's record of a tag. `architecture`: the content of a JSON file.
    """

    name: str
    weights: Path | None = None
    hashed: tuple[Path, ...] = ()
    published: str = ""
    tag: dict[str, Any] = field(default_factory=dict)
    architecture: dict[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str | None:
        """The hash of one file or folder; of several, the hash of their hashes; None where nothing is here yet."""
        hashes = [weights_sha256(path) for path in self.hashed]
        if len(hashes) > 1:
            return hashlib.sha256("".join(hashes).encode()).hexdigest()
        return hashes[0] if hashes else None


@dataclass(frozen=True, slots=True)
class LoadedClip:
    """open_clip's model in host memory, frozen, with its tokenizer.

    `preprocess` has `mean` and `std` of its input; `architecture` is the `model_cfg` that describes it.
    """

    network: Any
    dim: int
    dtype: torch.dtype
    tokenize: Callable[[list[str]], Tensor]
    preprocess: dict[str, Any]
    architecture: dict[str, Any]


def find_weights(model: str, pretrained: str | None) -> ClipSource:
    """What the settings name, looked up without a network. Raises InputError when they name nothing."""
    folder = None if model.startswith(_HUB) else named_folder(model)
    if model.startswith(_HUB) or folder:
        if pretrained is not None:
            raise InputError(f"clip.pretrained: `{model}` brings its own weights; remove `{pretrained}`")
        return _find_folder(folder) if folder else _find_hub(model)
    return _find_architecture(model, pretrained) if model.endswith(".json") else _find_built_in(model, pretrained)


def load_clip(model: str, pretrained: str | None, *, precision: str) -> LoadedClip:
    """The whole model in host memory, in float32, bfloat16 or float16.

    Raises InputError when the weights are not to be had, do not belong to the architecture, or bring code.
    """
    import open_clip
    import torch
    from safetensors import SafetensorError

    source = _fetched(model, pretrained, find_weights(model, pretrained))
    unreadable = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, OSError, EOFError, StopIteration)
    odd_sizes = (ArithmeticError, AssertionError)  # of 0, or such that do not divide each other
    with nothing_is_run(model, setting="clip.model"), _as_open_clip_names_it(_kept(source)) as (name, file):
        try:
            architecture = open_clip.get_model_config(name)
            refuse_foreign(architecture, model)
            if weights_bytes := _weights_bytes(source):
                refuse_larger(architecture, model, weights_bytes=weights_bytes)
            dim = int(architecture["embed_dim"])
            network = open_clip.create_model(
                name,
                pretrained=file,
                precision=_PRECISIONS[precision],
                # open_clip takes the activation from the architecture and only warns when the tag has another.
                force_quick_gelu=bool(source.tag.get("quick_gelu")),
                force_preprocess_cfg={key: source.tag[key] for key in ("mean", "std") if key in source.tag},
                pretrained_text=False,
                require_pretrained=True,
                weights_only=True,
            )
            architecture = open_clip.get_model_config(name)
            tokenize = _open_tokenizer(name, architecture)
        except (*unreadable, *odd_sizes, pickle.UnpicklingError, SafetensorError) as error:
            raise InputError(_explained(model, pretrained, error)) from error
    if source.tag.get("quick_gelu"):
        architecture["quick_gelu"] = True
    preprocess = open_clip.get_model_preprocess_cfg(network)
    dtype = getattr(torch, precision)
    return LoadedClip(network.eval().requires_grad_(False), dim, dtype, tokenize, preprocess, architecture)


def clip_contents(model: str, pretrained: str | None) -> dict[str, Any]:
    """What the settings name, as `Settings.contents` has it: `model` is the architecture, with the weights where it
    brings them; `pretrained` the weights; `tokenizer` what is read for texts alone.

    A hash is None where a file of a hub is not on this machine. Nothing is fetched; what names nothing has no hash.
    """
    try:
        source = find_weights(model, pretrained)
    except InputError:
        return {"model": _named(model, None), "pretrained": _named(pretrained, None) if pretrained else None}
    config, of_architecture = _architecture(source)
    weights = _named(pretrained, None)
    if source.weights is not None:
        weights = _named(pretrained, file_sha256(source.weights))
    if pretrained is None:  # a folder or a hub's name
        folder = _local(source)
        files = [f for f in folder.iterdir() if f.suffix in WEIGHT_SUFFIXES or f.name == CONFIG_FILE] if folder else []
        if folder and source.weights is not None:  # of a hub's folder what is loaded, whatever else is kept there
            files = [source.weights, folder / CONFIG_FILE]
        whole = files_sha256(files, below=folder) if folder and all(f.is_file() for f in files) else None
        return {"model": _named(model, whole), "pretrained": None, "tokenizer": _tokenizer(config, folder)}
    return {"model": _named(model, of_architecture), "pretrained": weights, "tokenizer": _tokenizer(config, None)}


def portable_name(name: str) -> str:
    """A name without the folders that it lies in, where it is a path; `hf-hub:org/name` stays as it is."""
    path = name.removeprefix(_FOLDER)
    return os.path.basename(path.rstrip("/")) if path != name or os.path.exists(path) or os.path.isabs(path) else name


def fetch_clip(model: str, pretrained: str | None) -> None:
    """Fetch from the hub what is not on this machine. Raises InputError when that cannot be had."""
    before = find_weights(model, pretrained)
    source = _fetched(model, pretrained, before)
    try:
        config, _ = _architecture(source)
        if _local(before) is None and config.get("text_cfg", {}).get("hf_tokenizer_name"):
            with nothing_is_run(model, setting="clip.model"):
                refuse_foreign(config, model)
                _open_tokenizer(source.name or model, config)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(_unreachable(model, error, source.name.removeprefix(_HUB))) from error


def named_folder(model: str) -> Path | None:
    """The folder that `model` names, None where it names something else."""
    if model.startswith(_FOLDER):
        return Path(model.removeprefix(_FOLDER))
    return Path(model) if Path(model).is_dir() else None


def companion_files(folder: Path) -> tuple[Path, ...]:
    """The files of an open_clip folder beside its configuration and its weights, such as those of a tokenizer."""
    return tuple(
        sorted(f for f in folder.iterdir() if f.is_file() and f.name != CONFIG_FILE and f.suffix not in WEIGHT_SUFFIXES)
    )


def imagenet_templates() -> tuple[str, ...]:
    """OpenAI's 80 sentences for ImageNet, as open_clip ships them, with `{}` where the noun goes."""
    import open_clip

    return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


# Files that a tokenizer of the hub is read from, and the description of a text tower.
_TEXT_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "config.json"),
)
_NO_TOKENIZER = {"readme", "license", "notice", ".gitattributes"}  # files of a folder that no tokenizer reads


def _open_tokenizer(name: str, architecture: Mapping[str, Any]) -> Callable[[list[str]], Tensor]:
    import open_clip

    of_transformers = bool(architecture["text_cfg"].get("hf_tokenizer_name"))
    tokenizer: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(
        name, **({"trust_remote_code": False} if of_transformers else {})
    )
    return tokenizer


def _named(name: str | None, sha256: str | None) -> dict[str, str | None]:
    return {"name": portable_name(name) if name else None, "sha256": sha256}


def _local(source: ClipSource) -> Path | None:
    """The folder that holds configuration and weights; None for what is put together from several places."""
    if source.name.startswith(_FOLDER):
        return Path(source.name.removeprefix(_FOLDER))
    return source.weights.parent if source.name.startswith(_HUB) and source.weights else None


def clip_weights_bytes(model: str, pretrained: str | None) -> int:
    """The size of the weights of a CLIP; 0 where they are not on this machine."""
    return _weights_bytes(find_weights(model, pretrained))


def _weights_bytes(source: ClipSource) -> int:
    """The size of the weights; 0 where they are not on this machine."""
    folder = _local(source)
    files = [source.weights] if source.weights else list(folder.iterdir()) if folder else []
    return sum(file.stat().st_size for file in files if file.suffix in WEIGHT_SUFFIXES and file.is_file())


def _architecture(source: ClipSource) -> tuple[dict[str, Any], str | None]:
    """The `model_cfg` of a source, and a hash of it with what its tag changes; empty where it is not here."""
    folder = _local(source)
    if folder is not None:
        try:
            described = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            described = {}
    elif source.name.startswith(_HUB):
        described = {}
    else:
        described = source.architecture or _built_in(source.name)
    tag = {key: source.tag[key] for key in ("quick_gelu", "mean", "std") if key in source.tag}
    config = model_config(described)
    return config, fingerprint([described, tag]) if config else None


def _built_in(name: str) -> dict[str, Any]:
    """The description of an architecture of open_clip, which is loaded for this alone: it takes seconds."""
    import open_clip

    return {"model_cfg": open_clip.get_model_config(name) or {}}


def _tokenizer(config: Mapping[str, Any], folder: Path | None) -> dict[str, str | None] | None:
    """What texts are cut by, and a text tower of transformers described by; None for open_clip's own."""
    text = config.get("text_cfg", {})
    if not (text.get("hf_tokenizer_name") or text.get("hf_model_name")):
        return None
    files: list[Path] = []
    if folder is not None and text.get("hf_tokenizer_name"):
        beside = (f for f in companion_files(folder) if f.suffix != ".md" and f.stem.lower() not in _NO_TOKENIZER)
        files += [file for file in beside if file.suffix not in WEIGHT_SUFFIXES]
    elif text.get("hf_tokenizer_name"):
        files += _text_files(text["hf_tokenizer_name"])
    if text.get("hf_model_name"):
        files += _text_files(text["hf_model_name"])
    hashed = [[file.name, file_sha256(file)] for file in files]
    name = portable_name(text.get("hf_tokenizer_name") or text["hf_model_name"])
    return {"name": name, "sha256": fingerprint(sorted(hashed)) if hashed else None}


def _text_files(name: str) -> list[Path]:
    """The files of a tokenizer in a folder, or of one of the hub as far as they are on this machine."""
    from huggingface_hub import try_to_load_from_cache

    if os.path.isdir(name):
        return [file for file in map(Path(name).joinpath, _TEXT_FILES) if file.is_file()]
    found = [try_to_load_from_cache(name, file) for file in _TEXT_FILES]
    return [Path(path) for path in found if isinstance(path, str)]


def _kept(source: ClipSource) -> ClipSource:
    """A hub's model that is on this machine as its folder, so that what was hashed is loaded and nothing newer.

    Not where a tokenizer of the hub is named, which open_clip would look for in that folder.
    """
    folder = _local(source)
    if folder is None or not source.name.startswith(_HUB) or not (folder / CONFIG_FILE).is_file():
        return source
    config, _ = _architecture(source)
    if config.get("text_cfg", {}).get("hf_tokenizer_name"):
        return source
    return replace(source, name=_FOLDER + str(folder))


def _find_hub(model: str) -> ClipSource:
    name = model.removeprefix(_HUB)
    weights = _cached(name, "")
    return ClipSource(model, weights, hashed=(weights,) if weights else (), published=name)


def _find_folder(folder: Path) -> ClipSource:
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"clip.model: `{folder}` holds no {CONFIG_FILE}; give a folder saved for open_clip")
    if not any(file.suffix in {".safetensors", ".bin", ".pth"} for file in folder.iterdir()):
        raise InputError(f"clip.model: `{folder}` holds no weights; add them as open_clip_model.safetensors")
    return ClipSource(_FOLDER + str(folder), hashed=(folder,))


def _find_architecture(model: str, pretrained: str | None) -> ClipSource:
    path, weights = Path(model), _required_weights(model, pretrained)
    if not weights.is_file():
        raise InputError(f"clip.pretrained: there is no file `{weights}`; a JSON architecture needs a file of weights")
    try:
        described = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"clip.model: `{path}` cannot be read as JSON ({error}); check the path and the file"
        ) from error
    described = described if isinstance(described, dict) else {}
    described = described if "model_cfg" in described else {"model_cfg": described}
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(model_config(described))
    if missing:
        raise InputError(
            f"clip.model: `{path}` lacks {', '.join(sorted(missing))}; give an open_clip model configuration"
        )
    return ClipSource("", weights, hashed=(path, weights), architecture=described)


def _find_built_in(model: str, pretrained: str | None) -> ClipSource:
    import open_clip

    name = model.replace("/", "-")
    if name not in (known := open_clip.list_models()):
        no_folder = "there is no such folder, and " if "/" in model else ""
        raise InputError(f"clip.model: {no_folder}open_clip has no `{model}`{_meant(name, known)}")
    weights = _required_weights(model, pretrained)
    if tag := open_clip.get_pretrained_cfg(name, str(pretrained)):
        cached = _cached_tag(tag)
        return ClipSource(name, cached, hashed=(cached,) if cached else (), published=str(pretrained), tag=tag)
    if not weights.is_file():
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise InputError(
            f"clip.pretrained: `{pretrained}` is neither a file nor weights of {name}" + _meant(str(pretrained), tags)
        )
    return ClipSource(name, weights, hashed=(weights,))


def _required_weights(model: str, pretrained: str | None) -> Path:
    if pretrained is None:
        raise InputError(
            f"clip.pretrained: `{model}` says nothing without weights; name a tag such as openai, or a file"
        )
    return Path(pretrained)


def _meant(word: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown word: the nearest known ones, or all if they are few."""
    others = [name for name in known if name != word]
    near = difflib.get_close_matches(word, others, n=3, cutoff=0.4) or (others if len(others) <= 12 else [])
    return f"; did you mean {' or '.join(near)}?" if near else "; `open_clip.list_pretrained()` names them all"


def _cached_tag(tag: dict[str, Any]) -> Path | None:
    """The weights of a tag if they are on this machine, where open_clip's `download_pretrained` keeps them."""
    if tag.get("hf_hub"):
        repository, _, filename = tag["hf_hub"].rpartition("/")
        return _cached(repository, filename)
    file = Path("~/.cache/clip").expanduser() / str(tag.get("url", "")).rpartition("/")[2]
    return file if file.is_file() else None


def _cached(repository: str, filename: str) -> Path | None:
    """A hub's weights if they are on this machine; like open_clip, safetensors rather than the pickle of that name."""
    from huggingface_hub import try_to_load_from_cache

    safe = Path(filename).with_suffix(".safetensors").name if filename else "open_clip_model.safetensors"
    for name in (safe, filename or "open_clip_pytorch_model.bin"):
        if isinstance(path := try_to_load_from_cache(repository, name), str):
            return Path(path)
    return None


def _fetched(model: str, pretrained: str | None, source: ClipSource) -> ClipSource:
    """The source with its weights on this machine, those of a tag or a hub's name fetched where they are not."""
    import open_clip

    of_hub, name = source.name.startswith(_HUB), f"{model} {pretrained or ''}".rstrip()
    if source.weights is not None or not (source.tag or of_hub):
        return source
    repository = source.name.removeprefix(_HUB) if of_hub else str(source.tag.get("hf_hub", "")).rpartition("/")[0]
    try:
        if repository:
            require_hub("clip", name)
        if of_hub:
            open_clip.pretrained.download_pretrained_from_hf(repository, filename=CONFIG_FILE)
            weights = open_clip.pretrained.download_pretrained_from_hf(repository)
        else:
            weights = open_clip.download_pretrained(source.tag)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(_unreachable(name, error, repository)) from error
    return replace(source, weights=Path(weights))


@contextmanager
def _as_open_clip_names_it(source: ClipSource) -> Iterator[tuple[str, str | None]]:
    """Name and file for `create_model`; a JSON architecture becomes a folder, since open_clip's registry is global."""
    if not source.architecture:
        brings_its_own = source.weights is None or source.name.startswith((_HUB, _FOLDER))
        yield source.name, None if brings_its_own else str(source.weights)
        return
    assert source.weights is not None
    safe = source.weights.suffix == ".safetensors"
    with tempfile.TemporaryDirectory(prefix=owned_prefix(SCRATCH)) as folder:
        Path(folder, CONFIG_FILE).write_text(json.dumps(source.architecture), "utf-8")
        file = "open_clip_model.safetensors" if safe else "open_clip_pytorch_model.bin"
        Path(folder, file).symlink_to(source.weights.resolve())
        yield _FOLDER + folder, None


def _explained(model: str, pretrained: str | None, error: BaseException) -> str:
    """One line about weights that did not load."""
    text, name = str(error), pretrained or model
    if "loading state_dict" in text:
        detail = text.splitlines()[1].strip()[:200]
        return f"clip: the weights `{name}` are not those of `{model}` ({detail}); name the architecture they have"
    if "TorchScript" in text:
        return f"clip.pretrained: `{name}` holds a program (TorchScript); save its state_dict as safetensors, use that"
    if model.startswith(_HUB):
        return _unreachable(model, error, model.removeprefix(_HUB))
    return (
        f"clip: `{name}` cannot be loaded ({_first_line(error)}); give weights saved from a state_dict, and check both"
    )


def _unreachable(name: str, error: BaseException, repository: str = "") -> str:
    if asks := refusal(error, repository):
        return f"clip: `{name}`: {asks}"
    return (
        f"clip: `{name}` is not on this machine and could not be fetched ({_first_line(error)}); "
        "check the name and the network, or set `model` to a local folder"
    )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
