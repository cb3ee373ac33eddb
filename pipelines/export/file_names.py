"""What an export calls the images of a run: names that open them, and of which no two are alike."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from functools import cached_property

import pyarrow.compute as pc

from maskmine.mining.storage.locations import Cell, Slice, parse_location
from maskmine.mining.storage.names import path_as_stored
from maskmine.mining.storage.stores import plain_path, scheme_of
from maskmine.mining.storage.urls import URL_SCHEMES
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import ImageRow, Rejection


@dataclass(frozen=True)
class FileNames:
    """The file names of a run's images.

    A file is named by its path below the folder of its source, as in the list that named it (`train/0001.jpg`); where
    sources have different folders, by its path below the folder that they have in common. A picture in a tar is named
    as the tar's member, its key with its suffix, one in a table by its id, one at a URL by that.
    """

    finished: FinishedRun

    def name(self, image_id: str, path: str | None) -> str:
        """The file name of an image, given its location in the plan."""
        location = parse_location(path or "")
        if isinstance(location, Rejection) or not path:
            return image_id
        if isinstance(location, Slice | Cell):
            suffix = f".{location.suffix}" if isinstance(location, Slice) and location.suffix else ""
            return posixpath.join(self._folder_of(location.file), image_id + suffix)
        if scheme_of(location) in URL_SCHEMES:
            return location
        stored = plain_path(location) if scheme_of(location) == "file" else location
        stored = (path_as_stored(stored) if scheme_of(stored) == "file" else None) or stored
        root = self._root_of(stored)
        base = self._base if root is not None and self._base is not None else root
        return _below(stored, self._common if base is None else base)

    @cached_property
    def _roots(self) -> tuple[str, ...]:
        """The folders of the sources, inner ones first; none where the run does not say."""
        try:
            roots = {plain_path(source.root).rstrip("/") for source in self.finished.settings.sources}
        except (InputError, FileNotFoundError):
            roots = set()
        return tuple(sorted(roots - {""}, key=len, reverse=True))

    @cached_property
    def _base(self) -> str | None:
        """The folder that several roots have in common."""
        return _common_folder([f"{root}/" for root in self._roots]) if len(self._roots) > 1 else None

    @cached_property
    def _common(self) -> str:
        """The folder that all images have in common, for those of an earlier run, which knows no folder of its own."""
        ends: list[str] = []
        for part in self.finished.parts:
            paths = self.finished.columns(part, ImageRow, ["path"])["path"]
            bounds = pc.min_max(paths.filter(pc.starts_with(paths, "/"))).as_py()  # all paths lie between these two
            ends += [end for end in bounds.values() if end is not None]
        return _common_folder(ends)

    def _root_of(self, path: str) -> str | None:
        return next((root for root in self._roots if path.startswith(f"{root}/")), None)

    def _folder_of(self, container: str) -> str:
        """The folder of a tar or table below what the sources have in common, where they are several."""
        if self._base is None:
            return ""
        return posixpath.dirname(_below(plain_path(container), self._base))


def _below(path: str, folder: str) -> str:
    return path.removeprefix(f"{folder}/") if path.startswith(f"{folder}/") else path.lstrip("/")


def _common_folder(paths: list[str]) -> str:
    return posixpath.commonprefix(paths).rpartition("/")[0]
