"""The driver of nodes with our agent: our rows are the order, and the node comes to fetch it.

The agent calls out and is never called, so that a node needs no open port.
Writing a row and raising the node's generation is all that this driver does;
`reports.py` writes down what the node says.
"""

from django.db import transaction

from billing.prepared import ask
from provisioning.drivers.protocol import Observation
from provisioning.models import Assignment

NEXT_DOCUMENT = """
UPDATE provisioning_node SET desired_generation = desired_generation + 1 WHERE id = %(node)s::bigint
"""
WANT = """
UPDATE provisioning_assignment SET desired = %(desired)s WHERE id = %(id)s::bigint AND desired = ANY (%(from)s::text[])
"""


class AgentDriver:
    """Keeps the promise of `Driver` for nodes that run gpumarket-agent."""

    def create(self, assignment: Assignment) -> None:
        """Do nothing: the claim wrote the row and raised the generation, and the node prepares what it finds."""

    def start(self, assignment: Assignment) -> None:
        _want(assignment, Assignment.Desired.RUNNING, only_from=[Assignment.Desired.PREPARED])

    def observe(self, assignment: Assignment) -> Observation:
        return Observation(
            state=assignment.observed,
            gpu_uuids=tuple(assignment.gpu_uuids),
            exit_code=assignment.exit_code,
            exited_at=assignment.exited_at,
            message=assignment.message,
        )

    def destroy(self, assignment: Assignment) -> bool:
        _want(assignment, Assignment.Desired.GONE, only_from=[Assignment.Desired.PREPARED, Assignment.Desired.RUNNING])
        return assignment.observed == Assignment.Observed.GONE


def _want(assignment: Assignment, desired: Assignment.Desired, *, only_from: list[str]) -> None:
    if assignment.desired not in only_from:
        return  # However long ago that was read: what is wanted never goes back.
    with transaction.atomic():
        # The node first, as everywhere: see the order of locks in `instances.py`.
        ask(NEXT_DOCUMENT, {"node": assignment.node_id})
        ask(WANT, {"id": assignment.pk, "desired": desired, "from": only_from})
