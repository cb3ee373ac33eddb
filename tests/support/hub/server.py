"""A hub of models on loopback: what `huggingface_hub` and open_clip ask of the real one, with faults on demand.

It answers model info, listings, and files: small ones itself, weights by a redirect to another path, as the real hub
does with large files. `HF_ENDPOINT` of a process names it.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

HubT = TypeVar("HubT")

WEIGHTS = {".safetensors", ".bin", ".pt", ".h5"}


@dataclass
class Repository:
    """Files by their names, and what goes wrong with them.

    `refuse` answers everything with a status and the hub's word for it, such as `(401, "GatedRepo")`, but for whoever
    sends `token`, where there is one. `cut_after` closes the connection in the middle of weights, so many times;
    `wait_s` is how long an answer takes.
    """

    files: dict[str, bytes]
    refuse: tuple[int, str] | None = None
    token: str | None = None
    cut_after: int = 0
    wait_s: float = 0.0

    @property
    def commit(self) -> str:
        """The commit of `main`: it follows from the files."""
        digest = hashlib.sha1()
        for name, content in sorted(self.files.items()):
            digest.update(name.encode() + hashlib.sha1(content).digest())
        return digest.hexdigest()


@dataclass
class Hub:
    """Repositories by their names, and a line for each request: method and path."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    earlier: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def publish(self, name: str, files: Mapping[str, bytes | Path] | Path) -> Repository:
        """Put a folder, or files, under a name; what was there before is kept under its commit."""
        if isinstance(files, Path):
            files = {str(path.relative_to(files)): path for path in sorted(files.rglob("*")) if path.is_file()}
        content = {key: value.read_bytes() if isinstance(value, Path) else value for key, value in files.items()}
        if name in self.repositories:
            before = self.repositories[name]
            self.earlier[name, before.commit] = before.files
        self.repositories[name] = Repository(content)
        return self.repositories[name]

    def environment(self, cache: Path) -> dict[str, str]:
        """What a process needs to ask this hub, and to keep its files in `cache`."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}


@contextmanager
def hub_on_loopback() -> Iterator[Hub]:
    """A hub without repositories, for as long as the block runs."""
    with serving(_Handler, Hub) as hub:
        yield hub


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], hub_at: Callable[[str], HubT]) -> Iterator[HubT]:
    """A server on loopback for as long as the block runs; its handlers find the hub as `server.hub`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub = hub_at(f"http://127.0.0.1:{server.server_address[1]}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(?:/.*)?", path):
            self._describe(*found.groups())
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*found.groups())
        elif found := re.fullmatch(r"/large/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path):
            self._send_large(*found.groups())
        else:
            self._fail(HTTPStatus.NOT_FOUND, "EntryNotFound")

    def _opened(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and files of a repository; None where an error was answered."""
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._fail(HTTPStatus.UNAUTHORIZED, "RepoNotFound")
        time.sleep(repository.wait_s)
        known = repository.token is not None and self.headers.get("Authorization") == f"Bearer {repository.token}"
        if repository.refuse is not None and not known:
            return self._fail(*repository.refuse)
        if revision in ("main", repository.commit):
            return repository.commit, repository.files
        if (name, revision) in self.hub.earlier:
            return revision, self.hub.earlier[name, revision]
        return self._fail(HTTPStatus.NOT_FOUND, "RevisionNotFound")

    def _describe(self, name: str, what: str | None, revision: str | None) -> None:
        opened = self._opened(name, revision or "main")
        if opened is None:
            return
        commit, files = opened
        if what == "tree":
            self._send_json([_entry(path, content) for path, content in sorted(files.items())])
        else:
            siblings = [{"rfilename": path} for path in sorted(files)]
            self._send_json({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        opened = self._opened(name, revision)
        if opened is None:
            return
        commit, files = opened
        if file not in files:
            self._fail(HTTPStatus.NOT_FOUND, "EntryNotFound", commit=commit)
            return
        content, headers = files[file], {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if Path(file).suffix not in WEIGHTS:
            self._send(content, {**headers, "ETag": f'"{_blob(content)}"'})
            return
        headers |= {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
        elsewhere = self.hub.url.replace("127.0.0.1", "localhost")  # another host, whose answers are not the hub's
        headers |= {"Location": f"{elsewhere}/large/{name}/{commit}/{file}", "Content-Length": "0"}
        self._answer(HTTPStatus.FOUND, headers)

    def _send_large(self, name: str, commit: str, file: str) -> None:
        repository = self.hub.repositories[name]
        files = repository.files if commit == repository.commit else self.hub.earlier[name, commit]
        if repository.cut_after and self.command == "GET":
            repository.cut_after -= 1
            self._answer(HTTPStatus.OK, {"Content-Length": str(len(files[file]))})
            self.wfile.write(files[file][: len(files[file]) // 2])
            self.close_connection = True
            return
        self._send(files[file], {"Accept-Ranges": "bytes"})

    def _send(self, content: bytes, headers: Mapping[str, str]) -> None:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start, status = (int(found[1]), HTTPStatus.PARTIAL_CONTENT) if found else (0, HTTPStatus.OK)
        more = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if found else {}
        self._answer(status, {**headers, **more, "Content-Length": str(len(content) - start)})
        if self.command == "GET":
            self.wfile.write(content[start:])

    def _send_json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str, *, commit: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code, "Content-Length": "0"}
        self._answer(status, {**headers, **({"X-Repo-Commit": commit} if commit else {})})

    def _answer(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
    if Path(path).suffix in WEIGHTS:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
