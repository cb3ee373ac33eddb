"""The Hugging Face hub: whether it answers, and what its refusals mean for whoever asked."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies

from maskmine.schemas.errors import InputError

CONNECTION_S = 10.0


def require_hub(setting: str, name: str, *, timeout_s: float = CONNECTION_S) -> None:
    """Look whether the hub takes connections before its library asks it for a model that is not here: that tries for
    a minute, with a warning a try. Raises InputError, which names the setting, where nothing listens or the library was
    told not to ask; behind a proxy only the library can tell."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise InputError(_not_here(setting, name, "HF_HUB_OFFLINE is set"))
    if {"http", "https", "all"} & getproxies().keys():
        return
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname, port), timeout=timeout_s).close()
    except OSError as error:
        reason = f"{constants.ENDPOINT} cannot be reached ({error.strerror or error})"
        raise InputError(_not_here(setting, name, reason)) from error


def _not_here(setting: str, name: str, reason: str) -> str:
    return (
        f"{setting}: `{name}` is not on this machine, and {reason}; try again with a network, or name a folder or file "
        "with the weights"
    )


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
