"""A data centre in a dict: what a test rents runs there at once, and the test decides how it goes on."""

from dataclasses import dataclass, field, replace
from datetime import datetime

from django.utils import timezone

from provisioning.drivers.protocol import Observation
from provisioning.models import Assignment, Gpu, WipeRecord

State = Assignment.Observed


@dataclass
class FakeDriver:
    """Keeps the promise of `Driver` in memory. Only tests register it."""

    things: dict[str, Observation] = field(default_factory=dict)

    def create(self, assignment: Assignment) -> None:
        ready = Observation(state=State.PREPARED, gpu_uuids=tuple(assignment.gpu_uuids))
        self.things.setdefault(assignment.public_id, ready)

    def start(self, assignment: Assignment) -> None:
        seen = self.observe(assignment)
        if seen.state == State.PREPARED:
            self.things[assignment.public_id] = replace(seen, state=State.RUNNING)

    def observe(self, assignment: Assignment) -> Observation:
        return self.things.get(assignment.public_id, Observation(state=State.GONE))

    def destroy(self, assignment: Assignment) -> bool:
        # Remembered, so that a late worker's `create` does not bring it back.
        self.things[assignment.public_id] = Observation(state=State.GONE)
        for gpu in Gpu.objects.filter(node=assignment.node_id, uuid__in=assignment.gpu_uuids):
            wiped = {"gpu": gpu, "assignment": assignment, "method": "simulated", "result": "ok"}
            WipeRecord.objects.get_or_create(**wiped, defaults={"at": timezone.now(), "fence": assignment.fence})
        return True

    def exit(self, assignment: Assignment, *, exit_code: int, at: datetime) -> None:
        """Let the command end, as it would by itself."""
        seen = self.observe(assignment)
        self.things[assignment.public_id] = replace(seen, state=State.EXITED, exit_code=exit_code, exited_at=at)
