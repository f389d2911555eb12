"""Opens what `--gpus` names."""

from pathlib import Path

from provisioning.agent.gpus import GpuSource, GpuSourceError
from provisioning.agent.nvml import NvmlGpus
from provisioning.agent.simulated import SimulatedGpus


def open_source(text: str, *, seed: str, home: Path, is_patient: bool = False) -> GpuSource:
    """Return the source that `nvml` or `simulated:MODEL:COUNT:MEMORY_MIB` names; raises GpuSourceError.

    `is_patient`: a driver that does not answer is waited for.
    """
    if text == "nvml":
        return NvmlGpus(is_patient=is_patient)
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
