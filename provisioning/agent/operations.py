"""Does what the control plane asks of this node once: wipe, reset, restart, check. Never twice under one id.

What is about to be done is written down before it is begun, and its result before it is told. An agent that finds a
begun reset without a result says `unknown` and does not try again; a restart is proved by another boot id; a wipe or
a check that was cut short is begun again, which harms nothing.
"""

import logging
import shlex
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from provisioning.agent.clock import boot_id
from provisioning.agent.conditions import Condition, faults_of, untold_of
from provisioning.agent.files import read_json, write_json
from provisioning.agent.health import Record
from provisioning.agent.protocol import Operation
from provisioning.agent.tools import FAILED, SUCCEEDED, UNKNOWN, End, Tools, call
from provisioning.agent.wiping import Wiper

log = logging.getLogger("gpumarket.agent")

REPEATABLE = {"wipe", "verify"}
SIMULATED_REBOOT = "simulated"
KEPT_MAX = 1000
MESSAGE_MAX = 500


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
        condition: Callable[[str], Condition | None],
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
        self._condition = condition
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
        """Check GPUs, test their memory, and check what the test did to them."""
        gpus = [one.gpu] if one.gpu else sorted(self._gpus())
        if not self._busy().isdisjoint(gpus):
            return End(FAILED, "a workload is still on this GPU" if one.gpu else "workloads are still on this node")
        if faults := self._faults(one, gpus):
            return End(FAILED, faults)
        tested = self._tools.test_memory(gpus)
        if tested.result != SUCCEEDED:
            return End(FAILED, tested.message)
        if faults := self._faults(one, gpus):
            return End(FAILED, f"after the test of its memory: {faults}")
        words = [f"{len(gpus)} GPU{' is' if len(gpus) == 1 else 's are'} well", f"memory test: {tested.message}"]
        untold: dict[str, list[str]] = {}
        for gpu in gpus:
            for what in untold_of(self._condition(gpu), links=one.links.get(gpu)):
                untold.setdefault(what, []).append(gpu)
        if untold:
            unknown = (f"{what} of {of[0] if len(of) == 1 else f'{len(of)} GPUs'}" for what, of in untold.items())
            words.append(f"cannot tell: {', '.join(unknown)}")
        return End(SUCCEEDED, "; ".join(words))

    def _faults(self, one: Operation, gpus: Iterable[str]) -> str:
        faults = ((gpu, faults_of(self._condition(gpu), links=one.links.get(gpu))) for gpu in gpus)
        return "; ".join(f"{gpu}: {why}" for gpu, whys in faults for why in whys)

    def _path(self, one: Operation) -> Path:
        return self._folder / f"{one.id}.json"

    def _forget_old(self) -> None:
        """Keep the results of the last thousand: what is asked again after so many would be a new id."""
        kept: list[Any] = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in kept[:-KEPT_MAX]:
            path.unlink(missing_ok=True)
