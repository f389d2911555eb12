"""Speaks the batched sync for a whole fleet from one process: one relay for each site's batch of nodes.

Reads one JSON job from standard input and writes one JSON result to standard
output. Every relay keeps a connection and a timetable: its nodes report once in
an interval, spread evenly over it. A report that was not answered with `ok` is
sent again with the next one's state, as agents do; nothing is skipped silently.
"""

import http.client
import json
import sys
import threading
import time
from typing import Any

XID_79 = {"gpu": "", "source": "kmsg", "code": "xid:79", "detail": "GPU has fallen off the bus."}


class Node:
    """What one node says; its readings move a little with each report, so that nothing can be cached."""

    def __init__(self, known: dict[str, Any], gpus: int) -> None:
        self.id, self.key, self.generation = known["id"], known["key"], known["generation"]
        self.assignments = [
            {"id": name, "fence": 1, "state": "running", "gpus": [], "exit_code": None, "exited_ago_ms": None,
             "message": "", "progress": None, "ports": {}}
            for name in known["assignments"]
        ]  # fmt: skip
        self.uuids = [f"GPU-{known['name']}-{index}" for index in range(gpus)]
        self.seq, self.acknowledged, self.journal = known["seq"], known["acknowledged"], 0
        self.events: list[dict[str, Any]] = []

    def raise_xid(self) -> None:
        self.journal += 1
        body = XID_79 | {"gpu": self.uuids[0]}
        self.events.append({"n": self.journal, "kind": "health", "ago_ms": 0, "body": body})

    def report(self, now_ms: int) -> dict[str, Any]:
        self.seq += 1
        moved = self.seq * 7919 % 97
        return {
            "node": self.id,
            "key": self.key,
            "boot_id": "boot",
            "agent_epoch": 1,
            "seq": self.seq,
            "desired_seen": self.generation,
            "clock_ms": now_ms,
            "assignments": self.assignments,
            "orphans": [],
            "events": self.events,
            "logs": [],
            "energy": [
                {"uuid": uuid, "millijoules": 5_000_000 * self.seq + moved, "driver_epoch": 1} for uuid in self.uuids
            ],
            "telemetry": [
                {"uuid": uuid, "utilization_percent": moved, "memory_used_mib": 90_000 + moved,
                 "power_mw": 600_000 + moved * 1000, "temperature_c": 50 + moved % 20}
                for uuid in self.uuids
            ],
        }  # fmt: skip

    def hear(self, answer: dict[str, Any]) -> str:
        if answer["status"] != "ok":
            return str(answer["status"])
        self.acknowledged = self.seq
        self.generation = answer["desired_generation"]
        seen = answer.get("events_seen", 0)
        self.events = [event for event in self.events if event["n"] > seen]
        return "ok"


class Relay(threading.Thread):
    """One batch of nodes that reports once in an interval; `late_s` of each exchange counts from when it was due."""

    def __init__(self, job: dict[str, Any], nodes: list[Node], first_at: float) -> None:
        super().__init__(daemon=True)
        self.job, self.nodes, self.due = job, nodes, first_at
        self.connection = http.client.HTTPConnection("127.0.0.1", job["port"], timeout=120)
        self.late_s: list[float] = []
        self.took_s: list[float] = []
        self.statuses: dict[str, int] = {}
        self.bytes_sent = 0

    def run(self) -> None:
        while self.due < self.job["until"]:
            time.sleep(max(0, self.due - time.monotonic()))
            self.exchange()
            self.due += self.job["interval"]

    def exchange(self) -> None:
        began = time.monotonic()
        now_ms = round(time.time() * 1000)
        body = json.dumps({"protocol": 2, "reports": [node.report(now_ms) for node in self.nodes]}).encode()
        self.bytes_sent += len(body)
        try:
            self.connection.request("POST", "/agent/v1/sync", body, {"Content-Type": "application/json"})
            answer = self.connection.getresponse()
            content = answer.read()
            said = json.loads(content)["results"] if answer.status == 200 else []
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.connection.close()
            said = []
            self.count(type(error).__name__)
        ended = time.monotonic()
        self.late_s.append(ended - self.due)
        self.took_s.append(ended - began)
        for node, one in zip(self.nodes, said, strict=False):
            self.count(node.hear(one))

    def count(self, status: str) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1


def main() -> None:
    job = json.load(sys.stdin)
    nodes = [Node(known, job["gpus"]) for known in job["nodes"]]
    for node in nodes[:: job["xid_every"]] if job["xid_every"] else []:
        node.raise_xid()
    silent = nodes[1 :: job["silent_every"]] if job["silent_every"] else []
    gone = {node.id for node in silent}
    speaking = [node for node in nodes if node.id not in gone]
    batches = [speaking[first : first + job["batch"]] for first in range(0, len(speaking), job["batch"])]
    began = time.monotonic()
    job["until"] = began + job["seconds"]
    relays = [Relay(job, batch, began + job["interval"] * n / len(batches)) for n, batch in enumerate(batches)]
    for relay in relays:
        relay.start()
    for relay in relays:
        relay.join()
    ended = time.monotonic()
    statuses: dict[str, int] = {}
    for relay in relays:
        for status, count in relay.statuses.items():
            statuses[status] = statuses.get(status, 0) + count
    result = {
        "seconds": ended - began,
        "syncs": sum(len(relay.took_s) for relay in relays),
        "statuses": statuses,
        "late_s": [late for relay in relays for late in relay.late_s],
        "took_s": [took for relay in relays for took in relay.took_s],
        "mib_sent": sum(relay.bytes_sent for relay in relays) / 2**20,
        "silent": sorted(gone),
        # Where every node stands: whoever goes on from here must not say a number twice.
        "nodes": {node.id: [node.acknowledged, node.seq, node.generation] for node in nodes},
    }
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
