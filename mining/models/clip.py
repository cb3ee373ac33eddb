"""CLIP through open_clip: embeddings of regions and of sentences in one space.

Shapes: N regions or texts, B the fixed batch, S side of the input in pixels, D width of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from maskmine.mining.models.clip_weights import (
    LoadedClip,
    clip_contents,
    clip_weights_bytes,
    companion_files,
    fetch_clip,
    find_weights,
    load_clip,
    named_folder,
    portable_name,
)
from maskmine.mining.models.devices import CLIP_ON_GPU, DeviceKind, open_device, resolve_precision, settled_precision
from maskmine.mining.models.known_licences import licence_of
from maskmine.schemas.errors import InputError
from maskmine.schemas.manifest import ModelRecord
from maskmine.schemas.settings import AddedLater, AnyPath, IsPath, LastBits, NameOrPath, RecordOnly, Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ImageTower:
    """CLIP's image side on `device`: `embed` takes normalised pixels [N, 3, S, S] to unit vectors, float32 [N, D].

    `mean` and `std` are those of colours from 0 to 1. Every batch that the model sees has `batch_size` rows. Where it
    has mask prompts, `embed_masked` takes the masks of the pixels, boolean [N, S, S], too.
    """

    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dim: int
    batch_size: int
    device: torch.device
    embed: Callable[[Tensor], Tensor]
    embed_masked: Callable[[Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class TextTower:
    """CLIP's text side. `embed` takes texts, of which it reads the beginning if they are long, to float32 [N, D].

    `cuts` says of a text whether it fills all that the model reads, so that its end may be lost. `scale` and `bias`
    make a cosine a logit; where there is no bias, as in models of a softmax over all texts, a logit alone says nothing.
    """

    dim: int
    batch_size: int
    embed: Callable[[Sequence[str]], Tensor]
    cuts: Callable[[str], bool] = lambda text: False
    scale: float = 1.0
    bias: float | None = None


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
    """Which CLIP, and how it runs."""

    model: NameOrPath
    """An architecture of open_clip (`ViT-L-14`), `hf-hub:ORG/NAME`, a folder with `open_clip_config.json` and weights,
    or a JSON file that describes an architecture. OpenAI weights given as a file need an architecture with their
    activation, such as `ViT-L-14-quickgelu`; for tags it is chosen."""
    pretrained: Annotated[str, IsPath(or_name=True, bare="file")] | None = None
    """Weights of an architecture: a tag of open_clip (`openai`) or a file; null for a folder or a hub name, which bring
    their own."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the model; `auto` is float16 on a GPU and float32 on a CPU."""
    batch_size: Annotated[int, LastBits(), Field(ge=1)] = 64
    """Crops or texts that the model sees at once: more is faster on a GPU and needs more memory. Results agree within
    rounding."""
    licence: Annotated[str | None, RecordOnly()] = None
    """Licence of the weights (SPDX) where it is not known, such as that of a file of your own."""

    def record(self) -> ModelRecord:
        """The weights and their licence; without a network, so `sha256` is None while a hub's weights are not here.

        The hash is that of the one file that is loaded, of a folder's weights and JSON files, or of an architecture's
        JSON file and its weights. Raises InputError for settings that name nothing.
        """
        source = find_weights(self.model, self.pretrained)
        return ModelRecord(
            role="clip",
            name=" ".join(portable_name(name) for name in (self.model, self.pretrained) if name),
            sha256=source.sha256,
            licence=self.licence or licence_of(source.published),
        )

    def contents(self) -> dict[str, Any]:
        """Architecture, weights and tokenizer by their hashes, and the batch, which decides the last bits."""
        return {**clip_contents(self.model, self.pretrained), "batch_size": self.batch_size}

    def settled(self, kind: DeviceKind) -> Clip:
        """The same CLIP with the precision that it has on a kind of device."""
        return self.model_copy(update={"precision": settled_precision(self.precision, kind, on_gpu=CLIP_ON_GPU)})

    def fetch(self) -> None:
        """Fetch from the hub what is not on this machine. Raises InputError when that cannot be had."""
        fetch_clip(self.model, self.pretrained)

    def weights_bytes(self) -> int:
        """The size of the weights; 0 where they are not on this machine."""
        return clip_weights_bytes(self.model, self.pretrained)

    def open_image(self, *, device: str) -> ImageTower:
        """Load the image side. Raises InputError when settings, weights or network do not allow it."""
        target = open_device(device)
        loaded = self._load(target)
        visual, prompted = loaded.network.visual.to(target), self._with_prompts(loaded.network)

        def forward(pixels_B3SS: Tensor) -> Tensor:
            features: Tensor | tuple[Tensor, ...] = visual(pixels_B3SS.to(target, loaded.dtype))
            return features[0] if isinstance(features, tuple) else features

        def forward_masked(pixels_B4SS: Tensor) -> Tensor:
            """The masks stand in a fourth channel, so that a batch is one tensor."""
            values_B4SS = pixels_B4SS.to(target, loaded.dtype)
            features: Tensor = prompted(values_B4SS[:, :3], values_B4SS[:, 3])
            return features

        embed = partial(embed_in_batches, batch_size=self.batch_size, dim=loaded.dim)
        return ImageTower(
            size_px=_side_px(self, visual),
            mean=tuple(loaded.preprocess["mean"]),
            std=tuple(loaded.preprocess["std"]),
            dim=loaded.dim,
            batch_size=self.batch_size,
            device=target,
            embed=partial(embed, forward=forward),
            embed_masked=None
            if prompted is None
            else lambda pixels_N3SS, masks_NSS: embed(_as_channel(pixels_N3SS, masks_NSS), forward=forward_masked),
        )

    def open_whole(self) -> WholeClip:
        """Load both sides for training. Raises InputError when settings, weights or network do not allow it."""
        loaded = load_clip(self.model, self.pretrained, precision="float32")
        folder = named_folder(self.model)
        return WholeClip(
            name=self.record().name,
            model=loaded.network,
            dim=loaded.dim,
            size_px=_side_px(self, loaded.network.visual),
            mean=tuple(loaded.preprocess["mean"]),
            std=tuple(loaded.preprocess["std"]),
            config={"model_cfg": loaded.architecture, "preprocess_cfg": loaded.preprocess},
            companions=companion_files(folder) if folder else (),
        )

    def open_text(self, *, device: str) -> TextTower:
        """Load the text side. Raises InputError when settings, weights or network do not allow it."""
        import torch

        target = open_device(device)
        loaded = self._load(target)
        del loaded.network.visual  # most of the weights
        network = loaded.network.to(target)

        def embed(texts: Sequence[str]) -> Tensor:
            tokens_NT = loaded.tokenize(list(texts)) if texts else torch.empty(0, 1, dtype=torch.long)
            return embed_in_batches(
                tokens_NT,
                forward=lambda tokens_BT: network.encode_text(tokens_BT.to(target)),
                batch_size=self.batch_size,
                dim=loaded.dim,
            )

        def cuts(text: str) -> bool:
            once, longer = loaded.tokenize([text, f"{text} and more"])
            return bool(torch.equal(once, longer))

        bias = getattr(network, "logit_bias", None)
        return TextTower(
            dim=loaded.dim,
            batch_size=self.batch_size,
            embed=embed,
            cuts=cuts,
            scale=float(network.logit_scale.exp()),
            bias=None if bias is None else float(bias),
        )

    def _with_prompts(self, network: Any) -> Any:
        """The image side with the mask prompts that belong to it; None without any."""
        return None

    def _load(self, device: torch.device) -> LoadedClip:
        return load_clip(
            self.model, self.pretrained, precision=resolve_precision(self.precision, device, on_gpu=CLIP_ON_GPU)
        )


class RegionClip(Clip):
    """The CLIP of mining: it sees regions, whose masks it can be given."""

    prompts: Annotated[AnyPath | None, AddedLater()] = None
    """A file of mask prompts that were tuned around this CLIP (`prompts.safetensors` of `maskmine tune`): what lies
    outside a region's mask is then replaced by them. null gives the CLIP the pixels alone."""

    def fetch(self) -> None:
        """As `Clip.fetch`; also looks at the file of prompts, which is small."""
        super().fetch()
        if self.prompts is not None:
            from maskmine.mining.models.prompts_file import read_prompts

            read_prompts(self.prompts)

    def _with_prompts(self, network: Any) -> Any:
        if self.prompts is None:
            return None
        from maskmine.mining.models.prompts_file import load_prompts

        return load_prompts(self.prompts, network)


def embed_in_batches(items_N: Tensor, *, forward: Callable[[Tensor], Tensor], batch_size: int, dim: int) -> Tensor:
    """Unit vectors [N, D] of pixels or tokens. Raises InputError when one has no direction.

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
    # Of features that are infinite, or whose length is, a division makes 0 too: no direction at all.
    sound_N = embeddings_ND.isfinite().all(1) & embeddings_ND.any(1)
    if not bool(sound_N.all()):
        raise InputError(
            f"clip.precision: CLIP's embeddings of {int((~sound_N).sum())} of {len(sound_N)} inputs are not finite, or "
            "0; use bfloat16 or float32, or other weights if it is one of them already"
        )
    return embeddings_ND


def _as_channel(pixels_N3SS: Tensor, masks_NSS: Tensor) -> Tensor:
    """Pixels with their masks as a fourth channel, [N, 4, S, S]."""
    import torch

    return torch.cat([pixels_N3SS, masks_NSS[:, None].to(pixels_N3SS.dtype)], dim=1)


def _side_px(clip: Clip, visual: Any) -> int:
    size_px, *other_px = {visual.image_size} if isinstance(visual.image_size, int) else set(visual.image_size)
    if other_px:
        raise InputError(f"clip.model: `{clip.model}` takes images of {visual.image_size}; use one with square input")
    return int(size_px)
