"""What this node saw of an assignment, signed with its own key: evidence that the control plane cannot make up.

Each run that ended here is stated once, in the journal; the signed statement rests beside the workload, so that an
agent which died in between says the same words again and not others.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from provisioning.agent.clock import boottime
from provisioning.agent.files import read_json, write_json
from provisioning.agent.journal import Journal
from provisioning.agent.protocol import Assignment
from provisioning.agent.readings import READINGS
from provisioning.agent.signing import STATEMENT, digest, moment, signed

log = logging.getLogger("gpumarket.agent")

ENDED = frozenset({"exited", "failed"})
MESSAGE_MAX = 200


@dataclass(frozen=True)
class Seen:
    """What is true of a workload when it is looked at. `exited_at` is boot time."""

    state: str
    exit_code: int | None
    exited_at: float | None
    message: str
    image_digest: str | None
    outputs: str | None = None  # The manifest of what it left behind, once the store has all of it.


class Witness:
    """Belongs to the thread that steps the workloads."""

    def __init__(self, *, private: str, node: Callable[[], str], journal: Journal) -> None:
        self._private = private
        self._node = node
        self._journal = journal
        self._told: dict[str, int] = {}  # Fences, by assignment, of what is still here.

    def see(self, wanted: Assignment, seen: Seen, *, folder: Path) -> None:
        """Note when it ran, and state how it ended. `folder` is the workload's own, out of its command's reach.

        A disk that takes nothing costs the statement, never the workload.
        """
        try:
            if seen.state == "running" and not (folder / "seen.json").exists():
                write_json(folder / "seen.json", {"running_at": _now_ms()}, durable=False)
            elif seen.state in ENDED and self._told.get(wanted.id) != wanted.fence:
                self._tell(wanted, seen, folder)
        except OSError as error:
            log.warning("cannot write a statement down", extra={"assignment": wanted.id, "error": str(error)})

    def forget(self, assignment: str) -> None:
        """Remember no more of what is gone from this node."""
        self._told.pop(assignment, None)

    def _tell(self, wanted: Assignment, seen: Seen, folder: Path) -> None:
        kept = read_json(folder / "statement.json")
        if kept is None:
            kept = signed(self._body(wanted, seen, folder), private=self._private, at=datetime.now(UTC))
            write_json(folder / "statement.json", kept)
        self._journal.append("statement", kept)
        self._told[wanted.id] = wanted.fence

    def _body(self, wanted: Assignment, seen: Seen, folder: Path) -> dict[str, Any]:
        running_at = (read_json(folder / "seen.json") or {}).get("running_at")
        ended_ms = None if seen.exited_at is None else _now_ms() - round((boottime() - seen.exited_at) * 1000)
        if running_at is not None and ended_ms is not None:
            running_at = min(running_at, ended_ms)  # It may end while we write down that it runs.
        return {
            "kind": STATEMENT,
            "node": self._node(),
            "assignment": wanted.id,
            "fence": wanted.fence,
            "instance": wanted.instance,
            "replica": wanted.replica,
            "gpus": list(wanted.gpus),
            "image": wanted.image,
            "image_digest": seen.image_digest,
            "command_sha256": digest(list(wanted.command)),
            "inputs": wanted.work.inputs or None,
            "outputs": seen.outputs,
            "state": seen.state,
            "exit_code": seen.exit_code,
            "message": seen.message.encode("utf-8", "replace").decode()[:MESSAGE_MAX],
            "running_at": None if running_at is None else _spelled(running_at),
            "ended_at": None if ended_ms is None else _spelled(ended_ms),
            "counters": read_json(folder / READINGS),
        }


def _now_ms() -> int:
    return round(time.time() * 1000)


def _spelled(milliseconds: int) -> str:
    return moment(datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=milliseconds))
