"""What `import maskmine` offers, and the notebook that shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import maskmine
from maskmine.mining.storage.files import sole_writer
from maskmine.schemas.errors import IncompleteError, InputError
from tests.support import toy
from tests.support.paths import HEAVY, ROOT


@pytest.fixture(scope="module")
def toy_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_config(toy.write_toy_world(tmp_path_factory.mktemp("toy")))


@pytest.mark.parametrize(("asked", "spins"), [(None, "0"), ("ACTIVE", "30000000000")])
def test_threads_that_wait_do_not_spin_unless_asked_for(asked: str | None, spins: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE"} | ({"OMP_WAIT_POLICY": asked} if asked else {})
    said = subprocess.run(
        [sys.executable, "-c", "import maskmine, torch"], env=environment, capture_output=True, text=True, check=True
    ).stderr
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("this torch has another OpenMP, which is not asked here")
    assert f"GOMP_SPINCOUNT = '{spins}'" in said


def test_a_run_is_mined_from_a_dictionary_and_read_again(toy_config: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(toy_config.read_text())
    run = maskmine.mine(config, settings={"shards.images_per_part": 3}, out=tmp_path / "run")
    assert run.published
    assert not run.exceeded
    assert repr(run) == f"Run({run.folder!r}, pairs={run.manifest.totals.samples}, published=True)"
    pairs = list(run.pairs())
    assert {(pair.row.image_id, pair.noun) for pair in pairs} == {(image, noun) for image, noun, _ in toy.PAIRS}
    assert run.index()["key"].to_pylist() == [pair.key for pair in pairs]
    assert [Path(shard).name for shard in run.shards] == ["00000.tar", "00001.tar", "00002.tar"]
    assert all(Path(shard).exists() for shard in run.shards)
    assert run.manifest.totals.samples == len(pairs)
    again = maskmine.open_run(tmp_path / "run")
    assert again.folder == run.folder
    assert [pair.key for pair in again.pairs()] == [pair.key for pair in pairs]
    assert config == yaml.safe_load(toy_config.read_text()), "the dictionary is the caller's"


def test_a_folder_that_another_process_writes_to_is_left_alone(toy_config: Path, tmp_path: Path) -> None:
    with sole_writer(str(tmp_path / "run")), pytest.raises(IncompleteError, match="another process is at work"):
        maskmine.mine(toy_config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pair_has_its_crop_its_mask_and_its_record(toy_config: Path, tmp_path: Path) -> None:
    run = maskmine.mine(toy_config, out=tmp_path / "run")
    pair = next(pair for pair in run.pairs() if pair.noun == "disc")
    assert pair.image.mode == "RGB"
    assert (pair.image.height, pair.image.width) == pair.mask.shape
    assert pair.mask.dtype == np.bool_
    assert int(pair.mask.sum()) == pair.row.area_px
    colour = np.asarray(pair.image, np.int16)[pair.mask].mean(axis=0)
    assert np.abs(colour - toy.COLOURS["disc"]).max() < 20  # JPEG smears at edges
    assert pair.record["image_id"] == pair.row.image_id


def test_faults_are_those_of_the_command_line(toy_config: Path, tmp_path: Path) -> None:
    with pytest.raises(maskmine.InputError, match="settings: pairs: rule `none` is unknown"):
        maskmine.mine({"captions": {"kind": "coco"}, "pairs": {"rule": "none"}})
    for name, said in (
        ("pairs.min_lifts", r"^settings\['pairs\.min_lifts'\]: unknown setting"),
        ("out.deep", r"^settings\['out\.deep'\]: `out` is a value"),
        ("pairs.", r"^settings\['pairs\.'\]: expected the name of a setting"),
    ):
        with pytest.raises(maskmine.InputError, match=said):
            maskmine.mine(toy_config, settings={name: 1}, out=tmp_path / "run")
    with pytest.raises(InputError, match="--engine dask: unknown"):
        maskmine.mine(toy_config, out=tmp_path / "run", engine="dask")
    with pytest.raises(InputError, match="limit: at least 1 image, not 0"):
        maskmine.mine(toy_config, out=tmp_path / "run", limit=0)
    with pytest.raises(maskmine.InputError):
        maskmine.open_run(tmp_path / "nowhere")
    assert not (tmp_path / "run").exists()


def test_what_is_public_is_there_and_nothing_heavy_is_imported_for_it() -> None:
    assert set(dir(maskmine)) == set(maskmine.__all__)
    assert all(getattr(maskmine, name) is not None for name in maskmine.__all__)
    with pytest.raises(AttributeError, match="no attribute `miner`"):
        maskmine.miner  # noqa: B018
    program = f"import sys, maskmine; maskmine.__version__; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells), "outputs are not kept"
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    said = capsys.readouterr().out
    assert "pairs of 40 images" in said
    assert "3 steps:" in said
    assert names["found"].labels_HW.shape == names["picture"].shape[:2]
