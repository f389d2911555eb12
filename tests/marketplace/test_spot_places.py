"""Winners for whose GPUs no place is found: they leave the book, others have the GPUs, and they come back."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from marketplace import access, rentals, spot, spot_book, spot_market, spot_places, spot_terms
from marketplace.access import Actor
from marketplace.models import Auction, Bid, Project
from provisioning import interruptions, prospects
from provisioning.errors import NeverFits
from provisioning.models import GpuHold, Instance, Node, Phase, Quota
from tests.conftest import Fleet, Run, order
from tests.marketplace.api.tables import every_row

pytestmark = pytest.mark.django_db

CENT = 10_000
INTERVAL_S, NOTICE_S = 60, 30
# One of four on each of two nodes.
HALVES: dict[str, Any] = {"gpus": 4, "replicas": 2, "wish": {"strategy": "spread", "level": "node", "required": True}}


@pytest.fixture
def sold(fleet: Fleet, project: Project) -> Fleet:
    Quota.objects.update(limit=1000)
    spot_terms.set_terms(
        offer=fleet.h200, by="carol@operator.example", at=timezone.now(), reserve_micros=50 * CENT, grid_micros=CENT,
        interval_s=INTERVAL_S, min_notice_s=NOTICE_S, hysteresis_bp=1000, rise_bp=10_000,
    )  # fmt: skip
    return fleet


Place = Callable[..., Bid]


@pytest.fixture
def place(actor: Actor, project: Project, sold: Fleet) -> Place:
    def placed(cents: int, **what: Any) -> Bid:
        with transaction.atomic():
            return spot.bid(
                actor=actor, project=project, order=order(sold.h200, **what), max_price_micros=cents * CENT,
                at=timezone.now(),
            )  # fmt: skip

    return placed


Tick = Callable[..., Auction]


@pytest.fixture
def tick(sold: Fleet, run_until_idle: Run) -> Tick:
    """Hold the next auctions, the last of which is returned, and let everything follow that follows by itself."""
    started = timezone.now().replace(second=0, microsecond=0) + timedelta(minutes=1)
    with time_machine.travel(started, tick=False) as clock:

        def ticked(times: int = 1) -> Auction:
            for _ in range(times):
                held = spot.clear(offer_id=sold.h200.pk, at=timezone.now())
                interruptions.announce_due(at=timezone.now(), limit=100)
                run_until_idle()
                clock.shift(timedelta(seconds=NOTICE_S))
                run_until_idle()
                Instance.objects.filter(phase=Phase.INTERRUPTED).update(restart_at=timezone.now())
                spot.resume(at=timezone.now(), limit=100)
                clock.shift(timedelta(seconds=INTERVAL_S - NOTICE_S))
                run_until_idle()
            return held

        yield ticked


def phase(bid: Bid) -> str:
    return Instance.objects.get(pk=bid.instance_id).phase


def standing(actor: Actor, bid: Bid) -> spot_market.Standing:
    return spot_market.standings([access.bids(actor).get(pk=bid.pk)])[0]


def end(bid: Bid, actor: Actor, run_until_idle: Run) -> None:
    rentals.terminate(actor=actor, instance=Instance.objects.get(pk=bid.instance_id), at=timezone.now())
    run_until_idle()


def test_a_bid_larger_than_any_node_is_refused_and_interrupts_nobody(tick: Tick, place: Place) -> None:
    others = [place(60, gpus=8), place(60, gpus=8)]
    tick()
    with pytest.raises(NeverFits, match="larger than one node"):
        place(249, gpus=8, replicas=2, wish={"level": "node", "required": True})
    tick()
    assert [phase(one) for one in others] == [Phase.RUNNING, Phase.RUNNING]


def test_who_won_and_finds_no_place_leaves_the_book_and_others_have_its_gpus_again(
    tick: Tick, place: Place, actor: Actor, run_until_idle: Run
) -> None:
    above = place(200, **HALVES)
    small = [place(60, gpus=4), place(60, gpus=4)]
    tick()
    large = place(100, gpus=8)
    tick(spot_places.TICKS + 1)
    assert [phase(above), phase(large)] == [Phase.RUNNING, Phase.QUEUED]
    assert standing(actor, large).state == "won"
    assert all(phase(one) != Phase.RUNNING for one in small)
    held = tick()
    left_out = standing(actor, large)
    assert left_out.state == "left_out"
    assert "no place was found for its GPUs together" in left_out.why
    assert [phase(one) for one in small] == [Phase.RUNNING, Phase.RUNNING]
    assert spot_market.published(held)["bids"] == 3
    assert f"{large.public_id} ".encode() not in spot_book.book_of(held)
    # What it could not have used is nobody else's loss any more; it comes back as soon as a node is free for it.
    end(small[0], actor, run_until_idle)
    tick()
    assert standing(actor, large).state == "left_out"
    end(above, actor, run_until_idle)
    tick()
    assert (phase(large), phase(small[1])) == (Phase.RUNNING, Phase.RUNNING)
    assert standing(actor, large).why == ""
    assert all(spot_book.check(one).is_right for one in Auction.objects.all())


def set_price(actor: Actor, bid: Bid, cents: int) -> str:
    spot.change(actor=actor, bid=Bid.objects.get(pk=bid.pk), max_price_micros=cents * CENT, at=timezone.now())
    return standing(actor, bid).state


def test_however_often_its_price_is_set_it_drives_nobody_out_again_for_gpus_that_are_no_place_for_it(
    tick: Tick, place: Place, actor: Actor
) -> None:
    place(200, **HALVES)
    small = [place(60, gpus=4), place(60, gpus=4)]
    tick()
    large = place(100, gpus=8)
    tick(spot_places.TICKS + 2)
    tick()
    since = Bid.objects.get(pk=large.pk).left_out_at
    for cents in (110, 120, 130):
        assert set_price(actor, large, cents) == "left_out"
        tick()
        assert [phase(one) for one in small] == [Phase.RUNNING, Phase.RUNNING]
    assert Bid.objects.get(pk=large.pk).left_out_at == since
    # Nor does bidding anew for the same, or starting again.
    with transaction.atomic():
        spot.withdraw(actor=actor, bid=Bid.objects.select_related("instance").get(pk=large.pk), at=timezone.now())
    anew = place(140, gpus=8)
    assert standing(actor, anew).state == "left_out"
    tick()
    assert [phase(one) for one in small] == [Phase.RUNNING, Phase.RUNNING]
    assert standing(actor, place(140, gpus=2)).state == "waiting"


def test_a_price_that_would_win_a_place_lets_it_take_part_again_and_it_has_that_place(
    tick: Tick, place: Place, actor: Actor, run_until_idle: Run
) -> None:
    halves = place(200, **HALVES)
    small = [place(60, gpus=4), place(60, gpus=4)]
    tick()
    large = place(100, gpus=8)
    tick(spot_places.TICKS + 2)
    end(halves, actor, run_until_idle)
    Bid.objects.filter(pk=large.pk).update(price_micros=50 * CENT)  # Until the others have what came free.
    others = [place(60, gpus=4), place(60, gpus=4)]
    Bid.objects.filter(pk=large.pk).update(left_out_at=None)
    tick()
    Bid.objects.filter(pk=large.pk).update(left_out_at=timezone.now())
    assert [phase(one) for one in (*small, *others)] == [Phase.RUNNING] * 4
    # The two that would lose are on one node each: no place. Once both of one node are the lowest, there is one.
    assert set_price(actor, large, 100) == "left_out"
    nodes = {one.pk: Node.objects.get(assignments__instance=one.instance_id, assignments__observed="running").pk
             for one in (*small, *others)}  # fmt: skip
    for one in (*small, *others):
        if nodes[one.pk] != nodes[small[0].pk]:
            set_price(actor, one, 90)
    assert set_price(actor, large, 101) == "waiting"
    tick()
    tick()
    assert phase(large) == Phase.RUNNING
    assert sum(phase(one) == Phase.RUNNING for one in (*small, *others)) == 2


def test_who_waits_for_gpus_that_are_still_to_be_given_back_is_not_left_out(
    tick: Tick, place: Place, actor: Actor, sold: Fleet
) -> None:
    old = place(60, gpus=8, replicas=2)
    tick()
    for node in sold.nodes.values():
        node.is_silent = True  # What was told to end there does not say that it has.
    new = place(100, gpus=8, replicas=2)
    tick(spot_places.TICKS + 3)
    assert GpuHold.objects.filter(released_at=None, assignment__instance=old.instance_id).count() == 16
    assert (phase(new), standing(actor, new).state) == (Phase.QUEUED, "won")


def test_of_two_that_were_left_out_one_place_takes_back_the_higher_bid_alone(
    tick: Tick, place: Place, actor: Actor, run_until_idle: Run
) -> None:
    above, beside = place(200, gpus=8), place(200, gpus=4)
    tick()
    low, high = place(90, gpus=8), place(100, gpus=8)
    Bid.objects.filter(pk__in=[low.pk, high.pk]).update(left_out_at=timezone.now())
    tick()
    assert [phase(one) for one in (above, high, low)] == [Phase.RUNNING, Phase.QUEUED, Phase.QUEUED]
    end(beside, actor, run_until_idle)
    tick()
    assert [phase(one) for one in (high, low)] == [Phase.RUNNING, Phase.QUEUED]
    assert [standing(actor, one).state for one in (high, low)] == ["running", "left_out"]


def test_looking_for_places_takes_as_many_questions_however_many_bids_there_are(place: Place, sold: Fleet) -> None:
    def look() -> int:
        Bid.objects.update(left_out_at=timezone.now())
        with CaptureQueriesContext(connection) as asked:
            assert spot_places.look(offer_id=sold.h200.pk, at=timezone.now()) == Bid.objects.count()
        return len(asked)

    place(60)
    look()
    one = look()
    for _ in range(4):
        place(60)
    assert look() == one


def test_looking_whether_places_are_free_takes_none_and_keeps_to_the_order(place: Place, sold: Fleet) -> None:
    bids = [place(60, gpus=gpus) for gpus in (8, 5, 4, 3)]
    before = every_row()
    found = prospects.fitting([(Instance.objects.get(pk=bid.instance_id), None) for bid in bids])
    assert found == {bids[0].instance_id, bids[1].instance_id, bids[3].instance_id}
    assert prospects.fitting([(Instance.objects.get(pk=bids[2].instance_id), None)]) == {bids[2].instance_id}
    assert every_row() == before
    assert list(Node.objects.filter(offer=sold.h200).values_list("free_gpus", flat=True)) == [8, 8]
