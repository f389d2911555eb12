"""Auctions, bids and interruptions in any order, against a model small enough to be believed."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from billing import books, floating
from marketplace import auction, rentals, spot, spot_book, spot_terms
from marketplace.access import Actor
from marketplace.errors import BadOrder, Conflict
from marketplace.models import Auction, Bid, Project
from provisioning import engine, interruptions, quotas
from provisioning.errors import ProvisioningError
from provisioning.models import Assignment, GpuHold, Instance, Interruption, Phase, Quota
from provisioning.steps import PLAN
from tests.conftest import Fleet, order

CENT = 10_000
INTERVAL_S, NOTICE_S = 60, 30
START = datetime.fromisoformat("2027-01-01T00:00:00+00:00")


class Market(RuleBasedStateMachine):
    """Bids come, rise, go and are interrupted; every so often an auction is held."""

    stage: Any = None

    @initialize()
    def opens(self) -> None:
        self.savepoint = transaction.atomic()
        self.savepoint.__enter__()
        self.clock = time_machine.travel(START, tick=False)
        self.traveller = self.clock.__enter__()
        self.actor, self.project, self.fleet = self.stage
        self.bids: list[int] = []
        self.held: list[Auction] = []
        Quota.objects.update(limit=10_000)
        spot_terms.set_terms(
            offer=self.fleet.h200, by="x", at=timezone.now(), reserve_micros=50 * CENT, grid_micros=CENT,
            interval_s=INTERVAL_S, min_notice_s=NOTICE_S, rise_bp=3000,
        )  # fmt: skip

    def teardown(self) -> None:
        if hasattr(self, "savepoint"):
            transaction.set_rollback(True)
            self.savepoint.__exit__(None, None, None)
            self.clock.__exit__(None, None, None)

    def _settles(self) -> None:
        for _ in range(30):
            moved = [engine.run_one(pk, PLAN) for pk in engine.due(limit=100)]
            self.fleet.sync()
            if not moved:
                return

    def _some(self, data: st.DataObject) -> Bid:
        pk = data.draw(st.sampled_from(self.bids))
        return Bid.objects.select_related("instance__price_version", "project__organization", "offer").get(pk=pk)

    @rule(cents=st.integers(40, 120), gpus=st.integers(1, 8), replicas=st.integers(1, 2))
    def somebody_bids(self, cents: int, gpus: int, replicas: int) -> None:
        wanted = order(self.fleet.h200, gpus=gpus, replicas=replicas)
        try:
            with transaction.atomic():
                placed = spot.bid(
                    actor=self.actor, project=self.project, order=wanted, max_price_micros=cents * CENT,
                    at=timezone.now(),
                )  # fmt: skip
        except BadOrder:
            assert cents < 50
            return
        assert cents >= 50
        self.bids.append(placed.pk)

    @precondition(lambda self: self.bids)
    @rule(data=st.data(), cents=st.integers(50, 150))
    def somebody_sets_a_price(self, data: st.DataObject, cents: int) -> None:
        bid = self._some(data)
        told = interruptions.open_of(bid.instance)
        try:
            with transaction.atomic():
                spot.change(actor=self.actor, bid=bid, max_price_micros=cents * CENT, at=timezone.now())
        except (ProvisioningError, Conflict):
            return
        except BadOrder:
            assert cents * CENT < floating.price_now(interruptions.price_of(bid.instance), at=timezone.now())
            return
        if told is not None:
            told.refresh_from_db()
            assert told.state in {"planned", "notified", "draining", "cancelled"}
        self._settles()

    @precondition(lambda self: self.bids)
    @rule(data=st.data(), verb=st.sampled_from(["withdraw", "terminate", "simulate", "stop", "start"]))
    def somebody_does_something_else(self, data: st.DataObject, verb: str) -> None:
        bid = self._some(data)
        instance = Instance.objects.select_related("project__organization", "offer", "price_version").get(
            pk=bid.instance_id
        )
        at = timezone.now()
        try:
            with transaction.atomic():
                if verb == "withdraw":
                    spot.withdraw(actor=self.actor, bid=bid, at=at)
                elif verb == "simulate":
                    spot.simulate_interruption(actor=self.actor, instance=instance, at=at)
                else:
                    getattr(rentals, verb)(actor=self.actor, instance=instance, at=at)
        except ProvisioningError:
            return
        self._settles()

    @rule(seconds=st.sampled_from([1, 10, 29, 31]))
    def time_passes(self, seconds: int) -> None:
        self.traveller.shift(timedelta(seconds=seconds))
        self._settles()
        interruptions.settle_due(at=timezone.now(), limit=100)
        spot.resume(at=timezone.now(), limit=100)

    @rule()
    def an_auction_is_held(self) -> None:
        self.traveller.shift(timedelta(seconds=INTERVAL_S))
        held = spot.clear(offer_id=self.fleet.h200.pk, at=timezone.now())
        rules, sealed = auction.read(spot_book.book_of(held))
        won = set(held.allocations.values_list("bid__public_id", flat=True))
        winners = [bid for bid in sealed if bid.id in won]
        losers = [bid for bid in sealed if bid.id not in won and bid.price_micros >= rules.reserve_micros]
        assert sum(bid.gpus for bid in winners) <= held.capacity_gpus <= 16
        assert all(bid.price_micros >= held.price_micros >= held.charged_micros for bid in winners)
        lowest = [min(bid.price_micros for bid in winners)] if winners else []
        assert held.price_micros in {held.reserve_micros, *(bid.price_micros for bid in losers), *lowest}
        assert spot_book.check(held).is_right
        assert spot.clear(offer_id=self.fleet.h200.pk, at=timezone.now()) == held
        interruptions.announce_due(at=timezone.now(), limit=100)
        self._settles()

    @invariant()
    def nothing_is_wrong(self) -> None:
        if self.stage is None or not hasattr(self, "bids"):
            return
        held = GpuHold.objects.filter(released_at=None)
        assert held.count() <= 16
        for instance in Instance.objects.filter(pk__in=Bid.objects.values("instance")):
            holds = held.filter(assignment__instance=instance).count()
            assert holds in {0, instance.gpus}, "gangs are all or none"
            if instance.phase == Phase.RUNNING:
                assert holds == instance.gpus
                assert instance.admitted_at is not None
        for told in Interruption.objects.filter(state="interrupted"):
            assert told.drained_at >= told.deadline_at - told.grace, "nobody is cut short"
            assert told.deadline_at - told.notice_at >= timedelta(seconds=NOTICE_S)
        assert not Assignment.objects.filter(
            instance__phase=Phase.QUEUED, observed="running", instance__market="spot"
        ).exists()
        assert quotas.miscounted() == []
        assert books.check(at=timezone.now()) == []


@pytest.fixture
def stage(actor: Actor, project: Project, fleet: Fleet) -> Iterator[None]:
    Market.stage = (actor, project, fleet)
    yield
    Market.stage = None


@pytest.mark.django_db
def test_whatever_happens_in_whatever_order_the_market_keeps_its_promises(stage: None) -> None:
    run_state_machine_as_test(
        Market,
        settings=settings(
            max_examples=8, stateful_step_count=15, deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
