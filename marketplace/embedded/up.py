"""`manage.py up`: a whole marketplace on this machine, for as long as this command runs.

This process loads no Django: the settings are read by the programs that it
starts, with the environment that it gives them.
"""

import argparse
import contextlib
import http.client
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from marketplace.embedded import postgres, redis
from marketplace.embedded.addresses import Address, is_free, kept_address, write_private
from marketplace.embedded.home import end_workloads, held, say_ending, start_over
from marketplace.embedded.programs import CannotStart, Program
from marketplace.embedded.supervisor import Supervisor, ToldToStop

ROOT = Path(__file__).resolve().parents[2]
SERVERS, SERVICES, AGENTS = 0, 1, 2  # stages: what ends last, next and first
START_WITHIN_S = 60
PREPARED_WITHIN_S = 300  # Tables are many, and a slow or busy disk is no fault.
END_WITHIN_S = 9
WEB_WORKERS = 2  # on two cores one of them is not enough for Python: see docs/benchmarks.md
WEB_THREADS = 16  # of each worker; a follower of a log keeps one busy
CELERY_PROCESSES = 2


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line."""

    port: int
    home: Path
    fresh: bool
    agents: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `up`; the Django command of that name has the same."""
    parser.add_argument("--port", type=_port, default=8000, help="port of the portal and the API (default: 8000)")
    parser.add_argument(
        "--home",
        type=Path,
        default=Path(os.environ.get("GPUMARKET_HOME") or ".gpumarket"),
        help="folder for data, logs and keys (default: GPUMARKET_HOME, else .gpumarket)",
    )
    parser.add_argument("--fresh", action="store_true", help="delete all that this home keeps, and start over")
    parser.add_argument("--agents", type=_count, default=4, help="how many nodes of the demo world run (default: 4)")


def main(arguments: list[str]) -> int:
    """Run `up` and return its exit code."""
    parser = argparse.ArgumentParser("manage.py up", description="Run a whole marketplace on this machine.")
    add_arguments(parser)
    given = parser.parse_args(arguments)
    return up(Options(port=given.port, home=given.home, fresh=given.fresh, agents=given.agents))


def up(options: Options) -> int:
    """Run a marketplace until TERM, INT or HUP. Returns 0 after such an end, 1 if it could not start."""
    home = options.home.absolute()
    try:
        with held(home):
            _refuse_taken(options.port)
            if options.fresh:
                start_over(home)
            Marketplace(home, options).run()
    except CannotStart as error:
        say(f"Cannot start: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        say(f"Cannot start in {home}: {error}", file=sys.stderr)
        return 1
    return 0


def say(text: str, *, file: Any = None) -> None:
    """Print a line now. A terminal that went away must not take the marketplace with it."""
    with contextlib.suppress(OSError):
        print(text, file=file, flush=True)


class Marketplace:
    """The programs of one home, from the first server to the last agent."""

    def __init__(self, home: Path, options: Options) -> None:
        self.home = home
        self.options = options
        self.url = f"http://127.0.0.1:{options.port}"
        self.supervisor = Supervisor(home, say=say)
        self.began = time.monotonic()
        self.steps = 0

    def run(self) -> None:
        """Start everything, say so, keep it running, and end everything."""
        self._listen_to_signals()
        (self.home / "static").mkdir(exist_ok=True)  # WhiteNoise warns where there is none
        launcher_is_gone = _watch_launcher()
        say(f"Starting a marketplace in {self.home}")
        try:
            world = self._start()
            say(summary(self.url, self.home, world, seconds=time.monotonic() - self.began))
            self.supervisor.watch(until=launcher_is_gone)
        except ToldToStop:
            pass
        finally:
            say("Stopping ...")
            say_ending(self.home)
            self.supervisor.end_all(within_s=END_WITHIN_S)
            end_workloads(self.home)
            say("Stopped. Nothing of it runs any more; the data is kept.")

    def _start(self) -> dict[str, Any]:
        environ = self._start_servers()
        self._done("servers", _places(environ))
        world = self._prepare(environ)
        self._done("tables and demo world", f"{len(world['people'])} people, {len(world['nodes'])} nodes")
        self._start_services(environ)
        self._done("web, worker, beat", self.url)
        nodes = self._start_agents(world["nodes"][: self.options.agents])
        self._done("node agents", ", ".join(nodes) or "none")
        return world

    def _done(self, step: str, detail: str) -> None:
        self.steps += 1
        say(f"  {self.steps}/4  {time.monotonic() - self.began:5.1f} s  {step:<22} {detail}")

    def _start_servers(self) -> dict[str, str]:
        """Start the servers that the environment does not name; return the environment of everything else."""
        servers = {}
        if not os.environ.get("DATABASE_URL"):
            servers["DATABASE_URL"] = postgres.server(self.home / "postgres")
        if not os.environ.get("REDIS_URL"):
            servers["REDIS_URL"] = redis.server(self.home / "redis")
        for server in servers.values():
            self.supervisor.start(server.program, stage=SERVERS)
        for server in servers.values():
            self.supervisor.wait_for_server(server, within_s=START_WITHIN_S)
        urls = {name: server.url for name, server in servers.items()}
        return os.environ | self._write_environment(os.environ | urls) | {"GPUMARKET_HOME": str(self.home)}

    def _write_environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """Keep what other commands beside us need to find this marketplace."""
        file = self.home / "environment.json"
        kept = json.loads(file.read_text()) if file.exists() else {}
        written = self._processor_keys() | {
            "DATABASE_URL": given["DATABASE_URL"],
            "REDIS_URL": given["REDIS_URL"],
            "GPUMARKET_MODE": "local",
            "GPUMARKET_PUBLIC_URL": self.url,
            "GPUMARKET_SECRET_KEY": given.get("GPUMARKET_SECRET_KEY")
            or kept.get("GPUMARKET_SECRET_KEY")
            or secrets.token_urlsafe(48),
        }
        write_private(file, json.dumps(written, indent=2))
        return written

    def _processor_keys(self) -> dict[str, str]:
        """Return the keys of the bundled card processor; none where those of a real one were given."""
        if os.environ.get("STRIPE_API_KEY"):
            return {}
        address = self._processor_address()
        return {
            "STRIPE_API_KEY": f"sk_test_{address.password}",
            "STRIPE_WEBHOOK_SECRET": f"whsec_{address.password}",
            "STRIPE_API_BASE": f"http://127.0.0.1:{address.port}",
        }

    def _processor_address(self) -> Address:
        folder = self.home / "processor"
        folder.mkdir(mode=0o700, exist_ok=True)
        return kept_address(folder)

    def _start_processor(self, environ: Mapping[str, str]) -> None:
        """Start what plays the card processor, unless a real one is there."""
        if os.environ.get("STRIPE_API_KEY"):
            return
        address = self._processor_address()
        options = {
            "--port": str(address.port),
            "--home": str(self.home / "processor"),
            "--webhook-url": f"{self.url}/webhooks/stripe",
        }
        words = [word for pair in options.items() for word in pair]
        self.supervisor.start(
            self._python("processor", "-m", "billing.test_processor.server", *words, environ=environ), stage=SERVICES
        )
        self.supervisor.wait_for("processor", until=lambda: not is_free(address.port), within_s=START_WITHIN_S)

    def _prepare(self, environ: Mapping[str, str]) -> dict[str, Any]:
        """Bring the tables and the demo world up to date; return who and what is in it."""
        connection, into = self.home / "connection.json", self.home / "run" / "world"
        token = json.loads(connection.read_text())["token"] if connection.exists() else None
        argv = ("manage.py", "prepare", "--into", str(into), *(() if token else ("--new-token",)))
        self.supervisor.run_to_end(self._python("prepare", *argv, environ=environ), within_s=PREPARED_WITHIN_S)
        world: dict[str, Any] = json.loads(into.read_text())
        into.unlink()  # it holds join tokens
        write_private(connection, json.dumps({"url": self.url, "token": world["token"] or token}))
        return world

    def _start_services(self, environ: Mapping[str, str]) -> None:
        self._start_processor(environ)
        celery = ("-m", "celery", "--app", "marketplace.celery:app", "--quiet")
        for program in (
            self._python("web", *web_argv("marketplace.wsgi:application", port=self.options.port), environ=environ),
            self._python(
                "worker",
                *celery,
                *("worker", "--concurrency", str(CELERY_PROCESSES), "--loglevel", "info"),
                *("--without-gossip", "--without-mingle", "--hostname", "local@%h"),
                environ=environ,
            ),
            self._python(
                "beat",
                *celery,
                *("beat", "--schedule", str(self.home / "run" / "beat"), "--loglevel", "warning", "--pidfile="),
                environ=environ,
            ),
        ):
            self.supervisor.start(program, stage=SERVICES)
        self.supervisor.wait_for("web", until=self._is_ready, within_s=START_WITHIN_S)

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.options.port, timeout=2)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _start_agents(self, nodes: list[dict[str, Any]]) -> list[str]:
        """Start an agent for each node, and return their names once all have spoken with the control plane."""
        asked_at = time.time()
        (self.home / "nodes").mkdir(exist_ok=True)
        for node in nodes:
            self.supervisor.start(self._agent(node), stage=AGENTS)
        for node in nodes:
            has_spoken = partial(_is_newer, self.home / "nodes" / node["name"] / "lease.json", asked_at)
            self.supervisor.wait_for(f"agent-{node['name']}", until=has_spoken, within_s=START_WITHIN_S)
        return [node["name"] for node in nodes]

    def _agent(self, node: Mapping[str, Any]) -> Program:
        """Return a node's agent. Its join token is kept: the answer to a join may be lost with a killed agent."""
        home = self.home / "nodes" / node["name"]
        token = home.with_suffix(".join-token")
        if node["join_token"]:
            write_private(token, node["join_token"])
        is_known_here = (home / "node.json").exists()
        if is_known_here if node["join_token"] else not (is_known_here or token.exists()):
            raise CannotStart(
                f"the database and {home} are of different marketplaces. Use the --home that belongs to this"
                " database, or an empty database."
            )
        options = {
            "--url": self.url,
            "--home": str(home),
            "--gpus": node["gpus"],
            "--hostname": "localhost",
            # What is simulated may be restarted in pretence: so the demonstration shows a whole repair.
            "--reboot-command": "simulated",
            # Any free port, the same after a restart; nobody but this machine may dial it.
            "--ssh-port": "0",
            "--ssh-listen": "127.0.0.1",
            "--ssh-address": "127.0.0.1",
            **({"--join-token-file": str(token)} if token.exists() else {}),
        }
        words = [word for pair in options.items() for word in pair]
        return self._python(
            f"agent-{node['name']}",
            *("-m", "provisioning.agent.main", *words, "--end-workloads-on-exit"),
            # An agent is given nothing of the control plane's own: no database, no secrets.
            environ={name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ", "TMPDIR") if name in os.environ},
        )

    def _python(self, name: str, *argv: str, environ: Mapping[str, str]) -> Program:
        return Program(name=name, argv=(sys.executable, *argv), folder=ROOT, environ=environ)

    def _listen_to_signals(self) -> None:
        def stop(_number: int, _frame: FrameType | None) -> None:
            self.supervisor.stop()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, stop)


def web_argv(application: str, *, port: int, workers: int = WEB_WORKERS) -> tuple[str, ...]:
    """Return Python's arguments that serve a WSGI application as `up` serves the marketplace."""
    options = {
        "--interface": "wsgi",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": str(workers),
        "--blocking-threads": str(WEB_THREADS),
        "--workers-kill-timeout": "2",
        "--respawn-interval": "0.2",
        "--log-level": "warning",
    }
    words = (word for pair in options.items() for word in pair)
    return ("-m", "granian", *words, "--respawn-failed-workers", application)


def summary(url: str, home: Path, world: Mapping[str, Any], *, seconds: float) -> str:
    """Return what a person needs to know now: where to go, as whom, and what to try."""
    people = [(one["email"], one["password"], one["role"], one["note"]) for one in world["people"]]
    widths = [max(len(row[column]) for row in people) for column in range(3)]
    rows = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)) for row in people
    ]
    is_default_home = home == Path(".gpumarket").absolute()
    run = "uv run gpumarket" if is_default_home else f"GPUMARKET_HOME={home} uv run gpumarket"
    lines = [
        "",
        f"Ready after {seconds:.1f} s.",
        "",
        f"  Portal    {url}/",
        f"  Console   {url}/console/",
        f"  API       {url}/api/docs",
        f"  Logs      {home / 'logs'}",
        "",
        "Sign in as",
        *rows,
        "",
        "Try next, in a second terminal, as developer@example.com",
        f"  {run} offers",
        f'''  {run} run --gpus 2 -- python3 -c "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"''',
        f"  {run} launch --name box -- sleep 3600",
        f"  {run} ssh-key add ~/.ssh/id_ed25519.pub",
        f"  {run} ssh box",
        "",
        "Ctrl-C stops everything; the next `up` goes on where this one ended.",
    ]
    return "\n".join(line.rstrip() for line in lines)


def _places(environ: Mapping[str, str]) -> str:
    return ", ".join(
        f"{name} {environ[variable].rpartition('@')[2].split('/')[0]}"
        for name, variable in (("PostgreSQL", "DATABASE_URL"), ("Redis", "REDIS_URL"))
    )


def _refuse_taken(port: int) -> None:
    if not is_free(port):
        raise CannotStart(f"port {port} is taken on 127.0.0.1. Choose another with --port.")


def _watch_launcher() -> Callable[[], bool]:
    """Return a question: is the `uv run` that started us gone? Whoever killed it meant us; a shell may leave."""
    launcher = os.getppid()
    with contextlib.suppress(psutil.Error):
        if psutil.Process(launcher).name() == "uv":
            return lambda: os.getppid() != launcher
    return lambda: False


def _is_newer(file: Path, than: float) -> bool:
    return file.exists() and file.stat().st_mtime >= than


def _port(text: str) -> int:
    return _whole_number(text, least=1, most=65535)


def _count(text: str) -> int:
    return _whole_number(text, least=0, most=1000)


def _whole_number(text: str, *, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
    return int(text)
