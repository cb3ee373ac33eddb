"""The identity of settings: whatever names something is replaced by the name and the content of what it names.

The manifest is made of this (`portable`), and fingerprints of what of it decides the result (`deciding`). So they are
the same wherever the files lie, on a disk or on an object store, and differ when what has the same name has other
content: a file, a folder, a package, a name on a hub.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from maskmine.mining.captions import AnySource
from maskmine.mining.regions import Regions
from maskmine.mining.sources.coco import CocoCaptions
from maskmine.mining.storage.content_hash import content_identity
from maskmine.schemas.settings import IsPath, RecordOnly, Settings, marker_of, plain_values, settings_in


def portable(settings: Settings) -> dict[str, Any]:
    """The settings that decide the result and those for the record, as plain values; what they name by name and
    SHA-256, which is None where it is not on this machine.

    Raises InputError for a path on an object store that cannot be used, and for a file that is broken.
    """
    return plain_values(settings, path_value=_content, contents=True)


def deciding(values: Any) -> Any:
    """What of `portable` values decides the result: contents without their names, and nothing for the record.

    Where a content is not known, its name and revision stand for it.
    """
    if isinstance(values, Mapping):
        if values.get("sha256") is not None:
            return {"sha256": values["sha256"]}
        named = "sha256" in values
        return {key: deciding(value) for key, value in values.items() if named or key not in FOR_THE_RECORD}
    return [deciding(value) for value in values] if isinstance(values, list | tuple) else values


def with_known(values: Any, known: Any) -> Any:
    """The values, where the content of a name is not known here with what an earlier run knew of the same name."""
    if not isinstance(values, Mapping) or not isinstance(known, Mapping):
        return values
    if values.get("sha256", "") is None and known.get("sha256") is not None:
        alike = values.get("name") == known.get("name") and values.get("revision") in (None, known.get("revision"))
        return dict(known) if alike else values
    return {key: with_known(value, known.get(key)) for key, value in values.items()}


def _for_the_record(model: type[Settings]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if marker_of(field, RecordOnly):
            yield name
        for inner in settings_in(field.annotation):
            yield from _for_the_record(inner)


FOR_THE_RECORD = frozenset(_for_the_record(Regions))
"""Names of settings of regions that are for the record alone."""


def caption_inputs(sources: Sequence[AnySource]) -> Any:
    """The identity of the caption sources, to notice that a file has changed since the plan was cut.

    One file counts by its content, several by name, size and the file system's time of their last change: a set of tars
    is too large to be read for this. Raises InputError when the files are not there.
    """
    inputs = [_caption_input(source) for source in sources]
    return inputs[0] if len(inputs) == 1 else inputs


def _caption_input(source: AnySource) -> dict[str, Any]:
    values = portable(source)
    if isinstance(source, CocoCaptions) or "sha256" in values["files"]:
        return values
    digest, files = hashlib.sha256(), 0
    for file in source.list_files():
        digest.update(f"{file.name}\0{file.size_bytes}\0{file.version}\n".encode("utf-8", "surrogatepass"))
        files += 1
    return {**values, "listed": files, "listing_sha256": digest.hexdigest()}


def _content(path: str, _: IsPath) -> Any:
    """The name and SHA-256 of a file. What else a setting may name stands in its `contents`."""
    return content_identity(path)
