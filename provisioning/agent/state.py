"""What an agent keeps in its home, and keeps through kill -9 and power cuts.

lock            held by the one agent that uses this home
key             the node's own secret, 256 bits in hex, mode 0600; made here, never sent but to our server
signing-key     with which the node signs what it saw (Ed25519, in hex, mode 0600); made here, never sent to anybody
node.json       who we are: written once, when the server accepted us
state.json      counters that only grow, and the last document of what we should run
journal         what happened here and the server has not acknowledged yet, see `journal`
ssh-sessions    the SSH sessions that are on record as open, see `ssh_records`
lease.json      when the server was last heard: each workload may go on from then for its own lease
reserve         room for the files above when the disk is full
seed            of the names of simulated GPUs
volumes/        one folder for each volume, unless --volumes names another place, see `volumes`
workloads/      one folder per assignment, see `workload`
"""

import fcntl
import hashlib
import json
import logging
import os
import secrets
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from provisioning.agent.clock import boot_id, boottime
from provisioning.agent.disk import Reserve
from provisioning.agent.files import read_json, write_json, write_over, write_whole
from provisioning.agent.protocol import Document, Joined, ProtocolError, parse_document
from provisioning.agent.signing import new_private

log = logging.getLogger("gpumarket.agent")

LEASE_BYTES = 128  # Always the same: shims read it, and a full disk must not keep an old lease before their eyes.


class HomeError(Exception):
    """This home cannot be used; the message says why and what to do."""


@dataclass
class State:
    """The content of state.json."""

    agent_epoch: int = 0
    driver_epoch: int = 0
    boot_id: str = ""
    inventory_generation: int = 0
    inventory_digest: str = ""
    desired_generation: int = 0
    desired: dict[str, Any] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)


class Home:
    """One agent's folder. Every change is on the disk before the call returns."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.workloads = self.path / "workloads"
        self._guard = threading.RLock()
        try:
            self.workloads.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.chmod(0o700)
            self._lock = self._take_lock()
            self.reserve = Reserve(self.path)
            self._state = State(**(read_json(self.path / "state.json") or {}))
            self._document = parse_document(generation=self._state.desired_generation, desired=self._state.desired)
        except OSError as error:
            raise HomeError(f"cannot use {self.path}: {error.strerror}") from error
        except (ValueError, TypeError, ProtocolError) as error:
            raise HomeError(
                f"{self.path / 'state.json'} is damaged ({error}); restore it or join as a new node"
            ) from error

    def _take_lock(self) -> int:
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 32).decode().strip()
            os.close(lock)
            raise HomeError(
                f"another agent (pid {holder}) already uses {self.path}; each needs its own --home"
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        return lock

    def close(self) -> None:
        """Let another agent use this home."""
        os.close(self._lock)

    def key(self) -> str:
        """Return the node's key. It is made before the first join, so that a lost answer can be asked for again."""
        path = self.path / "key"
        if not path.exists():
            write_whole(path, secrets.token_hex(32).encode())
        return path.read_text()

    def signing_key(self) -> str:
        """Return the private key with which this node signs what it saw; only its public half is ever told."""
        path = self.path / "signing-key"
        if not path.exists():
            write_whole(path, new_private().encode())
        return path.read_text()

    def seed(self) -> str:
        """Return what the names of simulated GPUs are derived from."""
        path = self.path / "seed"
        if not path.exists():
            write_whole(path, secrets.token_hex(16).encode())
        return path.read_text()

    def identity(self) -> Joined | None:
        """Return who we are, or None before the first join."""
        found = read_json(self.path / "node.json")
        return Joined(**found) if found else None

    def remember_identity(self, joined: Joined) -> None:
        """Keep who we are."""
        write_json(self.path / "node.json", asdict(joined))

    def _save(self, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self._state, name, value)
        self.reserve.writing(lambda: write_json(self.path / "state.json", asdict(self._state)))

    def begin_epoch(self) -> int:
        """Count this start of the agent, and note if the machine, and with it the GPUs' counters, started anew."""
        with self._guard:
            is_new_boot = self._state.boot_id != boot_id()
            self._save(
                agent_epoch=self._state.agent_epoch + 1,
                driver_epoch=self._state.driver_epoch + is_new_boot,
                boot_id=boot_id(),
            )
            return self._state.agent_epoch

    def driver_epoch(self) -> int:
        """Return the number under which energy counters compare."""
        return self._state.driver_epoch

    def begin_driver_epoch(self) -> int:
        """Count a fresh start of the GPUs' energy counters."""
        with self._guard:
            self._save(driver_epoch=self._state.driver_epoch + 1)
            return self._state.driver_epoch

    def inventory_generation(self, content: str) -> int:
        """Return the generation of this inventory: one more than the last if its content differs."""
        digest = hashlib.sha256(content.encode()).hexdigest()
        with self._guard:
            if digest != self._state.inventory_digest:
                self._save(inventory_digest=digest, inventory_generation=self._state.inventory_generation + 1)
            return self._state.inventory_generation

    def document(self) -> Document:
        """Return what this node should run, as far as it knows."""
        return self._document

    def adopt_document(self, *, generation: int, desired: dict[str, Any]) -> bool:
        """Make this the document, unless it is not newer than the one held. Raises ProtocolError, changing nothing.

        An entry with a lower fence than the one held for the same assignment is old news: the held one stays.
        """
        with self._guard:
            if generation <= self._document.generation:
                return False
            new = parse_document(generation=generation, desired=desired)
            held = {entry["id"]: entry for entry in self._state.desired.get("assignments", [])}
            kept = []
            for entry in desired.get("assignments", []):
                old = held.get(entry["id"])
                kept.append(old if old and entry["fence"] < old["fence"] else entry | _counting(entry, old))
            known = {one.id for one in new.assignments}
            removed = {name: fence for name, fence in self._state.removed.items() if name in known}
            self._save(desired_generation=generation, desired=desired | {"assignments": kept}, removed=removed)
            self._document = parse_document(generation=generation, desired=self._state.desired)
            return True

    def removed_fence(self, assignment_id: str) -> int:
        """Return the highest fence under which this assignment ended here for good, or -1."""
        return self._state.removed.get(assignment_id, -1)

    def remember_removed(self, assignment_id: str, fence: int) -> None:
        """Keep that an assignment ended here for good, so that its command can never start again."""
        with self._guard:
            self._save(removed=self._state.removed | {assignment_id: fence})


def _counting(entry: dict[str, Any], old: dict[str, Any] | None) -> dict[str, Any]:
    """Return the entry's notice with the time of its deadline, by our clock and from when we first heard of it."""
    notice = entry.get("notice")
    if not notice:
        return {}
    known = (old or {}).get("notice") or {}
    if known.get("id") == notice["id"]:
        return {"notice": notice | {"until": known["until"], "boot_id": known["boot_id"]}}
    return {"notice": notice | {"until": boottime() + notice["left_ms"] / 1000, "boot_id": boot_id()}}


class Lease:
    """When the server was last heard. Every workload may run on from then for the seconds of its own lease."""

    RESTART_GRACE_S = 5.0

    def __init__(self, home: Home) -> None:
        self._path = home.path / "lease.json"
        kept = read_json(self._path) or {}
        # The agent was away, perhaps for longer than a lease: one chance to hear that all is still well.
        self._patient_until = boottime() + self.RESTART_GRACE_S
        self._heard_at: float | None = kept.get("heard_at") if kept.get("boot_id") == boot_id() else None

    def hear(self, *, asked_at: float) -> None:
        """Note that the server answered; the time counts from when we asked, the earliest it can have meant."""
        self._heard_at = asked_at
        self._patient_until = 0.0
        data = json.dumps({"boot_id": boot_id(), "heard_at": asked_at}).ljust(LEASE_BYTES).encode()
        try:
            # Not durable: after a crash of the machine nothing runs that a lease could end.
            write_whole(self._path, data, durable=False)
        except OSError as error:
            log.warning("cannot write the lease anew; writing over the old one", extra={"error": str(error)})
            write_over(self._path, data)

    def has_run_out(self, lease_s: float) -> bool:
        """Return whether what has a lease of so many seconds must end. Who never heard a server has none to lose."""
        if self._heard_at is None:
            return False
        return boottime() > max(self._heard_at + lease_s, self._patient_until)
