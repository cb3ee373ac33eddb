"""The Hugging Face hub: whether it answers, and what its refusals mean for whoever asked."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

from maskmine.schemas.errors import InputError

ANSWER_S = 5.0
CONNECTION_S = 10.0
_REMEDY = "try again with a network, or name a folder or file with the weights"


def require_hub(name: str, *, timeout_s: float = ANSWER_S) -> None:
    """Look by one request whether a model of this name could be fetched: the hub's own library tries for a minute
    before it gives up. Raises InputError where the hub does not answer in time, or
    where the library was told not to ask it."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise InputError(_not_here(f"`{name}`", "HF_HUB_OFFLINE is set"))
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout_s):
            pass
    except urllib.error.HTTPError:
        pass  # it answers, whatever it says of its first page
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(_not_here(f"`{name}`", _unreached(reason))) from error


def require_way_to_hub(setting: str, name: str, *, timeout_s: float = CONNECTION_S) -> None:
    """Look whether the hub takes connections before its library asks it for a model that is not here: that tries for
    a minute, with a warning a try. Raises InputError, which names the setting, where nothing listens or the library was
    told not to ask; behind a proxy only the library can tell."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise InputError(_not_here(f"{setting}: `{name}`", "HF_HUB_OFFLINE is set"))
    if {"http", "https", "all"} & urllib.request.getproxies().keys():
        return
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname, port), timeout=timeout_s).close()
    except OSError as error:
        raise InputError(_not_here(f"{setting}: `{name}`", _unreached(error))) from error


def _unreached(reason: object) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT} cannot be reached ({getattr(reason, 'strerror', None) or reason})"


def _not_here(model: str, reason: str) -> str:
    return f"{model} is not on this machine, and {reason}; {_REMEDY}"


def refusal(error: BaseException, name: str) -> str | None:
    """What to do about a repository that the hub does not show to everybody; None for any other fault.

    `name` is that of the repository. Libraries pass on what the hub said as the cause of errors of their own.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError

    if any(isinstance(one, GatedRepoError) for one in _chain(error)):
        return (
            f"its publisher gives it to whom they know: accept its terms at {constants.ENDPOINT}/{name} with an "
            "account, then `hf auth login` on this machine"
        )
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
