"""Starts a PostgreSQL and a Redis for the whole test run, before Django reads its settings."""

import gc
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from marketplace.embedded import postgres, redis
from marketplace.embedded.programs import is_alive
from marketplace.embedded.supervisor import Supervisor, end_leftovers

START_WITHIN_S = 30
PREFIX = "gpumarket-tests-"
BYTECODE = Path(__file__).resolve().parents[1] / ".pytest_cache" / "d" / "bytecode"
FORGETFUL = postgres.SERVE | {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_connections": "300",
    "log_min_duration_statement": "-1",
}


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None]:
    """A wrapper runs ahead of pytest-django's own hook, which reads the settings."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        os.environ["REDIS_URL"] = _database_of(worker, os.environ["REDIS_URL"])
    elif not early_config.known_args_namespace.help and not early_config.known_args_namespace.version:
        _keep_bytecode()
        _start(early_config)
    with _nothing_to_collect():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    with _nothing_to_collect():
        return (yield)


@contextmanager
def _nothing_to_collect() -> Iterator[None]:
    """Importing makes much and leaves no garbage, which the collector would look for again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI nothing may be missing, so a skipped test is a failed one."""
    report = yield
    if report.skipped and "CI" in os.environ and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"Skipped, which CI does not accept: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and "CI" in os.environ:
        report.outcome = "failed"
        report.longrepr = f"Skipped, which CI does not accept: {report.longrepr}"
    return report


def _keep_bytecode() -> None:
    """Keep what Python compiles, in pytest's cache where it may not lie beside the sources.

    Tests start hundreds of programs, and to compile Django for each of them takes more than most of them do.
    """
    if sys.dont_write_bytecode:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(BYTECODE)
        sys.dont_write_bytecode = False


def _start(config: pytest.Config) -> None:
    _clear_after_killed_runs()
    home = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    home.chmod(0o711)
    (home / "static").mkdir()  # WhiteNoise warns where there is none
    supervisor = Supervisor(home, say=print)

    def clean_up() -> None:
        supervisor.end_all(within_s=5)
        shutil.rmtree(home, ignore_errors=True)

    config.add_cleanup(clean_up)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # TERM cleans up as Ctrl-C does

    servers = {}
    if "TEST_DATABASE_URL" not in os.environ:
        servers["TEST_DATABASE_URL"] = postgres.server(home / "postgres", settings=FORGETFUL)
    if "TEST_REDIS_URL" not in os.environ:
        servers["TEST_REDIS_URL"] = redis.server(home / "redis", databases=64)
    for server in servers.values():
        supervisor.start(server.program, stage=0)
    for server in servers.values():
        supervisor.wait_for_server(server, within_s=START_WITHIN_S)

    urls = os.environ | {name: server.url for name, server in servers.items()}
    os.environ.update(
        DATABASE_URL=urls["TEST_DATABASE_URL"],
        REDIS_URL=urls["TEST_REDIS_URL"],
        GPUMARKET_MODE="local",
        GPUMARKET_HOME=str(home),
        GPUMARKET_SECRET_KEY=secrets.token_urlsafe(48),
    )


def _clear_after_killed_runs() -> None:
    """End the servers of test runs that were killed. The folder's name says whose they were."""
    for home in Path(tempfile.gettempdir()).glob(f"{PREFIX}[0-9]*"):
        if os.access(home, os.W_OK) and not _runs(int(home.name.removeprefix(PREFIX).partition("-")[0])):
            end_leftovers(home)
            shutil.rmtree(home, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        return is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def _database_of(worker: str, url: str) -> str:
    """Return the Redis address with a database number of its own for each xdist worker ("gw0", "gw1", ...)."""
    parts = urlsplit(url)
    return parts._replace(path=f"/{int(parts.path.strip('/') or 0) + 1 + int(worker.removeprefix('gw'))}").geturl()
