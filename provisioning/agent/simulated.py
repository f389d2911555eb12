"""GPUs that do not exist, which keep the promise of real ones. All that they report is labelled simulated."""

import hashlib
import math
import uuid
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from provisioning.agent.clock import boottime
from provisioning.agent.gpus import Gpu, Link, Reading, Scalar

NVLINKS = 18


@dataclass(frozen=True)
class Board:
    """What a kind of board draws at most and at rest, and how many NVLinks each GPU has."""

    power_limit_mw: int
    idle_mw: int
    nvlinks: int


# Boards with NVSwitches, but for those in PCIe slots, as their data sheets say.
SXM = Board(power_limit_mw=700_000, idle_mw=75_000, nvlinks=NVLINKS)
PCIE = {"L40S": Board(power_limit_mw=350_000, idle_mw=35_000, nvlinks=0), "L4": Board(72_000, 12_000, 0)}
BUSY_SHARE = 0.88


class SimulatedGpus:
    """GPUs that are named for ever the same from a seed.

    A file `simulated-lost` in the agent's home lists the indices of GPUs that are to seem lost, e.g. "0 3".
    """

    name = "simulated"
    driver: str | None = "simulated"
    loads = 0

    def __init__(self, *, model: str, count: int, memory_mib: int, seed: str, home: Path) -> None:
        self._board = board = PCIE.get(model, SXM)
        self._lost_file = home / "simulated-lost"
        self._read_at = boottime()
        self._millijoules = [0.0] * count
        self._gpus = [
            Gpu(
                uuid=simulated_uuid(seed, index),
                index=index,
                model=model,
                memory_mib=memory_mib,
                healthy=True,
                facts=simulated_facts(seed, index, board),
            )
            for index in range(count)
        ]
        way = "nvlink" if board.nvlinks else "node"
        self._links = tuple(Link(one.uuid, other.uuid, way) for one, other in combinations(self._gpus, 2))

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

    def links(self) -> tuple[Link, ...]:
        """Return links as of one board with NVSwitches, or of slots at one root complex; none of them breaks."""
        return self._links

    def _lost(self) -> set[int]:
        try:
            return {int(word) for word in self._lost_file.read_text().split()}
        except (FileNotFoundError, ValueError):
            return set()

    def _meters(self, gpu: Gpu, *, is_busy: bool, now: float, elapsed: float) -> Reading:
        wave = math.sin(now / 7 + gpu.index)
        draw_mw = BUSY_SHARE * self._board.power_limit_mw if is_busy else self._board.idle_mw
        power_mw = round(draw_mw * (1 + 0.03 * wave))
        self._millijoules[gpu.index] += power_mw * elapsed
        return Reading(
            uuid=gpu.uuid,
            utilization_percent=round(94 + 5 * wave) if is_busy else 0,
            memory_used_mib=round((gpu.memory_mib or 0) * 0.8) if is_busy else 0,
            power_mw=power_mw,
            temperature_c=round((64 if is_busy else 33) + 3 * wave),
            millijoules=int(self._millijoules[gpu.index]),
            memory_temperature_c=round((72 if is_busy else 38) + 3 * wave),
            sm_clock_mhz=1980 if is_busy else 345,
            memory_clock_mhz=3201 if is_busy else 2619,
            clocks_event_reasons=() if is_busy else ("idle",),
            pcie_generation=5,
            pcie_width=16,
            pcie_replays=0,
            ecc_volatile_corrected=0,
            ecc_volatile_uncorrected=0,
            ecc_aggregate_corrected=0,
            ecc_aggregate_uncorrected=0,
            rows_corrected=0,
            rows_uncorrected=0,
            rows_pending=False,
            rows_failed=False,
        )


def simulated_uuid(seed: str, index: int) -> str:
    """Return the name of a simulated GPU, in the form of NVIDIA's."""
    return f"GPU-{uuid.UUID(bytes=hashlib.sha256(f'{seed}/{index}'.encode()).digest()[:16], version=4)}"


def simulated_facts(seed: str, index: int, board: Board = SXM) -> dict[str, Scalar]:
    """Return what such a GPU says it is; the names are those of `nvml.facts_of`."""
    return {
        "simulated": True,
        "serial": f"SIM{hashlib.sha256(f'serial {seed}/{index}'.encode()).hexdigest()[:10].upper()}",
        "board_part": "simulated",
        "vbios": "simulated",
        "pci_bus_id": f"00000000:{0x17 + 8 * (index % 28):02X}:{index // 28:02X}.0",
        "minor_number": index,
        "pcie_generation_max": 5,
        "pcie_width_max": 16,
        "numa_node": index // 4 % 2,
        "power_limit_mw": board.power_limit_mw,
        "ecc": True,
        "mig": False,
        "mig_devices": "",
        "nvlinks": board.nvlinks or None,
        "nvlinks_up": board.nvlinks or None,
        "nvlinks_down": "" if board.nvlinks else None,
        "nvlinks_active": " ".join(map(str, range(board.nvlinks))) if board.nvlinks else None,
    }
