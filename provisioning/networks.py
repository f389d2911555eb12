"""The private networks of gangs.

Number and addresses follow from the instance alone, so nothing is kept and nothing can leak. Two networks meet only
on a node that is in both: there the second one is refused with its reason, and the chance of that is one in the
number of blocks. The addresses of the replicas follow each other; from the far end, each host takes one as the gateway
of its own part.
"""

import ipaddress
from typing import Any

import structlog
from django.conf import settings

from provisioning import registries
from provisioning.errors import NotAssigned
from provisioning.models import Instance
from provisioning.secrets import derived

log = structlog.get_logger("provisioning.networks")

VNI_FIRST, VNIS = 4096, (1 << 24) - 4096  # The lower ones are often used by whoever runs the site.
FIRST_ADDRESS = 10
SMALL_PREFIX, SMALL_REPLICAS_MAX = 24, 120
LARGE_PREFIX, LARGE_REPLICAS_MAX = 21, 1000


def network_of(instance: Instance, *, replica: int, encrypted: bool) -> dict[str, Any] | None:
    """Return the network of a gang of containers as the protocol spells it, with this replica's address.

    `encrypted` says whether the gang's hosts encrypt what goes between them: all can, or none does.

    None for what stands alone, for processes, and for gangs that are larger than any block.
    """
    if instance.replicas == 1 or not instance.image or instance.replicas > LARGE_REPLICAS_MAX:
        return None
    pool = ipaddress.ip_network(settings.GANG_NETWORKS)
    prefix = SMALL_PREFIX if instance.replicas <= SMALL_REPLICAS_MAX else LARGE_PREFIX
    blocks = 1 << (prefix - pool.prefixlen)
    size = 1 << (pool.max_prefixlen - prefix)
    subnet = ipaddress.ip_network((int(pool.network_address) + instance.pk % blocks * size, prefix))
    return {
        "vni": VNI_FIRST + instance.pk % VNIS,
        "subnet": str(subnet),
        "address": str(subnet.network_address + FIRST_ADDRESS + replica),
        "encrypted": encrypted,
    }


def key_for(*, node: str, key: str, assignment: str, fence: int) -> str:
    """Return the key of a gang's network, in hexadecimal, to a node that is about to prepare a replica of it.

    It follows from our secret key, the instance and its run: nothing is kept, and each run has another.
    Raises NodeUnknown, NotAssigned.
    """
    row = registries.in_preparation(node=node, key=key, assignment=assignment, fence=fence)
    if network_of(row.instance, replica=row.replica, encrypted=True) is None:
        raise NotAssigned("This assignment has no private network.")
    log.info("network key handed out", instance=row.instance.public_id, assignment=assignment, node=node)
    return derived(f"gang network 1 {row.instance.public_id} {row.fence}").hex()
