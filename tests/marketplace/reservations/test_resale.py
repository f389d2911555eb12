"""Resale: hours listed and bought, in whole or part; hours and money conserved whatever is traded."""

from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from billing import accounts
from billing.models import Account
from billing.rating import MILLISECOND
from marketplace import holdings, quotes, resale, reservations
from marketplace.errors import BadOrder, Conflict
from marketplace.models import BlockTerms, Listing, Reservation, Trade, TradeLeg
from marketplace.trades import LimitTooLow
from provisioning.errors import IllegalMove, NoCapacity
from provisioning.models import Node
from tests.blocks import HOUR, PRICE, USD, Buyer, check_conserved, deferred_micros
from tests.marketplace.test_spend import budget

pytestmark = pytest.mark.django_db


def held_by(reservation: Reservation) -> list[tuple[int, int, int]]:
    """Return start and end in hours from the start of the strips' first one, and GPUs, of what is held."""
    found = holdings.steps(list(Reservation.objects.get(pk=reservation.pk).strips.all()))
    zero = reservation.created_at.replace(minute=0, second=0, microsecond=0)
    hours = [
        (int((step.starts_at - zero).total_seconds() // 3600), int((step.ends_at - zero).total_seconds() // 3600))
        for step in found
    ]
    return [(begin, end, step.gpus) for (begin, end), step in zip(hours, found, strict=True)]


def test_a_part_is_sold_at_the_sellers_price_less_the_fee(acme_buys: Buyer, other_buys: Buyer) -> None:
    mine = acme_buys.buy(8, 24, 34)
    acme_buys.put_up(mine, 6, 26, 30, 1_500_000)
    before = (acme_buys.wallet().available_micros, other_buys.wallet().available_micros)
    trade = other_buys.trade(4, 27, 29, 1_600_000)
    paid = 4 * 2 * 1_500_000
    assert trade.total_micros == paid
    assert other_buys.wallet().available_micros == before[1] - paid
    assert acme_buys.wallet().available_micros == before[0] + paid - paid * 5 // 100
    assert accounts.balance_micros(accounts.platform(Account.Kind.FEES, "USD")) == paid * 5 // 100
    assert held_by(mine) == [(24, 27, 8), (27, 29, 4), (29, 34, 8)]
    assert held_by(trade.reservation) == [(27, 29, 4)]
    assert trade.reservation.state == "scheduled"
    assert deferred_micros() == 8 * 10 * PRICE
    left = resale.left_of(Listing.objects.all())
    assert [step.gpus for steps in left.values() for step in steps] == [6, 2, 6]
    check_conserved(at=acme_buys.noon)


def test_a_seller_pays_the_fee_of_their_own_terms_whatever_those_of_today_are(
    acme_buys: Buyer, other_buys: Buyer
) -> None:
    mine = acme_buys.buy(8, 24, 34)
    acme_buys.put_up(mine, 6, 26, 30, 1_500_000)
    before = acme_buys.wallet().available_micros
    BlockTerms.objects.update(resale_fee_bp=9000)
    trade = other_buys.trade(4, 27, 29, 1_600_000)
    fee = trade.total_micros * 5 // 100
    assert trade.legs.get().fee_micros == fee
    assert acme_buys.wallet().available_micros == before + trade.total_micros - fee
    assert trade.reservation.terms["resale_fee_bp"] == 9000
    check_conserved(at=acme_buys.noon)


def test_hours_of_an_offer_that_is_not_on_the_market_are_not_traded(
    acme_buys: Buyer, other_buys: Buyer, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme_buys.put_up(acme_buys.buy(8, 24, 34), 6, 26, 30, 1_500_000)
    monkeypatch.setattr(other_buys.offer, "is_listed", False)
    with pytest.raises(BadOrder, match="sold ahead"):
        other_buys.trade(4, 27, 29, 1_600_000)
    assert Trade.objects.count() == 0


def test_each_hour_is_filled_from_the_cheapest_and_the_rest_from_the_offer(acme_buys: Buyer, other_buys: Buyer) -> None:
    first, second = acme_buys.buy(4, 24, 26), acme_buys.buy(4, 24, 25)
    acme_buys.put_up(first, 4, 24, 26, 1_800_000)
    acme_buys.put_up(second, 2, 24, 25, 1_000_000)
    trade = other_buys.trade(8, 24, 26, PRICE)
    legs = sorted((leg.price_micros, leg.gpus, (leg.ends_at - leg.starts_at) // HOUR) for leg in trade.legs.all())
    assert legs == [(1_000_000, 2, 1), (1_800_000, 4, 2), (PRICE, 2, 1), (PRICE, 4, 1)]
    assert Listing.objects.filter(state="sold").count() == 2
    assert held_by(trade.reservation) == [(24, 26, 8)]
    assert Reservation.objects.get(pk=first.pk).state == "sold"
    check_conserved(at=acme_buys.noon)


def test_nobody_buys_their_own_hours_and_nobody_pays_more_than_the_limit(acme_buys: Buyer, other_buys: Buyer) -> None:
    mine = acme_buys.buy(16, 24, 26)
    acme_buys.put_up(mine, 16, 24, 26, 1_500_000)
    with pytest.raises(NoCapacity, match="0 GPUs can be had"), transaction.atomic():
        acme_buys.trade(1, 24, 25, 9_000_000)
    with pytest.raises(LimitTooLow, match="your limit is"), transaction.atomic():
        other_buys.trade(1, 24, 25, 1_499_999)
    assert Trade.objects.count() == 0
    assert other_buys.trade(1, 24, 25, 1_500_000).total_micros == 1_500_000


def test_equal_asks_are_taken_in_the_order_in_which_they_were_listed(acme_buys: Buyer, other_buys: Buyer) -> None:
    early, late = acme_buys.buy(2, 24, 25), acme_buys.buy(2, 24, 25)
    last = acme_buys.put_up(early, 2, 24, 25, PRICE)
    first = acme_buys.put_up(late, 2, 24, 25, PRICE)
    other_buys.trade(3, 24, 25, PRICE)
    assert {leg.listing_id: leg.gpus for leg in TradeLeg.objects.all()} == {last.pk: 2, first.pk: 1}


def test_hours_beside_those_that_are_for_sale_already_can_be_listed_too(acme_buys: Buyer) -> None:
    mine = acme_buys.buy(8, 24, 30)
    acme_buys.put_up(mine, 8, 26, 28, PRICE)
    for first, last in ((24, 26), (28, 30)):
        acme_buys.put_up(mine, 8, first, last, PRICE)
    assert Listing.objects.count() == 3


def test_an_hour_is_listed_and_stays_for_sale_until_exactly_an_hour_before_it(acme_buys: Buyer) -> None:
    mine = acme_buys.buy(8, 24, 26)
    acme_buys.put_up(mine, 8, 24, 26, PRICE, at=23)
    assert resale.expire_due(at=acme_buys.at(23), limit=10) == 0
    assert resale.expire_due(at=acme_buys.at(23) + MILLISECOND, limit=10) == 1
    (left,) = resale.left_of(Listing.objects.all()).values()
    assert [(step.starts_at, step.ends_at) for step in left] == [(acme_buys.at(25), acme_buys.at(26))]


def test_small_and_short_orders_are_not_served_by_a_listing_that_says_so(acme_buys: Buyer, other_buys: Buyer) -> None:
    mine = acme_buys.buy(16, 24, 28)
    acme_buys.put_up(mine, 16, 24, 28, 1_000_000, min_gpus=4, min_hours=2)
    for gpus, hours in ((3, 2), (4, 1)):
        with pytest.raises(NoCapacity), transaction.atomic():
            other_buys.trade(gpus, 24, 24 + hours, 9_000_000)
    other_buys.trade(4, 24, 26, 1_000_000)


@pytest.mark.parametrize(
    ("changes", "field", "rule"),
    [
        ({"ask": 1_500_001}, "ask", "whole multiple"),
        ({"ask": 0}, "ask", "whole multiple"),
        ({"ask": 2_500_000}, "ask", r"costs .*2\.49 today"),
        ({"gpus": 9}, "gpus", "holds 8 GPUs, not 9"),
        ({"gpus": 0}, "gpus", "at least 1"),
        ({"first": 20}, "starts_at", "does not hold all"),
        ({"last": 40}, "starts_at", "does not hold all"),
        ({"first": 30, "last": 30}, "ends_at", "after the start"),
        ({"first": 24.5}, "starts_at", "whole UTC hours"),
        ({"first": -3}, "starts_at", "has begun already"),
        ({"at": 23.5}, "starts_at", "sold until 60 minutes"),
        ({"min_gpus": 9}, "min_gpus", "1 to 8 GPUs"),
        ({"min_hours": 11}, "min_hours", "1 to 10 hours"),
    ],
)
def test_a_listing_that_cannot_be_is_refused_by_its_rule(
    acme_buys: Buyer, changes: dict[str, Any], field: str, rule: str
) -> None:
    mine = acme_buys.buy(8, 24, 34)
    wanted: dict[str, Any] = {"gpus": 8, "first": 24, "last": 34, "ask": 1_500_000} | changes
    with pytest.raises(BadOrder, match=rule) as refusal:
        acme_buys.put_up(mine, **wanted)
    assert refusal.value.field == field
    assert Listing.objects.count() == 0


def test_hours_are_not_listed_twice(acme_buys: Buyer) -> None:
    mine = acme_buys.buy(8, 24, 34)
    acme_buys.put_up(mine, 5, 24, 28, 1_500_000)
    with pytest.raises(Conflict, match="5 GPUs are for sale already, 3 are not"):
        acme_buys.put_up(mine, 4, 27, 30, 1_500_000)
    acme_buys.put_up(mine, 3, 27, 30, 1_500_000)
    assert Listing.objects.count() == 2


def test_what_is_withdrawn_stays_the_holders_and_can_be_listed_again(acme_buys: Buyer, other_buys: Buyer) -> None:
    mine = acme_buys.buy(16, 24, 26)
    listing = acme_buys.put_up(mine, 16, 24, 26, 1_500_000)
    resale.withdraw(actor=acme_buys.actor, listing=listing, at=acme_buys.noon)
    resale.withdraw(actor=acme_buys.actor, listing=listing, at=acme_buys.noon)
    with pytest.raises(NoCapacity), transaction.atomic():
        other_buys.trade(1, 24, 25, 9_000_000)
    acme_buys.put_up(mine, 16, 24, 26, 1_500_000)


def test_hours_that_begin_soon_are_off_the_market(acme_buys: Buyer, other_buys: Buyer) -> None:
    mine = acme_buys.buy(16, 24, 26)
    listing = acme_buys.put_up(mine, 16, 24, 26, 1_500_000)
    with pytest.raises(NoCapacity), transaction.atomic():
        other_buys.trade(1, 24, 25, 9_000_000, at=23.5)
    acme_buys.go_to(23.5)
    assert [hour.hour for hour in listing.hours.all()] == [acme_buys.at(25)]
    acme_buys.go_to(24.5)
    listing.refresh_from_db()
    assert listing.state == "expired"
    with pytest.raises(IllegalMove, match="Nothing of it is for sale"):
        resale.withdraw(actor=acme_buys.actor, listing=listing, at=acme_buys.at(24.5))


def test_hours_of_an_active_reservation_are_sold_and_what_runs_there_makes_room(
    acme_buys: Buyer, other_buys: Buyer
) -> None:
    mine = acme_buys.buy(8, 2, 6)
    for hours in (1, 2):
        acme_buys.go_to(hours)
    acme_buys.put_up(mine, 8, 4, 6, 1_500_000, at=2.1)
    trade = other_buys.trade(8, 4, 6, 1_500_000, at=2.2)
    assert held_by(mine) == [(2, 4, 8)]
    acme_buys.go_to(3.4)
    mine.refresh_from_db()
    assert mine.state == "ending"
    for hours in (4, 5, 6):
        acme_buys.go_to(hours)
        check_conserved(at=acme_buys.at(hours))
    assert deferred_micros() == 0
    assert Reservation.objects.get(pk=trade.reservation_id).state == "expired"


def test_cancelling_takes_what_is_listed_off_the_market(acme_buys: Buyer, other_buys: Buyer) -> None:
    mine = acme_buys.buy(8, 200, 204)
    acme_buys.put_up(mine, 8, 200, 204, 1_500_000)
    quote = quotes.for_cancellation(reservation=mine, at=acme_buys.noon)
    reservations.cancel(actor=acme_buys.actor, reservation=mine, quote=quote, at=acme_buys.noon)
    assert Listing.objects.get().state == "withdrawn"
    assert other_buys.trade(16, 200, 204, PRICE).legs.get().listing is None


def test_who_bought_dear_from_a_holder_gets_back_what_they_paid_if_we_do_not_deliver(
    acme_buys: Buyer, other_buys: Buyer
) -> None:
    mine = acme_buys.buy(16, 2, 4)
    acme_buys.put_up(mine, 16, 2, 4, 2_490_000)
    other_buys.trade(16, 2, 4, 2_490_000)
    Node.objects.update(state="cordoned")
    acme_buys.go_to(1)
    acme_buys.go_to(2.2)
    acme_buys.go_to(3.2)
    assert other_buys.wallet().available_micros == 1000 * USD
    assert accounts.balance_micros(accounts.platform(Account.Kind.SLA_EXPENSE, "USD")) == -16 * 2 * 490_000
    acme_buys.go_to(4)
    check_conserved(at=acme_buys.at(4))


def test_who_bought_cheap_gets_no_more_back_by_cancelling_than_they_paid(acme_buys: Buyer, other_buys: Buyer) -> None:
    mine = acme_buys.buy(8, 200, 204)
    acme_buys.put_up(mine, 8, 200, 204, 500_000)
    bought = other_buys.trade(8, 200, 204, 500_000).reservation
    quote = quotes.for_cancellation(reservation=bought, at=acme_buys.noon)
    assert (quote.total_micros, quote.refund_micros) == (0, 8 * 4 * 500_000)
    reservations.cancel(actor=other_buys.actor, reservation=bought, quote=quote, at=acme_buys.noon)
    assert other_buys.wallet().available_micros == 1000 * USD
    check_conserved(at=acme_buys.noon)
    assert deferred_micros() == 0


def test_credit_never_becomes_cash_by_a_sale(acme_buys: Buyer, other_buys: Buyer) -> None:
    mine = acme_buys.buy(8, 24, 26)
    acme_buys.put_up(mine, 8, 24, 26, 1_500_000)
    other_buys.trade(8, 24, 26, 1_500_000)
    assert acme_buys.wallet().cash_micros == 0


def test_budgets_are_locked_before_accounts_as_everywhere(acme_buys: Buyer, other_buys: Buyer) -> None:
    acme_buys.put_up(acme_buys.buy(4, 24, 26), 4, 24, 26, PRICE // 2)
    budget(other_buys.project.organization, month=1000 * USD)
    other_buys.project.refresh_from_db()
    with CaptureQueriesContext(connection) as captured:
        other_buys.trade(4, 24, 26, PRICE)
    locked = [query["sql"] for query in captured if "FOR NO KEY UPDATE" in query["sql"]]
    of_budget = [n for n, sql in enumerate(locked) if 'FROM "marketplace_organization"' in sql]
    of_account = [n for n, sql in enumerate(locked) if 'FROM "billing_account"' in sql]
    assert of_budget
    assert of_budget[0] < of_account[0]
