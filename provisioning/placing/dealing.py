"""Spread replicas evenly over the domains of a level, as water finds its level in vessels of different depth."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from provisioning.placing.asking import Request
from provisioning.placing.packing import Part, fill_fabric, fill_rack, shared_out
from provisioning.placing.rooms import Rooms
from provisioning.placing.shard import Fabric, Rack, Shard, Spot

Domain = Spot | Rack | Fabric


@dataclass(frozen=True, slots=True)
class Dealt:
    """How replicas would be spread: `skew` is the most in a domain minus the fewest in one that has room for any."""

    skew: int
    parts: list[Part]


def deal(shard: Shard, request: Request) -> Dealt | None:
    """Spread a request as evenly as the room allows; None where all of it does not fit.

    No other way of placing it has a smaller skew: every domain gets the same
    number, or as many as it has room for. Domains with the least room are used
    first where not all are needed, so that large ones stay whole.
    """
    gpus, per_node = request.gpus, 1
    if request.is_exclusive:
        gpus, per_node = shard.size, shard.size // request.gpus
    domains = sorted(
        ((room * per_node, domain) for room, domain in _domains(shard, request.level, gpus)), key=lambda one: one[0]
    )
    room_of = Counter(room for room, _ in domains)
    if sum(room * count for room, count in room_of.items()) < request.replicas:
        return None
    water, rest = level_of(room_of, request.replicas)
    skew = water + bool(rest) - min(water, domains[0][0])
    parts = list[Part]()
    for room, domain in domains:
        count = min(room, water)
        if rest and room > water:
            count, rest = count + 1, rest - 1
        if count:
            there = _fill(shard, domain, -(-count // per_node), gpus)
            parts += shared_out(there, count, per_node) if request.is_exclusive else there
    return Dealt(skew, parts)


def level_of(room_of: Counter[int], replicas: int) -> tuple[int, int]:
    """Return how high the water stands when all of it is poured, and how much is left above that level."""
    water, poured = 0, 0
    deeper = sum(room_of.values())
    for room in sorted(room_of):
        if poured + (room - water) * deeper > replicas:
            break
        poured += (room - water) * deeper
        water = room
        deeper -= room_of[room]
    if deeper:
        more = (replicas - poured) // deeper
        water, poured = water + more, poured + more * deeper
    return water, replicas - poured


def _domains(shard: Shard, level: str, gpus: int) -> Iterator[tuple[int, Domain]]:
    """Yield the domains of a level that have room for any replica, with their room."""
    if level in {"rack", "fabric"}:
        rooms: Rooms = shard.rooms(gpus)
        for fabric in shard.fabrics:
            if level == "fabric" and rooms.of_fabric[fabric.number]:
                yield rooms.of_fabric[fabric.number], fabric
            elif level == "rack":
                yield from ((room, rack) for rack in fabric.racks if (room := rooms.of_rack[rack.index]))
        return
    yield from ((spot.free // gpus, spot) for spot in shard.spots.values() if spot.free >= gpus)


def _fill(shard: Shard, domain: Domain, count: int, gpus: int) -> list[Part]:
    if isinstance(domain, Spot):
        return [(domain, count)]
    if isinstance(domain, Rack):
        return fill_rack(shard, domain, count, gpus)
    return fill_fabric(shard, domain, count, gpus)
