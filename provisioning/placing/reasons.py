"""Why a request did not fit, what would make it fit, and what keeps a larger gang from starting."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from provisioning.placing.asking import LEVELS, RULES, WIDTH, Refusal, Request
from provisioning.placing.choice import can_stay, choose
from provisioning.placing.dealing import deal
from provisioning.placing.shard import Fabric, Shard, Spot

EASIEST_MAX = 5


def rejected(shard: Shard, request: Request) -> tuple[int, dict[str, int]]:
    """Return how many nodes could take a replica, and how many each rule kept out. O(classes), not O(nodes)."""
    with shard.without((), request.barred, request.kept):
        return _rejected(shard, request)


def _rejected(shard: Shard, request: Request) -> tuple[int, dict[str, int]]:
    found = {rule: shard.statuses[rule] for rule in RULES}
    owned = [spot for spots in shard.owned.values() for spot in spots.values() if not spot.status]
    mine = [spot for spot in owned if spot.owner == request.owner]
    able = sum(can_stay(spot, request) and spot.mask.bit_count() >= request.gpus for spot in mine)
    found["another_tenant"] = len(owned) - len(mine)
    found["too_few"] = len(mine) - able
    found["full"] = shard.statuses[""] - len(owned) - sum(shard.counts[1:])
    for klass, count in enumerate(shard.counts):
        free = shard.frees[klass]
        if not klass:
            continue
        if free < request.gpus:
            found["too_few"] += count
        elif request.is_exclusive and free < shard.size:
            found["not_whole"] += count
        else:
            able += count
    return able, {rule: count for rule, count in found.items() if count}


def why_not(shard: Shard, request: Request) -> Refusal:
    """Say why `choose` found nothing, with the cheapest relaxation."""
    with shard.without(request.avoid, request.barred, request.kept):
        candidates, found = _rejected(shard, request)
        most = most_replicas(shard, request)
    return Refusal(candidates=candidates, rejected=found, most=most, relaxation=_cheapest(shard, request, most))


def most_replicas(shard: Shard, request: Request) -> dict[str, int]:
    """Return the most replicas of a request that fit into one domain, by level."""
    per_node = shard.size // request.gpus if request.is_exclusive else 1
    if not per_node:
        return {"node": 0, "rack": 0, "fabric": 0, "site": 0}
    room = shard.rooms(shard.size if request.is_exclusive else request.gpus)
    largest = max((shard.frees[klass] for klass, count in enumerate(shard.counts) if count), default=0)
    return {"node": largest // request.gpus} | {level: count * per_node for level, count in room.most().items()}


@dataclass(frozen=True, slots=True)
class Room:
    """What of a shape could start now, by placement's own rules; what is closed to whoever asks counts for nothing.

    `together` is the most replicas of one instance, `apart` how many instances
    of one replica, `largest` the most GPUs of a replica of any size.
    """

    together: int
    apart: int
    largest: int


def room(shard: Shard, request: Request) -> Room:
    """Return the room for replicas of so many GPUs; `request` has one, anywhere."""
    with shard.without(request.avoid, request.barred, request.kept):
        open_to_all = most_replicas(shard, request)["site"]
        own = _free_on_own(shard, request)
        classes = enumerate(shard.counts)
        frees = [shard.frees[klass] for klass, count in classes if count and klass]
    largest = [free for free in frees if free == shard.size or not request.is_exclusive]
    on_own = [free // request.gpus for free in own]
    return Room(together=max([open_to_all, *on_own]), apart=open_to_all + sum(on_own), largest=max([0, *largest, *own]))


def _free_on_own(shard: Shard, request: Request) -> list[int]:
    """Return how many GPUs are free on each of the nodes that the tenant has alone."""
    return [spot.mask.bit_count() for spot in shard.owned.get(request.owner, {}).values() if can_stay(spot, request)]


Change = dict[str, str | int]


def _cheapest(shard: Shard, request: Request, most: dict[str, int]) -> Change:
    """Return the first change that helps: topology, then evenness, then size, and a policy last of all."""
    for change in _changes(shard, request, most):
        if choose(shard, replace(request, **change)) is not None:  # type: ignore[arg-type]
            if "is_exclusive" in change:
                return {"no_shared_host": 0}
            return {name: value for name, value in change.items() if name != "is_required"}
    return {}


def _changes(shard: Shard, request: Request, most: dict[str, int]) -> Iterator[Change]:
    packs = request.strategy == "pack"
    for level in LEVELS if packs and request.is_required else ():
        if WIDTH[level] > WIDTH[request.level]:
            yield {"level": level}
    if not packs and request.is_required and (dealt := deal(shard, request)) is not None:
        yield {"max_skew": dealt.skew}
    widest = request.level if packs and request.is_required else "site"
    # A gang is on one of the nodes that its tenant has alone, or on none of them.
    fewer = max([most.get(widest, most["node"]), *(free // request.gpus for free in _free_on_own(shard, request))])
    if 0 < fewer < request.replicas:
        yield {"replicas": fewer}
    for gpus in range(request.gpus - 1, 0, -1) if request.replicas == 1 else ():
        yield {"gpus": gpus}
    if request.is_exclusive:
        yield {"is_exclusive": False}


@dataclass(frozen=True, slots=True)
class Hints:
    """What capacity managers read of an offer. Gangs are counted in whole nodes.

    `largest` is the largest gang that can start now in one rack, one fabric,
    the site; `broken` nodes are partly used, and `stranded` of their GPUs are
    free; `easiest` are nodes of the fabric that has the most whole ones with
    how many GPUs are used there: each that is emptied makes the gang one larger.
    """

    nodes: int
    free: int
    whole: int
    largest: dict[str, int]
    broken: int
    stranded: int
    out: dict[str, int]
    easiest: list[tuple[int, int]]


def hints(shard: Shard) -> Hints:
    """Look at an offer as somebody would who wants to start the largest gang."""
    rooms = shard.rooms(shard.size) if shard.size else None
    partly = [(klass, count) for klass, count in enumerate(shard.counts) if klass and shard.frees[klass] < shard.size]
    return Hints(
        nodes=len(shard.spots),
        free=sum(shard.frees[klass] * count for klass, count in enumerate(shard.counts)),
        whole=rooms.total if rooms else 0,
        largest=rooms.most() if rooms else {"rack": 0, "fabric": 0, "site": 0},
        broken=sum(count for _, count in partly),
        stranded=sum(shard.frees[klass] * count for klass, count in partly),
        out={status: count for status, count in shard.statuses.items() if status and count},
        easiest=_easiest(shard, max(shard.fabrics, key=lambda one: rooms.of_fabric[one.number])) if rooms else [],
    )


def _easiest(shard: Shard, fabric: Fabric) -> list[tuple[int, int]]:
    def used(spot: Spot) -> int:
        return spot.total - spot.mask.bit_count()

    alive = (spot for spot in fabric.spots if shard.spots.get(spot.id) is spot)
    partly = [spot for spot in alive if not spot.status and not spot.owner and 0 < used(spot) < spot.total]
    return [(spot.id, used(spot)) for spot in sorted(partly, key=lambda spot: (used(spot), spot.id))[:EASIEST_MAX]]
