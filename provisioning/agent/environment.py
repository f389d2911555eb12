"""The environment of a workload, built from nothing: no variable of the agent's own is handed on.

A command finds, and its instance's `env` may replace:

    PATH, HOME (the working folder), LANG (C.UTF-8), PYTHONUNBUFFERED (1, so that a log is not held back),
    MASTER_ADDR, MASTER_PORT (where replica 0 meets the others; the same on every replica),
    PET_NPROC_PER_NODE (the GPUs here; what torchrun starts where no other number is asked for)

and may not replace, because they say what was rented and who is who:

    CUDA_VISIBLE_DEVICES (indices, as in "0,1"), CUDA_DEVICE_ORDER (PCI_BUS_ID, the order of these indices),
    NVIDIA_VISIBLE_DEVICES (the same GPUs by UUID),
    GPUMARKET_INSTANCE_ID, GPUMARKET_ASSIGNMENT_ID, GPUMARKET_PEERS (host names by replica, comma-separated),
    GPUMARKET_MARK (random; by it the agent knows again what belongs to this run),
    RANK and NODE_RANK (the replica), WORLD_SIZE and NNODES (the replicas), LOCAL_RANK (0), LOCAL_WORLD_SIZE (1):
    one process per replica, until a launcher such as torchrun starts more and sets its own,
    PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT (the same for torchrun, as its options),
    GPUMARKET_METADATA (a folder; see `notices` for the file that appears there when GPUs are taken back),
    GPUMARKET_COUNTERS (where counters are read: the file for what they show when the command ends, see `readings`)

In a container these differ:

    PATH and LANG are the image's own; HOME is /workspace; there is no GPUMARKET_MARK,
    CUDA_VISIBLE_DEVICES counts from 0: the driver shows a container its own GPUs alone, numbered anew,
    GPUMARKET_PEERS holds replica-0, replica-1, ... in a gang: names that every replica can reach by,
    GPUMARKET_HOSTFILE (of a gang; the same names with their slots, for mpirun),
    NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME (of a gang; the interface of its private network). Nothing is said of
    InfiniBand: where the node's CDI specification brings none into containers, NCCL finds none, and says so itself.
"""

import hashlib
import ipaddress
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from provisioning.agent.protocol import Assignment

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
WORKSPACE = "/workspace"
HOSTFILE = "/etc/gpumarket/hostfile"
METADATA = "/etc/gpumarket/metadata"
COUNTERS_FILE = "gpumarket-counters.prom"  # In the working folder.
INTERFACE = "eth0"
PORT_FIRST, PORT_COUNT = 20_000, 10_000  # Below the ports that Linux gives to outgoing connections.


def command_environment(
    assignment: Assignment, *, gpu_indices: Sequence[int], workdir: Path, mark: str
) -> dict[str, str]:
    """Return the whole environment of the command; see above."""
    is_gang = assignment.replicas > 1 and len(assignment.peers) > 0
    given = {
        # The agent's own interpreter comes last: `python3` is there even on a machine that has none of its own.
        "PATH": f"{SYSTEM_PATH}:{Path(sys.base_prefix, 'bin')}",
        "HOME": str(workdir),
        "LANG": "C.UTF-8",
    }
    meeting = _meeting(assignment, at=assignment.peers[0] if is_gang else "127.0.0.1", gpus=len(gpu_indices))
    given |= meeting | assignment.env
    return given | {
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpu_indices)),
        "GPUMARKET_PEERS": ",".join(assignment.peers),
        "GPUMARKET_MARK": mark,
        **_fixed(assignment, given, workdir=workdir),
    }


def container_environment(assignment: Assignment) -> dict[str, str]:
    """Return what a container's environment has beside that of its image; see above."""
    names = replica_names(assignment)
    given = {"HOME": WORKSPACE}
    given |= _meeting(assignment, at=replica_address(assignment, 0) or "127.0.0.1", gpus=len(assignment.gpus))
    if names:
        given |= {"NCCL_SOCKET_IFNAME": INTERFACE, "GLOO_SOCKET_IFNAME": INTERFACE}
    given |= assignment.env
    return (
        given
        | {
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(len(assignment.gpus)))),
            "GPUMARKET_PEERS": ",".join(names) or "localhost",
            "GPUMARKET_METADATA": METADATA,
            **_fixed(assignment, given, workdir=Path(WORKSPACE)),
        }
        | ({"GPUMARKET_HOSTFILE": HOSTFILE} if names else {})
    )


def replica_names(assignment: Assignment) -> list[str]:
    """Return the names by which the replicas of a gang reach each other; none for what stands alone."""
    if assignment.network is None:
        return []
    return [f"replica-{replica}" for replica in range(assignment.replicas)]


def replica_address(assignment: Assignment, replica: int) -> str:
    """Return a replica's address in the private network: they follow each other by number. Nothing without one."""
    if assignment.network is None:
        return ""
    return str(ipaddress.ip_address(assignment.network.address) - assignment.replica + replica)


def _meeting(assignment: Assignment, *, at: str, gpus: int) -> dict[str, str]:
    return {
        "PYTHONUNBUFFERED": "1",
        "MASTER_ADDR": at,
        "MASTER_PORT": str(meeting_port(assignment.instance)),
        "PET_NPROC_PER_NODE": str(max(1, gpus)),
    }


def _fixed(assignment: Assignment, given: Mapping[str, str], *, workdir: Path) -> dict[str, str]:
    """Return what was rented and who is who, and where counters are left."""
    replica, replicas = str(assignment.replica), str(assignment.replicas)
    counters = {"GPUMARKET_COUNTERS": str(workdir / COUNTERS_FILE)} if assignment.work.counters else {}
    return counters | {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "NVIDIA_VISIBLE_DEVICES": ",".join(assignment.gpus),
        "GPUMARKET_INSTANCE_ID": assignment.instance,
        "GPUMARKET_ASSIGNMENT_ID": assignment.id,
        "RANK": replica,
        "NODE_RANK": replica,
        "WORLD_SIZE": replicas,
        "NNODES": replicas,
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "PET_NNODES": replicas,
        "PET_NODE_RANK": replica,
        "PET_MASTER_ADDR": given["MASTER_ADDR"],
        "PET_MASTER_PORT": given["MASTER_PORT"],
    }


def meeting_port(instance: str) -> int:
    """Return the port at which an instance's replicas meet: the same everywhere, rarely that of a neighbour."""
    return PORT_FIRST + int.from_bytes(hashlib.sha256(instance.encode()).digest()[:4]) % PORT_COUNT
