"""The embedded PostgreSQL: made once, found again after any end, and reachable for the user who runs it."""

import os
import pwd
import stat
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest

from marketplace.embedded import postgres
from marketplace.embedded.programs import CannotStart, is_alive
from marketplace.embedded.supervisor import Supervisor
from tests.marketplace.embedded.conftest import wait_until

AS_ROOT = os.geteuid() == 0
OURSELVES = os.geteuid()
ANOTHER = next(user.pw_uid for user in pwd.getpwall() if user.pw_uid not in {0, OURSELVES, postgres.UNPRIVILEGED})


def run(supervisor: Supervisor, home: Path) -> str:
    """Start the PostgreSQL of a home and return its address."""
    server = postgres.server(home / "postgres", settings=postgres.SERVE | {"fsync": "off"})
    supervisor.start(server.program, stage=0)
    supervisor.wait_for_server(server, within_s=20)
    return server.url


def ask(url: str, query: str):
    with psycopg.connect(url, autocommit=True) as connection:
        answer = connection.execute(query)
        return answer.fetchone() if answer.description else None


def postmaster(home: Path) -> psutil.Process:
    data = (home / "postgres" / "data").resolve()
    return psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))


def in_a_fork(work: Callable[[], None], *, uid: int) -> int:
    """Do work as another user and return its exit code; a fork, as that user may not even read our Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, of which none holds a lock here
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        if uid != os.geteuid():
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def test_it_keeps_what_was_written_and_asks_for_a_password(supervisor, folder):
    url = run(supervisor, folder)
    assert ask(url, "SELECT current_database(), datcollate || datlocale FROM pg_database WHERE datname = 'gpumarket'")
    ask(url, "CREATE TABLE kept (n int)")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        ask(url.replace(url.split(":")[2].split("@")[0], "guess"), "SELECT 1")
    supervisor.end_all(within_s=5)
    assert not (folder / "postgres" / "data" / "postmaster.pid").exists()

    again = run(supervisor, folder)
    assert again == url
    assert ask(again, "SELECT count(*) FROM kept") == (0,)


def test_it_starts_again_on_the_same_port_after_kill_9_of_all_of_it(supervisor, folder):
    url = run(supervisor, folder)
    ask(url, "CREATE TABLE kept (n int)")
    first = postmaster(folder)
    with psycopg.connect(url):
        for process in [first, *first.children()]:
            process.kill()

    def runs_again():
        supervisor.look()
        try:
            return postmaster(folder).pid != first.pid and ask(url, "SELECT count(*) FROM kept") == (0,)
        except (psycopg.OperationalError, OSError, psutil.NoSuchProcess):
            return False

    wait_until(runs_again)


def test_a_lock_that_names_a_stranger_is_removed_and_a_lonely_backend_ended(supervisor, folder):
    url = run(supervisor, folder)
    with psycopg.connect(url) as connection:
        backend = psutil.Process(connection.info.backend_pid)
        backend.suspend()  # so that it does not notice that its parent is gone
        lock = folder / "postgres" / "data" / "postmaster.pid"
        text = lock.read_text().split("\n", 1)[1]
        postmaster(folder).kill()
        wait_until(lambda: backend.ppid() != supervisor._kept["postgres"].process.pid)
        supervisor.end_all(within_s=0)
        lock.write_text(f"{os.getpid()}\n{text}")

        assert ask(run(supervisor, folder), "SELECT 1") == (1,)
        assert not is_alive(backend)


def test_secrets_are_readable_for_their_owner_only(supervisor, folder):
    run(supervisor, folder)
    kept = folder / "postgres" / "server.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert list((folder / "postgres").glob("password*")) == []
    assert kept.read_text().split('"password": "')[1].split('"')[0] not in " ".join(postmaster(folder).cmdline())


def test_data_of_another_version_is_refused_and_not_touched(folder):
    (folder / "postgres" / "data").mkdir(parents=True)
    (folder / "postgres" / "data" / "PG_VERSION").write_text("16\n")
    with pytest.raises(CannotStart, match="is of PostgreSQL 16, we run 18"):
        postgres.server(folder / "postgres")


def test_data_that_was_half_made_is_made_anew(supervisor, folder):
    (folder / "postgres" / "data" / "base").mkdir(parents=True)
    assert ask(run(supervisor, folder), "SELECT 1") == (1,)


@pytest.mark.parametrize("uid", [OURSELVES, *([ANOTHER] if AS_ROOT else [])])
def test_it_runs_for_any_user_and_never_as_root(folder, uid):
    os.chown(folder, uid, -1)

    def work():
        supervisor = Supervisor(folder, say=print)
        try:
            assert ask(run(supervisor, folder), "SELECT 1") == (1,)
            assert postmaster(folder).uids().effective == (postgres.UNPRIVILEGED if uid == 0 else uid)
        finally:
            supervisor.end_all(within_s=5)

    assert in_a_fork(work, uid=uid) == 0


if AS_ROOT:  # an ordinary user runs PostgreSQL as himself, so no folder is closed to it

    def test_where_the_home_is_closed_the_data_is_sheltered_and_nothing_is_opened(
        supervisor, folder, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(postgres, "SHELTER", folder / "shelter")
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        assert ask(run(supervisor, closed), "SELECT 1") == (1,)
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        sheltered = (closed / "postgres" / "data").resolve()
        assert sheltered.parent == folder / "shelter"
        supervisor.end_all(within_s=5)
        assert run(supervisor, closed)
        supervisor.end_all(within_s=5)
        postgres.remove(closed / "postgres")
        assert not sheltered.exists()
        assert not (closed / "postgres").exists()

    def test_where_the_binaries_are_closed_a_copy_is_made_once(supervisor, folder, monkeypatch):
        monkeypatch.setattr(postgres, "SHELTER", folder / "shelter")
        monkeypatch.setattr(postgres, "_is_reachable", lambda path: "site-packages" not in path.parts)
        assert ask(run(supervisor, folder), "SELECT 1") == (1,)
        copies = list((folder / "shelter").iterdir())
        assert len(copies) == 1
        assert Path(postmaster(folder).exe()).is_relative_to(copies[0])
        supervisor.end_all(within_s=5)
        run(supervisor, folder)
        assert list((folder / "shelter").iterdir()) == copies


def test_it_ends_in_good_order_without_waiting_for_its_clients(supervisor, folder):
    with psycopg.connect(run(supervisor, folder)):
        process = supervisor._kept["postgres"].process
        supervisor.end_all(within_s=5)
    assert process.returncode == 0
