"""The least and the most that a contract costs in a period; the least is charged once when the period is over."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine

from billing import books
from billing.models import Outcome
from billing.outcomes import floors as till
from marketplace.access import Actor
from marketplace.contracts import answering, floors, offering, sweeping
from marketplace.models import Organization, Project, Side
from tests.outcomes import BY_CUSTOMER, PRICE, Deal, accept, make_deal, put_up, terms

pytestmark = pytest.mark.django_db
AGREED = datetime.fromisoformat("2027-03-10T12:00:00+00:00")


def test_what_a_whole_period_is_short_of_its_floor_is_charged_once(
    acme: Organization, project: Project, actor: Actor, django_assert_max_num_queries: Any
) -> None:
    with time_machine.travel(AGREED, tick=False):
        deal = make_deal(acme, **BY_CUSTOMER, floor={"period": "day", "micros": 3 * PRICE})
        make_deal(acme)
    assert floors.true_up(at=AGREED + timedelta(hours=13), limit=10) == 0, "its first day was no whole one"
    within = AGREED + timedelta(days=1)
    claim = deal.claim(project, "frame 1", at=within)
    answering.accept(actor=actor, claim=claim, at=within)
    sweeping.advance(at=within, limit=10)
    after = AGREED + timedelta(days=1, hours=13)
    assert [floors.true_up(at=after, limit=10) for _ in range(2)] == [1, 0]
    made = Outcome.objects.get(kind="true_up")
    assert (made.amount_micros, made.period, made.shares) == (
        2 * PRICE, AGREED.replace(day=11, hour=0), [[deal.seller.pk, 8000], [None, 2000]],
    )  # fmt: skip
    offering.withdraw(actor=deal.merchant, version=deal.version, at=after)
    assert floors.true_up(at=AGREED + timedelta(days=20), limit=10) == 0, "nothing once it is withdrawn"
    with django_assert_max_num_queries(3):
        floors.true_up(at=AGREED + timedelta(days=20), limit=10)
    assert books.check(at=after) == []


def test_a_seller_who_withdraws_is_owed_no_floor_of_the_period_in_which_it_does(acme: Organization) -> None:
    with time_machine.travel(AGREED, tick=False):
        deal = make_deal(acme, floor={"period": "day", "micros": 3 * PRICE})
    third_day = AGREED.replace(hour=0) + timedelta(days=2)
    offering.withdraw(actor=deal.merchant, version=deal.version, at=third_day + timedelta(minutes=1))
    for days in range(1, 5):
        floors.true_up(at=AGREED + timedelta(days=days), limit=10)
    assert list(Outcome.objects.values_list("period__day", "amount_micros")) == [(11, 3 * PRICE)]


def test_the_period_in_which_a_customer_leaves_is_the_last_of_which_a_floor_is_asked(
    acme: Organization, actor: Actor
) -> None:
    with time_machine.travel(AGREED, tick=False):
        deal = make_deal(acme, floor={"period": "day", "micros": 3 * PRICE})
    third_day = AGREED.replace(hour=0) + timedelta(days=2)
    for minutes in (1, 2):
        offering.leave(
            actor=actor, version=deal.version, organization=acme, at=third_day + timedelta(minutes=minutes)
        )  # fmt: skip
    for days in range(1, 6):
        floors.true_up(at=AGREED + timedelta(days=days), limit=10)
    assert list(Outcome.objects.order_by("period").values_list("period__day", flat=True)) == [11, 12]


def amend(deal: Deal, customer: Organization, at: datetime, **differs: Any) -> Deal:
    """Let both sides agree to the next version of a contract."""
    with time_machine.travel(at, tick=False):
        version = offering.amend(
            actor=deal.merchant, contract=deal.version.contract, side=Side.SELLER, terms=terms(**differs), at=at
        )  # fmt: skip
        put_up(version, deal.merchant, at=at)
        accept(customer, version)
    return replace(deal, version=version)


def pay(deal: Deal, project: Project, actor: Actor, subject: str, at: datetime) -> int:
    """Let a customer accept a result; return what was paid for it."""
    claim = deal.claim(project, subject, at=at)
    answering.accept(actor=actor, claim=claim, at=at)
    sweeping.advance(at=at, limit=10)
    claim.refresh_from_db()
    return claim.paid_micros


def test_what_all_versions_of_a_contract_cost_in_a_period_counts_in_its_cap(
    acme: Organization, project: Project, actor: Actor
) -> None:
    with time_machine.travel(AGREED, tick=False):
        deal = make_deal(acme, **BY_CUSTOMER, cap={"period": "day", "micros": 2 * PRICE})
        other = make_deal(acme, **BY_CUSTOMER, cap={"period": "day", "micros": 2 * PRICE})
    assert [pay(deal, project, actor, subject, AGREED) for subject in "abc"] == [PRICE, PRICE, 0]
    noon = AGREED + timedelta(minutes=1)
    second = amend(deal, acme, noon, **BY_CUSTOMER, cap={"period": "day", "micros": 2 * PRICE})
    assert pay(second, project, actor, "d", noon) == 0, "no second cap in the same period"
    third = amend(deal, acme, noon, **BY_CUSTOMER, cap={"period": "month", "micros": 3 * PRICE})
    assert [pay(third, project, actor, subject, noon) for subject in "ef"] == [PRICE, 0]
    assert pay(other, project, actor, "a", noon) == PRICE, "each contract has a cap of its own"
    assert pay(second, project, actor, "g", AGREED + timedelta(days=1)) == PRICE
    assert books.check(at=noon) == []


def test_what_a_later_version_cost_counts_in_the_floor_of_the_last_period_of_the_one_before(
    acme: Organization, project: Project, actor: Actor
) -> None:
    with time_machine.travel(AGREED, tick=False):
        deal = make_deal(acme, **BY_CUSTOMER, floor={"period": "day", "micros": 3 * PRICE})
    within = AGREED + timedelta(days=1)
    assert pay(deal, project, actor, "a", within) == PRICE
    second = amend(deal, acme, within, **BY_CUSTOMER, floor={"period": "day", "micros": PRICE})
    assert pay(second, project, actor, "b", within) == PRICE
    floors.true_up(at=within + timedelta(days=1), limit=10)
    assert Outcome.objects.get(kind="true_up").amount_micros == PRICE


def test_the_floor_of_an_amended_contract_is_charged_once_a_period(acme: Organization) -> None:
    with time_machine.travel(AGREED, tick=False):
        deal = make_deal(acme, floor={"period": "day", "micros": 3 * PRICE})
    amend(deal, acme, AGREED + timedelta(days=1), floor={"period": "day", "micros": 4 * PRICE})
    assert floors.true_up(at=AGREED + timedelta(days=3), limit=10) == 2
    charged = Outcome.objects.filter(kind="true_up").order_by("period").values_list("period__day", "amount_micros")
    assert list(charged) == [(11, 3 * PRICE), (12, 4 * PRICE)]


def test_a_period_is_looked_at_once_whether_it_met_its_floor_or_not(
    acme: Organization, project: Project, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with time_machine.travel(AGREED, tick=False):
        deal = make_deal(acme, **BY_CUSTOMER, floor={"period": "day", "micros": PRICE})
    within = AGREED + timedelta(days=1)
    claim = deal.claim(project, "frame 1", at=within)
    answering.accept(actor=actor, claim=claim, at=within)
    sweeping.advance(at=within, limit=10)
    looked: list[datetime] = []
    true_up = till.true_up
    monkeypatch.setattr(till, "true_up", lambda **how: looked.append(how["period"].starts_at) or true_up(**how))
    after = AGREED + timedelta(days=1, hours=13)
    for seconds in (0, 10, 20):
        assert floors.true_up(at=after + timedelta(seconds=seconds), limit=10) == 0
    assert looked == [AGREED.replace(day=11, hour=0)], "its customer's accounts are locked once a period"
    assert floors.true_up(at=after + timedelta(days=1), limit=10) == 1, "the next day nothing was sold"
