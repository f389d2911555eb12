"""The agent's side of the protocol, as values. What the server says is checked here and trusted afterwards."""

import re
from dataclasses import dataclass
from typing import Any

ID = re.compile(r"[a-z]{3}_[a-z0-9]{1,60}", re.ASCII)
WISHES = ("prepared", "running", "gone")


class ProtocolError(Exception):
    """The server said something that the protocol does not know."""


@dataclass(frozen=True)
class Assignment:
    """A piece of work that this node should hold: one replica of an instance."""

    id: str
    fence: int
    instance: str
    desired: str
    gpus: tuple[str, ...]
    command: tuple[str, ...]
    env: dict[str, str]
    replica: int
    replicas: int
    peers: tuple[str, ...]
    stop_grace_s: float


@dataclass(frozen=True)
class Document:
    """The complete list of what a node should run, as of a generation. Generation 0: nothing was ever said."""

    generation: int
    assignments: tuple[Assignment, ...]

    def find(self, assignment_id: str) -> Assignment | None:
        """Return the assignment with this id."""
        return next((one for one in self.assignments if one.id == assignment_id), None)


@dataclass(frozen=True)
class Result:
    """The server's answer to one report."""

    status: str
    poll_after_ms: int
    desired_generation: int
    desired: list[Any] | None
    log_cursors: dict[str, int]
    lease_ms: int | None


@dataclass(frozen=True)
class Joined:
    """Who this node is, according to the server that it joined."""

    node: str
    name: str
    poll_after_ms: int


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


def parse_assignment(source: Any) -> Assignment:
    """Return one entry of `desired`; raises ProtocolError."""
    identity = take(source, "id", str)
    desired = take(source, "desired", str)
    if not ID.fullmatch(identity):  # It becomes the name of a folder.
        raise ProtocolError(f"{identity!r} cannot be the id of an assignment")
    if desired not in WISHES:
        raise ProtocolError(f"{identity} should be {desired!r}, which is none of {', '.join(WISHES)}")
    env = take(source, "env", dict, default={})
    if not all(isinstance(value, str) for value in env.values()):
        raise ProtocolError(f"'env' of {identity} must map names to strings")
    return Assignment(
        id=identity,
        fence=take(source, "fence", int),
        instance=take(source, "instance", str),
        desired=desired,
        gpus=texts(source, "gpus"),
        command=texts(source, "command"),
        env=env,
        replica=take(source, "replica", int, default=0),
        replicas=take(source, "replicas", int, default=1),
        peers=texts(source, "peers"),
        stop_grace_s=max(0, take(source, "stop_grace_s", (int, float), default=10)),
    )


def parse_document(*, generation: int, entries: list[Any]) -> Document:
    """Return a document; raises ProtocolError, also where an id appears twice."""
    assignments = tuple(parse_assignment(entry) for entry in entries)
    if len({one.id for one in assignments}) != len(assignments):
        raise ProtocolError("an assignment appears twice in 'desired'")
    return Document(generation, assignments)


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
        desired=take(source, "desired", (list, type(None)), default=None),
        log_cursors=cursors,
        lease_ms=take(source, "lease_ms", (int, type(None)), default=None),
    )


def parse_joined(body: Any) -> Joined:
    """Return the answer to a join; raises ProtocolError."""
    return Joined(
        node=take(body, "node", str),
        name=take(body, "name", str),
        poll_after_ms=take(body, "poll_after_ms", int, default=0),
    )
