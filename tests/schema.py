"""The tables of an empty database, without waiting for every migration again.

Migrating takes 20 s of processor time. What it made is kept as a dump in the cache of pytest, of these very migrations,
models and versions; whoever changes one of them migrates once more.
"""

import fcntl
import hashlib
import os
import subprocess
from pathlib import Path

from django.core.management import call_command
from django.db import connection

from marketplace.embedded import postgres
from marketplace.embedded.home import LOCK
from marketplace.embedded.supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[1]
DUMPS = ROOT / ".pytest_cache" / "d" / "migrated"
DUMPS_KEPT = 3
START_WITHIN_S = 30
READ_BY_MIGRATING = ("pyproject.toml", "*/migrations/*.py", "*/models/*.py")


def fill() -> None:
    """Make the tables of Django's database, which is empty and on an embedded PostgreSQL."""
    dump = DUMPS / f"{_digest()}.sql"
    DUMPS.mkdir(parents=True, exist_ok=True)
    with (DUMPS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not dump.exists():
            migrate()
            _keep(dump)
            return
    _load(dump, _url())


def fill_home(home: Path) -> None:
    """Have the first `up` of a home find its tables, where they are known. Tests of `up` itself see it make them."""
    dump = DUMPS / f"{_digest()}.sql"
    if not dump.exists():
        return
    home.mkdir()
    (home / LOCK).touch()
    server, supervisor = postgres.server(home / "postgres"), Supervisor(home, say=print)
    supervisor.start(server.program, stage=0)
    try:
        supervisor.wait_for_server(server, within_s=START_WITHIN_S)
        _load(dump, server.url)
    finally:
        supervisor.end_all(within_s=10)


def migrate() -> None:
    """Make the tables by every migration."""
    call_command("migrate", verbosity=0, interactive=False, run_syncdb=True)


def _digest() -> str:
    digest = hashlib.sha256()
    for pattern in READ_BY_MIGRATING:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(f"{path.relative_to(ROOT)} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _keep(dump: Path) -> None:
    unfinished = dump.with_suffix(".unfinished")
    _run("pg_dump", "--no-owner", "--file", str(unfinished), _url())
    unfinished.rename(dump)
    for old in sorted(DUMPS.glob("*.sql"), key=lambda path: path.stat().st_mtime)[:-DUMPS_KEPT]:
        old.unlink()


def _load(dump: Path, url: str) -> None:
    once = ("--quiet", "--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--single-transaction")
    _run("psql", *once, "--file", str(dump), url)


def _url() -> str:
    """Return where Django's database is."""
    server = connection.settings_dict
    return f"postgresql://{server['USER']}:{server['PASSWORD']}@{server['HOST']}:{server['PORT']}/{server['NAME']}"


def _run(program: str, *words: str) -> None:
    """Run one of PostgreSQL's own programs."""
    argv, environ = [str(postgres.programs() / program), *words], {"PATH": os.defpath}
    subprocess.run(argv, env=environ, check=True, stdout=subprocess.DEVNULL)
