"""Which driver a node has."""

from provisioning.drivers.agent import AgentDriver
from provisioning.drivers.protocol import Driver
from provisioning.drivers.slurm import SlurmDriver
from provisioning.models import Assignment

DRIVERS: dict[str, Driver] = {"agent": AgentDriver(), "slurm": SlurmDriver()}


def driver_for(assignment: Assignment) -> Driver:
    """Return the driver of the node that this assignment is on."""
    return DRIVERS[assignment.node.driver]
