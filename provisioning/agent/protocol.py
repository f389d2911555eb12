"""The agent's side of the protocol, as values. What the server says is checked here and trusted afterwards."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from provisioning.agent.clock import boot_id, boottime
from provisioning.agent.lease import STICKY_S
from provisioning.agent.manifest import SHA256, why_no_path

COUNTERS_PATH = re.compile(r"/[!-~]{0,199}", re.ASCII)
ID = re.compile(r"[a-z]{3}_[a-z0-9]{1,60}", re.ASCII)
VERSION = 2
WISHES = ("prepared", "running", "gone")
OPERATIONS = ("wipe", "reset_gpu", "reboot_node", "verify")


class ProtocolError(Exception):
    """The server said something that the protocol does not know."""


@dataclass(frozen=True)
class Mount:
    """A volume and the path at which an instance finds it."""

    id: str
    path: str
    name: str = ""
    read_only: bool = False


@dataclass(frozen=True)
class Network:
    """The private network of a gang: its number, its addresses, and ours among them."""

    vni: int
    subnet: str
    address: str
    encrypted: bool = False  # What goes between hosts: all nodes of the gang can.


@dataclass(frozen=True)
class Notice:
    """When this node takes the GPUs back. `until` is boot time of the machine's start `boot_id`; both are ours."""

    id: str
    reason: str
    notice_at: str
    deadline_at: str
    min_notice_s: int
    grace_s: float
    until: float
    boot_id: str


@dataclass(frozen=True)
class Risk:
    """That the GPUs may be taken back soon, with no promise when, or whether at all."""

    id: str
    level: str
    advised_at: str


@dataclass(frozen=True)
class Counters:
    """Counters that a workload shows in Prometheus text format on a port of its own."""

    port: int
    path: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Work:
    """The files of an assignment: the manifest it begins with, what it leaves, the folder that is kept while it runs.

    All paths are relative to its work folder. Without `has_network` it reaches nothing but itself. What keeps more than
    `disk_bytes` on the disk is ended; None sets no share.
    """

    inputs: str = ""
    outputs: tuple[str, ...] = ()
    checkpoint: str = ""
    checkpoint_sha256: str = ""
    has_network: bool = True
    counters: Counters | None = None
    disk_bytes: int | None = None

    @property
    def has_files(self) -> bool:
        """Return whether anything must be brought or taken away."""
        return bool(self.inputs or self.outputs or self.checkpoint)


@dataclass(frozen=True)
class Assignment:
    """A piece of work that this node should hold: one replica of an instance."""

    id: str
    fence: int
    instance: str
    name: str
    desired: str
    gpus: tuple[str, ...]
    image: str  # Empty: a process of this machine.
    command: tuple[str, ...]
    env: dict[str, str]
    ports: tuple[int, ...]
    lease_s: float
    ssh_keys: tuple[str, ...]
    volumes: tuple[Mount, ...]
    network: Network | None
    replica: int
    replicas: int
    peers: tuple[str, ...]
    stop_grace_s: float
    notice: Notice | None = None
    risk: Risk | None = None
    work: Work = Work()


@dataclass(frozen=True)
class Operation:
    """Something to be done once to the node or one GPU of it; its result is kept by its id.

    `links`: for a check, the NVLinks that each GPU was accepted with; one that is not named has told of none.
    """

    id: str
    kind: str
    gpu: str
    attempt: int
    links: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Volume:
    """A folder that this node should keep, or should not have any more; `source` names the volume it begins as."""

    id: str
    size_bytes: int
    desired: str
    source: str
    made: bool = False  # It was here once: where it is not any more, none may be made in its place.


@dataclass(frozen=True)
class Document:
    """The complete list of what a node should hold, as of a generation. Generation 0: nothing was ever said."""

    generation: int
    assignments: tuple[Assignment, ...] = ()
    operations: tuple[Operation, ...] = ()
    volumes: tuple[Volume, ...] = ()

    def find(self, assignment_id: str) -> Assignment | None:
        """Return the assignment with this id."""
        return next((one for one in self.assignments if one.id == assignment_id), None)


@dataclass(frozen=True)
class Result:
    """The server's answer to one report."""

    status: str
    poll_after_ms: int
    desired_generation: int
    desired: dict[str, Any] | None
    log_cursors: dict[str, int]
    events_seen: int


@dataclass(frozen=True)
class Joined:
    """Who this node is, according to the server that it joined."""

    node: str
    name: str
    poll_after_ms: int


@dataclass(frozen=True)
class Login:
    """A name and a password for one registry. It is kept in memory alone, and never logged."""

    host: str
    username: str
    password: str = field(repr=False)


def take(source: Any, name: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
    """Return a member of a JSON object, checked; raises ProtocolError."""
    if not isinstance(source, dict):
        raise ProtocolError(f"an object with {name!r} was expected, not {type(source).__name__}")
    value = source.get(name, default)
    if value is default and default is not ...:
        return default
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ProtocolError(f"{name!r} is missing or of the wrong kind")
    return value


def texts(source: Any, name: str) -> tuple[str, ...]:
    """Return a list of strings, checked; an absent one is empty."""
    values = take(source, name, list, default=[])
    if not all(isinstance(value, str) for value in values):
        raise ProtocolError(f"{name!r} must be a list of strings")
    return tuple(values)


def an_id(source: Any) -> str:
    """Return the id of an entry, checked: it becomes the name of a folder."""
    identity = str(take(source, "id", str))
    if not ID.fullmatch(identity):
        raise ProtocolError(f"{identity!r} cannot be an id")
    return identity


def ports(source: Any) -> tuple[int, ...]:
    """Return the ports of an entry, checked; an absent list is empty."""
    values = take(source, "ports", list, default=[])
    if not all(type(value) is int and 0 < value < 65_536 for value in values):
        raise ProtocolError("'ports' must be a list of port numbers")
    return tuple(values)


def parse_network(source: Any) -> Network | None:
    """Return the network of a gang, or None for what stands alone."""
    if source is None:
        return None
    vni, subnet, address = take(source, "vni", int), take(source, "subnet", str), take(source, "address", str)
    return Network(vni=vni, subnet=subnet, address=address, encrypted=source.get("encrypted", False) is True)


def parse_operation(source: Any) -> Operation:
    """Return one entry of `operations`; raises ProtocolError."""
    kind = take(source, "kind", str)
    if kind not in OPERATIONS:
        raise ProtocolError(f"{kind!r} is none of {', '.join(OPERATIONS)}")
    gpu, attempt = take(source, "gpu", str, default=""), take(source, "attempt", int, default=1)
    links = take(source, "links", dict, default={})
    if not all(isinstance(of, list) and all(type(link) is int for link in of) for of in links.values()):
        raise ProtocolError("'links' must map GPUs to lists of numbers")
    named = {uuid: tuple(of) for uuid, of in links.items()}
    return Operation(id=an_id(source), kind=kind, gpu=gpu, attempt=attempt, links=named)


def parse_volume(source: Any) -> Volume:
    """Return one entry of `volumes`; raises ProtocolError."""
    desired = take(source, "desired", str)
    if desired not in {"present", "gone"}:
        raise ProtocolError(f"a volume should be {desired!r}, which is neither present nor gone")
    size_bytes, origin = take(source, "size_bytes", int), take(source, "source", str, default="")
    if origin and not ID.fullmatch(origin):
        raise ProtocolError(f"{origin!r} cannot be an id")
    made = source.get("made", False) is True
    return Volume(id=an_id(source), size_bytes=size_bytes, desired=desired, source=origin, made=made)


def parse_mount(source: Any) -> Mount:
    """Return one entry of an assignment's `volumes`; raises ProtocolError."""
    path = take(source, "path", str)
    if not path.startswith("/") or any(part in {"", ".", ".."} for part in path[1:].split("/")) or "\0" in path:
        raise ProtocolError(f"{path!r} cannot be the path of a volume")
    name = take(source, "name", str, default="")
    return Mount(id=an_id(source), path=path, name=name, read_only=source.get("read_only", False) is True)


def parse_notice(source: Any) -> Notice | None:
    """Return the notice of an assignment, or None; raises ProtocolError. `until` is written in by `state`."""
    if source is None:
        return None
    return Notice(
        id=an_id(source),
        reason=take(source, "reason", str),
        notice_at=take(source, "notice_at", str),
        deadline_at=take(source, "deadline_at", str),
        min_notice_s=take(source, "min_notice_s", int),
        grace_s=max(0, take(source, "grace_ms", int)) / 1000,
        until=take(source, "until", (int, float), default=boottime() + max(0, take(source, "left_ms", int)) / 1000),
        boot_id=take(source, "boot_id", str, default=boot_id()),
    )


def parse_risk(source: Any) -> Risk | None:
    """Return the advisory of an assignment, or None; raises ProtocolError."""
    if source is None:
        return None
    return Risk(id=an_id(source), level=take(source, "level", str), advised_at=take(source, "advised_at", str))


def parse_counters(source: Any) -> Counters | None:
    """Return which counters a workload shows, and where; raises ProtocolError."""
    if source is None:
        return None
    port, path = take(source, "port", int), take(source, "path", str)
    if not 0 < port < 65_536 or not COUNTERS_PATH.fullmatch(path):
        raise ProtocolError(f"counters cannot be at port {port}, path {path!r}")
    return Counters(port=port, path=path, names=texts(source, "names"))


def parse_work(source: Any) -> Work:
    """Return the files of an assignment; raises ProtocolError for digests and paths that cannot be."""
    found = Work(
        inputs=take(source, "inputs", str, default=""),
        outputs=texts(source, "outputs"),
        checkpoint=take(source, "checkpoint", str, default=""),
        checkpoint_sha256=take(source, "checkpoint_sha256", str, default=""),
        has_network=source.get("has_network", True) is not False,
        counters=parse_counters(take(source, "counters", (dict, type(None)), default=None)),
        disk_bytes=take(source, "disk_bytes", (int, type(None)), default=None),
    )
    for sha256 in filter(None, (found.inputs, found.checkpoint_sha256)):
        if not SHA256.fullmatch(sha256):
            raise ProtocolError(f"{sha256!r} is no SHA-256")
    for path in filter(None, (*found.outputs, found.checkpoint)):
        if why := why_no_path(path):
            raise ProtocolError(f"the path {path!r} {why}")
    return found


def parse_assignment(source: Any) -> Assignment:
    """Return one entry of `desired`; raises ProtocolError."""
    identity = an_id(source)
    desired = take(source, "desired", str)
    if desired not in WISHES:
        raise ProtocolError(f"{identity} should be {desired!r}, which is none of {', '.join(WISHES)}")
    env = take(source, "env", dict, default={})
    if not all(isinstance(value, str) for value in env.values()):
        raise ProtocolError(f"'env' of {identity} must map names to strings")
    return Assignment(
        id=identity,
        fence=take(source, "fence", int),
        instance=take(source, "instance", str),
        name=take(source, "name", str, default=""),
        desired=desired,
        gpus=texts(source, "gpus"),
        image=take(source, "image", str, default=""),
        command=texts(source, "command"),
        env=env,
        ports=ports(source),
        lease_s=max(0, take(source, "lease_s", (int, float), default=STICKY_S)),
        ssh_keys=texts(source, "ssh_keys"),
        volumes=tuple(map(parse_mount, take(source, "volumes", list, default=[]))),
        network=parse_network(take(source, "network", (dict, type(None)), default=None)),
        replica=take(source, "replica", int, default=0),
        replicas=take(source, "replicas", int, default=1),
        peers=texts(source, "peers"),
        stop_grace_s=max(0, take(source, "stop_grace_s", (int, float), default=10)),
        notice=parse_notice(take(source, "notice", (dict, type(None)), default=None)),
        risk=parse_risk(take(source, "risk", (dict, type(None)), default=None)),
        work=parse_work(take(source, "work", dict, default={})),
    )


def parse_document(*, generation: int, desired: dict[str, Any]) -> Document:
    """Return a document; raises ProtocolError, also where an id appears twice."""
    document = Document(
        generation,
        assignments=tuple(map(parse_assignment, take(desired, "assignments", list, default=[]))),
        operations=tuple(map(parse_operation, take(desired, "operations", list, default=[]))),
        volumes=tuple(map(parse_volume, take(desired, "volumes", list, default=[]))),
    )
    for entries in (document.assignments, document.operations, document.volumes):
        if len({one.id for one in entries}) != len(entries):
            raise ProtocolError("an id appears twice in 'desired'")
    return document


def parse_result(body: Any) -> Result:
    """Return the answer to our one report; raises ProtocolError."""
    results = take(body, "results", list)
    if len(results) != 1:
        raise ProtocolError(f"one report was sent, {len(results)} results came back")
    source = results[0]
    cursors = take(source, "log_cursors", dict, default={}) or {}
    if not all(type(offset) is int and offset >= 0 for offset in cursors.values()):
        raise ProtocolError("'log_cursors' must map assignments to offsets")
    return Result(
        status=take(source, "status", str),
        poll_after_ms=take(source, "poll_after_ms", int, default=5000),
        desired_generation=take(source, "desired_generation", int, default=0),
        desired=take(source, "desired", (dict, type(None)), default=None),
        log_cursors=cursors,
        events_seen=take(source, "events_seen", int, default=0),
    )


def parse_login(body: Any) -> Login | None:
    """Return the login for a registry, or None where none is needed; raises ProtocolError."""
    registry = take(body, "registry", (dict, type(None)), default=None)
    if registry is None:
        return None
    return Login(*(take(registry, name, str) for name in ("host", "username", "password")))


def parse_network_key(body: Any) -> bytes:
    """Return the key of a gang's network; raises ProtocolError, which does not show it."""
    try:
        return bytes.fromhex(take(take(body, "network", dict), "key", str))
    except ValueError:
        raise ProtocolError("'key' is not in hexadecimal") from None


def parse_joined(body: Any) -> Joined:
    """Return the answer to a join; raises ProtocolError."""
    return Joined(
        node=take(body, "node", str),
        name=take(body, "name", str),
        poll_after_ms=take(body, "poll_after_ms", int, default=0),
    )
