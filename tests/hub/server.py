"""A small Hugging Face Hub: users, tokens, repositories, and the requests by which files come and go."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "other"}


@dataclass
class Repository:
    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    @property
    def revision(self) -> str:
        return f"{self.commits:040x}"


@dataclass
class Hub:
    """tokens: {token: (user, whether it may write)}. requests: (method, path) of all that came."""

    tokens: dict[str, tuple[str, bool]]
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    down: bool = False
    url: str = ""


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """The hub, answering at `hub.url`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, value: Any = None, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, message: str, code: str = "") -> None:
        more = {"X_Error_Code": code} if code else {}
        self.answer(status, {"error": message}, X_Error_Message=message, **more)

    @property
    def user(self) -> tuple[str, bool] | None:
        return self.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def handle_any(self) -> None:
        path, length = unquote(urlsplit(self.path).path), int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.hub.requests.append((self.command, path))
        if self.hub.down:
            return self.refuse(500, "the Hub is being mended")
        if path.startswith("/objects/"):
            return self.keep(path.removeprefix("/objects/"), body)
        if self.headers.get("Authorization") and self.user is None:
            return self.refuse(401, "Invalid credentials in Authorization header")
        for method, pattern, handle in ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, path)):
                return handle(self, *found.groups(), body=body)
        raise AssertionError(f"the fake hub does not know {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def keep(self, oid: str, body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.answer(200, {})

    def visible(self, name: str) -> Repository | None:
        found = self.hub.repositories.get(name)
        owner = self.user is not None and self.user[0] == name.split("/")[0]
        return found if found and (owner or not found.private) else None

    def may_write(self, name: str) -> bool:
        return self.user is not None and self.user == (name.split("/")[0], True)

    # ------------------------------------------------------------------------------------------------- requests

    def create(self, *, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if self.user is None:
            return self.refuse(401, "Invalid username or password.")
        if not self.may_write(name):
            return self.refuse(403, f"You don't have the rights to create a model under the namespace {name}")
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repositories:
            return self.answer(409, {"error": "You already created this model repo", "url": url})
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repositories[name] = Repository(private=private)
        self.answer(200, {"url": url, "id": name})

    def info(self, name: str, *, body: bytes) -> None:
        found = self.visible(name)
        if found is None:
            return self.refuse(404 if self.user else 401, "Repository not found", "RepoNotFound")
        files = [{"rfilename": file} for file in found.files]
        self.answer(200, {"id": name, "sha": found.revision, "private": found.private, "siblings": files, "tags": []})

    def validate(self, *, body: bytes) -> None:
        metadata = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
        license = metadata.get("license")
        if license is None or license in LICENSES:
            return self.answer(200, {"errors": [], "warnings": []})
        self.answer(400, {"errors": [{"message": '"license" must be one of those known'}], "warnings": []})

    def preupload(self, name: str, *, body: bytes) -> None:
        if not self.may_write(name):
            return self.refuse(403, "You have read access but not the required permissions")
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files})

    def batch(self, name: str, *, body: bytes) -> None:
        objects = [
            {"oid": x["oid"], "size": x["size"]}
            | ({} if x["oid"] in self.hub.objects else {"actions": {"upload": {"href": self.object_url(x["oid"])}}})
            for x in json.loads(body)["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def object_url(self, oid: str) -> str:
        return f"{self.hub.url}/objects/{oid}"

    def commit(self, name: str, *, body: bytes) -> None:
        if not self.may_write(name):
            return self.refuse(403, "You have read access but not the required permissions")
        repository = self.hub.repositories[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.objects[value["oid"]]
        repository.commits += 1
        url = f"{self.hub.url}/{name}/commit/{repository.revision}"
        self.answer(200, {"success": True, "commitUrl": url, "commitOid": repository.revision})

    def resolve(self, name: str, file: str, *, body: bytes) -> None:
        found = self.visible(name)
        if found is None:
            return self.refuse(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if file not in found.files:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        content = found.files[file]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self.answer(200, content, ETag=etag, X_Repo_Commit=found.revision)


NAME = r"([^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("GET", f"/api/models/{NAME}", Handler.info),
    ("POST", f"/api/models/{NAME}/preupload/main", Handler.preupload),
    ("POST", f"/api/models/{NAME}/commit/main", Handler.commit),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("HEAD", f"/{NAME}/resolve/main/(.+)", Handler.resolve),
    ("GET", f"/{NAME}/resolve/main/(.+)", Handler.resolve),
]
