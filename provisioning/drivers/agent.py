"""The driver of nodes with our agent: our rows are the order, and the node comes to fetch it.

The agent calls out and is never called, so that a node needs no open port.
Writing a row and raising the node's generation is all that this driver does;
`reports.py` writes down what the node says.
"""

from django.db import transaction
from django.db.models import F

from provisioning.drivers.protocol import Observation
from provisioning.models import Assignment, Node


class AgentDriver:
    """Keeps the promise of `Driver` for nodes that run gpumarket-agent."""

    def create(self, assignment: Assignment) -> None:
        """Do nothing: the claim wrote the row and raised the generation, and the node prepares what it finds."""

    def start(self, assignment: Assignment) -> None:
        _want(assignment, Assignment.Desired.RUNNING, only_from=Assignment.Desired.PREPARED)

    def observe(self, assignment: Assignment) -> Observation:
        return Observation(
            state=assignment.observed,
            gpu_uuids=tuple(assignment.gpu_uuids),
            exit_code=assignment.exit_code,
            exited_at=assignment.exited_at,
            message=assignment.message,
        )

    def destroy(self, assignment: Assignment) -> bool:
        _want(assignment, Assignment.Desired.GONE, only_from=None)
        return assignment.observed == Assignment.Observed.GONE


@transaction.atomic
def _want(assignment: Assignment, desired: Assignment.Desired, *, only_from: Assignment.Desired | None) -> None:
    rows = Assignment.objects.filter(pk=assignment.pk).exclude(desired=desired)
    if only_from is not None:
        rows = rows.filter(desired=only_from)
    if rows.exists():
        # The node first, as everywhere: see the order of locks in `instances.py`.
        Node.objects.filter(pk=assignment.node_id).update(desired_generation=F("desired_generation") + 1)
        rows.update(desired=desired)
