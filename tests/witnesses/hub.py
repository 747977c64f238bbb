"""A small Hub on loopback that speaks what huggingface_hub speaks; no test ever meets the real one.

It answers about repositories, revisions and files (whole and in spans), refuses what is gated,
private or not there with the Hub's own error codes, redirects what was renamed and what lies in
large-file storage (to another host, as the real one does), and takes uploads, small and large.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

Files = dict[str, bytes]
LARGE = (".safetensors", ".bin", ".gguf")
TOKEN = "hf_" + "SecretOfThisTest" + "0123456789"


@dataclass
class Repo:
    """A repository: files by commit, and what its branches and tags stand for."""

    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    gated: bool = False
    private: bool = False
    downloads: int = 0

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Put these files on a branch; the commit's hash."""
        text = f"{len(self.commits)} {branch} " + repr(sorted(files.items()))
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        """The commit that a revision stands for."""
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    @property
    def files(self) -> Files:
        """What the main branch holds."""
        return self.commits[self.refs["main"]]


@dataclass(frozen=True)
class Request:
    """What was asked, and whether with a token."""

    method: str
    path: str
    span: str | None
    token: str | None


class Hub:
    """The Hub: repositories by name, old names, and all that was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, str] = {}
        self.requests: list[Request] = []
        self.connections: set[socket.socket] = set()
        self.large: dict[str, bytes] = {}
        self.broken: dict[str, int] = {}  # paths that answer with this status
        self.cut: int | None = None  # bytes after which the next large file breaks off, once
        self.slow: threading.Event | None = None  # large files wait for it after their first part
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()

    def add(self, name: str, files: Mapping[str, bytes] | Path, **settings: Any) -> Repo:
        """A repository with these files, or with those of a folder, on its main branch."""
        repo = self.repos[name] = Repo(**settings)
        repo.commit(read_tree(files) if isinstance(files, Path) else files)
        return repo

    def asked(self, pattern: str) -> list[Request]:
        """The requests whose ``METHOD path`` matches."""
        return [r for r in self.requests if re.search(pattern, f"{r.method} {r.path}")]

    def sent(self) -> list[str]:
        """The large files of which all was sent, by their checksums."""
        return [r.path for r in self.requests if r.path.startswith("/lfs/") and r.span is None]

    def close(self) -> None:
        """Be out of reach from now on, also to who is connected."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The variables that send a process to this Hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            **more,
        }


def read_tree(folder: Path) -> Files:
    """All files below a folder, by their paths in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def running(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that this process and its children ask, with the cache below ``home``."""
    from huggingface_hub import constants

    hub = Hub()
    for name, value in hub.environment(home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read when it was imported
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    try:
        yield hub
    finally:
        hub.close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with suppress(OSError):  # whoever asked went away
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        self._answer(body=True)

    def do_PUT(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self._body = body
        length = int(self.headers.get("Content-Length") or 0)
        self._sent = self.rfile.read(length) if length else self._chunks()
        word = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        path = unquote(urlsplit(self.path).path)
        self._query = parse_qs(urlsplit(self.path).query)
        self.hub.requests.append(Request(self.command, path, self.headers.get("Range"), word))
        self._token = word
        for broken, status in self.hub.broken.items():
            if re.search(broken, path):
                return self._say(status, {"error": "out of order"})
        for pattern, handle in _ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                return handle(self, **match.groupdict())
        return self._say(404, {"error": f"no such route: {self.command} {path}"})

    def _chunks(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return b""
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _say(self, status: int, value: Any = None, **headers: str) -> None:
        raw = b"" if value is None else json.dumps(value).encode()
        self._send(status, raw, {"Content-Type": "application/json", **headers})

    def _send(self, status: int, raw: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self._body:
            self.wfile.write(raw)

    def _refuse(self, status: int, code: str, text: str) -> None:
        self._say(status, {"error": text}, X_Error_Code=code, X_Error_Message=text)

    def _repo(self, name: str) -> Repo | None:
        """The repository, or None after an answer that says why not."""
        if name in self.hub.moved:
            target = self.path.replace(name, self.hub.moved[name], 1)
            self._say(307, None, Location=f"{self.hub.url}{target}")
            return None
        repo = self.hub.repos.get(name)
        if self._token is not None and self._token != TOKEN:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repo is None or (repo.private and self._token is None):
            self._refuse(
                401 if self._token is None else 404, "RepoNotFound", "Repository not found"
            )
        else:
            return repo
        return None

    # reading

    def _info(self, name: str, revision: str | None = None) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        sha = repo.find(revision or "main")
        if sha is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        self._say(200, _model(name, repo, sha, blobs="blobs" in self._query))

    def _list(self) -> None:
        wanted = self._query.get("filter", [])
        found = [
            _model(name, repo, repo.refs["main"])
            for name, repo in self.hub.repos.items()
            if all(word in repo.tags for word in wanted)
        ]
        found.sort(key=lambda row: -row["downloads"])
        self._say(200, found[: int(self._query.get("limit", ["1000"])[0])])

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        if repo.gated and self._token is None:
            text = f"Access to model {name} is restricted."
            return self._refuse(401, "GatedRepo", text)
        if repo.gated:
            return self._refuse(403, "GatedRepo", f"Access to model {name} is restricted.")
        sha = repo.find(revision)
        if sha is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if file not in repo.commits[sha]:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        raw = repo.commits[sha][file]
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if not file.endswith(LARGE):
            return self._give(raw, {**headers, "ETag": f'"{hashlib.sha1(raw).hexdigest()}"'})
        oid = hashlib.sha256(raw).hexdigest()
        self.hub.large[oid] = raw
        headers |= {"X-Linked-Size": str(len(raw)), "X-Linked-Etag": f'"{oid}"'}
        headers["Location"] = f"http://localhost:{self.hub.port}/lfs/{oid}"
        self._send(302, b"", headers)

    def _give_large(self, oid: str) -> None:
        self._give(self.hub.large[oid], {"ETag": f'"{oid}"'})

    def _give(self, raw: bytes, headers: dict[str, str]) -> None:
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status = 200
        if span:
            first, last = int(span[1]), min(int(span[2] or len(raw)), len(raw) - 1)
            if first >= len(raw):
                return self._say(416)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(raw)}"
            raw, status = raw[first : last + 1], 206
        hub = self.hub
        if self.command == "GET" and self.path.startswith("/lfs/") and (hub.cut or hub.slow):
            part, hub.cut = raw[: hub.cut or len(raw) // 2], None
            self._send(status, part, {**headers, "Content-Length": str(len(raw))})
            self.wfile.flush()
            if hub.slow is not None:
                hub.slow.wait(20)
                self.wfile.write(raw[len(part) :])
            else:
                self.close_connection = True
            return None
        return self._send(status, raw, headers)

    # writing

    def _writable(self, name: str) -> Repo | None:
        if self._token is None:
            self._refuse(401, "", "Invalid username or password.")
            return None
        return self._repo(name)

    def _create(self) -> None:
        row = json.loads(self._sent)
        if self._token is None:
            return self._refuse(401, "", "Invalid username or password.")
        name = f"{row.get('organization') or 'me'}/{row['name']}"
        if row.get("organization") == "closed":
            return self._refuse(403, "", "You don't have the rights to create a model there.")
        if name in self.hub.repos:
            return self._say(409, {"error": "exists", "url": f"{self.hub.url}/{name}"})
        self.hub.add(
            name,
            {".gitattributes": b"*.safetensors filter=lfs\n"},
            private="private" in (row.get("visibility"), row.get("private") and "private"),
        )
        return self._say(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def _yaml(self) -> None:
        self._say(200, {"errors": [], "warnings": []})

    def _branch(self, name: str, branch: str) -> None:
        repo = self._writable(name)
        if repo is not None:
            repo.refs.setdefault(branch, repo.refs["main"])
            self._say(200, {})

    def _preupload(self, name: str, revision: str) -> None:
        if self._writable(name) is None:
            return
        rows = [
            {
                "path": row["path"],
                "uploadMode": "lfs" if row["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for row in json.loads(self._sent)["files"]
        ]
        self._say(200, {"files": rows})

    def _batch(self, name: str) -> None:
        if self._writable(name) is None:
            return
        rows = []
        for row in json.loads(self._sent)["objects"]:
            href = f"{self.hub.url}/upload/{row['oid']}"
            rows.append({**row, "actions": {"upload": {"href": href, "header": {}}}})
        self._say(200, {"transfer": "basic", "objects": rows})

    def _upload(self, oid: str) -> None:
        good = hashlib.sha256(self._sent).hexdigest() == oid
        self.hub.large[oid] = self._sent
        self._say(200 if good else 400, {})

    def _commit(self, name: str, revision: str) -> None:
        repo = self._writable(name)
        if repo is None:
            return
        head = repo.find(revision)
        if head is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = dict(repo.commits[head])
        for line in self._sent.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif row["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(files, revision)
        url = f"{self.hub.url}/{name}/commit/{sha}"
        return self._say(200, {"success": True, "commitOid": sha, "commitUrl": url})


def _model(name: str, repo: Repo, sha: str, *, blobs: bool = False) -> dict[str, Any]:
    siblings = []
    for file, raw in sorted(repo.commits[sha].items()):
        row: dict[str, Any] = {"rfilename": file}
        if blobs:
            row |= {"size": len(raw), "blobId": hashlib.sha1(raw).hexdigest()}
        siblings.append(row)
    return {
        "id": name,
        "modelId": name,
        "sha": sha,
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "tags": repo.tags,
        "downloads": repo.downloads,
        "cardData": repo.card or None,
        "siblings": siblings,
    }


_NAME = r"(?P<name>[^/]+/[^/]+)"
_ROUTES: list[tuple[str, Any]] = [
    (r"GET /api/models", _Handler._list),
    (rf"GET /api/models/{_NAME}", _Handler._info),
    (rf"GET /api/models/{_NAME}/revision/(?P<revision>.+)", _Handler._info),
    (r"(GET|HEAD) /lfs/(?P<oid>\w+)", _Handler._give_large),
    (
        rf"(GET|HEAD) /{_NAME}/resolve/(?P<revision>refs/pr/\d+|[^/]+)/(?P<file>.+)",
        _Handler._resolve,
    ),
    (r"POST /api/repos/create", _Handler._create),
    (r"POST /api/validate-yaml", _Handler._yaml),
    (rf"POST /api/models/{_NAME}/branch/(?P<branch>.+)", _Handler._branch),
    (rf"POST /api/models/{_NAME}/preupload/(?P<revision>.+)", _Handler._preupload),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler._batch),
    (r"PUT /upload/(?P<oid>\w+)", _Handler._upload),
    (rf"POST /api/models/{_NAME}/commit/(?P<revision>.+)", _Handler._commit),
]
