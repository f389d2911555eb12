"""Drives a web server from a process of its own: one thread and one kept-open connection per client.

Reads one JSON job from standard input and writes one JSON result to standard
output. It loads neither Django nor an HTTP library beyond the standard one, so
that on a small machine it takes little from the server that it measures.
"""

import http.client
import json
import random
import sys
import threading
import time
from typing import Any


class Client(threading.Thread):
    """One client: sends its next order as soon as the last one was answered."""

    def __init__(self, job: dict[str, Any], number: int, until: float) -> None:
        super().__init__(daemon=True)
        self.job = job
        self.random = random.Random(f"{job['seed']} {number}")
        self.until = until
        self.answers: list[tuple[str, float]] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.job["port"], timeout=60)
        while time.monotonic() < self.until and len(self.answers) < self.job.get("most", 10**9):
            method, path, body, headers = self.request()
            began = time.perf_counter()
            try:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                answer = response.read()
            except OSError as error:
                connection.close()
                self.answers.append((type(error).__name__, time.perf_counter() - began))
                continue
            self.answers.append((code_of(response.status, answer), time.perf_counter() - began))
        connection.close()

    def request(self) -> tuple[str, str, bytes | None, dict[str, str]]:
        chosen = self.random
        headers = {"Authorization": f"Bearer {chosen.choice(self.job['tokens'])}"} if self.job.get("tokens") else {}
        path = self.job["path"]
        if self.job["method"] == "GET":
            return "GET", path, None, headers
        offers = self.job["offers"]
        order = {
            # Half of all want the same offer, so that orders meet each other there.
            "offer": offers[0] if chosen.random() < 0.5 else chosen.choice(offers),
            "gpus": chosen.choice(self.job["gpus"]),
            "replicas": self.job.get("replicas", 1),
            "command": ["python3", "train.py"],
        }
        key = f"{chosen.getrandbits(128):032x}"
        headers |= {"Content-Type": "application/json", "Idempotency-Key": key}
        return "POST", path, json.dumps(order).encode(), headers


def code_of(status: int, answer: bytes) -> str:
    """Return `ok`, or the code of the problem."""
    if status < 300:
        return "ok"
    try:
        return str(json.loads(answer)["code"])
    except (ValueError, KeyError, TypeError):
        return str(status)


def main() -> None:
    job = json.load(sys.stdin)
    began = time.monotonic()
    clients = [Client(job, number, began + job["seconds"]) for number in range(job["clients"])]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    answers = [answer for client in clients for answer in client.answers]
    json.dump({"seconds": time.monotonic() - began, "answers": answers}, sys.stdout)


if __name__ == "__main__":
    main()
