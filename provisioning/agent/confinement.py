"""What a container may use and see, as words of `podman create`. docs/agent.md explains it to operators.

* CPU, memory, processes: its share of the node is rented GPUs / GPUs of the node, and one GPU's share without any.
* Capabilities: none but the few that ordinary images need to change owners and users, and no new privileges ever.
* Root: read-only, with fresh /tmp, /run and /var/tmp in memory and the work folder /workspace on the disk; writable
  where the image is labelled `io.gpumarket.root=writable` or the order sets GPUMARKET_ROOT=writable.
* Devices: the rented GPUs by CDI. Nothing of the host but these, the work folder and the volumes of the order.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from provisioning.agent.environment import WORKSPACE
from provisioning.agent.protocol import Assignment

CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID")
MEBI = 1 << 20
NODE_RESERVE_MIB = 1024  # And 5 % of the memory: the node's own, which no tenant gets.
NODE_PIDS_MAX, PIDS_MIN = 131_072, 256
ROOT_LABEL, ROOT_VARIABLE, WRITABLE = "io.gpumarket.root", "GPUMARKET_ROOT", "writable"
ENV_LINE_MAX = 32 << 10  # Podman reads a file of variables line by line, and no longer ones than 64 KiB.


@dataclass(frozen=True)
class Share:
    """What a container gets of its node."""

    cpus: float
    memory_mib: int
    pids: int


def share_of_node(*, gpus: int, node_gpus: int) -> Share:
    """Return the share of who rents so many of the node's GPUs."""
    part = min(1.0, max(1, gpus) / max(1, node_gpus))
    total_mib = psutil.virtual_memory().total // MEBI
    usable_mib = max(total_mib * 95 // 100 - NODE_RESERVE_MIB, total_mib // 2)
    pids = min(int(Path("/proc/sys/kernel/pid_max").read_text()), NODE_PIDS_MAX)
    return Share(
        cpus=round((os.cpu_count() or 1) * part, 2),
        memory_mib=int(usable_mib * part),
        pids=max(PIDS_MIN, int(pids * part)),
    )


def limits(share: Share) -> list[str]:
    """Return the words for a share. There is no swap; shared memory may be half of the memory."""
    return [
        *("--cpus", str(share.cpus)),
        *("--memory", f"{share.memory_mib}m", "--memory-swap", f"{share.memory_mib}m"),
        *("--shm-size", f"{share.memory_mib // 2}m"),
        *("--pids-limit", str(share.pids)),
    ]


def isolation(wanted: Assignment, image: Mapping[str, Any]) -> list[str]:
    """Return the words that keep a container to itself."""
    words = ["--cap-drop", "all", "--security-opt", "no-new-privileges", "--cgroupns", "private"]
    for name in CAPABILITIES:
        words += ["--cap-add", name]
    # Neither the host's proxies nor what podman does for images that bring an init system or health checks.
    words += ["--http-proxy=false", "--systemd", "false", "--no-healthcheck", "--sdnotify", "ignore"]
    return words if is_root_writable(wanted, image) else [*words, "--read-only"]


def is_root_writable(wanted: Assignment, image: Mapping[str, Any]) -> bool:
    """Return whether the image or the order asks for a root that can be written to."""
    labels = image.get("Labels") or {}
    return WRITABLE in {labels.get(ROOT_LABEL), wanted.env.get(ROOT_VARIABLE)}


def workdir(image: Mapping[str, Any]) -> str:
    """Return where the command begins: where the image says, or in the work folder."""
    said = str(image.get("Config", {}).get("WorkingDir") or "/")
    return WORKSPACE if said == "/" else said


def environment_file(env: Mapping[str, str]) -> tuple[int, list[str]]:
    """Return a file without a name that holds the variables, and the words for them.

    So they are not among the arguments, which everybody on the machine can read. Only what such a file cannot hold,
    a value of several lines, is.
    """
    lines = {name: value for name, value in env.items() if "\n" not in value and len(value) < ENV_LINE_MAX}
    handle = os.memfd_create("environment")
    os.write(handle, "".join(f"{name}={value}\n" for name, value in lines.items()).encode())
    words = ["--env-file", f"/proc/self/fd/{handle}"]
    for name, value in env.items():
        if name not in lines:
            words += ["--env", f"{name}={value}"]
    return handle, words
