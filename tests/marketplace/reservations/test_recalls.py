"""Lent GPUs on scattered nodes: spot leaves the nodes that a holder needs, and what cannot be placed is given back."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from billing import books
from marketplace import delivery, recalls, rentals, spot
from marketplace.models import Bid, Reservation, Shortfall
from provisioning import calendar, interruptions, room
from provisioning.models import GpuHold, Instance, Interruption
from tests.blocks import PRICE, Buyer
from tests.conftest import Run, order
from tests.marketplace.reservations.conftest import CENT, INTERVAL_S, NOTICE_S

pytestmark = pytest.mark.django_db


Place = Callable[..., Bid]


@pytest.fixture
def place(acme_buys: Buyer, lent: Reservation, clock: Any, run_until_idle: Run) -> Place:
    """Let Acme bid and run; each bid for four GPUs takes the tightest node that has them."""

    def placed(cents: int, gpus: int = 4) -> Bid:
        with transaction.atomic():
            bid = spot.bid(
                actor=acme_buys.actor, project=acme_buys.project, order=order(acme_buys.offer, gpus=gpus),
                max_price_micros=cents * CENT, at=timezone.now(),
            )  # fmt: skip
        clock.shift(timedelta(seconds=INTERVAL_S))
        spot.clear(offer_id=acme_buys.offer.pk, at=timezone.now())
        run_until_idle()
        assert phase(bid) == "running"
        return bid

    return placed


def phase(bid: Bid) -> str:
    return Instance.objects.get(pk=bid.instance_id).phase


def node_of(bid: Bid) -> int:
    (node,) = set(GpuHold.objects.filter(assignment__instance=bid.instance_id).values_list("gpu__node", flat=True))
    return node


def start(buyer: Buyer, **what: Any) -> Instance:
    with transaction.atomic():
        return rentals.rent(actor=buyer.actor, project=buyer.project, order=order(buyer.offer, **what),
                            at=timezone.now())  # fmt: skip


def recall() -> None:
    recalls.recall_due(at=timezone.now(), limit=10)
    interruptions.announce_due(at=timezone.now(), limit=10)


def told() -> set[int]:
    return set(Interruption.objects.values_list("instance", flat=True))


@pytest.fixture
def scattered(place: Place) -> list[Bid]:
    """Sixteen lent GPUs, four bids: on one node at 60 and 90 cents, on the other at 61 and 91."""
    found = [place(cents) for cents in (60, 90, 61, 91)]
    assert node_of(found[0]) == node_of(found[1]) != node_of(found[2]) == node_of(found[3])
    return found


def test_spot_leaves_one_node_whole_and_the_holder_runs_after_the_notice(
    scattered: list[Bid], lent: Reservation, other_buys: Buyer, clock: Any, run_until_idle: Run
) -> None:
    mine = start(other_buys, gpus=8)
    assert (mine.reservation_id, mine.phase) == (lent.pk, "queued")
    for _ in range(2):
        recall()
    assert told() == {scattered[0].instance_id, scattered[1].instance_id}
    clock.shift(timedelta(seconds=NOTICE_S))
    run_until_idle()
    clock.shift(timedelta(seconds=5))
    run_until_idle()
    assert Instance.objects.get(pk=mine.pk).phase == "running"
    assert [phase(bid) for bid in scattered] == ["interrupted", "interrupted", "running", "running"]
    recall()
    assert len(told()) == 2
    assert books.check(at=timezone.now()) == []


def test_only_as_much_goes_as_is_in_the_way_the_lowest_bids_first(
    scattered: list[Bid], other_buys: Buyer, run_until_idle: Run
) -> None:
    start(other_buys, gpus=2)
    recall()
    assert told() == {scattered[0].instance_id}
    start(other_buys, gpus=2)
    recall()
    assert told() == {scattered[0].instance_id}
    start(other_buys, gpus=4)
    recall()
    assert told() == {scattered[0].instance_id, scattered[2].instance_id}


def test_of_equal_bids_the_later_one_goes_and_what_it_leaves_is_shut_for_spot(
    place: Place, other_buys: Buyer, run_until_idle: Run
) -> None:
    early, late = place(60), place(60)
    for _ in range(2):
        place(90)
    start(other_buys, gpus=2)
    recall()
    assert told() == {late.instance_id}
    assert phase(early) == "running"
    assert calendar.spot_left(other_buys.offer.pk) == -4


def test_what_is_free_on_a_node_spares_the_cheaper_ones_elsewhere(
    place: Place, other_buys: Buyer, lent: Reservation, acme_buys: Buyer, run_until_idle: Run
) -> None:
    cheap = [place(50), place(51)]
    dear = place(99)
    assert node_of(cheap[0]) == node_of(cheap[1]) != node_of(dear)
    start(other_buys, gpus=8)
    recall()
    # Its dearest one decides: the node with two low bids, not the one with a single high one.
    assert told() == {bid.instance_id for bid in cheap}


def test_making_room_takes_as_many_questions_however_many_wait(scattered: list[Bid], other_buys: Buyer) -> None:
    candidates = [bid.instance_id for bid in scattered]

    def make() -> int:
        wanted = room.waiting(other_buys.offer.pk)
        with CaptureQueriesContext(connection) as asked:
            found = room.make(offer_id=other_buys.offer.pk, wanted=wanted, candidates=candidates)
        assert found.spot_gpus == 4 * len(wanted)
        return len(asked)

    start(other_buys, gpus=4)
    make()
    one = make()
    for _ in range(3):
        start(other_buys, gpus=4)
    assert make() == one


def test_two_who_wait_get_a_node_each(scattered: list[Bid], other_buys: Buyer, clock: Any, run_until_idle: Run) -> None:
    both = [start(other_buys, gpus=8) for _ in range(2)]
    recall()
    assert told() == {bid.instance_id for bid in scattered}
    for seconds in (NOTICE_S, 5):
        clock.shift(timedelta(seconds=seconds))
        run_until_idle()
    assert {Instance.objects.get(pk=one.pk).phase for one in both} == {"running"}


def test_a_gang_of_spot_that_is_in_the_way_goes_whole_and_the_rest_stays_shut_for_spot(
    acme_buys: Buyer, place: Place, other_buys: Buyer, clock: Any, run_until_idle: Run
) -> None:
    with transaction.atomic():
        gang = spot.bid(
            actor=acme_buys.actor, project=acme_buys.project, order=order(acme_buys.offer, gpus=8, replicas=2),
            max_price_micros=60 * CENT, at=timezone.now(),
        )  # fmt: skip
    clock.shift(timedelta(seconds=INTERVAL_S))
    spot.clear(offer_id=acme_buys.offer.pk, at=timezone.now())
    run_until_idle()
    start(other_buys, gpus=8)
    assert recalls.recall(offer_id=acme_buys.offer.pk, at=timezone.now()) == 16
    assert told() == {gang.instance_id}


@pytest.fixture
def stuck(acme_buys: Buyer, other_buys: Buyer, clock: Any, run_until_idle: Run) -> tuple[Reservation, Instance]:
    """Eight reserved GPUs that are there by count, four on each node, since others run on the rest; one start of 8."""
    kept, going, other = (start(acme_buys, gpus=4) for _ in range(3))
    run_until_idle()
    # The tightest node took the first two; the third is alone on the other one, and so is the first from now on.
    going.refresh_from_db()
    rentals.terminate(actor=acme_buys.actor, instance=going, at=timezone.now())
    run_until_idle()
    held = GpuHold.objects.filter(assignment__instance__in=[kept, other], released_at=None)
    assert len(set(held.values_list("gpu__node", flat=True))) == 2
    reservation = other_buys.buy(8, 2, 6, at=1.5)
    other_buys.go_to(2)
    mine = start(other_buys, gpus=8, attach="strict")
    assert mine.reservation_id == reservation.pk
    return reservation, mine


def test_what_no_recall_can_place_is_given_back_after_ten_minutes(
    stuck: tuple[Reservation, Instance], other_buys: Buyer, clock: Any
) -> None:
    reservation, mine = stuck
    recall()
    assert told() == set()
    assert [one.pk for one in room.waiting(mine.offer_id)] == [mine.pk]
    for minutes, given in ((9, 0), (11, 8 * PRICE), (12, 8 * PRICE)):
        clock.move_to(other_buys.at(2 + minutes / 60))
        delivery.advance(at=timezone.now(), limit=100)
        assert sum(Shortfall.objects.values_list("refund_micros", flat=True)) == given
    assert Shortfall.objects.get(reservation=reservation).gpus == 8
    assert books.check(at=timezone.now()) == []


def test_what_no_empty_offer_could_place_is_not_our_fault(
    stuck: tuple[Reservation, Instance], other_buys: Buyer, clock: Any
) -> None:
    _, mine = stuck
    Instance.objects.filter(pk=mine.pk).update(
        replicas=4,
        gpus_per_replica=2,
        placement={"strategy": "spread", "level": "node", "required": True, "max_skew": 0},
    )
    assert room.make(offer_id=mine.offer_id, wanted=room.waiting(mine.offer_id), candidates=[]).stuck == []
    Instance.objects.filter(pk=mine.pk).update(replicas=1, gpus_per_replica=9, placement={})
    clock.move_to(other_buys.at(2.3))
    delivery.advance(at=timezone.now(), limit=100)
    assert not Shortfall.objects.exists()
