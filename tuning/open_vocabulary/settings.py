"""The settings of a training of an open-vocabulary MaskFormer, and its two presets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mining.models.clip import Clip
from schemas.settings import Settings
from tuning.settings import Precision, yaml_number

_Count = Annotated[int, Field(ge=1)]
_Rate = Annotated[float, Field(gt=0), BeforeValidator(yaml_number)]
_NotNegative = Annotated[float, Field(ge=0), BeforeValidator(yaml_number)]

# What OVSeg trains its proposals with (arXiv 2210.04150, section 4.1 and appendix; MaskFormer's own for what is older).
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "r101c": {
        "optimizer": {"learning_rate": 2e-4, "weight_decay": 1e-4, "backbone_multiplier": 0.1},
        "view": {"crop_px": 512, "long_side_px": 2048},
    },
    "swin_b": {
        "optimizer": {"learning_rate": 6e-5, "weight_decay": 1e-2, "backbone_multiplier": 1.0},
        "view": {"crop_px": 640, "long_side_px": 2560},
    },
}


class Maps(Settings):
    """Pictures and their maps of classes: `maps/NAME.png` belongs to `images/NAME.jpg`.

    A map has 8 bits, where 255 is no class, or 16 bits and 65535; other numbers are lines of `names`, counted from 0.
    `classes` is how many names there must be, where one wants to be sure. `workers` are processes that read ahead, 0
    for none; the data do not depend on them.
    """

    images: str
    maps: str
    names: str
    classes: _Count | None = None
    workers: Annotated[int, Field(ge=0)] = 2


class Start(Settings):
    """What the training begins with: the folder of a MaskFormer, or a trained `backbone`, around which all is new.

    `backbone` is a folder, or a name on the hub, of a Swin or ResNet of transformers. The decoder's sizes are those of
    the published models, and count for a new one only.
    """

    checkpoint: str | None = None
    backbone: str | None = None
    queries: _Count = 100
    width: Annotated[int, Field(ge=32, multiple_of=32)] = 256
    heads: _Count = 8
    decoder_layers: _Count = 6
    feed_forward: _Count = 2048
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _one_of_them(self) -> Start:
        if (self.checkpoint is None) == (self.backbone is None):
            raise ValueError("give `checkpoint`, the folder of a MaskFormer, or `backbone`, and not both")
        return self


class Head(Settings):
    """The MLP from queries to CLIP's text space, and the scale of cosines; `templates` is what classes are said in.

    `sees: queries` is OVSeg's. With `queries_and_pixels` it is also given the means of the backbone's maps under the
    query's mask: a head can then be trained alone on a MaskFormer whose queries know where things are and not what.
    """

    hidden: _Count = 1024
    layers: _Count = 2
    sees: Literal["queries", "queries_and_pixels"] = "queries"
    logit_scale: Annotated[float, Field(gt=0, le=1000)] = 100.0
    templates: Literal["vild", "imagenet", "raw"] = "vild"


class MapView(Settings):
    """How a picture is shown: a square crop of it at a random size, mirrored, in other colours.

    The short side is one of the multiples of 0.1 from `scale[0]` to `scale[1]` of `crop_px`, the long side at most
    `long_side_px`. Of ten crops that one is taken in which no class has more than `max_class_share` of the known
    pixels, the last if all have. What lies beyond the picture is grey and of no class. `jitter` is that of SSD.
    """

    crop_px: Annotated[int, Field(ge=32)]
    scale: Annotated[tuple[_Rate, _Rate], Field(strict=False)] = (0.5, 2.0)
    long_side_px: Annotated[int, Field(ge=32)]
    max_class_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    mirror: bool = True
    jitter: bool = True

    @model_validator(mode="after")
    def _from_less_to_more(self) -> MapView:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"`scale` goes from less to more, not from {self.scale[0]} to {self.scale[1]}")
        return self


class Optimizer(Settings):
    """AdamW over `steps` batches: a linear rise from `warmup_factor`, and a fall as (1 − step/steps)^`power`.

    The backbone has `backbone_multiplier` times the rate. Weights of norms and embeddings do not decay. Longer
    gradients of the whole model are cut to `max_gradient_norm`. `batch_size` is that of all processes together.
    """

    learning_rate: _Rate
    weight_decay: _NotNegative
    backbone_multiplier: _NotNegative
    steps: _Count = 120_000
    batch_size: _Count = 32
    warmup_steps: Annotated[int, Field(ge=0)] = 1500
    warmup_factor: Annotated[float, Field(ge=0, le=1), BeforeValidator(yaml_number)] = 1e-6
    power: _NotNegative = 0.9
    max_gradient_norm: _Rate = 0.01


class ProposalTraining(Settings):
    """The whole of a training. `trains: head` leaves everything below the head as it was, to the bit.

    `precision: auto` is bfloat16 on a GPU that has it and float32 elsewhere. `half` writes the weights as float16.
    Under torchrun there are several processes.
    """

    clip: Clip
    maps: Maps
    start: Start
    head: Head = Head()
    preset: Literal["r101c", "swin_b"] = "swin_b"
    view: MapView
    optimizer: Optimizer
    trains: Literal["all", "head"] = "all"
    precision: Precision = "auto"
    half: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "auto"
    checkpoint_every: _Count = 1000
    log_every: _Count = 20
    out: str

    @model_validator(mode="before")
    @classmethod
    def _fill_from_the_preset(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        filled = dict(tree)
        for name, values in PRESETS.get(str(tree.get("preset", "swin_b")), {}).items():
            given = tree.get(name) or {}
            filled[name] = {**values, **given} if isinstance(given, dict) else given
        return filled

    def decisive(self) -> dict[str, Any]:
        """The settings that the result follows from: all but places, processors, and how often something is written."""
        places = {"out", "device", "checkpoint_every", "log_every", "clip", "start", "maps"}
        return self.model_dump(mode="json", exclude=places)
