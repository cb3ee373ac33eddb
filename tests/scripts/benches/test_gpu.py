"""The benches of the GPU, on the CPU with tiny models: what they count, and what they say of the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskmine.mining.regions import Regions
from maskmine.pipelines.steps.gpu_use import GpuUse
from maskmine.schemas.errors import InputError
from maskmine.scripts.benches import gpu, gpu_tuning, segmenter
from maskmine.scripts.measures import Measure
from maskmine.tuning.segmentation.segmenter import Segmenter
from tests.support.models import SCENES, save_tiny_clip, save_tiny_models


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    models = save_tiny_models(tmp_path_factory.mktemp("models"))
    return {**models, "keep": {**models["keep"], "max_iou": 1.0}}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices that are watched; each is busy for 90 % and has 2 GiB taken once the block has ended."""
    devices: list[str] = []

    @contextmanager
    def watch(device: str) -> Iterator[GpuUse]:
        devices.append(device)
        use = GpuUse()
        yield use
        use.percent, use.peak_bytes = 90.0, 2 << 30

    for module in (gpu, gpu_tuning, segmenter):
        monkeypatch.setattr(module, "watch_gpu", watch)
    return devices


def by_name(measures: list[Measure]) -> dict[str, Measure]:
    return {measure.name: measure for measure in measures}


def images_in(folder: Path) -> list[str]:
    for number, scene in enumerate(SCENES):
        Image.fromarray(scene.picture_HW3).save(folder / f"{number}.png")
    return [str(path) for path in sorted(folder.glob("*.png"))]


def test_images_and_crops_a_second_and_the_share_busy_of_mining(
    tree: dict[str, Any], watched: list[str], tmp_path: Path
) -> None:
    regions = Regions.model_validate({**tree, "batch_size": 2})
    measures = by_name(gpu.measure_regions(images_in(tmp_path), regions=regions, batches=3))
    images_s, crops = measures["images a second"].value, measures["crops an image"].value
    assert crops > 1
    assert measures["crops a second"].value == pytest.approx(images_s * crops)
    assert measures["seconds an image (the paper: 0.8)"].value == pytest.approx(1 / images_s)
    busy = measures["GPU busy"]
    assert (busy.value, busy.goal, busy.reached) == (90, "≥ 85", True)
    assert measures["peak memory of the GPU"].value == 2
    assert watched == ["cpu"]


def test_where_nvml_tells_nothing_a_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.use_of_gpu(GpuUse(), "cuda:1") == []
    assert capsys.readouterr().err == "  GPU busy: not known, as NVML tells nothing of `cuda:1`\n"


def test_images_and_crops_a_second_and_the_share_busy_of_segmenting(tree: dict[str, Any], watched: list[str]) -> None:
    settings = Segmenter.model_validate({**tree, "templates": "raw"})
    load = segmenter._Load([scene.picture_HW3 for scene in SCENES], [], segmenter.CLASSES)
    measures = by_name(segmenter._on_gpu(settings, load, name="tiny", batches=2))
    images_s, regions = measures["tiny: images a second"].value, measures["tiny: regions an image"].value
    assert regions > 1
    assert measures["tiny: crops a second"].value == pytest.approx(images_s * regions)
    assert measures["tiny: GPU busy"].value == 90
    assert watched == ["cpu"]


def test_the_share_busy_of_tuning(watched: list[str], tmp_path: Path) -> None:
    vision = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}
    name = f"local-dir:{save_tiny_clip(tmp_path / 'clip', vision_cfg=vision)}"
    measured = list(gpu_tuning.bench_gpu_tuning(models=(name,), batch_size=2, steps=1, device="cpu"))
    measures = by_name(measured)
    assert [measures[f"{name}, {mode}: GPU busy"].value for mode in ("prompts", "finetune")] == [90, 90]
    assert measures[f"{name}, prompts, batches of 2"].unit == "images/s"
    assert watched == ["cpu"] * 3


@pytest.mark.parametrize("bench", [gpu.bench_gpu, segmenter.bench_gpu_segment])
def test_without_a_gpu_one_line_says_so(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(InputError, match="this machine has no GPU"):
        list(bench(()))
