"""The choice itself: from a shard and a request to nodes and GPUs. It changes nothing and rolls no dice."""

from provisioning.placing import boards
from provisioning.placing.asking import SPREAD_OVER, WIDTH, Choice, Request
from provisioning.placing.dealing import deal
from provisioning.placing.packing import Part, fill_fabric, fill_rack, fill_site, shared_out
from provisioning.placing.rooms import least_at_or_above, one_of
from provisioning.placing.shard import Rack, Shard, Spot


def choose(shard: Shard, request: Request) -> Choice | None:
    """Return where a request goes, or None where it does not fit."""
    if not request.avoid and not request.barred and not request.kept:
        return _choose(shard, request)
    with shard.without(request.avoid, request.barred, request.kept):
        return _choose(shard, request)


def _choose(shard: Shard, request: Request) -> Choice | None:
    if request.home:
        return _at_home(shard, request)
    if request.strategy == "spread" and request.replicas > 1:
        return _spread(shard, request)
    all_of_it = request.replicas * request.gpus
    if all_of_it <= shard.size:
        spot = _own_node(shard, request, all_of_it) if request.owner in shard.owned else None
        if spot is None:
            spot = _tightest_node(shard, all_of_it, request)
        if spot is not None:
            return _on_one(spot, request)
    if request.replicas == 1 or (request.is_required and WIDTH[request.level] < WIDTH["rack"]):
        return None
    return _gang(shard, request)


def can_stay(spot: Spot | None, request: Request) -> bool:
    """Return whether a node may take a request, whatever is free there."""
    if spot is None or spot.status or (spot.owner and spot.owner != request.owner):
        return False
    if not request.is_exclusive:
        return True
    return not spot.is_shared if spot.owner else spot.mask.bit_count() == spot.total


def _at_home(shard: Shard, request: Request) -> Choice | None:
    spot = shard.spots.get(request.home)
    if spot is None or not can_stay(spot, request) or _room_on(spot, request) < request.replicas * request.gpus:
        return None
    return _on_one(spot, request)


def _room_on(spot: Spot, request: Request) -> int:
    """Return how many GPUs are free on a node; in one NVLink group, where a request requires that."""
    is_one_group = request.is_required and request.level == "nvlink"
    return boards.widest(spot.mask, spot.groups) if is_one_group else spot.mask.bit_count()


def _on_one(spot: Spot, request: Request) -> Choice:
    """Give each replica its GPUs of a node: all of them from one NVLink group, where one has so many."""
    everything, there = request.replicas * request.gpus, spot.mask
    fits = boards.widest(there, spot.groups) >= everything
    if fits and request.replicas > 1:
        there = boards.pick(there, everything, spot.groups)
    masks = boards.carve(there, request.gpus, request.replicas, spot.groups)
    return Choice("nvlink" if fits else "node", [(spot.id, mask) for mask in masks])


def _own_node(shard: Shard, request: Request, gpus: int) -> Spot | None:
    """Return the tightest of the nodes that the owner has alone already."""
    own = shard.owned.get(request.owner, {}).values()
    able = [spot for spot in own if can_stay(spot, request) and _room_on(spot, request) >= gpus]
    return min(able, key=lambda spot: (spot.mask.bit_count(), spot.id), default=None)


def _tightest_node(shard: Shard, gpus: int, request: Request) -> Spot | None:
    """Return the fullest node that has room; a whole one comes from where the fewest whole ones are left."""
    only_one_group = request.is_required and request.level == "nvlink"
    for klass in shard.looks(gpus):
        fabrics = shard.fabrics_with[klass]
        if not fabrics or (only_one_group and shard.wides[klass] < gpus):
            continue
        if shard.frees[klass] == shard.size:
            return _whole_node(shard, klass, request.tie)
        if not request.is_exclusive:
            fabric = shard.fabrics[one_of(fabrics, request.tie)]
            return fabric.spots[one_of(fabric.bits[klass], request.tie >> 8)]
    return None


def _whole_node(shard: Shard, klass: int, tie: int) -> Spot:
    rack = _tightest_rack(shard, 1, shard.size, tie)
    assert rack is not None, "a whole node is in some rack"
    bits = rack.fabric.bits[klass] & rack.members
    if bits:
        return rack.fabric.spots[one_of(bits, tie >> 8)]
    # That rack's whole nodes have other boards: any node of the class will do.
    fabric = shard.fabrics[one_of(shard.fabrics_with[klass], tie)]
    return fabric.spots[one_of(fabric.bits[klass], tie >> 8)]


def _tightest_rack(shard: Shard, replicas: int, gpus: int, tie: int) -> Rack | None:
    """Return the rack with the least sufficient room; among equals, one of the fabric with the least room."""
    rooms = shard.rooms(gpus)
    room = least_at_or_above(rooms.rooms_of_racks, replicas)
    if room < 0:
        return None
    fabrics, best, least = rooms.fabrics_with_rack[room], -1, -1
    while fabrics:
        bit = fabrics & -fabrics
        fabrics ^= bit
        number = bit.bit_length() - 1
        if best < 0 or rooms.of_fabric[number] < least:
            best, least = number, rooms.of_fabric[number]
    return shard.fabrics[best].racks[one_of(rooms.racks[best][room], tie)]


def _gang(shard: Shard, request: Request) -> Choice | None:
    """Find room on the lowest level that has it, in the domain where the least is left over."""
    per_node = shard.size // request.gpus if request.is_exclusive else 1
    if not per_node:
        return None
    # Who shares with nobody takes whole nodes, each for as many replicas as it holds.
    units, gpus = -(-request.replicas // per_node), shard.size if request.is_exclusive else request.gpus
    widest = WIDTH[request.level] if request.is_required else WIDTH["site"]
    rooms = shard.rooms(gpus)
    rack = _tightest_rack(shard, units, gpus, request.tie)
    if rack is not None:
        level, parts = "rack", fill_rack(shard, rack, units, gpus)
    elif widest >= WIDTH["fabric"] and (room := least_at_or_above(rooms.fabrics_present, units)) >= 0:
        fabric = shard.fabrics[one_of(rooms.fabrics[room], request.tie)]
        level, parts = "fabric", fill_fabric(shard, fabric, units, gpus)
    elif widest >= WIDTH["site"] and rooms.total >= units:
        level, parts = "site", fill_site(shard, units, gpus)
    else:
        return None
    return _placed(level, shared_out(parts, request.replicas, per_node) if request.is_exclusive else parts, request)


def _spread(shard: Shard, request: Request) -> Choice | None:
    dealt = deal(shard, request)
    if dealt is None or (request.is_required and dealt.skew > request.max_skew):
        return None
    return _placed(request.level if request.level in SPREAD_OVER else "node", dealt.parts, request)


def _placed(level: str, parts: list[Part], request: Request) -> Choice:
    """Give each replica its node and GPUs."""
    places = list[tuple[int, int]]()
    for spot, count in parts:
        if count == 1 and spot.mask.bit_count() == request.gpus:
            places.append((spot.id, spot.mask))
        else:
            places += [(spot.id, mask) for mask in boards.carve(spot.mask, request.gpus, count, spot.groups)]
    assert len(places) == request.replicas, "a domain was counted with more room than it has"
    return Choice(level, places)
