"""Reservations in the portal: see free hours, buy a block by its quote, sell half, buy from another customer."""

import re
from datetime import timedelta

import pytest
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace import rentals
from marketplace.access import person
from marketplace.models import Listing, Offer, Project, Quote, Reservation, Trade, User
from provisioning import calendar
from provisioning.calendar import hour_of
from tests.blocks import USD, Buyer, sell_blocks
from tests.conftest import Fleet, Run, order
from tests.marketplace.portal.conftest import browser
from tests.marketplace.portal.reading import read

pytestmark = pytest.mark.django_db


@pytest.fixture
def offer(fleet: Fleet) -> Offer:
    sell_blocks(fleet.h200)
    calendar.count(at=timezone.now())
    return fleet.h200


def utc(hours: int) -> str:
    """Return the full hour so many hours from now, as a form's field has it."""
    return f"{hour_of(timezone.now()) + timedelta(hours=hours):%Y-%m-%dT%H:%M}"


def ask_for_quote(client: Client, offer: Offer, **changes: str) -> Quote:
    order = {"offer": offer.slug, "gpus": "8", "starts_at": utc(48), "hours": "24"} | changes
    answer = client.post(reverse("hours"), order)
    assert answer.status_code == 302, answer.content.decode()[:2000]
    return Quote.objects.order_by("-pk")[0]


def test_a_block_is_seen_quoted_bought_and_cancelled(owner: Client, offer: Offer) -> None:
    page = read(owner.get(reverse("hours"), {"offer": offer.slug}))
    assert "free GPUs in each hour (UTC)" in page.text
    assert "16 / 16" in page.text
    quote = ask_for_quote(owner, offer)
    page = read(owner.get(reverse("quote", args=[quote.public_id])))
    assert "Pay $345.60 and reserve" in page.text
    assert "10 % less for its duration" in page.text
    assert "What cancelling would cost" in page.text
    owner.post(reverse("quote", args=[quote.public_id]))
    owner.post(reverse("quote", args=[quote.public_id]))
    reservation = Reservation.objects.get()
    assert reservation.state == "scheduled"
    page = read(owner.get(reverse("reservation", args=[reservation.public_id])))
    assert "0 of 8 GPUs are used now." in page.text
    owner.post(reverse("reservation-cancel", args=[reservation.public_id]))
    cancellation = Quote.objects.get(kind="cancellation")
    page = read(owner.get(reverse("quote", args=[cancellation.public_id])))
    assert "Cancel it for good" in page.text
    owner.post(reverse("quote", args=[cancellation.public_id]))
    reservation.refresh_from_db()
    assert reservation.state == "cancelled"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("gpus", "0", "have 1 to 1024 GPUs"),
        ("hours", "0", "after the start"),
        ("hours", "99999", "hours; this one would last 99999"),
        ("hours", "99999999", "No calendar goes so far"),
        ("starts_at", "9999-12-31T23:00", "No calendar goes so far"),
        ("starts_at", "2020-01-01T00:00", "has begun already"),
        ("starts_at", "soon", "Write a time in UTC"),
        ("gpus", "17", "17 GPUs are not free in every hour"),
    ],
)
def test_a_bad_order_is_said_beside_what_was_typed(
    owner: Client, offer: Offer, field: str, value: str, said: str
) -> None:
    order = {"offer": offer.slug, "gpus": "8", "starts_at": utc(48), "hours": "24", field: value}
    answer = owner.post(reverse("hours"), order)
    assert answer.status_code in {409, 422}
    assert said in read(answer).text
    assert Quote.objects.count() == 0


def test_the_cheapest_window_is_found_from_the_address(owner: Client, offer: Offer) -> None:
    asked = {"offer": offer.slug, "search_gpus": "16", "search_hours": "12", "before": utc(30)}
    page = read(owner.get(reverse("hours"), asked))
    assert "$384.00" in page.text
    assert "Choose it" in page.text
    late = read(owner.get(reverse("hours"), asked | {"before": utc(3)}))
    assert "12 hours do not fit" in late.text


def test_half_is_sold_to_another_customer(owner: Client, offer: Offer, charlie: User, acme_buys: Buyer) -> None:
    reservation = acme_buys.buy(8, 48, 58)
    sell = reverse("reservation-sell", args=[reservation.public_id])
    order = {"gpus": "4", "starts_at": f"{acme_buys.at(48):%Y-%m-%dT%H:%M}",
             "ends_at": f"{acme_buys.at(58):%Y-%m-%dT%H:%M}", "ask": "1.50"}  # fmt: skip
    page = owner.post(sell, order | {"ask": "1.505", "key": "a key"})
    assert "whole multiple" in read(page).text
    assert re.search(r'name="key" value="[\w-]{32}"', page.content.decode())
    for _ in range(2):
        assert owner.post(sell, order | {"key": "a key"}).status_code == 302
    assert owner.post(sell, order).status_code != 302
    assert Listing.objects.get().ask_micros == 1_500_000
    stranger = browser(charlie)
    assert "$1.50" in read(stranger.get(reverse("listings"), {"offer": offer.slug})).text
    wanted = {"offer": offer.slug, "gpus": "2", "starts_at": order["starts_at"], "hours": "10", "limit": "1.60"}
    page = stranger.post(reverse("listings-buy"), wanted)
    assert "Pay $30.00 and buy" in read(page).text
    sure = wanted | {"confirmed": "true", "key": "a key"}
    for _ in range(2):
        assert stranger.post(reverse("listings-buy"), sure).status_code == 302
    assert Trade.objects.get().total_micros == 30 * USD
    assert "$28.50" in read(owner.get(reverse("listings"), {"offer": offer.slug})).text
    owner.post(reverse("listing-withdraw", args=[Listing.objects.get().public_id]))
    assert Listing.objects.get().state == "withdrawn"


def test_a_stranger_sees_nothing_of_a_reservation(offer: Offer, charlie: User, acme_buys: Buyer) -> None:
    reservation = acme_buys.buy(2, 48, 49)
    quote = acme_buys.quote(1, 60, 61)
    stranger = browser(charlie)
    assert stranger.get(reverse("reservation", args=[reservation.public_id])).status_code == 404
    assert stranger.get(reverse("quote", args=[quote.public_id])).status_code == 404


def test_what_runs_inside_says_so_on_its_own_page(owner: Client, acme_buys: Buyer, run_until_idle: Run) -> None:
    reservation = acme_buys.buy(2, 1, 4)
    for hours in (0.5, 1):
        acme_buys.go_to(hours)
    with transaction.atomic():
        instance = rentals.rent(
            actor=acme_buys.actor, project=acme_buys.project, order=order(acme_buys.offer), at=acme_buys.at(1)
        )
    page = read(owner.get(reverse("instance", args=[instance.public_id])))
    assert "It runs inside" in page.text
    assert "1 of 2 GPUs are used now." in read(owner.get(reverse("reservation", args=[reservation.public_id]))).text


def test_lending_is_turned_on_and_off(owner: Client, acme_buys: Buyer) -> None:
    reservation = acme_buys.buy(2, 48, 49)
    address = reverse("reservation-lend", args=[reservation.public_id])
    owner.post(address, {"is_lent": "true"})
    assert Reservation.objects.get().is_lent
    owner.post(address, {"is_lent": "false"})
    assert not Reservation.objects.get().is_lent


@pytest.fixture
def acme_buys(owner: Client, offer: Offer, alice: User) -> Buyer:
    project = Project.objects.select_related("organization").get(organization__name="Acme")
    return Buyer(person(alice), project, offer, hour_of(timezone.now()) + timedelta(hours=1))


@pytest.mark.parametrize(
    ("hours", "starts_at", "said"),
    [("99999999", "", "No calendar goes so far"), ("1", "9999-12-31T23:00", "No calendar goes so far"),
     ("60000000", "", "this one would end later")],
)  # fmt: skip
def test_more_hours_than_any_calendar_has_are_a_mistake_not_a_fault(
    owner: Client, acme_buys: Buyer, hours: str, starts_at: str, said: str
) -> None:
    wanted = {"offer": acme_buys.offer.slug, "gpus": "2", "limit": "9", "hours": hours}
    for sure in ({}, {"confirmed": "true", "key": "a key"}):
        answer = owner.post(reverse("listings-buy"), wanted | {"starts_at": starts_at or utc(48)} | sure)
        assert (answer.status_code, said in read(answer).text) == (422, True)
    reservation = acme_buys.buy(2, 48, 49)
    answer = owner.post(reverse("reservation-extend", args=[reservation.public_id]), {"hours": "999999999"})
    assert (answer.status_code, "No calendar goes so far" in read(answer).text) == (422, True)


@pytest.mark.parametrize("gpus", ["0", "-1", "", "two"])
def test_a_number_of_gpus_that_is_none_buys_nothing(owner: Client, acme_buys: Buyer, gpus: str) -> None:
    wanted = {"offer": acme_buys.offer.slug, "gpus": gpus, "limit": "9", "hours": "2", "starts_at": utc(48)}
    for sure in ({}, {"confirmed": "true", "key": "a key"}):
        answer = owner.post(reverse("listings-buy"), wanted | sure)
        assert (answer.status_code, "Ask for at least 1 GPU" in read(answer).text) == (422, True)
    assert not Trade.objects.exists()


def test_a_time_that_names_its_zone_is_taken_in_it(owner: Client, acme_buys: Buyer) -> None:
    tokyo = hour_of(timezone.now()) + timedelta(hours=48 + 9)
    quote = ask_for_quote(owner, acme_buys.offer, starts_at=f"{tokyo:%Y-%m-%dT%H:%M}+09:00")
    assert quote.starts_at == hour_of(timezone.now()) + timedelta(hours=48)
    wanted = {"offer": acme_buys.offer.slug, "gpus": "2", "hours": "1", "starts_at": "0001-01-01T00:00+09:00"}
    assert owner.post(reverse("hours"), wanted).status_code == 422
