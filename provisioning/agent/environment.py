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
    PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT (the same for torchrun, as its options)
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from provisioning.agent.protocol import Assignment

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
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
        "PYTHONUNBUFFERED": "1",
        "MASTER_ADDR": assignment.peers[0] if is_gang else "127.0.0.1",
        "MASTER_PORT": str(meeting_port(assignment.instance)),
        "PET_NPROC_PER_NODE": str(max(1, len(gpu_indices))),
    } | assignment.env
    replica, replicas = str(assignment.replica), str(assignment.replicas)
    return given | {
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpu_indices)),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "NVIDIA_VISIBLE_DEVICES": ",".join(assignment.gpus),
        "GPUMARKET_INSTANCE_ID": assignment.instance,
        "GPUMARKET_ASSIGNMENT_ID": assignment.id,
        "GPUMARKET_PEERS": ",".join(assignment.peers),
        "GPUMARKET_MARK": mark,
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
