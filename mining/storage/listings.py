"""What lies in a folder of an object store, a page at a time where the store lists in pages: fsspec holds all of it.

A folder of 100,000 parts has 300,000 objects, which fsspec describes in half a kilobyte or more each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

_PAGE: int | None = None  # objects in an answer at most, where it is not the store that says: S3 gives a thousand


def in_folder(fs: Any, folder: str) -> Iterator[str]:
    """The paths of what lies in a folder; none where there is no folder."""
    with suppress(FileNotFoundError, NotADirectoryError):
        found = _pages(fs, folder, delimiter="/") if _in_pages(fs) else fs.ls(folder, detail=False)
        for path in found:
            yield str(path).rstrip("/")


def below_folder(fs: Any, folder: str) -> Iterator[str]:
    """The paths of all files below a folder, in the folders of it too; none where there is no folder."""
    with suppress(FileNotFoundError, NotADirectoryError):
        yield from map(str, _pages(fs, folder, delimiter="") if _in_pages(fs) else fs.find(folder))


def _in_pages(fs: Any) -> bool:
    return "s3" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _pages(fs: Any, folder: str, *, delimiter: str) -> Iterator[str]:
    """S3's answers to ListObjectsV2; s3fs tries again where one fails, as it does for its own requests."""
    bucket, key, _ = fs.split_path(folder)
    prefix = f"{key.rstrip('/')}/" if key.strip("/") else ""
    asked = {"Bucket": bucket, "Prefix": prefix, "Delimiter": delimiter, **fs.req_kw}
    if _PAGE is not None:
        asked["MaxKeys"] = _PAGE
    while True:
        answer = fs.call_s3("list_objects_v2", **asked)
        for folders in answer.get("CommonPrefixes", ()):
            yield f"{bucket}/{folders['Prefix']}"
        for entry in answer.get("Contents", ()):
            if not entry["Key"].endswith("/"):  # an object that some programs write for a folder
                yield f"{bucket}/{entry['Key']}"
        if not answer.get("IsTruncated"):
            return
        asked["ContinuationToken"] = answer["NextContinuationToken"]
