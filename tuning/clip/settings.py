"""The settings of a tuning run, and the two presets: what the paper says, and what its released scripts do."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from maskmine.mining.images.crops import SeenCrop
from maskmine.mining.models.clip import Clip
from maskmine.mining.models.prompt_templates import Templates
from maskmine.schemas.settings import AddedLater, AnyPath, ExecutionOnly, FromPreset, Settings, plain_values
from maskmine.tuning.training.settings import Precision, fill_from_preset, yaml_number

Mode = Literal["prompts", "finetune", "finetune_then_prompts", "joint"]
Preset = Literal["paper", "released"]


_Count = Annotated[int, Field(ge=1)]
_Rate = Annotated[float, Field(gt=0), BeforeValidator(yaml_number)]
_NotNegative = Annotated[float, Field(ge=0), BeforeValidator(yaml_number)]
_Share = Annotated[float, Field(gt=0, le=1)]
_Probability = Annotated[float, Field(ge=0, le=1)]

# Where a configuration says nothing. The paper's table gives no warm-up; 100 steps are those of the scripts.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "prompts": {"learning_rate": 2e-2, "weight_decay": 0.0, "batch_size": 256, "epochs": 5.0, "warmup_steps": 100},
        "finetune": {"learning_rate": 5e-6, "weight_decay": 0.2, "batch_size": 256, "epochs": 5.0, "warmup_steps": 100},
    },
    "released": {
        "prompts": {"learning_rate": 5e-2, "weight_decay": 0.0, "batch_size": 128, "epochs": 5.0, "warmup_steps": 100},
        "finetune": {"learning_rate": 5e-6, "weight_decay": 0.2, "batch_size": 128, "epochs": 5.0, "warmup_steps": 100},
    },
}


class Source(Settings):
    """A finished mining run whose pairs are trained on."""

    folder: Annotated[AnyPath, ExecutionOnly()]
    """The `out` folder of the run."""
    ratio: _Share | None = None
    """Share of every batch, 0–1; give one to all sources (they add up to 1) or to none."""
    min_similarity: float | None = None
    """Lowest similarity of a pair that is used; null uses all."""
    min_margin: float | None = None
    """Lowest margin of a pair that is used; null uses all."""
    min_lift: float | None = None
    """Lowest lift of a pair that is used, its similarity less the noun's level; null uses all."""
    min_evidence: float | None = None
    """Lowest evidence of a pair that is used, which weighs all scores of a pair; null uses all."""
    min_confidence: _Probability | None = None
    """Lowest confidence of a pair that is used, the calibrated probability that it is right, 0–1; null uses all."""


class Jitter(Settings):
    """A random part of the region's box, the same for image and mask."""

    scale: Annotated[tuple[_Share, _Share], Field(strict=False)] = (0.9, 1.0)
    """Lowest and highest share of the box's area."""
    aspect: Annotated[tuple[_Rate, _Rate], Field(strict=False)] = (0.75, 4 / 3)
    """Lowest and highest aspect ratio, relative to that of the box."""

    @model_validator(mode="after")
    def _from_less_to_more(self) -> Jitter:
        for name in ("scale", "aspect"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"`{name}` goes from less to more, not from {low} to {high}")
        return self


class Data(Settings):
    """Which pairs are trained on, and how they are shown."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1, strict=False)]
    """Finished mining runs. Without ratios they are one set; with ratios an epoch is one pass through the first."""
    crop: SeenCrop = SeenCrop()
    """What CLIP sees of a region."""
    jitter: Jitter | None = Jitter()
    """Random cropping as augmentation; null shows every region alike."""
    max_per_noun: _Count | None = None
    """Pairs of a noun that an epoch shows at most, other ones each time; null shows all."""
    workers: Annotated[int, ExecutionOnly(), Field(ge=0)] = 2
    """Processes that load data ahead; 0 for none. The data are the same."""

    @model_validator(mode="after")
    def _ratios_of_all_or_none(self) -> Data:
        ratios = [source.ratio for source in self.sources if source.ratio is not None]
        if ratios and (len(ratios) < len(self.sources) or abs(sum(ratios) - 1) > 1e-6):
            raise ValueError("`ratio` of all sources together is 1; give one to every source, or to none")
        return self


class Stage(Settings):
    """How a part of the model is trained: AdamW, linear warm-up, then cosine decay to 0."""

    learning_rate: Annotated[_Rate, FromPreset()]
    """Highest learning rate, reached after the warm-up."""
    weight_decay: Annotated[_NotNegative, FromPreset()]
    """Weight decay of AdamW."""
    batch_size: Annotated[int, FromPreset(), Field(ge=2)]
    """Pairs of a batch, over all processes together."""
    epochs: Annotated[_Rate, FromPreset()]
    """Passes through the data."""
    steps: _Count | None = None
    """Optimizer steps in place of `epochs`; null goes by epochs."""
    warmup_steps: Annotated[int, FromPreset(), Field(ge=0)]
    """Steps of linear warm-up."""


class PromptStage(Stage):
    """How mask prompts are trained."""

    depth: _Count = 3
    """Transformer layers that receive prompts, from the first on."""
    init_std: _NotNegative = 0.02
    """Standard deviation of the normal noise that prompts are initialised with."""


class Objective(Settings):
    """The contrastive loss."""

    positives: Literal["equal_nouns", "paper"] = "equal_nouns"
    """`equal_nouns`: pairs of the same noun in a batch are positives for each other; `paper`: they are negatives, as in
    the paper."""
    negatives: Annotated[Literal["own", "batch"] | None, AddedLater()] = None
    """Nouns that the images do not show, which a mining run with `negatives` names, as further nouns that a region is
    held against: those of its `own` image, or those of the whole `batch` that its image does not say. null: none."""
    templates: Templates = "raw"
    """Prompt templates of nouns: `raw` (the bare noun, as in the paper), `vild`, `imagenet`, or a text file."""
    logit_scale: Literal["locked", "trained"] = "locked"
    """Whether CLIP's logit scale is `locked` or `trained`; a trained one is not part of the prompts that are written
    and uses the prompts' learning rate."""


class Adam(Settings):
    """The optimizer, AdamW."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay rate of the running mean of gradients."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.98
    """Decay rate of the running mean of squared gradients."""
    epsilon: _Rate = 1e-6
    """Term added to the denominator for numerical stability."""
    max_gradient_norm: _Rate | None = None
    """Norm to which gradients are clipped; null clips none."""


class RayTrain(Settings):
    """Training processes on a Ray cluster."""

    processes: _Count = 1
    """Training processes."""
    gpus: Literal["one_each", "none"] = "one_each"
    """Whether each process has a GPU."""
    cpus_per_process: _Rate = 1.0
    """CPUs that a process reserves."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """Deaths of a process or node after which training gives up."""
    address: str | None = None
    """Address of a running cluster; null starts Ray on this machine."""


class Tuning(Settings):
    """The whole of a tuning run."""

    clip: Clip
    """The CLIP that is tuned."""
    data: Data
    """Which pairs are trained on."""
    mode: Mode = "prompts"
    """What is trained: mask `prompts`; `finetune`, the image tower; `finetune_then_prompts`, one after the other (the
    paper's best); or `joint`, both at once, each at its own rate, for the steps of `prompts`."""
    preset: Preset = "paper"
    """Fills in what `prompts` and `finetune` leave open: the figures of the `paper`, or those of its `released`
    scripts."""
    prompts: Annotated[PromptStage, FromPreset()]
    """How mask prompts are trained; the preset fills in what is left out."""
    finetune: Annotated[Stage, FromPreset()]
    """How the image tower is trained; the preset fills in what is left out."""
    objective: Objective = Objective()
    """The contrastive loss."""
    adam: Adam = Adam()
    """The optimizer."""
    precision: Precision = "auto"
    """Number format of the computation; `auto` is bfloat16 on a GPU that supports it and float32 elsewhere."""
    micro_batch_size: _Count | None = None
    """Images that a process takes through the tower at once; lower it when memory is short. The loss is still that of
    the whole batch. Null takes all of a process's share."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the order, the augmentation and the initial prompts."""
    device: Annotated[str, ExecutionOnly()] = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`."""
    checkpoint_every: Annotated[_Count, ExecutionOnly()] = 500
    """Steps between checkpoints, from which an interrupted tuning continues."""
    log_every: Annotated[_Count, ExecutionOnly()] = 10
    """Steps between lines of the log."""
    wandb: Annotated[str | None, ExecutionOnly()] = None
    """A project of Weights & Biases (`pip install wandb`) that gets the curves too; null sends nothing anywhere."""
    ray: Annotated[RayTrain | None, ExecutionOnly()] = None
    """Run the training processes on Ray; null trains in this process, or in those that torchrun started."""
    out: Annotated[AnyPath, ExecutionOnly()]
    """Folder for the results, the log and the checkpoint."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_the_preset(cls, tree: Any) -> Any:
        return fill_from_preset(tree, PRESETS, default="paper")

    def stages(self) -> tuple[Literal["finetune", "prompts", "joint"], ...]:
        """What is trained, in its order."""
        if self.mode == "finetune_then_prompts":
            return ("finetune", "prompts")
        return (self.mode,)

    def decisive(self) -> dict[str, Any]:
        """The settings that the result follows from; the CLIP counts by its weights, and is left out here."""
        values = plain_values(self)
        del values["clip"]
        return values
