"""A real browser on a phone: every page of the console, and those of guarantees and shared revenue, in Japanese too."""

from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone

from billing.models import GuaranteeHour
from marketplace.access import Actor
from marketplace.console.urls import urlpatterns
from marketplace.guarantees import guarding
from marketplace.models import ContractVersion, Organization, User
from provisioning.calendar import HOUR, hour_of
from provisioning.models import Instance
from tests.agreed import GUARANTEE, guarantee, share_revenue
from tests.conftest import Fleet
from tests.marketplace.portal.looking import look, tour
from tests.marketplace.portal.test_browser import browser, pytestmark, sign_in, window

__all__ = ["browser", "pytestmark", "window"]

# Asked for by POST alone, or a file.
NO_PAGES = {"console-revenue-csv"}
MEASURED = [2_612, 2_587, 2_540, 2_210, 1_904, 2_566, 2_601, 2_593, None, 2_575, 2_588, 2_604]


@pytest.fixture
def steady(running: Instance, operator: Organization, acme: Organization, alice: User, actor: Actor) -> ContractVersion:
    """A running instance whose throughput is guaranteed, and half a day of hours of which two fell short."""
    at = timezone.now()
    version = guarantee(operator, acme, alice, at)
    made = guarding.begin(actor=actor, instance=running, version_id=version.public_id, at=at)
    for back, measured in enumerate(MEASURED, start=1):
        achieved = None if measured is None else measured * 4
        credit_bps = 0 if achieved is None or achieved >= 10_000 else 500 if achieved >= 8_000 else 10_000
        GuaranteeHour.objects.create(
            guarantee=made.public_id, organization=acme, resource_id=running.public_id, resource_name=running.name,
            version=version.public_id, supplier=operator, supplier_bps=7_500, currency="USD", curve=GUARANTEE,
            hour=hour_of(at) - back * HOUR, evidence={}, measured_milli=None if measured is None else measured * 1000,
            achieved_bps=achieved, paid_micros=2_490_000, credit_bps=credit_bps,
            credit_micros=2_490_000 * credit_bps // 10_000, at=at,
        )  # fmt: skip
    return version


def test_every_page_of_the_console_fits_a_phone_in_japanese(
    window: Any, fleet: Fleet, running: Instance, acme: Organization, carol: User
) -> None:
    sign_in(window, carol)
    plain = [pattern for pattern in urlpatterns if "<" not in str(pattern.pattern)]
    names = [str(pattern.name) for pattern in plain if pattern.name not in NO_PAGES]
    assert len(names) > 25
    tour(window, [reverse(name) for name in names], language="ja")
    for name in ("console", "console-dunning", "console-receivables", "console-reconciliation", "console-revenue"):
        window.goto(reverse(name))
        look(window, f"{name}-ja")


def test_what_a_guarantee_credited_and_what_revenue_is_shared_fit_a_phone(
    window: Any, steady: ContractVersion, running: Instance, operator: Organization, acme: Organization, alice: User
) -> None:
    shared = share_revenue(operator, acme, alice, timezone.now())
    sign_in(window, alice)
    window.goto(reverse("instance-guarantee", args=[running.public_id]))
    said = window.inner_text("main")
    assert "1,904" in said
    assert window.locator("svg.chart rect.band").count() == 2
    look(window, "guarantee")
    window.goto(reverse("outcome", args=[steady.public_id]))
    assert f"gpumarket guarantee INSTANCE --contract {steady.public_id}" in window.inner_text("main")
    look(window, "guarantee-product")
    window.goto(reverse("outcome", args=[shared.public_id]))
    assert "State your revenue after each period" in window.inner_text("main")
    look(window, "revenue-product")
    window.goto(reverse("revenue"))
    look(window, "revenue")
    window.goto(reverse("instance", args=[running.public_id]))
    look(window, "instance")
    of_one = [("instance-guarantee", running), ("instance", running), ("outcome", steady), ("outcome", shared)]
    tour(window, [reverse(name, args=[one.public_id]) for name, one in of_one], language="ja")
