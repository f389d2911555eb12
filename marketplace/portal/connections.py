"""How a customer gets into what runs: for each replica the exact commands to copy, and where its ports are."""

import hashlib
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from provisioning import sessions
from provisioning.models import Assignment, Instance

SHOWN_MAX = 8
# What a browser can be sent to; others are shown as addresses.
WEB = {80: "http", 443: "https", 3000: "http", 5000: "http", 7860: "http", 8000: "http", 8080: "http", 8443: "https",
       8501: "http", 8888: "http"}  # fmt: skip


@dataclass(frozen=True)
class Port:
    """A port inside, and where it is published."""

    inside: int
    address: str

    @property
    def link(self) -> str:
        """The address for a browser; empty for what is no web port."""
        return f"{WEB[self.inside]}://{self.address}" if self.inside in WEB else ""


@dataclass(frozen=True)
class Connection:
    """A door of an instance as commands to copy."""

    name: str
    alone: bool
    door: sessions.Door

    @property
    def replica(self) -> int:
        return self.door.replica

    @property
    def ssh_port(self) -> int | None:
        return self.door.ssh_port

    @property
    def host_key(self) -> str:
        return self.door.host_key

    @property
    def ports(self) -> list[Port]:
        return [Port(inside=one.port, address=f"{one.host}:{one.host_port}") for one in self.door.ports]

    @property
    def cli(self) -> str:
        number = [] if self.alone else ["--replica", str(self.replica)]
        return shlex.join(["gpumarket", "ssh", self.name, *number])

    @property
    def ssh(self) -> str:
        return shlex.join(["ssh", "-p", str(self.ssh_port), self._there])

    @property
    def scp(self) -> str:
        return shlex.join(["scp", "-P", str(self.ssh_port), "FILE", f"{self._there}:"])

    @property
    def forward(self) -> str:
        """Bring a port that is not published to the customer's own machine."""
        return shlex.join(["ssh", "-p", str(self.ssh_port), "-N", "-L", "8888:localhost:8888", self._there])

    @property
    def known_host(self) -> str:
        """The line of ~/.ssh/known_hosts that lets nobody else answer for the node."""
        return f"[{self.door.host}]:{self.ssh_port} {self.host_key}"

    @property
    def _there(self) -> str:
        return f"{self.door.user}@{self.door.host}"


@dataclass(frozen=True)
class Box:
    """All ways in. `digest` changes when they do, so that an open page is left alone while it is copied from."""

    connections: tuple[Connection, ...]

    @property
    def has_ssh(self) -> bool:
        return any(one.ssh_port for one in self.connections)

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self.connections).encode()).hexdigest()[:12]


def box(instance: Instance, places: Iterable[Assignment]) -> Box:
    """Return how the replicas that run are reached; `places` come with their nodes' heartbeats."""
    found = sessions.doors(instance, places) if instance.is_charged else []
    alone = instance.replicas == 1
    shown = [Connection(name=instance.name, alone=alone, door=door) for door in found[:SHOWN_MAX]]
    return Box(connections=tuple(one for one in shown if one.ssh_port or one.ports))
