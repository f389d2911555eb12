"""Every gang of containers gets a private network; its numbers follow from the instance."""

import ipaddress

import pytest

from provisioning.models import Instance
from provisioning.networks import network_of


def gang(pk: int, *, replicas: int = 2, image: str = "docker.io/library/busybox:1") -> Instance:
    return Instance(pk=pk, replicas=replicas, image=image)


def test_what_stands_alone_and_what_is_no_container_has_none():
    assert network_of(gang(7, replicas=1), replica=0) is None
    assert network_of(gang(7, image=""), replica=0) is None
    assert network_of(gang(7, replicas=1001), replica=0) is None


@pytest.mark.parametrize("replicas", [2, 120, 121, 1000])
def test_addresses_follow_each_other_and_leave_room_for_a_gateway_on_each_host(replicas):
    networks = [network_of(gang(40_000, replicas=replicas), replica=number) for number in range(replicas)]
    assert len({(one["vni"], one["subnet"]) for one in networks}) == 1
    subnet = ipaddress.ip_network(networks[0]["subnet"])
    addresses = [ipaddress.ip_address(one["address"]) for one in networks]
    assert [int(address) - int(addresses[0]) for address in addresses] == list(range(replicas))
    gateways = [subnet.broadcast_address - 1 - number for number in range(replicas)]
    assert set(gateways).isdisjoint(addresses)
    assert all(address in subnet for address in gateways + addresses)


def test_neighbours_by_number_do_not_overlap(settings):
    pool = ipaddress.ip_network(settings.GANG_NETWORKS)
    found = [network_of(gang(pk), replica=0) for pk in range(1, 300)]
    subnets = [ipaddress.ip_network(one["subnet"]) for one in found]
    assert len(set(subnets)) == len({one["vni"] for one in found}) == 299
    assert all(subnet.subnet_of(pool) for subnet in subnets)
