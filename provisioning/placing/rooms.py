"""How many replicas of a size each rack and fabric has room for, kept up to date, so that a best fit is a few bits.

`present` masks have a bit for each number of replicas that some domain has room
for; the lowest one at or above what is wanted names the best fit.
"""

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from provisioning.placing.shard import Fabric, Rack, Shard


class Rooms:
    """The room of every domain of a shard for replicas of `gpus` GPUs."""

    def __init__(self, shard: "Shard", gpus: int) -> None:
        self.gpus = gpus
        self.total = 0
        self.of_fabric: list[int] = []
        # By fabric: room -> racks of that room, and which rooms there are.
        self.racks: list[dict[int, int]] = []
        self.racks_present: list[int] = []
        self.fabrics: dict[int, int] = defaultdict(int)
        self.fabrics_present = 0
        # Over the site: room -> fabrics that have a rack of that room.
        self.fabrics_with_rack: dict[int, int] = defaultdict(int)
        self.rooms_of_racks = 0
        self.of_rack: list[int] = []
        for fabric in shard.fabrics:
            self.add_fabric(fabric)
            for rack in fabric.racks:
                self.add_rack(rack)
        for spot in shard.spots.values():
            if spot.free >= gpus:
                self.shift(spot.rack, spot.free // gpus)

    def add_fabric(self, fabric: "Fabric") -> None:
        """Make room for a new fabric, which has none yet."""
        self.of_fabric.append(0)
        self.racks.append(defaultdict(int))
        self.racks_present.append(0)
        self.fabrics[0] |= fabric.flag
        self.fabrics_present |= 1

    def add_rack(self, rack: "Rack") -> None:
        """Make room for a new rack, which has none yet."""
        self.of_rack.append(0)
        self._rack_is(rack, 0)

    def shift(self, rack: "Rack", by: int) -> None:
        """Note that a rack has room for so many replicas more, or fewer."""
        number, fabric = rack.fabric.number, rack.fabric
        was = self.of_rack[rack.index]
        racks = self.racks[number]
        left = racks[was] ^ rack.flag
        racks[was] = left
        if not left:
            self.racks_present[number] ^= 1 << was
            others = self.fabrics_with_rack[was] ^ fabric.flag
            self.fabrics_with_rack[was] = others
            if not others:
                self.rooms_of_racks ^= 1 << was
        self.of_rack[rack.index] = was + by
        self._rack_is(rack, was + by)
        was = self.of_fabric[number]
        now = self.of_fabric[number] = was + by
        left = self.fabrics[was] ^ fabric.flag
        self.fabrics[was] = left
        if not left:
            self.fabrics_present ^= 1 << was
        self.fabrics[now] |= fabric.flag
        self.fabrics_present |= 1 << now
        self.total += by

    def _rack_is(self, rack: "Rack", room: int) -> None:
        fabric = rack.fabric
        racks, bit = self.racks[fabric.number], 1 << room
        if not racks[room]:
            self.racks_present[fabric.number] |= bit
            self.fabrics_with_rack[room] |= fabric.flag
            self.rooms_of_racks |= bit
        racks[room] |= rack.flag

    def most(self) -> dict[str, int]:
        """Return the most replicas that fit into one rack, one fabric, the site."""
        return {
            "rack": max(0, self.rooms_of_racks.bit_length() - 1),
            "fabric": max(0, self.fabrics_present.bit_length() - 1),
            "site": self.total,
        }


def least_at_or_above(present: int, wanted: int) -> int:
    """Return the smallest number in a mask of numbers that is at least `wanted`; -1 where there is none."""
    above = present >> wanted
    return wanted + (above & -above).bit_length() - 1 if above else -1


def one_of(bits: int, tie: int) -> int:
    """Return the position of a bit: the first from a place on that depends on `tie`, around the end."""
    above = bits >> (tie % bits.bit_length())
    if above:
        return tie % bits.bit_length() + (above & -above).bit_length() - 1
    return (bits & -bits).bit_length() - 1
