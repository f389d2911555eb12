from provisioning.models.fleet import Fabric, Gpu, GpuHold, Heartbeat, JoinToken, Node, NodeHold, NodeInventory, Site
from provisioning.models.instances import (
    AT_REST,
    CHARGED_PHASES,
    INFRASTRUCTURE,
    MOVES,
    STARTING,
    Assignment,
    Instance,
    InstanceEvent,
    LogChunk,
    Phase,
    Quota,
    Reason,
    Workflow,
)
from provisioning.models.registries import RegistryCredential
from provisioning.models.telemetry import RollUp
from provisioning.models.volumes import GIB, Volume, VolumeAttachment

__all__ = [
    "AT_REST",
    "CHARGED_PHASES",
    "GIB",
    "INFRASTRUCTURE",
    "MOVES",
    "STARTING",
    "Assignment",
    "Fabric",
    "Gpu",
    "GpuHold",
    "Heartbeat",
    "Instance",
    "InstanceEvent",
    "JoinToken",
    "LogChunk",
    "Node",
    "NodeHold",
    "NodeInventory",
    "Phase",
    "Quota",
    "Reason",
    "RegistryCredential",
    "RollUp",
    "Site",
    "Volume",
    "VolumeAttachment",
    "Workflow",
]
