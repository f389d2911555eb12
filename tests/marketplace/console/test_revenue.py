"""Revenue of all customers: what was charged, told apart by offer, market and supplier, from the daily summary."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from billing import charging, daily
from billing.models import Charge, UsageSpan
from marketplace import delivery
from marketplace.access import Actor
from marketplace.console import revenue
from marketplace.models import Organization, Project
from provisioning.calendar import hour_of
from provisioning.models import Instance
from tests.blocks import PRICE, Buyer, sell_blocks
from tests.conftest import Fleet
from tests.marketplace.portal.reading import faults, read

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def charge_and_sum_up(at: datetime) -> None:
    charging.charge_due(at=at)
    daily.sum_up(at=at)


def today(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def since(instance: Instance, hours: int) -> None:
    """Let an instance have run for some hours already."""
    began = timezone.now() - hours * HOUR
    began -= timedelta(microseconds=began.microsecond % 1000)
    UsageSpan.objects.filter(resource_id=instance.public_id).update(started_at=began, charged_through=began)


def test_the_sum_is_what_was_charged(running: Instance, operator: Organization) -> None:
    since(running, 30)
    at = timezone.now()
    charge_and_sum_up(at)
    found = revenue.sold(today(at) - 3 * DAY, today(at) + DAY)
    assert sum(row.micros for row in found.rows) == sum(Charge.objects.values_list("amount_micros", flat=True))
    assert {(row.offer, row.market, row.supplier, row.currency) for row in found.rows} == {
        (running.offer.public_id, "on_demand", operator.public_id, "USD")
    }


def test_reserved_hours_count_as_they_are_earned(actor: Actor, project: Project, fleet: Fleet) -> None:
    sell_blocks(fleet.h200)
    buyer = Buyer(actor, project, fleet.h200, hour_of(timezone.now()) + HOUR)
    buyer.buy(2, 2, 12)
    for hours in (1, 2, 3, 4, 5):
        delivery.advance(at=buyer.at(hours), limit=100)
    daily.sum_up(at=buyer.at(5))
    found = revenue.sold(today(buyer.at(0)), today(buyer.at(24)) + DAY)
    reserved = [row for row in found.rows if row.market == "reserved"]
    assert sum(row.micros for row in reserved) % PRICE == 0
    assert sum(row.micros for row in reserved) > 0
    assert {row.offer for row in reserved} == {fleet.h200.public_id}


def test_the_page_and_its_file_show_it(desk: Client, running: Instance) -> None:
    since(running, 30)
    charge_and_sum_up(timezone.now())
    page = read(desk.get(reverse("console-revenue"), {"by": "supplier"}))
    assert faults(page) == []
    for words in ("Revenue", "Month to date", "Operator", "$74.", "UTC"):
        assert words in page.text, words
    lines = desk.get(reverse("console-revenue-csv")).content.decode().splitlines()
    assert lines[0] == "day,offer,offer_name,market,supplier,supplier_name,amount,currency"
    assert len(lines) >= 3


def test_it_asks_as_often_however_much_was_sold(desk: Client, running: Instance) -> None:
    def questions() -> int:
        desk.get(reverse("console-revenue"))
        with CaptureQueriesContext(connection) as captured:
            desk.get(reverse("console-revenue"))
        return len(captured)

    charge_and_sum_up(timezone.now())
    few = questions()
    span: Any = UsageSpan.objects.get(resource_id=running.public_id)
    for number in range(20):
        began = span.started_at - (number + 2) * HOUR
        UsageSpan.objects.create(
            organization=span.organization, resource_id=f"ins_{number}", resource_name="x", quantity=1,
            price_version=span.price_version, started_at=began, ended_at=began + HOUR, charged_through=began,
            labels=span.labels,
        )  # fmt: skip
    charge_and_sum_up(timezone.now())
    assert questions() == few


@pytest.mark.parametrize("name", ["console-revenue", "console-revenue-csv"])
def test_without_any_sale_it_says_so(desk: Client, name: str) -> None:
    assert desk.get(reverse(name)).status_code == 200
