"""The least that a contract costs in a period, charged once when the period is over."""

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
from tests.outcomes import BY_CUSTOMER, PRICE, accept, make_deal, put_up, terms

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


def test_the_floor_of_an_amended_contract_is_charged_once_a_period(acme: Organization) -> None:
    with time_machine.travel(AGREED, tick=False):
        deal = make_deal(acme, floor={"period": "day", "micros": 3 * PRICE})
    amended = AGREED + timedelta(days=1)
    with time_machine.travel(amended, tick=False):
        second = offering.amend(
            actor=deal.merchant, contract=deal.version.contract, side=Side.SELLER, at=amended,
            terms=terms(floor={"period": "day", "micros": 4 * PRICE}),
        )  # fmt: skip
        put_up(second, deal.merchant, at=amended)
        accept(acme, second)
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
