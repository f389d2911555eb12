"""The lease as a guard sees it: what guards a workload outlives the agent, and must not outlive the right to run.

The control plane gives an instance's GPUs to others some time after its lease. So a guard (a shim, or what watches a
container) reads the agent's lease.json for itself: when the control plane was last heard, written at each sync that
succeeds. It ends its workload that many seconds and the workload's own lease later, even if no agent is there to ask
for it. Times are boot time, which no step of a wall clock moves.
"""

from pathlib import Path

from provisioning.agent.clock import boot_id, boottime
from provisioning.agent.files import read_json

STICKY_S = 900.0  # The lease of what was assigned without saying which.
LEASE_GRACE_S_MAX = 10.0  # The control plane waits a few seconds more than the lease, not a customer's own grace.
LEASE_RAN_OUT = "the node heard nothing from its control plane for longer than its lease"
MACHINE_RESTARTED = "the machine restarted while it ran"
SUPERVISOR_KILLED = "its supervisor was killed while it ran"


def is_lost(message: str) -> bool:
    """Return whether a workload that ended so was lost by its node: that is no exit of its own command."""
    return any(words in message for words in (LEASE_RAN_OUT, MACHINE_RESTARTED, SUPERVISOR_KILLED))


class LeaseWatch:
    """Looks at a lease file for one workload. Ask `has_run_out` as often as you like; it reads once in LOOK_S."""

    LOOK_S = 1.0
    LATE_S = 5.0  # An agent that lives, or comes back in time, ends the workload first or renews the lease.
    UNREADABLE_S_MAX = 900.0  # How long a workload may run under a lease that was never once readable.

    def __init__(self, path: Path, *, lease_s: float) -> None:
        self._path = path
        self._lease_s = lease_s
        self._heard_at: float | None = None
        self._unreadable_until: float | None = None
        self._look_at = 0.0

    def has_run_out(self) -> bool:
        """Return whether the workload must end. Where no lease was ever written, there is none to lose."""
        now = boottime()
        if now >= self._look_at:
            self._look_at = now + self.LOOK_S
            self._look(now)
        until = self._unreadable_until if self._heard_at is None else self._heard_at + self._lease_s + self.LATE_S
        return until is not None and now > until

    def _look(self, now: float) -> None:
        """Learn when the server was heard. A file that does not say (damaged, gone, older) changes nothing."""
        try:
            kept = read_json(self._path)
            if kept is None:
                return
            if kept["boot_id"] == boot_id():
                self._heard_at = float(kept["heard_at"])
                return
        except (OSError, ValueError, TypeError, KeyError):
            pass  # The next sync that succeeds writes a whole one.
        if self._unreadable_until is None:
            self._unreadable_until = now + min(self._lease_s, self.UNREADABLE_S_MAX)
