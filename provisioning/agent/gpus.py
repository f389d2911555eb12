"""Where GPUs come from: NVML through NVIDIA's own binding, and a simulation that keeps the same promise.

A value that a GPU does not support or did not give is None: never zero, never healthy.
"""

import hashlib
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pynvml

from provisioning.agent.clock import boottime

MEBI = 1 << 20


class GpuSourceError(Exception):
    """GPUs cannot be read as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Gpu:
    """One GPU as the server's inventory knows it."""

    uuid: str
    index: int
    model: str
    memory_mib: int | None
    healthy: bool


@dataclass(frozen=True)
class Reading:
    """What one GPU's meters say now."""

    uuid: str
    utilization_percent: int | None = None
    memory_used_mib: int | None = None
    power_mw: int | None = None
    temperature_c: int | None = None
    millijoules: int | None = None


class GpuSource(Protocol):
    """What we ask of anything that knows GPUs."""

    name: str

    def read(self, *, busy: frozenset[str]) -> list[tuple[Gpu, Reading]]:
        """Return every GPU that is or was here, with its meters. `busy`: those that run a workload."""


class NvmlGpus:
    """Real GPUs. One that was seen and does not answer any more stays in the list, as not healthy."""

    name = "nvml"

    def __init__(self) -> None:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise GpuSourceError(
                f"no NVIDIA driver answers ({error}); install it, or try --gpus simulated:H200:8:144384"
            ) from error
        self._seen: dict[str, Gpu] = {}

    def read(self, *, busy: frozenset[str]) -> list[tuple[Gpu, Reading]]:
        """Return what NVML says of each GPU, by index."""
        answers = [self._read_one(index) for index in range(self._count())]
        found = {gpu.uuid: (gpu, reading) for gpu, reading in filter(None, answers)}
        self._seen |= {name: gpu for name, (gpu, _) in found.items()}
        lost = [gpu for name, gpu in self._seen.items() if name not in found]
        # NVML moves the others up when a GPU falls off the bus; two must not claim one index.
        free = max((gpu.index for gpu, _ in found.values()), default=-1) + 1
        moved = [replace(gpu, index=index, healthy=False) for index, gpu in enumerate(lost, start=free)]
        return [*found.values(), *((gpu, Reading(gpu.uuid)) for gpu in moved)]

    def _count(self) -> int:
        try:
            return int(pynvml.nvmlDeviceGetCount())
        except pynvml.NVMLError:
            pass
        try:
            pynvml.nvmlInit()  # The driver may have been loaded anew.
            return int(pynvml.nvmlDeviceGetCount())
        except pynvml.NVMLError:
            return 0

    def _read_one(self, index: int) -> tuple[Gpu, Reading] | None:
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = pynvml.nvmlDeviceGetUUID(handle)
            model = pynvml.nvmlDeviceGetName(handle).removeprefix("NVIDIA ")  # Offers say H200, not NVIDIA H200.
        except pynvml.NVMLError:
            return None
        ask = NvmlQuestions(handle)
        memory = ask(pynvml.nvmlDeviceGetMemoryInfo)
        use = ask(pynvml.nvmlDeviceGetUtilizationRates)
        reading = Reading(
            uuid=name,
            utilization_percent=use.gpu if use else None,
            memory_used_mib=memory.used // MEBI if memory else None,
            power_mw=ask(pynvml.nvmlDeviceGetPowerUsage),
            temperature_c=ask(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
            millijoules=ask(pynvml.nvmlDeviceGetTotalEnergyConsumption),
        )
        known = self._seen.get(name)
        memory_mib = memory.total // MEBI if memory else known.memory_mib if known else None
        return Gpu(name, index, model, memory_mib, healthy=not ask.is_failing), reading


class NvmlQuestions:
    """Asks one GPU; remembers whether an answer meant that something is wrong with it."""

    # What a sound GPU may answer where it has no such meter or we may not read it.
    HARMLESS = frozenset(
        {
            pynvml.NVML_ERROR_NOT_SUPPORTED,
            pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            pynvml.NVML_ERROR_NO_PERMISSION,
            pynvml.NVML_ERROR_NO_DATA,
        }
    )

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.is_failing = False

    def __call__(self, question: Callable[..., Any], *details: Any) -> Any:
        """Return the answer, or None where there is none."""
        try:
            return question(self._handle, *details)
        except pynvml.NVMLError as error:
            self.is_failing |= error.value not in self.HARMLESS
            return None


class SimulatedGpus:
    """GPUs that do not exist, named for ever the same from a seed. Labelled so in all that is reported.

    A file `simulated-lost` in the agent's home lists the indices of GPUs that are to seem lost, e.g. "0 3".
    """

    name = "simulated"
    IDLE_MW, BUSY_MW = 75_000, 620_000

    def __init__(self, *, model: str, count: int, memory_mib: int, seed: str, home: Path) -> None:
        self._lost_file = home / "simulated-lost"
        self._read_at = boottime()
        self._millijoules = [0.0] * count
        self._gpus = [
            Gpu(uuid=simulated_uuid(seed, index), index=index, model=model, memory_mib=memory_mib, healthy=True)
            for index in range(count)
        ]

    def read(self, *, busy: frozenset[str]) -> list[tuple[Gpu, Reading]]:
        """Return plausible meters: near full for GPUs that run a workload, near nothing for others."""
        now = boottime()
        elapsed, self._read_at = now - self._read_at, now
        lost = self._lost()
        return [
            (replace(gpu, healthy=False), Reading(gpu.uuid))
            if gpu.index in lost
            else (gpu, self._meters(gpu, is_busy=gpu.uuid in busy, now=now, elapsed=elapsed))
            for gpu in self._gpus
        ]

    def _lost(self) -> set[int]:
        try:
            return {int(word) for word in self._lost_file.read_text().split()}
        except (FileNotFoundError, ValueError):
            return set()

    def _meters(self, gpu: Gpu, *, is_busy: bool, now: float, elapsed: float) -> Reading:
        wave = math.sin(now / 7 + gpu.index)
        power_mw = round((self.BUSY_MW if is_busy else self.IDLE_MW) * (1 + 0.03 * wave))
        self._millijoules[gpu.index] += power_mw * elapsed
        return Reading(
            uuid=gpu.uuid,
            utilization_percent=round(94 + 5 * wave) if is_busy else 0,
            memory_used_mib=round((gpu.memory_mib or 0) * 0.8) if is_busy else 0,
            power_mw=power_mw,
            temperature_c=round((64 if is_busy else 33) + 3 * wave),
            millijoules=int(self._millijoules[gpu.index]),
        )


def simulated_uuid(seed: str, index: int) -> str:
    """Return the name of a simulated GPU, in the form of NVIDIA's."""
    return f"GPU-{uuid.UUID(bytes=hashlib.sha256(f'{seed}/{index}'.encode()).digest()[:16], version=4)}"


def open_source(text: str, *, seed: str, home: Path) -> GpuSource:
    """Return the source that `nvml` or `simulated:MODEL:COUNT:MEMORY_MIB` names; raises GpuSourceError."""
    if text == "nvml":
        return NvmlGpus()
    kind, *parts = text.split(":")
    try:
        model, count, memory_mib = parts
        if kind == "simulated" and model and 0 < int(count) <= 1024 and int(memory_mib) > 0:
            return SimulatedGpus(model=model, count=int(count), memory_mib=int(memory_mib), seed=seed, home=home)
    except ValueError:
        pass
    raise GpuSourceError(
        f"--gpus {text!r} is neither nvml nor simulated:MODEL:COUNT:MEMORY_MIB (simulated:H200:8:144384)"
    )
