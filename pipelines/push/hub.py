"""The Hugging Face hub as a push needs it: what a repository holds, and how files get there; faults in one line."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from maskmine.pipelines.push.address import Address
from maskmine.schemas.errors import IncompleteError, InputError

Result = TypeVar("Result")

PAUSES_S = (1.0, 5.0, 20.0)
"""Before each further attempt, where the hub or the network fails; its library has tried several times before."""
_SMALL_BYTES = 1 << 26  # of a file that is read back: checksums of half a million files
_AGAIN = "nothing is lost: run the same command again, which sends what is missing"


@dataclass(frozen=True)
class HubRepository:
    """A branch of a repository of data sets. The token is that of `hf auth login` or HF_TOKEN; it is never written."""

    address: Address
    pauses_s: Sequence[float] = field(default=PAUSES_S)

    def require_access(self) -> None:
        """Raise InputError without a token, with one that may not write here, or where the hub is not to be asked."""
        from huggingface_hub import constants, get_token
        from huggingface_hub.errors import RepositoryNotFoundError

        if constants.HF_HUB_OFFLINE:
            raise InputError(f"{self.address}: HF_HUB_OFFLINE is set; unset it to push")
        if not get_token():
            raise InputError(f"{self.address}: no token; `hf auth login` with one that may write, or set HF_TOKEN")

        def check() -> None:
            try:
                self._api.auth_check(self.address.repo, repo_type="dataset", write=True)
            except RepositoryNotFoundError as error:
                if _status(error) == 401:  # a token that the hub does not know; else the repository is not there yet
                    raise

        self._patiently(check)

    def files(self) -> dict[str, int]:
        """The files of the branch with their sizes in bytes; none where there is no repository or branch."""
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        def listed() -> dict[str, int]:
            try:
                entries = self._api.list_repo_tree(recursive=True, **self._where)
                return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return {}

        return self._patiently(listed)

    def read(self, name: str, *, size_bytes: int) -> bytes:
        """A small file of the branch. Raises InputError for a large one."""
        if size_bytes > _SMALL_BYTES:
            raise InputError(f"{self.address}: its {name} has {size_bytes:,} bytes, which no push has written")

        def fetched() -> bytes:
            with tempfile.TemporaryDirectory() as scratch:
                return Path(self._api.hf_hub_download(filename=name, cache_dir=scratch, **self._where)).read_bytes()

        return self._patiently(fetched)

    def read_json(self, name: str, *, size_bytes: int) -> Any:
        """A small file that is JSON; None where it is none."""
        try:
            return json.loads(self.read(name, size_bytes=size_bytes))
        except ValueError:
            return None

    def create(self, *, private: bool) -> None:
        """Make the repository and the branch where they are not there yet; `private` is for a new one."""
        repo, branch = self.address.repo, self.address.branch

        def make() -> None:
            self._api.create_repo(repo, repo_type="dataset", private=private or None, exist_ok=True)
            if branch != "main":
                self._api.create_branch(repo, repo_type="dataset", branch=branch, exist_ok=True)

        self._patiently(make)

    def upload_folder(self, folder: str, *, without: Sequence[str], message: str) -> None:
        """Send what the branch does not have of a folder, streamed; after a cut the next call goes on."""
        self._patiently(
            lambda: self._api.upload_folder(
                folder_path=folder, ignore_patterns=list(without), commit_message=message, **self._where
            )
        )

    def commit(self, files: Mapping[str, bytes], *, delete: Sequence[str] = (), message: str) -> str:
        """Write small files and remove others, all at once; returns the commit. Nothing happens where all is so."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        def send() -> str:
            there = self.files() if delete else {}  # a commit whose answer was lost has removed them
            operations = [
                *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()),
                *(CommitOperationDelete(path_in_repo=name, is_folder=False) for name in delete if name in there),
            ]
            done = self._api.create_commit(operations=operations, commit_message=message, **self._where)
            return str(done.oid)

        return self._patiently(send)

    @property
    def url(self) -> str:
        """Where people see it."""
        from huggingface_hub import constants

        tree = "" if self.address.branch == "main" else f"/tree/{self.address.branch}"
        return f"{constants.ENDPOINT}/datasets/{self.address.repo}{tree}"

    @property
    def _where(self) -> dict[str, str]:
        return {"repo_id": self.address.repo, "repo_type": "dataset", "revision": self.address.branch}

    @cached_property
    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi(library_name="maskmine")

    def _patiently(self, call: Callable[[], Result]) -> Result:
        """The result of a call, after some attempts where the fault is one that passes."""
        for pause_s in (*self.pauses_s, None):
            try:
                with _quiet():
                    return self._once(call)
            except IncompleteError:
                if pause_s is None:
                    raise
                time.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def _once(self, call: Callable[[], Result]) -> Result:
        from huggingface_hub.errors import HfHubHTTPError

        # That of the HTTP client which the library uses: httpx, or a successor.
        client_error: type[Exception] = next(kind for kind in HfHubHTTPError.__mro__[1:] if issubclass(kind, Exception))
        try:
            return call()
        except (client_error, OSError, RuntimeError, ValueError) as error:
            raise self._fault(error) from error

    def _fault(self, error: BaseException) -> InputError | IncompleteError:
        status, said = _status(error), _first_line(error)
        if status is None and isinstance(error, FileNotFoundError | PermissionError):
            return IncompleteError(f"{error.filename}: cannot be read ({error.strerror}); {_AGAIN}")
        if status == 401:
            return InputError(
                f"{self.address}: the hub does not accept the token, or shows nobody this repository; "
                "`hf auth login` with a token of its owner that may write"
            )
        if status == 403:
            return InputError(
                f"{self.address}: the token may not write there; give it write access, or push under a name of its own"
            )
        if status is not None and 400 <= status < 500 and status not in (408, 409, 412, 429):
            return InputError(f"{self.address}: the hub refuses ({status}: {said})")
        if status is None and isinstance(error, ValueError):
            return InputError(f"{self.address}: {said}")
        what = "does not answer" if status is None else f"answers {status}"
        return IncompleteError(f"{self.address}: the hub {what} ({said}); {_AGAIN}")


@contextmanager
def _quiet() -> Iterator[None]:
    """The hub's library says nothing but faults, and draws bars on terminals alone."""
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)


def _status(error: BaseException | None) -> int | None:
    """The status of the answer that an error comes from; libraries wrap it."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__ or error.__context__
    return None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
