"""Verifiers that transformers loads: their common settings, what is refused, and how a noun becomes tokens.

Shapes: T tokens of a prompt, filled up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from maskmine.mining.models.clip_description import CONFIG_FILE
from maskmine.mining.models.devices import PROPOSALS_ON_GPU, open_device, resolve_precision
from maskmine.mining.models.foreign_code import read_described
from maskmine.mining.models.pretrained import KINDS, FromTransformers, Pretrained
from maskmine.mining.proposers.open_vocabulary_checkpoint import is_open
from maskmine.mining.verifiers.checks import Find, Read, Text, TextCache, Verify, verify_pairs
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import LastBits, NameOrPath, RecordOnly

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PROBES = ("cat", "dog")  # a tokenizer tells them apart, or it tells nothing


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A noun as tokens, int64 [T], and which of them are no filling, int64 [T]."""

    tokens_T: Tensor
    mask_T: Tensor


@dataclass(frozen=True, slots=True)
class Model:
    """A network on its device with what prepares its input; `dtype` are the numbers that it runs with."""

    network: Any
    processor: Any
    device: torch.device
    dtype: torch.dtype

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the network runs: without gradients, in its precision."""
        import torch

        reduced = self.dtype != torch.float32
        with torch.inference_mode(), torch.autocast(self.device.type, dtype=self.dtype, enabled=reduced):
            yield


class CheckpointVerifier(FromTransformers):
    """A verifier that transformers loads; each kind adds when it has found an instance."""

    kind: str
    """Which kind of model."""
    checkpoint: NameOrPath
    """A folder saved by transformers, or a name on the Hugging Face hub, with weights as safetensors."""
    revision: Annotated[str | None, RecordOnly()] = None
    """Branch, tag or commit on the hub; null is what is on this machine, else the newest."""
    batch_size: Annotated[int, LastBits(), Field(ge=1)] = 4
    """Nouns of a picture that the model answers at once on a GPU: more is faster for pictures with many nouns and needs
    more memory. Results agree within rounding; on a CPU nouns go one by one."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the model; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    licence: Annotated[str | None, RecordOnly()] = None
    """Licence of the weights (SPDX) where it is not known, such as that of a folder."""

    def contents(self) -> dict[str, Any]:
        """The checkpoint by the hash of what is loaded, and the batch, which decides the last bits."""
        return {**super().contents(), "batch_size": self.batch_size}

    def fetch(self) -> None:
        """As `FromTransformers.fetch`, and for another kind of verifier with the name of that."""
        refuse_other_kind(self.checkpoint, kind=self.kind)
        super().fetch()

    def load_on(self, device: str) -> Model:
        """The model on a device.

        Raises InputError when it cannot be had, is of another kind, or lacks weights or words.
        """
        import torch

        target = open_device(device)
        refuse_other_kind(self.checkpoint, kind=self.kind)
        loaded = self.load()
        self.tried(_refuse_without_words)(loaded, name=self.checkpoint)
        dtype = getattr(torch, resolve_precision(self.precision, target, on_gpu=PROPOSALS_ON_GPU))
        return Model(loaded.network.to(target), loaded.processor, target, dtype)

    def verify_with(self, read: Read[Text], find: Find[Text]) -> Verify:
        """As `verify_pairs`, with nouns that are remembered and with the model's files on trial."""
        found = self.tried(lambda *given: tuple(find(*given)))
        return verify_pairs(TextCache(self.tried(read)), lambda *given: iter(found(*given)))


def refuse_other_kind(checkpoint: str, *, kind: str, setting: str = "verifier.checkpoint") -> None:
    """Raises InputError for a folder that another kind of verifier takes; the line names that kind."""
    folder = Path(checkpoint)
    right, described = None, folder / "config.json"
    if is_open(folder):
        right = "open_maskformer"
    elif (folder / CONFIG_FILE).is_file():
        right = "clip"
    elif described.is_file():
        config = read_described(described, name=checkpoint, setting=setting)
        right = KINDS["verifier"].get(str(config.get("model_type"))) if isinstance(config, dict) else None
    if right not in (None, kind):
        raise InputError(f"{setting}: `{checkpoint}` is none for `kind: {kind}`; use `kind: {right}` for it")


def prompts(tokenizer: Any, *, length: int) -> Callable[[str], Prompt | None]:
    """The function from a text to its tokens, filled up to `length`; None for a text that has more.

    A text is never cut: what is left would be another text.
    """
    import torch

    def prompt(text: str) -> Prompt | None:
        encoded = tokenizer(text, padding="max_length", max_length=length, truncation=False)
        if len(encoded["input_ids"]) > length:
            return None
        return Prompt(torch.tensor(encoded["input_ids"]), torch.tensor(encoded["attention_mask"]))

    return prompt


def stacked(batch: Sequence[Prompt], device: torch.device) -> tuple[Tensor, Tensor]:
    """The tokens of some prompts and which of them count, int64 [B, T] each, on a device."""
    import torch

    tokens_BT, mask_BT = (
        torch.stack(rows).to(device) for rows in zip(*((p.tokens_T, p.mask_T) for p in batch), strict=True)
    )
    return tokens_BT, mask_BT


def read_whole(
    nouns: Sequence[str],
    prompt_of: Callable[[str], Prompt | None],
    embed: Callable[[Sequence[Prompt]], Iterator[Text]],
) -> list[Text | None]:
    """What a model makes of each noun; None for one whose prompt is too long."""
    texts = [prompt_of(noun) for noun in nouns]
    embedded = embed([text for text in texts if text is not None])
    return [None if text is None else next(embedded) for text in texts]


def _refuse_without_words(loaded: Pretrained, *, name: str) -> None:
    tokenizer, words = loaded.processor.tokenizer, loaded.network.config.text_config.vocab_size
    tokens = [tokenizer(probe)["input_ids"] for probe in _PROBES]
    if tokens[0] == tokens[1]:
        raise InputError(f"verifier.checkpoint: the tokenizer of `{name}` knows no words; save the processor again")
    if max(map(max, tokens)) >= words:
        raise InputError(
            f"verifier.checkpoint: the tokenizer of `{name}` is of another model, which knows more than {words} words; "
            "save the processor that belongs to the weights"
        )
