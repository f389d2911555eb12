"""What was spent, to the micro-unit, in any stretch of time; and the page that shows it."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import time_machine
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import prices, usage
from billing.models import PriceVersion, Runway, UsageSpan
from marketplace import breakdown, cost_files, spend
from marketplace.access import Actor
from marketplace.contracts import answering, reversing, settling
from marketplace.models import Organization, Project
from marketplace.money import decimal_string
from marketplace.portal import charts, spending
from marketplace.portal.spending import midnight, month_after
from provisioning.calendar import hour_of
from provisioning.models import Instance
from tests.blocks import PRICE as BLOCK_PRICE
from tests.blocks import Buyer, sell_blocks
from tests.conftest import Fleet
from tests.marketplace.portal.reading import faults, read
from tests.outcomes import BY_CUSTOMER, make_deal
from tests.outcomes import PRICE as OUTCOME_PRICE

NOON = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def price(db: None) -> Any:
    return prices.publish(
        sku="ofr_1/on_demand", currency="USD", micros_per_unit_hour=2_490_001, effective_from=NOON - 999 * HOUR,
        by="test", at=NOON - 999 * HOUR,
    )  # fmt: skip


def used(organization: Organization, price: Any, *, name: str, start: datetime, end: datetime | None) -> UsageSpan:
    span = usage.start(
        organization=organization, resource_id=name, resource_name=name, labels={}, quantity=3, price_version=price,
        at=start,
    )  # fmt: skip
    if end is not None:
        usage.stop(resource_id=name, at=end)
        span.refresh_from_db()
    return span


def test_spending_counts_what_is_open_and_what_has_ended(acme: Organization, price: Any) -> None:
    used(acme, price, name="ended", start=NOON - 2 * HOUR, end=NOON - HOUR)
    used(acme, price, name="open", start=NOON - HOUR, end=None)
    used(acme, price, name="last month", start=NOON - 20 * 24 * HOUR, end=NOON - 19 * 24 * HOUR)
    found = spending.of(acme, at=NOON)
    assert (found.per_hour_micros, found.today_micros, found.month_micros) == (7_470_003, 14_940_006, 14_940_006)


def test_an_organization_that_never_spent_has_spent_nothing(acme: Organization) -> None:
    found = spending.of(acme, at=NOON)
    assert (found.per_hour_micros, found.today_micros, found.month_micros) == (0, 0, 0)


def test_another_organizations_use_is_not_counted(acme: Organization, price: Any, charlie: Any) -> None:
    used(charlie.memberships.get().organization, price, name="theirs", start=NOON - HOUR, end=None)
    assert spending.of(acme, at=NOON).per_hour_micros == 0


def test_the_chip_says_what_the_overview_and_the_command_line_say_of_the_month(
    acme: Organization, project: Project, actor: Actor, fleet: Fleet, django_assert_num_queries: Any
) -> None:
    """Use, results that were paid, what of them was given back, and hours that were paid ahead."""
    buyer = Buyer(actor, project, fleet.h200, hour_of(timezone.now()) + HOUR)
    at, price = buyer.at(0), PriceVersion.objects.get(sku=fleet.h200.sku)
    used(acme, price, name="open", start=at, end=None)
    deal = make_deal(acme, **BY_CUSTOMER)
    for subject in ("kept", "given back"):
        claim = deal.claim(project, subject, at=at)
        answering.accept(actor=actor, claim=claim, at=at)
        claim = settling.settle(claim=claim, at=at)
    reversing.reverse(actor=deal.merchant, claim=claim, reason="It is wrong.", at=at)
    sell_blocks(fleet.h200)
    buyer.buy(2, 48, 58)
    at += timedelta(seconds=30)
    with django_assert_num_queries(1):
        chip = spending.of(acme, at=at)
    month = midnight(at).replace(day=1)
    costs = breakdown.of(acme, [month, month_after(month)], at=at)
    assert {cost.market: cost.micros for cost in costs if cost.market in {"outcome", "reserved"}} == {
        "outcome": OUTCOME_PRICE, "reserved": 2 * 10 * BLOCK_PRICE
    }  # fmt: skip
    assert sum(cost.micros for cost in costs) == chip.month_micros > OUTCOME_PRICE + 20 * BLOCK_PRICE
    assert cost_files.document(acme, costs, ["day"], {})["total"] == decimal_string(chip.month_micros)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    begin_ms=st.integers(0, 10 * 86_400_000),
    lasts_ms=st.integers(0, 3 * 86_400_000),
    cuts=st.lists(st.integers(0, 14 * 86_400_000), max_size=6),
    is_open=st.booleans(),
    microseconds=st.integers(0, 999),
)
def test_stretches_that_touch_add_up_to_the_bill(
    acme: Organization, price: Any, begin_ms: int, lasts_ms: int, cuts: list[int], is_open: bool, microseconds: int
) -> None:
    UsageSpan.objects.all().delete()
    start = NOON - timedelta(days=14) + timedelta(milliseconds=begin_ms)
    end = None if is_open else start + timedelta(milliseconds=lasts_ms)
    span = UsageSpan.objects.create(
        organization=acme, resource_id="one", resource_name="one", quantity=3, price_version=price, started_at=start,
        ended_at=end, charged_through=start,
    )  # fmt: skip
    # Spans begin and end on whole milliseconds; the moment of looking does not.
    now = NOON + timedelta(microseconds=microseconds)
    edges = sorted({NOON - timedelta(days=15), now, *(NOON - timedelta(milliseconds=cut) for cut in cuts)})
    stretches = list(pairwise(edges))
    found = spend.spent(acme, stretches, at=now)
    assert sum(micros for micros, _ in found) == usage.amount_micros(span=span, at=now)


@pytest.mark.parametrize(
    ("micros", "top"),
    [(0, 10_000), (10_000, 10_000), (10_001, 20_000), (990_000, 1_000_000), (5_000_001, 8_000_000)],
)
def test_the_scale_of_a_chart_is_a_round_amount(micros: int, top: int) -> None:
    assert charts.round_up(micros) == top


def test_the_page_shows_every_span_with_how_it_was_computed(owner: Client, acme: Organization, price: Any) -> None:
    with time_machine.travel(NOON, tick=False):
        used(acme, price, name="ins_trainer", start=NOON - 2 * HOUR, end=NOON - HOUR)
        page, overview = read(owner.get(reverse("usage"))), read(owner.get(reverse("balance")))
        proved = read(owner.get(reverse("usage-span", args=[UsageSpan.objects.get().public_id])))
    assert faults(page) == faults(overview) == faults(proved) == []
    for words in ("10,800,000", "$2.490001", "$7.470003"):
        assert words in page.text
    for words in ("Both ways of computing it agree", "3,600,000", "3 GPU", "$2.490001", "$7.470003", "1 charge"):
        assert words in proved.text, words
    assert "$7.47 in 30 days; the most on one day was $7.47 on 2026-03-10 ." in overview.text
    assert len([rect for rect in overview.all("rect") if rect.attributes.get("class") == "fill-1"]) == 2


def test_while_something_runs_the_page_says_how_long_the_money_lasts(owner: Client, running: Instance) -> None:
    page = read(owner.get(reverse("balance")))
    assert "At this rate it lasts 16 d 17 h, until" in page.text
    assert "running" in read(owner.get(reverse("usage"))).text


def test_without_any_use_the_page_says_so(owner: Client, db: None) -> None:
    page = read(owner.get(reverse("balance")))
    assert "No charges in these days" in page.text
    assert "No charges yet" in read(owner.get(reverse("usage"))).text
    assert "$1,000.00" in page.text
    assert "Nothing is being charged, so the credit lasts." in page.text


def test_whoever_runs_low_is_warned_on_every_page(owner: Client, running: Instance, acme: Organization) -> None:
    assert b"lasts for less than an hour" not in owner.get("/").content
    soon = timezone.now() + timedelta(minutes=30)
    Runway.objects.filter(organization=acme).update(exhausts_at=soon)
    for page in ("/", "/market", "/instances"):
        assert b"Your credit lasts for less than an hour" in owner.get(page).content
