"""Any order of buying, selling, cancelling and time passing, beside a model of plain numbers."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.errors import BillingError
from marketplace import quotes, reservations
from marketplace.errors import MarketError
from marketplace.models import OVER, Reservation, ReservationStrip, TradeLeg
from provisioning import quotas
from provisioning.errors import NoCapacity, ProvisioningError
from tests.blocks import HOUR, Buyer, check_conserved

pytestmark = pytest.mark.django_db

REFUSED = (MarketError, BillingError, ProvisioningError)
GPUS, FIRST, LAST = 16, 4, 12

windows = st.tuples(st.integers(FIRST, LAST - 1), st.integers(1, 4)).map(lambda pair: (pair[0], sum(pair)))
sizes, asks = st.integers(1, GPUS), st.integers(1, 4).map(lambda steps: steps * 1_000_000)
moves = st.lists(
    st.one_of(
        st.tuples(st.just("buy"), st.integers(0, 1), sizes, windows, asks),
        st.tuples(st.just("list"), st.integers(0, 3), sizes, windows, asks),
        st.tuples(st.just("trade"), st.integers(0, 1), sizes, windows, asks),
        st.tuples(st.just("cancel"), st.integers(0, 3), st.just(0), windows, asks),
        st.tuples(st.just("extend"), st.integers(0, 3), st.integers(1, 2), windows, asks),
        st.tuples(st.just("wait"), st.integers(1, 3), st.just(0), windows, asks),
    ),
    min_size=3,
    max_size=12,
)


def gpu_hours() -> int:
    alive = ReservationStrip.objects.exclude(reservation__state__in=[state for state in OVER if state != "expired"])
    return sum(strip.gpus * ((strip.ends_at - strip.starts_at) // HOUR) for strip in alive)


def act(move: tuple[Any, ...], buyers: list[Buyer], hours: float) -> None:
    verb, number, size, (first, last), ask = move
    at = buyers[0].at(hours)
    found = list(Reservation.objects.exclude(state__in=OVER).order_by("pk"))
    own = found[number % len(found)] if found else None
    buyer = buyers[number % 2]
    if verb == "buy":
        buyer.buy(size, first, last, at=hours)
    elif verb == "trade":
        before = gpu_hours()
        trade = buyer.trade(size, first, last, ask, at=hours)
        assert gpu_hours() - before == sum(
            leg.gpus * ((leg.ends_at - leg.starts_at) // HOUR) for leg in trade.legs.filter(listing=None)
        )
    elif own is None:
        return
    else:
        holder = next(one for one in buyers if one.project.pk == own.project_id)
        own = reservations.lock(own.pk)
        if verb == "list":
            holder.put_up(own, size, max(first, 1), last, ask, at=hours)
        elif verb == "cancel":
            quote = quotes.for_cancellation(reservation=own, at=at)
            reservations.cancel(actor=holder.actor, reservation=own, quote=quote, at=at)
        elif verb == "extend":
            quote = quotes.for_extension(reservation=own, ends_at=own.ends_at + size * HOUR, at=at)
            reservations.extend(actor=holder.actor, reservation=own, quote=quote, at=at)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=moves)
def test_hours_and_money_are_conserved_whatever_happens(
    acme_buys: Buyer, other_buys: Buyer, moves: list[tuple[Any, ...]]
) -> None:
    with transaction.atomic():
        quotas.set_limit(project_id=acme_buys.project.pk, limit=1000)
        hours = 0.0
        for move in moves:
            if move[0] == "wait":
                hours += move[1] / 2
                acme_buys.go_to(hours)
            else:
                try:
                    with transaction.atomic():
                        act(move, [acme_buys, other_buys], hours)
                except REFUSED:
                    pass
            check_conserved(at=acme_buys.at(hours))
            no_hour_is_oversold(acme_buys.at(hours))
        for leg in TradeLeg.objects.select_related("trade", "listing"):
            assert leg.price_micros <= leg.trade.limit_micros
            assert leg.listing is None or leg.price_micros == leg.listing.ask_micros
            assert leg.listing is None or leg.listing.seller_id != leg.trade.buyer_id
        acme_buys.go_to(40)
        for late in (41, 42, 43):
            acme_buys.go_to(late)
        check_conserved(at=acme_buys.at(43))
        transaction.set_rollback(True)


def no_hour_is_oversold(at: datetime) -> None:
    for number in range(30):
        hour = at.replace(minute=0, second=0, microsecond=0) + timedelta(hours=number)
        here = ReservationStrip.objects.exclude(reservation__state__in=OVER)
        assert sum(here.filter(starts_at__lte=hour, ends_at__gt=hour).values_list("gpus", flat=True)) <= GPUS


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(orders=st.lists(st.tuples(sizes, windows), min_size=1, max_size=10))
def test_what_fits_is_sold_and_what_does_not_is_refused(
    acme_buys: Buyer, orders: list[tuple[int, tuple[int, int]]]
) -> None:
    with transaction.atomic():
        quotas.set_limit(project_id=acme_buys.project.pk, limit=1000)
        taken = [0] * 30
        for size, (first, last) in orders:
            fits = max(taken[first:last]) + size <= GPUS
            if fits:
                acme_buys.buy(size, first, last)
                taken[first:last] = [gpus + size for gpus in taken[first:last]]
            else:
                with pytest.raises(NoCapacity):
                    acme_buys.quote(size, first, last)
        transaction.set_rollback(True)
