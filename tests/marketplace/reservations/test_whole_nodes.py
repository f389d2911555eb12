"""Blocks of tenants who share no host: sold in whole nodes, and they never take more nodes than were sold."""

from typing import Any

import pytest
from django.db import transaction

from marketplace import delivery, quotes, rentals, reservations, trades
from marketplace.models import AuditEntry, Listing, Quote, Reservation, Shortfall
from marketplace.policies import replace as set_policy
from provisioning import calendar, kept_nodes
from provisioning.errors import NoCapacity, PolicyExcludes
from provisioning.models import Capacity, GpuHold, Instance, Node
from tests.blocks import Buyer, check_conserved
from tests.conftest import Run, order, shared_with_nobody
from tests.marketplace.api.tables import every_row

pytestmark = pytest.mark.django_db

EACH = {"strategy": "spread", "level": "node"}


def launch(buyer: Buyer, hours: float, **what: Any) -> Instance:
    with transaction.atomic():
        return rentals.rent(
            actor=buyer.actor, project=buyer.project, order=order(buyer.offer, **what), at=buyer.at(hours)
        )  # fmt: skip


def begin(buyer: Buyer) -> None:
    for hours in (1, 2):
        buyer.go_to(hours)


def nodes() -> int:
    return Node.objects.filter(exclusive_to__isnull=False).count()


def test_part_of_a_node_is_refused_with_the_next_size_at_every_door_and_nothing_is_held(acme_buys: Buyer) -> None:
    quoted = acme_buys.quote(4, 2, 4)
    held = acme_buys.buy(4, 2, 3)
    shared_with_nobody(acme_buys.project)
    before = every_row()
    doors = (
        lambda: acme_buys.quote(4, 2, 4),
        lambda: acme_buys.trade(12, 2, 4, 5_000_000),
        lambda: trades.look(
            project=acme_buys.project, window=acme_buys.window(9, 2, 4), limit_micros=None, at=acme_buys.at(0)
        ),
        lambda: quotes.for_extension(reservation=held, ends_at=acme_buys.at(4), at=acme_buys.at(0)),
    )
    for door in doors:
        with pytest.raises(PolicyExcludes, match=r"whole nodes of 8 GPUs.* Ask for (8|16)"), transaction.atomic():
            door()
    with pytest.raises(PolicyExcludes, match="Ask for 8"), transaction.atomic():
        reservations.buy(actor=acme_buys.actor, quote=Quote.objects.get(pk=quoted.pk), at=acme_buys.at(0))
    assert every_row() == before
    assert acme_buys.buy(8, 2, 4).gpus == 8


def test_two_tenants_are_sold_the_nodes_that_there_are_and_both_have_theirs(
    acme_buys: Buyer, other_buys: Buyer, run_until_idle: Run
) -> None:
    shared_with_nobody(acme_buys.project)
    mine, theirs = acme_buys.buy(8, 2, 4), other_buys.buy(8, 2, 4)
    with pytest.raises(NoCapacity):
        other_buys.buy(1, 2, 4)
    begin(acme_buys)
    launch(acme_buys, 2.01, gpus=1)
    run_until_idle()
    # What the block covers is not taken off what may be sold a second time.
    calendar.count(at=acme_buys.at(2.02))
    assert Capacity.objects.get(pk=acme_buys.offer.pk).gpus == 16
    assert other_buys.buy(8, 4, 5, at=2.02).gpus == 8
    launch(other_buys, 2.03, gpus=8)
    run_until_idle()
    nothing = delivery.Missing()
    assert delivery.missing_gpus(acme_buys.offer.pk, at=acme_buys.at(2.1)) == {mine.pk: nothing, theirs.pk: nothing}
    check_conserved(at=acme_buys.at(2.1))


def test_a_start_inside_takes_no_more_nodes_than_the_block_has(
    acme_buys: Buyer, other_buys: Buyer, run_until_idle: Run
) -> None:
    shared_with_nobody(acme_buys.project)
    acme_buys.buy(8, 2, 4)
    theirs = other_buys.buy(8, 2, 4)
    begin(acme_buys)
    spread = launch(acme_buys, 2.01, gpus=1, replicas=2, wish=EACH)
    assert not GpuHold.objects.filter(assignment__instance=spread).exists()
    assert nodes() == 0
    assert GpuHold.objects.filter(assignment__instance=launch(acme_buys, 2.02, gpus=1)).count() == 1
    assert launch(other_buys, 2.03, gpus=8).claimed
    acme_buys.go_to(2.2)
    assert not Shortfall.objects.filter(reservation=theirs).exists()


def test_a_block_from_before_the_policy_closes_nothing_that_others_bought(
    acme_buys: Buyer, other_buys: Buyer, run_until_idle: Run
) -> None:
    acme_buys.buy(1, 2, 4)
    theirs = other_buys.buy(15, 2, 4)
    shared_with_nobody(acme_buys.project)
    begin(acme_buys)
    waits = launch(acme_buys, 2.01, gpus=1)
    run_until_idle()
    assert not GpuHold.objects.filter(assignment__instance=waits).exists()
    acme_buys.go_to(2.2)
    theirs.refresh_from_db()
    assert (theirs.state, theirs.missing_gpus) == ("active", 0)
    check_conserved(at=acme_buys.at(2.2))


def test_what_is_delivered_as_whole_nodes_is_not_sold_on_in_parts(acme_buys: Buyer) -> None:
    held: Reservation = acme_buys.buy(8, 2, 4)
    shared_with_nobody(acme_buys.project)
    with pytest.raises(PolicyExcludes, match="not sold in parts"):
        acme_buys.put_up(held, 4, 2, 4, 1_000_000)
    assert not Listing.objects.exists()


def on_demand(buyer: Buyer, hours: float, **what: Any) -> Instance:
    return launch(buyer, hours, attach="forbid", **what)


def holds_of(instance: Instance) -> int:
    return GpuHold.objects.filter(assignment__instance=instance, released_at=None).count()


def left_for_others(buyer: Buyer, hours: float) -> int:
    """Return how many GPUs of the hour after this moment's are still for sale."""
    calendar.count(at=buyer.at(hours), offer_id=buyer.offer.pk)
    hour = calendar.hour_of(buyer.at(hours)) + calendar.HOUR
    return calendar.free(offer_id=buyer.offer.pk, starts_at=hour, ends_at=hour + calendar.HOUR)


def test_a_block_that_begins_beside_what_its_tenant_runs_on_demand_leaves_others_no_more_than_before(
    acme_buys: Buyer, other_buys: Buyer, run_until_idle: Run
) -> None:
    shared_with_nobody(acme_buys.project)
    on_demand(acme_buys, 0, gpus=4)
    acme_buys.buy(8, 2, 4)
    begin(acme_buys)
    assert left_for_others(acme_buys, 2.01) == 0
    beside = launch(acme_buys, 2.01, gpus=4)
    run_until_idle()
    assert nodes() == 1
    assert left_for_others(acme_buys, 2.02) == 0
    with pytest.raises(NoCapacity):
        on_demand(other_buys, 2.03, gpus=4)
    rest = launch(acme_buys, 2.04, gpus=4)
    assert (holds_of(beside), holds_of(rest), nodes()) == (4, 4, 2)
    assert left_for_others(acme_buys, 2.05) == 0


def test_what_a_block_has_more_than_was_bought_stays_closed_when_what_ran_beside_it_ends(
    acme_buys: Buyer, other_buys: Buyer, run_until_idle: Run
) -> None:
    shared_with_nobody(acme_buys.project)
    beside = on_demand(acme_buys, 0, gpus=4)
    acme_buys.buy(8, 2, 4)
    begin(acme_buys)
    for _ in range(2):
        launch(acme_buys, 2.01, gpus=4)
    run_until_idle()
    beside.refresh_from_db()
    with transaction.atomic():
        rentals.terminate(actor=acme_buys.actor, instance=beside, at=acme_buys.at(2.02))
    run_until_idle()
    assert nodes() == 2
    assert left_for_others(acme_buys, 2.03) == 0
    with pytest.raises(NoCapacity), transaction.atomic():
        other_buys.buy(1, 3, 4, at=2.03)


def test_two_blocks_of_a_tenant_share_its_nodes_and_both_start_all_that_they_have(
    acme_buys: Buyer, run_until_idle: Run
) -> None:
    shared_with_nobody(acme_buys.project)
    one, two = acme_buys.buy(8, 2, 4), acme_buys.buy(8, 2, 4)
    begin(acme_buys)
    for block in (one, two):
        block.refresh_from_db()
    started = [launch(acme_buys, 2.01, gpus=4, reservation=block) for block in (one, two, one, two)]
    run_until_idle()
    assert [holds_of(instance) for instance in started] == [4, 4, 4, 4]
    assert nodes() == 2


def test_a_start_that_closes_nothing_is_not_refused_because_a_node_is_out_of_service(
    acme_buys: Buyer, other_buys: Buyer, run_until_idle: Run
) -> None:
    shared_with_nobody(acme_buys.project)
    instance = on_demand(acme_buys, 0, gpus=8)
    run_until_idle()
    other_buys.buy(8, 2, 4)
    instance.refresh_from_db()
    with transaction.atomic():
        rentals.stop(actor=acme_buys.actor, instance=instance, at=acme_buys.at(0.1))
    run_until_idle()
    instance.refresh_from_db()
    with transaction.atomic():
        rentals.start(actor=acme_buys.actor, instance=instance, at=acme_buys.at(0.2))
    Node.objects.filter(name="h200-1").update(state="cordoned")
    calendar.count(at=acme_buys.at(0.3))
    run_until_idle()
    instance.refresh_from_db()
    assert (instance.phase, holds_of(instance)) == ("running", 8)


@pytest.mark.parametrize("is_of_all", [False, True])
def test_who_shares_no_host_from_now_on_has_its_hours_taken_off_the_market(
    acme_buys: Buyer, other_buys: Buyer, is_of_all: bool
) -> None:
    held = acme_buys.buy(8, 2, 4)
    listing = acme_buys.put_up(held, 4, 2, 4, 1_000_000)
    scope = acme_buys.project.organization if is_of_all else acme_buys.project
    set_policy(actor=acme_buys.actor, scope=scope, document={"countries": {"allow": ["NO"]}}, version=None,
               at=acme_buys.at(0))  # fmt: skip
    assert Listing.objects.get().state == "open"
    set_policy(actor=acme_buys.actor, scope=scope, document={"no_shared_host": True}, version=None, at=acme_buys.at(0))
    listing.refresh_from_db()
    assert (listing.state, listing.hours.count()) == ("withdrawn", 0)
    other_buys.trade(4, 2, 4, 5_000_000)
    held.refresh_from_db()
    assert held.gpus == 8
    assert AuditEntry.objects.filter(verb="listing.withdraw").count() == 1


def end(buyer: Buyer, instance: Instance, hours: float, run: Run) -> None:
    with transaction.atomic():
        rentals.terminate(actor=buyer.actor, instance=Instance.objects.get(pk=instance.pk), at=buyer.at(hours))
    run()


def kept() -> int:
    return Node.objects.filter(kept_for="block").count()


def test_a_block_that_finds_no_whole_node_says_so_and_is_given_back_by_itself(
    acme_buys: Buyer, other_buys: Buyer
) -> None:
    on_demand(other_buys, 0, gpus=1, replicas=2, wish=EACH)
    shared_with_nobody(acme_buys.project)
    held = acme_buys.buy(8, 2, 4)
    begin(acme_buys)
    held.refresh_from_db()
    assert (held.state, held.missing_gpus) == ("delayed", 8)
    assert "no host is free of others" in held.message
    acme_buys.go_to(2.2)
    assert Shortfall.objects.get(reservation=held).gpus == 8
    check_conserved(at=acme_buys.at(2.2))


def test_whole_nodes_are_kept_from_shortly_before_a_block_begins_until_it_is_over(
    acme_buys: Buyer, other_buys: Buyer, clock: Any, run_until_idle: Run
) -> None:
    shared_with_nobody(acme_buys.project)
    acme_buys.buy(8, 2, 4)
    acme_buys.go_to(1)
    assert kept() == 0
    acme_buys.go_to(1.5)
    assert kept() == 1
    on_demand(other_buys, 1.6, gpus=1)
    with pytest.raises(NoCapacity, match="kept for orders that wait and for reservations"):
        on_demand(other_buys, 1.6, gpus=8)
    acme_buys.go_to(2)
    first = launch(acme_buys, 2.01, gpus=8)
    assert holds_of(first) == 8
    run_until_idle()
    acme_buys.go_to(2.1)
    assert kept() == 0
    end(acme_buys, first, 2.2, run_until_idle)
    assert kept() == 1
    with pytest.raises(NoCapacity, match="kept for orders that wait and for reservations"):
        on_demand(other_buys, 2.3, gpus=8)
    assert holds_of(launch(acme_buys, 2.3, gpus=8)) == 8
    acme_buys.go_to(4.1)
    assert kept() == 0


def test_what_its_tenant_runs_on_demand_leaves_a_block_the_nodes_that_it_has_begun_on(acme_buys: Buyer) -> None:
    shared_with_nobody(acme_buys.project)
    acme_buys.buy(8, 2, 4)
    begin(acme_buys)
    launch(acme_buys, 2.01, gpus=4)
    assert holds_of(on_demand(acme_buys, 2.02, gpus=4)) == 4
    assert nodes() == 2
    assert holds_of(launch(acme_buys, 2.03, gpus=4)) == 4
    assert nodes() == 2


def test_a_node_with_spot_alone_is_kept_for_a_block_before_one_with_a_gpu_on_demand(
    acme_buys: Buyer, other_buys: Buyer, run_until_idle: Run
) -> None:
    shared_with_nobody(acme_buys.project)
    on_demand(other_buys, 0, gpus=1)
    full = on_demand(other_buys, 0, gpus=8)
    run_until_idle()
    Instance.objects.filter(pk=full.pk).update(market="spot")
    Capacity.objects.filter(pk=acme_buys.offer.pk).update(open_ended=1)
    acme_buys.buy(8, 2, 4)
    acme_buys.go_to(1.5)
    assert list(Node.objects.filter(kept_for="block")) == list(Node.objects.filter(free_mask=0))
    assert kept() == 1
    assert holds_of(on_demand(other_buys, 1.6, gpus=7)) == 7


def test_an_offer_whose_nodes_cannot_be_kept_stops_neither_delivery_nor_the_others(
    acme_buys: Buyer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_with_nobody(acme_buys.project)
    held, other = acme_buys.buy(8, 2, 4), acme_buys.offer.pk + 1_000
    tried = []

    def keep(*, offer_id: int, gpus: dict[int, int]) -> bool:
        tried.append(offer_id)
        if offer_id != other:
            raise RuntimeError("its shard is broken")
        return False

    monkeypatch.setattr(kept_nodes, "offers_with_any", lambda _: [other])
    monkeypatch.setattr(kept_nodes, "for_blocks", keep)
    for hours in (1, 2):
        delivery.advance(at=acme_buys.at(hours), limit=100)
    held.refresh_from_db()
    assert held.state == "active"
    assert set(tried) == {acme_buys.offer.pk, other}


@pytest.mark.parametrize("runs", [False, True])
def test_a_block_whose_node_fails_is_not_told_that_others_are_on_all_hosts(
    acme_buys: Buyer, other_buys: Buyer, run_until_idle: Run, runs: bool
) -> None:
    other_buys.buy(8, 2, 4)
    shared_with_nobody(acme_buys.project)
    held = acme_buys.buy(8, 2, 4)
    if runs:
        begin(acme_buys)
        mine = launch(acme_buys, 2.01, gpus=8)
        launch(other_buys, 2.02, gpus=1)
        run_until_idle()
        failed = Node.objects.filter(exclusive_to=mine.project.organization_id)
    else:
        failed = Node.objects.filter(name="h200-1")
    assert failed.update(reachability="lost") == 1
    for hours in (1.9, 2, 2.05):
        acme_buys.go_to(hours)
    held.refresh_from_db()
    assert (held.state, held.missing_gpus) == ("delayed", 8)
    assert held.message.startswith("8 of its 8 GPUs cannot be had now.")
