"""Two at once, on connections of their own: hours are sold once, quotes are used once, and nothing waits for ever."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from django.db import connection, transaction

from billing import books
from billing.errors import BillingError
from marketplace import quotes, resale, reservations
from marketplace.errors import MarketError
from marketplace.models import Quote, Reservation, Trade
from provisioning.errors import IllegalMove, PolicyExcludes, ProvisioningError
from provisioning.models import Quota
from tests.billing.makers import behind, while_it_waits
from tests.blocks import PRICE, Buyer, check_conserved, deferred_micros
from tests.conftest import shared_with_nobody

pytestmark = pytest.mark.django_db(transaction=True)

REFUSED = (MarketError, BillingError, ProvisioningError)


def at_once(*calls: Callable[[], object]) -> list[str]:
    """Run each call in a thread and a transaction of its own; return the sorted names of what came out."""
    barrier = Barrier(len(calls))

    def run(call: Callable[[], object]) -> str:
        try:
            barrier.wait(timeout=10)
            with transaction.atomic():
                call()
        except REFUSED as refusal:
            return type(refusal).__name__
        finally:
            connection.close()
        return "done"

    with ThreadPoolExecutor(len(calls)) as pool:
        return sorted(pool.map(run, calls))


def test_a_quote_that_is_used_by_eight_at_once_buys_once(acme_buys: Buyer) -> None:
    quote = acme_buys.quote(2, 24, 26)

    def buy() -> None:
        own = Quote.objects.select_related("project__organization", "offer", "price_version").get(pk=quote.pk)
        reservations.buy(actor=acme_buys.actor, quote=own, at=acme_buys.noon)

    assert at_once(*[buy] * 8) == ["QuoteUsed"] * 7 + ["done"]
    assert Reservation.objects.get().paid_micros == 4 * PRICE == deferred_micros()
    check_conserved(at=acme_buys.noon)


def test_hours_for_two_are_never_sold_to_eight(acme_buys: Buyer, other_buys: Buyer) -> None:
    both = [acme_buys, other_buys]
    ready = [both[n % 2].quote(8, 24, 26) for n in range(8)]
    came = at_once(
        *(
            lambda n=n: reservations.buy(actor=both[n % 2].actor, quote=ready[n], at=acme_buys.noon)  # type: ignore[misc]
            for n in range(8)
        )
    )
    assert came.count("done") == 2
    assert came.count("NoCapacity") + came.count("QuotaExceeded") == 6
    check_conserved(at=acme_buys.noon)


def test_listed_hours_are_sold_once_while_their_holder_cancels(acme_buys: Buyer, other_buys: Buyer) -> None:
    mine = acme_buys.buy(16, 200, 204)
    acme_buys.put_up(mine, 16, 200, 204, 1_000_000)
    cancellation = quotes.for_cancellation(reservation=mine, at=acme_buys.noon)
    came = at_once(
        lambda: other_buys.trade(10, 200, 204, 1_000_000),
        lambda: other_buys.trade(10, 200, 204, 1_000_000),
        lambda: reservations.cancel(actor=acme_buys.actor, reservation=mine, quote=cancellation, at=acme_buys.noon),
    )
    assert came.count("done") == 1
    assert Trade.objects.count() + Reservation.objects.filter(state="cancelled").count() == 1
    check_conserved(at=acme_buys.noon)


def test_a_payment_that_two_sweeps_find_is_taken_once(acme_buys: Buyer, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as crash:
        crash.setattr(reservations, "take_payment", lambda *_, **__: None)
        bought = acme_buys.buy(2, 24, 26)

    def settle() -> None:
        reservations.settle_payments(at=acme_buys.at(0.1), limit=10)

    assert behind(Reservation.objects.filter(pk=bought.pk), settle, settle) == ["done", "done"]
    assert Reservation.objects.get().state == "scheduled"
    assert deferred_micros() == 4 * PRICE
    check_conserved(at=acme_buys.at(0.1))


def test_what_is_being_sold_is_not_withdrawn(acme_buys: Buyer, other_buys: Buyer) -> None:
    listing = acme_buys.put_up(acme_buys.buy(4, 200, 204), 4, 200, 204, 1_000_000)

    def withdraw() -> None:
        with pytest.raises(IllegalMove, match="for sale any more"):
            resale.withdraw(actor=acme_buys.actor, listing=listing, at=acme_buys.noon)

    while_it_waits(lambda: other_buys.trade(4, 200, 204, 1_000_000), withdraw)
    assert Trade.objects.count() == 1
    check_conserved(at=acme_buys.noon)


def test_two_who_sell_to_each_other_do_not_wait_for_ever(acme_buys: Buyer, other_buys: Buyer) -> None:
    for buyer in (acme_buys, other_buys):
        buyer.put_up(buyer.buy(4, 200, 202), 4, 200, 202, 1_000_000)
    for _ in range(3):
        at_once(
            lambda: acme_buys.trade(1, 200, 201, 1_000_000),
            lambda: other_buys.trade(1, 200, 201, 1_000_000),
            lambda: acme_buys.buy(1, 200, 202),
            lambda: other_buys.buy(1, 200, 202),
        )
    assert Trade.objects.count() == 6
    check_conserved(at=acme_buys.noon)
    assert books.check(at=acme_buys.noon) == []


@pytest.mark.parametrize("has_quota", [False, True])
def test_part_of_a_node_is_not_bought_while_the_policy_that_forbids_it_is_being_set(
    acme_buys: Buyer, has_quota: bool
) -> None:
    if not has_quota:
        Quota.objects.all().delete()
    quote = acme_buys.quote(4, 24, 26)

    def buy() -> None:
        with pytest.raises(PolicyExcludes, match="whole nodes of 8"), transaction.atomic():
            reservations.buy(actor=acme_buys.actor, quote=quote, at=acme_buys.noon)

    while_it_waits(lambda: shared_with_nobody(acme_buys.project), buy)
    assert not Reservation.objects.exists()
