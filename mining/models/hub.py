"""The Hugging Face hub: whether it answers, and what its refusals mean for whoever asked."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator

from maskmine.schemas.errors import InputError

ANSWER_S = 5.0


def require_hub(name: str, *, timeout_s: float = ANSWER_S) -> None:
    """Look by one request whether a model of this name could be fetched: the hub's own library tries for a minute
    before it gives up. Raises InputError where the hub does not answer in time, or
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
