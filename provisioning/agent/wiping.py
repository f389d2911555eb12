"""What happens to a GPU between two tenants: dirty, wiping, verifying; and a record of it, whatever came of it.

Nothing here decides whether a GPU may be used again: the record says what was done, and the server refuses every GPU
that has no good one. A wipe that an agent's end cut short is begun again by the next agent.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from provisioning.agent.clock import boottime
from provisioning.agent.files import read_json, write_json
from provisioning.agent.health import Record
from provisioning.agent.protocol import ID

log = logging.getLogger("gpumarket.agent")


class NotClean(Exception):
    """A GPU could not be wiped, or could not be shown to be clean; the message says why."""


@dataclass(frozen=True)
class Scrub:
    """What was done to a GPU's memory. `covered_bytes` is None where nobody can tell."""

    method: str
    covered_bytes: int | None = None
    message: str = ""


class Cleaner(Protocol):
    """What we ask of anything that can clean a GPU. Each call raises NotClean."""

    def expect_idle(self, gpu: str) -> None:
        """Return once no process uses the GPU."""

    def destroy_parts(self, gpu: str) -> int:
        """Undo that somebody cut it into parts (MIG); return how many there were."""

    def scrub(self, gpu: str) -> Scrub:
        """Clear its memory."""

    def verify(self, gpu: str) -> None:
        """Check that nothing uses it and nothing is left in it."""


@dataclass(frozen=True)
class Wish:
    """Why a GPU is wiped: after an assignment, or because an operation asks for it."""

    assignment: str = ""
    operation: str = ""
    fence: int = 0


class Wiper:
    """Wipes the GPUs of workloads that were removed. `step` belongs to the runtime's thread and never waits."""

    LIMIT_S = 120.0

    def __init__(
        self,
        *,
        home: Path,
        journal: Record,
        cleaner: Cleaner,
        excused: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self._folder = home / "wipes"
        self._folder.mkdir(exist_ok=True, mode=0o700)
        self._journal = journal
        self._cleaner = cleaner
        self._excused = excused
        self._phases: dict[str, str] = {}
        self._runs: dict[str, tuple[float, list[_Run]]] = {}
        self._wiped: set[tuple[str, int]] = set()

    def expect(self, *, assignment: str, fence: int, gpus: Iterable[str]) -> None:
        """Write down, before a workload is removed, that its GPUs must be wiped: its folder will not tell any more."""
        path = self._path(assignment)
        if gpus and not path.exists():
            write_json(path, {"fence": fence, "gpus": list(gpus)})

    def is_pending(self, assignment: str) -> bool:
        """Say whether GPUs of an assignment still wait for their wipe."""
        return assignment in self._runs or self._path(assignment).exists()

    def pending(self) -> list[str]:
        """Return every assignment whose GPUs wait for their wipe."""
        return sorted(path.stem for path in self._folder.iterdir() if ID.fullmatch(path.stem))

    def holders(self, gpus: Iterable[str]) -> list[str]:
        """Return the assignments whose wipe still holds one of these GPUs."""
        wanted = set(gpus)
        return [name for name in self.pending() if not wanted.isdisjoint(self._kept(name)["gpus"])]

    def step(self, assignment: str) -> bool:
        """Take a step towards a record for each GPU of an assignment; return whether each has one."""
        if not self.is_pending(assignment):
            return True
        if assignment not in self._runs:
            kept = self._kept(assignment)
            wish = Wish(assignment=assignment, fence=kept["fence"])
            self._runs[assignment] = (boottime(), [_Run(self, gpu, wish) for gpu in kept["gpus"]])
        began, runs = self._runs[assignment]
        if boottime() - began > self.LIMIT_S:
            for run in runs:
                run.give_up(f"it took longer than {self.LIMIT_S:.0f} s")
        if not all(run.is_recorded for run in runs):
            return False
        self._wiped.add((assignment, self._kept(assignment)["fence"]))
        self._path(assignment).unlink(missing_ok=True)
        del self._runs[assignment]
        return True

    def phase(self, assignment: str) -> str:
        """Return what the customer and the console read meanwhile: wiping or verifying."""
        _, runs = self._runs.get(assignment, (0.0, []))
        phases = {self._phases.get(run.gpu, "wiping") for run in runs if not run.is_recorded}
        return "wiping" if "wiping" in phases or not phases else "verifying"

    def wipe(self, gpu: str, *, operation: str) -> tuple[bool, str]:
        """Wipe one GPU now, for an operation; return whether it is clean, and what to say."""
        run = _Run(self, gpu, Wish(operation=operation))
        run.thread.join(timeout=self.LIMIT_S)
        run.give_up(f"it took longer than {self.LIMIT_S:.0f} s")
        return run.is_clean, run.message

    def never_used(self, *, assignment: str, fence: int, gpus: Iterable[str]) -> None:
        """Record that an assignment ended before anything of it was here: there is nothing to wipe."""
        if (assignment, fence) in self._wiped:
            return  # A document that is older than its end still asked for it.
        for gpu in gpus:
            self._record(gpu, Wish(assignment=assignment, fence=fence), Scrub("never used"), "ok", 0.0)

    def _wipe(self, gpu: str) -> Scrub:
        with self._excused(gpu):
            self._phases[gpu] = "wiping"
            self._cleaner.expect_idle(gpu)
            parts = self._cleaner.destroy_parts(gpu)
            scrub = self._cleaner.scrub(gpu)
            self._phases[gpu] = "verifying"
            self._cleaner.verify(gpu)
            if not parts:
                return scrub
            words = [f"{parts} MIG instances were destroyed", scrub.message]
            return replace(scrub, message="; ".join(filter(None, words)))

    def _record(self, gpu: str, wish: Wish, scrub: Scrub, result: str, duration_s: float) -> None:
        log.info("wiped", extra={"gpu": gpu, "method": scrub.method, "result": result, "reason": scrub.message})
        self._journal.append(
            "wipe",
            {
                "gpu": gpu,
                "assignment": wish.assignment,
                "operation": wish.operation,
                "fence": wish.fence,
                "method": scrub.method,
                "result": result,
                "covered_bytes": scrub.covered_bytes,
                "duration_ms": round(duration_s * 1000),
                "message": scrub.message,
            },
        )

    def _path(self, assignment: str) -> Path:
        return self._folder / f"{assignment}.json"

    def _kept(self, assignment: str) -> dict[str, Any]:
        kept: dict[str, Any] = read_json(self._path(assignment)) or {"fence": 0, "gpus": []}
        return kept


class _Run:
    """One wipe in a thread of its own. It is recorded once: by the thread, or by whoever gave up on it."""

    def __init__(self, wiper: Wiper, gpu: str, wish: Wish) -> None:
        self.gpu = gpu
        self.is_recorded = False
        self.is_clean = False
        self.message = ""
        self._wiper = wiper
        self._wish = wish
        self._began = boottime()
        self._guard = threading.Lock()
        self.thread = threading.Thread(target=self._work, name=f"wipe-{gpu}", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            scrub = self._wiper._wipe(self.gpu)
        except NotClean as refusal:
            self._end(Scrub("none", message=str(refusal)), "failed")
        except Exception as error:
            log.exception("a wipe failed", extra={"gpu": self.gpu})
            self._end(Scrub("none", message=f"{type(error).__name__}: {error}"), "failed")
        else:
            self._end(scrub, "ok")

    def give_up(self, reason: str) -> None:
        """Record it as failed, unless it has ended already."""
        self._end(Scrub("none", message=reason), "failed")

    def _end(self, scrub: Scrub, result: str) -> None:
        with self._guard:
            if self.is_recorded:
                return
            self._wiper._record(self.gpu, self._wish, scrub, result, boottime() - self._began)
            self.is_clean, self.message, self.is_recorded = result == "ok", scrub.message, True
