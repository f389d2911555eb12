"""What is paid ahead for reservations counts towards the budgets of the month in which it is paid."""

from datetime import datetime, timedelta

import pytest

from billing.months import next_month
from marketplace import quotes, reservations, spend
from marketplace.errors import BudgetExceeded
from marketplace.models import Organization, Project, Reservation, ReservationState
from tests.blocks import PRICE, Buyer
from tests.marketplace.test_spend import budget

pytestmark = pytest.mark.django_db

FAR = 24 * 40  # Hours: beyond a calendar month from now, and free to cancel.


def used(owner: Organization | Project, buyer: Buyer, at: datetime) -> int:
    return spend.committed(owner, buyer.project.organization, at=at).month_micros


def both(buyer: Buyer, at: datetime) -> set[int]:
    return {used(owner, buyer, at) for owner in (buyer.project, buyer.project.organization)}


def test_an_extension_counts_in_the_month_in_which_it_is_paid(acme_buys: Buyer) -> None:
    reservation = acme_buys.buy(8, FAR, FAR + 10)
    assert both(acme_buys, acme_buys.noon + timedelta(seconds=1)) == {8 * 10 * PRICE}
    later = next_month(acme_buys.noon)
    assert both(acme_buys, later) == {0}
    quote = quotes.for_extension(reservation=reservation, ends_at=acme_buys.at(FAR + 14), at=later)
    reservations.extend(actor=acme_buys.actor, reservation=reservation, quote=quote, at=later)
    assert both(acme_buys, later) == {quote.total_micros}
    assert quote.total_micros > 0


def test_of_what_is_cancelled_only_the_part_that_is_kept_counts(acme_buys: Buyer) -> None:
    reservation = acme_buys.buy(8, 50, 60)
    quote = quotes.for_cancellation(reservation=reservation, at=acme_buys.noon)
    reservations.cancel(actor=acme_buys.actor, reservation=reservation, quote=quote, at=acme_buys.noon)
    assert 0 < quote.total_micros < 8 * 10 * PRICE
    assert both(acme_buys, acme_buys.noon) == {quote.total_micros}


def test_what_comes_back_of_another_month_makes_no_room_in_this_one(acme_buys: Buyer) -> None:
    reservation = acme_buys.buy(8, FAR, FAR + 10)
    later = next_month(acme_buys.noon)
    quote = quotes.for_cancellation(reservation=reservation, at=later)
    reservations.cancel(actor=acme_buys.actor, reservation=reservation, quote=quote, at=later)
    assert both(acme_buys, later) == {0}


def test_a_booking_whose_payment_is_pending_counts_for_its_project(
    acme_buys: Buyer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reservations, "take_payment", lambda *_, **__: None)
    reservation = acme_buys.buy(8, 24, 34)
    assert reservation.state == ReservationState.PAYMENT_PENDING
    assert both(acme_buys, acme_buys.noon) == {8 * 10 * PRICE}


def test_another_projects_payments_are_the_organizations_only(acme_buys: Buyer) -> None:
    acme_buys.buy(8, 24, 34)
    other = Project.objects.create(organization=acme_buys.project.organization, name="other")
    assert used(other, acme_buys, acme_buys.noon) == 0


def test_a_block_beyond_the_budget_is_refused(acme_buys: Buyer) -> None:
    budget(acme_buys.project, month=8 * 10 * PRICE)
    acme_buys.buy(8, 24, 34)
    with pytest.raises(BudgetExceeded):
        acme_buys.buy(1, 24, 25)
    assert Reservation.objects.count() == 1
