"""Bidding and auctions, from every door alike: money, quota, who runs at what price, and who is told to go."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from billing import accounts, books, credits, floating
from billing.errors import InsufficientFunds
from billing.models import Hold, UsageSpan
from marketplace import bids, blocks, recalls, rentals, spot, spot_book, spot_terms, tasks
from marketplace.access import Actor
from marketplace.errors import BadOrder, Conflict, ProjectSuspended
from marketplace.models import Auction, AuditEntry, Bid, Organization, Project, SpotTerms
from provisioning import calendar, interruptions, steps
from provisioning.errors import IllegalMove, QuotaExceeded, StaleInterruption
from provisioning.models import GpuHold, Instance, Interruption, Node, Phase, Quota
from tests.conftest import Fleet, Run, order
from tests.marketplace.api.tables import every_row
from tests.marketplace.test_spend import budget

pytestmark = pytest.mark.django_db

CENT = 10_000
USD = 1_000_000
NOTICE_S, INTERVAL_S = 30, 60


@pytest.fixture
def terms(fleet: Fleet, project: Project) -> SpotTerms:
    """H200s by auction: 16 GPUs, 50 cents reserve, a tick each minute, half a minute of notice."""
    Quota.objects.update(limit=1000)
    return spot_terms.set_terms(
        offer=fleet.h200, by="carol@operator.example", at=timezone.now(), reserve_micros=50 * CENT, grid_micros=CENT,
        interval_s=INTERVAL_S, min_notice_s=NOTICE_S, hysteresis_bp=1000, rise_bp=10_000,
    )  # fmt: skip


Place = Callable[..., Bid]


@pytest.fixture
def place(actor: Actor, project: Project, fleet: Fleet, terms: SpotTerms) -> Place:
    """Bid as Alice; what differs from one H200 for a dollar is named."""

    def placed(micros: int = USD, **overrides: Any) -> Bid:
        offer = overrides.pop("offer", fleet.h200)
        with transaction.atomic():
            return spot.bid(
                actor=actor, project=project, order=order(offer, **overrides), max_price_micros=micros,
                at=timezone.now(),
            )  # fmt: skip

    return placed


Tick = Callable[..., Auction]


@pytest.fixture
def tick(fleet: Fleet, run_until_idle: Run) -> Tick:
    """Hold the next auction, tell who is to go, and let everything follow."""
    started = timezone.now().replace(second=0, microsecond=0) + timedelta(minutes=1)
    with time_machine.travel(started, tick=False) as clock:

        def ticked(*, seconds: float = INTERVAL_S) -> Auction:
            clock.shift(timedelta(seconds=seconds))
            held = spot.clear(offer_id=fleet.h200.pk, at=timezone.now())
            interruptions.announce_due(at=timezone.now(), limit=100)
            run_until_idle()
            interruptions.settle_due(at=timezone.now(), limit=100)
            return held

        yield ticked


def phase(bid: Bid) -> str:
    return Instance.objects.get(pk=bid.instance_id).phase


def test_a_bid_holds_its_funds_and_quota_and_waits_for_the_auction_however_long(
    tick: Tick, place: Place, acme: Organization, project: Project, run_until_idle: Run
) -> None:
    placed = place(USD, gpus=2)
    assert accounts.wallet(organization=acme).held_micros == 2 * USD * (INTERVAL_S + NOTICE_S) // 3600
    assert Quota.objects.get(project=project).held == 2
    run_until_idle()
    assert phase(placed) == Phase.QUEUED
    held = tick(seconds=3600)
    assert (held.price_micros, held.capacity_gpus, phase(placed)) == (50 * CENT, 16, Phase.RUNNING)
    span = UsageSpan.objects.get()
    assert span.price_version.is_floating
    assert span.quantity == 2
    assert AuditEntry.objects.get(verb="bid.place").after["gpus"] == 2
    assert books.check(at=timezone.now()) == []


def test_what_bids_is_placed_as_it_was_ordered(tick: Tick, place: Place) -> None:
    placed = place(USD, gpus=2, replicas=2, wish={"strategy": "spread", "level": "node"})
    tick()
    assert phase(placed) == Phase.RUNNING
    nodes = GpuHold.objects.filter(assignment__instance=placed.instance_id).values_list("gpu__node", flat=True)
    assert len(set(nodes)) == 2


def test_who_is_outbid_is_told_keeps_its_price_leaves_and_comes_back(
    tick: Tick, place: Place, run_until_idle: Run, actor: Actor
) -> None:
    old = place(60 * CENT, gpus=8, replicas=2)
    tick()
    tick()
    assert phase(old) == Phase.RUNNING
    new = place(USD, gpus=8, replicas=2)
    held = tick()
    assert (held.price_micros, phase(old), phase(new)) == (60 * CENT, Phase.NOTIFIED, Phase.QUEUED)
    told = Interruption.objects.get()
    assert (told.reason, told.min_notice_s) == ("outbid", NOTICE_S)
    assert told.deadline_at == told.notice_at + timedelta(seconds=NOTICE_S)
    assert GpuHold.objects.filter(released_at=None, assignment__instance=old.instance).count() == 16
    clock = time_machine.travel(timezone.now() + timedelta(seconds=NOTICE_S), tick=False)
    with clock:
        run_until_idle()
        assert phase(old) == Phase.INTERRUPTED
        spot.resume(at=timezone.now(), limit=9)
        assert (phase(old), phase(new)) == (Phase.QUEUED, Phase.QUEUED)
    with time_machine.travel(timezone.now() + timedelta(seconds=NOTICE_S + 6), tick=False):
        run_until_idle()
        assert phase(new) == Phase.RUNNING
        assert {span.price_version.micros_per_unit_hour for span in UsageSpan.objects.filter(
            resource_id=old.instance.public_id)} == {50 * CENT}  # fmt: skip
        assert books.check(at=timezone.now()) == []
        rentals.terminate(actor=actor, instance=Instance.objects.get(pk=new.instance_id), at=timezone.now())
        run_until_idle()
    tick(seconds=120)
    assert phase(old) == Phase.RUNNING
    assert Instance.objects.get(pk=old.instance_id).run == 2
    assert books.check(at=timezone.now()) == []


def test_raising_the_bid_within_the_notice_calls_it_off_exactly_once(
    tick: Tick, place: Place, actor: Actor, run_until_idle: Run
) -> None:
    old = place(60 * CENT, gpus=8, replicas=2)
    tick()
    place(USD, gpus=8, replicas=2)
    tick()
    told = Interruption.objects.get()
    at = timezone.now()

    def raised(micros: int, **more: Any) -> Bid:
        found = Bid.objects.get(pk=old.pk)
        return spot.change(actor=actor, bid=found, max_price_micros=micros, at=at, **more)

    before = every_row()
    with pytest.raises(Conflict, match="not enough"):
        raised(70 * CENT, interruption_id=told.public_id)
    assert every_row() == before
    with pytest.raises(Conflict, match="meanwhile"):
        raised(2 * USD, expected_micros=61 * CENT)
    raised(2 * USD, interruption_id=told.public_id)
    told.refresh_from_db()
    assert (told.state, phase(old)) == (Interruption.State.CANCELLED, Phase.RUNNING)
    with pytest.raises(StaleInterruption):
        raised(2 * USD, interruption_id=told.public_id)
    tick()
    assert phase(old) == Phase.RUNNING
    assert books.check(at=timezone.now()) == []


def test_a_raise_that_wins_calls_nothing_off_below_the_price_that_holds_until_the_next_auction(
    tick: Tick, place: Place, actor: Actor
) -> None:
    low, high = place(60 * CENT, gpus=8), place(70 * CENT, gpus=8)
    tick()
    others = [place(USD, gpus=8), place(USD, gpus=8)]
    assert tick().charged_micros == 70 * CENT
    tick(seconds=1)
    for bid in others:
        spot.withdraw(actor=actor, bid=bid, at=timezone.now())

    def raised(bid: Bid, micros: int) -> None:
        spot.change(actor=actor, bid=Bid.objects.get(pk=bid.pk), max_price_micros=micros, at=timezone.now())

    raised(low, 69 * CENT)  # It would win now, but until the next auction it would pay more than it bids.
    raised(high, 75 * CENT)
    assert (phase(low), phase(high)) == (Phase.NOTIFIED, Phase.RUNNING)
    assert books.check(at=timezone.now()) == []


def test_a_bid_is_not_lowered_below_what_its_instance_pays_now(tick: Tick, place: Place, actor: Actor) -> None:
    running = place(USD, gpus=8)
    tick()
    for cents in (80, 70):
        place(cents * CENT, gpus=8)
    assert tick().charged_micros == 70 * CENT
    before = every_row()
    with pytest.raises(BadOrder, match=r"It pays .*0\.70"):
        spot.change(actor=actor, bid=running, max_price_micros=69 * CENT, at=timezone.now())
    assert every_row() == before
    spot.change(actor=actor, bid=running, max_price_micros=70 * CENT, at=timezone.now())


def test_a_bid_that_won_and_waits_for_its_gpus_is_not_lowered_below_what_it_will_pay(
    tick: Tick, place: Place, actor: Actor, run_until_idle: Run
) -> None:
    place(60 * CENT, gpus=8, replicas=2)
    tick()
    won = place(USD, gpus=8, replicas=2)
    assert (tick().charged_micros, phase(won)) == (60 * CENT, Phase.QUEUED)

    def lowered(cents: int) -> None:
        spot.change(actor=actor, bid=Bid.objects.get(pk=won.pk), max_price_micros=cents * CENT, at=timezone.now())

    before = every_row()
    with pytest.raises(BadOrder, match=r"has won .*0\.60"):
        lowered(59)
    assert every_row() == before
    lowered(60)
    with time_machine.travel(timezone.now() + timedelta(seconds=NOTICE_S), tick=False):
        run_until_idle()
    with time_machine.travel(timezone.now() + timedelta(seconds=NOTICE_S + 6), tick=False):
        run_until_idle()
        span = UsageSpan.objects.get(resource_id=won.instance.public_id)
        assert floating.price_now(span.price_version, at=timezone.now()) <= Bid.objects.get(pk=won.pk).price_micros
    lost = place(50 * CENT, gpus=8)
    spot.change(actor=actor, bid=lost, max_price_micros=51 * CENT, at=timezone.now())
    spot.change(actor=actor, bid=lost, max_price_micros=50 * CENT, at=timezone.now())


def test_who_won_waits_for_the_gpus_of_who_lost_and_takes_none_of_an_idle_reservation(
    tick: Tick, place: Place, fleet: Fleet, run_until_idle: Run
) -> None:
    hour, at = calendar.hour_of(timezone.now()), timezone.now()
    calendar.commit(offer_id=fleet.h200.pk, gpus=8, starts_at=hour, ends_at=hour + timedelta(hours=9), at=at)
    old = place(60 * CENT, gpus=8)
    assert tick().capacity_gpus == 8
    new = place(USD, gpus=8)
    tick()
    assert (phase(old), phase(new)) == (Phase.NOTIFIED, Phase.QUEUED)
    assert Instance.objects.get(pk=new.instance_id).admitted_at is not None
    with time_machine.travel(timezone.now() + timedelta(seconds=NOTICE_S + 6), tick=False):
        run_until_idle()
    with time_machine.travel(timezone.now() + timedelta(seconds=NOTICE_S + 12), tick=False):
        run_until_idle()
        assert (phase(old), phase(new)) == (Phase.INTERRUPTED, Phase.RUNNING)
        assert calendar.spot_gpus(fleet.h200.pk) == 8


def test_what_a_holder_recalls_goes_to_nobody_who_won_and_waits(
    tick: Tick, place: Place, fleet: Fleet, project: Project, run_until_idle: Run
) -> None:
    old = place(60 * CENT, gpus=8, replicas=2)
    tick()
    new = place(USD, gpus=8, replicas=2)
    tick()
    waits = {"project": project, "offer": fleet.h200, "price_version": old.instance.price_version, "command": ["x"]}
    Instance.objects.create(
        **waits, name="theirs", replicas=1, gpus_per_replica=8, market="reserved", phase="queued", desired="running"
    )
    assert recalls.recall(offer_id=fleet.h200.pk, at=timezone.now()) == 16
    with time_machine.travel(timezone.now() + timedelta(seconds=NOTICE_S + 6), tick=False):
        run_until_idle()
    with time_machine.travel(timezone.now() + timedelta(seconds=NOTICE_S + 12), tick=False):
        run_until_idle()
        assert (phase(old), phase(new)) == (Phase.INTERRUPTED, Phase.QUEUED)
    tick(seconds=120)
    assert phase(new) == Phase.RUNNING


def test_a_simulated_interruption_goes_the_same_way_and_it_comes_back(
    tick: Tick, place: Place, actor: Actor, run_until_idle: Run
) -> None:
    placed = place()
    with pytest.raises(IllegalMove):
        spot.simulate_interruption(actor=actor, instance=placed.instance, at=timezone.now())
    tick()
    told = spot.simulate_interruption(actor=actor, instance=placed.instance, at=timezone.now())
    assert (told.state, told.reason, phase(placed)) == (Interruption.State.NOTIFIED, "simulated", Phase.NOTIFIED)
    tick(seconds=NOTICE_S)
    assert phase(placed) == Phase.INTERRUPTED
    spot.resume(at=timezone.now(), limit=9)
    tick()
    assert phase(placed) == Phase.RUNNING
    assert Interruption.objects.get().credited_micros == 0
    assert books.check(at=timezone.now()) == []


def test_the_price_moves_under_a_meter_that_stays_open(tick: Tick, place: Place) -> None:
    place(USD, gpus=8)
    tick()
    place(80 * CENT, gpus=8)
    place(70 * CENT, gpus=8)
    held = tick()
    assert held.charged_micros == 70 * CENT
    assert UsageSpan.objects.filter(ended_at=None).count() == 2
    tick()
    assert UsageSpan.objects.count() == 2
    series = bids.series_of(SpotTerms.objects.get(), at=timezone.now())
    assert floating.price_now(series, at=timezone.now()) == 70 * CENT
    assert books.check(at=timezone.now()) == []


def test_an_auction_is_held_once_for_each_tick_and_its_book_gives_every_number_again(
    tick: Tick, place: Place, fleet: Fleet
) -> None:
    for number in range(5):
        place(60 * CENT + number * CENT, gpus=1 + number)
    held = tick()
    assert spot.clear(offer_id=fleet.h200.pk, at=timezone.now()) == held
    assert Auction.objects.count() == 1
    assert spot_book.check(held).is_right
    Auction.objects.update(published=held.published.replace('"bids":5', '"bids":6'))
    assert not spot_book.check(Auction.objects.get()).numbers_are_right
    held.allocations.first().delete()
    assert not spot_book.check(held).winners_are_right


def test_demand_without_auction_and_a_buffer_go_before_every_bid(
    tick: Tick, place: Place, rent: Callable[..., Instance], fleet: Fleet
) -> None:
    running = place(gpus=8)
    tick()
    rent(gpus=4)
    spot_terms.set_terms(offer=fleet.h200, by="carol@operator.example", at=timezone.now(), buffer_gpus=5)
    held = tick()
    assert (held.capacity_gpus, phase(running)) == (7, Phase.NOTIFIED)
    assert Interruption.objects.get().reason == "capacity"


def test_offers_that_are_sold_no_more_by_auction_let_everybody_go_with_notice(
    tick: Tick, place: Place, fleet: Fleet
) -> None:
    running = place()
    tick()
    spot_terms.set_terms(offer=fleet.h200, by="carol@operator.example", at=timezone.now(), is_enabled=False)
    with pytest.raises(BadOrder):
        place()
    tick()
    assert phase(running) == Phase.NOTIFIED
    tick(seconds=NOTICE_S)
    tick()
    assert SpotTerms.objects.get().next_tick_at is None
    assert spot.due(at=timezone.now() + timedelta(days=1)) == []


@pytest.mark.parametrize(("interval_s", "min_notice_s"), [(1500, 1), (1200, 301), (60, 1441), (1501, 0), (60, 3600)])
def test_terms_by_which_holders_of_reservations_would_wait_too_long_are_refused(
    terms: SpotTerms, interval_s: int, min_notice_s: int
) -> None:
    def set_to(interval_s: int, min_notice_s: int) -> None:
        spot_terms.set_terms(
            offer=terms.offer, by="carol@operator.example", at=timezone.now(), interval_s=interval_s,
            min_notice_s=min_notice_s,
        )  # fmt: skip

    with pytest.raises(BadOrder, match=r"to 1500|at most 1500 seconds"):
        set_to(interval_s, min_notice_s)
    assert (SpotTerms.objects.get().interval_s, SpotTerms.objects.get().min_notice_s) == (INTERVAL_S, NOTICE_S)
    set_to(1200, 300)
    assert timedelta(seconds=1200 + 300) < min(steps.QUEUE_MAX, blocks.NOTICE)


def test_a_changed_bid_locks_its_budget_before_quota_and_accounts_as_whoever_rents(
    place: Place, actor: Actor, project: Project
) -> None:
    budget(project, month=100 * USD)
    project.refresh_from_db()
    placed = place()
    with CaptureQueriesContext(connection) as queries:
        spot.change(actor=actor, bid=Bid.objects.get(pk=placed.pk), max_price_micros=2 * USD, at=timezone.now())
    said = [query["sql"] for query in queries.captured_queries]
    locks = ['FROM "marketplace_project"', "provisioning_quotahold", "FROM billing_account"]
    firsts = [
        next(
            n
            for n, sql in enumerate(said)
            if table in sql and any(word in sql for word in ("FOR ", "DELETE", "UPDATE"))
        )
        for table in locks
    ]
    assert firsts == sorted(firsts)


def test_a_bid_without_funds_takes_part_in_no_auction(tick: Tick, place: Place, actor: Actor) -> None:
    placed = place()
    Hold.objects.update(expires_at=timezone.now())
    tick()
    assert phase(placed) == Phase.QUEUED
    spot.change(actor=actor, bid=placed, max_price_micros=USD, at=timezone.now())
    tick()
    assert phase(placed) == Phase.RUNNING


def test_withdrawing_gives_everything_back_and_what_runs_is_not_withdrawn(
    tick: Tick, place: Place, actor: Actor, acme: Organization, project: Project, run_until_idle: Run
) -> None:
    placed = place()
    for _ in range(2):
        spot.withdraw(actor=actor, bid=placed, at=timezone.now())
    run_until_idle()
    assert phase(placed) == Phase.TERMINATED
    assert accounts.wallet(organization=acme).held_micros == 0
    assert Quota.objects.get(project=project).held == 0
    with pytest.raises(IllegalMove):
        spot.change(actor=actor, bid=placed, max_price_micros=USD, at=timezone.now())
    running = place()
    tick()
    with pytest.raises(IllegalMove, match="has GPUs"):
        spot.withdraw(actor=actor, bid=running, at=timezone.now())


def test_what_was_stopped_bids_again_when_it_is_started(
    tick: Tick, place: Place, actor: Actor, run_until_idle: Run
) -> None:
    placed = place()
    tick()
    rentals.stop(actor=actor, instance=Instance.objects.get(pk=placed.instance_id), at=timezone.now())
    run_until_idle()
    stopped = Instance.objects.select_related("project__organization", "offer", "price_version").get()
    assert stopped.phase == Phase.STOPPED
    rentals.start(actor=actor, instance=stopped, at=timezone.now())
    assert Hold.objects.filter(state="pending").exists()
    run_until_idle()
    assert phase(placed) == Phase.QUEUED
    tick()
    assert phase(placed) == Phase.RUNNING


def spend(acme: Organization) -> None:
    accounts.Account.objects.filter(organization=acme, kind="promo").update(balance_micros=0)


def suspend(acme: Organization) -> None:
    Organization.objects.filter(pk=acme.pk).update(suspended_at=timezone.now())


def pay_in_yen(acme: Organization) -> None:
    SpotTerms.objects.update(currency="JPY")


BAD: list[tuple[dict[str, Any], Any, type[Exception], str]] = [
    ({"micros": 49 * CENT}, None, BadOrder, "reserve"),
    ({"micros": 0}, None, BadOrder, "reserve"),
    ({"micros": 2_490_000 + CENT}, None, BadOrder, "On demand"),
    ({"micros": 60 * CENT + 1}, None, BadOrder, "steps"),
    ({"gpus": 9}, None, BadOrder, "node"),
    ({"gpus": 8, "replicas": 3}, None, BadOrder, "16"),
    ({}, lambda acme: SpotTerms.objects.update(buffer_gpus=16), BadOrder, "auction could ever give"),
    ({"gpus": 5}, lambda acme: SpotTerms.objects.update(cap_bp=2500), BadOrder, "more than 4 GPUs"),
    ({}, lambda acme: SpotTerms.objects.update(is_enabled=False), BadOrder, "not sold by auction"),
    ({}, pay_in_yen, BadOrder, "JPY"),
    ({}, spend, InsufficientFunds, ""),
    ({}, suspend, ProjectSuspended, ""),
    ({}, lambda acme: Quota.objects.update(limit=0), QuotaExceeded, ""),
]


def test_a_bid_for_a_node_that_is_cordoned_for_a_while_waits_as_every_order_does(place: Place, fleet: Fleet) -> None:
    Node.objects.filter(name="h200-1").update(state="cordoned")
    calendar.count(at=timezone.now(), offer_id=fleet.h200.pk)
    assert place(gpus=8, replicas=2).instance.phase == "queued"
    Node.objects.filter(name="h200-1").update(state="retired")
    with pytest.raises(BadOrder, match="8 GPUs that an auction could ever give"):
        place(gpus=8, replicas=2)


@pytest.mark.parametrize(("what", "spoil", "refusal", "says"), BAD)
def test_each_refusal_says_which_rule_and_leaves_nothing_behind(
    place: Place, acme: Organization, project: Project, what: dict[str, Any], spoil: Any, refusal: Any, says: str
) -> None:
    credits.grant(organization=acme, amount_micros=1, key="x", reason="x", by="x", at=timezone.now())
    spot.check_capacity(SpotTerms.objects.get(), 1)
    if spoil:
        spoil(acme)
    project.organization.refresh_from_db()
    before = every_row()
    with pytest.raises(refusal, match=says or None):
        place(**what)
    assert every_row() == before


def test_the_beat_holds_what_is_due(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place()
    asked: list[int] = []
    monkeypatch.setattr(tasks.hold_auction, "apply_async", lambda args, expires: asked.append(args[0]))
    tasks.hold_auctions()
    assert len(asked) == 1
    tasks.hold_auction(asked[0])
    tasks.hold_auctions()
    assert len(asked) == 1
    assert Auction.objects.count() == 1
