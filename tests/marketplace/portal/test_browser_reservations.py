"""A real browser buys a block, sees it in the calendar and in its list, resells half, and reads it on a phone."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone

from marketplace.models import Listing, Offer, Organization, Reservation, User
from provisioning import calendar
from provisioning.calendar import hour_of
from tests.blocks import sell_blocks
from tests.conftest import Fleet
from tests.marketplace.portal.test_browser import browser, pytestmark, sign_in, window

__all__ = ["browser", "pytestmark", "window"]

SHOTS = os.environ.get("GPUMARKET_SHOTS", "")

# What reaches beyond the right edge, for whoever has to mend it.
WIDEST = """[...document.querySelectorAll("main *")].filter(
    one => one.getBoundingClientRect().right > document.documentElement.clientWidth && !one.closest(".heat-box")
).slice(0, 5).map(one => one.outerHTML.slice(0, 120))"""


@pytest.fixture
def offer(fleet: Fleet) -> Offer:
    sell_blocks(fleet.h200)
    calendar.count(at=timezone.now())
    return fleet.h200


def look(page: Any, name: str) -> None:
    """Keep what is seen, wide and on a phone, light and dark, where somebody wants to look; nothing may overflow."""
    for width, height in ((1280, 900), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        too_wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        assert not too_wide, f"{name} is wider than {width}: {page.evaluate(WIDEST)}"
        for scheme in ("light", "dark") if SHOTS else ():
            page.evaluate("theme => document.documentElement.setAttribute('data-bs-theme', theme)", scheme)
            page.screenshot(path=str(Path(SHOTS) / f"{name}-{width}-{scheme}.png"), full_page=True)
    page.set_viewport_size({"width": 1280, "height": 900})


def test_a_block_is_bought_seen_and_half_of_it_resold(
    window: Any, offer: Offer, alice: User, acme: Organization, carol: User
) -> None:
    sign_in(window, alice)
    window.goto(reverse("hours"))
    look(window, "hours")
    starts_at = hour_of(timezone.now()) + timedelta(hours=30)
    window.fill("#gpus", "8")
    window.fill("#starts_at", f"{starts_at:%Y-%m-%dT%H:%M}")
    window.fill("#hours", "30")
    window.click("#get-quote")
    window.wait_for_selector("#confirm")
    look(window, "quote")
    window.click("#confirm")
    window.wait_for_selector("#do-sell")
    look(window, "reservation")
    window.goto(reverse("hours"))
    assert window.locator(".heat td.heat-2").count() >= 24
    assert "8 / 16" in window.inner_text("main")
    window.goto(reverse("reservations"))
    look(window, "reservations")
    reservation = Reservation.objects.get()
    window.goto(reverse("reservation-sell", args=[reservation.public_id]))
    window.fill("#gpus", "4")
    window.fill("#ask", "1.50")
    look(window, "sell")
    window.click("#confirm")
    window.wait_for_selector("text=$1.50")
    assert Listing.objects.get().gpus == 4
    window.goto(reverse("listings"))
    look(window, "listings")
    window.context.clear_cookies()
    sign_in(window, carol)
    window.goto(reverse("console-bookings"))
    assert reservation.public_id in window.inner_text("main")
    look(window, "bookings")
    window.goto(reverse("console-offer-blocks", args=[offer.public_id]))
    look(window, "terms")
