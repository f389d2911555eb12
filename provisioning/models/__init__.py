from provisioning.models.artifacts import ARTIFACT_MOVES, Artifact, ArtifactState
from provisioning.models.calendar import Capacity, CommittedDay
from provisioning.models.counters import CounterSample
from provisioning.models.fleet import Fabric, Gpu, GpuHold, Heartbeat, JoinToken, Node, NodeHold, NodeInventory, Site
from provisioning.models.health import (
    Breaker,
    BreakerMark,
    HealthEvent,
    Operation,
    Remediation,
    WipeRecord,
)
from provisioning.models.instances import (
    AT_REST,
    CHARGED_PHASES,
    INFRASTRUCTURE,
    MOVES,
    STARTING,
    TOLD_PHASES,
    Assignment,
    Instance,
    InstanceEvent,
    LogChunk,
    Phase,
    Reason,
    Workflow,
)
from provisioning.models.interruptions import INTERRUPTION_MOVES, OPEN_STATES, Interruption
from provisioning.models.placement import PlacementDecision, Policy
from provisioning.models.quotas import Quota, QuotaHold
from provisioning.models.registries import RegistryCredential
from provisioning.models.sessions import SshSession
from provisioning.models.slurm import Cluster, SlurmJob, SlurmNode
from provisioning.models.statements import NodeKey, NodeStatement
from provisioning.models.telemetry import RollUp
from provisioning.models.volumes import GIB, Volume, VolumeAttachment

__all__ = [
    "ARTIFACT_MOVES",
    "AT_REST",
    "CHARGED_PHASES",
    "GIB",
    "INFRASTRUCTURE",
    "INTERRUPTION_MOVES",
    "MOVES",
    "OPEN_STATES",
    "STARTING",
    "TOLD_PHASES",
    "Artifact",
    "ArtifactState",
    "Assignment",
    "Breaker",
    "BreakerMark",
    "Capacity",
    "Cluster",
    "CommittedDay",
    "CounterSample",
    "Fabric",
    "Gpu",
    "GpuHold",
    "HealthEvent",
    "Heartbeat",
    "Instance",
    "InstanceEvent",
    "Interruption",
    "JoinToken",
    "LogChunk",
    "Node",
    "NodeHold",
    "NodeInventory",
    "NodeKey",
    "NodeStatement",
    "Operation",
    "Phase",
    "PlacementDecision",
    "Policy",
    "Quota",
    "QuotaHold",
    "Reason",
    "RegistryCredential",
    "Remediation",
    "RollUp",
    "Site",
    "SlurmJob",
    "SlurmNode",
    "SshSession",
    "Volume",
    "VolumeAttachment",
    "WipeRecord",
    "Workflow",
]
