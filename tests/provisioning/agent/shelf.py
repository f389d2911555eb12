"""The artifacts of a control plane in one file: keeps the store's promise, remembers, and cuts lines on request."""

import hashlib
from http.server import BaseHTTPRequestHandler
from typing import Any

from provisioning.agent.manifest import Entry, digest, read, written

Answer = tuple[int, dict[str, str], bytes]


class Shelf:
    """Artifacts by digest, whole or arriving."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.arriving: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.given: list[str] = []
        self.limit = 1 << 40
        self.spoils = False  # Gives other bytes than those that were asked for.
        self.cuts = {"GET": 0, "PUT": 0}  # How many of the next answers and bodies break off half-way.
        self.closed = False
        self.stops_at = ""  # The artifact of which nothing is taken.
        self.looks = 0  # How many of the next PUTs find what is whole still being looked at.
        self.drops = 0  # How many of the next PUTs find that what arrived was thrown away.
        self._cut = ""

    def keep(self, data: bytes) -> str:
        self.kept[digest(data)] = data
        return digest(data)

    def folder(self, files: dict[str, bytes], *, mode: int = 0o644) -> str:
        """Keep a folder; return its manifest's digest."""
        return self.keep(written(Entry(path, self.keep(data), len(data), mode) for path, data in files.items()))

    def files(self, sha256: str | None) -> dict[str, bytes]:
        """Return what is in a folder that arrived whole."""
        assert sha256 is not None
        return {entry.path: self.kept[entry.sha256] for entry in read(self.kept[sha256])}

    def is_cut(self, method: str) -> bool:
        return self._cut == method

    def answer(self, method: str, path: str, headers: dict[str, Any], body: bytes) -> Answer:
        sha256, self._cut = path.rpartition("/")[2], ""
        if self.closed:
            return 503, {}, b""
        if method == "PUT":
            return self._put(sha256, headers, body)
        if method == "HEAD":
            have = self.kept.get(sha256, self.arriving.get(sha256))
            return (404, {}, b"") if have is None else (200, {"Upload-Offset": str(len(have))}, b"")
        if sha256 not in self.kept:
            return 404, {}, b'{"detail": "no such artifact"}'
        self.given.append(sha256)
        data = self.kept[sha256] if not self.spoils else bytes(len(self.kept[sha256]))
        offset = int(str(headers.get("Range", "bytes=0-"))[6:-1])
        data = data[offset:]
        if self.cuts["GET"] > 0 and len(data) > 1:
            self.cuts["GET"] -= 1
            self._cut = "GET"
            return 200, {"Content-Length": str(len(data))}, data[: len(data) // 2]
        return 206 if offset else 200, {}, data

    def _put(self, sha256: str, headers: dict[str, Any], body: bytes) -> Answer:
        offset, size = int(headers["Upload-Offset"]), int(headers["Upload-Length"])
        self.puts.append(sha256)
        if sha256 == self.stops_at:
            return 503, {}, b'{"detail": "not now"}'
        if size > self.limit:
            return 413, {}, b'{"detail": "too large"}'
        have = self.kept.get(sha256, self.arriving.get(sha256, b""))
        if sha256 in self.kept:
            return 200, {"Upload-Offset": str(len(have))}, b"{}"
        if offset and self.drops > 0:
            self.drops -= 1
            self.arriving.pop(sha256, None)
            return 409, {"Upload-Offset": "0"}, b'{"detail": "thrown away"}'
        if offset != len(have) or (len(have) == size and self._looks_still()):
            return 409, {"Upload-Offset": str(len(have))}, b'{"detail": "not there"}'
        if self.cuts["PUT"] > 0 and len(body) > 1:
            self.cuts["PUT"] -= 1
            self.arriving[sha256] = have + body[: len(body) // 2]
            return 503, {}, b'{"detail": "cut"}'
        have += body
        self.arriving[sha256] = have
        if len(have) == size:
            del self.arriving[sha256]
            if hashlib.sha256(have).hexdigest() != sha256:
                return 422, {}, b'{"detail": "wrong digest"}'
            self.kept[sha256] = have
        return 200, {"Upload-Offset": str(len(have))}, b"{}"

    def _looks_still(self) -> bool:
        self.looks -= 1
        return self.looks >= 0


class ArtifactDoors(BaseHTTPRequestHandler):
    """Takes and gives bytes of artifacts."""

    shelf: Shelf

    def do_GET(self) -> None:
        self.carry("GET")

    def do_HEAD(self) -> None:
        self.carry("HEAD")

    def do_PUT(self) -> None:
        self.carry("PUT")

    def carry(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, headers, content = self.shelf.answer(method, self.path, dict(self.headers), body)
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if method != "HEAD":
            self.wfile.write(content)
        self.close_connection |= self.shelf.is_cut(method)
