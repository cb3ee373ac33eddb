"""One bad record never stops a run and never removes another: a world of faulty pictures and captions, mined whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.steps.status import rejected_images
from maskmine.schemas.errors import InputError, OtherPlanError
from maskmine.schemas.mask import Mask
from tests.support import toy
from tests.support.hostile.corrupt_images import CAPTIONS, PICTURES
from tests.support.runs import run_toy, samples


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "images").mkdir()
    images, captions, instances = [], [], []
    cases = {**{name: ("A square.", make) for name, (make, _) in PICTURES.items()}}
    cases |= {name: (caption, PICTURES["good"][0]) for name, (caption, _) in CAPTIONS.items()}
    mask = Mask.from_array(toy.shape_mask("square"))
    for number, (name, (caption, make)) in enumerate(cases.items(), start=1):
        if make is not None:
            (folder / "images" / f"{number}.jpg").write_bytes(make())
        images.append({"id": name, "file_name": f"{number}.jpg", "height": toy.HEIGHT_PX, "width": toy.WIDTH_PX})
        captions.append({"id": number, "image_id": name, "caption": caption})
        rle = {"size": [toy.HEIGHT_PX, toy.WIDTH_PX], "counts": mask.counts.decode("ascii")}
        instances.append({"id": number, "image_id": name, "category_id": 1, "segmentation": rle, "iscrowd": 0})
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    categories = [{"id": 1, "name": "square"}]
    instances_json = {"images": images, "annotations": instances, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(instances_json))
    return folder


def test_every_faulty_record_is_rejected_with_its_reason_and_every_other_gives_its_pair(world: Path) -> None:
    run, outcome, _ = run_toy(toy.write_config(world), "shards.images_per_part=8")
    expected = {name: reason for name, (_, reason) in (PICTURES | CAPTIONS).items()}
    found = {image.image_id: image.reason for image in rejected_images(run)}
    assert found == {name: reason for name, reason in expected.items() if reason}
    assert {row.image_id for row in samples(run)} == {name for name, reason in expected.items() if reason is None}
    assert outcome.manifest is not None
    totals = outcome.manifest.totals
    assert totals.images == totals.with_pairs + sum(totals.rejected.values()) == len(expected)
    assert [str(problem) for problem in verify_run(run)] == []


def test_every_rejection_says_what_is_wrong_without_naming_the_machine(world: Path) -> None:
    run, _, _ = run_toy(toy.write_config(world), f"out={world / 'details'}")
    for image in rejected_images(run):
        assert image.detail, image
        assert str(world) not in image.detail
        assert "\n" not in image.detail


def test_a_list_all_of_whose_images_lie_elsewhere_is_refused_before_anything_is_mined(tmp_path: Path) -> None:
    world = toy.write_toy_world(tmp_path)
    config = toy.write_config(world, captions=elsewhere(world))
    with pytest.raises(InputError) as refused:
        run_toy(config)
    (line,) = str(refused.value).splitlines()
    assert "captions.json: all images that it names lie elsewhere (../images/" in line
    assert "give `captions.images`, the folder that they lie below, or `captions.outside: true`" in line
    assert not (world / "run").exists() or not any((world / "run").iterdir())
    _, outcome, _ = run_toy(config, "captions.outside=true")
    assert outcome.manifest is not None
    assert outcome.manifest.totals.with_pairs == 4


def test_of_several_sources_the_one_is_named_and_a_list_with_one_image_in_its_folder_goes_on(tmp_path: Path) -> None:
    world = toy.write_toy_world(tmp_path)
    bad = elsewhere(world)
    good = {**bad, "images": str(world / "images"), "name": "good"}
    with pytest.raises(InputError, match=r"or `captions\.1\.outside: true`"):
        run_toy(toy.write_config(world, captions=[good, bad]))
    captions = json.loads((world / "captions.json").read_text())
    captions["images"][0]["file_name"] = "11.png"
    (world / "captions.json").write_text(json.dumps(captions))
    run, _, _ = run_toy(toy.write_config(world, captions=bad))
    assert sum(image.reason == "outside_folder" for image in rejected_images(run)) > 1


def test_a_url_among_paths_costs_its_record_and_only_a_list_of_urls_is_refused(tmp_path: Path) -> None:
    world = toy.write_toy_world(tmp_path)
    rows = [{"id": image.id, "path": f"images/{image.id:012d}.png", "caption": "A square."} for image in toy.IMAGES]
    rows[0]["path"] = "http://127.0.0.1:1/a.png"
    write_jsonl(world, rows)
    source = {"kind": "jsonl", "files": str(world / "list.jsonl"), "id_col": "id", "path_col": "path"}
    config = toy.write_config(world, captions=source)
    run, outcome, _ = run_toy(config)
    assert outcome.manifest is not None
    refused = [(image.image_id, image.reason) for image in rejected_images(run) if image.reason == "fetch_refused"]
    assert refused == [(str(rows[0]["id"]), "fetch_refused")]
    assert outcome.manifest.totals.with_pairs > 0
    assert run_toy(config)[1].exceeded == ()  # the plan is taken up again
    with pytest.raises(OtherPlanError, match="a plan without its images at URLs"):
        run_toy(config, "regions.decoding.fetch.allow=true")
    write_jsonl(world, [{**row, "path": f"https://127.0.0.1/{row['id']}.png"} for row in rows])
    with pytest.raises(InputError, match=r"list.jsonl: has URLs, and nothing is fetched .* add --fetch allow"):
        run_toy(config, f"out={world / 'other'}")


def write_jsonl(world: Path, rows: list[dict[str, object]]) -> None:
    (world / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def elsewhere(world: Path) -> dict[str, str]:
    """The captions of a world, written again so that all images lie beside the folder that they should lie in."""
    (world / "none").mkdir()
    captions = json.loads((world / "captions.json").read_text())
    for image in captions["images"]:
        image["file_name"] = f"../images/{image['file_name']}"
    (world / "captions.json").write_text(json.dumps(captions))
    return {"kind": "coco", "annotations": str(world / "captions.json"), "images": str(world / "none")}
