"""Promotional credit: what expires first is used first, what is left at its end goes, nothing else does."""

from datetime import timedelta

import pytest
from django.db import connection, transaction
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from billing import accounts, books, credits, holds, promotions, runway, usage
from billing.errors import BadCredit, KeyReused
from billing.models import Account, CreditGrant, Notice, PriceVersion, Runway
from tests.billing.makers import (
    HOUR,
    NOON,
    USD,
    account,
    at_the_same_moment,
    hold_money,
    make_organization,
    move,
    numbers,
    start,
    wallet,
)

DAY = timedelta(days=1)


def granted(organization, micros, *, days=None, key=None, at=NOON):
    return credits.grant(
        organization=organization, amount_micros=micros, key=key or f"grant-{next(numbers)}", reason="Welcome",
        by="operator@example.com", at=at, expires_at=None if days is None else NOON + days * DAY,
    )  # fmt: skip


def spend(organization, micros):
    move(account(organization, "promo"), "revenue", micros)


def left(organization):
    return [(one.grant.expires_at and (one.grant.expires_at - NOON).days, one.left_micros) for one in (
        promotions.left(organization=organization)
    )]  # fmt: skip


@pytest.mark.django_db
def test_what_expires_first_is_used_first_and_what_never_does_last():
    acme = make_organization()
    for days in (None, 30, 10):
        granted(acme, 10 * USD, days=days)
    spend(acme, 15 * USD)
    assert left(acme) == [(30, 5 * USD), (None, 10 * USD)]


@pytest.mark.django_db
def test_credit_that_was_used_up_does_not_take_what_was_given_afterwards():
    acme = make_organization()
    granted(acme, 10 * USD, days=30)
    spend(acme, 10 * USD)
    granted(acme, 5 * USD, days=10)
    assert left(acme) == [(10, 5 * USD)]
    assert promotions.expire_due(at=NOON + 31 * DAY) == 1
    assert wallet(acme).promo_micros == 0


@pytest.mark.django_db
def test_only_what_is_left_expires_and_only_once():
    acme = make_organization()
    granted(acme, 10 * USD, days=10)
    granted(acme, 10 * USD)
    spend(acme, 4 * USD)
    assert promotions.expire_due(at=NOON + 10 * DAY - HOUR) == 0
    assert promotions.expire_due(at=NOON + 10 * DAY) == 1
    assert promotions.expire_due(at=NOON + 10 * DAY) == 0
    assert wallet(acme).promo_micros == 10 * USD
    assert CreditGrant.objects.get(expired_micros__gt=0).expired_micros == 6 * USD
    assert books.check(at=NOON + 11 * DAY) == []


@pytest.mark.django_db
def test_what_is_set_aside_expires_when_it_comes_back():
    acme = make_organization()
    granted(acme, 10 * USD, days=1)
    hold_money(acme, 4 * USD, resource_id="ins_held")
    promotions.expire_due(at=NOON + DAY)
    assert wallet(acme).promo_micros == 4 * USD
    holds.void_for(resource_id="ins_held", at=NOON + DAY)
    promotions.expire_due(at=NOON + DAY)
    assert wallet(acme).promo_micros == 0
    assert books.check(at=NOON + 2 * DAY) == []


@pytest.mark.django_db
def test_credit_that_comes_back_after_its_end_lasts_for_another_month():
    acme = make_organization()
    granted(acme, 10 * USD, days=1)
    spend(acme, 10 * USD)
    promotions.expire_due(at=NOON + 2 * DAY)
    move("revenue", account(acme, "promo"), 3 * USD)
    granted(acme, USD, at=NOON + 3 * DAY)
    assert left(acme) == [(33, 3 * USD), (None, USD)]


@pytest.mark.django_db
def test_a_grant_that_is_over_already_or_reuses_its_key_is_refused():
    acme = make_organization()
    with pytest.raises(BadCredit):
        granted(acme, USD, days=0)
    granted(acme, USD, days=5, key="once")
    granted(acme, USD, days=5, key="once")
    with pytest.raises(KeyReused):
        granted(acme, USD, days=6, key="once")
    assert wallet(acme).promo_micros == USD


@pytest.mark.django_db
def test_the_runway_does_not_count_on_credit_that_expires_unused():
    acme = make_organization(cash=10 * USD)
    granted(acme, 100 * USD, days=1)
    start(acme)  # 5 USD an hour: 24 hours take 120
    assert Runway.objects.get().exhausts_at == NOON + 22 * HOUR
    granted(acme, 100 * USD, days=2)
    # 120 of the first day are of the first 100 and of 20 more; the second day takes the rest
    assert Runway.objects.get().exhausts_at == NOON + 42 * HOUR
    usage.stop(resource_id="ins_1", at=NOON)
    start(acme, resource_id="ins_2", quantity=1, price_version=PriceVersion.objects.get())
    assert Runway.objects.get().funds_micros == 130 * USD  # 60 on each of two days at 2.50 an hour, and the cash


@pytest.mark.django_db(transaction=True)
def test_two_sweeps_at_once_take_it_back_once():
    acme = make_organization()
    granted(acme, 10 * USD, days=1)
    assert at_the_same_moment(*[lambda: promotions.expire_due(at=NOON + DAY)] * 3) == ["done"] * 3
    assert wallet(acme).promo_micros == 0


@pytest.mark.django_db(transaction=True)
def test_credit_is_spent_or_expires_never_both():
    acme = make_organization()
    granted(acme, 10 * USD, days=1)
    outcomes = at_the_same_moment(
        lambda: promotions.expire_due(at=NOON + DAY), lambda: hold_money(acme, 10 * USD, resource_id="ins_race")
    )
    assert outcomes in (["done", "done"], ["InsufficientFunds", "done"])
    have = wallet(acme)
    assert have.promo_micros == have.held_micros == (10 * USD if outcomes == ["done", "done"] else 0)
    assert books.check(at=NOON + DAY) == []


class CreditMachine(RuleBasedStateMachine):
    """One account beside a list of grants that are used one by one, micro by micro."""

    @initialize()
    def open(self):
        self.atomic = transaction.atomic()
        self.atomic.__enter__()
        self.acme = make_organization()
        self.grants = []  # [days, number, left], in no order
        self.day = 0

    def teardown(self):
        if hasattr(self, "atomic"):
            found = books.check(at=NOON + 1000 * DAY)
            transaction.set_rollback(True)
            self.atomic.__exit__(None, None, None)
            assert found == []

    @property
    def at(self):
        return NOON + self.day * DAY

    @rule(micros=st.integers(1, 30), days=st.none() | st.integers(1, 12))
    def grant(self, micros, days):
        until = None if days is None else self.day + days
        granted(self.acme, micros, days=until, at=self.at)
        self.grants.append([until, len(self.grants), micros])

    @rule(share=st.integers(1, 40))
    def spend(self, share):
        have = sum(grant[2] for grant in self.grants)
        micros = min(share, have)
        if not micros:
            return
        spend(self.acme, micros)
        for grant in sorted(self.grants, key=lambda one: (one[0] is None, one[0] or 0, one[1])):
            taken = min(micros, grant[2])
            grant[2] -= taken
            micros -= taken

    @rule(days=st.integers(1, 6))
    def time_passes(self, days):
        self.day += days
        promotions.expire_due(at=self.at)
        for grant in self.grants:
            if grant[0] is not None and grant[0] <= self.day:
                grant[2] = 0

    @rule()
    def sweep_again(self):
        assert promotions.expire_due(at=self.at) == 0

    @invariant()
    def what_is_left_is_foretold(self):
        expected = sorted(self.grants, key=lambda one: (one[0] is None, one[0] or 0, one[1]))
        assert left(self.acme) == [(grant[0], grant[2]) for grant in expected if grant[2]]
        assert wallet(self.acme).promo_micros == sum(grant[2] for grant in self.grants)


@pytest.mark.django_db
def test_any_history_of_grants_use_and_time_leaves_what_a_list_says():
    run_state_machine_as_test(
        CreditMachine,
        settings=settings(
            max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.django_db(transaction=True)
def test_a_sweep_that_dies_before_its_end_leaves_everything_as_it_was(monkeypatch):
    acme = make_organization()
    granted(acme, 10 * USD, days=1)

    def dies(**_):
        raise ConnectionError

    monkeypatch.setattr(runway, "refresh", dies)
    with pytest.raises(ConnectionError):
        promotions.expire_due(at=NOON + DAY)
    assert wallet(acme).promo_micros == 10 * USD
    assert CreditGrant.objects.get().left_micros == 10 * USD
    monkeypatch.undo()
    assert promotions.expire_due(at=NOON + DAY) == 1
    assert wallet(acme).promo_micros == 0
    assert accounts.balance_micros(accounts.platform(Account.Kind.PROMO_EXPENSE, "USD")) == 0
    assert not connection.in_atomic_block


@pytest.mark.django_db
def test_the_end_of_credit_is_told_a_week_before_and_once_and_only_where_something_is_left():
    acme, other = make_organization(), make_organization()
    granted(acme, 10 * USD, days=10)
    granted(acme, 5 * USD, days=90)
    granted(other, 10 * USD, days=10)
    spend(other, 10 * USD)
    spend(acme, 4 * USD)
    assert promotions.tell_due(at=NOON + 2 * DAY) == 0
    assert promotions.tell_due(at=NOON + 4 * DAY) == 1
    assert promotions.tell_due(at=NOON + 5 * DAY) == 0
    notice = Notice.objects.get()
    assert (notice.organization, notice.facts["left_micros"], notice.facts["reason"]) == (acme, "6000000", "Welcome")
    assert promotions.expire_due(at=NOON + 11 * DAY) == 1
