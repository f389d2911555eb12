"""What the runtimes promise: `runtime` moves workloads without knowing whether they are processes or containers.

To add a runtime: a class that keeps `Kind`, one that keeps `Workload`, a line in `main.KINDS`.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from provisioning.agent.gpus import Gpu
from provisioning.agent.lease import STICKY_S
from provisioning.agent.protocol import Assignment
from provisioning.agent.volumes import Bind

OUTPUT_LIMIT_BYTES = 60 << 20  # Below the 64 MiB of a log that the control plane keeps, so that our notice arrives.
KILLED = 137

Binds = Callable[[Assignment], Sequence[Bind]]  # The folders of an assignment's volumes, see `volumes`.


@dataclass(frozen=True)
class Origin:
    """What a workload was made for."""

    id: str
    fence: int
    instance: str
    gpus: tuple[str, ...]
    stop_grace_s: float
    name: str = ""  # The instance's, by which people ask for it.
    lease_s: float = STICKY_S
    mark: str = field(default_factory=partial(secrets.token_hex, 8))  # In the environment of all that runs for it.

    @classmethod
    def of(cls, wanted: Assignment) -> "Origin":
        """Return the origin of a workload that is made for this assignment now."""
        return cls(
            id=wanted.id,
            fence=wanted.fence,
            instance=wanted.instance,
            gpus=wanted.gpus,
            stop_grace_s=wanted.stop_grace_s,
            name=wanted.name,
            lease_s=wanted.lease_s,
        )

    @classmethod
    def from_json(cls, kept: Any) -> "Origin":
        """Return what `as_json` wrote down, perhaps by an older agent. Raises TypeError, KeyError."""
        return cls(**kept | {"gpus": tuple(kept["gpus"])})

    def as_json(self) -> dict[str, Any]:
        """Return it as it is written down."""
        return asdict(self)


@dataclass(frozen=True)
class Progress:
    """How far a step is that takes long, such as the pull of an image. None where nobody can know."""

    step: str
    done_bytes: int
    total_bytes: int | None
    bytes_per_s: int


@dataclass(frozen=True)
class Look:
    """What is true of a workload now. `exited_at` is boot time, None where nobody saw it end."""

    state: str  # preparing | prepared | running | exited | failed
    exit_code: int | None = None
    exited_at: float | None = None
    message: str = ""
    progress: Progress | None = None
    ports: Mapping[int, int] = field(default_factory=dict)  # Port of the node by port inside.

    @property
    def has_ended(self) -> bool:
        """Return whether nothing of it runs, now and for ever."""
        return self.state in {"exited", "failed"}


@dataclass(frozen=True)
class Entry:
    """How to run something inside a workload: what `subprocess.Popen` takes. `env` is the whole environment."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str


@dataclass(frozen=True)
class Files:
    """Where a workload's files are.

    Without `pid`, `folder` is a folder of this machine. With `pid`, it is a folder as that process sees it: its
    mount namespace and its root. Whoever follows /proc/PID/root from outside must not follow links out of it.
    """

    folder: Path
    pid: int | None = None
    volumes: tuple[Path, ...] = ()  # Without `pid`: folders of this machine that it has links to, see `link_into`.


class Workload(Protocol):
    """Prepares, starts, watches, ends and removes one workload. Every verb may be repeated, after any crash.

    No verb waits for long: it takes a step, and `look` tells what became of it.
    """

    origin: Origin
    folder: Path  # With all that is kept of it; its command works in `work` there.

    @property
    def output(self) -> Path:
        """The file with all that the command wrote."""

    @property
    def metadata(self) -> Path:
        """The folder in which the command finds what it is told, see `notices`."""

    def prepare(self, wanted: Assignment, gpus: Sequence[Gpu]) -> None:
        """Take a step towards `look` saying prepared."""

    def start(self, wanted: Assignment, gpus: Sequence[Gpu]) -> None:
        """See to it that the command is started, once and never again. Until it is, `look` says prepared."""

    def cancel(self, reason: str) -> bool:
        """Make sure that the command never starts; False if it is too late for that."""

    def look(self) -> Look:
        """Return what is true now."""

    def end(self, *, grace_s: float, reason: str) -> bool:
        """Take a step towards nothing of it running; return whether that is so.

        All of its processes get SIGTERM and, `grace_s` later, SIGKILL. A later call may shorten the grace.
        """

    def remove(self) -> bool:
        """Take a step towards nothing being left of an ended workload; return whether that is so."""

    def entry(self, command: str | None, *, tty: bool, env: Mapping[str, str]) -> Entry:
        """Return how to run a shell command inside, as the customer would; None asks for a login shell.

        With `tty`, the caller gives the program a terminal as its standard input and output.
        """

    def files(self) -> Files:
        """Return where its files are."""

    def kept_bytes(self) -> int:
        """Return how much of the node's disk it takes. May take long, in any thread. Raises OSError, PodmanError."""

    def address(self) -> str:
        """Return where ports inside can be reached from this node."""

    def image_digest(self) -> str | None:
        """Return the digest of the image that it runs, `sha256:...`; None for what is no image, or not known."""


class Kind(Protocol):
    """A runtime: makes workloads of one kind and finds those that earlier agents left here."""

    name: str  # As the control plane knows it: process | podman.

    def find(self) -> dict[str, Workload]:
        """Return what is here, by assignment; finish the removals that were begun."""

    def make(self, wanted: Assignment) -> Workload:
        """Make a workload, whole or not at all. Raises OSError."""

    def refusal(self, wanted: Assignment) -> str:
        """Return why this runtime cannot do this, or nothing."""
