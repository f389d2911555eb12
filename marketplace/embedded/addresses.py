"""Ports and passwords of the servers that we run, kept for the next start."""

import json
import os
import random
import secrets
import socket
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from marketplace.embedded.programs import CannotStart


@dataclass(frozen=True)
class Address:
    """Where a server of ours listens on 127.0.0.1, and what it asks for."""

    port: int
    password: str = field(repr=False)


def kept_address(folder: Path) -> Address:
    """Return the address kept in `folder`, with another port if somebody took it; choose one at the first call."""
    kept = folder / "server.json"
    address = Address(**json.loads(kept.read_text())) if kept.exists() else Address(0, secrets.token_urlsafe(24))
    if not address.port or not is_free(address.port):
        address = Address(free_port(), address.password)
        write_private(kept, json.dumps(asdict(address)))
    return address


def free_port() -> int:
    """Return a port on 127.0.0.1 that nobody listens on.

    It lies below the range from which kernels draw the ports of outgoing
    connections: a server that is restarted must find its port free again.
    """
    for _ in range(200):
        port = random.randrange(20_000, 32_000)  # noqa: S311 - not a secret
        if is_free(port):
            return port
    raise CannotStart("No port between 20000 and 32000 is free on 127.0.0.1.")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Like the servers themselves: connections that just ended do not keep the port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step; nobody but its owner may ever read it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(text)
    os.replace(file.name, path)
