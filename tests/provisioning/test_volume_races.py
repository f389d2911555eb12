"""Two at the same moment, each with a connection of its own: one wins, and the meter never runs for nobody."""

from functools import partial

import pytest
from django.utils import timezone

from billing import books
from billing.models import UsageSpan
from marketplace import volumes as shop
from provisioning import upkeep, volumes
from provisioning.models import Volume, VolumeAttachment
from tests.billing.makers import at_the_same_moment
from tests.conftest import Rent, Run, Storage

pytestmark = pytest.mark.django_db(transaction=True)


def rent_with(rent: Rent, volume: Volume) -> None:
    rent(uses=[volumes.Use(volume, "/data")])


def test_two_orders_for_one_volume_give_it_to_one(storage: Storage, rent: Rent) -> None:
    volume = storage.make()
    assert at_the_same_moment(*[partial(rent_with, rent, volume)] * 2) == ["IllegalMove", "done"]
    assert VolumeAttachment.objects.filter(detached_at=None).count() == 1


def test_an_order_and_a_deletion_at_once_leave_no_deleted_volume_in_use(storage: Storage, rent: Rent) -> None:
    for number in range(3):
        volume = storage.make(f"data-{number}")
        delete = partial(shop.delete, actor=storage.actor, volume=volume, at=timezone.now())
        assert at_the_same_moment(partial(rent_with, rent, volume), delete) == ["IllegalMove", "done"]
        volume.refresh_from_db()
        in_use = VolumeAttachment.objects.filter(volume=volume, detached_at=None).exists()
        assert volume.state == ("attached" if in_use else "deleting")
        assert UsageSpan.objects.filter(resource_id=volume.public_id, ended_at=None).exists() == in_use


def test_two_sweeps_at_once_open_one_meter(storage: Storage) -> None:
    volume = storage.make(is_ready=False)
    storage.fleet.sync()
    storage.fleet.sync()
    at_the_same_moment(*[partial(upkeep.settle, volume.pk, at=timezone.now())] * 2)
    assert UsageSpan.objects.filter(resource_id=volume.public_id).count() == 1
    assert Volume.objects.get().state == "available"


def test_growing_and_deleting_at_once_leave_no_meter_open(storage: Storage) -> None:
    volume = storage.make()
    now = timezone.now()
    at_the_same_moment(
        partial(shop.resize, actor=storage.actor, volume=volume, size_gib=200, at=now),
        partial(shop.delete, actor=storage.actor, volume=volume, at=now),
    )
    assert Volume.objects.get().state == "deleting"
    assert not UsageSpan.objects.filter(ended_at=None).exists()
    assert books.check(at=timezone.now()) == []


def test_a_snapshot_and_a_start_at_once_never_both_happen_to_a_running_writer(
    storage: Storage, rent: Rent, run_until_idle: Run
) -> None:
    volume = storage.make()
    snapshot = partial(shop.snapshot, actor=storage.actor, volume=volume, name="copy", at=timezone.now())
    assert at_the_same_moment(partial(rent_with, rent, volume), snapshot) == ["IllegalMove", "done"]
