"""Which nodes a request waits for that finds no place by its shape alone, so that others may have the rest.

GPUs enough are free, but not together: no whole node, no rack, no host for one
tenant alone, no even spread. The nodes that lack least to be such a place are kept for it.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping

from provisioning.placing.asking import SPREAD_OVER, WIDTH, Request
from provisioning.placing.choice import choose
from provisioning.placing.dealing import level_of
from provisioning.placing.shard import Shard, Spot


def kept_for(shard: Shard, request: Request) -> frozenset[int] | None:
    """Return the nodes that have the fewest GPUs to come free until a request fits there; none where none could.

    None, which is all nodes, where it fits now, where GPUs enough are not free anyway, and where every place is kept
    for others already.
    """
    if choose(shard, request) is not None:
        return None
    able = [spot for spot in shard.spots.values() if _is_able(spot, request)]
    if not _best(able, request):
        return frozenset()
    kept = sum(spot.free for number in request.kept if (spot := shard.spots.get(number)))
    free = sum(shard.frees[klass] * count for klass, count in enumerate(shard.counts)) - kept
    best = _best([spot for spot in able if spot.id not in request.kept], request)
    if not best or free < request.replicas * request.gpus:
        return None
    return frozenset(spot.id for spot in best)


def emptiest(shard: Shard, hosts: int, kept: frozenset[int], spot_gpus: Mapping[int, int]) -> frozenset[int]:
    """Return so many nodes that nobody has alone: those first that lack the least of being empty once spot is gone.

    Of those the ones with the least spot, and then those that are kept already.
    """

    def rank(spot: Spot) -> tuple[int, int, bool, int]:
        used = spot.total - spot.mask.bit_count()
        return used - spot_gpus.get(spot.id, 0), used, spot.id not in kept, spot.id

    open_to_all = [spot for spot in shard.spots.values() if not spot.status and not spot.owner] if hosts else []
    return frozenset(spot.id for spot in sorted(open_to_all, key=rank)[:hosts])


def _best(able: Iterable[Spot], request: Request) -> list[Spot]:
    return _spread(able, request) if request.strategy == "spread" and request.replicas > 1 else _packed(able, request)


def _is_able(spot: Spot, request: Request) -> bool:
    return not spot.status and spot.id not in request.barred and request.home in {0, spot.id}


def _packed(able: Iterable[Spot], request: Request) -> list[Spot]:
    """Return the nodes of the domain that lacks the least."""
    level = "node" if request.replicas == 1 else request.level if request.is_required else "site"
    places = [found for spots in _domains(able, level) if (found := _emptiest(spots, request, request.replicas))]
    return min(places, key=lambda spots: (_lacking(spots, request), spots[0].id), default=[])


def _spread(able: Iterable[Spot], request: Request) -> list[Spot]:
    """Return the nodes that lack the least of those that would take an even deal if they were empty.

    Every domain has its share of them then, so whatever room others have beside, no deal is less even.
    """
    domains = _domains(able, request.level if request.level in SPREAD_OVER else "node")
    rooms = [sum(spot.total // request.gpus for spot in spots) for spots in domains]
    if sum(rooms) < request.replicas:
        return []
    water, rest = level_of(Counter(rooms), request.replicas)
    if request.is_required and water + bool(rest) - min(water, *rooms) > request.max_skew:
        return []
    shares = [_emptiest(spots, request, min(room, water)) for spots, room in zip(domains, rooms, strict=True)]
    more = [
        (_lacking(fuller, request) - _lacking(share, request), number, fuller)
        for number, (spots, room, share) in enumerate(zip(domains, rooms, shares, strict=True))
        if room > water and (fuller := _emptiest(spots, request, water + 1))
    ]
    for _, number, fuller in sorted(more, key=lambda one: one[:2])[:rest]:
        shares[number] = fuller
    return [spot for share in shares for spot in share]


def _domains(able: Iterable[Spot], level: str) -> list[list[Spot]]:
    """Return the nodes of each domain of a level that has room for any; one below a node is a node."""
    domains: dict[object, list[Spot]] = defaultdict(list)
    for spot in able:
        wide = {"rack": spot.rack, "fabric": spot.fabric}.get(level)
        domains[spot.id if WIDTH[level] <= WIDTH["node"] else wide].append(spot)
    return list(domains.values())


def _emptiest(spots: Iterable[Spot], request: Request, replicas: int) -> list[Spot]:
    """Return as few as possible of these nodes that would have room if they were empty, those first that nearly are."""
    found, room = list[Spot](), 0
    for spot in sorted(spots, key=lambda spot: (_used(spot, request), spot.id)):
        if room >= replicas:
            break
        if units := spot.total // request.gpus:
            found.append(spot)
            room += units
    return found if room >= replicas else []


def _lacking(spots: Collection[Spot], request: Request) -> int:
    return sum(_used(spot, request) for spot in spots)


def _used(spot: Spot, request: Request) -> int:
    """Return how many GPUs of a node are to come free before it is empty; all of them where another tenant has it."""
    return spot.total if spot.owner not in {0, request.owner} else spot.total - spot.mask.bit_count()
