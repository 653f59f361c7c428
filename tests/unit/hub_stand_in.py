"""A hub on loopback that speaks the Hugging Face hub's own protocol: what models and data sets are asked for, and what
is uploaded. It records every request."""

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
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]
KINDS = {"models": "", "datasets": "datasets/"}
API = re.compile(r"/api/(models|datasets)/(.+?)(?:/(revision|tree|paths-info|preupload|commit)/(.*))?")
RESOLVE = re.compile(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)")


@dataclass
class Repo:
    """refs: branch or tag -> commit; commits: commit -> files."""

    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    private: bool = False
    gated: bool = False


@dataclass
class Hub:
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)  # "GET /api/models/gpt2"
    tokens: set[str | None] = field(default_factory=set)  # that the requests brought
    moved: dict[str, str] = field(default_factory=dict)  # old name -> new name
    url: str = ""

    def put(self, name: str, files: Files, kind: str = "models", ref: str = "main", gated: bool = False) -> str:
        """A new commit, the head of a branch; returns its hash."""
        parts = [f"{kind} {name}", *(f"{path} {hashlib.sha1(files[path]).hexdigest()}" for path in sorted(files))]
        commit = hashlib.sha1("\n".join(parts).encode()).hexdigest()
        repo = self.repos.setdefault((kind, name), Repo())
        repo.commits[commit], repo.refs[ref], repo.gated = files, commit, gated
        return commit

    def about(self, name: str) -> list[str]:
        """The requests that name a repository."""
        return [line for line in self.requests if name in line]


def files_of(folder: Path) -> Files:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        if "Content-Type" not in headers:
            headers["Content-Type"] = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        headers.setdefault("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def error(self, status: int, code: str) -> None:
        self.answer(status, {"error": code}, **{"X-Error-Code": code, "X-Error-Message": code})

    def find(self, kind: str, name: str, rev: str | None) -> tuple[Repo, str] | None:
        """The repository and the commit; an error is answered where there is none."""
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            self.error(404, "RepoNotFound")
            return None
        rev = unquote(rev or "main")
        commit = rev if rev in repo.commits else repo.refs.get(rev)
        if commit is None:
            self.error(404, "RevisionNotFound")
            return None
        return repo, commit

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.tokens.add(self.headers.get("Authorization"))
        if path == "/api/whoami-v2":
            return self.answer(200, {"name": "me", "type": "user", "orgs": [{"name": "org"}], "auth": {}})
        if match := RESOLVE.fullmatch(path):
            return self.resolve(match)
        if match := API.fullmatch(path):
            return self.api(match)
        self.error(404, "EntryNotFound")

    def resolve(self, match: re.Match[str]) -> None:
        found = self.find("datasets" if match[1] else "models", match[2], match[3])
        if found is None:
            return
        repo, commit = found
        if repo.gated and self.headers.get("Authorization") != "Bearer hf_good":  # its description is for all to see
            return self.error(403 if self.headers.get("Authorization") else 401, "GatedRepo")
        content = repo.commits[commit].get(match[4])
        if content is None:
            return self.answer(404, b"", **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        tag = hashlib.sha1(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        self.answer(200, content, **headers)

    def api(self, match: re.Match[str]) -> None:
        kind, name, what, rest = match.groups()
        rev, _, below = (rest or "main").partition("/")
        if what == "revision":
            rev, below = rest, ""
        if name in self.hub.moved:
            return self.answer(307, b"", Location=self.path.replace(name, self.hub.moved[name], 1))
        found = self.find(kind, name, rev)
        if found is None:
            return
        repo, commit = found
        files = repo.commits[commit]
        if what == "tree":
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
            return self.answer(200, tree(files, below.strip("/"), recursive))
        siblings = [{"rfilename": path} for path in files]
        about = {"id": name, "sha": commit, "private": repo.private, "siblings": siblings, "tags": []}
        self.answer(200, about | {"downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z"})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"POST {path}")
        self.hub.tokens.add(self.headers.get("Authorization"))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":  # of a card
            return self.answer(200, {"errors": [], "warnings": []})
        match = API.fullmatch(path)
        if match is None:
            return self.error(404, "EntryNotFound")
        kind, name, what, rest = match.groups()
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            return self.error(404, "RepoNotFound")
        if what == "paths-info":
            asked = parse_qs(body.decode()).get("paths", []) or json.loads(body or b"{}").get("paths", [])
            files = repo.commits[rest if rest in repo.commits else repo.refs[rest]]
            entries = {entry["path"]: entry for entry in tree(files, "", True)}
            return self.answer(200, [entries[one] for one in asked if one in entries])
        if what == "preupload":
            wanted = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
            return self.answer(200, {"files": [one | {"shouldIgnore": False, "oid": None} for one in wanted]})
        if what == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            new = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines[1:]}
            commit = self.hub.put(name, repo.commits.get(repo.refs.get("main", ""), {}) | new, kind)
            url = f"{self.hub.url}/{name}/commit/{commit}"
            return self.answer(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})
        self.error(404, "EntryNotFound")

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        kind = f"{wanted.get('type') or 'model'}s"
        url = f"{self.hub.url}/{KINDS[kind]}{name}"
        if (kind, name) in self.hub.repos:
            return self.answer(409, {"error": "exists", "url": url})
        self.hub.put(name, {}, kind)
        self.hub.repos[kind, name].private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.answer(200, {"url": url, "id": name})


def tree(files: Files, below: str, recursive: bool) -> list[dict[str, Any]]:
    """The entries of a folder of a repository, folders first."""
    inside = {path: content for path, content in files.items() if not below or path.startswith(f"{below}/")}
    folders = {str(parent) for path in inside for parent in Path(path).parents} - {".", below}
    entries = [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)]
    for path, content in inside.items():
        oid = hashlib.sha1(content).hexdigest()
        entries.append({"type": "file", "path": path, "oid": oid, "size": len(content)})
    here = Path(below or ".")
    return [entry for entry in entries if recursive or Path(entry["path"]).parent == here]


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers until the end of the block."""
    hub = Hub()
    handler = type("HandlerOfOne", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
