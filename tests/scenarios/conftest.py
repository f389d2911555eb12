"""A whole marketplace, as `manage.py up` starts it, with its own servers, workers and agents."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import psycopg
import pytest

from marketplace.embedded import postgres
from tests import schema

ROOT = Path(__file__).resolve().parent.parent.parent
# As long as `up` itself waits for the tables of a first start, and a little more.
READY_WITHIN_S, ENDED_WITHIN_S = 330, 15


def plain_environment() -> dict[str, str]:
    """Return the environment of a newcomer's shell: without what the test run set for itself."""
    ours = ("GPUMARKET_", "DATABASE_URL", "REDIS_URL", "DJANGO_", "PYTEST_", "TEST_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@dataclass
class Market:
    """A marketplace that is up."""

    home: Path
    process: subprocess.Popen[str]
    client: httpx.Client
    database_url: str

    def get(self, path: str) -> Any:
        return self.again(lambda: self.client.get(f"/api/v1{path}"))

    def post(self, path: str, body: Any = None) -> httpx.Response:
        """Post as a careful client does: the same key again until there is an answer."""
        key = str(uuid4())
        return self.again(
            lambda: self.client.post(f"/api/v1{path}", json=body, headers={"Idempotency-Key": key}), raw=True
        )

    def again(self, call: Callable[[], httpx.Response], *, raw: bool = False) -> Any:
        until = time.monotonic() + 30
        while True:
            try:
                answer = call()
                if answer.status_code < 500:
                    return answer if raw else answer.raise_for_status().json()
            except httpx.TransportError:
                pass
            assert time.monotonic() < until, "no answer for 30 s"
            time.sleep(0.2)

    def query(self, sql: str, values: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(sql, values).fetchall()

    def processes(self, *words: str) -> list[psutil.Process]:
        """Return this marketplace's processes whose command line contains all these words."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                line = " ".join(process.cmdline())
            except psutil.NoSuchProcess:
                continue
            if all(word in line for word in words):
                found.append(process)
        return found


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory, django_db_modify_db_settings: None) -> Iterator[Market]:
    """A marketplace as `up` makes it, but for its tables, which the template of the tests' databases has already."""
    home = tmp_path_factory.mktemp("market") / "home"
    schema.fill_home(home)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (home.parent / "up.log").open("w")
    command = [sys.executable, str(ROOT / "manage.py"), "up", "--port", str(port), "--home", str(home)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, text=True, env=plain_environment())
    try:
        connection = _connection(home, process, log.name)
        headers = {"Authorization": f"Bearer {connection['token']}"}
        database_url = json.loads((home / "environment.json").read_text())["DATABASE_URL"]
        with httpx.Client(base_url=connection["url"], headers=headers, timeout=20) as client:
            yield Market(home=home, process=process, client=client, database_url=database_url)
    finally:
        tree = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(ENDED_WITHIN_S)
        finally:
            _, alive = psutil.wait_procs(tree, timeout=1)
            for left in alive:
                left.kill()
            process.kill()
            process.wait()
            log.close()
            postgres.remove(home / "postgres")  # its data may lie outside of the home
    assert alive == []


def _connection(home: Path, process: subprocess.Popen[str], log: str) -> dict[str, str]:
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise AssertionError(f"up ended with {process.returncode}:\n{Path(log).read_text()}")
        if "Ready after" in Path(log).read_text():
            found: dict[str, str] = json.loads((home / "connection.json").read_text())
            return found
        time.sleep(0.2)
    raise AssertionError(f"up was not ready after {READY_WITHIN_S} s:\n{Path(log).read_text()}")
