"""The nodes of one offer in memory, indexed so that a change costs a few bit operations whatever the fleet's size.

Nodes are kept by class: how many GPUs are free, and how many of those one
NVLink group has. Each fabric has for each class a mask of its nodes, and the
shard a mask of the fabrics that have any; so a tightest node is found by
looking at a handful of integers. Nothing here knows Django or the database.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from provisioning.placing import boards
from provisioning.placing.rooms import Rooms

# What keeps a node out; "" is open for all.
OPEN = ""


class Row(NamedTuple):
    """A node as it is written in the database. `status` is "" or the first of RULES that keeps it out.

    `owner` is the tenant that has it alone, and `is_shared` says that others
    are there still; `groups` are masks of its NVLink groups, none for one group.
    """

    id: int
    fabric: int
    rack: str
    mask: int
    total: int
    status: str = OPEN
    owner: int = 0
    is_shared: bool = False
    groups: tuple[int, ...] = ()


class Fabric:
    """A fabric's nodes by class, as masks of their positions in it."""

    __slots__ = ("bits", "flag", "id", "number", "racks", "spots")

    def __init__(self, fabric_id: int, number: int, classes: int) -> None:
        self.id, self.number, self.flag = fabric_id, number, 1 << number
        self.bits = [0] * classes
        self.spots: list[Spot] = []
        self.racks: list[Rack] = []


class Rack:
    """A rack's nodes, as a mask of their positions in the fabric."""

    __slots__ = ("fabric", "flag", "index", "members", "name")

    def __init__(self, name: str, fabric: Fabric, index: int) -> None:
        self.name, self.fabric, self.index = name, fabric, index
        self.flag = 1 << len(fabric.racks)
        self.members = 0


class Spot:
    """A node's place in the shard. `free` counts what everybody may have: none where it is kept out or another's."""

    __slots__ = ("bit", "fabric", "free", "groups", "id", "is_shared", "klass", "mask", "owner", "rack", "status",
                 "total")  # fmt: skip

    def __init__(self, row: Row, rack: Rack) -> None:
        self.id, self.rack, self.fabric = row.id, rack, rack.fabric
        self.bit = 1 << len(rack.fabric.spots)
        self.total, self.groups = row.total, row.groups
        self.mask = self.free = self.klass = 0
        self.status, self.owner, self.is_shared = row.status, 0, row.is_shared


class Shard:
    """All nodes of one offer. Not safe for threads: the caller holds its lock."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.spots: dict[int, Spot] = {}
        self.fabrics: list[Fabric] = []
        self.statuses: Counter[str] = Counter()
        self.owned: dict[int, dict[int, Spot]] = {}
        # The most GPUs that a node has: a node with as many free is whole.
        self.size = 0
        # Class 0 is in no index: nothing is free for everybody.
        self.classes: dict[tuple[int, int], int] = {(0, 0): 0}
        self.frees = [0]
        self.wides = [0]
        self.fabrics_with = [0]
        self.counts = [0]
        self._looks: dict[int, list[int]] = {}
        self._fabrics: dict[int, Fabric] = {}
        self._racks: dict[tuple[int, str], Rack] = {}
        self._rooms: dict[int, Rooms] = {}
        for row in sorted(rows):
            self.put(row)

    # Changes.

    def put(self, row: Row) -> None:
        """Write down how a node is now; add it where it is new."""
        spot = self.spots.get(row.id)
        if spot is not None and (spot.fabric.id, spot.rack.name) != (row.fabric, row.rack):
            self.drop(row.id)
            spot = None
        if spot is None:
            spot = self._add(row)
        if row.total > self.size:
            self._grow(row.total)
        spot.total, spot.groups = row.total, row.groups
        self._set_status(spot, row.status)
        self._keep_owner(spot, row.owner)
        spot.is_shared = row.is_shared
        self._keep_mask(spot, row.mask)

    def take(self, node_id: int, mask: int, owner: int = 0) -> None:
        """Count these GPUs of a node as taken; with an owner, the node is theirs alone from now on."""
        spot = self.spots[node_id]
        if owner:
            self._keep_owner(spot, owner)
        self._keep_mask(spot, spot.mask & ~mask)

    def drop(self, node_id: int) -> None:
        """Forget a node that is no more."""
        spot = self.spots.get(node_id)
        if spot is None:
            return
        self._keep_owner(spot, 0)
        self._keep_mask(spot, 0)
        self.counts[0] -= 1
        self.statuses[spot.status] -= 1
        spot.rack.members &= ~spot.bit
        del self.spots[node_id]

    @contextmanager
    def trying(self) -> Iterator[Callable[[int, int, int], None]]:
        """Yield a `take` that is only tried: afterwards each node is as it was before."""
        before = dict[Spot, tuple[int, int]]()

        def take(node_id: int, mask: int, owner: int) -> None:
            spot = self.spots[node_id]
            before.setdefault(spot, (spot.mask, spot.owner))
            self.take(node_id, mask, owner)

        try:
            yield take
        finally:
            self._put_back(before)

    @contextmanager
    def without(self, avoided: Iterable[int], barred: Iterable[int] = (), kept: Iterable[int] = ()) -> Iterator[None]:
        """Hide some nodes from choices for a moment."""
        hidden = self._hide(barred, "barred") + self._hide(kept, "kept") + self._hide(avoided, "avoided")
        try:
            yield
        finally:
            for spot in hidden:
                self._set_status(spot, OPEN)

    @contextmanager
    def reopened(self, node_ids: Iterable[int]) -> Iterator[None]:
        """Let nodes take part for a moment that are out of service."""
        back = [(spot, spot.status) for node_id in node_ids if (spot := self.spots.get(node_id)) and spot.status]
        try:
            for spot, _ in back:
                self._set_status(spot, OPEN)
            yield
        finally:
            for spot, status in back:
                self._set_status(spot, status)

    @contextmanager
    def as_if(self, masks: Mapping[int, int]) -> Iterator[None]:
        """Let nodes have exactly these GPUs free for a moment; one that is empty then is kept for nobody."""
        before = {spot: (spot.mask, spot.owner) for node_id in masks if (spot := self.spots.get(node_id))}
        for spot in before:
            if masks[spot.id].bit_count() == spot.total:
                self._keep_owner(spot, 0)
            self._keep_mask(spot, masks[spot.id])
        try:
            yield
        finally:
            self._put_back(before)

    def _put_back(self, before: Mapping[Spot, tuple[int, int]]) -> None:
        """Give nodes the masks and owners that they had."""
        for spot, (mask, owner) in before.items():
            self._keep_owner(spot, owner)
            self._keep_mask(spot, mask)

    def _hide(self, node_ids: Iterable[int], status: str) -> list[Spot]:
        hidden = [spot for node_id in node_ids if (spot := self.spots.get(node_id)) and not spot.status]
        for spot in hidden:
            self._set_status(spot, status)
        return hidden

    def _add(self, row: Row) -> Spot:
        fabric = self._fabrics.get(row.fabric)
        if fabric is None:
            fabric = self._fabrics[row.fabric] = Fabric(row.fabric, len(self.fabrics), len(self.frees))
            self.fabrics.append(fabric)
            for rooms in self._rooms.values():
                rooms.add_fabric(fabric)
        rack = self._racks.get((row.fabric, row.rack))
        if rack is None:
            rack = self._racks[row.fabric, row.rack] = Rack(row.rack, fabric, len(self._racks))
            fabric.racks.append(rack)
            for rooms in self._rooms.values():
                rooms.add_rack(rack)
        spot = self.spots[row.id] = Spot(row, rack)
        fabric.spots.append(spot)
        rack.members |= spot.bit
        self.statuses[spot.status] += 1
        self.counts[0] += 1
        return spot

    def _set_status(self, spot: Spot, status: str) -> None:
        """Let a node take part or keep it out, and move it to the class that follows from that."""
        if spot.status != status:
            self.statuses[spot.status] -= 1
            self.statuses[status] += 1
            spot.status = status
            self._keep_mask(spot, spot.mask)

    def _keep_owner(self, spot: Spot, owner: int) -> None:
        if spot.owner != owner:
            if spot.owner:
                del self.owned[spot.owner][spot.id]
                if not self.owned[spot.owner]:
                    del self.owned[spot.owner]
            if owner:
                self.owned.setdefault(owner, {})[spot.id] = spot
            spot.owner = owner

    def _keep_mask(self, spot: Spot, mask: int) -> None:
        """Move a node to the class that it belongs to now, and its domains with it."""
        spot.mask = mask
        free = 0 if spot.status or spot.owner else mask.bit_count()
        klass = self._class_of(free, mask, spot.groups) if free else 0
        was, had = spot.klass, spot.free
        if klass != was:
            fabric, bit = spot.fabric, spot.bit
            if was:
                left = fabric.bits[was] ^ bit
                fabric.bits[was] = left
                if not left:
                    self.fabrics_with[was] ^= fabric.flag
            if klass:
                fabric.bits[klass] |= bit
                self.fabrics_with[klass] |= fabric.flag
            self.counts[was] -= 1
            self.counts[klass] += 1
            spot.klass = klass
        if free != had:
            spot.free = free
            for gpus, rooms in self._rooms.items():
                by = free // gpus - had // gpus
                if by:
                    rooms.shift(spot.rack, by)

    def _class_of(self, free: int, mask: int, groups: tuple[int, ...]) -> int:
        shape = (free, boards.widest(mask, groups) if groups else free)
        klass = self.classes.get(shape)
        if klass is None:
            klass = self.classes[shape] = len(self.frees)
            self.frees.append(free)
            self.wides.append(shape[1])
            self.fabrics_with.append(0)
            self.counts.append(0)
            self._looks.clear()
            for fabric in self.fabrics:
                fabric.bits.append(0)
        return klass

    def _grow(self, size: int) -> None:
        self.size = size
        self._looks.clear()

    # Questions.

    def rows(self) -> Iterator[Row]:
        """Yield how each node is now."""
        for spot in self.spots.values():
            yield Row(spot.id, spot.fabric.id, spot.rack.name, spot.mask, spot.total, spot.status, spot.owner,
                      spot.is_shared, spot.groups)  # fmt: skip

    def rooms(self, gpus: int) -> Rooms:
        """Return the room for replicas of so many GPUs; the first time costs a look at every node."""
        found = self._rooms.get(gpus)
        if found is None:
            found = self._rooms[gpus] = Rooms(self, gpus)
        return found

    def looks(self, gpus: int) -> list[int]:
        """Return the classes of nodes with so many free GPUs: those first where one NVLink group has them all."""
        found = self._looks.get(gpus)
        if found is None:
            shapes = sorted((widest < gpus, free, widest) for free, widest in self.classes if free >= gpus)
            found = self._looks[gpus] = [self.classes[free, widest] for _, free, widest in shapes]
        return found

    def in_rack(self, rack: Rack, gpus: int) -> list[Spot]:
        """Return a rack's nodes with so many free GPUs, the emptiest first."""
        fabric, found = rack.fabric, list[Spot]()
        for klass in sorted(self.looks(gpus), key=self.frees.__getitem__, reverse=True):
            bits = fabric.bits[klass] & rack.members
            while bits:
                bit = bits & -bits
                found.append(fabric.spots[bit.bit_length() - 1])
                bits ^= bit
        return found
