"""CLIP through open_clip: what a region looks like and what a sentence says, as vectors of one space.

Shapes: N regions or texts, B the fixed batch, S side of the input in pixels, D width of the embedding.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mining.devices import open_device
from mining.weights import licence_of, weights_sha256
from schemas.errors import InputError
from schemas.models import ModelRecord
from schemas.settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_HUB, _FOLDER = "hf-hub:", "local-dir:"
_CONFIG = "open_clip_config.json"
_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, slots=True)
class ImageTower:
    """CLIP's image side on `device`: `embed` takes normalised pixels [N, 3, S, S] to unit vectors, float32 [N, D].

    `mean` and `std` are those of colours from 0 to 1. Every batch that the model sees has `batch_size` rows.
    """

    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dim: int
    batch_size: int
    device: torch.device
    embed: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class TextTower:
    """CLIP's text side. `embed` takes texts, of which it reads the beginning if they are long, to float32 [N, D]."""

    dim: int
    batch_size: int
    embed: Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True, slots=True)
class WholeClip:
    """Both sides of CLIP in host memory, in float32 and frozen, for a job that changes the weights.

    `model` is open_clip's own. `config` is the content of an `open_clip_config.json` that describes it, and
    `companions` are the files that must lie beside that, such as those of a tokenizer. `mean` and `std` as in
    `ImageTower`.
    """

    name: str
    model: Any
    dim: int
    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    config: dict[str, Any]
    companions: tuple[Path, ...]


class Clip(Settings):
    """Which CLIP, and how it runs.

    `model` is an architecture of open_clip (`ViT-L-14`), `hf-hub:ORG/NAME`, a folder with `open_clip_config.json` and
    weights, or a JSON file that describes an architecture. `pretrained` is, for an architecture, a tag of open_clip
    (`openai`) or a file of weights; a folder and a hub name bring their own. Weights that descend from OpenAI's and
    come as a file need an architecture with their activation, such as `ViT-L-14-quickgelu`; for tags it is seen to.
    `precision: auto` is float16 on a GPU and float32 on a CPU. `licence` states what cannot be known: that of a file.
    """

    model: str
    pretrained: str | None = None
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_size: Annotated[int, Field(ge=1)] = 64
    licence: str | None = None

    def record(self) -> ModelRecord:
        """The weights and their licence; without a network, so `sha256` is None while a hub's weights are not here.

        The hash is that of the one file that is loaded, of a folder's weights and JSON files, or of an architecture's
        JSON file and its weights. Raises InputError for settings that name nothing.
        """
        source = _find(self)
        published = self.pretrained if source.tag else self.model.removeprefix(_HUB) if source.hub else None
        return ModelRecord(
            role="clip",
            name=" ".join(filter(None, (self.model, self.pretrained))),
            sha256=_sha256(source.hashed),
            licence=self.licence or licence_of(published or ""),
        )

    def open_image(self, *, device: str) -> ImageTower:
        """Load the image side. Raises InputError when settings, weights or network do not allow it."""
        import open_clip

        target = open_device(device)
        loaded = _load(self, device_type=target.type)
        visual = loaded.model.visual.to(target)
        size_px = _side_px(self, visual)
        preprocess = open_clip.get_model_preprocess_cfg(loaded.model)

        def forward(pixels_B3SS: Tensor) -> Tensor:
            features: Tensor | tuple[Tensor, ...] = visual(pixels_B3SS.to(target, loaded.dtype))
            return features[0] if isinstance(features, tuple) else features

        return ImageTower(
            size_px=size_px,
            mean=tuple(preprocess["mean"]),
            std=tuple(preprocess["std"]),
            dim=loaded.dim,
            batch_size=self.batch_size,
            device=target,
            embed=lambda pixels_N3SS: embed_in_batches(
                pixels_N3SS, forward=forward, batch_size=self.batch_size, dim=loaded.dim
            ),
        )

    def open_whole(self) -> WholeClip:
        """Load both sides for training. Raises InputError when settings, weights or network do not allow it."""
        import open_clip

        loaded = _load(self.model_copy(update={"precision": "float32"}), device_type="cpu")
        preprocess = open_clip.get_model_preprocess_cfg(loaded.model)
        folder = Path(_folder(self)) if _folder(self) else None
        return WholeClip(
            name=self.record().name,
            model=loaded.model,
            dim=loaded.dim,
            size_px=_side_px(self, loaded.model.visual),
            mean=tuple(preprocess["mean"]),
            std=tuple(preprocess["std"]),
            config={"model_cfg": loaded.architecture, "preprocess_cfg": preprocess},
            companions=_companions(folder) if folder else (),
        )

    def open_text(self, *, device: str) -> TextTower:
        """Load the text side. Raises InputError when settings, weights or network do not allow it."""
        import torch

        target = open_device(device)
        loaded = _load(self, device_type=target.type)
        del loaded.model.visual  # most of the weights
        model = loaded.model.to(target)

        def embed(texts: Sequence[str]) -> Tensor:
            tokens_NT = loaded.tokenize(list(texts)) if texts else torch.empty(0, 1, dtype=torch.long)
            return embed_in_batches(
                tokens_NT,
                forward=lambda tokens_BT: model.encode_text(tokens_BT.to(target)),
                batch_size=self.batch_size,
                dim=loaded.dim,
            )

        return TextTower(dim=loaded.dim, batch_size=self.batch_size, embed=embed)


def imagenet_templates() -> tuple[str, ...]:
    """OpenAI's 80 sentences for ImageNet, as open_clip ships them, with `{}` where the noun goes."""
    import open_clip

    return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def embed_in_batches(items_N: Tensor, *, forward: Callable[[Tensor], Tensor], batch_size: int, dim: int) -> Tensor:
    """Unit vectors [N, D] of pixels or tokens.

    The last batch is filled up so that every one has the same shape: kernels are chosen by shape, and an embedding
    would otherwise depend on how many neighbours it has (by 3e-6 for ViT-B/32 in float32 on a CPU).
    """
    import torch
    from torch.nn.functional import normalize

    parts = [torch.empty(0, dim)]
    with torch.inference_mode():
        for items_B in torch.split(items_N, batch_size) if len(items_N) else ():
            missing = batch_size - len(items_B)
            filled_B = torch.cat([items_B, items_B[-1:].expand(missing, *items_B.shape[1:])]) if missing else items_B
            parts.append(normalize(forward(filled_B)[: len(items_B)].float(), dim=-1))
    embeddings_ND = torch.cat(parts[1:] or parts)
    if not bool(embeddings_ND.isfinite().all()):
        raise InputError("clip.precision: CLIP's embeddings are not finite; use bfloat16 or float32")
    return embeddings_ND


@dataclass(frozen=True, slots=True)
class _Source:
    """What the settings name: `name` as open_clip takes it, the weights if they are here, and a tag's own settings."""

    name: str
    weights: Path | None = None
    hashed: tuple[Path, ...] = ()
    tag: dict[str, Any] = field(default_factory=dict)
    hub: bool = False
    architecture: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Loaded:
    model: Any
    dim: int
    dtype: torch.dtype
    tokenize: Callable[[list[str]], Tensor]
    architecture: dict[str, Any]


def _side_px(clip: Clip, visual: Any) -> int:
    size_px, *other_px = {visual.image_size} if isinstance(visual.image_size, int) else set(visual.image_size)
    if other_px:
        raise InputError(f"clip.model: `{clip.model}` takes images of {visual.image_size}; use one with square input")
    return int(size_px)


def _companions(folder: Path) -> tuple[Path, ...]:
    """What lies in a folder of open_clip beside its configuration and its weights."""
    weights = {".safetensors", ".bin", ".pth", ".pt"}
    return tuple(sorted(f for f in folder.iterdir() if f.is_file() and f.name != _CONFIG and f.suffix not in weights))


def _load(clip: Clip, *, device_type: str) -> _Loaded:
    """The whole model in host memory, in the precision for a device, with its tokenizer."""
    import open_clip
    import torch
    from safetensors import SafetensorError

    source = _find(clip)
    precision = {"cuda": "float16"}.get(device_type, "float32") if clip.precision == "auto" else clip.precision
    if source.tag and source.weights is None:
        source = _fetched(clip, source)
    unreadable = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, OSError, EOFError, StopIteration)
    with _as_open_clip_names_it(source) as (name, pretrained):
        try:
            model = open_clip.create_model(
                name,
                pretrained=pretrained,
                precision=_PRECISIONS[precision],
                # open_clip takes the activation from the architecture and only warns when the tag has another.
                force_quick_gelu=bool(source.tag.get("quick_gelu")),
                force_preprocess_cfg={key: source.tag[key] for key in ("mean", "std") if key in source.tag},
                pretrained_text=False,
                require_pretrained=True,
                weights_only=True,
            )
            architecture = open_clip.get_model_config(name)
            dim = int(architecture["embed_dim"])
            tokenize = open_clip.get_tokenizer(name)
        except (*unreadable, pickle.UnpicklingError, SafetensorError) as error:
            raise InputError(_explained(clip, error)) from error
    if source.tag.get("quick_gelu"):
        architecture["quick_gelu"] = True
    return _Loaded(model.eval().requires_grad_(False), dim, getattr(torch, precision), tokenize, architecture)


def _find(clip: Clip) -> _Source:
    """What the settings name, looked up without a network."""
    if clip.model.startswith(_HUB) or _folder(clip):
        if clip.pretrained is not None:
            raise InputError(f"clip.pretrained: `{clip.model}` brings its own weights; remove `{clip.pretrained}`")
        return _find_hub(clip) if clip.model.startswith(_HUB) else _find_folder(Path(_folder(clip)))
    return _find_architecture(clip) if clip.model.endswith(".json") else _find_built_in(clip)


def _folder(clip: Clip) -> str:
    """The folder that the settings name, or an empty text."""
    if clip.model.startswith(_FOLDER):
        return clip.model.removeprefix(_FOLDER)
    return clip.model if Path(clip.model).is_dir() else ""


def _find_hub(clip: Clip) -> _Source:
    weights = _cached(clip.model.removeprefix(_HUB), "")
    return _Source(clip.model, weights, hashed=(weights,) if weights else (), hub=True)


def _find_folder(folder: Path) -> _Source:
    if not (folder / _CONFIG).is_file():
        raise InputError(f"clip.model: `{folder}` holds no {_CONFIG}; give a folder saved for open_clip")
    if not any(file.suffix in {".safetensors", ".bin", ".pth"} for file in folder.iterdir()):
        raise InputError(f"clip.model: `{folder}` holds no weights; add them as open_clip_model.safetensors")
    return _Source(_FOLDER + str(folder), hashed=(folder,))


def _find_architecture(clip: Clip) -> _Source:
    path, weights = Path(clip.model), _required_weights(clip)
    if not weights.is_file():
        raise InputError(f"clip.pretrained: there is no file `{weights}`; a JSON architecture needs a file of weights")
    try:
        described = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"clip.model: `{path}` cannot be read as JSON ({error}); check the path and the file"
        ) from error
    described = described if isinstance(described, dict) else {}
    described = described if "model_cfg" in described else {"model_cfg": described}
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(described["model_cfg"])
    if missing:
        raise InputError(
            f"clip.model: `{path}` lacks {', '.join(sorted(missing))}; give an open_clip model configuration"
        )
    return _Source("", weights, hashed=(path, weights), architecture=described)


def _find_built_in(clip: Clip) -> _Source:
    import open_clip

    name = clip.model.replace("/", "-")
    if name not in open_clip.list_models():
        no_folder = "there is no such folder, and " if "/" in clip.model else ""
        known = open_clip.list_models()
        raise InputError(f"clip.model: {no_folder}open_clip has no `{clip.model}`{_meant(name, known)}")
    weights = _required_weights(clip)
    if tag := open_clip.get_pretrained_cfg(name, str(clip.pretrained)):
        cached = _cached_tag(tag)
        return _Source(name, cached, hashed=(cached,) if cached else (), tag=tag)
    if not weights.is_file():
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise InputError(
            f"clip.pretrained: `{clip.pretrained}` is neither a file nor weights of {name}"
            + _meant(str(clip.pretrained), tags)
        )
    return _Source(name, weights, hashed=(weights,))


def _required_weights(clip: Clip) -> Path:
    if clip.pretrained is None:
        raise InputError(
            f"clip.pretrained: `{clip.model}` says nothing without weights; name a tag such as openai, or a file"
        )
    return Path(clip.pretrained)


def _meant(word: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown word: the nearest known ones, or all if they are few."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.4) or (list(known) if len(known) <= 12 else [])
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


def _fetched(clip: Clip, source: _Source) -> _Source:
    """The source with its tag's weights on this machine."""
    import open_clip

    try:
        weights = open_clip.download_pretrained(source.tag)
    except (OSError, RuntimeError) as error:
        raise InputError(_unreachable(clip, error)) from error
    return _Source(source.name, Path(weights), tag=source.tag)


@contextmanager
def _as_open_clip_names_it(source: _Source) -> Iterator[tuple[str, str | None]]:
    """Name and file for `create_model`; a JSON architecture becomes a folder, since open_clip's registry is global."""
    if not source.architecture:
        yield source.name, None if source.hub or source.weights is None else str(source.weights)
        return
    assert source.weights is not None
    safe = source.weights.suffix == ".safetensors"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, _CONFIG).write_text(json.dumps(source.architecture), "utf-8")
        file = "open_clip_model.safetensors" if safe else "open_clip_pytorch_model.bin"
        Path(folder, file).symlink_to(source.weights.resolve())
        yield _FOLDER + folder, None


def _explained(clip: Clip, error: BaseException) -> str:
    """One line about weights that did not load."""
    text, name = str(error), clip.pretrained or clip.model
    if "loading state_dict" in text:
        detail = text.splitlines()[1].strip()[:200]
        return f"clip: the weights `{name}` are not those of `{clip.model}` ({detail}); name the architecture they have"
    if "TorchScript" in text:
        return f"clip.pretrained: `{name}` holds a program (TorchScript); save its state_dict as safetensors, use that"
    if clip.model.startswith(_HUB):
        return _unreachable(clip, error)
    return (
        f"clip: `{name}` cannot be loaded ({_first_line(error)}); give weights saved from a state_dict, and check both"
    )


def _unreachable(clip: Clip, error: BaseException) -> str:
    name = " ".join(filter(None, (clip.model, clip.pretrained)))
    return (
        f"clip: `{name}` is not on this machine and could not be fetched ({_first_line(error)}); "
        "check the name and the network, or set `clip.model` to a local folder"
    )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _sha256(paths: Sequence[Path]) -> str | None:
    """The hash of one file or folder as it is; of several, the hash of their hashes."""
    hashes = [weights_sha256(path) for path in paths]
    if len(hashes) > 1:
        return hashlib.sha256("".join(hashes).encode()).hexdigest()
    return hashes[0] if hashes else None
