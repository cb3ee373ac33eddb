"""Files that people write by hand are bounded: YAML by its depth, aliases and numbers, lists by their length."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import pytest
import yaml

from maskmine.mining.models.prompt_templates import load_templates
from maskmine.mining.nouns import load_skip_words
from maskmine.mining.proposers.detectron2 import _config_files
from maskmine.mining.storage.bounded.small_files import parse_yaml
from maskmine.mining.text.labels import load_synonyms, read_class_names
from maskmine.pipelines.engines.choose import choose_engine
from maskmine.pipelines.settings.mining import load_mining
from maskmine.schemas.errors import InputError
from maskmine.tuning.benchmarks.ade_index import read_ade_index

LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))])
MERGES = "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{b: {{<<: *a{n - 1}}}, c: *a{n - 1}}}" for n in range(1, 40))])
HOSTILE = {
    "anchors of anchors": (LAUGHS, "more than 100,000 values with all aliases written out"),
    "merges of merges": (MERGES, "more than 100,000 values with all aliases written out"),
    "an anchor to itself": ("a: &a\n  b: [*a]", "line 1: an alias that holds itself"),
    "2,000 levels": ("a: " + "[" * 2_000 + "]" * 2_000, "nested deeper than 50 levels"),
    "60 levels": ("a: " + "[" * 60 + "]" * 60, "nested deeper than 50 levels"),
    "300,000 brackets": ("[" * 300_000, "nested deeper than 50 levels"),
    "a megabyte": ("a: " + "x" * 1_000_000, "longer than 400,000 "),
    "a number of 5,000 digits": ("a: " + "9" * 5_000, "a number of 5,000 characters"),
    "a number to the base of 60": ("a: 1" + ":59" * 50_000, "a number of 150,001 characters"),
    "a date that is none": ("a: 2001-99-99", "a value that is none: month must be in 1..12"),
    "a tag that does not fit": ("a: !!timestamp x", "a value that is none"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_configuration_that_stands_for_much_is_one_line(name: str, tmp_path: Path) -> None:
    text, said = HOSTILE[name]
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        load_mining(str(tmp_path / "mine.yaml"))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_device_is_no_configuration_and_no_list(tmp_path: Path) -> None:
    for read in (
        lambda: load_mining("/dev/zero"),
        lambda: load_skip_words("/dev/zero"),
        lambda: load_templates("/dev/zero"),
        lambda: load_synonyms("/dev/zero"),
        lambda: read_class_names("/dev/zero", setting="classes"),
    ):
        with pytest.raises(InputError, match=r"/dev/zero.*longer than"):
            read()


@pytest.mark.parametrize("value", ["&a [*a]", "[" * 2_000, "!!timestamp x", "9" * 5_000])
def test_a_value_of_the_command_line_is_bounded_too(value: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("out: x")
    with pytest.raises(InputError):
        load_mining(str(tmp_path / "mine.yaml"), overrides=[f"nouns.model={value}"])
    with pytest.raises(InputError):
        choose_engine("ray", options=[f"workers={value}"])


def test_honest_aliases_are_read() -> None:
    node, value = parse_yaml("a: &a {x: 1e3, y: [1, 2]}\nb: {<<: *a, z: 2001-01-01}\nc: *a\n", place="it")
    assert value["b"]["y"] == value["c"]["y"] == [1, 2]
    assert isinstance(node, yaml.MappingNode)
    assert parse_yaml("", place="it") == (None, None)


def test_a_key_that_is_set_twice_is_refused_in_every_file(tmp_path: Path) -> None:
    (tmp_path / "synonyms.yaml").write_text("dog: [dog]\ncat: [cat]\ndog: [puppy]\n")
    with pytest.raises(InputError, match=r"synonyms\.yaml, line 3: `dog` is set in line 1 too; remove one"):
        load_synonyms(str(tmp_path / "synonyms.yaml"))
    _, value = parse_yaml('1: one\n"1": text\n', place="it")
    assert value == {1: "one", "1": "text"}


def test_configurations_based_on_each_other_end(tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"_BASE_: {base}.yaml\n")
    with pytest.raises(InputError, match="or on itself"):
        list(_config_files(tmp_path / "a.yaml"))


def test_an_index_of_ade_takes_no_room_for_what_it_says_that_it_has(tmp_path: Path) -> None:
    """In C the memo of a pickle would be an array of thirty gigabytes."""
    path = tmp_path / "index_ade20k.pkl"
    path.write_bytes(pickle.PROTO + b"\x04" + b"Nr" + struct.pack("<I", 2**31 - 1) + b".")
    with pytest.raises(InputError, match="has no lists"):
        read_ade_index(path)
