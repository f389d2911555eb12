"""Tiers and commitments in the portal: on the market, before a launch, on the billing overview and on an invoice."""

from datetime import timedelta

import pytest
import time_machine
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing import adjusting
from billing.invoicing import issuing
from billing.models import Invoice
from marketplace.models import Organization, User
from marketplace.portal.preferences import ZONE_COOKIE
from tests.billing.invoicing import APRIL, use
from tests.billing.makers import HOUR, NOON, USD, pay_in
from tests.billing.pricing import SKU, TIERS, committed, in_force, item, tiered
from tests.conftest import Fleet
from tests.marketplace.invoices.conftest import leave_little_credit, seller
from tests.marketplace.portal.reading import faults, read

__all__ = ["seller"]


@pytest.fixture
def browser(client: Client, alice: User, acme: Organization) -> Client:
    client.force_login(alice)
    return client


def text_of(browser: Client, name: str, *ids: str) -> str:
    answer = browser.get(reverse(name, args=ids))
    assert faults(read(answer)) == []
    return answer.content.decode()


def test_the_market_and_the_launch_page_show_tiers(browser: Client, fleet: Fleet) -> None:
    begins = timezone.now() + timedelta(seconds=2)
    in_force(item(fleet.h200.sku, rows=TIERS, model="volume", minimum_micros=100_000_000), begins=begins)
    assert "over 1,000 h" not in text_of(browser, "market")
    with time_machine.travel(begins + timedelta(seconds=1)):
        market = text_of(browser, "market")
        launch = browser.get(reverse("launch"), {"offer": "h200-narvik"}).content.decode()
    for said in ("over 1,000 h", "at least $100.00 in a month of use", "the price of the tier that the month reaches"):
        assert said in market
        assert said in launch


def test_the_billing_overview_shows_how_much_of_a_commitment_is_used(browser: Client, acme: Organization) -> None:
    assert "H100 in Narvik" not in text_of(browser, "balance")
    price = in_force(item(name="H100 in Narvik"), begins=NOON - HOUR)[SKU]
    committed(acme, amount=100)
    use(acme, begin=APRIL, hours=30, price=price, quantity=1)
    adjusting.post_due(at=APRIL + 40 * HOUR)
    browser.cookies[ZONE_COOKIE] = "America/Los_Angeles"  # where the UTC term begins a day earlier
    page = text_of(browser, "balance")
    assert f"{APRIL:%Y-%m-%d} –" in page
    for said in ("Commitments", "H100 in Narvik", "$60.00 of $200.00 used", "− 20\u00a0%"):
        assert said in page


@pytest.mark.usefixtures("seller")
def test_an_invoice_shows_the_arithmetic_of_its_tiers(browser: Client, acme: Organization) -> None:
    leave_little_credit(acme)
    pay_in(acme, 500 * USD)
    use(acme, begin=NOON, hours=150, price=tiered(name="H100 in Narvik"), quantity=1)
    issuing.issue_due(at=APRIL + 2 * HOUR)
    page = text_of(browser, "invoice", Invoice.objects.get().public_id)
    assert "Tiers of H100 in Narvik: 150.00 GPU-hours in 2026-03" in page
    assert "0–100 h: 360,000,000 ms × $2.50" in page
    assert "In truth $350.00, less $375.00 that the lines of the use ask" in page
