"""The settings of a tuning run, and the two presets: what the paper says, and what its released scripts do."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mining.crops import Crop
from mining.models.clip import Clip
from schemas.settings import Settings

Mode = Literal["prompts", "finetune", "finetune_then_prompts", "joint"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Preset = Literal["paper", "released"]


def yaml_number(value: Any) -> Any:
    """`1e-6` as the number that it is: YAML 1.1 takes it for a text, because it has no point."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"\d+[eE][-+]?\d+", value) else value


_Count = Annotated[int, Field(ge=1)]
_Rate = Annotated[float, Field(gt=0), BeforeValidator(yaml_number)]
_NotNegative = Annotated[float, Field(ge=0), BeforeValidator(yaml_number)]
_Share = Annotated[float, Field(gt=0, le=1)]

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
    """The `out` folder of a mining run. `ratio` is its share of every batch; give one to all sources or to none.

    Of its pairs only those are seen whose scores reach `min_similarity` and `min_margin`, where these are given.
    """

    folder: str
    ratio: _Share | None = None
    min_similarity: float | None = None
    min_margin: float | None = None


class Jitter(Settings):
    """A random part of the region's box: its share of the area, and its aspect relative to the box, from a to b."""

    scale: Annotated[tuple[_Share, _Share], Field(strict=False)] = (0.9, 1.0)
    aspect: Annotated[tuple[_Rate, _Rate], Field(strict=False)] = (0.75, 4 / 3)

    @model_validator(mode="after")
    def _from_less_to_more(self) -> Jitter:
        for name in ("scale", "aspect"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"`{name}` goes from less to more, not from {low} to {high}")
        return self


class Data(Settings):
    """Which pairs, and what is seen of them.

    Without ratios, sources are one set; with them an epoch is one pass through the first source. `max_per_noun` is how
    many pairs of a noun an epoch shows at most, other ones each time. `workers` are processes that read ahead, 0 for
    none; the data do not depend on them.
    """

    sources: Annotated[tuple[Source, ...], Field(min_length=1, strict=False)]
    crop: Crop = Crop()
    jitter: Jitter | None = Jitter()
    max_per_noun: _Count | None = None
    workers: Annotated[int, Field(ge=0)] = 2

    @model_validator(mode="after")
    def _ratios_of_all_or_none(self) -> Data:
        ratios = [source.ratio for source in self.sources if source.ratio is not None]
        if ratios and (len(ratios) < len(self.sources) or abs(sum(ratios) - 1) > 1e-6):
            raise ValueError("`ratio` of all sources together is 1; give one to every source, or to none")
        return self


class Stage(Settings):
    """How a part of the model learns: AdamW, linear warm-up, then half a cosine down to 0.

    `batch_size` is that of all processes together. `steps`, where given, counts instead of `epochs`.
    """

    learning_rate: _Rate
    weight_decay: _NotNegative
    batch_size: Annotated[int, Field(ge=2)]
    epochs: _Rate
    steps: _Count | None = None
    warmup_steps: Annotated[int, Field(ge=0)]


class PromptStage(Stage):
    """Prompts begin as normal noise of deviation `init_std`, and are put in at `depth` places."""

    depth: _Count = 3
    init_std: _NotNegative = 0.02


class Objective(Settings):
    """`positives: paper` takes equal nouns of a batch for each other's negatives, as the paper does.

    `templates` as in mining (`raw`: the bare noun, so the paper). `logit_scale` is locked unless said otherwise: it is
    no part of the prompts that are handed on, and where the scripts train it, it follows the rate of the prompts.
    """

    positives: Literal["equal_nouns", "paper"] = "equal_nouns"
    templates: str = "raw"
    logit_scale: Literal["locked", "trained"] = "locked"


class Adam(Settings):
    """AdamW's running means and its least denominator; `max_gradient_norm` cuts longer gradients."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.98
    epsilon: _Rate = 1e-6
    max_gradient_norm: _Rate | None = None


class RayTrain(Settings):
    """So many processes on a Ray cluster, each with a GPU where `gpus` is `one_each`.

    `address` is that of a running cluster, null for a Ray of its own on this machine. After `restarts` deaths of a
    process or node it gives up.
    """

    processes: _Count = 1
    gpus: Literal["one_each", "none"] = "one_each"
    cpus_per_process: _Rate = 1.0
    restarts: Annotated[int, Field(ge=0)] = 3
    address: str | None = None


class Tuning(Settings):
    """The whole of a tuning run.

    `joint` trains prompts and image tower at once, each at its own rate, for the steps of `prompts`. `precision: auto`
    is bfloat16 on a GPU that has it and float32 elsewhere. `micro_batch_size` is how many pictures a process takes
    through the tower at a time, null for all of its part: the loss is that of the whole batch all the same. With `ray`
    the processes are Ray's; without it there is this one, or those that torchrun started.
    """

    clip: Clip
    data: Data
    mode: Mode = "prompts"
    preset: Preset = "paper"
    prompts: PromptStage
    finetune: Stage
    objective: Objective = Objective()
    adam: Adam = Adam()
    precision: Precision = "auto"
    micro_batch_size: _Count | None = None
    gradient_checkpointing: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "auto"
    checkpoint_every: _Count = 500
    log_every: _Count = 10
    ray: RayTrain | None = None
    out: str

    @model_validator(mode="before")
    @classmethod
    def _fill_from_the_preset(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        preset = PRESETS.get(str(tree.get("preset", "paper")), {})
        filled = dict(tree)
        for name, values in preset.items():
            given = tree.get(name) or {}
            filled[name] = {**values, **given} if isinstance(given, dict) else given
        return filled

    def stages(self) -> tuple[Literal["finetune", "prompts", "joint"], ...]:
        """What is trained, in its order."""
        if self.mode == "finetune_then_prompts":
            return ("finetune", "prompts")
        return (self.mode,)

    def decisive(self) -> dict[str, Any]:
        """The settings that the result follows from: all but places, processors, and how often something is written."""
        tree = self.model_dump(mode="json", exclude={"out", "checkpoint_every", "log_every", "device", "clip", "ray"})
        del tree["data"]["workers"]
        for source in tree["data"]["sources"]:
            del source["folder"]
        return tree
