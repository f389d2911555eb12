"""The jobs of a trace, moved to a time of ours."""

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

TICK = timedelta(minutes=5)
NOTICE = timedelta(minutes=2)
SPOT_PERCENT = 30
RESERVED_PERCENT = 15
PRICE_MICROS = 2_490_000
RESERVED_MICROS = 1_990_000
RESERVE_MICROS = 600_000
GRID_MICROS = 10_000
GPUS_PER_NODE = 8


@dataclass
class Job:
    """One job of the trace, and how it fared here."""

    number: int
    at: datetime
    duration: timedelta
    gpus: int
    tenant: str
    market: str
    instance: Any = None
    block: Any = None
    started_at: datetime | None = None
    runs_since: datetime | None = None
    done: timedelta = timedelta(0)

    @property
    def shape(self) -> tuple[int, int]:
        """Replicas and GPUs of each: whole nodes where it needs more than one."""
        return (self.gpus // GPUS_PER_NODE, GPUS_PER_NODE) if self.gpus > GPUS_PER_NODE else (1, self.gpus)

    @property
    def is_lent(self) -> bool:
        """Whether its tenant lends what stands idle of the block that it reserved: every other one does."""
        return self.number % 2 == 0

    @property
    def bids_micros(self) -> int:
        """What its tenant pays at most: between the reserve and the price on demand, the same in every run."""
        share = int(hashlib.sha256(f"{self.tenant} {self.number}".encode()).hexdigest(), 16) % 100
        most = RESERVE_MICROS + (PRICE_MICROS - RESERVE_MICROS) * share // 100
        return most - most % GRID_MICROS


def read(trace: Path, *, begin: datetime, skip: int = 0) -> Iterator[Job]:
    """Yield the jobs of a trace in order, moved in time so that the first after `skip` is submitted at `begin`."""
    with trace.open() as lines:
        moved = None
        for number, row in enumerate(csv.DictReader(lines)):
            if number < skip:
                continue
            at = datetime.fromisoformat(row["submitted_at"]).replace(tzinfo=UTC)
            moved = begin - at if moved is None else moved
            yield Job(
                number=number, at=at + moved, duration=timedelta(seconds=float(row["duration_s"])),
                gpus=int(row["gpus"]), tenant=row["virtual_cluster"],
                market=_market_of(number),
            )  # fmt: skip


def _market_of(number: int) -> str:
    """Return how a job is ordered, the same in every run."""
    share = number * 37 % 100
    return "spot" if share < SPOT_PERCENT else "reserved" if share < SPOT_PERCENT + RESERVED_PERCENT else "on_demand"
