"""How large a gang can start now, by offer, and what is in the way of a larger one."""

from collections.abc import Sequence
from dataclasses import dataclass

from marketplace.models import Offer
from provisioning import decisions, prospects
from provisioning.models import Node
from provisioning.placing.reasons import Hints


@dataclass(frozen=True)
class Room:
    """An offer's room. `moves` are nodes that would be whole again if so many GPUs in use moved elsewhere."""

    offer: Offer
    hints: Hints
    out: Sequence[tuple[str, int]]
    moves: Sequence[tuple[Node, int]]

    @property
    def largest_gpus(self) -> int:
        """The GPUs of the largest gang that can start inside one fabric."""
        return self.hints.largest["fabric"] * self.offer.gpus_per_node


def rooms() -> list[Room]:
    """Return the room of every offer, by site. Three queries, and one for each offer."""
    offers = Offer.objects.select_related("site", "supplier").order_by("site__name", "name")
    found = [(offer, prospects.hints(offer.pk)) for offer in offers]
    nodes = Node.objects.in_bulk([node_id for _, hints in found for node_id, _ in hints.easiest])
    return [
        Room(
            offer=offer,
            hints=hints,
            out=decisions.reasons(hints.out),
            moves=[(nodes[node_id], used) for node_id, used in hints.easiest],
        )
        for offer, hints in found
    ]
