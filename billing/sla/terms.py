"""What is promised: the versions of `terms.toml`."""

import tomllib
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

BPS = 10_000
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Tier:
    """Below which availability, in millionths, how much of what was paid is given back, in basis points."""

    below_ppm: int
    credit_bps: int


@dataclass(frozen=True, slots=True)
class Terms:
    """One version of the service level; see `terms.toml` for what each figure means."""

    version: str
    degraded_weight_bps: int
    degraded_for: timedelta
    min_incident: timedelta
    failed_counts_for: timedelta
    tiers: tuple[Tier, ...]

    def credit_bps(self, availability_ppm: int) -> int:
        """Return the credit for an availability: that of the lowest tier which it falls into."""
        return max((tier.credit_bps for tier in self.tiers if availability_ppm < tier.below_ppm), default=0)


def _read(row: dict[str, Any]) -> Terms:
    found = Terms(
        version=row["version"],
        degraded_weight_bps=row["degraded_weight_bps"],
        degraded_for=timedelta(minutes=row["degraded_minutes"]),
        min_incident=timedelta(seconds=row["min_incident_s"]),
        failed_counts_for=timedelta(hours=row["failed_counts_for_hours"]),
        tiers=tuple(Tier(**tier) for tier in row["tiers"]),
    )
    assert 0 <= found.degraded_weight_bps <= BPS
    assert all(0 < tier.below_ppm <= MILLION and 0 <= tier.credit_bps <= BPS for tier in found.tiers)
    return found


_TABLE = tomllib.loads(Path(__file__).with_name("terms.toml").read_text(encoding="utf-8"))["terms"]
VERSIONS: dict[str, Terms] = {row["version"]: _read(row) for row in _TABLE}


def in_force(month: datetime) -> Terms | None:
    """Return the terms of a month: the newest that begin by its first day, None before there were any."""
    begun = [row for row in _TABLE if row["from"] <= month.date()]
    return VERSIONS[max(begun, key=lambda row: row["from"])["version"]] if begun else None
