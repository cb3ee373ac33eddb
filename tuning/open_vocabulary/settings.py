"""The settings of a training of an open-vocabulary MaskFormer, and its two presets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from maskmine.mining.models.clip import Clip
from maskmine.schemas.settings import AnyPath, ExecutionOnly, FromPreset, NameOrPath, Settings, plain_values
from maskmine.tuning.training.settings import Precision, fill_from_preset, yaml_number

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
    """Images and their label maps: `maps/NAME.png` belongs to `images/NAME.jpg`."""

    images: AnyPath
    """Folder of the images."""
    maps: AnyPath
    """Folder of the label maps: 8 bits where 255 is no class, or 16 bits and 65535."""
    names: AnyPath
    """Text file of class names, one a line; label 0 is the first line."""
    classes: _Count | None = None
    """Number of names that the file must have, as a check; null checks nothing."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that load data ahead; 0 for none. The data are the same."""


class Start(Settings):
    """The initial model: a MaskFormer, or a pretrained backbone with a new decoder."""

    checkpoint: NameOrPath | None = None
    """Folder of a MaskFormer to start from; give either this or `backbone`."""
    backbone: NameOrPath | None = None
    """Folder or hub name of a Swin or ResNet of transformers, around which the decoder is new."""
    queries: _Count = 100
    """Queries of a new decoder, so masks of an image at most."""
    width: Annotated[int, Field(ge=32, multiple_of=32)] = 256
    """Hidden size of a new decoder."""
    heads: _Count = 8
    """Attention heads of a new decoder."""
    decoder_layers: _Count = 6
    """Layers of a new decoder."""
    feed_forward: _Count = 2048
    """Size of the feed-forward layers of a new decoder."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout of a new decoder."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Start:
        if (self.checkpoint is None) == (self.backbone is None):
            raise ValueError("give `checkpoint`, the folder of a MaskFormer, or `backbone`, and not both")
        return self


class Head(Settings):
    """The MLP from queries to CLIP's text space, which classifies masks by names."""

    hidden: _Count = 1024
    """Hidden size of the MLP."""
    layers: _Count = 2
    """Layers of the MLP."""
    sees: Literal["queries", "queries_and_pixels"] = "queries"
    """Input of the MLP: the `queries` as in OVSeg, or `queries_and_pixels`, which adds the backbone's features averaged
    under the mask, for training the head alone on a MaskFormer whose queries do not know classes."""
    logit_scale: Annotated[float, Field(gt=0, le=1000)] = 100.0
    """Factor of the cosines before the softmax."""
    templates: Literal["vild", "imagenet", "raw"] = "vild"
    """Prompt templates of class names."""


class MapView(Settings):
    """Augmentation: a square crop of the image at a random scale, mirrored, with other colours."""

    crop_px: Annotated[int, FromPreset(), Field(ge=32)]
    """Side of the crop in pixels."""
    scale: Annotated[tuple[_Rate, _Rate], Field(strict=False)] = (0.5, 2.0)
    """Lowest and highest short side as multiples of `crop_px`, in steps of 0.1."""
    long_side_px: Annotated[int, FromPreset(), Field(ge=32)]
    """Longest side of the scaled image in pixels."""
    max_class_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Largest share of the labelled pixels of a crop that one class may have; up to ten crops are tried."""
    mirror: bool = True
    """Whether half of the crops are mirrored."""
    jitter: bool = True
    """Whether colours are changed as in SSD."""

    @model_validator(mode="after")
    def _from_less_to_more(self) -> MapView:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"`scale` goes from less to more, not from {self.scale[0]} to {self.scale[1]}")
        return self


class Optimizer(Settings):
    """AdamW with linear warm-up and polynomial decay."""

    learning_rate: Annotated[_Rate, FromPreset()]
    """Highest learning rate."""
    weight_decay: Annotated[_NotNegative, FromPreset()]
    """Weight decay; weights of norms and embeddings do not decay."""
    backbone_multiplier: Annotated[_NotNegative, FromPreset()]
    """Factor of the learning rate of the backbone."""
    steps: _Count = 120_000
    """Optimizer steps."""
    batch_size: _Count = 32
    """Images of a batch, over all processes together."""
    warmup_steps: Annotated[int, Field(ge=0)] = 1500
    """Steps of linear warm-up."""
    warmup_factor: Annotated[float, Field(ge=0, le=1), BeforeValidator(yaml_number)] = 1e-6
    """Factor of the learning rate at the first step."""
    power: _NotNegative = 0.9
    """Exponent of the decay (1 − step/steps)^power."""
    max_gradient_norm: _Rate = 0.01
    """Norm to which the gradients of the whole model are clipped."""


class ProposalTraining(Settings):
    """The whole of a training of an open-vocabulary MaskFormer. Under torchrun there are several processes."""

    clip: Clip
    """The CLIP whose text space classes are embedded in."""
    maps: Maps
    """The training data: images and label maps."""
    start: Start
    """The initial model."""
    head: Head = Head()
    """The classifier that takes any names."""
    preset: Literal["r101c", "swin_b"] = "swin_b"
    """Fills in what `view` and `optimizer` leave open with OVSeg's figures for that backbone."""
    view: Annotated[MapView, FromPreset()]
    """Augmentation; the preset fills in what is left out."""
    optimizer: Annotated[Optimizer, FromPreset()]
    """The optimizer; the preset fills in what is left out."""
    trains: Literal["all", "head"] = "all"
    """`all` weights, or the `head` alone, which leaves everything below it bit for bit as it was."""
    precision: Precision = "auto"
    """Number format of the computation; `auto` is bfloat16 on a GPU that supports it and float32 elsewhere."""
    half: bool = False
    """Whether the weights are written as float16."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the order, the augmentation and the initial weights."""
    device: Annotated[str, ExecutionOnly()] = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`."""
    checkpoint_every: Annotated[_Count, ExecutionOnly()] = 1000
    """Steps between checkpoints, from which an interrupted training continues."""
    log_every: Annotated[_Count, ExecutionOnly()] = 20
    """Steps between lines of the log."""
    wandb: Annotated[str | None, ExecutionOnly()] = None
    """A project of Weights & Biases (`pip install wandb`) that gets the curves too; null sends nothing anywhere."""
    out: Annotated[AnyPath, ExecutionOnly()]
    """Folder for the model, the log and the checkpoint."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_the_preset(cls, tree: Any) -> Any:
        return fill_from_preset(tree, PRESETS, default="swin_b")

    def decisive(self) -> dict[str, Any]:
        """The settings that the result follows from; CLIP, data and initial model count by content, not here."""
        return {name: value for name, value in plain_values(self).items() if name not in ("clip", "start", "maps")}
