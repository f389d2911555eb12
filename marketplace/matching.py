"""Which supply an order takes: the cheapest of each hour, exactly. Pure: everything in, everything out.

Supply can be divided in time and in GPUs, so each hour is for itself, and its
cheapest fill is to take the cheapest first. The smallest and shortest order
that a listing serves looks at the whole order, so it only decides whether the listing
takes part at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

HOUR = timedelta(hours=1)
# The offer itself, as a source; listings have their primary keys.
OFFER = 0


@dataclass(frozen=True)
class Supply:
    """GPUs of one source that can be had in one hour, and what each costs."""

    source: int
    price_micros: int
    gpus: int


@dataclass(frozen=True)
class Leg:
    """What is taken from one source at one price, in every hour from a start to an end."""

    source: int
    price_micros: int
    gpus: int
    starts_at: datetime
    ends_at: datetime

    @property
    def hours(self) -> int:
        return (self.ends_at - self.starts_at) // HOUR

    @property
    def amount_micros(self) -> int:
        return self.price_micros * self.gpus * self.hours


class Short(Exception):
    """In one hour there is less than was asked for."""

    def __init__(self, *, hour: datetime, found: int) -> None:
        super().__init__(f"{found} GPUs at {hour:%Y-%m-%d %H:%M}")
        self.hour, self.found = hour, found


def in_turn(supply: Sequence[Supply]) -> list[Supply]:
    """Return an hour's supply as it is taken: the cheapest, then holders before the offer, then who listed first."""
    return sorted(supply, key=lambda one: (one.price_micros, one.source == OFFER, one.source))


def cost_micros(supply: Sequence[Supply], gpus: int) -> int | None:
    """Return the least that so many GPUs cost in an hour, or None where there are not so many."""
    cost = 0
    for one in in_turn(supply):
        share = min(gpus, one.gpus)
        cost += share * one.price_micros
        gpus -= share
        if not gpus:
            return cost
    return None


def fill(
    supply: Mapping[datetime, Sequence[Supply]], *, starts_at: datetime, ends_at: datetime, gpus: int
) -> list[Leg]:
    """Return the cheapest way to have so many GPUs in each hour of a window; raise Short for the first that lacks."""
    open_legs: dict[tuple[int, int, int], Leg] = {}
    legs: list[Leg] = []
    hour = starts_at
    while hour < ends_at:
        now: dict[tuple[int, int, int], Leg] = {}
        for source, price, share in _taken(supply.get(hour, ()), gpus, hour):
            known = open_legs.pop((source, price, share), None)
            now[source, price, share] = Leg(source, price, share, known.starts_at if known else hour, hour + HOUR)
        legs += open_legs.values()
        open_legs = now
        hour += HOUR
    return sorted([*legs, *open_legs.values()], key=lambda leg: (leg.starts_at, leg.price_micros, leg.source))


def _taken(supply: Sequence[Supply], gpus: int, hour: datetime) -> list[tuple[int, int, int]]:
    left, taken = gpus, []
    for one in in_turn(supply):
        share = min(left, one.gpus)
        if share:
            taken.append((one.source, one.price_micros, share))
            left -= share
    if left:
        raise Short(hour=hour, found=gpus - left)
    return taken


def cheapest_start(costs: Sequence[int | None], *, hours: int) -> tuple[int, int] | None:
    """Return where the cheapest run of so many hours begins, the earliest of equal ones, and what it costs.

    `costs` is what each hour costs, None where it cannot be had. One pass.
    """
    best: tuple[int, int] | None = None
    total, length = 0, 0
    for number, cost in enumerate(costs):
        if cost is None:
            total, length = 0, 0
            continue
        total += cost
        length += 1
        if length > hours:
            total -= costs[number - hours] or 0
            length = hours
        if length == hours and (best is None or total < best[1]):
            best = number - hours + 1, total
    return best
