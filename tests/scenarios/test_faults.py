"""Kill any part in the middle of 20 launches: nothing is lost, held twice, left over or wrongly charged."""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import psycopg
import pytest
import redis

from tests.scenarios.conftest import ROOT, Market, plain_environment

LAUNCHES, SETTLED_WITHIN_S = 20, 60


def mark_of(market: Market) -> str:
    """Return how long the commands of this market sleep: that tells its processes from all others of this machine."""
    return f"1000.{market.process.pid:08}"


def launch(market: Market, number: int) -> str:
    """Return an instance's id. Twenty single GPUs spread over the three offers of the demo."""
    offer = ("h200-teesside", "l40s-osaka", "h200-teesside", "gb300-narvik", "l40s-osaka")[number % 5]
    answer = market.post("/instances", {"offer": offer, "command": ["sleep", f"{mark_of(market)}{number:02}"]})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def wait_until(market: Market, phases: set[str], ids: list[str]) -> dict[str, str]:
    until = time.monotonic() + SETTLED_WITHIN_S
    while True:
        found = {row["id"]: row["phase"] for row in market.get("/instances?limit=200")["data"] if row["id"] in ids}
        if set(found) == set(ids) and set(found.values()) <= phases:
            return found
        assert time.monotonic() < until, f"not settled after {SETTLED_WITHIN_S} s: {found}"
        time.sleep(0.5)


def workloads(market: Market) -> list[str]:
    """Return which of the market's commands run on this machine."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            line = process.cmdline()
            if line[:1] == ["sleep"] and line[1].startswith(mark_of(market)):
                found.append(line[1])
    return sorted(found)


def kill_all(processes: list[psutil.Process]) -> None:
    assert processes, "there is nothing to kill"
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def kill_worker(market: Market) -> None:
    kill_all(market.processes("celery", "worker"))


def kill_web(market: Market) -> None:
    kill_all(market.processes("granian"))


def kill_agent(market: Market) -> None:
    kill_all(market.processes("provisioning.agent.main", "tee-h200-01"))


def kill_redis(market: Market) -> None:
    kill_all(market.processes("redis-server"))


def flush_redis(market: Market) -> None:
    url = json.loads((market.home / "environment.json").read_text())["REDIS_URL"]
    with redis.Redis.from_url(url) as client:
        for _ in range(10):
            client.flushall()
            time.sleep(0.1)


def restart_database(market: Market) -> None:
    """Stop it as an administrator does, and kill it as soon as it is back; `up` starts it again both times."""
    (first,) = postmasters(market)
    first.send_signal(signal.SIGINT)
    first.wait(20)
    (second,) = until_it_answers(market)
    assert second.pid != first.pid
    kill_all([second])
    (third,) = until_it_answers(market)
    assert third.pid != second.pid


def postmasters(market: Market) -> list[psutil.Process]:
    """Return the database servers; what one has just forked bears its command line for a moment."""
    found = {process.pid: process for process in market.processes("bin/postgres", "-D")}
    parents = {}
    for pid, process in found.items():
        with suppress(psutil.NoSuchProcess):
            parents[pid] = process.ppid()
    return [found[pid] for pid, parent in parents.items() if parent not in found]


def until_it_answers(market: Market) -> list[psutil.Process]:
    until = time.monotonic() + 30
    while True:
        try:
            assert market.query("SELECT 1") == [(1,)]
        except psycopg.OperationalError:
            assert time.monotonic() < until, "PostgreSQL is not back after 30 s"
            time.sleep(0.1)
        else:
            return postmasters(market)


@pytest.mark.parametrize("fault", [kill_worker, kill_web, kill_agent, kill_redis, flush_redis, restart_database])
def test_a_fault_in_the_middle_of_twenty_launches_loses_nothing(market: Market, fault: object) -> None:
    with ThreadPoolExecutor(8) as pool:
        launches = [pool.submit(launch, market, number) for number in range(LAUNCHES)]
        while sum(done.done() for done in launches) < LAUNCHES // 3:
            time.sleep(0.02)
        fault(market)  # type: ignore[operator]
        ids = [done.result() for done in launches]
    assert len(set(ids)) == LAUNCHES

    settled = wait_until(market, {"running", "failed"}, ids)
    running = [instance for instance, phase in settled.items() if phase == "running"]
    held = market.query(
        "SELECT gpu_id FROM provisioning_gpuhold WHERE released_at IS NULL GROUP BY gpu_id HAVING count(*) > 1"
    )
    assert held == []
    until = time.monotonic() + 20
    while len(workloads(market)) != len(running) and time.monotonic() < until:
        time.sleep(0.3)
    assert len(workloads(market)) == len(running)

    for instance in ids:
        assert market.post(f"/instances/{instance}/terminate").status_code == 202
    wait_until(market, {"terminated"}, ids)
    assert workloads(market) == []
    assert market.query("SELECT count(*) FROM provisioning_gpuhold WHERE released_at IS NULL") == [(0,)]
    assert market.query("SELECT sum(held) FROM provisioning_quota") == [(0,)]
    assert market.query("SELECT count(*) FROM billing_usagespan WHERE ended_at IS NULL") == [(0,)]
    doubled = "SELECT count(*) - count(DISTINCT resource_id) FROM billing_usagespan WHERE resource_id = ANY (%s)"
    assert market.query(doubled, [ids]) == [(0,)]
    silent = "SELECT count(*) FROM provisioning_heartbeat WHERE last_seen < now() - interval '25 seconds'"
    assert market.query(silent) == [(0,)]
    books = subprocess.run(
        [sys.executable, "manage.py", "check_books", "--recompute"],
        cwd=ROOT,
        env={**plain_environment(), "GPUMARKET_HOME": str(market.home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert books.returncode == 0, books.stdout
