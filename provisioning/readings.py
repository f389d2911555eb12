"""What nodes read from their GPUs' meters: what is known and sound is kept; what a GPU does not tell is null.

A node is not to be trusted: a value that no GPU of this decade can have is left out, and spoils nothing else.
"""

from collections.abc import Sequence
from typing import Any

from provisioning.protocol import BIGGEST, BIGGEST_INTEGER

# The least and the most that is believed, by name.
NUMBERS = {
    "millijoules": (0, BIGGEST),
    "driver_epoch": (0, BIGGEST_INTEGER),
    "utilization_percent": (0, 100),
    "memory_used_mib": (0, 1 << 24),
    "power_mw": (0, 10_000_000),
    "temperature_c": (-60, 250),
    "memory_temperature_c": (-60, 250),
    "sm_clock_mhz": (0, 20_000),
    "memory_clock_mhz": (0, 30_000),
    "pcie_generation": (0, 20),
    "pcie_width": (0, 64),
    "pcie_replays": (0, BIGGEST),
    "ecc_volatile_corrected": (0, BIGGEST),
    "ecc_volatile_uncorrected": (0, BIGGEST),
    "ecc_aggregate_corrected": (0, BIGGEST),
    "ecc_aggregate_uncorrected": (0, BIGGEST),
    "rows_corrected": (0, BIGGEST_INTEGER),
    "rows_uncorrected": (0, BIGGEST_INTEGER),
}
FLAGS = {"rows_pending", "rows_failed"}
WORDS = {"clocks_event_reasons"}
WORDS_MAX, WORD_MAX = 64, 40


def readings(told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the known names with sound values. One without a GPU's name is nobody's and left out."""
    return [kept for reading in told if (kept := _kept(reading)).get("uuid")]


def _kept(reading: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in reading.items():
        if name in NUMBERS:
            number = _number(value, *NUMBERS[name])
            if value is None or number is not None:
                kept[name] = number
        elif _is_sound(name, value):
            kept[name] = value
    return kept


def _is_sound(name: str, value: object) -> bool:
    if name == "uuid":
        return _is_word(value, 64)
    if name in FLAGS:
        return value is None or isinstance(value, bool)
    return name in WORDS and (value is None or _are_words(value))


def _number(value: object, least: int, most: int) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return round(value) if least <= value <= most else None  # What is not a number lies between no two.


def _is_word(value: object, longest: int) -> bool:
    return isinstance(value, str) and len(value) <= longest and "\x00" not in value


def _are_words(value: object) -> bool:
    return isinstance(value, list) and len(value) <= WORDS_MAX and all(_is_word(word, WORD_MAX) for word in value)
