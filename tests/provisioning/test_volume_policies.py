"""Policies and volumes: where data of a tenant may come to lie, and that nothing that lies there is moved by one."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from marketplace import volumes as doors
from marketplace.models import Offer
from provisioning import nodes, policies
from provisioning.errors import NoRoom, PolicyExcludes
from provisioning.models import Heartbeat, Node, Site, Volume
from tests.conftest import Storage, make_organization, make_person

pytestmark = pytest.mark.django_db


def rule(storage: Storage, **document: Any) -> None:
    policies.replace(project_id=storage.project.pk, document=document, version=None, at=timezone.now())


def sold_by_another(offer: Offer) -> str:
    """Let another supplier sell an offer, and return its id."""
    other = make_organization("Another supplier", make_person("supplier@other.example"), credit_micros=0)
    Offer.objects.filter(pk=offer.pk).update(supplier=other)
    return other.public_id


@pytest.mark.parametrize("kind", Site.VolumeKind.values)
def test_a_policy_keeps_volumes_out_of_a_site(storage: Storage, kind: str) -> None:
    Site.objects.update(volume_kind=kind)
    storage.site.refresh_from_db()
    rule(storage, countries={"deny": ["NO"]})
    with pytest.raises(PolicyExcludes, match="keeps the volume out of Narvik: it is in a country that a policy"):
        storage.make()
    assert not Volume.objects.exists()
    rule(storage)
    assert storage.make().state == "available"


def test_a_volume_goes_only_to_nodes_of_suppliers_that_are_allowed(storage: Storage) -> None:
    rule(storage, suppliers={"allow": [sold_by_another(storage.fleet.l40s)]})
    names = {storage.make(f"data-{number}", offer=None).node.name for number in range(3)}
    assert names == {"l40s-1"}
    with pytest.raises(PolicyExcludes):
        storage.make("elsewhere", offer=storage.fleet.h200)


def test_a_local_volume_lies_on_no_node_that_is_kept_whole_for_somebody_else(storage: Storage) -> None:
    other = make_organization("Other", make_person("other@example.com"))
    Node.objects.filter(name="h200-1").update(exclusive_to=other)
    Node.objects.filter(name="h200-2").update(exclusive_to=storage.project.organization)
    assert {storage.make(f"data-{number}").node.name for number in range(2)} == {"h200-2"}
    Node.objects.filter(name="h200-2").update(exclusive_to=other)
    with pytest.raises(NoRoom):
        storage.make("late")


def test_a_shared_volume_is_handed_only_to_a_node_that_policies_allow(storage: Storage) -> None:
    Site.objects.update(volume_kind="shared")
    storage.site.refresh_from_db()
    volume = storage.make(offer=storage.fleet.l40s)
    rule(storage, suppliers={"deny": [storage.fleet.h200.supplier.public_id]})
    sold_by_another(storage.fleet.l40s)
    keeper = storage.node_of(volume)
    Heartbeat.objects.filter(node=keeper.node).update(last_seen=timezone.now() - timedelta(hours=1))
    keeper.is_silent = True
    nodes.notice_silence(at=timezone.now(), limit=10)
    assert storage.settle(volume).node_id == keeper.node.pk


def test_a_copy_lies_beside_its_source_whatever_was_ruled_since(storage: Storage) -> None:
    volume = storage.make()
    rule(storage, countries={"deny": ["NO"]})
    copy = doors.snapshot(actor=storage.actor, volume=volume, name="copy", at=timezone.now())
    assert copy.node_id == volume.node_id
