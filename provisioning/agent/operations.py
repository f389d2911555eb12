"""Does what the control plane asks of this node once: wipe, reset, restart, check. Never twice under one id.

What is about to be done is written down before it is begun, and its result before it is told. An agent that finds a
begun reset without a result says `unknown` and does not try again; a restart is proved by another boot id; a wipe or
a check that was cut short is begun again, which harms nothing.
"""

import logging
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from provisioning.agent.clock import boot_id
from provisioning.agent.events import Condition
from provisioning.agent.files import read_json, write_json
from provisioning.agent.health import Record
from provisioning.agent.protocol import Operation
from provisioning.agent.wiping import Wiper

log = logging.getLogger("gpumarket.agent")

SUCCEEDED, FAILED, UNKNOWN = "succeeded", "failed", "unknown"
REPEATABLE = {"wipe", "verify"}
SIMULATED_REBOOT = "simulated"
KEPT_MAX = 1000
MESSAGE_MAX = 500


@dataclass(frozen=True)
class End:
    """How an operation ended."""

    result: str
    message: str = ""


class Tools(Protocol):
    """What can be done to GPUs of a kind."""

    def reset(self, gpu: str) -> End:
        """Reset one GPU."""

    def faults(self, gpu: str) -> Sequence[str]:
        """Return what speaks against giving a GPU to a customer; empty where nothing does."""


class SimulatedTools:
    """Repairs what does not exist, and says so. A GPU that seems lost stays lost."""

    def __init__(self, *, condition: Callable[[str], Condition | None]) -> None:
        self._condition = condition

    def reset(self, gpu: str) -> End:
        """Pretend."""
        return End(SUCCEEDED, "simulated")

    def faults(self, gpu: str) -> Sequence[str]:
        """Return whether it seems lost."""
        return faults_of(self._condition(gpu))


class NvmlTools:
    """Repairs real GPUs with NVIDIA's own programs."""

    RESET_LIMIT_S = 120.0

    def __init__(self, *, condition: Callable[[str], Condition | None], program: str = "nvidia-smi") -> None:
        self._condition = condition
        self._program = program

    def reset(self, gpu: str) -> End:
        """Reset it through nvidia-smi; what takes too long may or may not have happened."""
        program = shutil.which(self._program)
        if program is None:
            return End(FAILED, f"{self._program} is not on this node")
        return call([program, "--gpu-reset", "-i", gpu], limit_s=self.RESET_LIMIT_S)

    def faults(self, gpu: str) -> Sequence[str]:
        """Return what the GPU says against itself."""
        return faults_of(self._condition(gpu))


def faults_of(condition: Condition | None) -> Sequence[str]:
    """Return what a condition says against a GPU. What it does not tell is no fault and no proof of health either."""
    if condition is None or condition.is_lost:
        return ["it is not enumerated"]
    checks = (
        (condition.needs_reset, "it asks for a reset"),
        (condition.recovery, f"the driver asks for recovery action {condition.recovery}"),
        (condition.uncorrected, f"{condition.uncorrected} memory errors are uncorrected"),
        (condition.remap_pending, "a row of its memory still waits to be replaced"),
        (condition.remap_failed, "a bad row of its memory cannot be replaced"),
        (condition.links_down, f"{condition.links_down} of its links are down"),
        (condition.is_hot, "it is too hot"),
    )
    return [why for is_bad, why in checks if is_bad]


def call(command: Sequence[str], *, limit_s: float) -> End:
    """Run a program of the operator's and say how it ended."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return End(UNKNOWN, f"{command[0]} did not end within {limit_s:.0f} s")
    except OSError as error:
        return End(FAILED, f"{command[0]} cannot be run: {error.strerror}")
    words = (done.stderr or done.stdout).strip().splitlines()
    if done.returncode:
        return End(FAILED, words[-1] if words else f"{command[0]} ended with {done.returncode}")
    return End(SUCCEEDED, words[-1] if words else "")


class Operations:
    """Runs in a thread of its own, one operation after the other."""

    LOOK_S = 0.2
    REBOOT_LIMIT_S = 600.0

    def __init__(
        self,
        *,
        home: Path,
        journal: Record,
        wanted: Callable[[], Sequence[Operation]],
        gpus: Callable[[], Iterable[str]],
        busy: Callable[[], frozenset[str]],
        tools: Tools,
        wiper: Wiper,
        excused: Callable[[str], AbstractContextManager[None]],
        reboot_command: str = "",
    ) -> None:
        self._folder = home / "operations"
        self._folder.mkdir(exist_ok=True, mode=0o700)
        self._journal = journal
        self._wanted = wanted
        self._gpus = gpus
        self._busy = busy
        self._tools = tools
        self._wiper = wiper
        self._excused = excused
        self._reboot_command = reboot_command
        self._told: set[str] = set()
        self._stopping = threading.Event()

    def run(self, stopping: threading.Event) -> None:
        """Do what is asked until told to stop."""
        self._stopping = stopping
        self._forget_old()
        while not stopping.wait(self.LOOK_S):
            try:
                self.step()
            except Exception:
                log.exception("an operation failed; looking again")
                stopping.wait(1.0)

    def step(self) -> None:
        """Bring every operation that is asked for to an end, and tell each end once for as long as it is asked for."""
        wanted = self._wanted()
        self._told &= {one.id for one in wanted}
        for one in wanted:
            if one.id in self._told:
                continue
            end = self._ended(one) or self._do(one)
            if end is not None:
                body = {"operation": one.id, "result": end.result, "message": end.message[:MESSAGE_MAX]}
                self._journal.append("operation", body)
                self._told.add(one.id)

    def _ended(self, one: Operation) -> End | None:
        """Return the end of what was done or begun earlier; None where it may be begun."""
        kept = read_json(self._path(one))
        if kept is None or (kept["result"] == "begun" and one.kind in REPEATABLE):
            return None
        if kept["result"] != "begun":
            return End(kept["result"], kept["message"])
        if one.kind == "reboot_node" and kept["boot_id"] != boot_id():
            return self._keep(one, End(SUCCEEDED, "the machine has started anew"))
        return self._keep(one, End(UNKNOWN, "the agent was restarted in the middle of it"))

    def _do(self, one: Operation) -> End | None:
        log.warning("operation", extra={"operation": one.id, "kind": one.kind, "gpu": one.gpu})
        write_json(self._path(one), {"result": "begun", "message": "", "boot_id": boot_id(), "kind": one.kind})
        doers = {"wipe": self._wipe, "reset_gpu": self._reset, "reboot_node": self._reboot, "verify": self._verify}
        end = doers[one.kind](one)
        return None if end is None else self._keep(one, end)

    def _keep(self, one: Operation, end: End) -> End:
        kept = {"result": end.result, "message": end.message, "boot_id": boot_id(), "kind": one.kind}
        write_json(self._path(one), kept)
        log.warning("operation ended", extra={"operation": one.id, "result": end.result, "reason": end.message})
        return end

    def _wipe(self, one: Operation) -> End:
        if one.gpu in self._busy():
            return End(FAILED, "a workload is still on this GPU")
        is_clean, message = self._wiper.wipe(one.gpu, operation=one.id)
        return End(SUCCEEDED if is_clean else FAILED, message)

    def _reset(self, one: Operation) -> End:
        if one.gpu in self._busy():
            return End(FAILED, "a workload is still on this GPU")
        with self._excused(one.gpu):
            return self._tools.reset(one.gpu)

    def _reboot(self, one: Operation) -> End | None:
        if self._busy():
            return End(FAILED, "workloads are still on this node")
        if not self._reboot_command:
            return End(FAILED, "this agent may not restart its node: it was started without --reboot-command")
        if self._reboot_command == SIMULATED_REBOOT:
            return End(SUCCEEDED, "simulated")
        end = call(shlex.split(self._reboot_command), limit_s=60)
        if end.result != SUCCEEDED:
            return end
        # The machine goes down now. If it does not, nobody can say whether it still will.
        if self._stopping.wait(self.REBOOT_LIMIT_S):
            return None
        return End(UNKNOWN, "the restart was ordered, and the machine still runs")

    def _verify(self, one: Operation) -> End:
        gpus = [one.gpu] if one.gpu else sorted(self._gpus())
        faults = [f"{gpu}: {why}" for gpu in gpus for why in self._tools.faults(gpu)]
        return End(FAILED, "; ".join(faults)) if faults else End(SUCCEEDED, f"{len(gpus)} GPUs are well")

    def _path(self, one: Operation) -> Path:
        return self._folder / f"{one.id}.json"

    def _forget_old(self) -> None:
        """Keep the results of the last thousand: what is asked again after so many would be a new id."""
        kept: list[Any] = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in kept[:-KEPT_MAX]:
            path.unlink(missing_ok=True)
