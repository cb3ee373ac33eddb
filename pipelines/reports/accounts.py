"""What a report reads of the accounts of shards, a small JSON file for each part: reasons of rejection, and a date."""

from __future__ import annotations

from dataclasses import dataclass, field

from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.schemas.rows import RejectedImage

EXAMPLES = 3
"""Images of a reason of rejection that are shown."""


@dataclass
class Rejected:
    """How many images were rejected for a reason, and the first of them."""

    images: int = 0
    examples: list[RejectedImage] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Accounts:
    """`finished` is when the last shard was written, empty where no account says it; `reasons` are step and reason, the
    most frequent first."""

    finished: str
    reasons: tuple[tuple[tuple[str, str], Rejected], ...]


def read_accounts(finished: FinishedRun) -> Accounts:
    """Read the accounts of all parts, each once."""
    last, rejected = "", dict[tuple[str, str], Rejected]()
    for part, stored in zip(finished.parts, finished.folder.read_jsons("shards", finished.parts), strict=True):
        account = stored or {}
        last = max(last, str(account.get("finished", "")))
        for entry in account.get("rejections", ()):
            image = RejectedImage(part=part, **entry)
            of_reason = rejected.setdefault((image.step, image.reason), Rejected())
            of_reason.images += 1
            if len(of_reason.examples) < EXAMPLES:
                of_reason.examples.append(image)
    return Accounts(last, tuple(sorted(rejected.items(), key=lambda item: (-item[1].images, item[0]))))
