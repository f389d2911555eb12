"""The parts that a GPU is cut into (MIG): found, and destroyed, the inner ones first. Calls raise NVMLError."""

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import pynvml

# What a driver or a GPU answers that has no such profile.
NO_SUCH_PROFILE = frozenset(
    {pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_INVALID_ARGUMENT, pynvml.NVML_ERROR_NOT_FOUND}
)


def is_cut(handle: Any) -> bool:
    """Return whether a GPU may be cut into parts now; one that does not know of MIG is never."""
    try:
        return bool(pynvml.nvmlDeviceGetMigMode(handle)[0])
    except pynvml.NVMLError as error:
        if error.value in {pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND}:
            return False
        raise


def gpu_instances(handle: Any) -> list[Any]:
    """Return the GPU instances of a GPU."""
    found: list[Any] = []
    for profile in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        info = _profile(pynvml.nvmlDeviceGetGpuInstanceProfileInfo, handle, profile)
        if info is not None:
            made = (pynvml.c_nvmlGpuInstance_t * max(1, info.instanceCount))()
            found += _listed(pynvml.nvmlDeviceGetGpuInstances, handle, info.id, made)
    return found


def compute_instances(gpu_instance: Any) -> list[Any]:
    """Return the compute instances of a GPU instance."""
    found: list[Any] = []
    engines = pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED
    for profile in range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
        info = _profile(pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo, gpu_instance, profile, engines)
        if info is not None:
            made = (pynvml.c_nvmlComputeInstance_t * max(1, info.instanceCount))()
            found += _listed(pynvml.nvmlGpuInstanceGetComputeInstances, gpu_instance, info.id, made)
    return found


def destroy_all(handle: Any) -> int:
    """Destroy every part of a GPU; return how many GPU instances there were."""
    found = gpu_instances(handle)
    for gpu_instance in found:
        for compute_instance in compute_instances(gpu_instance):
            pynvml.nvmlComputeInstanceDestroy(compute_instance)
        pynvml.nvmlGpuInstanceDestroy(gpu_instance)
    return len(found)


def _profile(question: Callable[..., Any], *about: Any) -> Any:
    """Return what a profile is, or None where this GPU has none of its kind. Old drivers know the first form only."""
    for version in (2, 1):
        try:
            return question(*about, version=version)
        except pynvml.NVMLError as error:
            if error.value in NO_SUCH_PROFILE:
                return None
            if error.value != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND or version == 1:
                raise
    return None


def _listed(question: Callable[..., Any], of: Any, profile: int, made: Any) -> Iterator[Any]:
    count = ctypes.c_uint(len(made))
    question(of, profile, made, ctypes.byref(count))
    yield from made[: count.value]
