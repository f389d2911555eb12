"""What nodes read from their GPUs' meters: what is known and sound is kept; what a GPU does not tell is null."""

import math
from collections.abc import Sequence
from typing import Any

from provisioning.protocol import BIGGEST

NAMES = {
    "uuid",
    "millijoules",
    "driver_epoch",
    "utilization_percent",
    "memory_used_mib",
    "power_mw",
    "temperature_c",
}


def readings(told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the known names with sound values; an absurd one is left out and spoils nothing."""
    return [{name: value for name, value in reading.items() if name in NAMES and _is_sound(value)} for reading in told]


def _is_sound(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= 64 and "\x00" not in value
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, int) and abs(value) <= BIGGEST)
