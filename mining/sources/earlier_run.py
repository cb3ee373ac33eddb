"""The images of an earlier run, with or without its captions."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field

from maskmine.mining.sources.entries import NOTHING_MORE, Entry
from maskmine.mining.sources.files import FileSource, SourceFile, list_files, one_line_parquet, open_source
from maskmine.mining.sources.named_files import is_below
from maskmine.mining.storage.bounded.limits import Limits
from maskmine.mining.storage.bounded.parquet_child import StrangeParquet
from maskmine.mining.storage.locations import parse_location, rejected_location
from maskmine.mining.storage.stores import describe, open_store, os_errors
from maskmine.schemas.columns import arrow_schema
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import CaptioningRow, CaptionsRow, ImageRow, Rejection
from maskmine.schemas.sample import cell_name
from maskmine.schemas.settings import AnyPath

_READ_ROWS = 10_000
# Where a run keeps the captions that models wrote: see `pipelines/run_folder/caption_cells.py`.
_PLAIN_NAME, _HEX, _FOLDER_DIGITS = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII), re.compile(r"[0-9a-f]{64}"), 12
_MINE_AGAIN = "run the same `maskmine mine` there again"  # ends every message about a damaged run


class EarlierRun(FileSource):
    """The images of an earlier run, in the same parts.

    Other sources listed beside it may name the images by their ids.
    """

    kind: Literal["run"]
    """The `out` folder of an earlier mining run."""
    name: str | None = None
    """Name of the source in samples and in `licences.captions`; its `kind` when null."""
    files: AnyPath
    """The `out` folder of the earlier run."""
    images: AnyPath | None = None
    """Folder, or prefix of an object store, that the earlier run's images have to lie below; null takes it at its word
    of where they are, as one of your own."""
    captions: bool = True
    """Whether the captions of the earlier run are mined too, those of its models included; `false` takes its images
    alone."""
    per_image: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    """Captions read of each image, the first ones: a number, or `all`."""

    @property
    def root(self) -> str:
        """Images are where the earlier run found them."""
        return ""

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders that the earlier run's paths start from, as its plan has them; none of a run made before."""
        try:
            plans = [_read_json(path) for path in self._plans()]
            listed = [root for plan in plans for of_source in plan.get("roots", ()) for root in of_source]
            named = {root for root in listed if root and isinstance(root, str)}
        except (ValueError, AttributeError, TypeError, RecursionError, InputError):  # said when it is read
            return ("",)
        return tuple(sorted(named)) or ("",)

    def list_files(self) -> list[SourceFile]:
        """The lists of images of its parts. Raises InputError when it is no run folder."""
        if describe(posixpath.join(self.files, "plan.json")) is None:
            raise InputError(f"captions.files: {self.files} is no run folder; give the `out` of a `maskmine mine` run")
        return list_files(posixpath.join(self.files, "images"), suffixes=(".parquet",))

    def _entries(self, images_per_part: int, limits: Limits) -> Iterator[Entry]:
        written = self._written_folders() if self.captions else []
        for part, name in enumerate(self._cells()):
            captions: dict[str, Any] = {}
            if self.captions:
                path = posixpath.join(self.files, "captions", name)
                captions = dict(zip(*_columns(path, CaptionsRow, limits, "image_id", "captions"), strict=True))
            for folder in written:
                path = posixpath.join(self.files, folder, name)
                for image_id, more in zip(*_columns(path, CaptioningRow, limits, "image_id", "captions"), strict=True):
                    captions[image_id] = [*(captions.get(image_id) or ()), *more]
            images = _columns(posixpath.join(self.files, "images", name), ImageRow, limits, "image_id", "path")
            position = 0
            for image_id, path in zip(*images, strict=True):
                location = self._location(path)
                for caption in captions.get(image_id) or [None]:
                    yield image_id, location, part, position, caption, NOTHING_MORE
                    position += 1

    def _written_folders(self) -> list[str]:
        """The folders with the captions that models wrote for that run, in their order."""
        captions = self._stored("identity.json").get("captions")
        found = []
        for one in captions if isinstance(captions, list) else []:
            name = str(one.get("name") or one.get("kind")) if isinstance(one, dict) else ""
            if name and one["kind"] in ("endpoint", "florence2") and _PLAIN_NAME.fullmatch(name):
                stored = self._stored(f"captioning-{name}/_fingerprint.json").get("fingerprint")
                if isinstance(stored, str) and _HEX.fullmatch(stored):
                    found.append(f"captioning-{name}/{stored[:_FOLDER_DIGITS]}")
        return found

    def _stored(self, name: str) -> dict[str, Any]:
        """A JSON object of that run; an empty one where it has none."""
        try:
            with open_source(posixpath.join(self.files, name)) as file:
                stored = json.load(file)
        except (ValueError, RecursionError, InputError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def _location(self, path: str | None) -> str:
        """Where an image is, as the earlier run has it, whose words for locations are ours."""
        if path is None:
            return rejected_location(Rejection("missing_file", "the earlier run did not know where it is"))
        file = parse_location(path)
        if self.images is None or isinstance(file, Rejection):
            return path
        if is_below(file if isinstance(file, str) else file.file, self.images):
            return path
        detail = "the earlier run has it outside of the folder that `images` names"
        return rejected_location(Rejection("outside_folder", detail))

    def _cells(self) -> list[str]:
        """The names of the run's cells, one a part. Raises InputError when parts of its plan are missing."""
        there = {file.name for file in self.list_files()}
        parts = 0
        for path in self._plans():
            try:
                parts += len(range(_read_json(path)["parts"]))
            except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
                raise InputError(f"{path}: not a whole plan; {_MINE_AGAIN}") from error
        cells = []
        for name in map(cell_name, range(parts)):
            if name not in there:
                raise InputError(f"{posixpath.join(self.files, 'images', name)}: missing; {_MINE_AGAIN}")
            cells.append(name)
        return cells

    def _plans(self) -> list[str]:
        """The run's plan, and those of what was appended to it (`pipelines/planning/versions.py`)."""
        versions = posixpath.join(self.files, "versions")
        about = describe(versions)
        names: list[str] = []
        if about is not None and about["type"] == "directory":
            fs, inner = open_store(versions)
            with os_errors(versions):
                names = sorted(posixpath.basename(str(path).rstrip("/")) for path in fs.ls(inner, detail=False))
        appended = [posixpath.join(versions, name, "plan.json") for name in names]
        return [posixpath.join(self.files, "plan.json"), *(path for path in appended if describe(path) is not None)]


def _read_json(path: str) -> Any:
    """A plan: the file of something appended has it beside other things."""
    with open_source(path) as file:
        stored = json.load(file)
    return stored.get("plan", stored)


def _columns(path: str, row_type: type, limits: Limits, *names: str) -> list[list[Any]]:
    """Columns of a cell of a run. Raises InputError when it does not have them as runs do."""
    with open_source(path) as file, one_line_parquet(path):
        strange = StrangeParquet(file, path, names, limits)
        there = set(names) & set(strange.about().columns)
        batches = [batch for batch, _ in strange.batches(_READ_ROWS)] if len(there) == len(names) else []
        no_rows = pa.schema([field for field in arrow_schema(row_type) if field.name in there]).empty_table()
        table = pa.Table.from_batches(batches) if batches else no_rows
    for name in names:
        field = arrow_schema(row_type).field(name)
        is_there = name in table.column_names and table.schema.field(name).type == field.type
        if not is_there or (table[name].null_count and not field.nullable):
            raise InputError(f"{path}: has no column `{name}` as runs have it; {_MINE_AGAIN}")
    return [table[name].to_pylist() for name in names]
