"""What one GPU says of itself now, and what speaks against it.

What a GPU does not support or did not tell is None: never zero, never healthy, never ill.
"""

import ctypes
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pynvml

HOT = pynvml.nvmlClocksEventReasonHwThermalSlowdown | pynvml.nvmlClocksThrottleReasonHwSlowdown
BRAKED = pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
UNDER_LOAD_PERCENT = 50  # Idle GPUs slow their PCIe link down to save power.
# What tells nothing; any other failure of a question about a link means that the link is not well.
UNTOLD = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_NO_DATA,
    }
)
NO_SUCH_LINK = frozenset({pynvml.NVML_ERROR_INVALID_ARGUMENT, pynvml.NVML_ERROR_NOT_FOUND})
# Of a fabric's health mask: how far a part is shifted, its mask, and from which value on it is ill.
# Zero is not supported everywhere, and 2 means well but for the last part, where 1 does.
FABRIC_ILLS = (
    ("degraded bandwidth", pynvml.NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_DEGRADED_BW, 0x3, {1}),
    ("an unhealthy route", pynvml.NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_ROUTE_UNHEALTHY, 0x3, {1}),
    ("a wrong configuration", pynvml.NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_INCORRECT_CONFIGURATION, 0xF, set(range(2, 16))),
)

Links = Mapping[int, bool | None]
"""Whether each NVLink that a GPU has is active; None where it cannot tell."""


@dataclass(frozen=True)
class Condition:
    """What one GPU says of itself now; None is what it does not tell."""

    is_lost: bool = False
    needs_reset: bool = False
    recovery: int | None = None
    uncorrected: int | None = None
    sram_exceeded: bool | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    links: Links | None = None
    link_failures: int | None = None  # How often a link was given up, since the driver was loaded.
    fabric: str | None = None  # What is wrong with its NVLink domain; empty where it is complete.
    is_hot: bool | None = None
    is_memory_hot: bool | None = None
    is_braked: bool | None = None
    is_pcie_narrow: bool | None = None
    is_pcie_slow: bool | None = None  # Under load only.
    pcie_replays: int | None = None


def condition_of(handle: Any) -> Condition:
    """Ask one GPU how it is."""
    try:
        pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
    except pynvml.NVMLError as error:
        if error.value == pynvml.NVML_ERROR_GPU_IS_LOST:
            return Condition(is_lost=True)
        if error.value == pynvml.NVML_ERROR_RESET_REQUIRED:
            return Condition(needs_reset=True)
    rows = asked(pynvml.nvmlDeviceGetRemappedRows, handle)
    reasons = asked(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    uncorrected, volatile = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    links = links_of(handle)
    is_narrow, is_slow = _pcie(handle)
    return Condition(
        recovery=field(handle, pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION),
        uncorrected=asked(pynvml.nvmlDeviceGetTotalEccErrors, handle, uncorrected, volatile),
        sram_exceeded=_sram_exceeded(handle),
        remap_pending=None if rows is None else bool(rows[2]),
        remap_failed=None if rows is None else bool(rows[3]),
        links=links,
        link_failures=_link_failures(handle, links or {}),
        fabric=_fabric(handle),
        is_hot=None if reasons is None else bool(reasons & HOT),
        is_memory_hot=_is_memory_hot(handle),
        is_braked=None if reasons is None else bool(reasons & BRAKED),
        is_pcie_narrow=is_narrow,
        is_pcie_slow=is_slow,
        pcie_replays=asked(pynvml.nvmlDeviceGetPcieReplayCounter, handle),
    )


def links_of(handle: Any) -> dict[int, bool | None] | None:
    """Return whether each NVLink of a GPU is active; None where it has none or tells of none.

    A link is left out where the GPU says that it has no such link. One that cannot be told of may not be there
    either: few GPUs tell how many they have.
    """
    count = field(handle, pynvml.NVML_FI_DEV_NVLINK_LINK_COUNT)
    states: dict[int, bool | None] = {}
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS if count is None else count):
        try:
            states[link] = bool(pynvml.nvmlDeviceGetNvLinkState(handle, link))
        except pynvml.NVMLError as error:
            if error.value in UNTOLD:
                states[link] = None
            elif error.value not in NO_SUCH_LINK:
                states[link] = False
    return states if any(state is not None for state in states.values()) else None


def _link_failures(handle: Any, links: Links) -> int | None:
    kind = pynvml.NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS
    asking = [(kind, link) for link, state in links.items() if state is not None]
    answers = asked(pynvml.nvmlDeviceGetFieldValues, handle, asking) if asking else None
    told = [number for one in answers or () if (number := number_in(one)) is not None]
    return sum(told) if told else None


def _sram_exceeded(handle: Any) -> bool | None:
    status = pynvml.c_nvmlEccSramErrorStatus_v1_t()
    if asked(pynvml.nvmlDeviceGetSramEccErrorStatus, handle, ctypes.byref(status)) is None:
        return None
    return bool(status.bThresholdExceeded)


def _fabric(handle: Any) -> str | None:
    """Return what keeps a GPU from its NVLink domain; None where it belongs to none or does not tell."""
    info = pynvml.c_nvmlGpuFabricInfo_v2_t()
    if asked(pynvml.nvmlDeviceGetGpuFabricInfoV, handle, ctypes.byref(info)) is None:
        info = pynvml.c_nvmlGpuFabricInfo_t()
        if asked(pynvml.nvmlDeviceGetGpuFabricInfo, handle, ctypes.byref(info)) is None:
            return None
    if info.state == pynvml.NVML_GPU_FABRIC_STATE_NOT_SUPPORTED:
        return None
    if info.state != pynvml.NVML_GPU_FABRIC_STATE_COMPLETED:
        is_begun = info.state == pynvml.NVML_GPU_FABRIC_STATE_IN_PROGRESS
        return "its registration is under way" if is_begun else "its registration has not begun"
    if info.status != pynvml.NVML_SUCCESS:
        return f"its registration failed ({info.status})"
    mask = getattr(info, "healthMask", 0)
    ills = [name for name, shift, width, values in FABRIC_ILLS if mask >> shift & width in values]
    return ", ".join(ills)


def _is_memory_hot(handle: Any) -> bool | None:
    """Compare with the highest temperature that the memory may have; newer GPUs tell only a margin, which is none."""
    now = field(handle, pynvml.NVML_FI_DEV_MEMORY_TEMP)
    limit = asked(pynvml.nvmlDeviceGetTemperatureThreshold, handle, pynvml.NVML_TEMPERATURE_THRESHOLD_MEM_MAX)
    return None if not now or not limit else now > limit


def _pcie(handle: Any) -> tuple[bool | None, bool | None]:
    """Return whether the link has fewer lanes than it could, and whether it is slow while the GPU works."""
    width, width_max = (
        asked(question, handle)
        for question in (pynvml.nvmlDeviceGetCurrPcieLinkWidth, pynvml.nvmlDeviceGetMaxPcieLinkWidth)
    )
    speed, speed_max = (
        asked(question, handle)
        for question in (pynvml.nvmlDeviceGetCurrPcieLinkGeneration, pynvml.nvmlDeviceGetMaxPcieLinkGeneration)
    )
    use = asked(pynvml.nvmlDeviceGetUtilizationRates, handle)
    is_narrow = None if None in (width, width_max) else width < width_max
    if use is None or use.gpu < UNDER_LOAD_PERCENT or None in (speed, speed_max):
        return is_narrow, None
    return is_narrow, bool(is_narrow) or speed < speed_max


def field(handle: Any, number: int) -> int | None:
    """Return the value of a field, or None."""
    answers = asked(pynvml.nvmlDeviceGetFieldValues, handle, [number])
    return None if answers is None else number_in(answers[0])


def number_in(answer: Any) -> int | None:
    """Return the number in the answer for a field, or None. Each field has an error and a type of its own."""
    if answer.nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    value = answer.value
    of_type = {
        pynvml.NVML_VALUE_TYPE_DOUBLE: value.dVal,
        pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: value.uiVal,
        pynvml.NVML_VALUE_TYPE_SIGNED_INT: value.siVal,
    }
    return int(of_type.get(answer.valueType, value.ullVal))


def asked(question: Callable[..., Any], *details: Any) -> Any:
    """Return the answer of NVML, or None where there is none."""
    try:
        return question(*details)
    except pynvml.NVMLError:
        return None


def findings(condition: Condition) -> dict[str, str]:
    """Return the events that a condition amounts to, in words. What a GPU does not tell amounts to none, and proves
    nothing."""
    if condition.is_lost:
        return {"lost": "the GPU does not answer any more"}
    told = {
        "reset_required": condition.needs_reset and "NVML asks for a reset of the GPU",
        f"recovery:{condition.recovery}": condition.recovery and "the driver's own verdict",
        "ecc_dbe": condition.uncorrected and f"{condition.uncorrected} errors of its memory are uncorrected",
        "sram_threshold": condition.sram_exceeded and "its on-chip memory had more errors than NVIDIA allows",
        "row_remap_pending": condition.remap_pending and "a row of its memory is replaced at the next reset",
        "row_remap_failed": condition.remap_failed and "no spare row is left",
        "fabric": condition.fabric and f"its NVLink domain: {condition.fabric}",
    }
    return {code: words for code, words in told.items() if words}


def gone(links: Links | None, *, of: Collection[int]) -> list[int]:
    """Return which of these links a GPU says to be inactive or not to have; those it cannot tell of are not among
    them."""
    if links is None:
        return []
    return [link for link in sorted(of) if links.get(link, False) is False]


def faults_of(condition: Condition | None, *, links: Collection[int] | None = None) -> list[str]:
    """Return what speaks against giving a GPU to a customer. What it does not tell is no fault and no proof either.

    `links`: the NVLinks that it was accepted with; where nobody knows them, all that it has if one of them is active.
    """
    if condition is None or condition.is_lost:
        return ["it is not enumerated"]
    told = condition.links or {}
    away = gone(condition.links, of=(told if any(told.values()) else ()) if links is None else links)
    checks = (
        (condition.needs_reset, "it asks for a reset"),
        (condition.recovery, f"the driver asks for recovery action {condition.recovery}"),
        (condition.uncorrected, f"{condition.uncorrected} memory errors are uncorrected"),
        (condition.sram_exceeded, "its on-chip memory had too many errors"),
        (condition.remap_pending, "a row of its memory still waits to be replaced"),
        (condition.remap_failed, "a bad row of its memory cannot be replaced"),
        (away, f"NVLink {_numbers(away)} is not active"),
        (condition.fabric, f"its NVLink domain: {condition.fabric}"),
        (condition.is_pcie_narrow, "its PCIe link has fewer lanes than it could"),
        (condition.is_hot, "it is too hot"),
        (condition.is_memory_hot, "its memory is too hot"),
    )
    return [why for is_bad, why in checks if is_bad]


def untold_of(condition: Condition | None, *, links: Collection[int] | None = None) -> Iterator[str]:
    """Yield what cannot be told of a GPU at the gate, so that nobody takes it for a proof."""
    if condition is None or condition.is_lost:
        return
    told = condition.links or {}
    missing = [link for link in sorted(links or ()) if condition.links is None or told.get(link, False) is None]
    if missing:
        yield f"NVLink {_numbers(missing)}"
    elif not told and links is None:
        yield "NVLinks"
    answers = {
        "recovery action": condition.recovery,
        "memory errors": condition.uncorrected,
        "on-chip memory errors": condition.sram_exceeded,
        "row remaps": condition.remap_pending,
        "PCIe width": condition.is_pcie_narrow,
    }
    yield from (name for name, answer in answers.items() if answer is None)


def _numbers(links: Collection[int]) -> str:
    return ", ".join(map(str, links))
