"""What is paid ahead for reservations counts towards the budgets of the month in which it is paid."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from billing.months import next_month
from marketplace import budget_counters, quotes, reservations, spend, tokens
from marketplace.access import Actor
from marketplace.errors import BudgetExceeded
from marketplace.models import ApiToken, Organization, Project, Reservation, ReservationState, TokenPurchase
from tests.blocks import PRICE, Buyer
from tests.marketplace.test_spend import budget

pytestmark = pytest.mark.django_db

FAR = 24 * 40  # Hours: beyond a calendar month from now, and free to cancel.


def used(owner: Organization | Project | ApiToken, buyer: Buyer, at: datetime) -> int:
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


@pytest.fixture
def program(acme_buys: Buyer) -> Buyer:
    """The same customer's program, with a token."""
    token, _ = tokens.create_token(
        actor=acme_buys.actor, organization=acme_buys.project.organization, name="agent", scopes=("rent",),
        at=timezone.now(),
    )  # fmt: skip
    return replace(acme_buys, actor=Actor(user=acme_buys.actor.user, token=token))


def by_token(buyer: Buyer) -> int:
    """Return what the token has used, and assert that what watches budgets says the same."""
    token, at = buyer.actor.token, buyer.noon + timedelta(seconds=1)
    assert token is not None
    found = used(token, buyer, at)
    (measure,) = budget_counters.measure_money([budget_counters.whose(token, buyer.project.organization)], at)
    assert measure.used == found
    return found


def test_a_token_answers_for_what_it_pays_ahead_and_for_nothing_else(
    acme_buys: Buyer, other_buys: Buyer, program: Buyer
) -> None:
    acme_buys.buy(1, 50, 60)
    assert by_token(program) == 0
    reservation = program.buy(2, 50, 60)
    assert by_token(program) == 2 * 10 * PRICE
    quote = quotes.for_extension(reservation=reservation, ends_at=program.at(62), at=program.noon)
    reservations.extend(actor=program.actor, reservation=reservation, quote=quote, at=program.noon)
    ahead = 2 * 10 * PRICE + quote.total_micros
    assert by_token(program) == ahead
    other_buys.put_up(other_buys.buy(4, 70, 72), 4, 70, 72, PRICE // 2)
    trade = program.trade(4, 70, 72, PRICE)
    assert by_token(program) == ahead + trade.total_micros
    reservation.refresh_from_db()
    quote = quotes.for_cancellation(reservation=reservation, at=program.noon)
    reservations.cancel(actor=program.actor, reservation=reservation, quote=quote, at=program.noon)
    assert by_token(program) == ahead - quote.refund_micros + trade.total_micros
    assert used(acme_buys.project, program, program.noon) == by_token(program) + 10 * PRICE


def test_a_token_whose_budget_its_purchases_have_used_buys_no_more(program: Buyer) -> None:
    token = program.actor.token
    assert token is not None
    budget(token, month=8 * 10 * PRICE)
    token.refresh_from_db()
    program.buy(8, 24, 34)
    with pytest.raises(BudgetExceeded, match="the token agent"):
        program.buy(1, 24, 25)
    assert TokenPurchase.objects.count() == 1


def test_a_token_s_booking_whose_payment_is_pending_counts(program: Buyer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservations, "take_payment", lambda *_, **__: None)
    program.buy(8, 24, 34)
    token = program.actor.token
    assert token is not None
    assert used(token, program, program.noon) == 8 * 10 * PRICE
    (measure,) = budget_counters.measure_money(
        [budget_counters.whose(token, program.project.organization)], program.noon
    )
    assert measure.forecast == 8 * 10 * PRICE


def test_a_block_beyond_the_budget_is_refused(acme_buys: Buyer) -> None:
    budget(acme_buys.project, month=8 * 10 * PRICE)
    acme_buys.buy(8, 24, 34)
    with pytest.raises(BudgetExceeded):
        acme_buys.buy(1, 24, 25)
    assert Reservation.objects.count() == 1
