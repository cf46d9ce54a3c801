"""A model hub on loopback for tests: as much of the protocol as `huggingface_hub` uses to push and to pull a model.

It keeps everything in memory, counts commits and requests, and can hang up at a request of one's choice.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_" + "Loopback0" * 4
READ_ONLY = "hf_" + "ReadOnly0" * 4


@dataclass
class Repo:
    """One repository: the files of each commit, by their names."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])

    @property
    def sha(self) -> str:
        """Of the last commit."""
        return hashlib.sha1(repr((len(self.commits), sorted(self.commits[-1]))).encode()).hexdigest()


@dataclass
class Hub:
    """What the server has, and what it was asked."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    hang_up: Callable[[str], bool] = lambda _: False
    """Asked of each request ("PUT /lfs/..."); True breaks the connection before it is served, once."""

    hang_up_after: Callable[[str], bool] = lambda _: False
    """The same once it is served, so that the answer alone is lost."""

    hung_up: threading.Event = field(default_factory=threading.Event)

    def seed(self, name: str, folder: Path, licence: str | None = None) -> None:
        """Put a folder's files there as a public repository."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        if licence:
            files["README.md"] = f"---\nlicense: {licence}\n---\n".encode()
        self.repos[name] = Repo(private=False, commits=[{}, files])

    def pushes(self, name: str) -> int:
        """How many commits were made after the first, empty one."""
        return len(self.repos[name].commits) - 1


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `self.hub`."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        asked = f"{self.command} {path}"
        self.hub.asked.append(asked)
        length = int(self.headers.get("Content-Length") or 0)
        if not self.hub.hung_up.is_set() and self.hub.hang_up(asked):
            self.rfile.read(length // 2)
            return self.break_off()
        body = self.rfile.read(length) if length else self.chunks()
        answer = self.answered(path, body)
        if not self.hub.hung_up.is_set() and self.hub.hang_up_after(asked):
            return self.break_off()
        self.send(*answer)

    def break_off(self) -> None:
        self.hub.hung_up.set()
        self.close_connection = True
        self.connection.close()

    def chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def send(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        if isinstance(body, dict) and "error" in body:
            self.send_header("X-Error-Message", str(body["error"]))
        self.end_headers()
        with contextlib.suppress(OSError):
            if self.command != "HEAD":
                self.wfile.write(content)

    def answered(self, path: str, body: bytes) -> tuple[Any, ...]:
        if path.startswith("/lfs/"):  # a signed address, as a bucket's: without the hub's token
            return self.put(path.removeprefix("/lfs/"), body)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", TOKEN, READ_ONLY):
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/whoami-v2":
            return (200, {"name": "firm", "type": "user"}) if token else (401, {"error": "Unauthorized"})
        if path == "/api/validate-yaml":
            return self.validated(json.loads(body)["content"])
        if path == "/api/repos/create":
            return self.created(json.loads(body), token)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolved(found[1], found[3], token)
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/(batch|verify)", path):
            return self.batch(json.loads(body)) if found[2] == "batch" else (200, {})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/(revision|preupload|commit|tree)/([^/]+)(?:/.*)?)?", path)
        repo = self.hub.repos.get(found[1]) if found else None
        if not found or repo is None or (repo.private and not token):
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if found[2] in ("preupload", "commit") and token != TOKEN:
            return 403, {"error": "Forbidden: you need write access"}
        if found[2] == "preupload":
            return self.preuploaded(repo, json.loads(body)["files"])
        if found[2] == "commit":
            return self.committed(found[1], repo, body)
        return (200, tree(repo)) if found[2] == "tree" else (200, info(found[1], repo))

    def validated(self, content: str) -> tuple[Any, ...]:
        try:
            values = yaml.safe_load(content.split("---\n")[1])
        except yaml.YAMLError as error:
            return 400, {"errors": [{"message": str(error)}], "warnings": []}
        if values.get("license") not in ("apache-2.0", "mit", "cc-by-nc-4.0", "other"):
            return 400, {"errors": [{"message": "license must be one of apache-2.0, mit, ..."}], "warnings": []}
        return 200, {"errors": [], "warnings": []}

    def created(self, asked: dict[str, Any], token: str) -> tuple[Any, ...]:
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{name}", "name": name}
        if asked["name"] == "reserved":
            return 400, {"error": "This name is reserved"}
        if asked["organization"] != "firm" or token != TOKEN:
            return 403, {"error": f"You don't have the rights to create a model under {asked['organization']}"}
        if name in self.hub.repos:
            return 409, {"error": "You already created this model repo", **url}
        self.hub.repos[name] = Repo(private=asked.get("visibility") == "private")
        return 200, url

    def preuploaded(self, repo: Repo, files: list[dict[str, Any]]) -> tuple[Any, ...]:
        there = repo.commits[-1]

        def one(path: str) -> dict[str, Any]:
            mode = "lfs" if is_large(path) else "regular"
            known = {"oid": oid(path, there[path])} if path in there else {}
            return {"path": path, "uploadMode": mode, "shouldIgnore": False, **known}

        return 200, {"files": [one(file["path"]) for file in files]}

    def batch(self, asked: dict[str, Any]) -> tuple[Any, ...]:
        def one(wanted: dict[str, Any]) -> dict[str, Any]:
            if wanted["oid"] in self.hub.objects:
                return wanted
            verify = f"{self.hub.url}{self.path.removesuffix('batch')}verify"
            upload = f"{self.hub.url}/lfs/{wanted['oid']}"
            return {**wanted, "actions": {"upload": {"href": upload}, "verify": {"href": verify}}}

        return 200, {"transfer": "basic", "objects": [one(wanted) for wanted in asked["objects"]]}

    def put(self, oid: str, body: bytes) -> tuple[Any, ...]:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "content does not match its hash"}
        self.hub.objects[oid] = body
        return 200, {}

    def committed(self, name: str, repo: Repo, body: bytes) -> tuple[Any, ...]:
        files = dict(repo.commits[-1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return 400, {"error": f"{value['path']} was not uploaded"}
                files[value["path"]] = self.hub.objects[value["oid"]]
        repo.commits.append(files)
        return 200, {"commitUrl": f"{self.hub.url}/{name}/commit/{repo.sha}", "commitOid": repo.sha, "success": True}

    def resolved(self, name: str, path: str, token: str) -> tuple[Any, ...]:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not token):
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        content = repo.commits[-1].get(path)
        if content is None:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.sha}
        return 200, content, {"ETag": f'"{oid(path, content)}"', "X-Repo-Commit": repo.sha}


def oid(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if is_large(path) else git_oid(content)


def info(name: str, repo: Repo) -> dict[str, Any]:
    files = repo.commits[-1]
    card = files.get("README.md", b"").decode().split("---\n")
    siblings = [
        {"rfilename": path, "size": len(content), "blobId": git_oid(content)}
        | ({"lfs": {"sha256": oid(path, content), "size": len(content), "pointerSize": 134}} if is_large(path) else {})
        for path, content in files.items()
    ]
    data = {"cardData": yaml.safe_load(card[1])} if len(card) > 2 else {}
    return {"id": name, "sha": repo.sha, "private": repo.private, "siblings": siblings, "tags": [], **data}


def tree(repo: Repo) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
        | ({"lfs": {"oid": oid(path, content), "size": len(content), "pointerSize": 134}} if is_large(path) else {})
        for path, content in repo.commits[-1].items()
    ]


@contextlib.contextmanager
def serving() -> Generator[Hub]:
    """A hub on a free port of loopback, for the time of the block."""
    hub = Hub()
    handler = type("HandlerOfThisHub", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
