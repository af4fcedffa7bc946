"""A stand-in for the Hugging Face hub: one repository, a folder, served on 127.0.0.1, with faults on demand.

It suffices because a bake makes only two kinds of request: for the list of files, /api/models/ID, and for a file,
/ID/resolve/REVISION/PATH. It does not redirect large files to other storage, and does not offer Xet. Shapes and headers are those that huggingface_hub 2.4 reads (hf_api.py,
file_download.py) and https://huggingface.co/docs/hub/api describes.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS = (".safetensors", ".bin", ".h5", ".msgpack")
INFO = re.compile(r"/api/models/(?P<id>.+?)(?:/revision/(?P<revision>[^/]+))?")
FILE = re.compile(r"/(?P<id>.+?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass(frozen=True)
class Request:
    method: str
    path: str  # quoted, without the query
    range: str | None
    authorization: str | None


@dataclass(frozen=True)
class Refusal:
    """An answer with this status, error code and message, as the hub words them in its headers."""

    status: int
    code: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class Cut:
    """Ends the connection once, after so many bytes of a body: closes it, or resets it."""

    after_bytes: int
    reset: bool = False


class HubStandIn(ThreadingHTTPServer):
    """A hub of one model, `id`, in `folder`, with its branch main at COMMIT.

    requests: all requests, in order. refusals: by the start of a URL's path. cuts: by file, each used once. sent: by
    file, bytes to send instead; its listed size and hash stay. answering: while clear, requests wait.
    """

    daemon_threads = True

    def __init__(self, folder: Path, id: str = "owner/name"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.id, self.folder = id, folder
        self.requests: list[Request] = []
        self.refusals: dict[str, Refusal] = {}
        self.cuts: dict[str, Cut] = {}
        self.sent: dict[str, bytes] = {}
        self.answering = threading.Event()
        self.answering.set()

    def __enter__(self) -> HubStandIn:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.answering.set()
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked(self, method: str = "GET") -> list[str]:
        """The paths of the requested files, in order."""
        files = (FILE.fullmatch(request.path) for request in self.requests if request.method == method)
        return [unquote(match["path"]) for match in files if match]

    def names(self) -> list[str]:
        return sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file())

    def info(self) -> dict:
        return {"id": self.id, "sha": COMMIT, "siblings": [self.sibling(name) for name in self.names()]}

    def sibling(self, name: str) -> dict:
        content = (self.folder / name).read_bytes()
        facts = {"rfilename": name, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
        if name.endswith(LFS):
            sha256 = hashlib.sha256(content).hexdigest()
            facts["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
        return facts


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubStandIn

    def do_GET(self) -> None:
        path, headers = urlsplit(self.path).path, self.headers
        self.server.requests.append(Request(self.command, path, headers["Range"], headers["Authorization"]))
        self.server.answering.wait()
        for start, refusal in self.server.refusals.items():
            if path.startswith(start):
                return self.refuse(refusal)
        match = INFO.fullmatch(path) or FILE.fullmatch(path)
        if not match or match["id"] != self.server.id:
            return self.refuse(Refusal(404, "RepoNotFound", "Repository not found"))
        if match["revision"] not in (None, "main", COMMIT):
            return self.refuse(Refusal(404, "RevisionNotFound", f"Invalid rev id: {unquote(match['revision'])}"))
        if match.re is INFO:
            return self.send(200, json.dumps(self.server.info()).encode(), {"Content-Type": "application/json"})
        name = unquote(match["path"])
        if name not in self.server.names():
            return self.refuse(Refusal(404, "EntryNotFound", "Entry not found"))
        self.send_file(name)

    do_HEAD = do_GET

    def refuse(self, refusal: Refusal) -> None:
        headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
        self.send(refusal.status, b"", {k: v for k, v in headers.items() if v})

    def send_file(self, name: str) -> None:
        """Send the file, from N on if there is a Range header `bytes=N-`, the only form that huggingface_hub sends."""
        sibling = self.server.sibling(name)
        content = self.server.sent.get(name) or (self.server.folder / name).read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        headers["ETag"] = f'"{sibling["lfs"]["sha256"] if "lfs" in sibling else sibling["blobId"]}"'
        cut = self.server.cuts.pop(name, None) if self.command == "GET" else None
        if not self.headers["Range"]:
            return self.send(200, content, headers, cut)
        begin = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
        headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self.send(206, content[begin:], headers, cut)

    def send(self, status: int, body: bytes, headers: dict[str, str], cut: Cut | None = None) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: cut.after_bytes] if cut else body)
        if cut:
            self.close_connection = True
        if cut and cut.reset:
            # Closing a socket that lingers for 0 s sends RST. The server itself would shut it down in good order first.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, *_) -> None:
        """Log nothing, because `requests` has it all."""
