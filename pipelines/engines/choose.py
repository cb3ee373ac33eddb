"""Which engine runs the pipeline, by its name on the command line."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import yaml
from pydantic import ValidationError

from pipelines.engine import Engine
from pipelines.local import run_local
from schemas.errors import InputError
from schemas.settings import Settings

# An engine with options is a settings object that can be called; it is imported only when it is chosen.
_ENGINES = {"ray": ("pipelines.on_ray", "RayEngine"), "beam": ("pipelines.on_beam", "BeamEngine")}


def choose_engine(name: str, *, options: Sequence[str] = (), pipeline_options: Sequence[str] = ()) -> Engine:
    """The engine `local`, `ray` or `beam` with its `key=value` options (values are YAML).

    `pipeline_options` are Beam's own. Raises InputError for an unknown engine, option or value.
    """
    if name != "local" and name not in _ENGINES:
        raise InputError(f"--engine {name}: unknown; choose local, ray or beam")
    if pipeline_options and name != "beam":
        raise InputError(f"unexpected `{pipeline_options[0]}`; only --engine beam takes options of its own, after `--`")
    if name == "local":
        if options:
            raise InputError("--engine local: takes no options; remove --engine-opt, or choose --engine ray or beam")
        return run_local
    values = dict(_option(option) for option in options)
    if pipeline_options:
        values["pipeline_options"] = tuple(pipeline_options)
    module, attribute = _ENGINES[name]
    engine_type: type[Settings] = getattr(importlib.import_module(module), attribute)
    try:
        engine: Engine = engine_type(**values)  # type: ignore[assignment]
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        known = f"; known: {', '.join(engine_type.model_fields)}" if fault["type"] == "extra_forbidden" else ""
        raise InputError(f"--engine-opt {place}: {fault['msg'].lower()}{known}") from error
    return engine


def _option(option: str) -> tuple[str, object]:
    key, equals, text = option.partition("=")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--engine-opt {option}: the value is not valid YAML") from error
    if not equals or not key:
        raise InputError(f"--engine-opt {option}: expected key=value, such as --engine-opt workers=2")
    return key, value
