"""Whatever fails, and in whatever order: a run that ends well has every image once, with pairs or with a reason."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from maskmine.pipelines.engines.beam import BeamEngine
from maskmine.pipelines.engines.engine import Engine
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.run_folder.folder import SUCCESS_FILE, RunFolder
from maskmine.pipelines.settings.mining import load_mining
from maskmine.schemas.errors import IncompleteError
from tests.support import toy
from tests.support.conformance import assert_the_account_holds, full_disk
from tests.support.runs import Recorder, StopsAfter

# importing Beam's dependencies warns of what is not installed
pytestmark = pytest.mark.filterwarnings("ignore::ImportWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

ENGINES: dict[str, Engine] = {"local": LocalEngine(), "beam": BeamEngine()}
CELLS = [f"{step}/{part:05d}.parquet" for step in ("nouns", "proposals", "pairs", "shards") for part in range(3)]
CELLS += ["vocabulary.parquet", "shards/00000.tar", "shards/00002.tar", "shards/00001.json"]
CAPTIONS = [("A square in the dark.",), ("It is blue.",), (), ("Two discs and a bar.", "One bar.")]

images = st.sampled_from([image.id for image in toy.IMAGES])
cells = st.sampled_from(CELLS)


class Run(RuleBasedStateMachine):
    """A run folder to which bad things happen between, and during, runs."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="accounting-"))
        self.world = toy.write_toy_world(self.folder / "world")
        self.root = self.folder / "run"
        self.root.mkdir()
        self.overrides: dict[str, str] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(image=images, content=st.sampled_from([b"", b"<html>", None]))
    def break_a_picture(self, image: int, content: bytes | None) -> None:
        path = self.world / "images" / f"{image:012d}.png"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)

    @rule(image=images, poison=st.sampled_from(["segfault", "memory"]))
    def poison_a_picture(self, image: int, poison: str) -> None:
        toy.poison(self.world / "images" / f"{image:012d}.png", ("square",), poison)

    @rule(image=images)
    def mend_a_picture(self, image: int) -> None:
        toy.save_picture(self.world / "images" / f"{image:012d}.png", ("bar",))

    @rule(image=images, texts=st.sampled_from(CAPTIONS))
    def say_something_else(self, image: int, texts: tuple[str, ...]) -> None:
        path = self.world / "captions.json"
        tree = json.loads(path.read_text())
        others = [annotation for annotation in tree["annotations"] if annotation["image_id"] != image]
        said = [{"id": image * 10 + n, "image_id": image, "caption": text} for n, text in enumerate(texts)]
        path.write_text(json.dumps({**tree, "annotations": others + said}))

    @rule(key=st.sampled_from(["pairs.max_per_noun=1", "regions.keep.top=1", "captions.per_image=all"]))
    def change_a_setting(self, key: str) -> None:
        name, _, value = key.partition("=")
        if self.overrides.pop(name, None) is None:
            self.overrides[name] = value

    @rule(cell=cells)
    def lose_a_cell(self, cell: str) -> None:
        (self.root / cell).unlink(missing_ok=True)

    @rule(cell=cells)
    def find_a_broken_cell(self, cell: str) -> None:
        """Cells are looked into where the folder does not say that they are current."""
        path = self.root / cell
        if path.exists() and path.suffix != ".tar":
            path.write_bytes(path.read_bytes()[:-9])
            (path.parent / "_fingerprint.json").unlink(missing_ok=True)

    @rule(cell=cells, engine=st.sampled_from(sorted(ENGINES)))
    def run_on_a_full_disk(self, cell: str, engine: str) -> None:
        with full_disk(self.root, cell):
            self.run(engine)

    @rule(finished=st.integers(1, 6))
    def run_and_interrupt(self, finished: int) -> None:
        try:
            self.mine(LocalEngine(), StopsAfter(finished))
        except KeyboardInterrupt:
            assert not (self.root / SUCCESS_FILE).exists()

    @rule(engine=st.sampled_from(sorted(ENGINES)))
    def run(self, engine: str) -> None:
        fault = None
        try:
            self.mine(ENGINES[engine], Recorder())
        except IncompleteError as error:
            fault = str(error)
        if fault is None:
            assert_the_account_holds(RunFolder(str(self.root)), images=len(toy.IMAGES))
        else:
            assert "the disk is full" in fault
            assert (self.root / "._disk-is-full").exists()
            assert not (self.root / SUCCESS_FILE).exists()

    def mine(self, engine: Engine, watch: Recorder) -> None:
        overrides = [f"{name}={value}" for name, value in self.overrides.items()]
        config = toy.write_config(self.world, out=self.root)
        mine(load_mining(str(config), overrides=overrides), engine=engine, observer=watch)


Run.TestCase.settings = settings(max_examples=5, stateful_step_count=12, suppress_health_check=list(HealthCheck))
test_every_image_is_accounted_for_after_any_sequence_of_faults = Run.TestCase
