"""A machine's NVIDIA driver, pretended: nvml.c answers what the file of a `FakeNvml` says, at every call anew.

Unmodified nvidia-ml-py uses it where LD_LIBRARY_PATH has the library's folder; `environment` names both variables.
In a container, FAKE_NVML_DEV names a folder: only GPUs whose node nvidia<minor> lies there can be seen, as with CDI.

The file has one fact a line, and a fact that is not there is NOT_SUPPORTED:

    driver version 580.95.05        driver error 9 (all calls fail)        driver hang 1 (all calls wait)
    gpu 0 uuid GPU-...              gpu 0 power_mw 75000                   gpu 0 power_mw !4 (this question fails)
    gpu 0 error 15 (it is lost)     gpu 0 compute PID BYTES                gpu 0.1 uuid MIG-... (its second MIG device)
    gpu 0 gi.3 0 (a GPU instance of profile 0; "0 19": it cannot be destroyed)     gpu 0 ci.3.0 0 (the part in it)
    pair 0 1 topology 20            pair 0 1 p2p.2 0                       event 7 GPU-... 8 79 (an XID)
"""

import hashlib
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")
LIBRARY = "libnvidia-ml.so.1"
GIB = 1 << 30

XID, RECOVERY_ACTION = 8, 32768
LOST, RESET_REQUIRED, DRIVER_NOT_LOADED, LIBRARY_MISMATCH = 15, 16, 9, 18
ALL_EVENTS = 1 | 2 | XID | 512 | 1024 | 2048 | 4096 | 8192 | 16384 | RECOVERY_ACTION

Value = int | str | tuple[int | str, ...]
Facts = dict[str, Value]


@dataclass(frozen=True)
class Failure:
    """Makes one question fail with this NVML code."""

    code: int

    def __str__(self) -> str:
        return f"!{self.code}"


Answer = Value | Failure | None


def compile_library(folder: Path, *, without: Iterable[str] = ()) -> Path:
    """Compile the library into a folder and return its path. `without`: functions that an old driver lacks."""
    made = folder / LIBRARY
    hidden = [f"-D{name}=lacks_{name}" for name in without]
    flags = ["-O1", "-Wall", "-Werror", "-D_GNU_SOURCE", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}"]
    subprocess.run(["gcc", *flags, *hidden, "-o", made, SOURCE], check=True)
    return made


def has_compiler() -> bool:
    """Say whether the library can be compiled here (package gcc)."""
    return shutil.which("gcc") is not None


class FakeNvml:
    """Writes the file; each change is there at once and whole. Several of them may change one file in turn."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, str] = {}
        if path.exists():
            self._lines = dict(line.split("\t", 1) for line in self._tabbed(path.read_text()))

    @staticmethod
    def _tabbed(text: str) -> list[str]:
        words = {"driver": 2, "gpu": 3, "pair": 4, "event": 2}
        lines = []
        for line in text.splitlines():
            parts = line.split(" ", words[line.split(" ", 1)[0]])
            count = words[parts[0]]
            if parts[0] == "gpu" and parts[2] in ("compute", "graphics", "mps"):
                parts = [*parts[:3], *parts[3].split(" ", 1)]
                count = 4
            lines.append("\t".join((" ".join(parts[:count]), " ".join(parts[count:]))))
        return lines

    @classmethod
    def make(cls, path: Path, *, gpus: int = 8, model: str = "NVIDIA H200", memory_mib: int = 143_771) -> "FakeNvml":
        """Write a healthy machine: GPUs joined by NVLink, four on each of two CPUs."""
        fake = cls(path)
        fake._lines = {"driver version": "580.95.05", "driver nvml": "13.580.95.05", "driver cuda": "13000"}
        for number in range(gpus):
            fake._lines |= fake._healthy(number, model=model, memory_mib=memory_mib)
        for one in range(gpus):
            for other in range(one + 1, gpus):
                fake._lines[f"pair {one} {other} topology"] = "30" if one // 4 == other // 4 else "50"
                fake._lines[f"pair {one} {other} p2p.2"] = "0"
        fake.write()
        return fake

    def _healthy(self, number: int, *, model: str, memory_mib: int) -> dict[str, str]:
        name = uuid.UUID(bytes=hashlib.sha256(f"{self.path}/{number}".encode()).digest()[:16], version=4)
        facts: Facts = {
            "uuid": f"GPU-{name}", "name": model, "serial": 1650000000 + number, "minor_number": number,
            "board_part_number": "900-21010-0040-000", "vbios": "96.00.BC.00.01", "module_id": number + 1,
            "pci_bus_id": f"00000000:{0x17 + 8 * number:02X}:00.0", "numa_node": number // 4,
            "pcie_max_generation": 5, "pcie_max_width": 16, "pcie_generation": 5, "pcie_width": 16,
            "memory_bytes": (memory_mib << 20, 0, 0), "mig_mode": (0, 0), "ecc_mode": (1, 1), "compute_mode": 0,
            "utilization": (0, 0), "power_mw": 75_000, "power_limit_mw": 700_000, "energy_mj": 1_000_000,
            "temperature.0": 33, "field.82": 38, "clock.0": 345, "clock.1": 345, "clock.2": 2619,
            "clocks_event_reasons": 1, "pcie_replay": 0, "remapped_rows": (0, 0, 0, 0), "event_types": ALL_EVENTS,
            "ecc.0.0": 0, "ecc.0.1": 0, "ecc.1.0": 0, "ecc.1.1": 0, "field.230": 0, "nvlink_version": 5,
            "nvlink_remote_type": 2, "field.91": 18, "fabric": (3, 0, 0), "sram_exceeded": 0,
            "temperature_threshold.2": 95,
        }  # fmt: skip
        facts |= {f"nvlink.{link}": (1, f"00000000:{5 + link // 6:02X}:00.0") for link in range(18)}
        return {f"gpu {number} {key}": _written(value) for key, value in facts.items()}

    def write(self) -> None:
        """Put the file there, whole."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text("".join(f"{key} {value}\n" for key, value in self._lines.items()))
        temporary.replace(self.path)

    def environment(self, library: Path) -> dict[str, str]:
        """Return the variables that make a program use this machine."""
        return {"LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML_STATE": str(self.path)}

    def uuid(self, gpu: int) -> str:
        """Return a GPU's name."""
        return self._lines[f"gpu {gpu} uuid"]

    def set(self, gpu: int | str, values: Mapping[str, Answer] | None = None, **more: Answer) -> None:
        """Change what one GPU answers: set(0, power_mw=1, energy_mj=Failure(4), vbios=None). None: not supported."""
        for key, value in (dict(values or {}) | more).items():
            if value is None:
                self._lines.pop(f"gpu {gpu} {key}", None)
            else:
                self._lines[f"gpu {gpu} {key}"] = _written(value)
        self.write()

    def pair(self, one: int, other: int, key: str, value: Answer) -> None:
        """Change how two GPUs are joined: pair(0, 1, "topology", 10), pair(0, 1, "p2p.2", 5)."""
        if value is None:
            self._lines.pop(f"pair {one} {other} {key}", None)
        else:
            self._lines[f"pair {one} {other} {key}"] = _written(value)
        self.write()

    def run_process(self, gpu: int, pid: int, *, memory_bytes: int = GIB, kind: str = "compute") -> None:
        """Let a process use a GPU."""
        self._lines[f"gpu {gpu} {kind} {pid}"] = str(memory_bytes)
        self.write()

    def end_process(self, gpu: int, pid: int, *, kind: str = "compute") -> None:
        """Let a process leave a GPU."""
        self._lines.pop(f"gpu {gpu} {kind} {pid}", None)
        self.write()

    def spend(self, gpu: int, *, milliwatts: int) -> None:
        """Let a GPU draw this power from now on; its counter grows by itself."""
        base = int(self._lines[f"gpu {gpu} energy_mj"].split()[0])
        now_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
        self.set(gpu, power_mw=milliwatts, energy_mj=(base, milliwatts, now_ms))

    def lose(self, gpu: int) -> None:
        """Let a GPU fall off the bus: all that is asked of it answers GPU_IS_LOST, and XID 79 is raised."""
        self._lines[f"gpu {gpu} error"] = str(LOST)
        self.xid(gpu, 79)

    def heal(self, gpu: int) -> None:
        """Let a lost GPU answer again."""
        self.set(gpu, error=None)

    def take_out(self, gpu: int) -> None:
        """Remove a GPU from the machine; those behind it move up, as after a reboot."""
        kept: dict[str, str] = {}
        for key, value in self._lines.items():
            kind, *words = key.split(" ")
            places = {"gpu": 1, "pair": 2}.get(kind, 0)
            if str(gpu) in [place.split(".")[0] for place in words[:places]]:
                continue
            words[:places] = [_moved_up(place, gpu) for place in words[:places]]
            kept[" ".join((kind, *words))] = value
        self._lines = kept
        self.write()

    def xid(self, gpu: int, code: int) -> None:
        """Raise an XID."""
        self.event(gpu, XID, code)

    def event(self, gpu: int, kind: int, data: int = 0) -> None:
        """Raise an event of NVML's type `kind`."""
        last = max((int(key.split(" ")[1]) for key in self._lines if key.startswith("event ")), default=0)
        self._lines[f"event {last + 1}"] = f"{self.uuid(gpu)} {kind} {data}"
        self.write()

    def driver(self, *, version: str | None = None, error: int = 0, hangs: bool = False) -> None:
        """Change the driver as a whole. Its energy counters are unaffected: see `reload_driver`."""
        self._lines |= {"driver error": str(error), "driver hang": str(int(hangs))}
        if version:
            self._lines["driver version"] = version
        self.write()

    def reload_driver(self, *, version: str | None = None) -> None:
        """Load the driver anew: energy counts from zero."""
        for key in self._lines:
            if key.startswith("gpu ") and key.endswith(" energy_mj"):
                self._lines[key] = "0"
        self.driver(version=version)


def _written(value: Value | Failure) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _moved_up(place: str, gone: int) -> str:
    number, dot, rest = place.partition(".")
    return f"{int(number) - (int(number) > gone)}{dot}{rest}"
