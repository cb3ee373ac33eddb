"""The folder of an open-vocabulary MaskFormer: a MaskFormer of transformers, and a `TextHead` for its queries.

```
open_vocabulary.json   the classes it was trained on, the CLIP of their texts, the head's sizes, and the body's folder
head.safetensors       the head, and the texts of the classes as vectors
config.json preprocessor_config.json model.safetensors
                       the body as transformers writes it, unless it is another folder's; its class layer has no meaning
```
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, with_config

from maskmine.mining.storage.content_hash import weights_sha256
from maskmine.mining.storage.files import regular, write_whole
from maskmine.schemas.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from maskmine.mining.proposers.text_head import TextHead

# Files of a checkpoint: its record, the head, and the MaskFormer as transformers names it.
RECORD_FILE, HEAD_FILE, BODY_FILE = "open_vocabulary.json", "head.safetensors", "model.safetensors"
_FORMAT = 1  # raised when the record changes its meaning


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class OpenRecord:
    """What the weights do not say.

    `clip` and `clip_sha256` name the CLIP of the texts, `templates` the sentences that classes were said in. `hidden`
    and `layers` are the head's sizes, `pixels` whether it looks under the masks. `body` is the MaskFormer's folder,
    relative to this one where it is not the same, and `body_sha256` that of its file of weights.
    """

    clip: str
    clip_sha256: str | None
    templates: str
    logit_scale: Annotated[float, Field(allow_inf_nan=False)]
    hidden: Annotated[int, Field(ge=1)]
    layers: Annotated[int, Field(ge=1, le=1000)]
    pixels: bool
    classes: tuple[str, ...]
    body: str | None = None
    body_sha256: str | None = None
    format: int = _FORMAT


def is_open(folder: str | Path) -> bool:
    """Whether a folder holds an open-vocabulary MaskFormer."""
    return (Path(folder) / RECORD_FILE).is_file()


def read_record(folder: Path) -> OpenRecord:
    """The record of a folder. Raises InputError where there is none that this version can read."""
    path = folder / RECORD_FILE
    try:
        tree = json.loads(path.read_text("utf-8"))
        if tree["format"] != _FORMAT:
            raise InputError(f"{path}: has format {tree['format']}, not {_FORMAT}; train the model again")
        return TypeAdapter(OpenRecord).validate_python({**tree, "classes": tuple(tree["classes"])})
    except FileNotFoundError as error:
        raise InputError(
            f"proposals.checkpoint: `{folder}` holds no {RECORD_FILE}; give a folder that `maskmine train-proposals` "
            "made, or use kind: maskformer"
        ) from error
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}); copy the folder again") from error


def body_folder(folder: Path, record: OpenRecord) -> Path:
    """The folder of the MaskFormer below the head. Raises InputError when it holds another one than in training."""
    if record.body is None:
        return folder
    body = folder / record.body
    if not (body / BODY_FILE).is_file() or weights_sha256(body / BODY_FILE) != record.body_sha256:
        raise InputError(
            f"proposals.checkpoint: `{folder}` was trained on a MaskFormer that is no longer in {body}; put back the "
            f"{BODY_FILE} with SHA-256 {record.body_sha256}"
        )
    return body


def load_head(folder: Path, record: OpenRecord, *, network: Any) -> TextHead:
    """The head for a body, in float32. Raises InputError for a file that is absent, broken or of another record."""
    weights = read_head(folder)
    try:
        head = new_head(weights["classes_KD"], record, network=network)
        head.load_state_dict(weights)
        if len(head.classes_KD) != len(record.classes):
            raise ValueError(f"{len(head.classes_KD)} vectors for {len(record.classes)} classes")
    except (ValueError, RuntimeError) as error:
        raise InputError(_damaged(folder / HEAD_FILE, error)) from error
    return head.eval()


def read_head(folder: Path) -> dict[str, Tensor]:
    """The head's tensors in float32, by name. Raises InputError for a file that is absent or broken."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / HEAD_FILE
    try:
        weights = {name: value.float() for name, value in load_file(regular(path)).items()}
    except (OSError, RuntimeError, SafetensorError) as error:  # of types of numbers that are only stored
        raise InputError(_damaged(path, error)) from error
    if lacking := {"classes_KD", "no_object_D"} - weights.keys():
        raise InputError(_damaged(path, ValueError(f"it lacks {min(lacking)}")))
    return weights


def new_head(classes_KD: Tensor, record: OpenRecord, *, network: Any) -> TextHead:
    """A head with random weights, of the record's sizes, for a MaskFormer of transformers."""
    from maskmine.mining.proposers.text_head import TextHead

    width = network.config.decoder_config.d_model
    seen = sum(network.model.pixel_level_module.encoder.channels) if record.pixels else 0
    return TextHead(classes_KD, width=width, pixels=seen, hidden=record.hidden, layers=record.layers)


def save_head(folder: Path, head: TextHead, record: OpenRecord, *, half: bool, body: Path | None) -> None:
    """Write the head and its record; with `half` as float16. `body` is the MaskFormer's folder if it is another."""
    from safetensors.torch import save

    weights = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    stored = {name: value.half() if half else value for name, value in weights.items()}
    write_whole(folder / HEAD_FILE, save(stored, metadata={"format": "pt"}))
    tree: dict[str, Any] = asdict(record)
    if body is not None:
        tree |= {"body": os.path.relpath(body, folder), "body_sha256": weights_sha256(body / BODY_FILE)}
    write_whole(folder / RECORD_FILE, (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode())


def _damaged(path: Path, error: Exception) -> str:
    return f"{path}: cannot be loaded ({' '.join(str(error).split())[:200]}); copy the folder again"
