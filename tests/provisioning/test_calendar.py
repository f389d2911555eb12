"""What is promised of an offer, hour by hour, against a list of numbers."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.test import TestCase
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from marketplace import rentals
from marketplace.access import Actor
from marketplace.models import Offer, Project
from provisioning import calendar, instances, nodes, quotas, reports
from provisioning.errors import NoCapacity
from provisioning.health import remedies
from provisioning.models import Capacity, CommittedDay, Gpu, Instance, Node, NodeHold
from provisioning.protocol import Inventory, Report
from tests.billing.makers import at_the_same_moment, behind, while_it_waits
from tests.conftest import Fleet, Rent, Run, shared_with_nobody
from tests.nodes import PlayedNode, facts

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
GPUS = 16
SPAN = 18  # Past midnight.


@pytest.fixture
def offer(fleet: Fleet) -> Offer:
    """An offer of two nodes of eight GPUs."""
    assert sum(node.gpu_count for node in Node.objects.filter(offer=fleet.h200)) == GPUS
    return fleet.h200


def commit(offer: Offer, gpus: int, first: int, last: int) -> None:
    """Commit from the first hour after noon until the last."""
    with transaction.atomic():
        calendar.commit(
            offer_id=offer.pk, gpus=gpus, starts_at=NOON + first * HOUR, ends_at=NOON + last * HOUR, at=NOON
        )


def release(offer: Offer, gpus: int, first: int, last: int) -> None:
    calendar.release(offer_id=offer.pk, gpus=gpus, starts_at=NOON + first * HOUR, ends_at=NOON + last * HOUR, at=NOON)


def test_commitments_fill_each_hour_of_their_window_and_no_other(offer: Offer) -> None:
    commit(offer, 10, 1, 3)
    commit(offer, 6, 2, 4)
    assert [calendar.free(offer_id=offer.pk, starts_at=NOON + n * HOUR, ends_at=NOON + (n + 1) * HOUR)
            for n in range(5)] == [16, 6, 0, 10, 16]  # fmt: skip
    with pytest.raises(NoCapacity, match="at its fullest, 0 are"):
        commit(offer, 1, 0, 3)
    assert calendar.free(offer_id=offer.pk, starts_at=NOON, ends_at=NOON + HOUR) == 16


def test_what_runs_on_demand_counts_in_every_hour_to_come(offer: Offer) -> None:
    calendar.open_ended(offer_id=offer.pk, gpus=4, at=NOON)
    with pytest.raises(NoCapacity):
        commit(offer, 13, 1000, 1001)
    commit(offer, 12, 1000, 1001)
    with pytest.raises(NoCapacity, match="of 16 GPUs, 4 run on demand and up to 12 are reserved"):
        calendar.open_ended(offer_id=offer.pk, gpus=1, at=NOON)
    calendar.close(offer_id=offer.pk, gpus=4)
    calendar.open_ended(offer_id=offer.pk, gpus=4, at=NOON)


def test_what_is_released_leaves_the_fullest_hour_before_it(offer: Offer) -> None:
    commit(offer, 10, 1, 2)
    commit(offer, 4, 5, 6)
    release(offer, 4, 5, 6)
    with pytest.raises(NoCapacity):
        calendar.open_ended(offer_id=offer.pk, gpus=7, at=NOON)


def test_gpus_without_an_end_fit_from_the_first_hour_on_that_leaves_exactly_so_many(offer: Offer) -> None:
    commit(offer, 10, 1, 3)
    commit(offer, 9, 3, 5)
    begins = [calendar.next_open(offer_id=offer.pk, gpus=gpus, at=NOON) for gpus in (6, 7, 8, 17)]
    assert begins == [NOON, NOON + 3 * HOUR, NOON + 5 * HOUR, None]


def test_hours_that_are_over_limit_nothing_any_more(offer: Offer) -> None:
    commit(offer, 16, 0, 1)
    with pytest.raises(NoCapacity):
        calendar.open_ended(offer_id=offer.pk, gpus=1, at=NOON + timedelta(minutes=59))
    calendar.open_ended(offer_id=offer.pk, gpus=1, at=NOON + HOUR)


def test_only_gpus_in_good_order_on_nodes_that_may_be_sold_are_promised(offer: Offer) -> None:
    node = Node.objects.get(name="h200-1")
    Gpu.objects.filter(node=node, index=0).update(healthy=False)
    calendar.count(at=NOON)
    assert Capacity.objects.get(pk=offer.pk).gpus == 15
    Gpu.objects.filter(node=node, index=1).update(state="quarantined")
    calendar.count(at=NOON)
    assert Capacity.objects.get(pk=offer.pk).gpus == 14
    for out in ({"is_held": True}, {"is_held": False, "state": "cordoned"}):
        Node.objects.filter(pk=node.pk).update(**out)
        calendar.count(at=NOON)
        assert Capacity.objects.get(pk=offer.pk).gpus == 8


@pytest.mark.parametrize("out", ["is_held", "cordoned", "quarantined"])
def test_what_runs_on_demand_on_what_is_out_is_not_missing_twice(
    offer: Offer, rent: Rent, run_until_idle: Run, out: str
) -> None:
    Node.objects.filter(name="h200-2").update(is_held=True)
    instance = rent(gpus=6)
    run_until_idle()
    Node.objects.filter(name="h200-2").update(is_held=False)
    node = Node.objects.filter(name="h200-1")
    if out == "quarantined":
        Gpu.objects.filter(node__in=node).update(state="quarantined")
    else:
        node.update(**{"is_held": True} if out == "is_held" else {"state": "cordoned"})
    calendar.count(at=timezone.now())
    assert Capacity.objects.get(pk=offer.pk).gpus == 6 + 8
    book(offer, 8)
    with pytest.raises(NoCapacity):
        book(offer, 1)
    instance.refresh_from_db()
    instances.terminate(instance=instance, at=timezone.now())
    run_until_idle()
    calendar.count(at=timezone.now())
    capacity = Capacity.objects.get(pk=offer.pk)
    assert (capacity.gpus, capacity.open_ended) == (8, 0)


def test_an_instance_is_promised_from_its_launch_until_its_nodes_confirmed_the_end(
    rent: Rent, run_until_idle: Run
) -> None:
    instance = rent(gpus=3)
    assert Capacity.objects.get(pk=instance.offer_id).open_ended == 3
    run_until_idle()
    instance.refresh_from_db()
    instances.terminate(instance=instance, at=timezone.now())
    assert Capacity.objects.get(pk=instance.offer_id).open_ended == 3
    run_until_idle()
    assert Instance.objects.get(pk=instance.pk).phase == "terminated"
    assert Capacity.objects.get(pk=instance.offer_id).open_ended == 0


windows = st.tuples(st.integers(0, SPAN - 1), st.integers(1, SPAN)).filter(lambda window: window[0] < window[1])
moves = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.integers(1, GPUS), windows),
        st.tuples(st.just("release"), st.integers(0, 5), st.none()),
        st.tuples(st.just("open"), st.integers(1, GPUS), st.none()),
        st.tuples(st.just("close"), st.integers(0, 5), st.none()),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=moves)
def test_no_hour_is_ever_promised_beyond_its_gpus_and_none_is_refused_that_fits(offer: Offer, moves: list[Any]) -> None:
    with transaction.atomic():
        committed: list[tuple[int, tuple[int, int]]] = []
        running: list[int] = []
        for verb, number, window in moves:
            hours = [sum(gpus for gpus, (first, last) in committed if first <= hour < last) for hour in range(SPAN)]
            if verb == "commit":
                fits = max(hours[slice(*window)]) + sum(running) + number <= GPUS
                _try(lambda n=number, w=window: commit(offer, n, *w), fits)
                committed += [(number, window)] if fits else []
            elif verb == "open":
                # Nothing is reserved, so only nodes limit; placement claims them first.
                fits = max(hours) == 0 or max(hours) + sum(running) + number <= GPUS
                _try(lambda n=number: calendar.open_ended(offer_id=offer.pk, gpus=n, at=NOON), fits)
                running += [number] if fits else []
            elif verb == "release" and number < len(committed):
                gpus, (first, last) = committed.pop(number)
                release(offer, gpus, first, last)
            elif verb == "close" and number < len(running):
                calendar.close(offer_id=offer.pk, gpus=running.pop(number))
        rows = calendar.committed(offer_ids=[offer.pk], starts_at=NOON - 24 * HOUR)[offer.pk]
        expected = [sum(gpus for gpus, (first, last) in committed if first <= hour < last) for hour in range(SPAN)]
        assert [rows.pop(NOON + hour * HOUR, 0) for hour in range(SPAN)] == expected
        assert not rows
        assert CommittedDay.objects.exists() == any(expected)
        peak = calendar.peak_within(offer_id=offer.pk, starts_at=NOON, ends_at=None)
        assert peak == max(expected)
        calendar.count(at=NOON)
        free = calendar.free_by_hour(offer_ids=[offer.pk], starts_at=NOON, hours=SPAN)[offer.pk]
        assert free == [max(0, GPUS - sum(running) - gpus) for gpus in expected]
        transaction.set_rollback(True)


def _try(verb: Callable[[], None], fits: bool) -> None:
    if fits:
        verb()
    else:
        with pytest.raises(NoCapacity), transaction.atomic():
            verb()


def book_more_than_half_twice(offer: Offer) -> tuple[list[str], int]:
    """Return what came of two bookings of the same hour at once, and how many GPUs are then committed."""
    calendar.lock(offer_id=offer.pk, at=NOON)
    came = behind(Capacity.objects.all(), *[partial(commit, offer, GPUS // 2 + 1, 0, 1)] * 2)
    (day,) = CommittedDay.objects.all()
    return came, max(day.gpus)


@pytest.mark.django_db(transaction=True)
def test_more_than_half_is_committed_once(offer: Offer) -> None:
    assert book_more_than_half_twice(offer) == (["NoCapacity", "done"], GPUS // 2 + 1)


@pytest.mark.django_db(transaction=True)
def test_without_a_second_look_behind_the_lock_it_is_committed_twice(
    offer: Offer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there.xmin <> locked.version" in calendar.COMMIT
    monkeypatch.setattr(calendar, "COMMIT", calendar.COMMIT.replace("there.xmin <> locked.version", "false"))
    assert book_more_than_half_twice(offer) == (["done", "done"], GPUS + 2)


@pytest.mark.django_db(transaction=True)
def test_of_sixteen_bookings_at_once_only_those_that_fit_are_made(offer: Offer) -> None:
    book = partial(commit, offer, 3, 0, 4)
    fit = GPUS // 3
    assert at_the_same_moment(*[book] * 16) == ["NoCapacity"] * (16 - fit) + ["done"] * fit
    assert list(CommittedDay.objects.values_list("gpus", flat=True)) == [[0] * 12 + [15] * 4 + [0] * 8]


@pytest.mark.django_db(transaction=True)
def test_a_count_that_waits_for_a_commitment_sees_its_hours(offer: Offer) -> None:
    calendar.count(at=NOON)
    while_it_waits(lambda: commit(offer, 10, 1, 3), lambda: calendar.count(at=NOON))
    assert Capacity.objects.get(pk=offer.pk).peak == 10
    with pytest.raises(NoCapacity):
        calendar.open_ended(offer_id=offer.pk, gpus=7, at=NOON)


def test_days_that_are_long_over_are_forgotten_a_few_at_a_time(offer: Offer) -> None:
    commit(offer, 5, 0, 24 * 4)  # The afternoon of a day, three whole ones, and a morning.
    assert calendar.forget(at=NOON + 35 * HOUR, limit=9) == 0
    assert calendar.forget(at=NOON + (12 + 3 * 24) * HOUR, limit=2) == 2
    assert calendar.forget(at=NOON + (12 + 3 * 24) * HOUR, limit=2) == 1
    assert [day.day.day for day in CommittedDay.objects.order_by("day")] == [7, 8]
    release(offer, 5, 0, 24 * 4)
    assert not CommittedDay.objects.exists()


def test_a_day_refuses_less_than_nothing_and_another_number_of_hours(offer: Offer) -> None:
    for gpus, fault in ([[-1] + [1] * 23, "never_below_zero"], [[1] * 23, "has_24_hours"]):
        with pytest.raises(IntegrityError, match=fault), transaction.atomic():
            CommittedDay.objects.create(offer=offer, day=NOON - 12 * HOUR, gpus=gpus)


def test_what_is_free_on_a_node_that_a_tenant_has_alone_is_promised_to_nobody_else(
    rent: Rent, fleet: Fleet, project: Project
) -> None:
    shared_with_nobody(project)
    quotas.set_limit(project_id=project.pk, limit=100)
    rent()
    offer, at = fleet.h200, timezone.now()
    window: dict[str, Any] = {
        "offer_id": offer.pk,
        "starts_at": calendar.hour_of(at) + HOUR,
        "ends_at": calendar.hour_of(at) + 2 * HOUR,
    }
    calendar.count(at=at, offer_id=offer.pk)
    assert (calendar.gpus_of_offer(offer.pk), calendar.gpus_there(offer.pk, at=at)) == (9, 9)
    with pytest.raises(NoCapacity, match="at its fullest, 8 are"):
        calendar.commit(gpus=15, at=at, **window)
    calendar.commit(gpus=8, at=at, **window)
    # The tenant itself goes on as before: what it takes there is counted again.
    rent(gpus=7)
    assert (calendar.gpus_of_offer(offer.pk), calendar.gpus_there(offer.pk, at=at)) == (16, 16)


@pytest.fixture
def alone(rent: Rent, fleet: Fleet, project: Project) -> Rent:
    """Rent as somebody whose policy shares no host, of an offer that was counted before."""
    quotas.set_limit(project_id=project.pk, limit=100)
    calendar.count(at=timezone.now(), offer_id=fleet.h200.pk)
    shared_with_nobody(project)
    return rent


def book(offer: Offer, gpus: int) -> None:
    at = timezone.now()
    start = calendar.hour_of(at) + HOUR
    with transaction.atomic():
        calendar.commit(offer_id=offer.pk, gpus=gpus, starts_at=start, ends_at=start + HOUR, at=at)


def test_a_sale_sees_a_node_that_was_closed_since_the_last_sweep(alone: Rent, fleet: Fleet) -> None:
    alone()
    with pytest.raises(NoCapacity, match="at its fullest, 8 are"):
        book(fleet.h200, 9)
    book(fleet.h200, 8)


def test_a_sale_sees_what_came_free_on_a_node_that_stays_closed(alone: Rent, fleet: Fleet, run_until_idle: Run) -> None:
    first, second = alone(gpus=4), alone(gpus=4)
    run_until_idle()
    calendar.count(at=timezone.now(), offer_id=fleet.h200.pk)
    first.refresh_from_db()
    instances.terminate(instance=first, at=timezone.now())
    run_until_idle()
    assert Node.objects.get(exclusive_to__isnull=False).free_gpus == 4
    with pytest.raises(NoCapacity, match="at its fullest, 8 are"):
        book(fleet.h200, 9)
    assert second.gpus == 4


def test_a_launch_that_would_close_what_is_reserved_is_refused_and_closes_nothing(alone: Rent, fleet: Fleet) -> None:
    book(fleet.h200, 9)
    with pytest.raises(NoCapacity, match="do not fit beside what is reserved: of 9 GPUs"):
        alone()
    assert not Node.objects.filter(exclusive_to__isnull=False).exists()
    assert not Instance.objects.exists()
    calendar.release(offer_id=fleet.h200.pk, gpus=1, starts_at=calendar.hour_of(timezone.now()) + HOUR,
                     ends_at=calendar.hour_of(timezone.now()) + 2 * HOUR, at=timezone.now())  # fmt: skip
    alone()


def test_a_start_from_the_queue_that_would_close_what_is_reserved_waits(
    alone: Rent, fleet: Fleet, run_until_idle: Run, actor: Actor
) -> None:
    instance = alone()
    run_until_idle()
    instance.refresh_from_db()
    rentals.stop(actor=actor, instance=instance, at=timezone.now())
    run_until_idle()
    book(fleet.h200, 15)
    instance.refresh_from_db()
    rentals.start(actor=actor, instance=instance, at=timezone.now())
    run_until_idle()
    instance.refresh_from_db()
    assert instance.phase == "queued"
    assert not Node.objects.filter(exclusive_to__isnull=False).exists()


def test_setting_the_policy_closes_for_sale_at_once_what_it_closes(rent: Rent, fleet: Fleet, project: Project) -> None:
    rent()
    calendar.count(at=timezone.now(), offer_id=fleet.h200.pk)
    shared_with_nobody(project)
    with pytest.raises(NoCapacity, match="at its fullest, 8 are"):
        book(fleet.h200, 9)


def break_one(played: PlayedNode) -> None:
    """Let a node report that its first GPU is not well."""
    ill, *well = facts(played.node)
    said = Inventory(generation=2, gpus=[structs.replace(ill, healthy=False), *well])
    report = Report(
        node=played.node.public_id, key=played.key, boot_id="boot", agent_epoch=1, seq=1, desired_seen=0,
        inventory=said,
    )  # fmt: skip
    reports.take(report, at=timezone.now())


def fall_silent(played: PlayedNode) -> None:
    Node.objects.filter(pk=played.node.pk).update(reachability="unreachable")
    nodes.confirm_off(node=played.node, at=timezone.now())


def take_out(played: PlayedNode) -> None:
    gpu = played.node.gpus.get(index=0)
    with TestCase.captureOnCommitCallbacks(execute=True):
        remedies.take_out(gpu=gpu, reason="it is loud", at=timezone.now())


def hold_back(played: PlayedNode) -> None:
    with TestCase.captureOnCommitCallbacks(execute=True):
        nodes.hold(node=played.node, kind=NodeHold.Kind.HEALTH, reason="a fault", at=timezone.now())


LOSSES: dict[str, tuple[Callable[[PlayedNode], object], int]] = {
    "cordon": (lambda played: nodes.cordon(node=played.node, reason="a fan is loud", at=timezone.now()), 8),
    "drain": (lambda played: nodes.drain(node=played.node, reason="a new power supply", at=timezone.now()), 8),
    "a GPU that broke": (break_one, 15),
    "a node that is off": (fall_silent, 8),
    "a GPU that a person took out": (take_out, 15),
    "a node that is held back": (hold_back, 8),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_sale_sees_at_once_what_went_out_of_service(offer: Offer, fleet: Fleet, loss: str) -> None:
    calendar.count(at=timezone.now(), offer_id=offer.pk)
    go_out, left = LOSSES[loss]
    go_out(fleet.nodes["h200-1"])
    assert Capacity.objects.get(pk=offer.pk).gpus == left
    with pytest.raises(NoCapacity, match=f"at its fullest, {left} are"):
        book(offer, left + 1)
    book(offer, left)
