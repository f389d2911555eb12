"""Nodes that are kept for who waits: nobody new starts there, whichever door they come through."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from marketplace import outlook, rentals, spot, spot_terms, waiting
from marketplace.access import Actor
from marketplace.models import Project, WaitingOrder
from provisioning import prospects, shards
from provisioning.errors import NoCapacity
from provisioning.models import Capacity, GpuHold, Instance, Node, Quota
from tests.blocks import Buyer, sell_blocks
from tests.conftest import Fleet, Rent, Run, order
from tests.marketplace.jobs.conftest import Works, latest
from tests.nodes import announce, join

pytestmark = pytest.mark.django_db

USD = 1_000_000
HOUR = timedelta(hours=1)


def sweep() -> int:
    return waiting.start_due(at=timezone.now(), limit=100)


def waits(actor: Actor, project: Project, fleet: Fleet, **what: Any) -> WaitingOrder:
    at = timezone.now()
    return waiting.wait(
        actor=actor, project=project, order=order(fleet.h200, **what), max_micros_per_gpu_hour=3 * USD,
        until=at + 20 * HOUR, at=at,
    )  # fmt: skip


def node_of(instance: Instance) -> str:
    return Node.objects.get(assignments__instance=instance).name


@pytest.fixture
def parts(rent: Rent, fleet: Fleet, run_until_idle: Run) -> list[Instance]:
    """Four nodes with one, two, three and four GPUs in use."""
    Quota.objects.update(limit=1000)
    fabric = Node.objects.get(name="h200-1").fabric
    fleet.nodes |= {name: join(announce(fleet.h200, fabric, name=name)) for name in ("h200-3", "h200-4")}
    fleet.h200.max_gpus = 32
    fleet.h200.save()
    found = []
    for number, name in enumerate(("h200-1", "h200-2", "h200-3", "h200-4"), 1):
        others = Node.objects.filter(offer=fleet.h200).exclude(name=name)
        others.update(is_held=True)
        found.append(rent(gpus=number))
        others.update(is_held=False)
    run_until_idle()
    return found


@pytest.fixture
def gang(parts: list[Instance], actor: Actor, project: Project, fleet: Fleet) -> WaitingOrder:
    """Whoever wants a whole node, and waits for the one that lacks the least to be it."""
    entry = waits(actor, project, fleet, gpus=8)
    assert sweep() == 0
    assert kept() == {"h200-1"}
    return entry


def kept() -> set[str]:
    return set(Node.objects.filter(kept_for="queue").values_list("name", flat=True))


def test_a_launch_starts_on_no_node_that_is_kept_for_who_waits_and_is_refused_where_only_those_have_room(
    gang: WaitingOrder, rent: Rent
) -> None:
    # Of all nodes the kept one is the only place for seven.
    with pytest.raises(
        NoCapacity, match="Some of its nodes are kept for orders that wait and for reservations, which come first"
    ):
        rent(gpus=7)
    assert {node_of(rent(gpus=gpus)) for gpus in (4, 5, 5)} == {"h200-4", "h200-3", "h200-2"}


def test_a_task_of_a_job_is_the_same(
    gang: WaitingOrder, actor: Actor, project: Project, fleet: Fleet, run_until_idle: Run
) -> None:
    works = Works(actor, project, fleet, run_until_idle)
    job = works.one(gpus=7)
    works.look()
    assert (latest(job).running, latest(job).why) == (0, "capacity")
    assert prospects.room(project_id=project.pk, offer_id=fleet.h200.pk, gpus=7).apart == 0
    assert not outlook.look(project=project, offer=fleet.h200, gpus=7, replicas=1, at=timezone.now()).fits_now


def test_who_won_an_auction_is_new_there_too(
    gang: WaitingOrder, actor: Actor, project: Project, fleet: Fleet, run_until_idle: Run
) -> None:
    at = timezone.now()
    spot_terms.set_terms(offer=fleet.h200, by="x", at=at, reserve_micros=USD // 2, interval_s=60)
    with transaction.atomic():
        bid = spot.bid(actor=actor, project=project, order=order(fleet.h200, gpus=7), max_price_micros=USD, at=at)
    spot.clear(offer_id=fleet.h200.pk, at=at)
    run_until_idle()
    assert Instance.objects.get(pk=bid.instance_id).admitted_at is not None
    assert not GpuHold.objects.filter(assignment__instance=bid.instance_id).exists()
    assert prospects.fitting([(bid.instance, None)]) == set()


def test_who_starts_again_and_who_paid_ahead_start_elsewhere_if_they_can_and_there_if_they_cannot(
    gang: WaitingOrder, parts: list[Instance], actor: Actor, run_until_idle: Run
) -> None:
    stopped = parts[3]
    stopped.refresh_from_db()
    rentals.stop(actor=actor, instance=stopped, at=timezone.now())
    run_until_idle()
    Node.objects.filter(name__in=["h200-2", "h200-4"]).update(is_held=True)
    stopped.refresh_from_db()
    rentals.start(actor=actor, instance=stopped, at=timezone.now())
    run_until_idle()
    last = Node.objects.get(assignments__instance=stopped, assignments__fence=2)
    assert last.name == "h200-3"
    Node.objects.filter(name="h200-3").update(is_held=True)
    stopped.refresh_from_db()
    rentals.stop(actor=actor, instance=stopped, at=timezone.now())
    run_until_idle()
    stopped.refresh_from_db()
    rentals.start(actor=actor, instance=stopped, at=timezone.now())
    run_until_idle()
    assert Node.objects.get(assignments__instance=stopped, assignments__fence=3).name == "h200-1"


def test_a_claim_that_chose_before_the_node_was_kept_looks_again(
    parts: list[Instance], rent: Rent, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh = shards.LiveShard.refresh

    def overtaken(live: shards.LiveShard, *args: Any, **options: Any) -> shards.Tenant:
        tenant = refresh(live, *args, **options)
        Node.objects.filter(name="h200-1").update(kept_for="queue")
        return tenant

    with monkeypatch.context() as late:
        late.setattr(shards.LiveShard, "refresh", overtaken)
        with pytest.raises(NoCapacity):
            rent(gpus=7)


def test_the_next_in_the_queue_keeps_nodes_of_its_own_and_who_is_behind_both_has_the_rest(
    gang: WaitingOrder, actor: Actor, project: Project, fleet: Fleet, rent: Rent
) -> None:
    at = timezone.now()
    second, third = (waits(actor, project, fleet, gpus=gpus) for gpus in (8, 4))
    assert sweep() == 1
    assert kept() == {"h200-1", "h200-2"}
    third.refresh_from_db()
    assert third.instance is not None
    assert node_of(third.instance) == "h200-4"
    waiting.cancel(actor=actor, entry=gang, at=at)
    waiting.cancel(actor=actor, entry=second, at=at)
    sweep()
    assert kept() == set()
    assert rent(gpus=7)


def test_where_the_first_lacks_gpus_and_not_only_a_shape_no_new_order_has_what_spot_gives_back(
    actor: Actor, project: Project, fleet: Fleet, rent: Rent, run_until_idle: Run
) -> None:
    Quota.objects.update(limit=1000)
    at = timezone.now()
    spot_terms.set_terms(offer=fleet.h200, by="x", at=at, reserve_micros=USD // 2, interval_s=60)
    with transaction.atomic():
        spot.bid(
            actor=actor, project=project, order=order(fleet.h200, gpus=6, replicas=2), max_price_micros=USD, at=at
        )  # fmt: skip
    spot.clear(offer_id=fleet.h200.pk, at=at)
    run_until_idle()
    entry = waits(actor, project, fleet, gpus=8)
    sweep()
    assert not Capacity.objects.get(pk=fleet.h200.pk).lets_pass
    # By count there is room for both, since spot makes some; but the free ones are the first one's.
    with pytest.raises(NoCapacity, match="8 GPUs of this offer wait already, and come first"):
        rent(gpus=2)
    waiting.cancel(actor=actor, entry=entry, at=at)
    assert rent(gpus=2)


def test_a_holder_s_start_takes_a_kept_node_only_where_there_is_no_other(
    actor: Actor, project: Project, fleet: Fleet
) -> None:
    Quota.objects.update(limit=1000)
    sell_blocks(fleet.h200)
    buyer = Buyer(actor, project, fleet.h200, timezone.now().replace(minute=0, second=0, microsecond=0) + HOUR)
    buyer.buy(16, 1, 4)
    for hours in (0, 1):
        buyer.go_to(hours)
    Node.objects.filter(name="h200-1").update(kept_for="queue")
    started = []
    for _ in range(2):
        with transaction.atomic():
            started.append(
                rentals.rent(actor=actor, project=project, order=order(fleet.h200, gpus=8), at=buyer.at(1.1))
            )
    assert [node_of(one) for one in started] == ["h200-2", "h200-1"]
