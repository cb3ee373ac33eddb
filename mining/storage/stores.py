"""Where files lie: on a disk, or on an object store through fsspec.

The schemes, how an object store is opened and what its faults are called are defined here alone. What the library
behind it raises becomes an OSError here, so callers handle one kind of fault.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from maskmine.schemas.errors import InputError, how_to_install

# Schemes of fsspec that are read and written; `memory` is for tests.
OBJECT_STORES = ("s3", "gs", "abfs", "hdfs", "memory")
ANSWER_S = 20.0
"""The timeout of an object store before work begins; later its library's own timeouts hold."""

# Remedies in messages.
_CHECK_NETWORK = "check the network, and the endpoint if you set one"
_CREDENTIALS = "for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_LIBRARIES = {"gs": "gcsfs", "abfs": "adlfs", "hdfs": "pyarrow"}  # that of S3 is an extra
_LARGEST_PUT_BYTES = 2**30  # larger files go to S3 in pieces


def scheme_of(path: str) -> str:
    """`s3` of `s3://bucket/key`, `file` of a plain path."""
    scheme, separator, _ = path.partition("://")
    return scheme if separator else "file"


def plain_path(path: str) -> str:
    """`file:///a/b` as `/a/b`; any other path as it is."""
    return path.removeprefix("file://")


def open_store(path: str) -> tuple[Any, str]:
    """The file system that a path lies on, and the path as that one takes it.

    Raises InputError for a scheme that is not one of ours, or whose library is not installed.
    """
    scheme = scheme_of(path)
    if scheme == "file":
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(plain_path(path)))
    if scheme not in OBJECT_STORES or "::" in path:
        known = ", ".join(f"{name}://" for name in ("file", *OBJECT_STORES[:-1]))
        raise InputError(f"{path}: files are not read or written there; give a plain path, or one of {known}")
    # A listing that fsspec remembers would lie, because other processes write too.
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "s3":
        options["max_concurrency"] = 1  # otherwise it asks for the size of an object before it fetches it
    try:
        fs, inner = fsspec.core.url_to_fs(path, **options)
    except ImportError as error:
        remedy = f"pip install {_LIBRARIES[scheme]}" if scheme in _LIBRARIES else how_to_install("s3")
        raise InputError(f"{path}: the library for {scheme}:// is not installed; {remedy}") from error
    except OSError as error:  # so Arrow answers where Hadoop is not installed, in many lines
        raise InputError(f"{path}: cannot be opened ({str(error).splitlines()[0]}); mend the cause") from error
    if scheme == "s3" and not inner:
        raise InputError(f"{path}: names no bucket; give s3://bucket/folder")
    return fs, str(inner)


def describe(path: str) -> dict[str, Any] | None:
    """fsspec's description of the file or folder at a path (`type`, `size`, …); None when nothing is there.

    For the time before work begins: raises InputError when a bucket is not there, when access is refused or when an
    object store does not answer within ANSWER_S.
    """
    fs, inner = open_store(path)
    patience = {"timeout": ANSWER_S} if fs.async_impl else {}
    try:
        with os_errors(path):
            return _describe(fs, inner, patience)
    except (FileNotFoundError, NotADirectoryError) as error:
        if scheme_of(path) == "s3" and _has_no_bucket(error, inner):
            raise InputError(fault_line(error, path)) from error
        return None
    except OSError as error:
        raise InputError(fault_line(error, path)) from error
    except ValueError as error:  # an endpoint that is no URL, a bucket's name that cannot be one
        raise InputError(f"{path}: cannot be looked up ({error}); check it, and the endpoint if you set one") from error


def _describe(fs: Any, inner: str, patience: dict[str, float]) -> dict[str, Any]:
    try:
        about: dict[str, Any] = fs.info(inner, **patience)
    except PermissionError:
        # Rights may begin below a folder (`folder/*`): then its name cannot be asked for, but it can be listed.
        if fs.ls(inner, detail=False, **patience) == [inner]:  # a file's name lists itself
            raise
        about = {"name": inner, "type": "directory"}
    return about


def fetch(path: str, *, start: int = 0, max_bytes: int | None = None) -> bytes:
    """The content of a file, or `max_bytes` of it from `start` on, by one request: opening it would ask for its size.

    Raises OSError; FileNotFoundError only when the file is not there, not when the bucket is not.
    """
    fs, inner = open_store(path)
    try:
        with os_errors(path):
            if max_bytes is None:
                return bytes(fs.cat_file(inner))
            return bytes(fs.cat_file(inner, start=start, end=start + max_bytes))
    except OSError as error:
        if _s3_code(error) == "InvalidRange":  # so S3 answers for an empty object
            return b""
        if _s3_code(error) == "NoSuchBucket":
            raise OSError(str(error)) from error
        raise


@contextmanager
def open_input(path: str) -> Iterator[Any]:
    """A file of the user's for reading, piece by piece, for the time before work begins.

    Raises FileNotFoundError and IsADirectoryError, which the caller words, and InputError when an object store fails.
    """
    fs, inner = open_store(path)
    try:
        with os_errors(path), fs.open(inner, "rb") as file:
            yield file
    except (FileNotFoundError, IsADirectoryError):
        raise
    except OSError as error:
        if scheme_of(path) == "file":
            raise
        raise InputError(fault_line(error, path)) from error


def refusal(path: str) -> PermissionError | None:
    """Why a file may not be read; None when it may, or when something else is wrong with it."""
    try:
        fetch(path, max_bytes=1)
    except PermissionError as error:
        return error
    except (OSError, InputError):
        return None
    return None


def upload(file: str, path: str) -> None:
    """Copy a finished local file to an object store, where it appears whole or not at all: one PUT up to 1 GiB.

    Raises OSError.
    """
    fs, inner = open_store(path)
    options = {"chunksize": _LARGEST_PUT_BYTES // 2} if scheme_of(path) == "s3" else {}
    with os_errors(path):
        fs.put_file(file, inner, **options)


@contextmanager
def os_errors(path: str) -> Iterator[None]:
    """Raise as OSError what the library for this kind of path raises that is none."""
    try:
        yield
    except _own_errors(scheme_of(path)) as error:
        raise _as_os_error(error) from error


def fault_line(error: OSError, path: str) -> str:
    """What is wrong with an object store and what to do, in one line."""
    unsaid = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    reason = " ".join((error.strerror or str(error) or unsaid).split())
    if isinstance(error, PermissionError):
        what = f"access is refused ({reason})"
        remedy = f"set credentials that may list, read and write there ({_CREDENTIALS})"
    elif isinstance(error, FileNotFoundError):
        what, remedy = f"there is no such bucket ({reason})", "create it, or give another path"
    elif isinstance(error, ConnectionError | TimeoutError):
        what, remedy = f"no connection ({reason})", _CHECK_NETWORK
    else:
        what, remedy = f"the object store fails ({reason})", "mend the cause and run the same command again"
    return f"{path}: {what}; {remedy}"


def _has_no_bucket(error: OSError, inner: str) -> bool:
    """Whether it is the bucket that is not there."""
    return "/" not in inner.strip("/") or _s3_code(error) == "NoSuchBucket"


def _s3_code(error: OSError) -> str | None:
    """What S3 itself called the fault, of which s3fs makes one of Python's errors."""
    response = getattr(error.__cause__, "response", {})
    code: str | None = response.get("Error", {}).get("Code")
    return code


def _own_errors(scheme: str) -> tuple[type[Exception], ...]:
    if scheme != "s3":
        return ()
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError

    return BotoCoreError, ClientError, aiohttp.ClientError


def _as_os_error(error: Exception) -> OSError:
    import aiohttp
    from botocore import exceptions as botocore

    credentials = (
        *(botocore.NoCredentialsError, botocore.PartialCredentialsError, botocore.CredentialRetrievalError),
        *(botocore.ProfileNotFound, botocore.TokenRetrievalError, botocore.NoAuthTokenError, botocore.SSOError),
    )
    if isinstance(error, credentials):
        return PermissionError(str(error))
    if isinstance(error, botocore.ConnectionError | botocore.HTTPClientError | aiohttp.ClientError):
        return ConnectionError(str(error))
    return OSError(str(error))
