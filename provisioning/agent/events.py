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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pynvml

from provisioning.agent.clock import boot_id
from provisioning.agent.conditions import Condition, asked, condition_of
from provisioning.agent.files import read_json, write_json
from provisioning.agent.simulated import NVLINKS

DETAIL_MAX = 500
FACILITY_SHIFT = 3  # Of a record's priority, as in syslog; the kernel's own facility is 0.
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
# Each is matched from the line's beginning, up to a word that no process name is long enough to hold: the kernel writes
# names of processes and files into its log as their owners chose them, a process's (15 bytes) at the beginning too.
XID_LINE = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+),? ?(.*)")
# What the kernel says of the machine itself where an error was not corrected: memory, a processor, firmware's word.
HOST_LINES = (
    # A name could hold its beginning: so with the word and the page that follow in the kernel's own line alone.
    re.compile(r"EDAC MC\d+: \d+ UE (\w.*\bpage:0x[0-9a-f]+ .*)"),
    re.compile(r"Memory failure: (0x[0-9a-f]+: .*)"),
    re.compile(r"(?:\{\d+\})?\[Hardware Error\]: (event severity: (?:fatal|recoverable).*)"),
)
MACHINE_CHECK = re.compile(r"(?:mce: )?\[Hardware Error\]: (CPU \d+: Machine Check.*? Bank \d+: ([0-9a-f]{1,16}))")
UNCORRECTED = 1 << 61  # Of a machine check's status, as Intel and AMD define it.
SXID_LINE = re.compile(r"nvidia-nvswitch\d+: SXid \(PCI:([0-9a-fA-F:.]+)\): (\d+),? ?(.*)")

ILLS = frozenset(
    {
        *("needs_reset", "sram_exceeded", "remap_pending", "remap_failed", "is_hot", "is_memory_hot", "is_braked"),
        *("is_pcie_narrow", "is_pcie_slow"),
    }
)


@dataclass(frozen=True)
class Event:
    """Something that was said of a GPU, or of the node where `gpu` is empty."""

    gpu: str
    source: str  # nvml | kmsg | agent
    code: str
    detail: str = ""


class EventSource(Protocol):
    """What we ask of anything that tells of the health of GPUs."""

    def wait(self, timeout_s: float) -> list[Event]:
        """Return what was said meanwhile, as soon as there is something."""

    def conditions(self) -> dict[str, Condition]:
        """Return what every GPU that is or was here says of itself."""

    def trouble(self) -> str:
        """Return why the driver as a whole does not answer; empty where it does."""

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
        uuid = asked(pynvml.nvmlDeviceGetUUID, said.device) or self._handle_names.get(_address(said.device), "")
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
            supported = asked(pynvml.nvmlDeviceGetSupportedEventTypes, handle) or 0
            wanted = sum(bit for bit in EVENT_CODES if supported & bit)
            if wanted:
                asked(pynvml.nvmlDeviceRegisterEvents, handle, wanted, made)
        self._set, self._registered = made, frozenset(handles)

    def _forget_set(self) -> None:
        if self._set is not None:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlEventSetFree(self._set)
        self._set, self._registered = None, frozenset()

    def _handles(self) -> dict[str, Any]:
        found = {}
        for index in range(int(asked(pynvml.nvmlDeviceGetCount) or 0)):
            handle = asked(pynvml.nvmlDeviceGetHandleByIndex, index)
            uuid = asked(pynvml.nvmlDeviceGetUUID, handle) if handle is not None else None
            if uuid is not None:
                found[uuid] = handle
                self._handle_names[_address(handle)] = uuid
                if uuid not in self._known and (pci := asked(pynvml.nvmlDeviceGetPciInfo, handle)) is not None:
                    self._known[uuid] = pci_address(_text(pci.busId))
        return found

    def conditions(self) -> dict[str, Condition]:
        """Return what each GPU says; one that was here and is not enumerated any more is lost."""
        if asked(pynvml.nvmlDeviceGetCount) is None:
            return {}  # The driver as a whole does not answer: of no GPU anything is known.
        handles = self._handles()
        return {
            uuid: condition_of(handles[uuid]) if uuid in handles else Condition(is_lost=True)
            for uuid in sorted(self._known.keys() | handles.keys())
        }

    def trouble(self) -> str:
        """Return what NVML says where it does not even count: the driver is gone, or another than its library."""
        try:
            pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_UNINITIALIZED:
                return str(error)
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError as reason:
                return str(reason)
        return ""

    def addresses(self) -> Mapping[str, str]:
        """Return the UUIDs by PCI address."""
        return {address: uuid for uuid, address in self._known.items()}


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


class SimulatedEvents:
    """Events that a person or a test writes into the agent's home.

    `simulated-events`  lines "INDEX CODE [words]", such as "0 xid:79 GPU has fallen off the bus"; it is taken away
    `simulated-lost`    indices of GPUs that seem lost, as the simulated GPUs read it
    `simulated-ills`    lines "INDEX ILL [words]" for as long as they stand there: those of ILLS, "0 nvlink 3 7" and
                        "0 fabric its words"
    """

    LOOK_S = 0.1
    LINKS = range(NVLINKS)

    def __init__(self, *, home: Path, gpus: Callable[[], Sequence[tuple[int, str]]]) -> None:
        self._file = home / "simulated-events"
        self._lost = home / "simulated-lost"
        self._ills = home / "simulated-ills"
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
        ills = self._written_ills()
        return {uuid: self._condition(ills.get(index, []), is_lost=index in lost) for index, uuid in self._gpus()}

    def _written_ills(self) -> dict[int, list[list[str]]]:
        """Return what ails each GPU, by index; a line that makes no sense ails none."""
        found: dict[int, list[list[str]]] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in self._ills.read_text().splitlines():
                index, *words = line.split()
                if index.isdigit() and words:
                    found.setdefault(int(index), []).append(words)
        return found

    def _condition(self, ills: Sequence[list[str]], *, is_lost: bool) -> Condition:
        down = {int(word) for name, *words in ills if name == "nvlink" for word in words if word.isdigit()}
        well = Condition(
            is_lost=is_lost,
            recovery=0,
            uncorrected=0,
            sram_exceeded=False,
            remap_pending=False,
            remap_failed=False,
            links={link: link not in down for link in self.LINKS},
            fabric=next((" ".join(words) for name, *words in ills if name == "fabric"), ""),
            is_pcie_narrow=False,
        )
        named: dict[str, Any] = dict.fromkeys({name for name, *_ in ills} & ILLS, True)
        return replace(well, **named)

    def trouble(self) -> str:
        """Return nothing: there is no driver that could fail."""
        return ""

    def addresses(self) -> Mapping[str, str]:
        """Return nothing: what does not exist has no address."""
        return {}


def host_error(line: str) -> str:
    """Return what a line of the kernel log says of an error of the machine that was not corrected; else nothing."""
    if found := MACHINE_CHECK.match(line):
        return found[1] if int(found[2], 16) & UNCORRECTED else ""
    return next((found[1] for pattern in HOST_LINES if (found := pattern.match(line))), "")


def is_of_kernel(head: str) -> bool:
    """Return whether the kernel itself wrote the record of this head: programs that may can write there as well."""
    priority = head.partition(",")[0]
    return priority.isdecimal() and int(priority) >> FACILITY_SHIFT == 0


class KernelLog:
    """Follows /dev/kmsg for what the GPU driver, and the machine itself, say there.

    It goes on where an earlier agent stopped.
    """

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
            if is_of_kernel(head):
                events += filter(None, [self.read(words)])
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
            if found := pattern.match(line):
                address, number, words = found.groups()
                gpu = "" if kind == "sxid" else self._addresses().get(pci_address(address), "")
                where = "" if gpu else f"PCI:{address} "
                return Event(gpu, "kmsg", f"{kind}:{int(number)}", f"{where}{words}"[:DETAIL_MAX])
        words = host_error(line)
        return Event("", "kmsg", "host", words[:DETAIL_MAX]) if words else None

    def close(self) -> None:
        """Let go of the log."""
        os.close(self._file)
