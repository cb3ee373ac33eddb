"""Push, against a hub on loopback that fails, refuses and is cut; and runs that are killed while they push."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest

import maskmine
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.push import hub as push_hub
from maskmine.pipelines.push.address import Address, parse_address
from maskmine.pipelines.push.push import Push, push_set
from maskmine.schemas.errors import InputError
from tests.support.hub.uploads import DataSet, Fault, UploadHub, upload_hub
from tests.support.killed import killed_by
from tests.support.toy_shards import contents, export, write_toy_shards

URL, REPO = "hf://datasets/org/pairs", "org/pairs"
PARTS = 24
KILLS = int(os.environ.get("MASKMINE_TEST_KILLS", "4"))  # moments at which a push is killed
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),  # so Python 3.12 comments on any fork
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # of the hub's library, by its own client
]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    """An empty hub, which is the only one that this process knows; attempts are made without pauses."""
    with upload_hub() as hub:
        hub.know_alone(tmp_path / "cache", monkeypatch)
        monkeypatch.setattr(push_hub, "time", SimpleNamespace(sleep=lambda _: None))
        yield hub


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of many parts, and beside it the set that a push makes of it."""
    folder = tmp_path_factory.mktemp("stored") / "pairs"
    write_toy_shards(folder, samples=10 * PARTS, scores=True)
    (folder / "plan.json").write_text("{}")
    (folder / "_SUCCESS").touch()
    export(folder, folder.with_name("pairs.push"), "hf", by_part=True)
    return folder


@pytest.fixture
def run(stored: Path, tmp_path: Path) -> Path:
    """A copy of both."""
    shutil.copytree(stored.with_name("pairs.push"), tmp_path / "pairs.push")
    return Path(shutil.copytree(stored, tmp_path / "pairs"))


def with_licences(run: Path, **licences: str) -> None:
    """Say in the manifest under which licences the captions, images and the model of the proposals are."""
    manifest = json.loads((run / "manifest.json").read_text())
    sources = [{"role": role, "name": "mine", "licence": licences[role]} for role in ("captions", "images")]
    model = {"role": "proposals", "name": "some/maskformer", "sha256": "0" * 64, "licence": licences["model"]}
    (run / "manifest.json").write_text(json.dumps({**manifest, "sources": sources, "models": [model]}))


def change_part(run: Path, scratch: Path, number: int) -> None:
    """Put other pictures into one part of a run."""
    other = write_toy_shards(scratch, samples=10 * PARTS, scores=True, seed=1)
    manifest, theirs = (json.loads((folder / "manifest.json").read_text()) for folder in (run, other))
    for suffix in ("tar", "parquet"):
        shutil.copy(other / "shards" / f"{number:05d}.{suffix}", run / "shards" / f"{number:05d}.{suffix}")
    manifest["shards"][number] = theirs["shards"][number]
    (run / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "f" * 64}))


def push(folder: Path, *options: str, url: str = URL) -> int:
    return run_app(["push", str(folder), url, *options])


def set_on_disk(folder: Path) -> dict[str, bytes]:
    """What of an export goes to the hub as it is."""
    return {name: content for name, content in contents(folder).items() if name not in ("_SUCCESS", "SHA256SUMS")}


def assert_whole(files: dict[str, bytes]) -> None:
    """The checksums are those of all files but their own and the marker."""
    sums = {
        name: digest for digest, _, name in (line.partition("  ") for line in files["SHA256SUMS"].decode().splitlines())
    }
    hashed = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert sums == {name: hashed[name] for name in hashed if name not in ("SHA256SUMS", "maskmine.json")}


# What arrives.


def test_a_run_becomes_a_set_that_datasets_opens(
    hub: UploadHub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    shutil.rmtree(run.with_name("pairs.push"))
    assert push(run) == 0
    files = hub.files(REPO)
    assert set_on_disk(run.with_name("pairs.push")).items() <= files.items()
    assert files.keys() - contents(run.with_name("pairs.push")).keys() == {"croissant.json", "maskmine.json"}
    assert json.loads(files["maskmine.json"]) == {"set": "pairs", "form": "hf"}
    assert_whole(files)
    said = capsys.readouterr()
    assert re.search(rf"{hub.url}/datasets/{REPO}: 29 files, .* commit [0-9a-f]{{40}}\n", said.out)
    assert "not known to allow commercial use: captions and images of this run: licence unknown" in said.err
    for name, content in files.items():
        (tmp_path / "back" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "back" / name).write_bytes(content)
    rows = datasets.load_dataset(str(tmp_path / "back"), cache_dir=str(tmp_path / "datasets"))["train"]
    assert len(rows) == 10 * PARTS
    assert isinstance(rows.features["image"], datasets.Image)


@pytest.mark.filterwarnings("ignore")
def test_the_croissant_describes_files_and_columns(hub: UploadHub, run: Path, tmp_path: Path) -> None:
    import mlcroissant

    push(run)
    (tmp_path / "croissant.json").write_bytes(hub.files(REPO)["croissant.json"])
    described = mlcroissant.Dataset(jsonld=str(tmp_path / "croissant.json")).metadata
    assert {"pairs/text", "pairs/similarity"} < {field.id for field in described.record_sets[0].fields}
    assert "data/train-00000-of-00024.parquet" in {one.id for one in described.distribution}


def test_shards_go_as_they_are_where_that_is_asked_for(hub: UploadHub, run: Path) -> None:
    assert push(run, "--as", "webdataset") == 0
    files = hub.files(REPO)
    tars = sorted((run / "shards").glob("*.tar"))
    assert [files[f"train/{path.name}"] for path in tars] == [path.read_bytes() for path in tars]


def test_a_finished_export_goes_as_it_is_without_what_others_put_there(
    hub: UploadHub, run: Path, tmp_path: Path
) -> None:
    out = export(run, tmp_path / "chosen", "openclip")
    expected = set_on_disk(out)
    (out / "train" / ".DS_Store").write_bytes(b"x")
    (out / "[a] cache*").write_bytes(b"x")
    assert push(out) == 0
    files = hub.files(REPO)
    assert {name: files[name] for name in expected} == expected
    assert files.keys() - expected.keys() == {"SHA256SUMS", "croissant.json", "maskmine.json"}
    assert json.loads(files["maskmine.json"]) == {"set": "chosen", "form": "openclip"}


def test_it_can_be_private_and_on_a_branch(hub: UploadHub, run: Path) -> None:
    assert push(run, "--private", "--revision", "v1") == 0
    assert hub.sets[REPO].private
    assert_whole(hub.files(REPO, "v1"))
    assert hub.files(REPO) == {}


def test_python_pushes_too(hub: UploadHub, run: Path) -> None:
    pushed = maskmine.push(run, URL)
    assert pushed.files == {name: len(content) for name, content in hub.files(REPO).items()}


# What is sent again.


def test_what_is_there_is_not_sent_again_and_a_part_that_changed_is_sent_alone(
    hub: UploadHub, run: Path, tmp_path: Path
) -> None:
    assert push(run) == 0
    first_bytes, commits = hub.received_bytes, hub.sets[REPO].commits
    hub.received_bytes, hub.stored = 0, []
    assert push(run) == 0
    assert hub.stored == []
    assert hub.sets[REPO].commits == commits
    assert hub.received_bytes < first_bytes / 20

    change_part(run, tmp_path / "other", 5)
    hub.received_bytes = 0
    assert push(run) == 0
    assert len(hub.stored) == 1
    assert hub.received_bytes < first_bytes / 10
    assert set_on_disk(run.with_name("pairs.push")).items() <= hub.files(REPO).items()
    assert_whole(hub.files(REPO))


def test_files_that_the_set_has_no_more_are_removed_and_those_of_others_stay(
    hub: UploadHub, stored: Path, tmp_path: Path
) -> None:
    large, small = export(stored, tmp_path / "a" / "x", "hf", samples_per_piece=60), tmp_path / "b" / "x"
    export(stored, small, "hf", samples_per_piece=120)
    push(large)
    hub.sets[REPO].branches["main"]["notes.md"] = b"by a person"
    assert push(small) == 0
    names = {name for name in hub.files(REPO) if name.startswith("data/")}
    assert names == {"data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"}
    assert "notes.md" in hub.files(REPO)


# Faults of the hub and the network.


FAULTS = {
    "errors": [
        Fault(path, 500)
        for path in ("auth-check", "tree", "create$", "validate", "preupload", "batch", "PUT", "commit")
    ],
    "busy": [Fault("preupload", 429, 3), Fault("PUT", 503, 4), Fault("/commit/", 503, 2)],
    "half an upload": [Fault("PUT", None, 3)],
    "a cut in the commit": [Fault("/commit/", None, 2)],
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_that_pass_change_nothing(hub: UploadHub, run: Path, name: str) -> None:
    hub.faults = [Fault(fault.pattern, fault.status, fault.times) for fault in FAULTS[name]]
    assert push(run) == 0
    assert [fault for fault in hub.faults if fault.times] == []
    assert set_on_disk(run.with_name("pairs.push")).items() <= hub.files(REPO).items()
    assert_whole(hub.files(REPO))


@pytest.mark.parametrize("status", [503, None])
def test_a_hub_that_is_down_is_one_line_and_the_next_run_goes_on(
    hub: UploadHub, run: Path, status: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults = [Fault("/commit/main", status, 10**6)]
    assert push(run) == 4
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("maskmine:")]
    assert re.search(rf"{URL}: the hub (answers 503|does not answer) .*; nothing is lost: run the same command", line)
    hub.faults, hub.stored = [], []
    assert push(run) == 0
    assert_whole(hub.files(REPO))


def test_a_push_that_is_killed_goes_on_to_the_same_content(
    hub: UploadHub, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """At random moments, after so many bytes; and what arrived whole is not sent again."""
    asked = Push(str(run), Address(REPO, "main"))
    push_set(asked, say=lambda line: None)
    whole, all_bytes = hub.files(REPO), hub.received_bytes
    moments, killed = random.Random(7), 0
    for _ in range(KILLS):
        hub.sets, hub.objects, hub.stored, hub.received_bytes = {}, {}, [], 0
        moment = moments.randrange(all_bytes)
        killed += killed_by(
            lambda: push_set(asked, say=lambda line: None),
            lambda kill, moment=moment: setattr(hub, "on_bytes", lambda received: received > moment and kill()),
        )
        hub.on_bytes = None
        push_set(asked, say=lambda line: None)
        assert hub.files(REPO) == whole
        assert len(hub.stored) == len(set(hub.stored)) == PARTS
    assert killed >= KILLS * 3 // 4


# What is refused.


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("org/pairs", r"org/pairs: no data set on the hub; give hf://datasets/ORG/NAME"),
        ("hf://org/pairs", "no data set on the hub"),
        ("hf://models/org/pairs", "no data set on the hub"),
        ("s3://bucket/pairs", "no data set on the hub"),
        ("hf://datasets/pairs", "no data set on the hub"),
        ("hf://datasets/org/pairs/more", "no data set on the hub"),
        ("hf://datasets/org/my pairs", "the hub takes names of letters, digits"),
        ("hf://datasets/org/a..b", "the hub takes names"),
        ("hf://datasets/org/-pairs", "the hub takes names"),
        ("hf://datasets/org/" + "a" * 97, "the hub takes names"),
        ("hf://datasets/org/pairs@../x", "no name of a branch"),
        ("hf://datasets/org/pairs@v 1", "no name of a branch"),
    ],
)
def test_what_is_no_address_is_one_line(
    hub: UploadHub, run: Path, url: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(run, url=url) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert hub.log == []


def test_an_address_has_a_branch() -> None:
    assert parse_address("hf://datasets/org/Pairs_1.0@v1") == Address("org/Pairs_1.0", "v1")
    assert parse_address("hf://datasets/org/pairs/", branch="v2") == Address("org/pairs", "v2")
    with pytest.raises(InputError, match="another branch"):
        parse_address("hf://datasets/org/pairs@v1", branch="v2")


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "no token; `hf auth login` with one that may write, or set HF_TOKEN"),
        ("hf_unknown", "the hub does not accept the token"),
        ("hf_reader", "the token may not write there"),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_without_the_right_to_write_nothing_is_sent(
    hub: UploadHub,
    run: Path,
    token: str | None,
    said: str,
    there: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if there:
        hub.sets[REPO] = DataSet()
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert push(run) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("maskmine:")]
    assert len(lines) == 1
    assert f"maskmine: {URL}: {said}" in lines[0]
    assert (hub.stored, hub.sets.get(REPO)) == ([], DataSet() if there else None)


def test_the_token_is_in_no_file_and_no_line(hub: UploadHub, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hub.faults = [Fault("PUT", 503, 2)]
    push(run)
    said = capfd.readouterr()
    written = [*contents(run.parent).values(), *hub.files(REPO).values(), said.out.encode(), said.err.encode()]
    assert not [content for content in written if b"hf_writer" in content]


def test_a_policy_refuses_before_the_hub_is_asked(
    hub: UploadHub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_licences(run, captions="CC-BY-4.0", images="CC-BY-4.0", model="CC-BY-NC-4.0")
    shutil.rmtree(run.with_name("pairs.push"))
    assert push(run, "--licence-policy", "commercial") == 2
    assert "refuses model (proposals) some/maskformer: CC-BY-NC-4.0 is not for" in capsys.readouterr().err
    assert hub.log == []
    assert not run.with_name("pairs.push").exists()
    assert push(run) == 0
    assert "commercial use: model (proposals) some/maskformer: CC-BY-NC-4.0" in capsys.readouterr().err
    assert push(run.with_name("pairs.push"), "--licence-policy", "commercial") == 2
    with_licences(run, captions="CC-BY-4.0", images="CC-BY-4.0", model="MIT")
    capsys.readouterr()
    assert push(run, "--licence-policy", "commercial", url="hf://datasets/org/free") == 0
    assert "commercial use" not in capsys.readouterr().err


def test_a_dry_run_lists_what_would_go_and_asks_no_hub(
    hub: UploadHub, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert push(run, "--dry-run", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert (hub.log, listed["commit"]) == ([], None)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert push(run) == 0
    assert listed["files"] == {name: len(content) for name, content in hub.files(REPO).items()}
    capsys.readouterr()
    assert push(run, "--dry-run") == 0
    assert "29 files, " in capsys.readouterr().out.splitlines()[-1]


def test_what_is_not_finished_is_not_pushed(
    hub: UploadHub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export(run, tmp_path / "out", "hf")
    (out / "_SUCCESS").unlink()
    assert push(out) == 4
    assert "the export is not finished; run the same `maskmine export` again" in capsys.readouterr().err
    (run / "_SUCCESS").unlink()
    assert push(run) == 4
    assert push(tmp_path / "nothing") == 2
    assert hub.log == []


def test_a_form_that_is_none_or_another_than_the_exports_is_one_line(
    hub: UploadHub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(run, "--as", "tfrecord") == 2
    assert "--as tfrecord: unknown; choose one of webdataset" in capsys.readouterr().err
    assert push(run.with_name("pairs.push"), "--as", "coco") == 2
    assert "pairs.push is an export as hf; leave it out" in capsys.readouterr().err
    assert hub.log == []


def test_checksums_that_lead_out_of_the_folder_are_refused(
    hub: UploadHub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.parent / "secret").write_bytes(b"x")
    with (run.with_name("pairs.push") / "SHA256SUMS").open("a") as sums:
        sums.write(f"{hashlib.sha256(b'x').hexdigest()}  ../secret\n")
    assert push(run.with_name("pairs.push")) == 2
    assert "names ../secret, which does not lie in the folder" in capsys.readouterr().err
    assert hub.log == []


def test_an_export_that_is_damaged_is_not_pushed(hub: UploadHub, run: Path, tmp_path: Path) -> None:
    out = export(run, tmp_path / "out", "hf")
    (path,) = (out / "data").iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert push(out) == 4
    path.unlink()
    assert push(out) == 4
    assert hub.stored == []


def test_another_set_is_not_overwritten_unless_that_is_asked_for(
    hub: UploadHub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.sets[REPO] = DataSet(branches={"main": {"weights.bin": b"mine", "README.md": b"mine"}})
    assert push(run) == 2
    assert "holds files that no push has put there (weights.bin); give another name, or" in capsys.readouterr().err
    assert push(run, "--replace") == 0
    assert "weights.bin" not in hub.files(REPO)
    assert push(Path(shutil.copytree(run, tmp_path / "others"))) == 2
    assert "holds the set `pairs` as hf, not `others` as hf; give another name" in capsys.readouterr().err
    assert push(run, "--as", "webdataset", "--export-to", str(tmp_path / "tars")) == 2
    assert push(run, "--as", "webdataset", "--export-to", str(tmp_path / "tars"), "--replace") == 0
    assert not [name for name in hub.files(REPO) if name.startswith("data/")]
    assert_whole(hub.files(REPO))


def test_a_repository_with_a_readme_alone_is_nobodys(hub: UploadHub, run: Path) -> None:
    hub.sets[REPO] = DataSet(branches={"main": {".gitattributes": b"", "README.md": b"soon"}})
    assert push(run) == 0
    assert_whole(hub.files(REPO))


def test_a_hub_that_is_not_to_be_asked_is_one_line(
    hub: UploadHub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert push(run) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
