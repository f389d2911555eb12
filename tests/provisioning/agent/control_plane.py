"""A control plane in one file: it keeps the agent protocol's promise, remembers everything, and fails on request."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.provisioning.agent.shelf import ArtifactDoors, Shelf

TOKEN = "jt_one_time"
NODE = "nod_narvik1"

Answer = tuple[int, dict[str, str], bytes]


def make_assignment(name: str, /, **changes: Any) -> dict[str, Any]:
    """An entry of `desired` as the protocol spells it: one replica without GPUs that sleeps."""
    return {
        "id": name,
        "fence": 1,
        "instance": "ins_demo",
        "desired": "prepared",
        "gpus": [],
        "command": ["sleep", "600"],
        "env": {},
        "replica": 0,
        "replicas": 1,
        "peers": ["localhost"],
        "stop_grace_s": 5,
    } | changes


class ControlPlane:
    """Speaks /agent/v1 on a free port of 127.0.0.1."""

    def __init__(self) -> None:
        self.guard = threading.RLock()
        self.key_sha256: str | None = None
        self.joins: list[dict[str, Any]] = []
        self.reports: list[dict[str, Any]] = []
        self.heard_at: list[float] = []
        self.generation = 0
        self.desired: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, bytearray] = {}
        self.chunks: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.volumes: dict[str, dict[str, Any]] = {}
        self.operations: list[dict[str, Any]] = []
        self.shelf = Shelf()
        self.secrets: dict[str, dict[str, str]] = {}
        self.asked_for_secrets: list[tuple[str, int]] = []
        self.poll_after_ms = 100
        self.forced: Callable[[str], Answer | None] = lambda path: None
        self.lose_answers: dict[str, int] = {}  # How many of the next answers are lost on their way, by path.
        self.server: ThreadingHTTPServer | None = None
        self.port = 0
        self.listen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def listen(self) -> None:
        """Answer at the same port as before."""
        plane = self

        class Handler(ArtifactDoors, BaseHTTPRequestHandler):
            shelf = plane.shelf
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, headers, content = plane.answer(self.path, self.headers, body)
                with plane.guard:
                    is_lost = plane.lose_answers.get(self.path, 0) > 0
                    plane.lose_answers[self.path] = plane.lose_answers.get(self.path, 0) - is_lost
                if is_lost:
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(content))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: Any) -> None:
                pass  # Agents are killed in the middle of their words here.

        self.server = Server(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Answer nobody."""
        if self.server is not None:
            self.forced = lambda path: (503, {"Connection": "close"}, b"")  # Also on connections that are open.
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def reopen(self) -> None:
        """Answer again."""
        self.forced = lambda path: None
        self.listen()

    def answer(self, path: str, headers: Any, body: dict[str, Any]) -> Answer:
        with self.guard:
            forced = self.forced(path)
            if forced is not None:
                return forced
            if path == "/agent/v1/join":
                status, content = self.join(headers.get("Authorization"), body)
            elif path == "/agent/v1/sync":
                status, content = 200, {"results": [self.sync(report) for report in body["reports"]]}
            elif path == "/agent/v1/artifacts/missing":
                status, content = 200, {"missing": [one for one in body["sha256s"] if one not in self.shelf.kept]}
            elif path == "/agent/v1/secrets":
                self.asked_for_secrets.append((body["assignment"], body["fence"]))
                status, content = 200, {"registry": self.secrets.get(body["assignment"])}
            else:
                status, content = 404, {"detail": "no such door"}
            return status, {"Content-Type": "application/json"}, json.dumps(content).encode()

    def join(self, authorization: str | None, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.joins.append(body)
        if authorization != f"Bearer {TOKEN}":
            return 401, {"detail": "unknown or expired token"}
        if self.key_sha256 not in {None, body["key_sha256"]}:
            return 409, {"detail": "this token was used with another key"}
        is_new = self.key_sha256 is None
        self.key_sha256 = body["key_sha256"]
        return 201 if is_new else 200, {"node": NODE, "name": "narvik-1", "poll_after_ms": self.poll_after_ms}

    def sync(self, report: dict[str, Any]) -> dict[str, Any]:
        if hashlib.sha256(report["key"].encode()).hexdigest() != self.key_sha256:
            return {"node": report["node"], "status": "unauthorized", "poll_after_ms": self.poll_after_ms}
        last = self.reports[-1] if self.reports else {"agent_epoch": 0, "seq": 0}
        if (report["agent_epoch"], report["seq"]) <= (last["agent_epoch"], last["seq"]):
            return {"node": report["node"], "status": "stale", "poll_after_ms": self.poll_after_ms}
        self.reports.append(report)
        self.heard_at.append(time.monotonic())
        for chunk in report["logs"]:
            kept = self.logs.setdefault(chunk["assignment"], bytearray())
            self.chunks.append(chunk)
            if chunk["offset"] <= len(kept):
                kept[chunk["offset"] :] = base64.b64decode(chunk["data"])
        for one in report["assignments"]:
            self.logs.setdefault(one["id"], bytearray())
        result = {
            "node": report["node"],
            "status": "ok",
            "poll_after_ms": self.poll_after_ms,
            "desired_generation": self.generation,
            "log_cursors": {name: len(kept) for name, kept in self.logs.items()},
            "events_seen": self.note_events(report.get("events", [])),
        }
        if report["desired_seen"] != self.generation:
            result["desired"] = {
                "assignments": list(self.desired.values()),
                "operations": self.operations,
                "volumes": list(self.volumes.values()),
            }
        return result

    def note_events(self, events: list[dict[str, Any]]) -> int:
        """Take each entry of the journal once, as the real one does."""
        for event in events:
            if not self.events or event["n"] > self.events[-1]["n"]:
                self.events.append(event)
        return self.events[-1]["n"] if self.events else 0

    def ask(self, name: str, kind: str, **more: Any) -> None:
        """Ask for one operation, and for none of those before it any more."""
        with self.guard:
            self.operations = [{"id": name, "kind": kind, "gpu": "", "attempt": 1} | more]
            self.generation += 1

    def end_of(self, name: str) -> tuple[str, str] | None:
        """How the node says that an operation ended."""
        told = [one["body"] for one in self.events if one["kind"] == "operation" and one["body"]["operation"] == name]
        return (told[0]["result"], told[0]["message"]) if told else None

    def keep(self, name: str, desired: str = "present", **changes: Any) -> None:
        """Change one volume of the document."""
        with self.guard:
            ordinary = {"id": name, "size_bytes": 4096, "desired": desired, "source": "", "made": False}
            self.volumes[name] = ordinary | changes
            self.generation += 1

    def said_of(self, name: str) -> dict[str, Any] | None:
        """The last word of the node on a volume."""
        words = [word for report in self.reports for word in report.get("volumes", []) if word["id"] == name]
        return words[-1] if words else None

    def want(self, name: str, desired: str, /, **changes: Any) -> None:
        """Change one assignment of the document."""
        with self.guard:
            self.desired[name] = self.desired.get(name, make_assignment(name)) | {"desired": desired} | changes
            self.generation += 1

    def unwant(self, name: str) -> None:
        """Take an assignment out of the document."""
        with self.guard:
            del self.desired[name]
            self.generation += 1

    @property
    def last(self) -> dict[str, Any]:
        """The latest report, or one that says nothing."""
        return self.reports[-1] if self.reports else {"assignments": [], "orphans": []}

    def view(self, name: str) -> dict[str, Any]:
        """What was last reported of an assignment."""
        return next((one for one in self.last["assignments"] if one["id"] == name), {"state": "unheard of"})

    def states(self, name: str) -> list[str]:
        """The states reported of an assignment, each once per stay."""
        states: list[str] = []
        for report in list(self.reports):
            for one in report["assignments"]:
                if one["id"] == name and states[-1:] != [one["state"]]:
                    states.append(one["state"])
        return states

    def inventory(self) -> dict[str, Any]:
        """The inventory that was last reported."""
        return next(report["inventory"] for report in reversed(self.reports) if "inventory" in report)

    def log(self, name: str) -> str:
        """What arrived of an assignment's log."""
        return bytes(self.logs.get(name, b"")).decode()
