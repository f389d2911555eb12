"""Auctions, raises and notices at the same moment, on connections of their own; and workers killed in between."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import pytest
from django.db import connections, transaction
from django.utils import timezone

from billing import books
from marketplace import spot, spot_book, spot_terms
from marketplace.access import Actor
from marketplace.models import Auction, Bid, Project
from provisioning import calendar, instances, interruptions
from provisioning.models import Instance, Interruption, Phase, Quota
from tests.billing.makers import at_the_same_moment
from tests.conftest import Fleet, Run, order

pytestmark = pytest.mark.django_db(transaction=True)

CENT = 10_000


@pytest.fixture
def place(actor: Actor, project: Project, fleet: Fleet) -> Callable[..., Bid]:
    Quota.objects.update(limit=1000)
    spot_terms.set_terms(
        offer=fleet.h200, by="x", at=timezone.now(), reserve_micros=50 * CENT, interval_s=1200, min_notice_s=300
    )

    def placed(cents: int, **overrides: Any) -> Bid:
        wanted = order(fleet.h200, **{"gpus": 8, "replicas": 2} | overrides)
        with transaction.atomic():
            return spot.bid(
                actor=actor, project=project, order=wanted, max_price_micros=cents * CENT, at=timezone.now()
            )

    return placed


def next_tick(fleet: Fleet) -> None:
    """Let the next auction be due at once."""
    Auction.objects.filter(offer=fleet.h200).delete()


def test_sixteen_who_hold_the_same_auction_hold_one(place: Callable[..., Bid], fleet: Fleet) -> None:
    for cents in (60, 70, 80):
        place(cents, gpus=8, replicas=1)
    held = partial(spot.clear, offer_id=fleet.h200.pk, at=timezone.now())
    assert at_the_same_moment(*[held] * 16) == ["done"] * 16
    assert spot_book.check(Auction.objects.get()).is_right
    assert Instance.objects.filter(admitted_at__isnull=False).count() == 2


def test_of_many_raises_within_a_notice_one_calls_it_off(
    place: Callable[..., Bid], fleet: Fleet, actor: Actor, run_until_idle: Run
) -> None:
    old = place(60)
    spot.clear(offer_id=fleet.h200.pk, at=timezone.now())
    run_until_idle()
    place(70)
    next_tick(fleet)
    spot.clear(offer_id=fleet.h200.pk, at=timezone.now())
    told = Interruption.objects.get()

    def raises() -> None:
        found = Bid.objects.select_related("project__organization", "offer", "instance").get(pk=old.pk)
        spot.change(
            actor=actor, bid=found, max_price_micros=100 * CENT, at=timezone.now(), interruption_id=told.public_id
        )

    announce = partial(interruptions.announce_due, at=timezone.now(), limit=9)
    outcomes = at_the_same_moment(raises, announce, raises, announce, raises, announce, raises)
    assert outcomes == ["StaleInterruption"] * 3 + ["done"] * 4
    told.refresh_from_db()
    run_until_idle()
    assert (told.state, Instance.objects.get(pk=old.instance_id).phase) == ("cancelled", Phase.RUNNING)
    assert books.check(at=timezone.now()) == []


def test_raises_and_auctions_at_once_leave_nobody_half_told(
    place: Callable[..., Bid], fleet: Fleet, actor: Actor, run_until_idle: Run
) -> None:
    bids = [place(cents, gpus=4, replicas=1) for cents in (60, 61, 62, 63)]
    spot.clear(offer_id=fleet.h200.pk, at=timezone.now())
    run_until_idle()
    bids += [place(cents, gpus=4, replicas=1) for cents in (80, 81)]
    for cents in (90, 95, 99):
        next_tick(fleet)

        def raises(bid: Bid, cents: int = cents) -> None:
            found = Bid.objects.select_related("project__organization", "offer", "instance").get(pk=bid.pk)
            spot.change(actor=actor, bid=found, max_price_micros=cents * CENT, at=timezone.now())

        outcomes = at_the_same_moment(
            partial(spot.clear, offer_id=fleet.h200.pk, at=timezone.now()),
            *[partial(raises, bid) for bid in bids[:3]],
            partial(interruptions.announce_due, at=timezone.now(), limit=9),
        )
        assert outcomes == ["done"] * 5
        run_until_idle()
        assert spot_book.check(Auction.objects.get()).is_right
        told = Interruption.objects.filter(state="notified").values_list("instance", flat=True)
        assert set(told) == set(Instance.objects.filter(phase=Phase.NOTIFIED).values_list("pk", flat=True))
        assert books.check(at=timezone.now()) == []


def test_an_auction_waits_for_a_promise_without_a_deadlock_and_for_terms_that_are_being_set(
    place: Callable[..., Bid], fleet: Fleet
) -> None:
    placed = place(60)
    waits = []

    def clears() -> None:
        try:
            spot.clear(offer_id=fleet.h200.pk, at=timezone.now())
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            instances.lock([placed.instance_id])
            late = pool.submit(clears)
            waits += [not wait([late], timeout=1).done]
            calendar.lock(offer_id=fleet.h200.pk, at=timezone.now())  # As who promises GPUs does, last.
        late.result(20)
        next_tick(fleet)
        with transaction.atomic():
            spot_terms.set_terms(offer=fleet.h200, by="x", at=timezone.now(), buffer_gpus=9)
            late = pool.submit(clears)
            waits += [not wait([late], timeout=1).done]
        late.result(20)
    assert waits == [True, True]
    assert Auction.objects.get().capacity_gpus == 7


@pytest.mark.parametrize("dies_in", ["_store", "_allocate", "_carry_out", "plan"])
def test_a_worker_killed_within_an_auction_leaves_nothing_and_the_next_one_holds_it_whole(
    place: Callable[..., Bid], fleet: Fleet, run_until_idle: Run, monkeypatch: pytest.MonkeyPatch, dies_in: str
) -> None:
    place(60)
    spot.clear(offer_id=fleet.h200.pk, at=timezone.now())
    run_until_idle()
    place(99)
    next_tick(fleet)
    real = getattr(spot, dies_in)

    def dies(*given: Any, **more: Any) -> Any:
        real(*given, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(spot, dies_in, dies)
    with pytest.raises(KeyboardInterrupt):
        spot.clear(offer_id=fleet.h200.pk, at=timezone.now())
    monkeypatch.undo()
    assert not Auction.objects.exists()
    assert not Interruption.objects.exists()
    spot.clear(offer_id=fleet.h200.pk, at=timezone.now())
    assert Interruption.objects.filter(state="planned").count() == 1
    assert Auction.objects.get().allocations.count() == 1
    assert books.check(at=timezone.now()) == []
