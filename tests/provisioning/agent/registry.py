"""A registry of images in one file: one image, behind a password where asked for, as slow as asked for."""

import base64
import gzip
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
PIECE_BYTES = 32 << 10


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry:
    """Serves `repository:1`, a root archive as an image of one layer, on a free port of 127.0.0.1."""

    def __init__(self, archive: Path, *, login: tuple[str, str] | None = None) -> None:
        self.expected = base64.b64encode(":".join(login).encode()).decode() if login else None
        self.pause_s = 0.0  # Before each piece of a layer.
        self.asked: list[str] = []
        self.blobs: dict[str, bytes] = {}
        layer = gzip.compress(archive.read_bytes(), 1)
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(archive.read_bytes())]},
        }
        self.layer, self.layer_bytes = digest(layer), len(layer)
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": self._keep(json.dumps(config).encode(), CONFIG),
                "layers": [self._keep(layer, LAYER)],
            }
        ).encode()
        self._listen()

    def _keep(self, data: bytes, kind: str) -> dict[str, Any]:
        self.blobs[digest(data)] = data
        return {"mediaType": kind, "size": len(data), "digest": digest(data)}

    def _listen(self) -> None:  # noqa: C901  a small server is a list of cases
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                registry.asked.append(self.path)
                given = self.headers.get("Authorization", "").removeprefix("Basic ")
                if registry.expected and given != registry.expected:
                    self.say(401, b"{}", {"WWW-Authenticate": 'Basic realm="test"'})
                elif self.path == "/v2/":
                    self.say(200, b"{}")
                elif "/manifests/" in self.path and self.path.endswith(("/1", digest(registry.manifest))):
                    headers = {"Content-Type": MANIFEST, "Docker-Content-Digest": digest(registry.manifest)}
                    self.say(200, registry.manifest, headers)
                elif self.path.rpartition("/")[2] in registry.blobs:
                    self.say(200, registry.blobs[self.path.rpartition("/")[2]])
                else:
                    self.say(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}')

            def do_HEAD(self) -> None:
                self.do_GET()

            def say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                for start in range(0, len(body), PIECE_BYTES):
                    if len(body) > PIECE_BYTES:
                        time.sleep(registry.pause_s)
                    self.wfile.write(body[start : start + PIECE_BYTES])

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: Any) -> None:
                pass  # A pull that is aborted hangs up.

        self.server = Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
