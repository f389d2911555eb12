"""How a customer gets into what runs: for each replica the exact commands to copy, and where its ports are."""

import hashlib
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from django.core.exceptions import ObjectDoesNotExist

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
    """How one replica is reached. Without `user` its node has no SSH gateway."""

    name: str
    replica: int
    host: str
    ssh_port: int | None
    host_key: str
    user: str
    ports: tuple[Port, ...]
    alone: bool

    @property
    def cli(self) -> str:
        number = [] if self.alone else ["--replica", str(self.replica)]
        return shlex.join(["gpumarket", "ssh", self.name, *number])

    @property
    def ssh(self) -> str:
        return shlex.join(["ssh", "-p", str(self.ssh_port), f"{self.user}@{self.host}"])

    @property
    def scp(self) -> str:
        return shlex.join(["scp", "-P", str(self.ssh_port), "FILE", f"{self.user}@{self.host}:"])

    @property
    def forward(self) -> str:
        """Bring a port that is not published to the customer's own machine."""
        way = ["-N", "-L", "8888:localhost:8888"]
        return shlex.join(["ssh", "-p", str(self.ssh_port), *way, f"{self.user}@{self.host}"])

    @property
    def known_host(self) -> str:
        """The line of ~/.ssh/known_hosts that lets nobody else answer for the node."""
        return f"[{self.host}]:{self.ssh_port} {self.host_key}"


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
    running = [row for row in places if row.observed == Assignment.Observed.RUNNING] if instance.is_charged else []
    found = [_connection(instance, row) for row in running[:SHOWN_MAX]]
    return Box(connections=tuple(one for one in found if one.ssh_port or one.ports))


def _connection(instance: Instance, row: Assignment) -> Connection:
    try:
        access, hostname = row.node.heartbeat.access or {}, row.node.heartbeat.hostname
    except ObjectDoesNotExist:
        access, hostname = {}, row.node.name
    host = access.get("host") or hostname
    published = sorted((int(inside), outside) for inside, outside in row.ports.items())
    alone = instance.replicas == 1
    return Connection(
        name=instance.name,
        replica=row.replica,
        host=host,
        ssh_port=access.get("ssh_port"),
        host_key=access.get("host_key") or "",
        # By its id: a name may be another project's too, and can be changed.
        user=instance.public_id if alone else f"{instance.public_id}.{row.replica}",
        ports=tuple(Port(inside=inside, address=f"{host}:{outside}") for inside, outside in published),
        alone=alone,
    )
