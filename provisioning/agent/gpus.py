"""The words for GPUs: what one is, what its meters say, how two are joined, and what gives such answers.

A value that a GPU does not support or did not give is None: never zero, never healthy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

Scalar = str | int | bool | None


class GpuSourceError(Exception):
    """GPUs cannot be read as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Gpu:
    """One GPU as the server's inventory knows it. `facts` are what does not change while it works."""

    uuid: str
    index: int
    model: str
    memory_mib: int | None
    healthy: bool
    facts: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What one GPU's meters say now. Energy counts from the load of the driver; ECC and rows from where NVIDIA says."""

    uuid: str
    utilization_percent: int | None = None
    memory_used_mib: int | None = None
    power_mw: int | None = None
    temperature_c: int | None = None
    millijoules: int | None = None
    memory_temperature_c: int | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    clocks_event_reasons: tuple[str, ...] | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    pcie_replays: int | None = None
    ecc_volatile_corrected: int | None = None
    ecc_volatile_uncorrected: int | None = None
    ecc_aggregate_corrected: int | None = None
    ecc_aggregate_uncorrected: int | None = None
    rows_corrected: int | None = None
    rows_uncorrected: int | None = None
    rows_pending: bool | None = None
    rows_failed: bool | None = None


@dataclass(frozen=True)
class Link:
    """The best way between two GPUs: nvlink, or how far apart they are on PCIe: pix, pxb, phb, node, sys."""

    a: str
    b: str
    kind: str


class GpuSource(Protocol):
    """What we ask of anything that knows GPUs."""

    name: str
    driver: str | None
    """Its version, as of the last read."""
    loads: int
    """Grows when the driver was loaded anew, and with it every energy counter."""

    def read(self, *, busy: frozenset[str]) -> list[tuple[Gpu, Reading]]:
        """Return every GPU that is or was here, with its meters. `busy`: those that run a workload."""

    def links(self) -> tuple[Link, ...]:
        """Return how the GPUs of the last read are joined, each pair once; a pair that is not known is left out."""
