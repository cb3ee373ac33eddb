"""Where a configuration lies, and where its relative paths start: the working folder, or the installed package.

The package brings the presets of configs/ and the demo world's models and images, so that presets can be used by their
names from any folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

import yaml

import maskmine
from maskmine.mining.storage.stores import plain_path, scheme_of
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import IsPath, Settings, marker_of

PACKAGE = Path(maskmine.__file__).parent
_PRESETS = PACKAGE / "configs"

AnySettings = TypeVar("AnySettings", bound=Settings)


def find_config(config: str, of: type[Settings] | None = None) -> tuple[Path, Path | None]:
    """The file of a configuration, and the folder beside the working one that its relative paths may start from.

    A name without a folder, or in `configs/`, that is not a file here is that of a packaged preset: `coco`,
    `coco.yaml`, `configs/coco.yaml`. Raises InputError when there is neither, with the presets for settings of that
    kind.
    """
    if os.path.exists(config) and not (os.path.isdir(config) and _packaged(config)):
        return Path(config), None
    if preset := _packaged(config):
        return preset, PACKAGE
    raise InputError(
        f"{config}: no such file; give the path of a configuration, or the name of a preset: {', '.join(presets(of))}"
    )


def presets(of: type[Settings] | None = None) -> Sequence[str]:
    """The names of the packaged presets; with `of` those that have settings of this kind."""
    return sorted(path.stem for path in _PRESETS.glob("*.yaml") if of is None or _is_for(path, of))


def _is_for(preset: Path, of: type[Settings]) -> bool:
    return bool(yaml.safe_load(preset.read_bytes()).keys() <= of.model_fields.keys())


def _packaged(config: str) -> Path | None:
    path = PurePath(config)
    if str(path.parent) not in (".", "configs") or path.suffix not in ("", ".yaml"):
        return None
    preset = _PRESETS / f"{path.stem}.yaml"
    return preset if preset.is_file() else None


def with_absolute_paths(settings: AnySettings, *, package: Path | None = None) -> AnySettings:
    """The settings with their local paths made absolute, so that a run folder can be used from anywhere.

    A relative path starts in the working folder; with `package` it starts there when it exists there alone.
    """
    changed = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        absolute = _absolute(value, marker_of(field, IsPath), package)
        if absolute != value:
            changed[name] = absolute
    return settings.model_copy(update=changed) if changed else settings


def _absolute(value: Any, mark: IsPath | None, package: Path | None) -> Any:
    if isinstance(value, Settings):
        return with_absolute_paths(value, package=package)
    if isinstance(value, tuple):
        mark = None if mark and mark.or_name else mark
        return tuple(_absolute(item, mark, package) for item in value)
    if isinstance(value, dict):
        return {key: _absolute(item, mark, package) for key, item in value.items()}
    return _absolute_path(value, mark, package) if mark and isinstance(value, str) else value


def _absolute_path(value: str, mark: IsPath, package: Path | None) -> str:
    if not value or scheme_of(value) != "file":
        return value
    prefix, path = _split_prefix(value) if mark.or_name else ("", value)
    path = os.path.expanduser(plain_path(path))
    if package is not None and not os.path.exists(path) and (package / path).exists():
        return prefix + str(package / path)
    is_path = not mark.or_name or prefix or _lies_there(value, path, mark)
    return prefix + os.path.abspath(path) if is_path else value


def _lies_there(value: str, path: str, mark: IsPath) -> bool:
    if "/" in value:
        return os.path.exists(path)
    if value in mark.known or mark.bare == "never":
        return False
    return os.path.isfile(path) if mark.bare == "file" else os.path.exists(path)


def _split_prefix(value: str) -> tuple[str, str]:
    """open_clip's mark of a folder, and the rest."""
    folder = value.removeprefix("local-dir:")
    return value[: len(value) - len(folder)], folder
