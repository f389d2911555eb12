"""The ladder of an interruption, rung by rung, on a clock of the test's own."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from billing import accounts, books, floating, prices, usage
from billing.models import Transfer, UsageSpan
from marketplace.access import Actor
from marketplace.models import Organization
from provisioning import engine, instances, interruptions
from provisioning.errors import StaleInterruption
from provisioning.models import (
    INTERRUPTION_MOVES,
    GpuHold,
    Instance,
    Interruption,
    Phase,
    Quota,
    Reason,
    Workflow,
)
from provisioning.steps import PLAN
from tests.conftest import Fleet, Run

pytestmark = pytest.mark.django_db

State = Interruption.State
NOTICE_S = 60
OLD, NEW = 1_000_000, 1_800_000


class Clock:
    """What `timezone.now` says, everywhere."""

    def __init__(self) -> None:
        self.now = datetime.fromisoformat("2026-11-26T12:00:00+00:00")

    def __call__(self) -> datetime:
        return self.now

    def passes(self, seconds: float) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timezone, "now", clock)
    return clock


@pytest.fixture
def spot(clock: Clock, running: Instance) -> Instance:
    """An instance that has run for ten minutes at a floating price."""
    series = floating.open_series(
        sku=f"{running.offer.public_id}/spot", currency="USD", micros_per_unit_hour=OLD, by="x", at=clock.now
    )
    usage.reprice(resource_id=running.public_id, price_version=series, at=clock.now)
    Instance.objects.filter(pk=running.pk).update(market="spot", price_version=series, admitted_at=clock.now)
    clock.passes(600)
    running.refresh_from_db()
    return running


def planned(instance: Instance, clock: Clock, **overrides: Any) -> Interruption:
    """Plan one because the price rose; it pays the old one."""
    floating.append(series=instance.price_version, micros_per_unit_hour=NEW, at=clock.now)
    still = prices.publish(
        sku=f"{instance.offer.public_id}/notice", currency="USD", micros_per_unit_hour=OLD, effective_from=clock.now,
        by="x", at=clock.now,
    )  # fmt: skip
    ordinary = {"reason": "outbid", "min_notice_s": NOTICE_S, "price_version": still, "since": clock.now}
    interruptions.plan(instance_ids=[instance.pk], **(ordinary | overrides))
    return Interruption.objects.get()


def fresh(thing: Any) -> Any:
    thing.refresh_from_db()
    return thing


def test_the_ladder_from_notice_to_release_and_what_it_costs(
    spot: Instance, clock: Clock, run_until_idle: Run, fleet: Fleet, project: Any
) -> None:
    found = planned(spot, clock)
    clock.passes(2)
    interruptions.announce_due(at=clock.now, limit=10)
    told = fresh(found)
    assert (told.state, told.deadline_at - told.notice_at) == (State.NOTIFIED, timedelta(seconds=NOTICE_S))
    assert fresh(spot).phase == Phase.NOTIFIED
    run_until_idle()
    (entry,) = [entry for node in fleet.nodes.values() for entry in node.desired.values()]
    assert entry["notice"]["id"] == told.public_id
    assert 0 < entry["notice"]["left_ms"] <= NOTICE_S * 1000
    clock.passes(NOTICE_S - 10.5)
    run_until_idle()
    assert fresh(spot).phase == Phase.NOTIFIED
    assert engine.due(limit=9) == []
    clock.passes(0.5)
    run_until_idle()
    assert (fresh(spot).phase, spot.reason, fresh(found).state) == (Phase.INTERRUPTED, "outbid", State.INTERRUPTED)
    assert spot.restart_at is not None
    assert not GpuHold.objects.filter(released_at=None).exists()
    assert Quota.objects.get(project=project).held == 0
    spans = UsageSpan.objects.order_by("started_at").values_list("price_version__micros_per_unit_hour", flat=True)
    assert list(spans)[-1] == OLD  # The new price never held for it.
    interruptions.settle_due(at=clock.now, limit=9)
    assert fresh(found).credited_micros == 0
    assert books.check(at=clock.now) == []


def test_a_young_run_is_free_and_a_simulated_one_is_not(
    spot: Instance, clock: Clock, run_until_idle: Run, acme: Organization
) -> None:
    before = accounts.wallet(organization=acme).promo_micros
    found = planned(spot, clock, free_before_s=3600)
    interruptions.announce_due(at=clock.now, limit=10)
    clock.passes(NOTICE_S)
    run_until_idle()
    interruptions.settle_due(at=clock.now, limit=9)
    charged = sum(span.charged_micros for span in UsageSpan.objects.all())
    assert fresh(found).credited_micros == charged > 0
    assert accounts.wallet(organization=acme).promo_micros == before
    assert Transfer.objects.filter(key=f"service-credit:interruption:{found.public_id}").count() == 1
    interruptions.settle_due(at=clock.now, limit=9)
    assert Transfer.objects.filter(key__startswith="service-credit:").count() == 1
    assert books.check(at=clock.now) == []


def test_a_simulated_interruption_earns_nothing(spot: Instance, clock: Clock, run_until_idle: Run) -> None:
    found = planned(spot, clock, free_before_s=3600, reason="simulated")
    interruptions.announce_due(at=clock.now, limit=10)
    clock.passes(NOTICE_S)
    run_until_idle()
    interruptions.settle_due(at=clock.now, limit=9)
    assert (fresh(found).state, found.credited_micros) == (State.INTERRUPTED, 0)


@pytest.mark.parametrize(
    ("reason", "seconds", "is_credited"),
    [(Reason.OPERATOR, 20, True), (Reason.USER, 20, False), (Reason.NO_FUNDS, 20, False), (Reason.OPERATOR, 61, False)],
)
def test_a_notice_that_we_cut_short_is_given_back(
    spot: Instance, clock: Clock, run_until_idle: Run, reason: Reason, seconds: int, is_credited: bool
) -> None:
    found = planned(spot, clock)
    interruptions.announce_due(at=clock.now, limit=10)
    clock.passes(seconds)
    instances.stop(instance=fresh(spot), at=clock.now, reason=reason)
    run_until_idle()
    interruptions.settle_due(at=clock.now, limit=9)
    assert fresh(found).state == State.ENDED
    assert found.credited_micros == (OLD * NOTICE_S // 3600 + 1 if is_credited else 0)
    assert books.check(at=clock.now) == []


def test_called_off_once_it_goes_on_at_its_own_price(
    spot: Instance, clock: Clock, run_until_idle: Run, fleet: Fleet
) -> None:
    found = planned(spot, clock)
    interruptions.announce_due(at=clock.now, limit=10)
    clock.passes(20)
    stale = Interruption.objects.get()
    interruptions.call_off(interruption=fresh(found), at=clock.now, message="Its bid was raised.")
    with pytest.raises(StaleInterruption):
        interruptions.call_off(interruption=stale, at=clock.now, message="Its bid was raised.")
    run_until_idle()
    assert (fresh(spot).phase, fresh(found).state) == (Phase.RUNNING, State.CANCELLED)
    assert all(entry["notice"] is None for node in fleet.nodes.values() for entry in node.desired.values())
    clock.passes(100)
    run_until_idle()
    assert fresh(spot).phase == Phase.RUNNING
    assert UsageSpan.objects.get(ended_at=None).price_version == spot.price_version
    assert books.check(at=clock.now) == []


def test_what_has_not_begun_to_run_ends_at_once_and_costs_nothing(
    rent: Callable[..., Instance], run_until_idle: Run, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance, clock = rent(), Clock()
    clock.now = timezone.now()
    monkeypatch.setattr(timezone, "now", clock)
    for _ in range(2):
        engine.run_one(instance.pk, PLAN)
    Instance.objects.filter(pk=instance.pk).update(market="spot", admitted_at=clock.now)
    interruptions.plan(instance_ids=[instance.pk], reason=Interruption.Reason.OUTBID, min_notice_s=60, since=clock.now)
    interruptions.announce_due(at=clock.now, limit=9)
    run_until_idle()
    assert fresh(instance).phase == Phase.INTERRUPTED
    assert Interruption.objects.get().state == State.ENDED
    assert not UsageSpan.objects.exists()
    assert not GpuHold.objects.filter(released_at=None).exists()


def test_a_command_that_ends_by_itself_is_not_interrupted(
    spot: Instance, clock: Clock, run_until_idle: Run, fleet: Fleet
) -> None:
    found = planned(spot, clock)
    interruptions.announce_due(at=clock.now, limit=10)
    for node in fleet.nodes.values():
        node.exit_codes[spot.public_id] = 0
    run_until_idle()
    assert (fresh(spot).phase, fresh(found).state) == (Phase.STOPPED, State.ENDED)


def test_killed_at_any_moment_the_ladder_ends_the_same(
    spot: Instance, clock: Clock, run_until_idle: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = planned(spot, clock)
    real = interruptions._move
    killed = []

    def dies_once(interruption: Interruption, state: Interruption.State, **changes: Any) -> None:
        real(interruption, state, **changes)
        if state not in killed:
            killed.append(state)
            raise KeyboardInterrupt

    monkeypatch.setattr(interruptions, "_move", dies_once)

    def goes_all_the_way() -> None:
        interruptions.announce_due(at=clock.now, limit=9)
        clock.passes(NOTICE_S)
        for _ in range(5):
            Workflow.objects.update(lease_until=None, due_at=clock.now)
            if fresh(spot).phase == Phase.DRAINING:
                run_until_idle()
            engine.run_one(spot.pk, PLAN)

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt), transaction.atomic():
            goes_all_the_way()
    assert killed == [State.NOTIFIED, State.DRAINING, State.INTERRUPTED]
    interruptions.announce_due(at=clock.now, limit=9)
    notice_at = fresh(found).notice_at
    clock.passes(NOTICE_S)
    Workflow.objects.update(lease_until=None)
    run_until_idle()
    assert (fresh(spot).phase, fresh(found).state) == (Phase.INTERRUPTED, State.INTERRUPTED)
    assert found.drained_at - notice_at >= timedelta(seconds=NOTICE_S - 10)


def test_the_database_keeps_notices_whole_and_one_at_a_time(spot: Instance, clock: Clock) -> None:
    found = planned(spot, clock)
    interruptions.plan(instance_ids=[spot.pk], reason=Interruption.Reason.CAPACITY, min_notice_s=1, since=clock.now)
    assert Interruption.objects.get() == found
    for changes in (
        {"notice_at": clock.now, "deadline_at": clock.now + timedelta(seconds=NOTICE_S - 1)},
        {"state": State.INTERRUPTED},
    ):
        with pytest.raises(IntegrityError), transaction.atomic():
            Interruption.objects.update(**changes)


def test_every_state_but_the_last_ones_leads_on() -> None:
    assert set(INTERRUPTION_MOVES) == set(State)
    reached = {state for moves in INTERRUPTION_MOVES.values() for state in moves}
    assert reached == set(State) - {State.ADVISED}


def test_an_actor_may_stop_what_was_told(spot: Instance, clock: Clock, actor: Actor, run_until_idle: Run) -> None:
    planned(spot, clock)
    interruptions.announce_due(at=clock.now, limit=10)
    instances.terminate(instance=fresh(spot), at=clock.now)
    run_until_idle()
    assert fresh(spot).phase == Phase.TERMINATED
    assert Interruption.objects.get().state == State.ENDED
