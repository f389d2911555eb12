"""The console's auctions: terms, what was given, the sealed book, and holding an auction again."""

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace import spot
from marketplace.access import Actor
from marketplace.models import Auction, AuditEntry, Project, SpotTerms
from tests.conftest import Fleet, order
from tests.marketplace.portal.reading import faults, read

TERMS = {
    "is_enabled": "on", "currency": "USD", "reserve_micros": "0.50", "grid_micros": "0.01", "interval_s": "60",
    "min_notice_s": "30", "hysteresis_bp": "1000", "rise_bp": "2000", "buffer_gpus": "2",
    "cap_bp": "5000",
}  # fmt: skip


@pytest.fixture
def manager(carol: object) -> Client:
    client = Client()
    client.force_login(carol)  # type: ignore[arg-type]
    return client


def test_an_offer_is_sold_by_auction_from_a_form_and_who_did_it_is_written_down(manager: Client, fleet: Fleet) -> None:
    address = reverse("console-auction-terms", args=[fleet.h200.public_id])
    form = read(manager.get(address))
    assert faults(form) == []
    answer = manager.post(address, TERMS)
    assert answer.status_code == 302
    terms = SpotTerms.objects.get()
    assert (terms.reserve_micros, terms.buffer_gpus, terms.interval_s, terms.cap_bp) == (500_000, 2, 60, 5000)
    assert AuditEntry.objects.get(verb="spot_terms.set").after["by"] == "carol@operator.example"
    for name in ("console-auctions", "console-offer-auctions"):
        page = read(manager.get(reverse(name, args=[fleet.h200.public_id] if "offer" in name else [])))
        assert faults(page) == []
        assert "$0.50" in page.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reserve_micros": "0.505"}, "The reserve is a multiple of the step."),
        ({"min_notice_s": "99999"}, "From 0 to 1500."),
        ({"cap_bp": "10001"}, "From 0 to 10000."),
        ({"interval_s": "0"}, "greater than or equal to 1"),
        ({"reserve_micros": "free"}, "Enter a number."),
    ],
)
def test_terms_that_make_no_sense_are_said_beside_their_field(
    manager: Client, fleet: Fleet, changes: dict[str, str], words: str
) -> None:
    answer = manager.post(reverse("console-auction-terms", args=[fleet.h200.public_id]), TERMS | changes)
    assert answer.status_code == 422
    assert words in read(answer).text
    assert not SpotTerms.objects.exists()


def test_an_auction_shows_its_book_and_is_held_again(
    manager: Client, fleet: Fleet, actor: Actor, project: Project
) -> None:
    manager.post(reverse("console-auction-terms", args=[fleet.h200.public_id]), TERMS)
    placed = spot.bid(
        actor=actor, project=project, order=order(fleet.h200), max_price_micros=700_000, at=timezone.now()
    )
    held = spot.clear(offer_id=fleet.h200.pk, at=timezone.now())
    address = reverse("console-auction", args=[fleet.h200.public_id, held.public_id])
    page = read(manager.get(address))
    assert faults(page) == []
    for words in (placed.public_id, held.book_sha256, "$0.70", "won"):
        assert words in page.text
    assert "byte for byte" in read(manager.get(address, {"check": ""})).text
    Auction.objects.update(published=held.published.replace("500000", "500001"))
    assert "it gives something else" in read(manager.get(address, {"check": ""})).text
