"""Real GPUs, asked through NVIDIA's own binding.

NOT_SUPPORTED is an answer that tells nothing, so it becomes None: neither zero nor healthy nor ill. What does not
change while a GPU works (facts, links) is asked anew once a minute only; the meters at every read.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import pynvml

from provisioning.agent.clock import boottime
from provisioning.agent.conditions import UNTOLD, links_of, number_in
from provisioning.agent.gpus import Gpu, GpuSourceError, Link, Reading, Scalar

MEBI = 1 << 20

# NVML's bits as words; NVIDIA's names without "clocks event reason".
CLOCKS_EVENT_REASONS = {
    1: "idle",
    2: "application_clocks",
    4: "sw_power_cap",
    8: "hw_slowdown",
    16: "sync_boost",
    32: "sw_thermal",
    64: "hw_thermal",
    128: "hw_power_brake",
    256: "display_clock",
}
# How far apart two GPUs are, from one board to two sockets; the words are those of `nvidia-smi topo -m`.
ANCESTORS = {0: "pix", 10: "pix", 20: "pxb", 30: "phb", 40: "node", 50: "sys"}
RELOADED = frozenset({pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_DRIVER_NOT_LOADED})


class NvmlQuestions:
    """Asks one GPU; remembers whether an answer meant that something is wrong with it."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.is_failing = False

    def __call__(self, question: Callable[..., Any], *details: Any) -> Any:
        """Return the answer, or None where there is none."""
        try:
            return question(self.handle, *details)
        except pynvml.NVMLError as error:
            self.is_failing |= error.value not in UNTOLD  # A sound GPU may answer these.
            return None

    def field(self, number: int) -> int | None:
        """Return the value of a field, or None."""
        answers = self(pynvml.nvmlDeviceGetFieldValues, [number])
        return None if answers is None else number_in(answers[0])


class NvmlGpus:
    """The GPUs of this machine. One that was seen and does not answer any more stays in the list, as not healthy."""

    name = "nvml"
    FACTS_EVERY_S = 60.0

    def __init__(self, *, is_patient: bool = False) -> None:
        """Raises GpuSourceError where no driver answers, unless `is_patient`: then it is asked again at every read."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if not is_patient:
                raise GpuSourceError(
                    f"no NVIDIA driver answers ({error}); install it, or try --gpus simulated:H200:8:144384"
                ) from error
        self.driver: str | None = None
        self.loads = 0
        self._seen: dict[str, Gpu] = {}
        self._handles: dict[str, Any] = {}
        self._asked_at: dict[str, float] = {}
        self._links: tuple[Link, ...] = ()
        self._links_of: tuple[float, frozenset[str]] = (0.0, frozenset())

    def read(self, *, busy: frozenset[str]) -> list[tuple[Gpu, Reading]]:
        """Return what NVML says of each GPU, by index."""
        self._note_driver()
        answers = [self._read_one(index) for index in range(self._count())]
        found = {gpu.uuid: (gpu, reading) for gpu, reading in filter(None, answers)}
        self._seen |= {name: gpu for name, (gpu, _) in found.items()}
        lost = [gpu for name, gpu in self._seen.items() if name not in found]
        taken = {gpu.index for gpu, _ in found.values()}
        return [*found.values(), *((gpu, Reading(gpu.uuid)) for gpu in _aside(lost, taken))]

    def links(self) -> tuple[Link, ...]:
        """Return how the GPUs are joined; asked when they change, and once a minute since a link can break."""
        asked_at, of = self._links_of
        names = frozenset(self._handles)
        if names != of or boottime() - asked_at > self.FACTS_EVERY_S:
            pairs = combinations(sorted(self._handles.items(), key=lambda one: self._seen[one[0]].index), 2)
            made = (Link(a, b, kind) for (a, one), (b, other) in pairs if (kind := _kind(one, other)))
            self._links = tuple(made)
            self._links_of = (boottime(), names)
        return self._links

    def _note_driver(self) -> None:
        try:
            version = pynvml.nvmlSystemGetDriverVersion()
        except pynvml.NVMLError as error:
            if error.value in RELOADED:
                self._start_anew()
            return
        if self.driver is not None and version != self.driver:
            self.loads += 1
        self.driver = version

    def _start_anew(self) -> None:
        """Speak with a driver that was gone; its counters begin at zero."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return
        self.loads += 1
        self._asked_at.clear()
        self.driver = pynvml.nvmlSystemGetDriverVersion()

    def _count(self) -> int:
        try:
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
        known = self._seen.get(name)
        memory = ask(pynvml.nvmlDeviceGetMemoryInfo)
        memory_mib = memory.total // MEBI if memory else known.memory_mib if known else None
        reading = replace(meters(ask, name), memory_used_mib=memory.used // MEBI if memory else None)
        facts: dict[str, Scalar] = dict(known.facts) if known else {}
        if boottime() - self._asked_at.get(name, -self.FACTS_EVERY_S) >= self.FACTS_EVERY_S:
            facts = facts_of(ask)
            self._asked_at[name] = boottime()
        self._handles[name] = handle
        return Gpu(name, index, model, memory_mib, healthy=not ask.is_failing, facts=facts), reading


def meters(ask: NvmlQuestions, name: str) -> Reading:
    """Return what the meters say, but for the memory."""
    use = ask(pynvml.nvmlDeviceGetUtilizationRates)
    rows = ask(pynvml.nvmlDeviceGetRemappedRows) or (None, None, None, None)
    reasons = ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons)
    volatile, aggregate = pynvml.NVML_VOLATILE_ECC, pynvml.NVML_AGGREGATE_ECC
    corrected, uncorrected = pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
    return Reading(
        uuid=name,
        utilization_percent=use.gpu if use else None,
        power_mw=ask(pynvml.nvmlDeviceGetPowerUsage),
        temperature_c=ask(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
        millijoules=ask(pynvml.nvmlDeviceGetTotalEnergyConsumption),
        memory_temperature_c=ask.field(pynvml.NVML_FI_DEV_MEMORY_TEMP),
        sm_clock_mhz=ask(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM),
        memory_clock_mhz=ask(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_MEM),
        clocks_event_reasons=None if reasons is None else in_words(reasons),
        pcie_generation=ask(pynvml.nvmlDeviceGetCurrPcieLinkGeneration),
        pcie_width=ask(pynvml.nvmlDeviceGetCurrPcieLinkWidth),
        pcie_replays=ask(pynvml.nvmlDeviceGetPcieReplayCounter),
        ecc_volatile_corrected=ask(pynvml.nvmlDeviceGetTotalEccErrors, corrected, volatile),
        ecc_volatile_uncorrected=ask(pynvml.nvmlDeviceGetTotalEccErrors, uncorrected, volatile),
        ecc_aggregate_corrected=ask(pynvml.nvmlDeviceGetTotalEccErrors, corrected, aggregate),
        ecc_aggregate_uncorrected=ask(pynvml.nvmlDeviceGetTotalEccErrors, uncorrected, aggregate),
        rows_corrected=rows[0],
        rows_uncorrected=rows[1],
        rows_pending=None if rows[2] is None else bool(rows[2]),
        rows_failed=None if rows[3] is None else bool(rows[3]),
    )


def facts_of(ask: NvmlQuestions) -> dict[str, Scalar]:
    """Return what a GPU is. A fact that it does not tell is None."""
    pci = ask(pynvml.nvmlDeviceGetPciInfo)
    mig = ask(pynvml.nvmlDeviceGetMigMode)
    ecc = ask(pynvml.nvmlDeviceGetEccMode)
    links = links_of(ask.handle) or {}
    told = {link: state for link, state in links.items() if state is not None}
    return {
        "serial": ask(pynvml.nvmlDeviceGetSerial),
        "board_part": ask(pynvml.nvmlDeviceGetBoardPartNumber),
        "vbios": ask(pynvml.nvmlDeviceGetVbiosVersion),
        "pci_bus_id": pci.busId if pci else None,
        "minor_number": ask(pynvml.nvmlDeviceGetMinorNumber),
        "pcie_generation_max": ask(pynvml.nvmlDeviceGetMaxPcieLinkGeneration),
        "pcie_width_max": ask(pynvml.nvmlDeviceGetMaxPcieLinkWidth),
        "numa_node": ask(pynvml.nvmlDeviceGetNumaNodeId),
        "power_limit_mw": ask(pynvml.nvmlDeviceGetEnforcedPowerLimit),
        "ecc": None if ecc is None else bool(ecc[0]),
        "mig": None if mig is None else bool(mig[0]),
        "mig_devices": None if mig is None else " ".join(mig_devices(ask)) if mig[0] else "",
        "nvlinks": len(told) or None,
        "nvlinks_up": sum(told.values()) if told else None,
        "nvlinks_down": _numbers(told, False) if told else None,
        "nvlinks_active": _numbers(told, True) if told else None,
    }


def mig_devices(ask: NvmlQuestions) -> list[str]:
    """Return the UUIDs of the parts that a GPU is cut into."""
    found = []
    for index in range(ask(pynvml.nvmlDeviceGetMaxMigDeviceCount) or 0):
        try:
            device = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(ask.handle, index)
            found.append(pynvml.nvmlDeviceGetUUID(device))
        except pynvml.NVMLError:
            continue  # There may be gaps: an index without a device is no illness of the GPU.
    return found


def in_words(bits: int) -> tuple[str, ...]:
    """Return the reasons why clocks are not at their highest; a bit that has no name yet is named by its number."""
    set_bits = [1 << number for number in range(bits.bit_length()) if bits >> number & 1]
    return tuple(CLOCKS_EVENT_REASONS.get(bit, f"bit_{bit}") for bit in set_bits)


def _kind(one: Any, other: Any) -> str | None:
    try:
        if pynvml.nvmlDeviceGetP2PStatus(one, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK) == pynvml.NVML_P2P_STATUS_OK:
            return "nvlink"
    except pynvml.NVMLError:
        pass  # Not told; how they hang together on PCIe may be.
    try:
        return ANCESTORS.get(pynvml.nvmlDeviceGetTopologyCommonAncestor(one, other))
    except pynvml.NVMLError:
        return None


def _numbers(links: Mapping[int, bool], state: bool) -> str:
    return " ".join(str(link) for link, is_active in links.items() if is_active is state)


def _aside(lost: list[Gpu], taken: set[int]) -> list[Gpu]:
    """Return lost GPUs as not healthy, each with its index or, if another moved up to that, one behind all others."""
    free = max(taken | {gpu.index for gpu in lost}, default=-1) + 1
    kept = []
    for gpu in lost:
        index = gpu.index
        if index in taken:
            index, free = free, free + 1
        taken.add(index)
        kept.append(replace(gpu, index=index, healthy=False))
    return kept
