"""What becomes of a reservation by itself, on a clock that the test moves."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from billing import collecting
from billing.models import Account, UsageSpan
from marketplace import coverage, delivery, quotes, rentals, reservations
from marketplace.errors import BadOrder, Conflict
from marketplace.models import Reservation, Shortfall
from provisioning import instances, placement, quotas
from provisioning.errors import IllegalMove, NoCapacity
from provisioning.models import Capacity, Gpu, Instance, InstanceEvent, Interruption, Node, Quota, Workflow
from tests.blocks import PRICE, USD, Buyer, check_conserved, deferred_micros
from tests.conftest import Rent, Run, order, shared_with_nobody

pytestmark = pytest.mark.django_db


def moves_of(reservation: Reservation) -> list[str]:
    return [event.new_state for event in reservation.events.order_by("pk") if event.old_state != event.new_state]


def launch(buyer: Buyer, at: float = 0, **overrides: Any) -> Instance:
    with transaction.atomic():
        wanted = order(buyer.offer, **overrides)
        instance = rentals.rent(actor=buyer.actor, project=buyer.project, order=wanted, at=buyer.at(at))
        # Its workflow runs on the real clock.
        Workflow.objects.filter(instance=instance).update(due_at=timezone.now())
        return instance


def break_gpus(name: str) -> None:
    """Let all GPUs of a node be broken."""
    node = Node.objects.get(name=name)
    Gpu.objects.filter(node=node).update(healthy=False)
    placement.recount([node.pk])


@pytest.fixture
def active(acme_buys: Buyer) -> Reservation:
    """Eight GPUs from the second hour to the fifth, begun."""
    reservation = acme_buys.buy(8, 2, 5)
    for hours in (1, 2):
        acme_buys.go_to(hours)
    reservation.refresh_from_db()
    assert reservation.state == "active"
    return reservation


def test_a_reservation_locks_begins_ends_and_is_earned_hour_by_hour(acme_buys: Buyer) -> None:
    reservation = acme_buys.buy(8, 2, 5)
    paid = reservation.paid_micros
    kept = []
    for hours in (0.99, 1, 2, 3, 4, 4.34, 5, 6):
        acme_buys.go_to(hours)
        kept.append(deferred_micros())
        check_conserved(at=acme_buys.at(hours))
    assert moves_of(reservation) == [
        "payment_pending", "scheduled", "locked", "active", "ending", "expired"
    ]  # fmt: skip
    assert kept == [paid, paid, paid, paid * 2 // 3, paid // 3, paid // 3, 0, 0]
    assert acme_buys.wallet().available_micros == 1000 * USD - paid


def test_what_runs_inside_costs_nothing_more_and_its_use_is_seen(
    acme_buys: Buyer, active: Reservation, run_until_idle: Run
) -> None:
    funds = acme_buys.wallet().available_micros
    instance = launch(acme_buys, 2.1, gpus=8)
    assert (instance.market, instance.reservation_id) == ("reserved", active.pk)
    run_until_idle()
    instance.refresh_from_db()
    assert instance.phase == "running"
    span = UsageSpan.objects.get(resource_id=instance.public_id)
    assert (span.covered_by, span.quantity) == (active.public_id, 8)
    assert Quota.objects.filter(project=acme_buys.project, held__gt=0).count() == 0
    assert Capacity.objects.get(pk=acme_buys.offer.pk).open_ended == 0
    instances.terminate(instance=instance, at=timezone.now())
    run_until_idle()
    span.refresh_from_db()
    assert span.ended_at is not None
    assert span.charged_micros == 0
    assert acme_buys.wallet().available_micros == funds
    assert coverage.free_gpus([active], at=acme_buys.at(2.5)) == {active.pk: 8}
    check_conserved(at=acme_buys.at(2.5))


def test_never_more_gpus_run_inside_than_it_has(acme_buys: Buyer, active: Reservation) -> None:
    launch(acme_buys, 2.1, gpus=5)
    assert launch(acme_buys, 2.1, gpus=3, attach="strict").reservation_id == active.pk
    with pytest.raises(NoCapacity, match="with the most has 0"):
        launch(acme_buys, 2.1, gpus=1, attach="strict")
    outside = launch(acme_buys, 2.1, gpus=1)
    assert (outside.market, outside.reservation_id) == ("on_demand", None)


def test_what_covers_a_run_is_found_by_four_queries_however_many_blocks_there_are(
    acme_buys: Buyer, active: Reservation, django_assert_num_queries: Callable[[int], Any]
) -> None:
    later = [acme_buys.buy(gpus, 3, 6, at=2) for gpus in (1, 2, 3)]
    acme_buys.go_to(3)
    launch(acme_buys, 3.1, gpus=7, reservation=active)
    at = acme_buys.at(3.1)
    words: dict[str, Any] = {"project": acme_buys.project, "offer": acme_buys.offer, "named": None, "at": at}
    for gpus, attach, found in ((3, "auto", later[2]), (1, "auto", later[0]), (4, "auto", None)):
        with django_assert_num_queries(4):
            assert coverage.choose(gpus=gpus, attach=attach, **words) == found
    with django_assert_num_queries(4), pytest.raises(NoCapacity, match="with the most has 3"):
        coverage.choose(gpus=4, attach="strict", **words)
    with django_assert_num_queries(4):
        free = coverage.usable(project=acme_buys.project, offer=acme_buys.offer, at=at)
    assert free == [(active, 1), *zip(later, (1, 2, 3), strict=True)]


def test_who_forbids_it_stays_outside_and_a_named_one_is_taken(acme_buys: Buyer, active: Reservation) -> None:
    assert launch(acme_buys, 2.1, attach="forbid").reservation_id is None
    assert launch(acme_buys, 2.1, reservation=active).reservation_id == active.pk
    later = acme_buys.buy(2, 10, 11, at=2.1)
    with pytest.raises(BadOrder, match="Only an active reservation"):
        launch(acme_buys, 2.1, reservation=later)


def interruption() -> Interruption:
    return Interruption.objects.get()


def test_an_instance_is_told_forty_minutes_before_and_stopped_thirty_minutes_before_the_end(
    acme_buys: Buyer, active: Reservation, run_until_idle: Run
) -> None:
    instance = launch(acme_buys, 2.1, gpus=8)
    run_until_idle()
    acme_buys.go_to(4.3)
    assert Instance.objects.get().phase == "running"
    acme_buys.go_to(4 + 20 / 60)
    told = Instance.objects.get()
    assert (told.phase, told.reason) == ("notified", "reservation_end")
    assert interruption().deadline_at == acme_buys.at(4.5)
    active.refresh_from_db()
    assert active.state == "ending"
    with pytest.raises(NoCapacity):
        launch(acme_buys, 4.4, attach="strict")
    # The ladder counts down on the real clock.
    now = timezone.now()
    Interruption.objects.update(notice_at=now - timedelta(minutes=10), deadline_at=now)
    Workflow.objects.update(due_at=timezone.now())
    run_until_idle()
    ended = Instance.objects.get()
    assert (ended.phase, ended.reason, ended.quota_held) == ("interrupted", "reservation_end", 0)
    assert (ended.restart_at, instances.actions(ended)["start"]) == (None, "")
    acme_buys.go_to(5)
    active.refresh_from_db()
    assert active.state == "expired"
    rentals.start(actor=acme_buys.actor, instance=ended, at=timezone.now())
    assert (ended.market, ended.reservation_id) == ("on_demand", None)
    assert instance.pk == ended.pk
    check_conserved(at=acme_buys.at(5))


def test_what_the_ladder_misses_is_stopped_all_the_same(
    acme_buys: Buyer, active: Reservation, run_until_idle: Run
) -> None:
    launch(acme_buys, 2.1, gpus=8)
    run_until_idle()
    acme_buys.go_to(4.4)
    acme_buys.go_to(4.55)
    assert Instance.objects.get().phase == "notified"
    acme_buys.go_to(4.6)
    run_until_idle()
    assert Instance.objects.get().phase == "stopped"


def test_an_extension_in_time_takes_the_notice_back(acme_buys: Buyer, active: Reservation, run_until_idle: Run) -> None:
    launch(acme_buys, 2.1, gpus=8)
    run_until_idle()
    acme_buys.go_to(4.4)
    active.refresh_from_db()
    quote = quotes.for_extension(reservation=active, ends_at=acme_buys.at(7), at=acme_buys.at(4.4))
    reservations.extend(actor=acme_buys.actor, reservation=active, quote=quote, at=acme_buys.at(4.4))
    assert Instance.objects.get().phase == "running"
    assert interruption().state == "cancelled"
    assert Reservation.objects.get().state == "active"
    acme_buys.go_to(4.6)
    assert Instance.objects.get().phase == "running"
    assert [event.new_phase for event in InstanceEvent.objects.order_by("pk")][-2:] == ["notified", "running"]
    assert UsageSpan.objects.get().covered_by == active.public_id


def test_nothing_is_extended_once_its_instances_are_being_ended(acme_buys: Buyer, active: Reservation) -> None:
    acme_buys.go_to(4.5)
    active.refresh_from_db()
    with pytest.raises(IllegalMove, match="it is too late"):
        quotes.for_extension(reservation=active, ends_at=acme_buys.at(7), at=acme_buys.at(4.5))


def test_gpus_that_are_missing_at_the_start_are_not_paid_for(acme_buys: Buyer) -> None:
    reservation = acme_buys.buy(16, 2, 4)
    paid = reservation.paid_micros
    break_gpus("h200-1")
    acme_buys.go_to(1)
    acme_buys.go_to(2)
    reservation.refresh_from_db()
    assert (reservation.state, reservation.missing_gpus) == ("partially_fulfilled", 8)
    assert Shortfall.objects.count() == 0
    acme_buys.go_to(2.2)
    shortfall = Shortfall.objects.get()
    assert (shortfall.gpus, shortfall.refund_micros) == (8, 8 * PRICE)
    assert acme_buys.wallet().available_micros == 1000 * USD - paid + 8 * PRICE
    acme_buys.go_to(2.3)
    assert Shortfall.objects.count() == 1
    check_conserved(at=acme_buys.at(2.3))
    with pytest.raises(NoCapacity):
        launch(acme_buys, 2.4, gpus=8, replicas=2, attach="strict")
    assert launch(acme_buys, 2.4, gpus=8, attach="strict").reservation_id == reservation.pk
    Gpu.objects.update(healthy=True)
    acme_buys.go_to(2.5)
    reservation.refresh_from_db()
    assert (reservation.state, reservation.missing_gpus) == ("active", 0)
    acme_buys.go_to(5)
    check_conserved(at=acme_buys.at(5))
    assert deferred_micros() == 0


def test_who_bought_last_goes_short_first(acme_buys: Buyer, other_buys: Buyer) -> None:
    first, second = acme_buys.buy(8, 2, 4), other_buys.buy(8, 2, 4)
    acme_buys.go_to(1)
    Node.objects.filter(name="h200-2").update(state="cordoned")
    acme_buys.go_to(2)
    states = [Reservation.objects.get(pk=row.pk).state for row in (first, second)]
    assert states == ["active", "delayed"]


def test_a_delayed_reservation_ends_free_of_charge(acme_buys: Buyer) -> None:
    reservation = acme_buys.buy(8, 2, 6)
    Node.objects.update(state="cordoned")
    acme_buys.go_to(1)
    acme_buys.go_to(2.2)
    reservation.refresh_from_db()
    assert reservation.state == "delayed"
    quote = quotes.for_cancellation(reservation=reservation, at=acme_buys.at(2.3))
    assert (quote.total_micros, quote.refund_micros) == (0, 3 * 8 * PRICE)
    until = acme_buys.at(3).isoformat()
    costs = [{"until": until, "kept_bp": 0, "kept_micros": 0, "refund_micros": 3 * 8 * PRICE}]
    assert quotes.costs_over_time(reservation, at=acme_buys.at(2.3)) == quote.terms["cancellation_costs"] == costs
    reservations.cancel(actor=acme_buys.actor, reservation=reservation, quote=quote, at=acme_buys.at(2.3))
    assert acme_buys.wallet().available_micros == 1000 * USD
    check_conserved(at=acme_buys.at(2.3))


def test_who_leaves_a_partly_fulfilled_one_stops_their_instances_first(acme_buys: Buyer) -> None:
    reservation = acme_buys.buy(16, 2, 4)
    break_gpus("h200-1")
    acme_buys.go_to(1)
    acme_buys.go_to(2.2)
    launch(acme_buys, 2.3, gpus=1, attach="strict")
    reservation.refresh_from_db()
    quote = quotes.for_cancellation(reservation=reservation, at=acme_buys.at(2.3))
    with pytest.raises(Conflict, match="Stop them first"), transaction.atomic():
        reservations.cancel(actor=acme_buys.actor, reservation=reservation, quote=quote, at=acme_buys.at(2.3))


def test_a_late_beginning_of_ours_is_not_paid_for(acme_buys: Buyer) -> None:
    reservation = acme_buys.buy(8, 2, 6)
    acme_buys.go_to(4.05)
    reservation.refresh_from_db()
    assert reservation.state == "active"
    assert sorted(reservation.shortfalls.values_list("refund_micros", flat=True)) == [8 * PRICE] * 2
    acme_buys.go_to(6)
    check_conserved(at=acme_buys.at(6))


def test_on_demand_makes_room_for_nobody_but_never_took_what_is_reserved(
    acme_buys: Buyer, active: Reservation, rent: Rent
) -> None:
    quotas.set_limit(project_id=acme_buys.project.pk, limit=100)
    with pytest.raises(NoCapacity):
        rent(gpus=5, replicas=2, attach="forbid")
    rent(gpus=8, attach="forbid")
    launch(acme_buys, 2.2, gpus=8, attach="strict")


def test_more_reservations_than_a_sweep_takes_are_all_told_in_time(
    acme_buys: Buyer, other_buys: Buyer, run_until_idle: Run
) -> None:
    for _ in range(3):
        acme_buys.buy(1, 2, 6)
    last = other_buys.buy(8, 2, 5)
    for hours in (1, 2):
        acme_buys.go_to(hours)
    launch(other_buys, 2.1, gpus=8)
    run_until_idle()
    delivery.advance(at=acme_buys.at(4.4), limit=2)
    assert Reservation.objects.get(pk=last.pk).state == "ending"
    assert interruption().reason == "reservation_end"
    other = acme_buys.at(5.4)
    delivery.advance(at=other, limit=2)
    states = Reservation.objects.exclude(pk=last.pk).values_list("state", flat=True)
    assert list(states) == ["ending"] * 3


def test_what_waits_for_gpus_or_lost_them_was_not_delivered(
    acme_buys: Buyer, active: Reservation, run_until_idle: Run
) -> None:
    Node.objects.update(state="cordoned")
    instance = launch(acme_buys, 2.1, gpus=8)
    acme_buys.go_to(2.2)
    assert (instance.phase, instance.quota_held) == ("queued", 8)
    assert Shortfall.objects.get().gpus == 8
    Node.objects.update(state="available")
    run_until_idle()
    acme_buys.go_to(3.2)
    assert Reservation.objects.get().state == "active"
    assert Shortfall.objects.count() == 1
    Node.objects.update(reachability="unreachable")
    acme_buys.go_to(4.2)
    assert Instance.objects.get().quota_held == 8
    assert Shortfall.objects.order_by("hour").last().gpus == 8  # type: ignore[union-attr]
    check_conserved(at=acme_buys.at(4.2))


@pytest.mark.parametrize("minutes", [3, 12])
def test_who_leaves_in_the_first_hour_pays_nothing_for_gpus_that_never_came(acme_buys: Buyer, minutes: int) -> None:
    acme_buys.buy(8, 2, 6)
    Node.objects.update(state="cordoned")
    acme_buys.go_to(1)
    acme_buys.go_to(2)
    at = acme_buys.at(2 + 3 / 60)
    quote = quotes.for_cancellation(reservation=Reservation.objects.get(), at=at)
    assert (quote.total_micros, quote.refund_micros) == (0, 4 * 8 * PRICE)
    # The sweep may be faster with this hour's part: it is given back once.
    acme_buys.go_to(2 + minutes / 60)
    at = acme_buys.at(2 + minutes / 60)
    reservations.cancel(actor=acme_buys.actor, reservation=Reservation.objects.get(), quote=quote, at=at)
    assert acme_buys.wallet().available_micros == 1000 * USD
    assert Shortfall.objects.get().refund_micros == 8 * PRICE
    check_conserved(at=at)


@pytest.mark.parametrize(("hours", "notice_min"), [(4.35, 9), (4.6, 10), (4.95, 3)])
def test_a_late_announcement_still_leaves_time_to_stop(
    acme_buys: Buyer, active: Reservation, run_until_idle: Run, hours: float, notice_min: int
) -> None:
    launch(acme_buys, 2.1, gpus=8)
    run_until_idle()
    acme_buys.go_to(hours)
    assert Instance.objects.get().phase == "notified"
    assert interruption().deadline_at == acme_buys.at(hours) + timedelta(minutes=notice_min)
    acme_buys.go_to(min(4.99, hours + 0.2))
    assert Instance.objects.get().phase == "notified"
    acme_buys.go_to(5)
    run_until_idle()
    assert Instance.objects.get().phase == "stopped"


def test_an_extension_calls_off_only_ends_that_it_covers(
    acme_buys: Buyer, other_buys: Buyer, run_until_idle: Run
) -> None:
    mine = acme_buys.buy(8, 2, 6)
    acme_buys.put_up(mine, 4, 4, 6, PRICE)
    acme_buys.buy(8, 4, 6)
    other_buys.trade(4, 4, 6, PRICE)
    for hours in (1, 2):
        acme_buys.go_to(hours)
    mine.refresh_from_db()
    for _ in range(2):
        launch(acme_buys, 2.1, gpus=4, reservation=mine)
    run_until_idle()
    acme_buys.go_to(3.4)
    assert interruption().state == "notified"
    for ends, state in ((7, "notified"), (8, "draining")):
        Interruption.objects.update(state=state)
        mine.refresh_from_db()
        quote = quotes.for_extension(reservation=mine, ends_at=acme_buys.at(ends), at=acme_buys.at(3.4))
        reservations.extend(actor=acme_buys.actor, reservation=mine, quote=quote, at=acme_buys.at(3.4))
        assert interruption().state == state
    assert sorted(Instance.objects.values_list("phase", flat=True)) == ["notified", "running"]
    check_conserved(at=acme_buys.at(3.4))


def test_what_is_free_on_its_own_nodes_is_there_for_the_tenant_that_has_them_alone(
    acme_buys: Buyer, other_buys: Buyer, run_until_idle: Run
) -> None:
    shared_with_nobody(acme_buys.project)
    theirs = other_buys.buy(8, 2, 4)
    mine = acme_buys.buy(8, 2, 4)
    for hours in (1, 2):
        acme_buys.go_to(hours)
    launch(acme_buys, 2.01, gpus=1)
    run_until_idle()
    acme_buys.go_to(2.05)
    nothing = delivery.Missing()
    assert delivery.missing_gpus(acme_buys.offer.pk, at=acme_buys.at(2.1)) == {mine.pk: nothing, theirs.pk: nothing}


def test_hours_that_are_paid_ahead_go_on_when_money_for_the_rest_is_used_up(
    acme_buys: Buyer, active: Reservation, run_until_idle: Run
) -> None:
    inside, outside = launch(acme_buys, 2.1, gpus=8), launch(acme_buys, 2.1, gpus=4)
    run_until_idle()
    assert rentals.stop_what_nobody_can_pay_for(at=acme_buys.at(200), limit=10) == 1
    run_until_idle()
    for instance, phase in ((inside, "running"), (outside, "stopped")):
        instance.refresh_from_db()
        assert (instance.phase, instance.reservation_id is None) == (phase, phase == "stopped")
    # Nothing else than a block: who owes for too long runs nothing, whatever was paid ahead.
    Account.objects.filter(organization=acme_buys.project.organization, kind="receivable").update(
        sanction="stop_on_demand"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collecting, "review", lambda **_: None)
        assert rentals.stop_what_nobody_can_pay_for(at=acme_buys.at(3), limit=10) == 1
    inside.refresh_from_db()
    assert (inside.desired, inside.reason) == ("stopped", "no_funds")
