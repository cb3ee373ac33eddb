"""Names with wildcards and braces: what is there by its name is no pattern; queries read names as they are."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from braceexpand import braceexpand

from maskmine.mining.sources.files import expand_braces, list_files, source_root
from maskmine.mining.storage.query import query_cells
from maskmine.schemas.errors import InputError

FILES = (
    "ph [raw]/l.csv",
    "ph [raw]/x[1].csv",
    "ph [raw]/k{a,b}.csv",
    "w/0.tar",
    "w/1.tar",
    "w/2.tar",
    "t/a.csv",
    "v*/b.csv",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("in")
    for name in FILES:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ("pattern", "names", "root"),
    [
        ("ph [raw]/*.csv", ["k{a,b}.csv", "l.csv", "x[1].csv"], "ph [raw]"),
        ("ph [raw]/x[1].csv", ["x[1].csv"], "ph [raw]"),
        ("ph [raw]/k{a,b}.csv", ["k{a,b}.csv"], "ph [raw]"),
        ("ph [raw]", ["k{a,b}.csv", "l.csv", "x[1].csv"], "ph [raw]"),
        ("w/{0..2}.tar", ["0.tar", "1.tar", "2.tar"], "w"),
        ("w/{0,2}.tar", ["0.tar", "2.tar"], "w"),
        ("w/[12].tar", ["1.tar", "2.tar"], "w"),
        ("w/?.tar", ["0.tar", "1.tar", "2.tar"], "w"),
        ("{t,v*}/*.csv", ["t/a.csv", "v*/b.csv"], ""),
        ("v*/*.csv", ["b.csv"], "v*"),
        ("[tw]/a.csv", ["t/a.csv"], ""),
    ],
)
def test_what_is_there_by_its_name_is_no_pattern(folder: Path, pattern: str, names: list[str], root: str) -> None:
    given = str(folder / pattern)
    assert [file.name for file in list_files(given, suffixes=(".csv",))] == names
    assert source_root(given) == str(folder / root)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("w/{1..3}.tar", r"w/3\.tar: no such file, which \{1\.\.3\}\.tar names"),
        ("w/[z].tar", r"no such file \(`\*`, `\?`, `\[…\]` and `\{…\}` in it were read as a pattern\)"),
        ("no/a.tar", "a.tar: no such file; `captions.files` names"),
    ],
)
def test_a_pattern_that_names_nothing_says_how_it_was_read(folder: Path, pattern: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        list_files(str(folder / pattern), suffixes=(".tar",))


BRACES = "{00..03}.tar {3..1} {a..c}x {a,b{1,2}} {x} {1..10..3} {08..10} {a,}z no {a,b}/{0..1} {-2..1} {1..03} {c..a}"


@pytest.mark.parametrize("pattern", BRACES.split())
def test_braces_stand_for_what_webdataset_reads(pattern: str) -> None:
    assert set(expand_braces(pattern)) == set(braceexpand(pattern))


@pytest.mark.parametrize("name", ["noun=all", "noun=1", "a {x,y}", "we[i]rd", "s*r", "it's"])
def test_a_query_reads_a_cell_below_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    path = tmp_path / name / "00003.parquet"
    pq.write_table(pa.table({"noun": ["cat"]}), path)
    with query_cells([str(path)]) as (connection, cells):
        rows = connection.execute("SELECT * FROM read_parquet($cells)", {"cells": cells})
        assert (rows.fetchall(), [column[0] for column in rows.description]) == ([("cat",)], ["noun"])
