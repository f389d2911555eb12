"""Volumes from the order to the last byte: who may use one, what it costs meanwhile, and what survives."""

from datetime import timedelta

import pytest
import time_machine
from django.db import IntegrityError, transaction
from django.utils import timezone

from billing import books
from billing.models import UsageSpan
from marketplace import rentals
from marketplace import volumes as shop
from provisioning import nodes, upkeep, volumes
from provisioning.errors import IllegalMove, NoCapacity, NoRoom
from provisioning.models import GIB, Heartbeat, Instance, Node, Site, Volume, VolumeAttachment
from tests.conftest import make_offer
from tests.nodes import announce, join

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)
State, Health = Volume.State, Volume.Health


def later():
    """Hold the clock still, on a whole second after everything that the stage was built with."""
    return time_machine.travel(timezone.now().replace(microsecond=0) + HOUR, tick=False)


def balanced():
    return books.check(at=timezone.now() + 999 * HOUR) == []


def spans(volume):
    return list(UsageSpan.objects.filter(resource_id=volume.public_id).order_by("pk"))


def hours(volume):
    return [round((span.ended_at - span.started_at) / HOUR, 3) if span.ended_at else None for span in spans(volume)]


def use(volume, path="/data"):
    return volumes.Use(volume, path)


def stop(instance, actor, run_until_idle):
    rentals.stop(actor=actor, instance=instance, at=timezone.now())
    run_until_idle()
    instance.refresh_from_db()
    assert instance.phase == "stopped"
    return instance


def test_a_volume_is_charged_from_when_its_node_has_it_until_its_deletion_is_asked_for(storage, actor):
    with later() as clock:
        volume = storage.make(is_ready=False)
        assert (volume.state, spans(volume)) == (State.CREATING, [])
        clock.shift(HOUR)
        volume = storage.settle(volume)
        assert (volume.state, volume.ready_at, volume.used_bytes) == (State.AVAILABLE, timezone.now(), 0)
        clock.shift(10 * HOUR)
        shop.delete(actor=actor, volume=volume, at=timezone.now())
        clock.shift(71 * HOUR)
        volume = storage.settle(volume)
        assert (volume.state, volume.desired, volume.can_be_restored) == (State.DELETING, "present", True)
        clock.shift(2 * HOUR)
        volume = storage.settle(volume)
        assert volume.state == State.DELETED
        assert storage.node_of(volume).volumes == {}
    assert hours(volume) == [10.0]
    (span,) = spans(volume)
    assert (span.meter, span.quantity, span.charged_micros) == ("volume", 100, 100 * 100 * 10)
    assert balanced()


def test_a_deletion_that_is_taken_back_was_never_asked_for_and_is_charged_like_that(storage, actor):
    with later() as clock:
        volume = storage.make()
        clock.shift(HOUR)
        shop.delete(actor=actor, volume=volume, at=timezone.now())
        clock.shift(60 * HOUR)
        volume = storage.settle(volume)
        shop.restore(actor=actor, volume=volume, at=timezone.now())
        clock.shift(30 * HOUR)
        volume = storage.settle(volume)
        assert volume.state == State.AVAILABLE
        shop.delete(actor=actor, volume=volume, at=timezone.now())
    assert hours(volume) == [1.0, 90.0]
    assert balanced()


def test_once_removed_nothing_can_be_taken_back(storage, actor):
    with later() as clock:
        volume = storage.make()
        shop.delete(actor=actor, volume=volume, at=timezone.now())
        clock.shift(volumes.GRACE)
        upkeep.settle(volume.pk, at=timezone.now())
        volume.refresh_from_db()
        assert (volume.state, volume.desired) == (State.DELETING, "gone")
        with pytest.raises(IllegalMove):
            shop.restore(actor=actor, volume=volume, at=timezone.now())


def test_a_volume_that_could_not_be_made_says_why_costs_nothing_and_can_be_cleared_away(storage, actor):
    for node in storage.fleet.nodes.values():
        node.volume_trouble = "the disk has 3 GiB free"
    volume = storage.make()
    assert (volume.state, volume.message, spans(volume)) == (State.FAILED, "the disk has 3 GiB free", [])
    for node in storage.fleet.nodes.values():
        node.volume_trouble = ""
    assert storage.settle(volume).state == State.FAILED
    shop.delete(actor=actor, volume=volume, at=timezone.now())
    assert storage.settle(volume).state == State.DELETED


def test_a_volume_goes_to_the_node_that_keeps_the_fewest_of_the_offer(storage):
    made = [storage.make(f"data-{number}") for number in range(4)]
    assert sorted(volume.node.name for volume in made) == ["h200-1", "h200-1", "h200-2", "h200-2"]
    assert storage.make("other", offer=storage.fleet.l40s).node.name == "l40s-1"


def test_an_instance_runs_where_its_local_volume_lies(storage, rent, run_until_idle):
    first = storage.make("first")
    rent(gpus=1)  # the best fit is now the other node, if nothing held it here
    instance = rent(uses=[use(first)])
    run_until_idle()
    assert [row.node_id for row in instance.assignments.all()] == [first.node_id]
    (entry,) = [one for one in storage.node_of(first).desired.values() if one["instance"] == instance.public_id]
    assert entry["volumes"] == [{"id": first.public_id, "path": "/data", "name": "first", "read_only": False}]
    assert Volume.objects.get(pk=first.pk).state == State.ATTACHED


def test_when_that_node_is_full_the_refusal_says_so(storage, rent):
    volume = storage.make()
    while Node.objects.get(pk=volume.node_id).free_gpus:
        rent(gpus=8)
    with pytest.raises(NoCapacity, match=rf"Its volume lies on node {volume.node.name}, which has too few free GPUs"):
        rent(uses=[use(volume)])
    assert Volume.objects.get(pk=volume.pk).state == State.AVAILABLE


def test_an_offer_of_other_nodes_is_refused_with_a_reason(storage, rent):
    volume = storage.make()
    with pytest.raises(NoCapacity, match="which is not of L40S in Narvik"):
        rent(offer=storage.fleet.l40s, uses=[use(volume)])


def test_volumes_on_different_nodes_cannot_be_used_together(storage, rent):
    one, other = storage.make("one"), storage.make("other")
    with pytest.raises(NoCapacity, match="lie on different nodes"):
        rent(uses=[use(one, "/one"), use(other, "/other")])


def test_homes_of_many_are_one_question_and_who_has_volumes_on_two_nodes_has_none(
    storage, rent, django_assert_num_queries
):
    one, other = storage.make("one"), storage.make("other")
    chosen = [rent(uses=[use(one)]).pk, rent().pk]
    rows = list(Instance.objects.filter(pk__in=chosen))
    with django_assert_num_queries(1):
        assert volumes.homes_of(rows) == {chosen[0]: one.node_id, chosen[1]: None}
    assert one.node_id != other.node_id
    VolumeAttachment.objects.create(volume=other, instance_id=chosen[0], path="/other", attached_at=timezone.now())
    assert volumes.homes_of(Instance.objects.filter(pk__in=chosen)) == {chosen[1]: None}


def test_a_start_again_goes_back_to_the_volume(storage, rent, run_until_idle, actor):
    volume = storage.make()
    instance = rent(uses=[use(volume)])
    run_until_idle()
    instance.refresh_from_db()
    instance = stop(instance, actor, run_until_idle)
    rent(gpus=1)
    rentals.start(actor=actor, instance=instance, at=timezone.now())
    run_until_idle()
    assert {row.node_id for row in instance.assignments.all()} == {volume.node_id}


def test_a_volume_has_one_user_at_a_time(storage, rent):
    volume = storage.make()
    rent(uses=[use(volume)])
    with pytest.raises(IllegalMove, match="data is attached already"):
        rent(uses=[use(volume)])


def test_the_database_refuses_a_second_user_too(storage, rent):
    volume = storage.make()
    rent(uses=[use(volume)])
    other = rent()
    with pytest.raises(IntegrityError, match="volume_attached_to_one_instance_at_a_time"), transaction.atomic():
        VolumeAttachment.objects.create(volume=volume, instance=other, path="/x", attached_at=timezone.now())


def test_the_database_refuses_an_instance_in_another_site(storage, rent, operator):
    volume, other = storage.make(), rent()
    elsewhere = Site.objects.get()
    elsewhere.pk, elsewhere.public_id, elsewhere.slug = None, "sit_elsewhere", "elsewhere"
    elsewhere.save()
    type(other).objects.filter(pk=other.pk).update(
        offer=make_offer(operator, elsewhere, slug="h200-else", gpu_model="H200", price_micros=1)
    )
    with pytest.raises(IntegrityError, match="volume_attached_within_its_site"), transaction.atomic():
        VolumeAttachment.objects.create(volume=volume, instance=other, path="/x", attached_at=timezone.now())


def test_what_is_attached_is_let_go_when_the_instance_has_ended_for_good(storage, rent, run_until_idle, actor):
    volume = storage.make()
    instance = rent(uses=[use(volume)])
    run_until_idle()
    instance.refresh_from_db()
    rentals.terminate(actor=actor, instance=instance, at=timezone.now())
    assert Volume.objects.get(pk=volume.pk).state == State.ATTACHED
    run_until_idle()
    assert Volume.objects.get(pk=volume.pk).state == State.AVAILABLE
    assert VolumeAttachment.objects.get().detached_at is not None


def test_a_volume_is_attached_and_detached_only_at_rest(storage, rent, run_until_idle, actor, running):
    volume = storage.make()
    with pytest.raises(IllegalMove, match="is Running; stop it first"):
        shop.attach(actor=actor, use=use(volume), instance=running, at=timezone.now())
    stop(running, actor, run_until_idle)
    node = running.assignments.get().node
    Volume.objects.filter(pk=volume.pk).update(node=node)
    shop.attach(actor=actor, use=use(volume), instance=running, at=timezone.now())
    rentals.start(actor=actor, instance=running, at=timezone.now())
    run_until_idle()
    with pytest.raises(IllegalMove, match="is Running; stop it first"):
        shop.detach(actor=actor, volume=Volume.objects.get(pk=volume.pk), at=timezone.now())
    running.refresh_from_db()
    stop(running, actor, run_until_idle)
    shop.detach(actor=actor, volume=Volume.objects.get(pk=volume.pk), at=timezone.now())
    assert Volume.objects.get(pk=volume.pk).state == State.AVAILABLE


def test_an_attached_volume_is_charged_when_nothing_runs(storage, rent, run_until_idle, actor):
    with later() as clock:
        volume = storage.make()
        instance = rent(uses=[use(volume)])
        run_until_idle()
        instance.refresh_from_db()
        stop(instance, actor, run_until_idle)
        clock.shift(5 * HOUR)
        assert hours(volume) == [None]


def test_what_is_attached_cannot_be_deleted(storage, rent, actor):
    volume = storage.make()
    rent(uses=[use(volume)])
    with pytest.raises(IllegalMove, match="data is attached; detach it first"):
        shop.delete(actor=actor, volume=Volume.objects.get(pk=volume.pk), at=timezone.now())


def test_while_its_node_is_silent_a_volume_is_unreachable_and_costs_nothing(storage, actor, rent):
    with later() as clock:
        volume = storage.make()
        node = storage.node_of(volume)
        clock.shift(HOUR)
        Heartbeat.objects.filter(node=node.node).update(last_seen=timezone.now())
        node.is_silent = True
        clock.shift(timedelta(minutes=2))
        nodes.notice_silence(at=timezone.now(), limit=10)
        volume = storage.settle(volume)
        assert (volume.state, volume.health, hours(volume)) == (State.AVAILABLE, Health.UNREACHABLE, [1.0])
        with pytest.raises(IllegalMove, match="cannot be reached now"):
            rent(uses=[use(volume)])
        clock.shift(HOUR)
        node.is_silent = False
        volume = storage.settle(volume)
        assert (volume.health, hours(volume)) == (Health.OK, [1.0, None])
    assert balanced()


def test_a_volume_that_its_node_cannot_find_is_missing_and_never_made_anew(storage):
    volume = storage.make()
    node = storage.node_of(volume)
    node.volumes.clear()
    volume = storage.settle(volume)
    assert (volume.health, volume.message) == (Health.MISSING, "it is not here any more")
    assert spans(volume)[-1].ended_at is not None
    assert node.volumes == {}
    node.volumes[volume.public_id] = 5
    assert storage.settle(volume).health == Health.OK


def test_after_silence_the_node_has_to_say_again_that_the_volume_is_there(storage):
    volume = storage.make()
    node = storage.node_of(volume)
    Heartbeat.objects.filter(node=node.node).update(last_seen=timezone.now() - HOUR)
    node.is_silent = True
    nodes.notice_silence(at=timezone.now(), limit=10)
    storage.settle(volume)
    node.volumes.clear()
    node.is_silent = False
    volume = storage.settle(volume)
    assert volume.health == Health.MISSING
    assert len(spans(volume)) == 1


def test_a_shared_volume_is_handed_to_another_node_and_goes_on_being_charged(storage):
    Site.objects.update(volume_kind="shared")
    storage.site.refresh_from_db()
    volume = storage.make()
    keeper = storage.node_of(volume)
    for node in storage.fleet.nodes.values():
        node.volumes = keeper.volumes
    Heartbeat.objects.filter(node=keeper.node).update(last_seen=timezone.now() - HOUR)
    keeper.is_silent = True
    nodes.notice_silence(at=timezone.now(), limit=10)
    volume = storage.settle(volume)
    assert volume.node_id != keeper.node.pk
    assert (volume.health, hours(volume)) == (Health.OK, [None])


def test_a_shared_volume_binds_an_instance_to_no_node(storage, rent):
    Site.objects.update(volume_kind="shared")
    storage.site.refresh_from_db()
    one, other = storage.make("one"), storage.make("other", offer=storage.fleet.l40s)
    instance = rent(uses=[use(one, "/one"), use(other, "/other")])
    assert instance.assignments.count() == 1


def test_a_snapshot_is_a_copy_that_stays_as_it_is(storage, actor, rent):
    volume = storage.make()
    storage.node_of(volume).volumes[volume.public_id] = 7 * GIB
    copy = storage.settle(shop.snapshot(actor=actor, volume=volume, name="monday", at=timezone.now()))
    assert (copy.state, copy.used_bytes, copy.node_id, copy.size_gib) == (
        State.AVAILABLE, 7 * GIB, volume.node_id, 100,
    )  # fmt: skip
    with pytest.raises(IllegalMove, match="monday is a snapshot"):
        rent(uses=[use(copy)])
    with pytest.raises(IllegalMove, match="monday is a snapshot"):
        shop.resize(actor=actor, volume=copy, size_gib=200, at=timezone.now())
    again = storage.make("tuesday", source=copy, size_gib=150)
    assert (again.used_bytes, again.is_snapshot) == (7 * GIB, False)
    rent(uses=[use(again)])


def test_nothing_is_copied_while_somebody_writes_and_nothing_written_while_it_is_copied(storage, actor, rent,
                                                                                        run_until_idle):  # fmt: skip
    volume = storage.make()
    instance = rent(uses=[use(volume)])
    run_until_idle()
    instance.refresh_from_db()
    with pytest.raises(IllegalMove, match="data is in use; stop h200-"):
        shop.snapshot(actor=actor, volume=Volume.objects.get(pk=volume.pk), name="monday", at=timezone.now())
    stop(instance, actor, run_until_idle)
    copy = shop.snapshot(actor=actor, volume=Volume.objects.get(pk=volume.pk), name="monday", at=timezone.now())
    with pytest.raises(IllegalMove, match="data is being copied"):
        rentals.start(actor=actor, instance=instance, at=timezone.now())
    storage.settle(copy)
    rentals.start(actor=actor, instance=instance, at=timezone.now())


def test_a_source_is_not_removed_before_its_copy_is_made(storage, actor):
    with later() as clock:
        volume = storage.make()
        copy = shop.snapshot(actor=actor, volume=volume, name="monday", at=timezone.now())
        shop.delete(actor=actor, volume=volume, at=timezone.now())
        clock.shift(volumes.GRACE)
        upkeep.settle(volume.pk, at=timezone.now())
        volume.refresh_from_db()
        assert volume.desired == "present"
        assert storage.settle(copy).state == State.AVAILABLE
        assert storage.settle(volume).state == State.DELETED


def test_a_bigger_volume_is_charged_by_its_size_from_that_moment_on(storage, actor):
    with later() as clock:
        volume = storage.make()
        clock.shift(HOUR)
        shop.resize(actor=actor, volume=volume, size_gib=250, at=timezone.now())
        with pytest.raises(IllegalMove, match="can only grow"):
            shop.resize(actor=actor, volume=volume, size_gib=100, at=timezone.now())
        clock.shift(HOUR)
        shop.delete(actor=actor, volume=Volume.objects.get(pk=volume.pk), at=timezone.now())
    assert [(span.quantity, span.charged_micros) for span in spans(volume)] == [(100, 10_000), (250, 25_000)]
    assert balanced()


def test_what_holds_more_than_its_size_has_to_grow_before_it_is_attached_again(storage, actor, rent):
    volume = storage.make(size_gib=1)
    storage.node_of(volume).volumes[volume.public_id] = GIB + 1
    volume = storage.settle(volume)
    assert volume.used_percent == 100
    with pytest.raises(IllegalMove, match="holds more than its 1 GiB"):
        rent(uses=[use(volume)])
    shop.resize(actor=actor, volume=volume, size_gib=2, at=timezone.now())
    rent(uses=[use(volume)])


@pytest.mark.parametrize(
    "path",
    ["data", "", "/", "//data", "/data/", "/data/../etc", "/./data", "/etc", "/etc/x", "/usr/local/x", "/proc/1",
     "/home", "/a b", "/a:b", "/a,b", "/a\n", "/a\0b", "/" + 200 * "a", "/varié"],
)  # fmt: skip
def test_a_path_is_absolute_plain_and_not_the_systems(path):
    assert volumes.why_no_path(path)


def test_the_folder_of_work_is_no_path_of_a_volume():
    assert volumes.why_no_path("/workspace") == "/workspace belongs to the system; use a folder such as /data."


@pytest.mark.parametrize("path", ["/data", "/mnt/data", "/opt/me/.cache", "/workspace/a-b_c.d", "/srv/x", "/..."])
def test_other_paths_are_good(path):
    assert volumes.why_no_path(path) == ""


def test_only_the_node_that_keeps_a_volume_can_say_something_of_it(storage):
    volume = storage.make()
    other = next(node for node in storage.fleet.nodes.values() if node.node.pk != volume.node_id)
    other.wanted_volumes = {volume.public_id: {"id": volume.public_id, "desired": "gone"}}
    assert storage.settle(volume).state == State.AVAILABLE


def test_a_node_that_keeps_what_we_do_not_know_is_told_nothing_and_noted(storage):
    node = next(iter(storage.fleet.nodes.values()))
    node.wanted_volumes = {"vol_stranger": {"id": "vol_stranger", "desired": "present", "made": False, "source": ""}}
    node.sync()
    assert Heartbeat.objects.get(node=node.node).stray_volumes == ["vol_stranger"]


def test_without_a_node_that_answers_no_volume_is_made(storage, operator, site):
    Node.objects.update(state=Node.State.CORDONED)
    with pytest.raises(NoRoom, match="No node of Narvik can keep a volume now"):
        storage.make()


def test_a_slurm_node_keeps_no_volumes(storage, fleet):
    Node.objects.exclude(name="h200-2").update(driver="slurm")
    assert {storage.make(f"data-{number}").node.name for number in range(2)} == {"h200-2"}


def test_a_new_node_can_be_home_to_a_volume(storage, fleet):
    fabric = next(iter(fleet.nodes.values())).node.fabric
    fleet.nodes["h200-3"] = join(announce(fleet.h200, fabric, name="h200-3"))
    made = [storage.make(f"data-{number}") for number in range(3)]
    assert "h200-3" in {volume.node.name for volume in made}
