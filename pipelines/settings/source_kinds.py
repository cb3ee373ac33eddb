"""What a source of images and captions is, found out from its files: the `captions` section for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from maskmine.mining.sources.coco import CocoCaptions
from maskmine.mining.sources.delimited import Asked, delimited_records, dialect_of
from maskmine.mining.sources.json_records import json_records
from maskmine.mining.sources.tables import TABLE_SUFFIXES
from maskmine.mining.storage.names import PICTURE_SUFFIXES, is_file, is_leftover, is_picture
from maskmine.mining.storage.stores import plain_path, scheme_of
from maskmine.schemas.errors import InputError

SourceKind = Literal["coco", "folder", "img2dataset", "parquet", "jsonl", "csv", "tsv", "hugging_face"]
Models = Literal["paper", "demo"]
"""The models of a new configuration: the paper's, or the demo world's."""

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "coco": (".json",),
    "img2dataset": (".tar",),
    "parquet": (".parquet",),
    "hugging_face": (".parquet",),
    "jsonl": TABLE_SUFFIXES["jsonl"],
    "csv": TABLE_SUFFIXES["csv"],
    "tsv": TABLE_SUFFIXES["tsv"],
}
# Names that data sets of captioned images give to their columns, the most telling first.
_CAPTIONS = ("caption", "captions", "text", "alt", "alt_text", "description", "sentence", "sentences", "prompt")
_PATHS = ("path", "file_name", "filename", "file", "image_path", "filepath", "image_file", "image")
_URLS = ("url", "image_url", "img_url")
_LOOKED_AT = 20  # images that are looked for before a folder is taken for the wrong one
_MOST_FOLDERS = 50  # subfolders that are tried as that of the images


def captions_section(
    source: str,
    *,
    kind: SourceKind | None,
    images: str | None,
    caption_col: str | None = None,
    path_col: str | None = None,
) -> dict[str, Any]:
    """The `captions` section for the files at a local path. Raises InputError when they are not of that kind."""
    named = _Named(images, caption_col, path_col)
    if not source or scheme_of(source) != "file":
        raise InputError(
            f"--from: `{source}` is no path on a disk; write the configuration by hand for files on an object store "
            "(docs/sources.md)"
        )
    source = plain_path(source)
    path = Path(source)
    if kind or not path.is_dir():
        return _section_of(source, path, kind or _guess_kind(path), named)
    guess = _guess_kind(path)
    try:
        return _section_of(source, path, guess, named)
    except InputError as error:
        raise InputError(f"{error} (taken for `{guess}`; if it is another kind, give that)") from error


@dataclass(frozen=True, slots=True)
class _Named:
    """What the user says of the source: the folder of the images, and columns."""

    images: str | None
    caption_col: str | None
    path_col: str | None


def _section_of(source: str, path: Path, kind: SourceKind, named: _Named) -> dict[str, Any]:
    images, caption_col = named.images, named.caption_col
    if images and kind in ("folder", "img2dataset", "hugging_face"):
        raise InputError(f"--images: a source of kind `{kind}` holds its images; leave the option out")
    if caption_col and kind in ("folder", "coco"):
        raise InputError(f"--caption-col: a source of kind `{kind}` has no columns; leave the option out")
    if named.path_col and kind in ("folder", "coco", "img2dataset", "hugging_face"):
        raise InputError(f"--path-col: a source of kind `{kind}` has no column of paths; leave the option out")
    if kind == "folder":
        return _of_folder(path)
    if kind == "coco":
        return _of_coco(path, images)
    first = _first_file(path, kind)
    if kind == "img2dataset":
        return {"kind": kind, "files": source, **({"caption_col": caption_col} if caption_col else {})}
    if kind == "hugging_face":
        return _of_hugging_face(source, first, caption_col)
    return _of_table(source, first, kind, named)


def _guess_kind(path: Path) -> SourceKind:
    names = [path.name] if not path.is_dir() else sorted(f.name for f in path.iterdir() if not is_leftover(f.name))
    for kind in ("img2dataset", "parquet", "jsonl", "csv", "tsv"):
        first = next((name for name in names if name.endswith(_SUFFIXES[kind])), None)
        if first and kind == "parquet":
            return "hugging_face" if _image_column(path / first if path.is_dir() else path) else "parquet"
        if first:
            return kind
    if path.is_dir() and not _annotation_files(path):
        return "folder"
    if path.is_dir() or path.suffix == ".json":
        return "jsonl" if path.is_file() and _is_json_list(path) else "coco"
    kinds = "coco, folder, img2dataset, parquet, jsonl, csv, tsv, hugging_face"
    raise InputError(f"{path}: {_absent(path) or 'no kind of source is known by this name'}; give one of {kinds}")


def _of_folder(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise InputError(f"{path}: {_absent(path) or 'not a folder'}; give a folder with images and a .txt beside each")
    files = ((file, file.relative_to(path).as_posix()) for file in path.rglob("*"))
    images = [file for file, name in files if is_picture(name) and not is_leftover(name)]
    if not images:
        raise InputError(f"{path}: no image in it ({', '.join(PICTURE_SUFFIXES)}); give another folder")
    if not any(image.with_suffix(".txt").is_file() for image in images):
        raise InputError(f"{path}: images, and no .txt with captions beside any of them; add them")
    return {"kind": "folder", "files": str(path)}


def _of_coco(path: Path, images: str | None) -> dict[str, Any]:
    files = [path] if not path.is_dir() else _annotation_files(path)
    if not files or not files[0].is_file() or files[0].suffix != ".json":
        raise InputError(f"{path}: {_absent(path) or 'no captions*.json'}; give the captions file of a COCO data set")

    annotations = files[0]
    entries = CocoCaptions(annotations=str(annotations), images="", outside=True).read_images()
    names = [name for _, (_, name) in zip(range(_LOOKED_AT), entries, strict=False)]
    if not names:
        raise InputError(f"{annotations}: `images` is empty; there is nothing to mine")
    folder = next((folder for folder in _image_folders(annotations, images) if _has_any(folder, names)), None)
    if folder is None:
        where = f"in {images}" if images else "in a folder beside it"
        raise InputError(f"{annotations}: its images, such as {names[0]}, are not {where}; give --images DIR")
    return {"kind": "coco", "annotations": str(annotations), "images": str(folder)}


def _of_hugging_face(source: str, first: Path, caption_col: str | None) -> dict[str, Any]:
    image_col = _image_column(first)
    if image_col is None:
        columns = ", ".join(_columns(first, "parquet"))
        raise InputError(f"{first}: no column of image bytes among {columns}; `maskmine init parquet` reads paths")
    caption = _caption_column(first, _columns(first, "parquet"), caption_col)
    return {"kind": "hf", "files": source, "image_col": image_col, "caption_col": caption}


def _of_table(source: str, first: Path, kind: SourceKind, named: _Named) -> dict[str, Any]:
    columns = _columns(first, kind, named)
    image_col = _image_column(first) if kind == "parquet" else None
    url_col = None if named.path_col else _pick(columns, _URLS)
    if named.path_col:
        path_col = named.path_col if named.path_col in columns else None
    else:
        path_col = _pick((column for column in columns if column != image_col), _PATHS)
    if not (path_col or url_col) and image_col and not named.path_col:
        raise InputError(f"{first}: its column `{image_col}` holds the images; give the kind `hugging_face`")

    # Both columns in one answer, where neither is found.
    faults = []
    try:
        caption_col = _caption_column(first, columns, named.caption_col)
    except InputError as error:
        caption_col = ""
        faults.append(str(error))
    if not (path_col or url_col):
        what = f"no column `{named.path_col}`" if named.path_col else "no column names the images"
        faults.append(f"{first}: {what} among {', '.join(columns)}; give --path-col NAME")
    if faults:
        raise InputError("; ".join([faults[0], *(fault.removeprefix(f"{first}: ") for fault in faults[1:])]))
    section = {"kind": kind, "files": source, "caption_col": caption_col}
    if path_col:
        return {**section, "path_col": path_col, **({"images": named.images} if named.images else {})}
    return {**section, "url_col": url_col}


def _first_file(path: Path, kind: SourceKind) -> Path:
    suffixes = _SUFFIXES[kind]
    if path.is_dir():
        named = (file for file in path.iterdir() if file.name.endswith(suffixes))
        files = sorted(file for file in named if not is_leftover(file.name))
    elif "*" in path.name:
        files = sorted(path.parent.glob(path.name))
    else:
        files = [path] if path.is_file() else []
    if not files:
        raise InputError(f"{path}: {_absent(path) or f'no {suffixes[0]} file in it'}; give the files of `{kind}`")
    if not files[0].name.endswith((*suffixes, ".json") if kind == "jsonl" else suffixes):
        raise InputError(f"{files[0]}: not of the kind `{kind}`, whose files end in {' or '.join(suffixes)}")
    return files[0]


def _columns(file: Path, kind: SourceKind, named: _Named | None = None) -> list[str]:
    """The names of a table's columns. Raises InputError when it is not of that kind, or has none."""
    asked = {column for column in (named.caption_col, named.path_col) if column} if named else set[str]()
    columns = _read_columns(file, kind, asked)
    if not columns:
        raise InputError(f"{file}: empty; give a file of kind `{kind}` with at least one record")
    return columns


def _read_columns(file: Path, kind: SourceKind, asked_for: set[str]) -> list[str]:
    try:
        if kind == "parquet":
            import pyarrow.parquet as pq

            return list(pq.read_schema(file).names)
    except (OSError, ValueError) as error:  # Arrow's own faults are ValueErrors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{file}: cannot be read as {kind} ({reason}); give another file or another kind") from error
    if kind == "jsonl":
        records = json_records(str(file), columns={*_CAPTIONS, *_PATHS, *_URLS, *asked_for})
        columns = None
    else:
        asked = Asked(kind="csv" if kind == "csv" else "tsv", columns={})
        records, columns = delimited_records(str(file), asked), dialect_of(str(file), asked).columns
    first = [record for _, record in islice(records, _LOOKED_AT)]
    faults = [record for record in first if isinstance(record, str)]
    if faults and len(faults) == len(first):
        raise InputError(f"{file}: {faults[0]}")
    return list(columns if columns is not None else next((one for one in first if isinstance(one, dict)), ()))


def _is_json_list(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(200).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["


def _image_column(file: Path) -> str | None:
    """The column of a Parquet file that holds the bytes of images, as Hugging Face stores them."""
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file}: cannot be read as Parquet ({str(error).splitlines()[0]}); give another file"
        ) from error
    with_bytes = [field.name for field in schema if _holds_bytes(field.type)]
    return _pick(with_bytes, ("image", "img", "jpg")) or next(iter(with_bytes), None)


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0))


def _caption_column(file: Path, columns: Sequence[str], given: str | None) -> str:
    caption = given if given in columns else None if given else _pick(columns, _CAPTIONS)
    if caption is None:
        what = f"no column `{given}`" if given else "no column looks like captions"
        raise InputError(f"{file}: {what} among {', '.join(columns)}; give --caption-col NAME")
    return caption


def _pick(columns: Iterable[str], names: Sequence[str]) -> str | None:
    by_lower = {column.lower(): column for column in reversed(list(columns))}
    return next((by_lower[name] for name in names if name in by_lower), None)


def _annotation_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("captions*.json"), *folder.glob("annotations/captions*.json")])


def _image_folders(annotations: Path, given: str | None) -> list[Path]:
    """Folders in which the images of a COCO file may lie, the likely ones first."""
    if given:
        return [Path(given)]
    bases = list(dict.fromkeys([annotations.parent, annotations.parent.parent]))
    likely = (annotations.stem.removeprefix("captions_"), "images", "photos", ".")
    others = [folder for base in bases for folder in sorted(base.iterdir())[:_MOST_FOLDERS] if folder.is_dir()]
    return [*(base / name for name in likely for base in bases), *others]


def _has_any(folder: Path, names: Sequence[str]) -> bool:
    return any(is_file(str(folder / name)) for name in names)


def _absent(path: Path) -> str | None:
    return None if path.exists() else "no such file or folder"
