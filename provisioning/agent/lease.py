"""The lease as a shim sees it: a shim outlives the agent, and must not outlive the right to run.

The control plane gives a silent node's GPUs to others some time after the lease. So a shim reads the agent's lease.json
(written at each sync that succeeds) for itself, and ends its workload even if no agent is there to ask for it. Times
are boot time, which no step of a wall clock moves.
"""

from pathlib import Path

from provisioning.agent.clock import boot_id, boottime
from provisioning.agent.files import read_json

LEASE_RAN_OUT = "the node heard nothing from its control plane for longer than its lease"


class LeaseWatch:
    """Looks at a lease file now and then. Ask `has_run_out` as often as you like; it reads once in LOOK_S."""

    LOOK_S = 1.0
    LATE_S = 5.0  # An agent that lives, or comes back in time, ends the workload first or renews the lease.
    UNREADABLE_S_MAX = 900.0  # How long a workload may run under a lease that was never once readable.

    def __init__(self, path: Path) -> None:
        self._path = path
        self._deadline: float | None = None
        self._unreadable_until: float | None = None
        self._look_at = 0.0

    def has_run_out(self) -> bool:
        """Return whether the workload must end. Where no lease was ever written, there is none to lose."""
        now = boottime()
        if now >= self._look_at:
            self._look_at = now + self.LOOK_S
            self._look(now)
        until = self._unreadable_until if self._deadline is None else self._deadline + self.LATE_S
        return until is not None and now > until

    def _look(self, now: float) -> None:
        """Learn the deadline. A file that says nothing (damaged, of another boot, gone) leaves the last one known."""
        try:
            kept = read_json(self._path)
            if kept is None:
                return
            if kept["boot_id"] == boot_id():
                self._deadline = float(kept["deadline"])
                return
        except (OSError, ValueError, TypeError, KeyError):
            pass  # The next sync that succeeds writes a whole one.
        if self._unreadable_until is None:
            self._unreadable_until = now + self.UNREADABLE_S_MAX
