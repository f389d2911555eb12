"""What we ask of anybody who starts things on machines."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from provisioning.models import Assignment


@dataclass(frozen=True)
class Observation:
    """What is known of an assignment: a state of `Assignment.Observed`, and how it ended."""

    state: str
    gpu_uuids: tuple[str, ...] = ()
    exit_code: int | None = None
    exited_at: datetime | None = None
    message: str = ""


class Driver(Protocol):
    """Keyed by our assignment's id; every call may be repeated, also by a late worker."""

    def create(self, assignment: Assignment) -> None:
        """Get everything ready for it, without starting its command; adopt it if it is there."""

    def start(self, assignment: Assignment) -> None:
        """Start its command. A command that was started once is never started again."""

    def observe(self, assignment: Assignment) -> Observation:
        """Say what is known of it now."""

    def destroy(self, assignment: Assignment) -> bool:
        """Return True once nothing is left of it. Destroying what is not there is True."""
