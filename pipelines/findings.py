"""What `maskmine doctor` found: a line each; and what it finds of a server that is to write captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from maskmine.mining.captioners.endpoint import Endpoint
from maskmine.schemas.errors import IncompleteError, InputError

State = Literal["ok", "missing", "warning"]

_NAMED = 3  # models of a server, where it has another one than is wanted
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `missing` stops the run, a `warning` does not; `remedy` is what to do about it."""

    name: str
    state: State
    detail: str
    remedy: str = ""


def fault(name: str, error: Exception) -> Finding:
    """Messages of faults end with what to do, after the last semicolon."""
    detail, _, remedy = str(error).rpartition("; ")
    return Finding(name, "missing", detail or remedy, remedy if detail else "")


def find_endpoint(endpoint: Endpoint) -> Iterator[Finding]:
    """Whether the key's variable is set, and whether the server answers and has the model: one request, for no
    caption."""
    try:
        endpoint.require_key()
        models = endpoint.find_models()
    except (InputError, IncompleteError) as error:
        yield fault("captions", error)
        return
    where = f"{endpoint.place}: {endpoint.model} at {endpoint.url}"
    if models is None or endpoint.model in models:
        listed = "answers" if models else "answers, and lists no models"
        yield Finding("captions", "ok", f"{where}, {listed}, licence {endpoint.record().licence}")
    else:
        others = ", ".join(models[:_NAMED]) + (f" and {len(models) - _NAMED} more" if len(models) > _NAMED else "")
        yield Finding("captions", "warning", f"{where}, which lists {others}", "name one of its models")
    if endpoint.licence is None:
        yield Finding(
            "captions",
            "warning",
            f"{endpoint.model}: licence unknown",
            f"state the licence as `{endpoint.place}.licence`",
        )
    host = urlsplit(endpoint.url)
    if endpoint.key_env is not None and host.scheme == "http" and host.hostname not in _THIS_MACHINE:
        yield Finding(
            "captions",
            "warning",
            f"{endpoint.url}: the key goes there unencrypted",
            "use https:// outside this machine",
        )
