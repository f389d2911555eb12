"""Measures jobs: a thousand tasks submitted in one call, and how many short tasks a second go from dispatch to verdict.

    uv run python -m tests.bench.jobs --tasks 300 --json

Starts a whole marketplace as `manage.py up` does (two nodes of eight simulated
GPUs, process runtime) in a folder of its own, submits a job of tasks that do
nothing (`true`), and waits until it has succeeded. `tasks_per_s` counts from the
call that submitted it to its last verdict. `ready_p50_s` is from the rental of
an attempt until it has its GPUs, `run_p50_s` from then until its command ended.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.bench import machine

ROOT = Path(__file__).resolve().parents[2]
OFFER = "h200-teesside"
SUBMITTED = 1000
SUBMITTED_S_MOST = 2.0
START_WITHIN_S, END_WITHIN_S = 300, 60


@contextlib.contextmanager
def marketplace() -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    """Run a marketplace of our own and speak to it as its demo customer; end it by its own process id."""
    with tempfile.TemporaryDirectory(prefix="gpumarket-bench-") as home, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        ours = ("GPUMARKET_", "DATABASE_URL", "REDIS_URL", "DJANGO_", "PYTEST_", "TEST_")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        argv = [sys.executable, "manage.py", "up", "--port", str(port), "--home", f"{home}/market"]
        with Path(home, "up.log").open("wb") as log:
            up = subprocess.Popen(argv, cwd=ROOT, env=environ, stdout=log, stderr=log)
        try:
            yield connected(Path(home), up), up
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait(END_WITHIN_S)


def connected(home: Path, up: subprocess.Popen[bytes]) -> httpx.Client:
    """Wait until the marketplace and its nodes are there, and return a client with its token."""
    deadline = time.monotonic() + START_WITHIN_S
    while b"node agents" not in (said := (home / "up.log").read_bytes()):
        if up.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(said.decode())
        time.sleep(0.2)
    where = json.loads((home / "market" / "connection.json").read_text())
    headers = {"Authorization": f"Bearer {where['token']}"}
    return httpx.Client(base_url=f"{where['url']}/api/v1", headers=headers, timeout=30)


def submit(client: httpx.Client, tasks: int) -> tuple[dict[str, Any], float]:
    """Submit a job of so many tasks; return it, and how long the call took."""
    job = {"offer": OFFER, "command": ["true"], "array": tasks, "name": f"bench-{tasks}", "retries": 3}
    began = time.perf_counter()
    answer = client.post("/jobs", json={"jobs": [job]}, headers={"Idempotency-Key": str(uuid.uuid4())})
    took = time.perf_counter() - began
    answer.raise_for_status()
    return answer.json()["data"][0], took


def watched(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """Wait until a job is over, looking seldom so that the looking costs little."""
    while True:
        job: dict[str, Any] = client.get(f"/jobs/{job_id}").raise_for_status().json()
        if job["ended_at"] is not None:
            return job
        time.sleep(1)


def attempts(client: httpx.Client, job_id: str) -> list[dict[str, Any]]:
    """Return the last attempt at each task."""
    found, cursor = [], ""
    while cursor is not None:
        page = client.get(f"/jobs/{job_id}/tasks", params={"limit": 200, "cursor": cursor}).raise_for_status().json()
        found += [task["attempt"] for task in page["data"]]
        cursor = page["next_cursor"]
    return found


def moment(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def measured(tasks: int) -> dict[str, Any]:
    """Return the figures; `faults` is empty or the benchmark fails."""
    with marketplace() as (client, up):
        submit(client, 1)  # What is loaded at the first request is not measured.
        large, submitted_s = submit(client, SUBMITTED)
        client.post(f"/jobs/{large['id']}/cancel").raise_for_status()
        watched(client, large["id"])
        before = cpu_s(psutil.Process(up.pid))
        job, _ = submit(client, tasks)
        job = watched(client, job["id"])
        cores = cpu_s(psutil.Process(up.pid)) - before
        took = moment(job["ended_at"]) - moment(job["created_at"])
        found = attempts(client, job["id"])
        faults = [] if job["state"] == "succeeded" else [f"the job {job['state']}: {job['message']}"]
        faults += [f"{SUBMITTED} tasks took {submitted_s:.2f} s"] if submitted_s > SUBMITTED_S_MOST else []
        return {
            "submitted_1000_tasks_s": round(submitted_s, 3),
            "tasks": tasks,
            "tasks_per_s": round(tasks / took, 1),
            "ready_p50_s": round(
                machine.percentile([moment(a["began_at"]) - moment(a["created_at"]) for a in found], 0.5), 2
            ),
            "run_p50_s": round(
                machine.percentile([moment(a["ended_at"]) - moment(a["began_at"]) for a in found], 0.5), 2
            ),
            "cpu_ms_per_task": round(cores * 1000 / tasks, 1),
            "cores_busy": round(cores / took, 2),
            "faults": faults,
        }


def cpu_s(root: psutil.Process) -> float:
    """Return the processor time of a process and of all that came from it so far, with what has ended meanwhile."""
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])  # Its own, then that of its children that have ended.
    return total


def main() -> int:
    """Measure; the last line of the output is JSON. Returns 1 where something is wrong."""
    parser = argparse.ArgumentParser("python -m tests.bench.jobs", description=__doc__)
    parser.add_argument("--tasks", type=int, default=300, help="that are run to their end (default: 300)")
    parser.add_argument("--json", action="store_true", help="print nothing but the line of JSON")
    given = parser.parse_args()
    here = machine.facts()
    figures = measured(given.tasks)
    if not given.json:
        for name, value in figures.items():
            print(f"{name:>24}  {value}")
    print(machine.last_line("jobs", figures, here))
    return 1 if figures["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
