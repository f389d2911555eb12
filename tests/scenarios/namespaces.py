"""Machines of paper: network namespaces on a bridge of this host, each of which can be cut off and healed."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ENDED_WITHIN_S = 20.0
NETWORKS_TRIED = 20


class CannotIsolate(Exception):
    """This machine makes no namespaces for us; the message names what is missing."""


def ip(*words: str) -> str:
    """Run ip(8) and return what it says."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotIsolate(f"ip {' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


class Machine:
    """One namespace with an address of its own, connected to the bridge by one cable."""

    def __init__(self, bridge: "Bridge", number: int) -> None:
        self.name = f"gpumarket-{bridge.mark}-{number}"
        self.address = f"{bridge.network}.{number + 10}"
        self._cable = f"gv{bridge.mark}{number}"
        ip("netns", "add", self.name)
        ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self._cable, "master", bridge.name, "up")
        ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        for inside in ("lo", "eth0"):
            ip("-n", self.name, "link", "set", inside, "up")

    def start(self, command: Sequence[str], *, log: Path, env: Mapping[str, str], cwd: Path) -> subprocess.Popen[bytes]:
        """Start a program in there: in its network and nothing else of its own, as containers need this /sys."""
        with log.open("ab") as written:
            return subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.name}", *command], stdout=written, stderr=written, env=env, cwd=cwd
            )

    def cut(self) -> None:
        """Pull the cable. What runs in there goes on and is heard by nobody."""
        ip("link", "set", self._cable, "down")

    def heal(self) -> None:
        """Put the cable back."""
        ip("link", "set", self._cable, "up")

    def processes(self) -> list[int]:
        """Return the pids of all that runs in there."""
        return [int(pid) for pid in ip("netns", "pids", self.name).split()]

    def remove(self) -> None:
        """End what runs in there and take the namespace away; its cable goes with it."""
        deadline = time.monotonic() + ENDED_WITHIN_S
        while (left := self.processes()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        ip("netns", "delete", self.name)


class Bridge:
    """A bridge of this host with an address in a small network that nobody uses."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(3)
        self.name = f"gb{self.mark}"
        self.machines: list[Machine] = []
        ip("link", "add", self.name, "type", "bridge")
        used = ip("-4", "-o", "address", "show") + ip("-4", "route", "show")
        for _ in range(NETWORKS_TRIED):
            self.network = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(256)}"
            if f"{self.network}." not in used:
                break
        self.address = f"{self.network}.1"
        ip("address", "add", f"{self.address}/24", "dev", self.name)
        ip("link", "set", self.name, "up")

    def machine(self) -> Machine:
        """Connect one more machine."""
        self.machines.append(Machine(self, len(self.machines)))
        return self.machines[-1]


def missing() -> str:
    """Return what keeps us from making namespaces here; nothing where we can."""
    if shutil.which("ip") is None:
        return "iproute2"
    return "" if os.geteuid() == 0 else "root"


@contextlib.contextmanager
def bridge() -> Iterator[Bridge]:
    """Make a bridge, and leave nothing of it and its machines."""
    if found := missing():
        raise CannotIsolate(f"network namespaces need {found}")
    made = Bridge()
    try:
        yield made
    finally:
        errors: list[Any] = []
        for machine in made.machines:
            try:
                machine.remove()
            except CannotIsolate as error:
                errors.append(error)
        ip("link", "delete", made.name)
        assert not errors, errors
