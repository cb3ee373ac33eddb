"""Which engine runs the pipeline, by its name on the command line."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import yaml
from pydantic import ValidationError

from maskmine.mining.storage.bounded.small_files import parse_yaml
from maskmine.pipelines.engines.engine import Engine
from maskmine.pipelines.settings.faults import SettingsError, nearest, settings_error
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import Settings

# An engine is a settings object with a method `run`; its module is imported only when it is chosen.
_ENGINES = {
    "local": ("maskmine.pipelines.engines.local", "LocalEngine"),
    "ray": ("maskmine.pipelines.engines.ray", "RayEngine"),
    "beam": ("maskmine.pipelines.engines.beam", "BeamEngine"),
}


def choose_engine(name: str, *, options: Sequence[str] = (), pipeline_options: Sequence[str] = ()) -> Engine:
    """The engine `local`, `ray` or `beam` with its `key=value` options (values are YAML).

    `pipeline_options` are Beam's own. Raises InputError for an unknown engine, option or value.
    """
    if name not in _ENGINES:
        near = nearest(name, list(_ENGINES))
        known = near if near.startswith("did") else f"choose one of {', '.join(_ENGINES)}"
        raise InputError(f"--engine {name}: unknown; {known}")
    if pipeline_options and name != "beam":
        raise InputError(f"unexpected `{pipeline_options[0]}`; only --engine beam takes options of its own, after `--`")
    module, attribute = _ENGINES[name]
    engine_type: type[Settings] = getattr(importlib.import_module(module), attribute)
    values: dict[str, object] = {}
    for key, value in map(_option, options):
        if key in values:
            raise InputError(f"--engine-opt {key}: given twice; give it once")
        values[key] = value
    if pipeline_options:
        values["pipeline_options"] = tuple(pipeline_options)
    try:
        engine: Engine = engine_type(**values)  # type: ignore[assignment]
    except ValidationError as error:
        faults = settings_error(error, place="--engine-opt", lines={}, of=engine_type)
        raise SettingsError(*(line.replace(": ", " ", 1) for line in faults.args)) from error
    return engine


def _option(option: str) -> tuple[str, object]:
    key, equals, text = option.partition("=")
    try:
        _, value = parse_yaml(text, place=f"--engine-opt {key}")
    except yaml.YAMLError as error:
        raise InputError(f"--engine-opt {option}: the value is not valid YAML") from error
    if not equals or not key:
        raise InputError(f"--engine-opt {option}: expected key=value, such as --engine-opt workers=2")
    return key, value
