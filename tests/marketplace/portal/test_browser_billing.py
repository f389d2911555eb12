"""A real browser looks at the billing overview, follows an amount, and sets a budget."""

from datetime import timedelta
from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone

from billing import prices, usage
from marketplace import spend
from marketplace.models import Organization, Project, User
from tests.conftest import Fleet
from tests.marketplace.portal.looking import look
from tests.marketplace.portal.test_browser import browser, sign_in, window
from tests.packages import needs

__all__ = ["browser", "window"]
pytestmark = [pytest.mark.browser, needs("chromium"), pytest.mark.django_db(transaction=True)]

HOUR = timedelta(hours=1)


@pytest.fixture
def used(acme: Organization, project: Project, fleet: Fleet) -> None:
    """Three weeks of use of two projects, two GPU models and two markets; something runs now."""
    now = timezone.now()
    begin = now - timedelta(days=40)
    other = Project.objects.create(organization=acme, name="inference")
    kinds = [
        (fleet.h200, "on_demand", project, 2_490_000), (fleet.l40s, "on_demand", other, 890_000),
        (fleet.h200, "spot", other, 1_310_000),
    ]  # fmt: skip
    for kind, (offer, market, whose, micros) in enumerate(kinds):
        price = prices.publish(
            sku=f"{offer.public_id}/{market}/{kind}", currency="USD", micros_per_unit_hour=micros,
            effective_from=begin, by="test", at=begin,
        )  # fmt: skip
        labels = {"project": whose.public_id, "offer": offer.public_id, "market": market}
        for day in range(24):
            name = f"ins_{kind}_{day}"
            start = now - timedelta(days=day) - (6 + day * 5 % 9) * HOUR
            usage.start(
                organization=acme, resource_id=name, resource_name=f"run-{kind}-{day}", labels=labels,
                quantity=1 + (day * 7 + kind * 3) % 5, price_version=price, at=start,
            )  # fmt: skip
            if day or kind:
                usage.stop(resource_id=name, at=start + (2 + (day * 11 + kind) % 6) * HOUR)


def test_somebody_reads_what_was_spent_and_how_an_amount_was_computed(window: Any, alice: User, used: None) -> None:
    sign_in(window, alice)
    window.goto(reverse("balance"))
    assert "Forecast for the month" in window.inner_text("main")
    assert window.locator("svg.chart rect").count() > 40
    window.select_option("#by", "model")
    window.wait_for_url("**by=model**")
    legend = window.inner_text("ul.legend")
    assert "H200" in legend
    assert "L40S" in legend
    window.select_option("#only-market", "spot")
    window.wait_for_url("**market=spot**")
    assert "L40S" not in window.inner_text("ul.legend")
    window.goto(reverse("usage"))
    window.click("tbody tr:first-child td:last-child a")
    window.wait_for_selector("text=Both ways of computing it agree")
    for name in ("balance", "usage", "budgets", "commitments", "service-levels"):
        window.goto(reverse(name))
        look(window, name)


def test_somebody_sets_a_budget_that_stops(window: Any, alice: User, used: None, project: Project) -> None:
    sign_in(window, alice)
    window.goto(reverse("budgets"))
    window.click(f"a[href^='{reverse('budget', args=[project.public_id])}?']")
    window.fill("#monthly", "250")
    window.check("#action-stop")
    window.fill("#grace_minutes", "15")
    window.click("button:has-text('Save')")
    window.wait_for_selector("text=The budget is set.")
    assert "after 15 minutes" in window.inner_text("main")
    made = spend.budgets_of(project, project.organization).get()
    assert (made.amount, made.action) == (250_000_000, "stop")
