"""A small Hugging Face hub on this machine: repositories by commits, with its client's routes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["TOKEN", "Hub", "hub_server"]

TOKEN = "hf_test"
_REPOSITORY = r"(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)"
_LARGE = (".safetensors", ".zip")


@dataclass
class Repository:
    """Commits of one repository, the newest last."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes]) -> str:
        name = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[name] = dict(files)
        return name

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return list(self.commits.items())[-1]
        return (revision, self.commits[revision]) if revision in self.commits else None


@dataclass
class Hub:
    """All repositories, and what was asked for."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent_bytes: int = 0
    """Bytes of files that were handed out."""

    @property
    def environment(self) -> dict[str, str]:
        """What leads a client here."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def files(self, key: str) -> dict[str, bytes]:
        """The newest files of ``models/OWNER/NAME`` or ``datasets/OWNER/NAME``."""
        found = self.repositories[key].at("main")
        assert found is not None
        return found[1]


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, path))
        writes = self.command in ("POST", "PUT") and "paths-info" not in path
        signed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if writes and not signed and not path.startswith("/large/"):
            self._error(401, "Invalid username or password.")
            return
        for pattern, method in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                method(self, match.groupdict(), content, signed)
                return
        self._error(404, f"no route {path}")

    def _repository(self, found: Mapping[str, str], signed: bool) -> Repository | None:
        repository = self.hub.repositories.get(f"{found['kind']}s/{found['name']}")
        if repository is None or (repository.private and not signed):
            self._error(401, "Repository Not Found", code="RepoNotFound")
            return None
        return repository

    def _files(self, found: Mapping[str, str], signed: bool) -> tuple[str, dict[str, bytes]] | None:
        repository = self._repository(found, signed)
        if repository is None:
            return None
        at = repository.at(found.get("revision") or "main")
        if at is None:
            self._error(404, "Revision Not Found", code="RevisionNotFound")
        return at

    def info(self, found: dict[str, str], content: bytes, signed: bool) -> None:
        at = self._files(found, signed)
        if at is not None:
            names = [{"rfilename": name} for name in at[1]]
            private = self.hub.repositories[f"{found['kind']}s/{found['name']}"].private
            self._json({"id": found["name"], "sha": at[0], "private": private, "siblings": names})

    def tree(self, found: dict[str, str], content: bytes, signed: bool) -> None:
        at = self._files(found, signed)
        if at is None:
            return
        prefix = f"{found['folder']}/" if found.get("folder") else ""
        recursive = "recursive=true" in self.path.lower()
        entries: dict[str, dict[str, Any]] = {}
        for name, held in at[1].items():
            if not name.startswith(prefix):
                continue
            parts = name.removeprefix(prefix).split("/")
            folders = [prefix + "/".join(parts[:end]) for end in range(1, len(parts))]
            for folder in folders if recursive else folders[:1]:
                entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            if recursive or not folders:
                entries[name] = _entry(name, held)
        if prefix and not entries:
            self._error(404, "no such folder", code="EntryNotFound")
            return
        self._json(list(entries.values()))

    def paths(self, found: dict[str, str], content: bytes, signed: bool) -> None:
        at = self._files(found, signed)
        if at is not None:
            asked = json.loads(content)["paths"]
            self._json([_entry(name, at[1][name]) for name in asked if name in at[1]])

    def resolve(self, found: dict[str, str], content: bytes, signed: bool) -> None:
        found = {**found, "kind": "dataset" if found["kind"] else "model"}
        at = self._files(found, signed)
        if at is None:
            return
        if found["file"] not in at[1]:
            self._error(404, "Entry not found", code="EntryNotFound")
            return
        whole = at[1][found["file"]]
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        part = whole if match is None else whole[int(match[1]) : int(match[2] or len(whole)) + 1]
        self.hub.sent_bytes += len(part)
        headers = {"ETag": f'"{hashlib.sha1(whole).hexdigest()}"', "X-Repo-Commit": at[0]}
        self._send(200 if match is None else 206, part, headers)

    def create(self, found: dict[str, str], content: bytes, signed: bool) -> None:
        asked = json.loads(content)
        kind = asked.get("type") or "model"
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        key = f"{kind}s/{name}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if key in self.hub.repositories:
            self._json({"url": url, "error": "You already created this repo"}, 409)
            return
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repositories[key] = Repository(private)
        self.hub.repositories[key].commit({".gitattributes": b""})
        self._json({"url": url, "name": name})

    def validate(self, found: dict[str, str], content: bytes, signed: bool) -> None:
        self._json({"errors": [], "warnings": []})

    def preupload(self, found: dict[str, str], content: bytes, signed: bool) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(content)["files"]
        ]
        self._json({"files": files})

    def batch(self, found: dict[str, str], content: bytes, signed: bool) -> None:
        objects = []
        for one in json.loads(content)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/large/{one['oid']}", "header": {}}}
            there = one["oid"] in self.hub.large
            objects.append({**one, **({} if there else {"actions": upload})})
        self._json({"transfer": "basic", "objects": objects})

    def large(self, found: dict[str, str], content: bytes, signed: bool) -> None:
        self.hub.large[found["oid"]] = content
        self._send(200, b"", {})

    def commit(self, found: dict[str, str], content: bytes, signed: bool) -> None:
        repository = self._repository(found, signed)
        if repository is None:
            return
        files = dict(self.hub.files(f"{found['kind']}s/{found['name']}"))
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        name = repository.commit(files)
        url = f"{self.hub.url}/{found['name']}/commit/{name}"
        self._json({"success": True, "commitOid": name, "commitUrl": url})

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, b"", headers)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(name: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": name, "size": len(content), "oid": oid}


_ROUTES = (
    (rf"/api/{_REPOSITORY}(/revision/(?P<revision>[^/]+))?", _Handler.info),
    (rf"/api/{_REPOSITORY}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", _Handler.tree),
    (rf"/api/{_REPOSITORY}/paths-info/(?P<revision>[^/]+)", _Handler.paths),
    (rf"/api/{_REPOSITORY}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (rf"/api/{_REPOSITORY}/commit/(?P<revision>[^/]+)", _Handler.commit),
    (r"/api/repos/create", _Handler.create),
    (r"/api/validate-yaml", _Handler.validate),
    (r"/(datasets/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.batch),
    (r"/large/(?P<oid>[0-9a-f]+)", _Handler.large),
    (
        r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)",
        _Handler.resolve,
    ),
)
