"""A fleet in memory to which instances come and from which they go, and three ways to choose where."""

import gc
import random
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import psutil

from provisioning.placing.asking import Choice, Request
from provisioning.placing.choice import choose
from provisioning.placing.shard import Row, Shard
from tests.bench.machine import percentile

SIZE, PER_RACK, PER_FABRIC = 8, 8, 512
# Most want one GPU and a few a gang, as in the traces of Microsoft's Philly clusters; gangs are of whole nodes.
SINGLE, SINGLE_WEIGHTS = (1, 2, 4, 8), (60, 15, 12, 8)
GANG, GANG_WEIGHTS, GANG_SHARE = (2, 4, 8, 16, 32, 64, 128, 256), (40, 25, 15, 10, 5, 3, 1.5, 0.5), 0.05
WIDTHS = {"nvlink": 0, "node": 0, "rack": 1, "fabric": 2, "site": 3}


def fleet(gpus: int) -> Shard:
    """Return an empty fleet, all of one offer: the largest shard that there can be."""
    return Shard(
        Row(number, number // PER_FABRIC, f"r{number // PER_RACK}", 2**SIZE - 1, SIZE) for number in range(gpus // SIZE)
    )


def snapshot_mib(gpus: int) -> float:
    """Return how much memory a snapshot of the fleet takes, with the room for gangs of whole nodes."""
    gc.collect()
    before = psutil.Process().memory_info().rss
    shard = fleet(gpus)
    shard.rooms(SIZE)
    return round((psutil.Process().memory_info().rss - before) / 2**20, 1) if shard.spots else 0.0


def by_choice(shard: Shard, request: Request) -> Choice | None:
    return choose(shard, request)


def first_fit(shard: Shard, request: Request) -> Choice | None:
    """Take the first nodes that have room, by their numbers."""
    return _take(shard, request, _able(shard, request.gpus))


def by_chance(shard: Shard, request: Request) -> Choice | None:
    """Take any nodes that have room."""
    able = _able(shard, request.gpus)
    if able.bit_count() < request.replicas:
        return None
    numbers, draw, bits = set[int](), random.Random(request.tie), able.bit_length()
    while len(numbers) < request.replicas:
        number = draw.randrange(bits)
        above = able >> number
        numbers.add(number + (above & -above).bit_length() - 1)
    return _take(shard, request, sum(1 << number for number in numbers))


def _able(shard: Shard, gpus: int) -> int:
    able = 0
    for klass in shard.looks(gpus):
        fabrics = shard.fabrics_with[klass]
        while fabrics:
            bit = fabrics & -fabrics
            fabrics ^= bit
            number = bit.bit_length() - 1
            able |= shard.fabrics[number].bits[klass] << number * PER_FABRIC
    return able


def _take(shard: Shard, request: Request, able: int) -> Choice | None:
    places = list[tuple[int, int]]()
    for _ in range(request.replicas):
        if not able:
            return None
        bit = able & -able
        able ^= bit
        spot = shard.spots[bit.bit_length() - 1]
        mask = 0
        for _ in range(request.gpus):
            mask |= (spot.mask & ~mask) & -(spot.mask & ~mask)
        places.append((spot.id, mask))
    numbers = [node_id for node_id, _ in places]
    spans = [len({number // width for number in numbers}) for width in (1, PER_RACK, PER_FABRIC)]
    level = next((name for name, span in zip(("node", "rack", "fabric"), spans, strict=True) if span == 1), "site")
    return Choice(level, places)


WAYS: dict[str, Callable[[Shard, Request], Choice | None]] = {
    "choice": by_choice,
    "first_fit": first_fit,
    "by_chance": by_chance,
}


def measure(way: str, *, gpus: int, share: float, arrivals: int, seed: int = 1) -> dict[str, Any]:
    """Fill a fleet to a share, then let instances come and go there; a decision is the choice and its taking."""
    pick, shard, draw = WAYS[way], fleet(gpus), random.Random(seed)
    shard.rooms(SIZE)
    target, living, used = round(share * gpus), list[Choice](), 0
    took_us, choice_us, gangs, best, refused = list[float](), list[float](), 0, 0, 0
    arrived = -1
    while arrived < arrivals:
        while used > target:
            position = draw.randrange(len(living))
            living[position], living[-1] = living[-1], living[position]
            for node_id, mask in living.pop().places:
                shard.put(_freed(shard, node_id, mask))
                used -= mask.bit_count()
        request = _arrival(draw, gpus // SIZE)
        began = perf_counter_ns()
        choice = pick(shard, request)
        chosen = perf_counter_ns()
        for node_id, mask in choice.places if choice else ():
            shard.take(node_id, mask)
        took = (perf_counter_ns() - began) / 1000
        # The fleet is full once the first instance had to go.
        arrived += arrived >= 0 or used >= target
        if choice is not None:
            living.append(choice)
            used += request.replicas * request.gpus
        elif arrived < 0 or request.replicas == 1:
            target = min(target, used)
        if arrived < 0:
            continue
        took_us.append(took)
        choice_us.append((chosen - began) / 1000)
        if request.replicas > 1:
            gangs += 1
            refused += choice is None
            best += choice is not None and WIDTHS[choice.level] <= WIDTHS[_best_level(request.replicas)]
    return {
        "p50_us": round(percentile(took_us, 0.5), 1),
        "p99_us": round(percentile(took_us, 0.99), 1),
        "choice_p50_us": round(percentile(choice_us, 0.5), 1),
        "choice_p99_us": round(percentile(choice_us, 0.99), 1),
        "allocated": round(used / gpus, 3),
        "gangs": gangs,
        "gangs_at_best_level": round(best / gangs, 4) if gangs else None,
        "gangs_refused": refused,
        "whole_nodes_left": shard.rooms(SIZE).total,
    }


def _best_level(nodes: int) -> str:
    """Return the lowest level on which so many whole nodes could ever be together."""
    return "rack" if nodes <= PER_RACK else "fabric" if nodes <= PER_FABRIC else "site"


def _arrival(draw: random.Random, nodes: int) -> Request:
    tie = draw.getrandbits(32)
    if draw.random() < GANG_SHARE:
        return Request(min(draw.choices(GANG, GANG_WEIGHTS)[0], max(2, nodes // 4)), SIZE, tie=tie)
    return Request(1, draw.choices(SINGLE, SINGLE_WEIGHTS)[0], tie=tie)


def _freed(shard: Shard, node_id: int, mask: int) -> Row:
    spot = shard.spots[node_id]
    return Row(spot.id, spot.fabric.id, spot.rack.name, spot.mask | mask, spot.total)
