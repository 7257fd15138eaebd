"""A server of the Hugging Face Hub's routes that are used, on this machine, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

SITE = "https://huggingface.co"  # huggingface_hub reads the names of repositories from addresses


class Hub:
    """Repositories: their files by commit, and the commit of each branch or tag."""

    def __init__(self):
        self.commits, self.revisions, self.private = {}, {}, {}
        self.requests, self.truncated, self.down = [], False, False

    def commit(self, repo, files, revision="main"):
        before = self.commits.get((repo, self.revisions.get((repo, "main"))), {})
        content = {**before, **files}
        digest = hashlib.sha1(repr(sorted(content.items())).encode()).hexdigest()
        self.commits[repo, digest] = content
        self.revisions[repo, revision] = self.revisions[repo, digest] = digest
        self.private.setdefault(repo, False)
        return digest


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body=b"", headers=None, length=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, content, status=200):
        self.reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub, parts = self.server.hub, unquote(urlsplit(self.path).path).strip("/").split("/")
        hub.requests.append((self.command, "/".join(parts)))
        if hub.down:
            return self.reply(500)
        if parts[0] == "api":
            repo = "/".join(parts[2:4])
            return self.json({"id": repo, "private": hub.private[repo], "siblings": []})
        repo, revision, name = "/".join(parts[:2]), "/".join(parts[3:-1]), parts[-1]
        if repo not in hub.private:
            return self.reply(401, headers={"X-Error-Code": "RepoNotFound"})
        commit = hub.revisions.get((repo, revision))
        if commit is None:
            return self.reply(404, headers={"X-Error-Code": "RevisionNotFound"})
        headers = {"X-Repo-Commit": commit}
        body = hub.commits[repo, commit].get(name)
        if body is None:
            return self.reply(404, headers={**headers, "X-Error-Code": "EntryNotFound"})
        headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
        if hub.truncated and self.command == "GET":
            self.close_connection = True
            sent = b"" if self.headers["Range"] else body[: len(body) // 2]
            return self.reply(200, sent, headers, len(body))
        return self.reply(200, body, headers)

    def do_POST(self):
        hub, parts = self.server.hub, unquote(urlsplit(self.path).path).strip("/").split("/")
        hub.requests.append(("POST", "/".join(parts)))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if hub.down:
            return self.reply(500)
        if parts == ["api", "validate-yaml"]:
            return self.json({"errors": [], "warnings": []})
        if parts == ["api", "repos", "create"]:
            sent = json.loads(body)
            repo = f"{sent['organization']}/{sent['name']}"
            if repo in hub.private:
                return self.json({"error": "it exists", "url": f"{SITE}/{repo}"}, 409)
            hub.commit(repo, {})
            hub.private[repo] = sent["visibility"] == "private"
            return self.json({"url": f"{SITE}/{repo}"})
        repo = "/".join(parts[2:4])
        if parts[4] == "preupload":
            files = json.loads(body)["files"]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return self.json({"files": [{"path": file["path"], **modes} for file in files]})
        lines = [json.loads(line) for line in body.splitlines()]
        added = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        commit = hub.commit(repo, added)
        address = f"{SITE}/{repo}/commit/{commit}"
        return self.json({"commitUrl": address, "commitOid": commit})


@contextmanager
def serving(cache):
    """Yields a hub that huggingface_hub takes for its own, with an empty cache."""
    import huggingface_hub
    from huggingface_hub import constants, file_download

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(file_download.time, "sleep", lambda _: None)
        huggingface_hub.close_session()
        yield server.hub
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
