"""Where on the hub a set goes: `hf://datasets/ORG/NAME`, with `@BRANCH` behind it for another branch than `main`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from maskmine.schemas.errors import InputError

_ADDRESS = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+?)/?(?:@(?P<branch>[^@]+))?")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,200}")


@dataclass(frozen=True, slots=True)
class Address:
    """A branch of a repository of data sets."""

    repo: str
    branch: str

    def __str__(self) -> str:
        return f"hf://datasets/{self.repo}" + ("" if self.branch == "main" else f"@{self.branch}")


def parse_address(text: str, *, branch: str | None = None) -> Address:
    """The address in a text; `branch` is that of an option. Raises InputError for anything else."""
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise InputError(f"{text}: no data set on the hub; give hf://datasets/ORG/NAME")
    names = found["repo"].split("/")
    if not all(_NAME.fullmatch(name) and ".." not in name and "--" not in name for name in names):
        raise InputError(
            f"{text}: the hub takes names of letters, digits, `-`, `_` and `.`, 96 at most, without `--` and `..`"
        )
    if branch and found["branch"] and branch != found["branch"]:
        raise InputError(f"{text}: names another branch than --revision {branch}; give one of them")
    chosen = branch or found["branch"] or "main"
    if not _BRANCH.fullmatch(chosen) or ".." in chosen:
        raise InputError(f"--revision {chosen}: no name of a branch; letters, digits, `-`, `_`, `.` and `/`")
    return Address(found["repo"], chosen)
