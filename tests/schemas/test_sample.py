"""A sample survives the tar, and the tar's bytes are fixed by its samples."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskmine.schemas.sample import (
    Sample,
    _tar_header,
    member_names,
    safe_id,
    sample_key,
    write_end_of_tar,
    write_sample,
)

KEYS = st.from_regex(r"[A-Za-z0-9_-]{1,64}-\d{3}", fullmatch=True)
SAMPLES = st.builds(
    Sample,
    key=KEYS,
    image=st.binary(max_size=2000),
    mask_png=st.binary(max_size=600),
    noun=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    record=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), st.integers() | st.none(), max_size=3),
)


def tar_of(samples: list[Sample]) -> bytes:
    file = io.BytesIO()
    size = sum(write_sample(file, sample, image_format="jpg") for sample in samples)
    write_end_of_tar(file, size_bytes=size)
    return file.getvalue()


@given(st.lists(SAMPLES, max_size=3))
def test_samples_survive_the_tar(samples: list[Sample]) -> None:
    with tarfile.open(fileobj=io.BytesIO(tar_of(samples))) as tar:
        read = [(info.name, tar.extractfile(info).read()) for info in tar]
    expected = [
        pair
        for sample in samples
        for pair in zip(
            member_names(sample.key, "jpg"),
            [sample.image, sample.mask_png, sample.noun.encode(), None],
            strict=True,
        )
    ]
    assert [name for name, _ in read] == [name for name, _ in expected]
    assert [content for name, content in read if not name.endswith(".json")] == [
        c for _, c in expected if c is not None
    ]
    assert [json.loads(content) for name, content in read if name.endswith(".json")] == [s.record for s in samples]


def test_a_tar_without_samples_is_valid_and_empty() -> None:
    with tarfile.open(fileobj=io.BytesIO(tar_of([]))) as tar:
        assert tar.getmembers() == []
    assert len(tar_of([])) == tarfile.RECORDSIZE


def test_owner_mode_and_time_are_fixed() -> None:
    with tarfile.open(fileobj=io.BytesIO(tar_of([Sample("1-000", b"a", b"b", "cat", {})]))) as tar:
        facts = {(i.mode, i.mtime, i.uid, i.gid, i.uname, i.gname) for i in tar}
    assert facts == {(0o644, 0, 0, 0, "", "")}


def test_the_members_stand_in_the_order_of_the_format() -> None:
    assert member_names("7-000", "png") == ("7-000.png", "7-000.mask.png", "7-000.txt", "7-000.json")


def test_an_id_that_is_no_key_is_replaced_by_its_hash() -> None:
    assert safe_id("000000493652") == "000000493652"
    assert safe_id("a/b.jpg") == "4a51636246e7c418"
    assert sample_key("with.dot", 3) == f"{safe_id('with.dot')}-003"


@given(st.text(max_size=100))
def test_every_key_is_safe_for_every_reader(image_id: str) -> None:
    key = sample_key(image_id, 12)
    assert len(key) <= 68
    assert set(key) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


@pytest.mark.parametrize("size_bytes", [0, 1, 512, 10**6, 8**11 - 1])
@pytest.mark.parametrize("name", ["7-000.jpg", "a" * 100, "a/" + "b" * 99, "é-000.txt", "x"])
def test_a_header_is_the_one_that_tarfile_writes(name: str, size_bytes: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size_bytes, 0o644
    assert _tar_header(name, size_bytes) == info.tobuf(tarfile.USTAR_FORMAT)
