"""Where health events come from: NVML, the kernel log, and a simulation that keeps the same promise.

What a GPU does not support or did not tell is None: never zero, never healthy.
"""

import contextlib
import ctypes
import os
import re
import select
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pynvml

from provisioning.agent.clock import boot_id
from provisioning.agent.files import read_json, write_json

DETAIL_MAX = 500
RECORD_MAX = 8192  # More than the kernel writes in one record.

# NVML's event bits, by the code under which the server's table knows them. XIDs and verdicts carry a number.
EVENT_CODES: dict[int, str] = {
    pynvml.nvmlEventTypeXidCriticalError: "xid",
    pynvml.nvmlEventTypeDoubleBitEccError: "ecc_dbe",
    pynvml.nvmlEventTypeSingleBitEccErrorStorm: "sbe_storm",
    pynvml.nvmlEventTypeNonFatalPoisonError: "nonfatal_poison",
    pynvml.nvmlEventTypeFatalPoisonError: "fatal_poison",
    pynvml.nvmlEventTypeGpuUnavailableError: "gpu_unavailable",
    pynvml.nvmlEventTypeGpuRecoveryAction: "recovery",
}
XID_LINE = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+),? ?(.*)")
SXID_LINE = re.compile(r"SXid \(PCI:([0-9a-fA-F:.]+)\): (\d+),? ?(.*)")
HOT = pynvml.nvmlClocksEventReasonHwThermalSlowdown | pynvml.nvmlClocksThrottleReasonHwSlowdown
BRAKED = pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown


@dataclass(frozen=True)
class Event:
    """Something that was said of a GPU, or of the node where `gpu` is empty."""

    gpu: str
    source: str  # nvml | kmsg | agent
    code: str
    detail: str = ""


@dataclass(frozen=True)
class Condition:
    """What one GPU says of itself now; None is what it does not tell."""

    is_lost: bool = False
    needs_reset: bool = False
    recovery: int | None = None
    uncorrected: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    links_down: int | None = None
    is_hot: bool | None = None
    is_braked: bool | None = None


class EventSource(Protocol):
    """What we ask of anything that tells of the health of GPUs."""

    def wait(self, timeout_s: float) -> list[Event]:
        """Return what was said meanwhile, as soon as there is something."""

    def conditions(self) -> dict[str, Condition]:
        """Return what every GPU that is or was here says of itself."""

    def addresses(self) -> Mapping[str, str]:
        """Return the UUID of each GPU by its PCI address, as `pci_address` writes it."""


def pci_address(text: str) -> str:
    """Return a PCI address in the one form that compares: four digits of domain, bus and device, no function.

    >>> pci_address("00000000:17:00.0"), pci_address("PCI:0000:17:00".removeprefix("PCI:"))
    ('0000:17:00', '0000:17:00')
    """
    domain, bus, device = text.lower().split(".")[0].split(":")
    return f"{domain[-4:].rjust(4, '0')}:{bus}:{device}"


class NvmlEvents:
    """Real GPUs. A set of events ends with the driver or a GPU it was made for, and is then made anew."""

    RETRY_S = 1.0

    def __init__(self) -> None:
        self._set: Any = None
        self._registered: frozenset[str] = frozenset()
        self._handle_names: dict[int | None, str] = {}
        self._known: dict[str, str] = {}  # PCI addresses of all GPUs ever seen, by UUID.
        self._pause = threading.Event()

    def wait(self, timeout_s: float) -> list[Event]:
        """Return the next event, if one comes in time."""
        try:
            self._register()
            said = pynvml.nvmlEventSetWait_v2(self._set, round(timeout_s * 1000))
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_TIMEOUT:
                self._forget_set()
                # NVML answers at once for as long as one of its GPUs is lost.
                self._pause.wait(min(self.RETRY_S, timeout_s))
            return []
        return self._event(said)

    def _event(self, said: Any) -> list[Event]:
        code = EVENT_CODES.get(int(said.eventType))
        # A lost GPU does not tell its name any more; its handle is the one that we have known it by.
        uuid = _asked(pynvml.nvmlDeviceGetUUID, said.device) or self._handle_names.get(_address(said.device), "")
        if code == "recovery":
            return []  # The verdict itself is read from the GPU.
        if code == "xid":
            return [Event(uuid, "nvml", f"xid:{int(said.eventData)}")]
        return [Event(uuid, "nvml", code)] if code else []

    def _register(self) -> None:
        handles = self._handles()
        if self._set is not None and self._registered == frozenset(handles):
            return
        self._forget_set()
        made = pynvml.nvmlEventSetCreate()
        for handle in handles.values():
            supported = _asked(pynvml.nvmlDeviceGetSupportedEventTypes, handle) or 0
            wanted = sum(bit for bit in EVENT_CODES if supported & bit)
            if wanted:
                _asked(pynvml.nvmlDeviceRegisterEvents, handle, wanted, made)
        self._set, self._registered = made, frozenset(handles)

    def _forget_set(self) -> None:
        if self._set is not None:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlEventSetFree(self._set)
        self._set, self._registered = None, frozenset()

    def _handles(self) -> dict[str, Any]:
        found = {}
        for index in range(int(_asked(pynvml.nvmlDeviceGetCount) or 0)):
            handle = _asked(pynvml.nvmlDeviceGetHandleByIndex, index)
            uuid = _asked(pynvml.nvmlDeviceGetUUID, handle) if handle is not None else None
            if uuid is not None:
                found[uuid] = handle
                self._handle_names[_address(handle)] = uuid
                if uuid not in self._known and (pci := _asked(pynvml.nvmlDeviceGetPciInfo, handle)) is not None:
                    self._known[uuid] = pci_address(_text(pci.busId))
        return found

    def conditions(self) -> dict[str, Condition]:
        """Return what each GPU says; one that was here and is not enumerated any more is lost."""
        if _asked(pynvml.nvmlDeviceGetCount) is None:
            return {}  # The driver as a whole does not answer: of no GPU anything is known.
        handles = self._handles()
        return {
            uuid: condition_of(handles[uuid]) if uuid in handles else Condition(is_lost=True)
            for uuid in sorted(self._known.keys() | handles.keys())
        }

    def addresses(self) -> Mapping[str, str]:
        """Return the UUIDs by PCI address."""
        return {address: uuid for uuid, address in self._known.items()}


def condition_of(handle: Any) -> Condition:
    """Ask one GPU how it is."""
    try:
        pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
    except pynvml.NVMLError as error:
        if error.value == pynvml.NVML_ERROR_GPU_IS_LOST:
            return Condition(is_lost=True)
        if error.value == pynvml.NVML_ERROR_RESET_REQUIRED:
            return Condition(needs_reset=True)
    rows = _asked(pynvml.nvmlDeviceGetRemappedRows, handle)
    reasons = _asked(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    return Condition(
        recovery=_field(handle, pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION),
        uncorrected=_asked(
            pynvml.nvmlDeviceGetTotalEccErrors,
            handle,
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            pynvml.NVML_VOLATILE_ECC,
        ),
        remap_pending=None if rows is None else bool(rows[2]),
        remap_failed=None if rows is None else bool(rows[3]),
        links_down=_links_down(handle),
        is_hot=None if reasons is None else bool(reasons & HOT),
        is_braked=None if reasons is None else bool(reasons & BRAKED),
    )


def _links_down(handle: Any) -> int | None:
    states = [_asked(pynvml.nvmlDeviceGetNvLinkState, handle, link) for link in range(pynvml.NVML_NVLINK_MAX_LINKS)]
    told = [state for state in states if state is not None]
    # A GPU all of whose links are off is not wired to others; one that lost some is broken.
    return None if not any(told) else told.count(0)


def _field(handle: Any, field: int) -> int | None:
    answers = _asked(pynvml.nvmlDeviceGetFieldValues, handle, [field])
    if answers is None or answers[0].nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    return int(answers[0].value.uiVal)


def _asked(question: Callable[..., Any], *details: Any) -> Any:
    """Return the answer of NVML, or None where there is none."""
    try:
        return question(*details)
    except pynvml.NVMLError:
        return None


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


class SimulatedEvents:
    """Events that a person or a test writes into the agent's home.

    `simulated-events`  lines "INDEX CODE [words]", such as "0 xid:79 GPU has fallen off the bus"; it is taken away
    `simulated-lost`    indices of GPUs that seem lost, as the simulated GPUs read it
    """

    LOOK_S = 0.1

    def __init__(self, *, home: Path, gpus: Callable[[], Sequence[tuple[int, str]]]) -> None:
        self._file = home / "simulated-events"
        self._lost = home / "simulated-lost"
        self._gpus = gpus
        self._pause = threading.Event()

    def wait(self, timeout_s: float) -> list[Event]:
        """Return what was written meanwhile."""
        for _ in range(max(1, round(timeout_s / self.LOOK_S))):
            taken = self._file.with_name(".simulated-events-taken")
            try:
                os.replace(self._file, taken)
            except FileNotFoundError:
                self._pause.wait(self.LOOK_S)
                continue
            lines = taken.read_text().splitlines()
            taken.unlink()
            return [event for event in map(self._event, lines) if event is not None]
        return []

    def _event(self, line: str) -> Event | None:
        index, _, rest = line.strip().partition(" ")
        code, _, words = rest.strip().partition(" ")
        gpu = dict(self._gpus()).get(int(index)) if index.isdigit() else ""
        return Event(gpu, "agent", code, words[:DETAIL_MAX]) if code and gpu is not None else None

    def conditions(self) -> dict[str, Condition]:
        """Return that all is well with each GPU that is not said to be lost."""
        try:
            lost = {int(word) for word in self._lost.read_text().split()}
        except (FileNotFoundError, ValueError):
            lost = set()
        return {
            uuid: Condition(is_lost=index in lost, recovery=0, uncorrected=0, remap_pending=False, remap_failed=False)
            for index, uuid in self._gpus()
        }

    def addresses(self) -> Mapping[str, str]:
        """Return nothing: what does not exist has no address."""
        return {}


class KernelLog:
    """Follows /dev/kmsg for what the GPU driver says there. Goes on where an earlier agent stopped."""

    def __init__(
        self, *, home: Path, addresses: Callable[[], Mapping[str, str]], path: Path = Path("/dev/kmsg")
    ) -> None:
        self._mark = home / "kernel-log.json"
        self._addresses = addresses
        self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        kept = read_json(self._mark) or {}
        self._seen = kept["record"] if kept.get("boot_id") == boot_id() else -1
        if self._seen < 0:
            with contextlib.suppress(OSError):
                os.lseek(self._file, 0, os.SEEK_END)  # What was before the first start is history.

    def wait(self, timeout_s: float) -> list[Event]:
        """Return what the driver said meanwhile."""
        if not select.select([self._file], [], [], timeout_s)[0]:
            return []
        events: list[Event] = []
        before = self._seen
        for line in self._lines():
            head, _, words = line.partition(";")
            number = head.split(",")[1] if head.count(",") >= 2 else ""
            if number.isdigit() and int(number) <= self._seen:
                continue
            self._seen = int(number) if number.isdigit() else self._seen
            events += filter(None, [self.read(words or line)])
        if events and self._seen != before:
            write_json(self._mark, {"boot_id": boot_id(), "record": self._seen})
        return events

    def _lines(self) -> list[str]:
        """Return all records that wait. One that was overwritten before we came is lost, and the next is read."""
        lines: list[str] = []
        while True:
            try:
                data = os.read(self._file, RECORD_MAX)
            except BlockingIOError:
                return lines
            except BrokenPipeError:
                continue
            if not data:
                return lines
            lines += [line for line in data.decode(errors="replace").splitlines() if not line.startswith(" ")]

    def read(self, line: str) -> Event | None:
        """Return the event that a line of the kernel log tells of."""
        for pattern, kind in ((XID_LINE, "xid"), (SXID_LINE, "sxid")):
            if found := pattern.search(line):
                address, number, words = found.groups()
                gpu = "" if kind == "sxid" else self._addresses().get(pci_address(address), "")
                where = "" if gpu else f"PCI:{address} "
                return Event(gpu, "kmsg", f"{kind}:{int(number)}", f"{where}{words}"[:DETAIL_MAX])
        return None

    def close(self) -> None:
        """Let go of the log."""
        os.close(self._file)
