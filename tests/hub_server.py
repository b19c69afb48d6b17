"""A local server that speaks as much of the hub's HTTP interface as its own client asks of us: repositories with
branches and commits, downloads, and commits with small files inside and large ones beside (Git LFS). As on the real
hub, a large file is downloaded from another host, to which its page redirects and which wants no token.

What it does not have: Xet storage (the tests set HF_HUB_DISABLE_XET), rate limits, pull requests, quotas.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.hub_repos import LARGE, Hub, Repo, blob, sha256, stored

TOKEN = "hf_of_the_tests"


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        of = hub

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
    of: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        self.asked = f"{self.command} {path}"
        self.of.asked.append(self.asked)
        for part, status in self.of.fails.items():
            if part in self.asked:
                if not status:
                    self.close_connection = True
                    return None
                return self._say(status, {"error": "as the test wants it"})
        for pattern, act in ACTS:
            found = re.fullmatch(pattern, path)
            if found is not None:
                return act(self, **found.groupdict())
        return self._say(404, {"error": f"the tests' hub has no {path}"})

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _say(self, status: int, document: Any, **headers: str) -> None:
        self._send(status, json.dumps(document).encode(), Content_Type="application/json", **headers)

    def _send(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(data))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self._write(data)

    def _write(self, data: bytes) -> None:
        for part in [part for part in self.of.cuts if part in self.asked]:
            data, self.close_connection = data[: self.of.cuts.pop(part)], True
        if self._stalls:
            self.wfile.write(data[: len(data) // 2])
            self.connection.recv(1)
            self.close_connection = True
            return
        self.wfile.write(data)

    @property
    def _stalls(self) -> bool:
        return any(part in self.asked for part in self.of.stalls)

    @property
    def _knows(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repo(self, kind: str | None, name: str) -> Repo | None:
        """The repository, if this token may see it; else it is answered."""
        repo = self.of.repos.get(f"{(kind or 'models/')}{name}")
        if repo is None or (repo.private and not self._knows):
            self._say(404 if self._knows else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        if repo.gated:
            self._say(403, {"error": "Access is restricted"}, X_Error_Code="GatedRepo")
            return None
        return repo

    def _commit(self, repo: Repo, revision: str) -> str | None:
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            self._say(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
            return None
        return commit

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        repo = self._repo(kind, name)
        commit = None if repo is None else self._commit(repo, revision or "main")
        if repo is not None and commit is not None:
            files = [{"rfilename": file, **stored(data)} for file, data in repo.commits[commit].items()]
            self._say(200, {"id": name, "sha": commit, "private": repo.private, "siblings": files})

    def tree(self, kind: str, name: str, revision: str, folder: str | None = None) -> None:
        repo = self._repo(kind, name)
        commit = None if repo is None else self._commit(repo, revision)
        if repo is None or commit is None:
            return
        start = "" if folder is None else f"{folder}/"
        files = [(file, data) for file, data in repo.commits[commit].items() if file.startswith(start)]
        if folder is not None and not files:
            self._say(404, {"error": f"{folder} does not exist on {revision}"}, X_Error_Code="EntryNotFound")
            return
        self._say(200, [{"type": "file", "path": file, "oid": blob(data)} | stored(data) for file, data in files])

    def resolve(self, kind: str | None, name: str, revision: str, file: str) -> None:
        repo = self._repo(kind, name)
        commit = None if repo is None else self._commit(repo, revision)
        if repo is None or commit is None:
            return
        data = repo.commits[commit].get(file)
        if data is None:
            self._say(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            return
        if len(data) <= LARGE:
            self._send_file(data, ETag=f'"{blob(data)}"', X_Repo_Commit=commit)
            return
        beside = f"{self.of.beside}/large/{'' if kind is None else kind}{name}/resolve/{commit}/{file}"
        linked = {"X_Linked_ETag": f'"{sha256(data)}"', "X_Linked_Size": str(len(data))}
        self._send(302, b"Found. Redirecting", Location=beside, X_Repo_Commit=commit, **linked)

    def large(self, kind: str | None, name: str, commit: str, file: str) -> None:
        if "Authorization" in self.headers:
            self._say(400, {"error": "the address has a signature, and a token goes to no other host than the hub"})
            return
        self._send_file(self.of.repos[f"{kind or 'models/'}{name}"].commits[commit][file])

    def _send_file(self, data: bytes, **headers: str) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted is None:
            self._send(200, data, **headers)
            return
        self.of.ranges.append(wanted[0])
        start = int(wanted[1])
        self._send(206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}", **headers)

    def whoami(self) -> None:
        if self._knows:
            self._say(200, {"type": "user", "name": "owner", "orgs": [{"name": "org"}]})
        else:
            self._say(401, {"error": "Invalid credentials in Authorization header"})

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
        if not self._knows:
            self._say(401, {"error": "Invalid credentials in Authorization header"})
        elif name.partition("/")[0] != "owner":
            self._say(403, {"error": f"You don't have the rights to create a model under {name.partition('/')[0]}"})
        elif f"models/{name}" in self.of.repos:
            self._say(409, {"error": "You already created this model repo", "url": f"{self.of.url}/{name}"})
        else:
            private = asked.get("private", asked.get("visibility") == "private")
            self.of.put(f"models/{name}", {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
            self._say(200, {"url": f"{self.of.url}/{name}", "name": name})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        files = json.loads(self.body)["files"]
        modes = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["size"] > LARGE else "regular",
                "shouldIgnore": False,
            }
            for each in files
        ]
        self._say(200, {"files": modes})

    def batch(self, name: str) -> None:
        objects = json.loads(self.body)["objects"]
        actions = [
            {**each, "actions": {"upload": {"href": f"{self.of.url}/stored/{each['oid']}", "header": {}}}}
            for each in objects
        ]
        self._say(200, {"transfer": "basic", "objects": actions})

    def store(self, oid: str) -> None:
        assert sha256(self.body) == oid
        if self._stalls:
            self.connection.recv(1)
            self.close_connection = True
            return
        self.of.stored[oid] = self.body[:-1] if self.of.alters else self.body
        self._send(200, b"")

    def receive(self, kind: str, name: str, revision: str) -> None:
        repo = self._repo(kind, name)
        if repo is None:
            return
        files = dict(repo.commits[repo.branches[revision]])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.of.stored[value["oid"]]
        commit = repo.commit(files, revision)
        where = f"{self.of.url}/{name}/commit/{commit}"
        self._say(200, {"success": True, "commitOid": commit, "commitUrl": where, "hookOutput": ""})

    def valid(self) -> None:
        self._say(200, {"errors": [], "warnings": []})


NAME, KIND = "(?P<name>[^/]+/[^/]+)", "(?P<kind>models/|datasets/)"
ACTS = (
    (f"/api/{KIND}{NAME}(?:/revision/(?P<revision>.+))?", _Handler.info),
    (f"/api/{KIND}{NAME}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler.tree),
    (f"/api/{KIND}{NAME}/preupload/(?P<revision>.+)", _Handler.preupload),
    (f"/api/{KIND}{NAME}/commit/(?P<revision>.+)", _Handler.receive),
    (f"/(?P<kind>datasets/)?{NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler.resolve),
    (f"/large/(?P<kind>datasets/)?{NAME}/resolve/(?P<commit>[^/]+)/(?P<file>.+)", _Handler.large),
    ("/api/whoami-v2", _Handler.whoami),
    ("/api/repos/create", _Handler.create),
    ("/api/validate-yaml", _Handler.valid),
    (f"/{NAME}[.]git/info/lfs/objects/batch", _Handler.batch),
    ("/stored/(?P<oid>[0-9a-f]{64})", _Handler.store),
)
