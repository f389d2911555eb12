"""Risk on spot: who may be outbid is told under the id of the notice to come, and how often it happens is counted."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace import rentals, risk, spot, spot_terms
from marketplace.access import Actor
from marketplace.models import Auction, Bid, Offer, Organization, Project, User
from provisioning import advisories, interruptions
from provisioning.models import OPEN_STATES, Assignment, Instance, Interruption, Node, Quota
from tests.conftest import Fleet, Run, make_token, order
from tests.marketplace.api.program import Program
from tests.marketplace.events.conftest import published

pytestmark = pytest.mark.django_db

CENT = 10_000
NOTICE_S, INTERVAL_S = 30, 60

Place = Callable[..., Bid]
Tick = Callable[..., Auction]


@pytest.fixture
def offer(fleet: Fleet, project: Project) -> Offer:
    """Sixteen H200s by auction: 50 cents reserve, a tick each minute, half a minute of notice."""
    Quota.objects.update(limit=1000)
    spot_terms.set_terms(
        offer=fleet.h200, by="carol@operator.example", at=timezone.now(), reserve_micros=50 * CENT, grid_micros=CENT,
        interval_s=INTERVAL_S, min_notice_s=NOTICE_S, hysteresis_bp=0, rise_bp=10_000,
    )  # fmt: skip
    return fleet.h200


@pytest.fixture
def place(actor: Actor, project: Project, offer: Offer) -> Place:
    """Bid for eight GPUs as Alice."""

    def placed(cents: int, **overrides: Any) -> Bid:
        with transaction.atomic():
            return spot.bid(
                actor=actor, project=project, order=order(offer, **{"gpus": 8} | overrides),
                max_price_micros=cents * CENT, at=timezone.now(),
            )  # fmt: skip

    return placed


@pytest.fixture
def tick(offer: Offer, run_until_idle: Run) -> Iterator[Tick]:
    """Hold the next auction, advise, tell who is to go, and let everything follow."""
    started = timezone.now().replace(second=0, microsecond=0) + timedelta(minutes=1)
    with time_machine.travel(started, tick=False) as clock:

        def ticked(*, seconds: float = INTERVAL_S) -> Auction:
            clock.shift(timedelta(seconds=seconds))
            held = spot.clear(offer_id=offer.pk, at=timezone.now())
            spot.advise(offer_id=offer.pk, at=timezone.now())
            interruptions.announce_due(at=timezone.now(), limit=100)
            run_until_idle()
            spot.advise(offer_id=offer.pk, at=timezone.now())
            return held

        yield ticked


def ladder(bid: Bid) -> list[str]:
    return list(Interruption.objects.filter(instance=bid.instance_id).order_by("pk").values_list("state", flat=True))


def generation(bid: Bid) -> int:
    return Node.objects.get(assignments__instance=bid.instance_id).desired_generation


def test_who_bids_near_the_price_is_told_before_the_notice_and_under_its_id(tick: Tick, place: Place) -> None:
    low, high = place(54), place(90)
    tick()
    assert (ladder(low), ladder(high)) == (["advised"], [])
    (advised,) = Interruption.objects.all()
    assert (advised.reason, advised.notice_at, advised.min_notice_s) == ("outbid", None, NOTICE_S)
    assert interruptions.open_of(low.instance) is None
    before = generation(low)
    tick()
    assert (ladder(low), generation(low)) == (["advised"], before), "what is so already is told once"
    place(80)
    tick()
    told = Interruption.objects.get()
    assert (told.pk, told.public_id, told.state) == (advised.pk, advised.public_id, "notified")
    assert told.advised_at == advised.advised_at < told.notice_at
    assert told.deadline_at == told.notice_at + timedelta(seconds=NOTICE_S)


def test_nobody_is_told_while_gpus_are_left_over(tick: Tick, place: Place) -> None:
    low = place(50)
    assert tick().capacity_gpus == 16
    assert ladder(low) == []


def test_an_advisory_is_called_off_by_a_raise_and_by_an_auction_with_room(
    tick: Tick, place: Place, actor: Actor, run_until_idle: Run
) -> None:
    low, high = place(54), place(55)
    tick()
    assert (ladder(low), ladder(high)) == (["advised"], ["advised"])
    for cents, state in ((55, "advised"), (56, "cancelled")):  # Ten percent above 50 cents is still near.
        spot.change(actor=actor, bid=low, max_price_micros=cents * CENT, at=timezone.now())
        assert ladder(low) == [state]
    rentals.terminate(actor=actor, instance=Instance.objects.get(pk=low.instance_id), at=timezone.now())
    run_until_idle()
    tick()
    assert ladder(high) == ["cancelled"]
    place(60)
    tick()
    assert ladder(high) == ["cancelled", "advised"]


def test_an_advisory_ends_with_its_run_and_holds_nothing_up(
    tick: Tick, place: Place, actor: Actor, run_until_idle: Run
) -> None:
    low = place(50)
    place(90)
    tick()
    instance = Instance.objects.select_related("project__organization", "offer", "price_version").get(bid=low)
    rentals.stop(actor=actor, instance=instance, at=timezone.now())
    run_until_idle()
    assert advisories.documents([Instance.objects.get(pk=instance.pk)]) == {}
    rentals.start(actor=actor, instance=Instance.objects.get(pk=instance.pk), at=timezone.now())
    tick()
    tick()
    assert ladder(low) == ["cancelled", "advised"]


@pytest.mark.django_db
def test_a_plan_takes_the_place_of_an_advisory_of_the_same_moment(tick: Tick, place: Place) -> None:
    low = place(50)
    place(90)
    tick()
    interruptions.plan(
        instance_ids=[low.instance_id], reason=Interruption.Reason.MAINTENANCE, min_notice_s=5, since=timezone.now()
    )
    (row,) = Interruption.objects.all()
    assert (row.state, row.reason, row.min_notice_s) == ("planned", "maintenance", 5)
    assert row.state in OPEN_STATES
    # What is planned for is told no less by the next look.
    spot.advise(offer_id=low.offer_id, at=timezone.now())
    assert ladder(low) == ["planned"]


def test_every_door_tells_it(
    tick: Tick, place: Place, alice: User, acme: Organization, fleet: Fleet, client: Client
) -> None:
    low = place(50)
    place(90)
    tick()
    (advised,) = Interruption.objects.all()
    program = Program(make_token(alice, acme))
    instance_id = low.instance.public_id
    expected = {"level": "elevated", "interruption": advised.public_id}
    for path in (f"instances/{instance_id}", f"bids/{low.public_id}"):
        answer = program.get(path).json()
        assert {name: answer["risk"][name] for name in expected} == expected
        assert answer["interruption"] is None
    (row,) = program.get(f"instances/{instance_id}/interruptions").json()["data"]
    assert (row["state"], row["notice_at"], row["deadline_at"]) == ("advised", None, None)
    client.force_login(alice)
    assert 'id="risk"' in client.get(reverse("instance", args=[instance_id])).content.decode()
    assert "the next auction may outbid it" in client.get(reverse("bids")).content.decode()
    (event,) = [one for one in published() if one.type == "risk.elevated"]
    assert (event.subject_id, event.data["interruption"]["id"]) == (instance_id, advised.public_id)
    wanted = Assignment.objects.get(instance=low.instance_id)
    document = advisories.documents([Instance.objects.get(pk=low.instance_id)])
    assert document[wanted.instance_id]["id"] == advised.public_id
    (entry,) = fleet.nodes[wanted.node.name].sync()["desired"]["assignments"]
    assert (entry["risk"]["id"], entry["notice"]) == (advised.public_id, None)


def test_the_risk_of_an_offer_is_what_the_market_interrupted_over_what_ran(
    tick: Tick, place: Place, alice: User, acme: Organization, offer: Offer, run_until_idle: Run
) -> None:
    assert risk.of_offer(offer, at=timezone.now()) is None
    place(60)
    place(90)
    tick()
    tick(seconds=3600)
    place(80)
    tick(seconds=3600)
    with time_machine.travel(timezone.now() + timedelta(seconds=NOTICE_S), tick=False):
        run_until_idle()
        found = risk.of_offer(offer, at=timezone.now())
        assert found is not None
        # Two winners for two hours, then two more for half a minute; one of them had to go.
        assert (found.interruptions, found.instance_ms) == (1, 2 * 2 * 3_600_000 + 2 * 30_000)
        assert (found.percent_per_hour, found.level) == ("24.90", "high")
        shown = Program(make_token(alice, acme)).get(f"offers/{offer.slug}/spot").json()["interruption_risk"]
        assert (shown["percent_per_hour"], shown["instance_hours"], shown["level"]) == ("24.90", 4, "high")
        assert risk.of_offer(offer, at=timezone.now() + timedelta(days=8)) is None


@pytest.mark.parametrize(
    ("interruptions", "hours", "percent", "level"),
    [(0, 10, "0.00", "low"), (1, 101, "0.99", "low"), (1, 100, "1.00", "moderate"), (1, 20, "5.00", "high"),
     (3, 1, "100.00", "high"), (1, 3, "33.33", "high")],
)  # fmt: skip
def test_a_risk_is_rounded_once_and_has_a_word(interruptions: int, hours: int, percent: str, level: str) -> None:
    found = risk.Risk(interruptions=interruptions, instance_ms=hours * risk.HOUR_MS, since=timezone.now())
    assert (found.percent_per_hour, found.level) == (percent, level)
