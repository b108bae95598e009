"""A hub on this machine: repositories in memory, and of its API what a push asks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

API = re.compile(r"^/api/models/(?P<id>[^/]+/[^/]+)(?:/(?P<what>preupload|commit|revision)(?:/(?P<rest>.*))?)?$")
LFS = re.compile(r"^/(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch$")


class Repository:
    def __init__(self, *, private=False, files=None):
        self.private, self.files, self.commits = private, dict(files or {}), []

    @property
    def head(self):
        return self.commits[-1] if self.commits else "0" * 40


class Hub:
    """repositories: by id. fail: paths (their beginning) that are answered with an error, each as often as it is named.

    calls: of the API, by method and path.
    """

    def __init__(self):
        self.repositories, self.objects, self.fail, self.calls = {}, {}, {}, []
        self.url = ""

    def said(self, method, path):
        return [call for call in self.calls if call[0] == method and path in call[1]]


@contextmanager
def running():
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, data=b"", status=200, **headers):
        content = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(headers.pop("size", len(content))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status, code):
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def handle_all(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.calls.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for start, statuses in self.hub.fail.items():
            if path.startswith(start) and statuses:
                return self.refuse(statuses.pop(0), "Refused")
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path.startswith("/upload/"):
            self.hub.objects[path.removeprefix("/upload/")] = body
            return self.answer()
        for pattern, action in ((LFS, self.batch), (API, self.api)):
            found = pattern.match(path)
            if found:
                repository = self.hub.repositories.get(found["id"])
                if repository is None:
                    return self.refuse(404, "RepoNotFound")
                return action(
                    repository, body, **{name: value for name, value in found.groupdict().items() if name != "id"}
                )
        return self.refuse(404, "EntryNotFound")

    do_GET = do_POST = do_PUT = do_HEAD = handle_all  # noqa: N815

    def create(self, asked):
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.hub.repositories:
            return self.answer({"error": "exists", "url": f"{self.hub.url}/{name}"}, 409)
        hidden = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private=hidden, files={".gitattributes": b""})
        return self.answer({"url": f"{self.hub.url}/{name}", "id": name, "name": name})

    def api(self, repository, body, what, rest):
        if what == "preupload":
            asked = json.loads(body)["files"]
            large = [{"path": each["path"], "uploadMode": self.mode(each), "shouldIgnore": False} for each in asked]
            return self.answer({"files": large})
        if what == "commit":
            return self.commit(repository, body)
        siblings = [{"rfilename": name} for name in repository.files]
        found = {"id": "x/y", "sha": repository.head, "siblings": siblings, "private": repository.private, "tags": []}
        return self.answer(found)

    @staticmethod
    def mode(file):
        return "lfs" if file["path"].endswith(".safetensors") else "regular"

    def batch(self, _repository, body):
        asked = json.loads(body)["objects"]
        found = []
        for each in asked:
            known = each["oid"] in self.hub.objects
            actions = (
                {} if known else {"actions": {"upload": {"href": f"{self.hub.url}/upload/{each['oid']}", "header": {}}}}
            )
            found.append({**each, **actions})
        return self.answer({"transfer": "basic", "objects": found})

    def commit(self, repository, body):
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        proposed = "create_pr=1" in self.path
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        oid = hashlib.sha1(body, usedforsecurity=False).hexdigest()
        repository.commits.append(oid)
        repository.files.update(files)
        found = {"commitOid": oid, "commitUrl": f"{self.hub.url}/x/y/commit/{oid}", "success": True}
        if proposed:
            found["pullRequestUrl"] = f"{self.hub.url}/x/y/discussions/1"
        return self.answer(found)
