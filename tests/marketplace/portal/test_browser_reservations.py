"""A real browser buys a block, resells half of it to somebody else, bids by auction, is interrupted and comes back."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone

from billing import accounts
from marketplace import spot, spot_terms
from marketplace.models import Auction, Listing, Offer, Organization, Reservation, User
from provisioning import calendar
from provisioning.calendar import hour_of
from provisioning.models import Instance, Interruption
from tests.blocks import sell_blocks
from tests.conftest import Fleet
from tests.marketplace.portal.looking import look, tour
from tests.marketplace.portal.test_browser import browser, lively_fleet, pytestmark, sign_in, window

__all__ = ["browser", "lively_fleet", "pytestmark", "window"]

# So short that a test can wait for it, and so long that a page shows it.
NOTICE_S = 3
WITHIN_S = 60


@pytest.fixture
def offer(lively_fleet: Fleet) -> Offer:
    """H200s on demand, in blocks and by auction."""
    at = timezone.now()
    sell_blocks(lively_fleet.h200)
    spot_terms.set_terms(
        offer=lively_fleet.h200, by="carol@operator.example", at=at, reserve_micros=500_000, interval_s=1,
        min_notice_s=NOTICE_S,
    )  # fmt: skip
    calendar.count(at=at)
    return lively_fleet.h200


def change_to(window: Any, user: User) -> None:
    window.context.clear_cookies()
    sign_in(window, user)


def until(found: Callable[[], Any], what: str) -> Any:
    limit = time.monotonic() + WITHIN_S
    while not (answer := found()):
        assert time.monotonic() < limit, f"{what}: not within {WITHIN_S} s"
        time.sleep(0.1)
    return answer


def buy_a_block(window: Any, starts_at: datetime) -> Reservation:
    window.goto(reverse("hours"))
    look(window, "hours")
    window.fill("#gpus", "8")
    window.fill("#starts_at", f"{starts_at:%Y-%m-%dT%H:%M}")
    window.fill("#hours", "30")
    window.click("#get-quote")
    window.wait_for_selector("#confirm")
    look(window, "quote")
    window.click("#confirm")
    window.wait_for_selector("#do-sell")
    look(window, "reservation")
    return Reservation.objects.get()


def see_it_in_the_calendar(window: Any) -> None:
    window.goto(reverse("hours"))
    assert window.locator(".heat td.heat-2").count() >= 24
    assert "8 / 16" in window.inner_text("main")


def sell_half(window: Any, reservation: Reservation) -> None:
    window.goto(reverse("reservation-sell", args=[reservation.public_id]))
    window.fill("#gpus", "4")
    window.fill("#ask", "1.50")
    look(window, "sell")
    window.click("#confirm")
    window.wait_for_selector("text=$1.50")
    assert Listing.objects.get().gpus == 4


def buy_what_is_sold(window: Any, starts_at: datetime) -> Reservation:
    window.goto(reverse("listings"))
    look(window, "listings")
    window.fill("#gpus", "4")
    window.fill("#starts_at", f"{starts_at:%Y-%m-%dT%H:%M}")
    window.fill("#hours", "30")
    window.fill("#limit", "1.50")
    window.click("#look")
    window.wait_for_selector("#confirm:has-text('$180.00')")
    assert "another customer" in window.inner_text("main")
    look(window, "fill")
    window.click("#confirm")
    window.wait_for_selector("text=The hours are yours.")
    return Reservation.objects.latest("pk")


def bid(window: Any) -> Instance:
    window.goto(reverse("launch") + "?offer=h200-narvik")
    window.check("#market-spot")
    window.fill("#gpus", "2")
    window.fill("#command", "sleep 1000")
    window.fill("#name", "trainer")
    window.fill("#bid_price", "1.25")
    window.wait_for_selector("#cost:has-text('gpumarket bid h200-narvik --gpus 2 --max-price 1.25')")
    look(window, "bid-form")
    window.click("#launch-button")
    window.wait_for_selector("h1:has-text('trainer')")
    assert "waits for an auction" in window.inner_text("main")
    return Instance.objects.get()


def win(window: Any, instance: Instance, *, run: int) -> Auction:
    """Hold the next auction, and see on the page that it gave the instance its GPUs."""
    held = spot.clear(offer_id=instance.offer_id, at=timezone.now())
    window.wait_for_selector("#cost:has-text('The meter is running')")
    instance.refresh_from_db()
    assert (instance.phase, instance.run) == ("running", run)
    return held


def interrupt(window: Any) -> None:
    window.click("#do-interrupt")
    assert f"You are told {NOTICE_S} s before" in window.inner_text("main")
    look(window, "interrupt")
    window.click("#confirm")
    window.wait_for_selector(f"text=trainer has {NOTICE_S} s of notice")
    look(window, "notified")
    window.wait_for_selector("text=It bids again by itself.")
    assert Interruption.objects.get().reason == "simulated"


def test_a_block_is_bought_half_of_it_resold_and_a_bid_interrupted_and_resumed(
    window: Any, offer: Offer, alice: User, acme: Organization, charlie: User, carol: User
) -> None:
    starts_at = hour_of(timezone.now()) + timedelta(hours=30)
    sign_in(window, alice)
    reservation = buy_a_block(window, starts_at)
    see_it_in_the_calendar(window)
    sell_half(window, reservation)
    before = accounts.wallet(organization=acme).available_micros

    change_to(window, charlie)
    bought = buy_what_is_sold(window, starts_at)
    assert (bought.project.organization.name, bought.gpus) == ("Other", 4)
    assert Listing.objects.get().state == "sold"

    change_to(window, alice)
    window.goto(reverse("reservation", args=[reservation.public_id]))
    assert "120 GPU-hours sold for $" in window.inner_text("main")
    assert accounts.wallet(organization=acme).available_micros > before
    look(window, "half-sold")
    window.goto(reverse("reservations"))
    look(window, "reservations")
    see_it_in_the_calendar(window)  # The hours changed hands: they are no freer than before.

    instance = bid(window)
    win(window, instance, run=1)
    interrupt(window)
    until(lambda: spot.resume(at=timezone.now(), limit=9), "it bids again")
    window.reload()
    window.wait_for_selector("text=waits for an auction")
    held = win(window, instance, run=2)
    told = Interruption.objects.get()
    assert (told.state, told.credited_micros) == ("interrupted", 0)
    look(window, "resumed")
    for name in ("bids", "market"):
        window.goto(reverse(name))
        look(window, name)
    window.goto(reverse("spot", args=["h200-narvik"]))
    look(window, "spot")
    own = [reverse(name) for name in ("hours", "reservations", "listings", "bids")]
    own += [reverse("reservation", args=[reservation.public_id]), reverse("spot", args=["h200-narvik"])]
    tour(window, own, language="ja")

    change_to(window, carol)
    see_the_console(window, offer, reservation, held)


def see_the_console(window: Any, offer: Offer, reservation: Reservation, held: Auction) -> None:
    window.goto(reverse("console-bookings"))
    assert reservation.public_id in window.inner_text("main")
    look(window, "bookings")
    window.goto(reverse("console-auctions"))
    look(window, "auctions")
    window.click("a.row-name:has-text('H200 in Narvik')")
    window.wait_for_selector("text=Price history")
    look(window, "offer-auctions")
    window.goto(reverse("console-auction", args=[offer.public_id, held.public_id]))
    window.click("#replay")
    window.wait_for_selector("text=every published number byte for byte")
    look(window, "auction")
    window.goto(reverse("console-offer-blocks", args=[offer.public_id]))
    look(window, "terms")
