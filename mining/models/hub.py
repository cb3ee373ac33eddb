"""What a hub's refusals mean for whoever asked."""

from __future__ import annotations

from collections.abc import Iterator


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
