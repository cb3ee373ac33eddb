"""A hub of data sets on loopback that takes uploads: what `huggingface_hub` asks of the real one without Xet.

Small texts go into commits, all else to a store of objects by their SHA-256 first, as with Git LFS. Faults come on
demand: statuses for paths, connections that end in the middle of a body, a token that may not write.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest
from huggingface_hub.utils import _http

from tests.support.hub.server import serving

_TEXTS = (".md", ".json", ".txt", ".yaml", ".csv", "SHA256SUMS", ".gitattributes", ".jsonl")
_BLOCK_BYTES = 1 << 13


@dataclass
class DataSet:
    """The branches of a repository: files by their names, and how many commits there were."""

    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b"* lfs\n"}})
    commits: int = 0


@dataclass
class Fault:
    """What happens to requests whose method and path match: a status, or with None an end of the connection after
    half of the body; so many times."""

    pattern: str
    status: int | None
    times: int = 1


@dataclass
class UploadHub:
    """Repositories by their names, objects by their SHA-256, a line for each request, and what was received: the
    objects in the order in which they came, and all bytes of bodies.

    `writers` are the tokens that may write, `readers` others that the hub knows. `on_bytes` is called with all bytes
    of bodies so far; `wait_s` is a pause for each block of a body.
    """

    url: str
    sets: dict[str, DataSet] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    writers: set[str] = field(default_factory=lambda: {"hf_writer"})
    readers: set[str] = field(default_factory=lambda: {"hf_reader"})
    faults: list[Fault] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    received_bytes: int = 0
    wait_s: float = 0.0
    on_bytes: Callable[[int], None] | None = None
    lock: Lock = field(default_factory=Lock)

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch, without what the hub makes by itself."""
        return {path: content for path, content in self.sets[name].branches[branch].items() if path != ".gitattributes"}

    def know_alone(self, cache: Path, patch: pytest.MonkeyPatch, *, token: str = "hf_writer") -> None:
        """Make this hub the only one that this process knows; its library makes further attempts without pauses."""
        constants = huggingface_hub.constants
        patch.setenv("HF_TOKEN", token)
        for name, value in {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_TOKEN_PATH": str(cache / "token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            patch.setattr(constants, name, value)
        patch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None, time=time.time))


@contextmanager
def upload_hub() -> Iterator[UploadHub]:
    """A hub without repositories, for as long as the block runs."""
    with serving(_Handler, UploadHub) as hub:
        yield hub


class _CutError(Exception):
    """The connection ends here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> UploadHub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.log.append(f"{self.command} {path}")
        fault = self._fault(f"{self.command} {path}")
        try:
            body = self._body(cut=fault is not None and fault.status is None)
        except (_CutError, ConnectionError):
            self.close_connection = True
            return
        if fault is not None:
            self._refuse(fault.status or 500, "a fault on demand")
            return
        if self._token() not in self.hub.writers | self.hub.readers and not path.startswith("/objects/"):
            self._refuse(401, "Invalid credentials in Authorization header")
            return
        for pattern, answer in _ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                with self.hub.lock:
                    answer(self, body, *found.groups())
                return
        self._refuse(404, f"nothing here: {self.command} {path}")

    def _fault(self, line: str) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None

    def _body(self, *, cut: bool) -> bytes:
        """The body, counted as it comes; with `cut` half of it, then the connection ends."""
        length = int(self.headers.get("Content-Length", 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            return self._chunks()
        left, blocks = length // 2 if cut else length, []
        while left:
            block = self.rfile.read(min(left, _BLOCK_BYTES))
            if not block:
                raise _CutError
            blocks.append(block)
            left -= len(block)
            self._count(len(block))
        if cut:
            raise _CutError
        return b"".join(blocks)

    def _chunks(self) -> bytes:
        blocks = []
        while size := int(self.rfile.readline() or b"0", 16):
            blocks.append(self.rfile.read(size))
            self.rfile.readline()
            self._count(size)
        self.rfile.readline()
        return b"".join(blocks)

    def _count(self, size_bytes: int) -> None:
        with self.hub.lock:
            self.hub.received_bytes += size_bytes
            received, tell = self.hub.received_bytes, self.hub.on_bytes
        if tell is not None:
            tell(received)
        if self.hub.wait_s:
            time.sleep(self.hub.wait_s)

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _may_write(self) -> bool:
        if self._token() in self.hub.writers:
            return True
        self._refuse(403, "Forbidden: you don't have write access")
        return False

    def _set(self, name: str) -> DataSet | None:
        if name not in self.hub.sets:
            self._refuse(404, "Repository Not Found", code="RepoNotFound")
        return self.hub.sets.get(name)

    def _branch(self, name: str, branch: str) -> dict[str, bytes] | None:
        found = self._set(name)
        if found is not None and branch not in found.branches:
            self._refuse(404, "Invalid rev id", code="RevisionNotFound")
        return None if found is None else found.branches.get(branch)

    def answer_access(self, _: bytes, name: str) -> None:
        if self._set(name) is not None and self._may_write():
            self._say({})

    def answer_create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self._may_write():
            return
        made = name not in self.hub.sets
        self.hub.sets.setdefault(name, DataSet(private=asked.get("visibility") == "private"))
        url = f"{self.hub.url}/datasets/{name}"
        self._say(
            {"url": url} if made else {"url": url, "error": "You already created this dataset repo"},
            status=200 if made else 409,
        )

    def answer_branch(self, _: bytes, name: str, branch: str) -> None:
        found = self._set(name)
        if found is not None and self._may_write():
            if branch in found.branches:
                self._refuse(409, "Reference already exists")
                return
            found.branches[branch] = dict(found.branches["main"])
            self._say({})

    def answer_info(self, _: bytes, name: str, branch: str | None) -> None:
        files = self._branch(name, branch or "main")
        if files is not None:
            self._say({"id": name, "sha": _commit(files), "siblings": [{"rfilename": path} for path in files]})

    def answer_tree(self, _: bytes, name: str, branch: str) -> None:
        files = self._branch(name, branch)
        if files is not None:
            self._say([_entry(path, content) for path, content in sorted(files.items())])

    def answer_preupload(self, body: bytes, name: str, branch: str) -> None:
        files = self._branch(name, branch)
        if files is None or not self._may_write():
            return
        asked = json.loads(body)["files"]
        self._say({"files": [_mode(one["path"], files.get(one["path"])) for one in asked]})

    def answer_batch(self, body: bytes, name: str) -> None:
        if self._set(name) is None or not self._may_write():
            return
        asked = json.loads(body)["objects"]
        for one in asked:
            if one["oid"] not in self.hub.objects:
                one["actions"] = {"upload": {"href": f"{self.hub.url}/objects/{one['oid']}"}}
        self._say({"transfer": "basic", "objects": asked})

    def answer_object(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self._refuse(400, "the bytes are others than was said")
            return
        self.hub.objects[oid] = body
        self.hub.stored.append(oid)
        self._say({})

    def answer_commit(self, body: bytes, name: str, branch: str) -> None:
        files = self._branch(name, branch)
        if files is None or not self._may_write():
            return
        for line in body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        self.hub.sets[name].commits += 1
        where = f"{self.hub.url}/datasets/{name}/commit/{_commit(files)}"
        self._say({"success": True, "commitOid": _commit(files), "commitUrl": where})

    def answer_yaml(self, body: bytes) -> None:
        faults = [] if json.loads(body)["content"].startswith("---\n") else [{"message": "there is no front matter"}]
        self._say({"errors": faults, "warnings": []}, status=400 if faults else 200)

    def answer_file(self, _: bytes, name: str, branch: str, path: str) -> None:
        known = self.hub.sets.get(name)
        # By a commit, as the library asks after it was told one, or by the name of a branch.
        branches = (
            {} if known is None else known.branches | {_commit(files): files for files in known.branches.values()}
        )
        files = branches.get(branch)
        if files is None or path not in files:
            self._refuse(404, "Entry not found", code="EntryNotFound" if known else "RepoNotFound")
            return
        self._say(files[path], {"X-Repo-Commit": _commit(files), "ETag": f'"{_blob(files[path])}"'})

    def _say(self, value: Any, headers: dict[str, str] | None = None, *, status: int = HTTPStatus.OK) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, said in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, said)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status: int, message: str, *, code: str = "") -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._say({"error": message}, headers, status=status)


_NAME, _BRANCH = r"([^/]+/[^/]+)", r"([^/]+)"
_ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"POST /api/repos/create", _Handler.answer_create),
    (r"POST /api/validate-yaml", _Handler.answer_yaml),
    (rf"GET /api/datasets/{_NAME}/auth-check/write", _Handler.answer_access),
    (rf"GET /api/datasets/{_NAME}/tree/{_BRANCH}(?:/.*)?", _Handler.answer_tree),
    (rf"GET /api/datasets/{_NAME}(?:/revision/{_BRANCH})?", _Handler.answer_info),
    (rf"POST /api/datasets/{_NAME}/branch/{_BRANCH}", _Handler.answer_branch),
    (rf"POST /api/datasets/{_NAME}/preupload/{_BRANCH}", _Handler.answer_preupload),
    (rf"POST /api/datasets/{_NAME}/commit/{_BRANCH}", _Handler.answer_commit),
    (rf"POST /datasets/{_NAME}\.git/info/lfs/objects/batch", _Handler.answer_batch),
    (r"PUT /objects/([0-9a-f]{64})", _Handler.answer_object),
    (rf"(?:GET|HEAD) /datasets/{_NAME}/resolve/{_BRANCH}/(.+)", _Handler.answer_file),
]


def _is_text(path: str) -> bool:
    return path.endswith(_TEXTS)


def _mode(path: str, known: bytes | None) -> dict[str, Any]:
    oid = None if known is None else _entry(path, known).get("lfs", {}).get("oid", _blob(known))
    return {"path": path, "uploadMode": "regular" if _is_text(path) else "lfs", "shouldIgnore": False, "oid": oid}


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
    if not _is_text(path):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def _commit(files: dict[str, bytes]) -> str:
    digest = hashlib.sha1()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + hashlib.sha1(content).digest())
    return digest.hexdigest()


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
