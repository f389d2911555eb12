"""Warnings: each rung told once per crossing, a grace for whoever has paid, and nobody stopped who paid."""

from datetime import timedelta

import pytest
from django.db import transaction
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from billing import runway, standing, usage, watch
from billing.models import Notice, PriceVersion, Runway, RunwayWatch
from billing.watch import GRACE, LADDER, ORDER, Rung, rung_of
from tests.billing.makers import (
    HOUR,
    NOON,
    USD,
    at_the_same_moment,
    grant,
    make_organization,
    make_price,
    pay_in,
    start,
)

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)


def kinds(organization):
    return list(Notice.objects.filter(organization=organization).order_by("pk").values_list("kind", flat=True))


def burning(**money):
    """An organization that burns a dollar an hour."""
    acme = make_organization(**money)
    start(acme, quantity=1, price_version=make_price(micros_per_unit_hour=USD))
    return acme


def paid(organization, micros, *, at):
    pay_in(organization, micros)
    runway.refresh(organization=organization, at=at)


@pytest.mark.django_db
def test_each_rung_is_told_once_on_the_way_down():
    acme = burning(promo=200 * USD)
    for hours in (0, 32, 33, 34, 176, 177, 199, 199, 200, 201):
        watch.look(at=NOON + hours * HOUR)
    assert kinds(acme) == ["runway_week", "runway_day", "runway_hour", "used_up"]
    assert Notice.objects.first().facts["until"] == (NOON + 200 * HOUR).isoformat()


@pytest.mark.django_db
def test_whoever_starts_much_at_once_is_told_the_nearest_end_only():
    acme = burning(promo=USD // 2)
    watch.look(at=NOON)
    assert kinds(acme) == ["runway_hour"]


@pytest.mark.django_db
def test_money_that_lasts_longer_again_lets_a_rung_be_told_anew():
    acme = burning(promo=24 * USD)
    watch.look(at=NOON)
    grant(acme, 4 * USD)  # 28 hours are still about a day
    watch.look(at=NOON)
    usage.stop(resource_id="ins_1", at=NOON)
    watch.look(at=NOON)
    assert RunwayWatch.objects.get().rung == Rung.ENOUGH
    start(acme, resource_id="ins_2", quantity=2, at=NOON + MINUTE, price_version=PriceVersion.objects.get())
    watch.look(at=NOON + MINUTE)
    assert kinds(acme) == ["runway_day", "runway_day"]


@pytest.mark.django_db
def test_what_promotional_credit_paid_is_stopped_without_grace_and_what_cash_paid_with_one():
    free, known = burning(promo=USD), make_organization(cash=USD)
    start(known, resource_id="ins_2", quantity=1, price_version=make_price(sku="k", micros_per_unit_hour=USD))
    assert standing.stopped(at=NOON + HOUR - MINUTE) == []
    assert standing.stopped(at=NOON + HOUR) == [free.pk]
    assert standing.stopped(at=NOON + HOUR + GRACE) == [free.pk, known.pk]


@pytest.mark.django_db
def test_the_grace_does_not_begin_anew_when_something_else_is_worked_out():
    known = burning(cash=USD)
    watch.look(at=NOON + HOUR)
    runway.refresh(organization=known, at=NOON + HOUR + GRACE - MINUTE)
    assert standing.stopped(at=NOON + HOUR + GRACE) == [known.pk]


@pytest.mark.django_db
def test_who_pays_in_the_grace_is_not_stopped():
    known = burning(cash=USD)
    watch.look(at=NOON + HOUR)
    paid(known, 10 * USD, at=NOON + HOUR + MINUTE)
    assert standing.stopped(at=NOON + HOUR + GRACE) == []
    assert RunwayWatch.objects.get().rung == Rung.DAY
    assert kinds(known)[-1:] == ["used_up"]


@pytest.mark.django_db
def test_those_whose_money_stays_used_up_keep_nobody_else_from_being_told():
    acme = burning(promo=200 * USD)
    for number in range(3):
        start(make_organization(), resource_id=f"broke_{number}", price_version=PriceVersion.objects.get())
    assert watch.look(at=NOON) == 3
    assert [watch.look(at=NOON + 33 * HOUR, limit=3) for _ in range(2)] == [1, 0]
    assert kinds(acme) == ["runway_week"]


@pytest.mark.django_db
def test_the_sweep_looks_at_whoever_crossed_a_rung_and_at_nobody_else():
    acme = burning(promo=10 * USD)
    RunwayWatch.objects.create(organization=acme, since=NOON)
    edges = [lasts * share // 4 for _, lasts in LADDER for share in (4, 5)]
    for told in ORDER:
        grace = {"grace_ends_at": NOON if told == Rung.USED_UP else None}
        RunwayWatch.objects.update(rung=told, **grace)
        for until in [None, *(NOON + edge + step * MINUTE for edge in edges for step in (-1, 0, 1))]:
            Runway.objects.update(exhausts_at=until)
            crossed = rung_of(exhausts_at=until, told=told, at=NOON) != told
            assert watch._crossed(NOON).exists() == crossed, (told, until)


@pytest.mark.django_db(transaction=True)
def test_two_sweeps_at_once_tell_once():
    acme = burning(promo=USD)
    assert at_the_same_moment(*[lambda: watch.look(at=NOON + HOUR)] * 3) == ["done"] * 3
    assert kinds(acme) == ["used_up"]


@pytest.mark.django_db(transaction=True)
def test_a_sweep_that_dies_between_moving_and_telling_has_done_neither(monkeypatch):
    acme = burning(promo=USD)

    def dies(*_, **__):
        raise ConnectionError

    monkeypatch.setattr(watch, "tell", dies)
    with pytest.raises(ConnectionError):
        watch.look(at=NOON)
    monkeypatch.undo()
    assert not RunwayWatch.objects.exists()
    watch.look(at=NOON)
    assert kinds(acme) == ["runway_hour"]


def test_a_rung_is_left_only_with_a_quarter_more():
    for rung, lasts in LADDER[:-1]:
        assert rung_of(exhausts_at=NOON + lasts, told=Rung.ENOUGH, at=NOON) == rung
        assert rung_of(exhausts_at=NOON + lasts * 5 / 4, told=rung, at=NOON) == rung
        above = ORDER[ORDER.index(rung) - 1]
        assert rung_of(exhausts_at=NOON + lasts * 5 / 4 + MINUTE, told=rung, at=NOON) == above
    assert rung_of(exhausts_at=NOON, told=Rung.ENOUGH, at=NOON) == Rung.USED_UP
    assert rung_of(exhausts_at=NOON + MINUTE, told=Rung.USED_UP, at=NOON) == Rung.HOUR


class WatchMachine(RuleBasedStateMachine):
    """Money comes and goes in any order; notices are only ever sent on the way down, and never twice in a row."""

    @initialize()
    def open(self):
        self.atomic = transaction.atomic()
        self.atomic.__enter__()
        self.acme = burning(cash=300 * USD)
        self.at = NOON
        self.told, self.stood = [], Rung.ENOUGH

    def teardown(self):
        if hasattr(self, "atomic"):
            transaction.set_rollback(True)
            self.atomic.__exit__(None, None, None)

    @rule(hours=st.integers(1, 100))
    def time_passes(self, hours):
        self.at += hours * HOUR

    @rule(micros=st.integers(1, 200))
    def money_comes(self, micros):
        paid(self.acme, micros * USD, at=self.at)

    @rule()
    def look(self):
        watch.look(at=self.at)
        row = RunwayWatch.objects.filter(organization=self.acme).first()
        now = Rung(row.rung) if row else Rung.ENOUGH
        if ORDER.index(now) > ORDER.index(self.stood):
            self.told.append(f"runway_{now}" if now != Rung.USED_UP else "used_up")
        self.stood = now
        assert kinds(self.acme) == self.told
        until = Runway.objects.get(organization=self.acme).exhausts_at
        for rung, lasts in LADDER:
            if until is not None and until <= self.at + lasts:
                assert ORDER.index(now) >= ORDER.index(rung)

    @rule()
    def nobody_is_stopped_who_paid(self):
        until = Runway.objects.get(organization=self.acme).exhausts_at
        if standing.stopped(at=self.at):
            assert until is not None
            assert until <= self.at
        self.look()


@pytest.mark.django_db
def test_any_order_of_time_and_money_tells_each_crossing_once():
    run_state_machine_as_test(
        WatchMachine,
        settings=settings(
            max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
