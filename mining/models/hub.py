"""Whether the Hugging Face hub answers, found out by one request: its own library tries for a minute before it gives
up."""

from __future__ import annotations

import urllib.error
import urllib.request

from maskmine.schemas.errors import InputError

ANSWER_S = 5.0


def require_hub(name: str, *, timeout_s: float = ANSWER_S) -> None:
    """Look whether a model of this name could be fetched. Raises InputError where the hub does not answer in time, or
    where the library was told not to ask it."""
    from huggingface_hub import constants

    remedy = "try again with a network, or name a folder or file with the weights"
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"`{name}` is not on this machine, and HF_HUB_OFFLINE is set; {remedy}")
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout_s):
            pass
    except urllib.error.HTTPError:
        pass  # it answers, whatever it says of its first page
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"`{name}` is not on this machine, and {constants.ENDPOINT} cannot be reached ({reason}); {remedy}"
        ) from error
