"""A small server that speaks the part of the Hugging Face hub's protocol that downloads use, and that can fail."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".pt", ".bin")  # stored with Git LFS: their ETag is a SHA-256, that of others is Git's SHA-1


@dataclass
class FakeHub:
    """The repositories of the server, its faults, and a log of its requests.

    Attributes:
        repositories: repository → name of a file → its content.
        gated: repositories whose files need a token.
        corrupt: names of files that are sent with another content of the same size.
        cut: name of a file → bytes after which the connection is closed, once.
        held: name of a file → bytes after which nothing more is sent until `released`.
    """

    repositories: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    corrupt: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    released: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range

    def ranges(self, name: str) -> list[str]:
        """Return the Range header of every GET of a file."""
        return [header for method, path, header in self.requests if method == "GET" and path.endswith(f"/{name}")]

    @contextmanager
    def serve(self) -> Iterator[FakeHub]:
        """Serve on a free port of this machine."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            self.released.set()
            server.shutdown()
            server.server_close()


@functools.lru_cache(maxsize=16)  # of files of a gigabyte
def etag(name: str, content: bytes) -> str:
    """Return the hash that the hub publishes for a file."""
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlparse(self.path).path
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if path.startswith("/api/models/"):
            self._info(path.removeprefix("/api/models/"))
        else:
            repository, _, rest = path.strip("/").partition("/resolve/")
            self._file(repository, rest.partition("/")[2])

    def _info(self, repository: str) -> None:
        files = self.hub.repositories.get(repository)
        if files is None:
            return self._refuse(404, "RepoNotFound")
        siblings = []
        for name, content in files.items():
            line: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": etag("", content)}
            if name.endswith(LARGE):
                line["lfs"] = {"sha256": etag(name, content), "size": len(content), "pointerSize": 134}
            siblings.append(line)
        body = json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _file(self, repository: str, name: str) -> None:
        content = self.hub.repositories.get(repository, {}).get(name)
        if repository in self.hub.gated and "Authorization" not in self.headers:
            return self._refuse(401, "GatedRepo")
        if content is None:
            return self._refuse(404, "EntryNotFound")
        published = {"ETag": f'"{etag(name, content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if name in self.hub.corrupt:
            content = bytes(len(content))
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if first:
            published["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self._head(206 if first else 200, {**published, "Content-Length": str(len(content) - first)})
        if self.command == "GET":
            self._send(name, content[first:])

    def _send(self, name: str, content: bytes) -> None:
        if name in self.hub.cut:
            self.wfile.write(content[: self.hub.cut.pop(name)])
            self.close_connection = True
        elif name in self.hub.held:
            self.wfile.write(content[: self.hub.held.pop(name)])
            self.wfile.flush()
            self.hub.released.wait(60)
            self.close_connection = True
        else:
            self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        self._head(status, {"X-Error-Code": code, "Content-Length": "0"})

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
