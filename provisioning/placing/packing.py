"""Fill a domain with replicas: its largest parts first and whole, the last one where the least is left over."""

from provisioning.placing.rooms import least_at_or_above
from provisioning.placing.shard import Fabric, Rack, Shard, Spot

# A node and how many replicas go there.
Part = tuple[Spot, int]


def fill_rack(shard: Shard, rack: Rack, replicas: int, gpus: int) -> list[Part]:
    """Return on which nodes of a rack the replicas go: as few as possible, the last as full as it can be."""
    parts, left = list[Part](), replicas
    spots = shard.in_rack(rack, gpus)
    for number, spot in enumerate(spots):
        units = spot.free // gpus
        if units >= left:
            # From here on they only get fuller: the last one that has room for the rest is the tightest.
            last = spot
            for other in spots[number + 1 :]:
                if other.free // gpus < left:
                    break
                if other.free < last.free:
                    last = other
            return [*parts, (last, left)]
        parts.append((spot, units))
        left -= units
    return parts


def fill_fabric(shard: Shard, fabric: Fabric, replicas: int, gpus: int) -> list[Part]:
    """Return on which nodes of a fabric the replicas go: in as few racks as possible."""
    rooms = shard.rooms(gpus)
    racks, present = rooms.racks[fabric.number], rooms.racks_present[fabric.number]
    parts, left = list[Part](), replicas
    while left:
        room = present.bit_length() - 1
        present ^= 1 << room
        bits = racks[room]
        while bits and left:
            bit = bits & -bits
            bits ^= bit
            rack = fabric.racks[bit.bit_length() - 1]
            if room >= left:
                tighter = least_at_or_above(present, left)
                if tighter >= 0:
                    rack = fabric.racks[(racks[tighter] & -racks[tighter]).bit_length() - 1]
                return parts + fill_rack(shard, rack, left, gpus)
            parts += [(spot, spot.free // gpus) for spot in shard.in_rack(rack, gpus)]
            left -= room
    return parts


def fill_site(shard: Shard, replicas: int, gpus: int) -> list[Part]:
    """Return on which nodes of the site the replicas go: in as few fabrics as possible."""
    rooms = shard.rooms(gpus)
    present, parts, left = rooms.fabrics_present, list[Part](), replicas
    while left:
        room = present.bit_length() - 1
        present ^= 1 << room
        bits = rooms.fabrics[room]
        while bits and left:
            bit = bits & -bits
            bits ^= bit
            fabric = shard.fabrics[bit.bit_length() - 1]
            if room >= left:
                tighter = least_at_or_above(present, left)
                if tighter >= 0:
                    fabric = shard.fabrics[(rooms.fabrics[tighter] & -rooms.fabrics[tighter]).bit_length() - 1]
                return parts + fill_fabric(shard, fabric, left, gpus)
            parts += fill_fabric(shard, fabric, room, gpus)
            left -= room
    return parts


def shared_out(parts: list[Part], replicas: int, per_node: int) -> list[Part]:
    """Return how many replicas go on each of these whole nodes."""
    found, left = list[Part](), replicas
    for spot, _ in parts:
        found.append((spot, min(left, per_node)))
        left -= found[-1][1]
    return found
