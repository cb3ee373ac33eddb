"""Models of detectron2 whose output has masks: Mask R-CNN, panoptic FPN, and what projects outside of it register.

Pickled weights can run any code when they are read, and detectron2's are pickled. So the user pins them by their
SHA-256, which is checked before they are read; a state dict as safetensors needs none.

Shapes: N proposals, K classes of the model; H, W the image's height and width in pixels.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pickle
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import Field

from maskmine.mining.models.devices import DeviceKind, open_device
from maskmine.mining.proposers.proposals import LoadedImage, Proposals, Proposer
from maskmine.mining.storage.bounded.small_files import MAX_YAML_BYTES, parse_yaml, read_list
from maskmine.mining.storage.content_hash import content_identity, file_sha256, files_sha256, weights_sha256
from maskmine.schemas.errors import InputError
from maskmine.schemas.manifest import ModelRecord
from maskmine.schemas.settings import AnyPath, NameOrPath, RecordOnly, Settings, fingerprint

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Output = Literal["panoptic_seg", "instances", "sem_seg"]
# In the order of preference of `auto`.
_OUTPUTS: tuple[Output, ...] = ("panoptic_seg", "instances", "sem_seg")
_MAX_BASES = 100  # configurations that one is based on
_SAFETENSORS = ".safetensors"  # the format that cannot run code
_INSTALL = "python -m pip install 'git+https://github.com/facebookresearch/detectron2.git'"  # it is on no package index


class Detectron2(Settings):
    """Which model of detectron2, and which of its outputs are proposals."""

    kind: Literal["detectron2"]
    """A model of detectron2 or of a project built on it."""
    config: NameOrPath
    """A configuration in YAML, or the name of one that comes with detectron2, such as
    `COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml`; thresholds and input sizes are set there."""
    weights: AnyPath
    """The checkpoint: `.safetensors`, or `.pkl` or `.pth` together with `weights_sha256`."""
    weights_sha256: Annotated[Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None, RecordOnly()] = None
    """SHA-256 of a `.pkl` or `.pth`, which is executed while it is read; needed for these."""
    import_modules: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Modules of projects that register a model, imported in this order; `module:function` also calls the function with
    the configuration, which adds the project's own keys: `mask2former:add_maskformer2_config`."""
    output: Literal["auto", "panoptic_seg", "instances", "sem_seg"] = "auto"
    """Which output holds the masks; `auto` is the first of the others that the model returns masks as."""
    licence: Annotated[str | None, RecordOnly()] = None
    """Licence of the weights (SPDX)."""

    def open(self, *, device: str) -> Proposer:
        """Load the model; returns a function from images of one size, on its device, to their proposals, best first.

        Images go through the model one by one, so an image's masks depend on no neighbour. Raises InputError when
        detectron2, the files or the hash of the weights are missing, or they do not belong together, and at the first
        image when the model's output has no masks.
        """
        target = open_device(device)
        model = _load(self, device=target)

        def propose(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals]:
            for image in images:
                yield read_output(
                    _predict(image.rgb_3HW, model=model), names=model.names, output=self.output, min_score=min_score
                )

        return propose

    def contents(self) -> dict[str, Any]:
        """Configuration with its bases, weights and the code of imported modules, by their hashes."""
        try:
            files = [file_sha256(path) for path in _config_files(_config(self))]
        except InputError:  # said when it is opened
            files = []
        name = Path(self.config).name if Path(self.config).is_file() else self.config
        modules = [{"name": named, "sha256": _code_sha256(named.partition(":")[0])} for named in self.import_modules]
        called = [named.partition(":")[2] for named in self.import_modules]
        return {
            "config": {"name": name, "sha256": fingerprint(files) if files else None},
            "weights": content_identity(self.weights),
            "import_modules": modules,
            "called": called,
        }

    def settled(self, kind: DeviceKind) -> Detectron2:
        """The same: detectron2 has one precision."""
        return self

    def fetch(self) -> None:
        """There is nothing to fetch."""

    def weights_bytes(self) -> int:
        """The size of the checkpoint. Raises InputError where there is none."""
        return _weights(self).stat().st_size

    def record(self) -> ModelRecord:
        """The weights and their licence; `sha256` is that of the weights and of the configuration's files.

        Raises InputError when a file is absent.
        """
        digest = hashlib.sha256(weights_sha256(_weights(self)).encode())
        for path in _config_files(_config(self)):
            digest.update(path.read_bytes())
        return ModelRecord(
            role="proposals", name=Path(self.weights).name, sha256=digest.hexdigest(), licence=self.licence or "unknown"
        )


@dataclass(frozen=True, slots=True)
class Names:
    """What a data set's metadata call the classes of things and those of stuff; empty where unknown."""

    things: tuple[str, ...] = ()
    stuff: tuple[str, ...] = ()


def read_output(
    answer: Mapping[str, Any], *, names: Names, output: Literal["auto"] | Output, min_score: float
) -> Proposals:
    """The proposals in a detectron2 model's output for an image, best first, without empty masks.

    The score of an instance or of a panoptic segment is the model's own; segments without one, as those of stuff, have
    1. From `sem_seg`, scores [K, H, W], every class that is the best one of some pixel has a mask of these pixels; its
    score is the mean over them of the class's probability: the softmax where the scores are logits (some are below 0),
    else its share of their sum. Raises InputError when there are no masks.
    """
    read = {"panoptic_seg": _panoptic, "instances": _instances, "sem_seg": _semantic}[_with_masks(answer, output)]
    masks_NHW, scores_N, labels, class_names, classes_N = read(answer, names)
    if not bool(scores_N.isfinite().all()):
        raise InputError("proposals.weights: the model's scores are not finite; check that config and weights match")
    scores_N = scores_N.float().clamp(0, 1)
    keep_N = masks_NHW.flatten(1).any(dim=1) & (scores_N >= min_score)
    order = [i for i in scores_N.argsort(descending=True, stable=True).tolist() if keep_N[i]]
    classes_NK = None
    if class_names:  # a detector names one class, and its score is all that is known
        classes_NK = scores_N.new_zeros(len(scores_N), len(class_names))
        classes_NK[list(range(len(scores_N))), classes_N] = scores_N
        classes_NK = classes_NK[order]
    return Proposals(masks_NHW[order], scores_N[order], tuple(labels[i] for i in order), None, classes_NK, class_names)


# Masks bool [N, H, W], scores [N], a label each, the classes that the model knows and the number of each mask's one.
_Read = tuple["Tensor", "Tensor", list[str | None], tuple[str | None, ...], list[int]]


def _with_masks(answer: Mapping[str, Any], output: Literal["auto"] | Output) -> Output:
    """Which part of the output to read."""
    there = [name for name in _OUTPUTS if answer.get(name) is not None]
    there = [name for name in there if name != "instances" or answer[name].has("pred_masks")]
    wanted = there[:1] if output == "auto" else [name for name in there if name == output]
    if not wanted:
        gives = ", ".join(sorted(answer)) or "nothing"
        if there:
            raise InputError(f"proposals.output: the model does not give `{output}`; use {' or '.join(there)}")
        raise InputError(
            f"proposals.config: the model's output has no masks (it gives {gives}); use one for instance, panoptic or "
            "semantic segmentation"
        )
    return wanted[0]


def _instances(answer: Mapping[str, Any], names: Names) -> _Read:
    found = answer["instances"]
    masks_NHW = getattr(found.pred_masks, "tensor", found.pred_masks)  # some models keep them in a BitMasks
    numbers = found.pred_classes.tolist()
    return masks_NHW.bool(), found.scores, [_name(names.things, k) for k in numbers], names.things, numbers


def _panoptic(answer: Mapping[str, Any], names: Names) -> _Read:
    import torch

    segments_HW, segments = answer["panoptic_seg"]
    if segments is None:  # as Panoptic-DeepLab: a number for each segment, −1 for no segment
        segments = [{"id": number} for number in segments_HW.unique().tolist() if number != -1]
    masks = [segments_HW == segment["id"] for segment in segments]
    masks_NHW = torch.stack(masks) if masks else segments_HW.new_empty(0, *segments_HW.shape, dtype=torch.bool)
    scores_N = torch.tensor([segment.get("score", 1.0) for segment in segments], device=segments_HW.device)
    labels = [
        _name(names.things if segment.get("isthing") else names.stuff, segment.get("category_id", -1))
        for segment in segments
    ]
    known = tuple(dict.fromkeys((*names.things, *names.stuff)))
    if None in labels:
        return masks_NHW, scores_N, labels, (), []
    return masks_NHW, scores_N, labels, known, [known.index(label) for label in labels if label is not None]


def _semantic(answer: Mapping[str, Any], names: Names) -> _Read:
    import torch

    scores_KHW = answer["sem_seg"].float()
    if bool((scores_KHW < 0).any()):
        shares_KHW = scores_KHW.softmax(dim=0)
    else:
        shares_KHW = scores_KHW / scores_KHW.sum(dim=0).clamp(min=torch.finfo(torch.float32).tiny)
    share_HW, class_HW = shares_KHW.max(dim=0)
    numbers: list[int] = class_HW.unique().tolist()
    masks_NHW = torch.stack([class_HW == number for number in numbers])
    scores_N = torch.stack([share_HW[mask_HW].mean() for mask_HW in masks_NHW])
    known = names.stuff if len(names.stuff) == len(scores_KHW) else ()
    return masks_NHW, scores_N, [_name(known, number) for number in numbers], known, numbers


def _name(names: Sequence[str], number: int) -> str | None:
    return names[number] if 0 <= number < len(names) else None


@dataclass(frozen=True, slots=True)
class _Model:
    """`short_px` and `long_px` bound the sides of its input, 0 for no resizing; `bgr`: whether it takes blue first."""

    network: Any
    short_px: int
    long_px: int
    bgr: bool
    names: Names


def _predict(rgb_3HW: Tensor, *, model: _Model) -> Mapping[str, Any]:
    """What the network says of an image, by the way of detectron2's own predictor."""
    import torch

    pixels_HW3 = rgb_3HW.permute(1, 2, 0).cpu().numpy()
    pixels_HW3 = pixels_HW3[:, :, ::-1] if model.bgr else pixels_HW3
    pixels_hw3 = _resized(pixels_HW3, short_px=model.short_px, long_px=model.long_px)
    pixels_3hw = torch.as_tensor(pixels_hw3.astype("float32").transpose(2, 0, 1).copy())
    with torch.inference_mode():
        (answer,) = model.network([{"image": pixels_3hw, "height": rgb_3HW.shape[1], "width": rgb_3HW.shape[2]}])
    result: Mapping[str, Any] = answer
    return result


def _resized(pixels_HW3: Pixels, *, short_px: int, long_px: int) -> Pixels:
    """As detectron2 resizes for a test, but a side always keeps a pixel, also that of an image like a thread."""
    from detectron2.data.transforms import ResizeShortestEdge, ResizeTransform  # type: ignore[import-not-found, unused-ignore]

    height_px, width_px = pixels_HW3.shape[:2]
    if not short_px:
        return pixels_HW3
    sides_px = ResizeShortestEdge.get_output_shape(height_px, width_px, short_px, long_px)
    resized: Pixels = ResizeTransform(height_px, width_px, *(max(1, side) for side in sides_px)).apply_image(pixels_HW3)
    return resized


def _load(settings: Detectron2, *, device: torch.device) -> _Model:
    if importlib.util.find_spec("detectron2") is None:
        raise InputError(f"proposals.kind: detectron2 is not installed; {_INSTALL}")
    weights = _checked_weights(settings)
    config = _read_config(settings)
    config.MODEL.DEVICE = str(device)
    network = _build(config)
    _fill(network, weights, settings=settings)
    sizes = config.INPUT
    return _Model(
        network.eval().requires_grad_(False),
        short_px=sizes.MIN_SIZE_TEST,
        long_px=sizes.MAX_SIZE_TEST,
        bgr=sizes.FORMAT == "BGR",
        names=_names(config),
    )


def _checked_weights(settings: Detectron2) -> Path:
    """The file of weights, which is what the user says it is, if it can run code."""
    path = _weights(settings)
    if path.suffix == _SAFETENSORS and settings.weights_sha256 is None:
        return path
    found = weights_sha256(path)
    if settings.weights_sha256 is None:
        raise InputError(
            f"proposals.weights_sha256: missing; `{path}` is a pickle, which can run any code; if you trust where it "
            f"is from, add `weights_sha256: {found}`"
        )
    if settings.weights_sha256 != found:
        raise InputError(
            f"proposals.weights_sha256: `{path}` has {found}, not {settings.weights_sha256}; get the file again, or "
            "correct the setting if you trust it"
        )
    return path


def _weights(settings: Detectron2) -> Path:
    path = Path(settings.weights)
    if not path.is_file():
        raise InputError(
            f"proposals.weights: there is no file `{settings.weights}`; download it, for example from detectron2's "
            "MODEL_ZOO.md, and give its path"
        )
    return path


def _config(settings: Detectron2) -> Path:
    path = Path(settings.config)
    if path.is_file():
        return path
    library = importlib.util.find_spec("detectron2")
    for folder in (library.submodule_search_locations or []) if library else []:
        if (found := Path(folder) / "model_zoo" / "configs" / settings.config).is_file():
            return found
    raise InputError(
        f"proposals.config: there is no file `{settings.config}`, nor does detectron2 have one of this name; check it"
    )


def _code_sha256(module: str) -> str | None:
    """A hash of a module's source, of a package's with all that lies in it; None where it cannot be found."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if found is None or found.origin is None:
        return None
    source = Path(found.origin)
    files = source.parent.rglob("*.py") if source.name == "__init__.py" else [source]
    return files_sha256(files, below=source.parent)


def _config_files(path: Path) -> Iterator[Path]:
    """A configuration and those that it is based on, also by way of others. Raises InputError, also for a ring."""
    files = [path]
    for number, file in enumerate(files):
        if number == _MAX_BASES:
            raise InputError(f"proposals.config: `{path}` is based on {number} files, or on itself; mend its `_BASE_`")
        yield file
        files[number + 1 : number + 1] = _bases(file)


def _bases(path: Path) -> list[Path]:
    try:
        _, tree = parse_yaml(read_list(path, max_bytes=MAX_YAML_BYTES), place=f"proposals.config: {path}")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"proposals.config: `{path}` does not fit, as it is no plain YAML; give a configuration in YAML"
        ) from error
    bases = tree.get("_BASE_", []) if isinstance(tree, dict) else []
    named = [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else []
    files = (path.parent / Path(base).expanduser() for base in named if isinstance(base, str))
    return [file for file in files if file.is_file()]


def _read_config(settings: Detectron2) -> Any:
    """The configuration with the keys of the projects; YAML that would make objects is refused."""
    from detectron2.config import get_cfg  # type: ignore[import-not-found, unused-ignore]

    config, path = get_cfg(), _config(settings)
    deque(_config_files(path), maxlen=0)  # detectron2 reads them without limits
    for named in settings.import_modules:
        module, _, function = named.partition(":")
        try:
            found = importlib.import_module(module)
            if function:
                getattr(found, function)(config)
        except (ImportError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"proposals.import_modules: `{named}` cannot be had ({reason}); install the project, or add its folder "
                "to PYTHONPATH"
            ) from error
    try:
        config.merge_from_file(str(path), allow_unsafe=False)
    except (KeyError, ValueError, AssertionError, OSError, AttributeError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"proposals.config: `{path}` does not fit ({reason}); for a project's own keys name the function that adds "
            "them in `import_modules`, such as mask2former:add_maskformer2_config"
        ) from error
    return config


def _build(config: Any) -> Any:
    from detectron2.modeling import build_model  # type: ignore[import-not-found, unused-ignore]

    try:
        return build_model(config)
    except (KeyError, ValueError, AttributeError, TypeError, AssertionError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"proposals.config: the model cannot be built ({reason}); name the project that registers it in "
            "`import_modules`"
        ) from error


def _fill(network: Any, path: Path, *, settings: Detectron2) -> None:
    """Load the weights; what the file has not, or in another shape, is found out, as detectron2 only warns."""
    import torch
    from detectron2.checkpoint import DetectionCheckpointer  # type: ignore[import-not-found, unused-ignore]
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    wanted = {
        name: value
        for name, value in network.state_dict().items()
        if value.is_floating_point()
        and value.numel()
        and name not in ("pixel_mean", "pixel_std")  # of the configuration
    }
    for value in wanted.values():
        value.fill_(float("nan"))
    unreadable = (OSError, ValueError, LookupError, RuntimeError, EOFError, AttributeError, AssertionError, TypeError)
    try:
        if path.suffix == _SAFETENSORS:
            network.load_state_dict(load_file(path), strict=False)
        else:
            DetectionCheckpointer(network).load(str(path))
    except (*unreadable, SafetensorError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"proposals.weights: `{settings.weights}` cannot be loaded ({reason})") from error
    if missing := sorted(name for name, value in wanted.items() if bool(torch.isnan(value).all())):
        raise InputError(
            f"proposals.weights: `{settings.weights}` lacks {len(missing)} of the model's weights, such as "
            f"{missing[0]}; give the checkpoint that belongs to `{settings.config}`"
        )


def _names(config: Any) -> Names:
    from detectron2.data import MetadataCatalog  # type: ignore[import-not-found, unused-ignore]

    sets = (*config.DATASETS.TEST, *config.DATASETS.TRAIN)
    if not sets:
        return Names()
    metadata = MetadataCatalog.get(sets[0])
    return Names(tuple(metadata.get("thing_classes", ())), tuple(metadata.get("stuff_classes", ())))
