"""The booking board, and the terms of blocks."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace.access import Actor
from marketplace.models import BlockTerms, Project, Reservation
from provisioning.calendar import hour_of
from tests.blocks import Buyer, sell_blocks
from tests.conftest import Fleet
from tests.marketplace.console.conftest import only_entry

pytestmark = pytest.mark.django_db

TERMS: dict[str, Any] = {
    "is_sold": "on", "discounts": "24:10, 168:20",
    "cancellation": "168:0, 24:10, 1:50.5", "lock_minutes": "60", "min_gpus": "1", "max_gpus": "64", "min_hours": "1",
    "max_hours": "4320", "horizon_hours": "8760", "resale_fee_bp": "5", "resale_cutoff_minutes": "60",
    "ask_step_micros": "0.01", "lend_share_bp": "50",
}  # fmt: skip


def test_terms_are_set_and_written_down(desk: Client, fleet: Fleet) -> None:
    address = reverse("console-offer-blocks", args=[fleet.h200.public_id])
    assert "Kept on cancellation" in desk.get(address).content.decode()
    assert desk.post(address, TERMS).status_code == 302
    terms = BlockTerms.objects.get(offer=fleet.h200)
    assert (terms.discounts, terms.cancellation) == ([[168, 2000], [24, 1000]], [[168, 0], [24, 1000], [1, 5050]])
    assert (terms.resale_fee_bp, terms.ask_step_micros, terms.lend_share_bp) == (500, 10_000, 5000)
    assert only_entry("block.terms").subject_id == fleet.h200.public_id
    assert "168:20, 24:10" in desk.get(address).content.decode()
    assert desk.post(address, TERMS | {"max_gpus": "32"}).status_code == 302
    assert BlockTerms.objects.get().max_gpus == 32


@pytest.mark.parametrize(
    ("field", "value"),
    [("discounts", "24"), ("discounts", "24:101"), ("discounts", "24:1, 24:2"), ("resale_fee_bp", "101"),
     ("max_gpus", "0"), ("min_gpus", "65"), ("horizon_hours", "0"), ("ask_step_micros", "0"),
     ("ask_step_micros", "99999")],
)  # fmt: skip
def test_terms_that_make_no_sense_are_refused(desk: Client, fleet: Fleet, field: str, value: str) -> None:
    address = reverse("console-offer-blocks", args=[fleet.h200.public_id])
    assert desk.post(address, TERMS | {field: value}).status_code == 422
    assert BlockTerms.objects.count() == 0


def test_the_board_shows_hours_reservations_trouble_and_money(
    desk: Client, fleet: Fleet, actor: Actor, project: Project
) -> None:
    assert "No offer sells blocks yet" in desk.get(reverse("console-bookings")).content.decode()
    sell_blocks(fleet.h200)
    buyer = Buyer(actor, project, fleet.h200, hour_of(timezone.now()) + timedelta(hours=1))
    reservation = buyer.buy(10, 2, 4)
    page = desk.get(reverse("console-bookings")).content.decode()
    assert page.count('class="heat-2"') >= 2
    assert reservation.public_id in page
    assert page.count("$40.00") == 3
    assert "The two differ" not in page
    Reservation.objects.update(promo_micros=1, earned_through=buyer.at(3))
    assert "The two differ" in desk.get(reverse("console-bookings")).content.decode()
