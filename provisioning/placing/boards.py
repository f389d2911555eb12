"""Which GPUs of one node: masks of GPU indices, and the NVLink groups that should stay whole."""

from functools import cache

# Bits of a mask; one is left for the sign in the database.
INDICES_MAX = 63


@cache
def widest(mask: int, groups: tuple[int, ...]) -> int:
    """Return how many free GPUs the NVLink group with the most of them has; without groups, the board is one."""
    if not groups:
        return mask.bit_count()
    return max((mask & group).bit_count() for group in groups)


@cache
def pick(mask: int, count: int, groups: tuple[int, ...]) -> int:
    """Return the mask of `count` of the free GPUs in `mask`: from one NVLink group where one has room.

    The group with the fewest sufficient GPUs is used, so that fuller ones stay
    whole; where none suffices, the fullest go first and the rest is fitted best.
    """
    taken, left = 0, count
    while left:
        parts = [part for group in groups or (mask,) if (part := mask & group & ~taken)]
        if not parts:
            parts = [mask & ~taken]
        enough = [part for part in parts if part.bit_count() >= left]
        part = min(enough, key=_size) if enough else max(parts, key=_size)
        some = _lowest(part, min(left, part.bit_count()))
        taken, left = taken | some, left - some.bit_count()
    return taken


def carve(mask: int, count: int, times: int, groups: tuple[int, ...]) -> list[int]:
    """Return `times` disjoint masks of `count` GPUs each."""
    found = []
    for _ in range(times):
        found.append(pick(mask, count, groups))
        mask &= ~found[-1]
    return found


def _size(part: int) -> tuple[int, int]:
    return part.bit_count(), part & -part


def _lowest(mask: int, count: int) -> int:
    found = 0
    for _ in range(count):
        bit = mask & -mask
        found |= bit
        mask ^= bit
    return found
