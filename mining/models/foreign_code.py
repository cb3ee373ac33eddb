"""Nothing that a model brings is run: folders and names on a hub are weights and descriptions, whatever they ask for.

transformers runs Python files that lie beside a model where a configuration names them (`auto_map`) and somebody says
yes: an argument, a key in another file, or an answer on the standard input. open_clip and spaCy load through it and
pass on what their own files say. So the answer is given here, at the functions of transformers that such code has to
go through, and it is always no. Code that the user has installed is not a model's and is not meant.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from maskmine.mining.storage.bounded.json_limits import keys_in
from maskmine.schemas.errors import InputError

_REMEDY = "nothing that a model brings is run; give one that the installed libraries know by themselves"
_MAX_JSON_BYTES = 1 << 24  # a description of a model has some kilobytes, with names of many classes some more
# How many parts a network has, each of which is built before its weights are looked for.
_COUNTS = re.compile(r"layers|depths?$|blocks|stages|levels|num_point_embeddings|num_multimask_outputs")
_MOST_PARTS = 1000

# What loads in this thread; None where it is not ours, and transformers does as its caller says.
_loading: ContextVar[str | None] = ContextVar("loading", default=None)


class _ForeignCodeError(Exception):
    """A model asked for code of its own."""


@contextmanager
def nothing_is_run(name: str, *, setting: str) -> Iterator[None]:
    """While a model is loaded in this block. Raises InputError, which names the setting, where it asks for code."""
    _guard()
    token = _loading.set(name)
    try:
        yield
    except Exception as error:
        if _is_refusal(error):
            raise InputError(f"{setting}: `{name}` asks for code that it brings itself; {_REMEDY}") from error
        raise
    finally:
        _loading.reset(token)


def check_described(folder: Path, *, name: str, setting: str) -> None:
    """Refuse a folder of transformers whose JSON files ask for more than weights in the classes that load it.

    These are kernels of a hub for attention, adapters, which bring another model, and quantized weights, which bring
    kernels. Raises InputError.
    """
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{setting}: `{name}` is an adapter of another model; merge it into that and save the whole")
    for file in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / file).is_file():
            _check_parts(folder, read_described(folder / file, name=name, setting=setting), setting=setting)
    for file in ("config.json", "preprocessor_config.json", "processor_config.json"):
        described: Any = None
        with suppress(InputError):  # the loader says so
            described = read_described(folder / file, name=name, setting=setting)
        for key, value in keys_in(described):
            if _COUNTS.search(key) and _sum(value) > _MOST_PARTS:
                raise InputError(f"{setting}: `{name}` asks for more than {_MOST_PARTS:,} layers (`{key}` in {file})")
            if key == "quantization_config" and value:
                raise InputError(f"{setting}: `{name}` has quantized weights; give the model in float32 or float16")
            if key.endswith("_implementation") and "/" in str(value):
                raise InputError(f"{setting}: `{name}` asks for a kernel of a hub (`{key}` in {file}); {_REMEDY}")


def read_described(path: Path, *, name: str, setting: str) -> Any:
    """A JSON file that describes a model. Raises InputError for one that is none, or far too long."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_JSON_BYTES + 1)
        if len(content) > _MAX_JSON_BYTES:
            raise InputError(f"{setting}: {path.name} of `{name}` is longer than {_MAX_JSON_BYTES:,} bytes")
        return json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{setting}: {path.name} of `{name}` is not JSON; save the model again") from error


def _check_parts(folder: Path, index: Any, *, setting: str) -> None:
    """Refuse an index of weights in several files that names any but files beside it."""
    named = index.get("weight_map") if isinstance(index, Mapping) else None
    files = named.values() if isinstance(named, Mapping) else [None]
    for file in files:
        if not isinstance(file, str) or Path(file).name != file or not (folder / file).is_file():
            raise InputError(f"{setting}: the index of weights in {folder} names no file there ({file}); save it again")


def _sum(value: Any) -> int:
    """Of the whole numbers that are the value or stand in its list."""
    numbers = value if isinstance(value, list) else [value]
    return sum(number for number in numbers if isinstance(number, int))


def _is_refusal(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is ours, or says of transformers that it was not allowed."""
    while error is not None:
        if isinstance(error, _ForeignCodeError) or "trust_remote_code" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@functools.cache
def _guard() -> None:
    """Put our answer before the functions of transformers, once in a process."""
    import transformers.dynamic_module_utils as dynamic
    from transformers.integrations import hub_kernels

    _refuse_in(dynamic, "get_class_in_module", "get_cached_module_file")
    _refuse_in(hub_kernels, "get_kernel")

    def answered(prompt: object = "") -> str:
        return input(prompt) if _loading.get() is None else "no"

    dynamic.input = answered  # type: ignore[attr-defined]  # in that module it stands before the built-in


def _refuse_in(module: ModuleType, *names: str) -> None:
    for name in names:
        setattr(module, name, _refusing(getattr(module, name)))


def _refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def refusing(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs) if _loading.get() is None else _refuse()

    return refusing


def _refuse() -> NoReturn:
    raise _ForeignCodeError
