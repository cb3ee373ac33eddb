"""`maskmine review`: the store of verdicts, the queue of pairs, and what the page answers and refuses."""

from __future__ import annotations

import errno
import io
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from maskmine.mining.evaluation.verdicts import PairId, read_verdicts
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.review import store as store_file
from maskmine.pipelines.review.pictures import Drawer
from maskmine.pipelines.review.queue import HELD_S, Item, Queue, choose_items
from maskmine.pipelines.review.store import FOLDER, Store, check_reviewer, read_stored
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.run_folder.sweep import sweep
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import ImageRow, PairsRow, Verdict
from tests.support import toy

pytest.importorskip("starlette", reason="pip install '.[serve]'")

if TYPE_CHECKING:
    from starlette.testclient import TestClient

CAT, DOG = ("7", "cat", "a" * 16), ("7", "dog", "b" * 16)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """An empty folder, which is all that the store needs."""
    return RunFolder(str(tmp_path))


@pytest.fixture
def toy_run(mined: Path, tmp_path: Path) -> RunFolder:
    """A finished run of its own: 7 pairs of 4 images."""
    return RunFolder(str(shutil.copytree(mined, tmp_path / "run")))


def stored(run: RunFolder) -> list[tuple[str, str, Verdict]]:
    """Reviewer, noun and verdict of all that is on the disk, by time."""
    rows = sorted(read_verdicts(run.path(FOLDER)).rows, key=lambda row: row.at)
    return [(row.reviewer, row.noun, row.verdict) for row in rows]


def add(store: Store, pair: PairId, verdict: Verdict, reviewer: str = "ann") -> None:
    store.add(pair, verdict, reviewer=reviewer, seconds=1.5)


# --- the store --------------------------------------------------------------------------------------------------------


def test_a_verdict_is_on_the_disk_when_it_is_taken(run: RunFolder) -> None:
    store = Store(run)
    for number in range(5):
        add(store, ("7", f"noun{number}", "a" * 16), "right")
        assert len(stored(run)) == number + 1
    (name,) = run.names(FOLDER)
    assert re.fullmatch(r"ann-\d{8}T\d{12}Z\.parquet", name)
    row = read_verdicts(run.path(FOLDER)).rows[0]
    assert (row.image_id, row.mask, row.seconds) == ("7", "a" * 16, 1.5)
    assert datetime.fromisoformat(row.at).utcoffset() == timedelta(0)


def test_after_a_restart_verdicts_are_known_and_the_last_one_can_be_taken_back(run: RunFolder) -> None:
    first = Store(run)
    add(first, CAT, "right")
    add(first, DOG, "bad_mask")
    again = Store(run, read_stored(run))
    assert [again.latest(pair).verdict for pair in (CAT, DOG)] == ["right", "bad_mask"]  # type: ignore[union-attr]
    undone = again.undo("ann")
    assert undone is not None
    assert undone.noun == "dog"
    assert again.latest(DOG) is None
    assert stored(run) == [("ann", "cat", "right")]
    assert again.undo("bob") is None
    add(again, DOG, "right")
    assert len(run.names(FOLDER)) == 2, "what an earlier server wrote is left alone"
    assert stored(run) == [("ann", "cat", "right"), ("ann", "dog", "right")]


def test_two_reviewers_of_one_pair_are_both_kept_and_the_last_counts(run: RunFolder) -> None:
    store = Store(run)
    add(store, CAT, "wrong_noun", "bob")
    add(store, CAT, "right", "ann")
    assert store.latest(CAT).verdict == "right"  # type: ignore[union-attr]
    verdicts = read_verdicts(run.path(FOLDER))
    assert verdicts.disagreements == (CAT,)
    assert len(verdicts.rows) == 2
    store.undo("ann")
    assert store.latest(CAT).verdict == "wrong_noun"  # type: ignore[union-attr]


def test_a_form_that_is_sent_twice_counts_once_and_a_change_of_mind_counts(run: RunFolder) -> None:
    store = Store(run)
    for verdict in ("right", "right", "bad_mask"):
        add(store, CAT, verdict)
    assert stored(run) == [("ann", "cat", "right"), ("ann", "cat", "bad_mask")]


def test_a_clock_that_goes_backwards_changes_no_order(run: RunFolder) -> None:
    times = iter([datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)])
    store = Store(run, now=lambda: next(times))
    add(store, CAT, "right")
    add(store, CAT, "bad_mask")
    assert read_verdicts(run.path(FOLDER)).latest[CAT].verdict == "bad_mask"


def test_files_stay_small(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_file, "MAX_ROWS", 3)
    store = Store(run)
    for number in range(7):
        add(store, ("7", f"noun{number}", "a" * 16), "right")
    assert len(run.names(FOLDER)) == 3
    store.undo("ann")
    store.undo("ann")
    assert [noun for _, noun, _ in stored(run)] == [f"noun{number}" for number in range(5)]


def test_a_verdict_that_cannot_be_written_is_not_taken(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(run)
    add(store, CAT, "right")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(IncompleteError, match="the disk is full"):
            add(store, DOG, "right")
    assert store.latest(DOG) is None
    add(store, DOG, "bad_mask")
    assert stored(run) == [("ann", "cat", "right"), ("ann", "dog", "bad_mask")]


@pytest.mark.parametrize("name", ["Jürgen", "李_2", "a-b"])
def test_names_of_any_script_are_files(run: RunFolder, name: str) -> None:
    add(Store(run), CAT, "right", check_reviewer(f" {name} "))
    assert stored(run) == [(name, "cat", "right")]


@pytest.mark.parametrize("name", ["", "../../etc", "a/b", "a\\b", ".", "-x", "a b", "x" * 41, "a\0", "a.parquet"])
def test_names_that_could_be_paths_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="letters, digits"):
        check_reviewer(name)


def test_verdicts_lie_on_object_stores_as_well() -> None:
    run = RunFolder("memory://reviewed/run")
    add(Store(run), CAT, "right")
    again = Store(run, read_stored(run))
    add(again, DOG, "bad_mask")
    assert stored(run) == [("ann", "cat", "right"), ("ann", "dog", "bad_mask")]
    again.undo("ann")
    again.undo("ann")
    assert stored(run) == []


def test_broken_files_of_verdicts_are_named_and_nothing_is_lost_in_silence(run: RunFolder) -> None:
    add(Store(run), CAT, "right")
    (name,) = run.names(FOLDER)
    path = Path(run.path(FOLDER, name))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=re.escape(f"{path}: not a whole Parquet file")):
        read_stored(run)


# --- the queue --------------------------------------------------------------------------------------------------------


def items(count: int) -> list[Item]:
    array_HW = toy.shape_mask("square")
    one = Item(
        token="0",
        key="7-000",
        part=0,
        image_id="7",
        noun="0",
        caption="0",
        start=0,
        end=1,
        mask=Mask.from_array(array_HW),
        path=None,
        sha256=None,
    )
    return [replace(one, token=str(n), noun=str(n), caption=str(n)) for n in range(count)]


def test_each_pair_goes_to_one_reviewer_as_long_as_there_are_others(run: RunFolder) -> None:
    store, now = Store(run), [0.0]
    queue = Queue(items(3), store, clock=lambda: now[0])
    took = {name: queue.take(name) for name in ("ann", "bob", "cem", "dee")}
    assert [item.token if item else None for item in took.values()] == ["0", "1", "2", "0"], "nobody is kept waiting"
    assert queue.take("bob") == took["bob"], "a page that is loaded again is the same"
    assert took["ann"] is not None
    now[0] = 2.5
    assert queue.looked_at_s("ann", took["ann"]) == 2.5
    assert queue.looked_at_s("bob", took["ann"]) is None
    add(store, took["ann"].pair, "right", "ann")
    assert queue.take("dee").token == "1", "pair 0 is judged, and others look at the rest"  # type: ignore[union-attr]
    now[0] = HELD_S + 3
    assert queue.take("ann").token == "1", "who looked at it has gone"  # type: ignore[union-attr]


def test_a_pair_that_was_taken_back_comes_again_first_and_the_end_is_told(run: RunFolder) -> None:
    store = Store(run)
    queue = Queue(items(2), store)
    for verdict in ("right", "cannot_say"):
        item = queue.take("ann")
        assert item is not None
        add(store, item.pair, verdict)
    assert queue.take("ann") is None
    assert (queue.progress().judged, queue.progress().right.count, queue.progress().right.of) == (2, 1, 1)
    row = store.undo("ann")
    assert row is not None
    queue.give_again("ann", (row.image_id, row.noun, row.mask))
    assert queue.take("ann").token == "1"  # type: ignore[union-attr]
    assert queue.progress().judged == 1


def score(run: RunFolder, similarity_of: Callable[[str], float | None], *, confidence: float | None = None) -> None:
    """Give the pairs of a run similarities by noun, and one confidence."""
    for part in FinishedRun.open(run).parts:
        rows = [
            replace(
                row,
                pairs=tuple(
                    replace(pair, similarity=similarity_of(pair.noun), confidence=confidence) for pair in row.pairs
                ),
            )
            for row in FinishedRun.open(run).rows(part, PairsRow)
        ]
        run.write_rows("pairs", f"{part:05d}.parquet", rows=rows, row_type=PairsRow, fingerprint="")


def test_the_least_sure_pairs_come_first(toy_run: RunFolder) -> None:
    similarity = {"bar": 0.1, "disc": 0.25, "discs": 0.31, "square": 0.5}
    score(toy_run, similarity.get)
    finished = FinishedRun.open(toy_run)
    nouns = [item.noun for item in choose_items(finished, order="uncertain", size=5, seed=0)]
    assert nouns == ["disc", "disc", "discs", "bar", "bar"], "the median is 0.25"
    finished.manifest.settings["pairs"]["min_similarity"] = 0.3
    assert [item.noun for item in choose_items(finished, order="uncertain", size=1, seed=0)] == ["discs"]
    score(toy_run, similarity.get, confidence=0.9)
    assert len(choose_items(finished, order="uncertain", size=99, seed=0)) == 7


def test_items_are_the_pairs_of_the_run(toy_run: RunFolder) -> None:
    found = choose_items(FinishedRun.open(toy_run), order="random", size=300, seed=0)
    assert {(item.image_id, item.noun) for item in found} == {(image, noun) for image, noun, _ in toy.PAIRS}
    for item in found:
        assert item.caption[item.start : item.end].lower() == item.noun
        shape = next(shape for image, noun, shape in toy.PAIRS if (image, noun) == (item.image_id, item.noun))
        assert item.mask == Mask.from_array(toy.shape_mask(shape))
        assert item.path is not None
        assert item.path.endswith(f"{int(item.image_id):012d}.png")
    with pytest.raises(InputError, match="use --next random"):
        choose_items(FinishedRun.open(toy_run), order="uncertain", size=3, seed=0)


# --- the page ---------------------------------------------------------------------------------------------------------


@contextmanager
def calling(run: RunFolder, *, reviewer: str | None = None) -> Iterator[TestClient]:
    from starlette.testclient import TestClient

    from maskmine.pipelines.review.app import Review, make_app

    finished = FinishedRun.open(run)
    store = Store(run, read_stored(run))
    queue = Queue(choose_items(finished, order="random", size=300, seed=0), store)
    app = make_app(Review("toy", "random", store, queue, Drawer(finished), reviewer), hosts=("127.0.0.1",))
    headers = {"origin": "http://127.0.0.1"}  # as every browser says with a form
    with TestClient(app, base_url="http://127.0.0.1", headers=headers, raise_server_exceptions=False) as client:
        yield client


def token(page: str) -> str:
    match = re.search(r'name="pair" value="(\w+)"', page)
    assert match, page
    return match[1]


def test_a_review_from_the_name_to_the_end_without_javascript(toy_run: RunFolder) -> None:
    with calling(toy_run) as client:
        assert "Who judges?" in client.get("/").text
        page = client.post("/name", data={"reviewer": "ann"})
        for number in range(7):
            assert len(list((Path(toy_run.root) / FOLDER).glob("*"))) == (number > 0)
            answer = client.post(
                "/verdict", data={"pair": token(page.text), "verdict": "right"}, follow_redirects=False
            )
            assert answer.status_code == 303
            assert len(stored(toy_run)) == number + 1
            page = client.get("/")
            assert f"{number + 1} of 7" in re.sub("<.*?>", "", page.text)
        assert "All 7 pairs are judged" in page.text
        assert "100% right" in page.text
        assert re.search(r"65.?–100", page.text), "the interval of Wilson for 7 of 7"
        last = stored(toy_run)[-1]
        page = client.post("/undo")
        assert f"<em>{last[1]}</em>" in page.text
        assert len(stored(toy_run)) == 6


def test_the_photograph_has_the_outline_and_the_crop_the_mask(toy_run: RunFolder) -> None:
    with calling(toy_run, reviewer="ann") as client:
        page = client.get("/").text
        assert page.count("<mark>") == 1
        pictures = re.findall(r'<img src="(pairs/\w+/(?:photo|crop).jpg)" width="(\d+)" height="(\d+)"', page)
        for path, width, height in pictures:
            answer = client.get(f"/{path}")
            picture = Image.open(io.BytesIO(answer.content))
            assert picture.size == (int(width), int(height))
            assert "immutable" in answer.headers["cache-control"]
        photo_HW3 = np.asarray(Image.open(io.BytesIO(client.get(f"/{pictures[0][0]}").content))).astype(int)
        purple = (abs(photo_HW3 - [214, 0, 147]) < 60).all(2)
        assert 20 < purple.sum() < photo_HW3.shape[0] * photo_HW3.shape[1] / 8


@pytest.mark.parametrize("fault", ["gone", "changed"])
def test_where_the_photograph_is_not_at_hand_the_crop_of_the_set_is_shown(toy_run: RunFolder, fault: str) -> None:
    finished = FinishedRun.open(toy_run)
    for part in finished.parts:
        rows = [
            replace(row, path=None if fault == "gone" else str(Path(row.path or "").with_name("000000000018.png")))
            for row in finished.rows(part, ImageRow)
        ]
        toy_run.write_rows("images", f"{part:05d}.parquet", rows=rows, row_type=ImageRow, fingerprint="")
    drawer = Drawer(finished)
    for item in choose_items(finished, order="random", size=9, seed=0):
        pictures = drawer.draw(item)
        assert pictures.missing
        crop_HW3 = np.asarray(Image.open(io.BytesIO(pictures.crop))).astype(int)
        shape = next(shape for image, noun, shape in toy.PAIRS if (image, noun) == (item.image_id, item.noun))
        assert (abs(crop_HW3 - toy.COLOURS[shape]) < 25).all(2).sum() > 500, f"the {shape} is seen"
    with calling(toy_run, reviewer="ann") as client:
        assert re.search(r"The photograph is not at hand .*: this is the crop of the set\.", client.get("/").text)
    with calling(toy_run, reviewer="ann") as client:
        shutil.rmtree(Path(toy_run.root) / "shards")  # as by a run that is making them anew
        assert "nor is its crop in the set" in client.get("/").text


def test_what_comes_from_elsewhere_or_is_no_verdict_is_refused_and_writes_nothing(toy_run: RunFolder) -> None:
    with calling(toy_run) as client:
        assert client.post("/verdict", data={"pair": "x", "verdict": "right"}).status_code == 403, "who judges?"
        for name in ("../x", "", "a b"):
            answer = client.post("/name", data={"reviewer": name})
            assert (answer.status_code, "set-cookie" in answer.headers) == (422, False)
        client.cookies.set("maskmine_reviewer", "..%2F..%2Fx")
        assert "Who judges?" in client.get("/").text
    with calling(toy_run, reviewer="ann") as client:
        pair = token(client.get("/").text)
        for data, headers, status in (
            ({"pair": pair, "verdict": "right"}, {"origin": "http://evil.example"}, 403),
            ({"pair": pair, "verdict": "right"}, {"origin": "null"}, 403),
            ({"pair": pair, "verdict": "right"}, {"sec-fetch-site": "cross-site"}, 403),
            ({"pair": pair, "verdict": "right"}, {"content-type": "x; charset=undefined"}, 400),
            ({"pair": pair, "verdict": "maybe"}, {}, 422),
            ({"pair": "none", "verdict": "right"}, {}, 404),
            ({"pair": pair, "verdict": "right" * 9999}, {}, 413),
        ):
            answer = client.post("/verdict", data=data, headers=headers)
            assert answer.status_code == status
            assert "Go on with the next pair" in answer.text
        assert client.get("/", headers={"host": "evil.example"}).status_code == 400
        for path in ("pairs/x/photo.jpg", f"pairs/{pair}/other.jpg", "static/review.html.j2", "static/..%2fstore.py"):
            assert client.get(f"/{path}").status_code == 404
        assert client.post("/verdict", data={"pair": pair, "verdict": "right"}).status_code == 200
    assert len(stored(toy_run)) == 1


def test_a_noun_that_is_html_is_text(run: RunFolder, toy_run: RunFolder) -> None:
    from maskmine.pipelines.review.page import Shown, render_pair
    from maskmine.pipelines.review.pictures import Pictures

    (item,) = items(1)
    item = replace(item, noun="<b>", caption="a <b> c", start=2, end=5)
    queue = Queue([item], Store(run))
    shown = Shown(run="<i>", order="random", progress=queue.progress())
    pictures = Pictures(b"", (1, 1), b"", (1, 1), "<u>")
    page = render_pair(shown, item, pictures, reviewer="ann", last=None, ahead=[])
    assert "a <mark>&lt;b&gt;</mark> c" in page
    assert "<i>" not in page
    assert "<u>" not in page


# --- the run ----------------------------------------------------------------------------------------------------------


def test_sweep_and_verify_leave_verdicts_alone(toy_run: RunFolder) -> None:
    add(Store(toy_run), CAT, "right")
    sweep(toy_run)
    assert stored(toy_run) == [("ann", "cat", "right")]
    assert list(verify_run(toy_run)) == []
