"""Which nodes a request waits for that finds no place by its shape alone, so that others may have the rest.

GPUs enough are free, but not together: no whole node, no rack, no host for one
tenant alone. The nodes that lack least to be such a place are kept for it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from provisioning.placing.asking import WIDTH, Request
from provisioning.placing.choice import choose
from provisioning.placing.shard import Shard, Spot


def kept_for(shard: Shard, request: Request) -> frozenset[int] | None:
    """Return the nodes that have the fewest GPUs to come free until a request fits there; none where none could.

    None, which is all nodes, where it fits now, where GPUs enough are not free anyway, and where it is to be spread.
    """
    if (request.strategy == "spread" and request.replicas > 1) or choose(shard, request) is not None:
        return None
    found = [_emptiest(spots, request) for spots in _domains(shard, request)]
    places = [spots for spots in found if spots]
    if not places:
        return frozenset()
    if sum(shard.frees[klass] * count for klass, count in enumerate(shard.counts)) < request.replicas * request.gpus:
        return None
    best = min(places, key=lambda spots: (sum(_used(spot, request) for spot in spots), spots[0].id))
    return frozenset(spot.id for spot in best)


def _domains(shard: Shard, request: Request) -> Iterator[list[Spot]]:
    """Yield the nodes of each domain in which it has to be."""
    level = "node" if request.replicas == 1 else request.level if request.is_required else "site"
    domains: dict[object, list[Spot]] = defaultdict(list)
    for spot in shard.spots.values():
        if spot.status or spot.id in request.barred or (request.home and spot.id != request.home):
            continue
        if request.home or WIDTH[level] <= WIDTH["node"]:
            domains[spot.id].append(spot)
        else:
            domains[{"rack": spot.rack, "fabric": spot.fabric}.get(level)].append(spot)
    yield from domains.values()


def _emptiest(spots: Iterable[Spot], request: Request) -> list[Spot]:
    """Return as few as possible of these nodes that would have room if they were empty, those first that nearly are."""
    found, room = list[Spot](), 0
    for spot in sorted(spots, key=lambda spot: (_used(spot, request), spot.id)):
        if units := spot.total // request.gpus:
            found.append(spot)
            room += units
        if room >= request.replicas:
            return found
    return []


def _used(spot: Spot, request: Request) -> int:
    """Return how many GPUs of a node are to come free before it is empty; all of them where another tenant has it."""
    return spot.total if spot.owner not in {0, request.owner} else spot.total - spot.mask.bit_count()
