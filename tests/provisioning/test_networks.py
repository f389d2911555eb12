"""Every gang of containers gets a private network; its numbers follow from the instance."""

import ipaddress

import pytest
from django.db.models import F
from django.utils import timezone

from marketplace import rentals
from marketplace.access import Actor
from marketplace.models import Offer, Project
from provisioning.models import Assignment, Heartbeat, Instance, Node
from provisioning.networks import network_of
from tests.conftest import Fleet, order
from tests.provisioning.test_registries import ask


def gang(pk: int, *, replicas: int = 2, image: str = "docker.io/library/busybox:1") -> Instance:
    return Instance(pk=pk, replicas=replicas, image=image)


def test_what_stands_alone_and_what_is_no_container_has_none():
    assert network_of(gang(7, replicas=1), replica=0, encrypted=False) is None
    assert network_of(gang(7, image=""), replica=0, encrypted=False) is None
    assert network_of(gang(7, replicas=1001), replica=0, encrypted=False) is None


@pytest.mark.parametrize("replicas", [2, 120, 121, 1000])
def test_addresses_follow_each_other_and_leave_room_for_a_gateway_on_each_host(replicas):
    networks = [
        network_of(gang(40_000, replicas=replicas), replica=number, encrypted=False) for number in range(replicas)
    ]
    assert len({(one["vni"], one["subnet"]) for one in networks}) == 1
    subnet = ipaddress.ip_network(networks[0]["subnet"])
    addresses = [ipaddress.ip_address(one["address"]) for one in networks]
    assert [int(address) - int(addresses[0]) for address in addresses] == list(range(replicas))
    gateways = [subnet.broadcast_address - 1 - number for number in range(replicas)]
    assert set(gateways).isdisjoint(addresses)
    assert all(address in subnet for address in gateways + addresses)


def test_neighbours_by_number_do_not_overlap(settings):
    pool = ipaddress.ip_network(settings.GANG_NETWORKS)
    found = [network_of(gang(pk), replica=0, encrypted=False) for pk in range(1, 300)]
    subnets = [ipaddress.ip_network(one["subnet"]) for one in found]
    assert len(set(subnets)) == len({one["vni"] for one in found}) == 299
    assert all(subnet.subnet_of(pool) for subnet in subnets)


@pytest.fixture
def members(actor: Actor, project: Project, fleet: Fleet) -> list[Assignment]:
    """A gang of two whole nodes that was just placed."""
    Offer.objects.filter(pk=fleet.h200.pk).update(runtime="podman")
    fleet.h200.refresh_from_db()
    shape = {"replicas": 2, "gpus": fleet.h200.gpus_per_node}
    rented = rentals.rent(
        actor=actor, project=project, at=timezone.now(),
        order=order(fleet.h200, image="docker.io/library/busybox:1", command=[], **shape),
    )  # fmt: skip
    return list(Assignment.objects.filter(instance=rented).select_related("node", "instance").order_by("replica"))


@pytest.mark.django_db
def test_the_members_of_a_gang_are_given_one_key_and_each_run_another(
    members: list[Assignment], fleet: Fleet, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    answers = [ask(member, fleet, of="network") for member in members]
    keys = {answer.json()["network"]["key"] for answer in answers}
    assert len(keys) == 1
    (key,) = keys
    assert len(bytes.fromhex(key)) == 32
    assert answers[0].headers["Cache-Control"] == "no-store"
    logged = caplog.text + "".join(capfd.readouterr())
    assert "network key handed out" in logged
    assert key not in logged
    Instance.objects.update(run=2)
    Assignment.objects.update(fence=2)
    members[0].refresh_from_db()
    assert ask(members[0], fleet, of="network").json()["network"]["key"] != key


@pytest.mark.django_db
def test_nobody_else_is_given_the_key(members: list[Assignment], fleet: Fleet) -> None:
    stranger = next(one for one in fleet.nodes.values() if one.node.pk not in {row.node_id for row in members})
    refused = [
        ask(members[0], fleet, of="network", node=stranger.node.public_id, key=stranger.key),
        ask(members[0], fleet, of="network", assignment=members[1].public_id),
        ask(members[0], fleet, of="network", fence=2),
        ask(members[0], fleet, of="network", key="another"),
    ]
    assert [answer.status_code for answer in refused] == [409, 409, 409, 401]
    Instance.objects.update(replicas=1)
    assert ask(members[0], fleet, of="network").status_code == 409


@pytest.mark.django_db
def test_a_gang_is_encrypted_where_all_of_its_nodes_can(members: list[Assignment], fleet: Fleet) -> None:
    def told() -> list[bool]:
        Node.objects.update(desired_generation=F("desired_generation") + 1)
        rows = [fleet.nodes[member.node.name].sync()["desired"]["assignments"][0] for member in members]
        return [row["network"]["encrypted"] for row in rows]

    assert told() == [False, False]
    Heartbeat.objects.filter(node=members[0].node).update(encrypts=True)
    assert told() == [False, False]
    Heartbeat.objects.filter(node=members[1].node).update(encrypts=True)
    assert told() == [True, True]
