"""Servers of a benchmark's own, in a folder of its own that is gone afterwards: as production would run them."""

import contextlib
import http.client
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from marketplace.embedded import postgres, redis
from marketplace.embedded.addresses import free_port
from marketplace.embedded.programs import Program, last_lines, start
from marketplace.embedded.supervisor import Supervisor
from marketplace.embedded.up import ROOT, web_argv

START_WITHIN_S = 60


@dataclass(frozen=True)
class Web:
    """A running web server."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def memory_mib(self) -> float:
        """The resident memory of its largest worker; the parent of the workers serves nothing."""
        return max(worker.memory_info().rss for worker in psutil.Process(self.process.pid).children()) / 2**20


@dataclass(frozen=True)
class Cpu:
    """Processor seconds used so far: by the web server, the database, our clients, and all that runs here."""

    at: float
    web_s: float
    database_s: float
    clients_s: float
    everything_s: float

    def milliseconds_each(self, earlier: "Cpu", count: int) -> dict[str, float]:
        """Return what each of `count` requests since `earlier` took. It does not depend on who else runs here."""
        return {
            "web_cpu_ms": round(1000 * (self.web_s - earlier.web_s) / max(1, count), 2),
            "database_cpu_ms": round(1000 * (self.database_s - earlier.database_s) / max(1, count), 2),
        }

    def others_cores(self, earlier: "Cpu") -> float:
        """Return how many cores programs that are not ours kept busy since `earlier`."""
        ours_s = sum(getattr(self, name) - getattr(earlier, name) for name in ("web_s", "database_s", "clients_s"))
        others_s = self.everything_s - earlier.everything_s - ours_s
        return round(max(0, others_s) / (self.at - earlier.at), 2)


class Stage:
    """An empty PostgreSQL and Redis, with what is needed to start programs beside them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.supervisor = Supervisor(home, say=print)
        # PostgreSQL as `up` runs it, which is as production must: fsync and synchronous commits are on.
        database, broker = postgres.server(home / "postgres"), redis.server(home / "redis")
        for server in (database, broker):
            self.supervisor.start(server.program, stage=0)
        for server in (database, broker):
            self.supervisor.wait_for_server(server, within_s=START_WITHIN_S)
        self.database_pid = _pid_of(home, "postgres")
        self.database_url = database.url
        self.pgbench = str(Path(database.program.argv[0]).with_name("pgbench"))
        self.environ = os.environ | {
            "DATABASE_URL": database.url,
            "REDIS_URL": broker.url,
            "GPUMARKET_MODE": "local",
            "GPUMARKET_HOME": str(home),
            "GPUMARKET_SECRET_KEY": secrets.token_urlsafe(48),
            "DJANGO_SETTINGS_MODULE": "marketplace.settings",
        }

    @contextlib.contextmanager
    def web(self, application: str, *, workers: int | None, **environ: str) -> Iterator[Web]:
        """Serve a WSGI application as `up` serves the marketplace."""
        port = free_port()
        argv = web_argv(application, port=port, **({"workers": workers} if workers else {}))
        name = f"web-{port}"
        program = Program(name=name, argv=(sys.executable, *argv), folder=ROOT, environ=self.environ | environ)
        process = start(program, log=self.supervisor.log(name))
        try:
            self._wait_until_answered(port, process)
            yield Web(port=port, process=process)
        finally:
            process.terminate()
            process.wait(timeout=20)

    def _wait_until_answered(self, port: int, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_WITHIN_S
        while process.poll() is None and time.monotonic() < deadline:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_WITHIN_S)
            try:
                connection.request("GET", "/livez")
                connection.getresponse()
            except ConnectionError:
                time.sleep(0.05)
            else:
                return
            finally:
                connection.close()
        raise RuntimeError(f"The web server does not answer:\n{last_lines(self.supervisor.log(f'web-{port}'))}")

    def database_cpu_s(self) -> float:
        """Return the processor time that the database used until now."""
        return cpu_s(self.database_pid)

    def cpu(self, web: Web) -> Cpu:
        """Return the processor time used until now."""
        ended, all_cores = os.times(), psutil.cpu_times()
        return Cpu(
            at=time.monotonic(),
            web_s=cpu_s(web.process.pid),
            database_s=self.database_cpu_s(),
            clients_s=ended.children_user + ended.children_system,
            everything_s=sum(all_cores) - all_cores.idle - all_cores.iowait,
        )

    def load(self, *, program: str = "tests.bench.load", **job: Any) -> dict[str, Any]:
        """Run the clients in a process of their own and return what they saw."""
        argv = [sys.executable, "-m", program]
        done = subprocess.run(argv, cwd=ROOT, input=json.dumps(job), capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def run_pgbench(self, script: Path, *, clients: int, seconds: float, values: Mapping[str, int]) -> float:
        """Run a script with pgbench for some seconds and return its transactions per second."""
        url = urlsplit(self.database_url)
        argv = [self.pgbench, "--no-vacuum", "--protocol=prepared", f"--client={clients}", "--jobs=1",
                f"--time={max(1, round(seconds))}", f"--file={script}", "--host=127.0.0.1", f"--port={url.port}",
                f"--username={url.username}", *(f"--define={name}={value}" for name, value in values.items()),
                url.path.strip("/")]  # fmt: skip
        environ = {"PGPASSWORD": url.password or "", "PATH": os.defpath}
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"pgbench failed:\n{done.stderr}")
        line = next(line for line in done.stdout.splitlines() if line.startswith("tps ="))
        return float(line.split()[2])


def _pid_of(home: Path, name: str) -> int:
    """Return the pid that the supervisor wrote down for a program."""
    return int(json.loads((home / "run" / f"{name}.json").read_text())["pid"])


def cpu_s(pid: int) -> float:
    """Return the processor time of a process and all that hangs on it, those that ended included."""
    leader = psutil.Process(pid)
    times = [process.cpu_times() for process in (leader, *leader.children(recursive=True))]
    ended = leader.cpu_times()
    return sum(time.user + time.system for time in times) + ended.children_user + ended.children_system


@contextlib.contextmanager
def set_up() -> Iterator[Stage]:
    """Start servers in a new folder, and leave nothing of them."""
    home = Path(tempfile.mkdtemp(prefix="gpumarket-bench-"))
    home.chmod(0o711)
    (home / "static").mkdir()
    stage = None
    try:
        stage = Stage(home)
        yield stage
    finally:
        if stage is not None:
            stage.supervisor.end_all(within_s=10)
        postgres.remove(home / "postgres")
        shutil.rmtree(home, ignore_errors=True)
