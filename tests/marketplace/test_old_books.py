"""Books of old auctions: the bids are deleted, what was published stays, and nobody is told that a replay was wrong."""

from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace import spot, spot_book, spot_market, spot_terms
from marketplace.access import Actor
from marketplace.models import Auction, Bid, Offer, Organization, Project, User
from tests.conftest import Fleet, make_token, order
from tests.marketplace.api.program import Program

pytestmark = pytest.mark.django_db


@pytest.fixture
def held(actor: Actor, project: Project, fleet: Fleet) -> Auction:
    """An auction of H200s in which Alice won one."""
    at = timezone.now()
    spot_terms.set_terms(offer=fleet.h200, by="carol@operator.example", at=at, reserve_micros=500_000, interval_s=60)
    with transaction.atomic():
        spot.bid(actor=actor, project=project, order=order(fleet.h200), max_price_micros=600_000, at=at)
    return spot.clear(offer_id=fleet.h200.pk, at=at)


def forget(held: Auction, *, after: timedelta = spot_book.KEPT + timedelta(seconds=1)) -> Auction:
    spot_book.forget(at=held.held_at + after, limit=10)
    return Auction.objects.get(pk=held.pk)


def test_a_book_is_deleted_once_it_was_kept_for_long_enough_and_what_was_published_stays(held: Auction) -> None:
    assert spot_book.check(forget(held, after=spot_book.KEPT)).is_right
    old = forget(held)
    assert (bytes(old.book), old.book_deleted_at) == (b"", held.held_at + spot_book.KEPT + timedelta(seconds=1))
    kept = ("published", "price_micros", "charged_micros", "capacity_gpus", "reserve_micros", "book_sha256")
    assert [getattr(old, name) for name in kept] == [getattr(held, name) for name in kept]
    assert old.allocations.count() == 1
    assert spot_book.forget(at=held.held_at + 2 * spot_book.KEPT, limit=10) == 0
    with pytest.raises(spot_book.BookDeleted, match="The bids of this auction were deleted on 20"):
        spot_book.check(old)
    assert spot_market.own_bids(old, Bid.objects.all()) == []


def test_the_oldest_books_go_first_and_so_many_at_once(held: Auction, fleet: Fleet) -> None:
    later = spot.clear(offer_id=fleet.h200.pk, at=held.held_at + timedelta(minutes=1))
    assert spot_book.forget(at=later.held_at + 2 * spot_book.KEPT, limit=1) == 1
    assert Auction.objects.get(book_deleted_at=None) == later


@pytest.mark.parametrize("change", [{"book": b""}, {"book_deleted_at": timezone.now()}])
def test_a_book_is_there_or_is_said_to_be_deleted(held: Auction, change: dict[str, object]) -> None:
    with pytest.raises(IntegrityError, match="auction_has_its_book"), transaction.atomic():
        Auction.objects.update(**change)


def test_programs_and_customers_are_told_that_the_bids_are_gone(
    held: Auction, fleet: Fleet, alice: User, acme: Organization, client: Client
) -> None:
    program, path = Program(make_token(alice, acme)), f"offers/{fleet.h200.slug}/spot/auctions/{held.public_id}"
    before = program.get(path).json()
    assert (len(before["own_bids"]), before["book_deleted_at"]) == (1, None)
    forget(held)
    after = program.get(path).json()
    assert (after["own_bids"], after["book_deleted_at"] is None) == ([], False)
    same = set(before) - {"own_bids", "book_deleted_at"}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    client.force_login(alice)
    page = client.get(reverse("spot-auction", args=[fleet.h200.slug, held.public_id])).content.decode()
    assert "The bids of this auction were deleted" in page
    assert "You had none" not in page


def test_the_console_shows_an_auction_without_its_book_and_holds_it_again_no_more(
    held: Auction, fleet: Fleet, carol: User, client: Client
) -> None:
    client.force_login(carol)
    where = reverse("console-auction", args=[Offer.objects.get(pk=fleet.h200.pk).public_id, held.public_id])
    assert "gives the same hash" in client.get(where, {"check": ""}).content.decode()
    forget(held)
    for query in ({}, {"check": ""}):
        page = client.get(where, query)
        assert page.status_code == 200
        assert "were deleted, so it cannot be held again" in page.content.decode()
        assert 'id="replay"' not in page.content.decode()
