"""How the GPUs of a node are joined, as a small table, and what each says it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from provisioning.models import Gpu, Node, NodeInventory

# Beyond this a table is no help to anybody.
GPUS_MAX = 16
FACTS: dict[str, str | Promise] = {
    "serial": _("Serial"),
    "board_part": _("Board part"),
    "vbios": "VBIOS",
    "pci_bus_id": "PCI",
    "pcie_generation_max": _("PCIe generation"),
    "pcie_width_max": _("PCIe lanes"),
    "numa_node": _("NUMA node"),
    "ecc": "ECC",
    "mig": "MIG",
    "mig_devices": _("MIG devices"),
    "nvlinks": "NVLink",
    "nvlinks_up": _("NVLinks up"),
    "nvlinks_down": _("NVLinks down"),
}


@dataclass(frozen=True)
class Wiring:
    """The kind of the way from each GPU to each other; None where the node did not tell."""

    indices: list[int]
    rows: list[tuple[int, list[str | None]]]


def inventory_of(node: Node) -> NodeInventory | None:
    """Return what a node last said it has, or None if it never did."""
    return getattr(node, "inventory", None)


def wiring(node: Node, gpus: Sequence[Gpu]) -> Wiring | None:
    """Return how a node's GPUs are joined; None where it did not tell, or has too many for a table."""
    told = inventory_of(node)
    if told is None or not told.links or len(gpus) > GPUS_MAX:
        return None
    kinds = {frozenset((link["a"], link["b"])): link["kind"] for link in told.links}
    rows = [
        (one.index, ["·" if one == other else kinds.get(frozenset((one.uuid, other.uuid))) for other in gpus])
        for one in gpus
    ]
    return Wiring(indices=[gpu.index for gpu in gpus], rows=rows)


def facts(gpu: Gpu) -> list[tuple[str | Promise, Any]]:
    """Return what a GPU says it is, in our words and order; None is what it does not tell."""
    return [(title, gpu.facts[name]) for name, title in FACTS.items() if name in gpu.facts]
