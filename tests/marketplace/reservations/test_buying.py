"""Blocks: quoted, bought, extended, cancelled; every refusal leaves nothing held and nothing charged."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from billing import holds, prepared
from billing.errors import InsufficientFunds
from billing.models import Hold
from billing.prepayments import payment_key
from marketplace import quotes, reservations
from marketplace.errors import BadOrder, Conflict
from marketplace.models import AuditEntry, BlockTerms, Quote, Reservation
from provisioning import calendar, quotas
from provisioning.errors import IllegalMove, NoCapacity, QuotaExceeded, StaleInstance
from provisioning.models import CommittedDay
from tests.blocks import HOUR, PRICE, USD, Buyer, check_conserved, deferred_micros

pytestmark = pytest.mark.django_db

Queries = Callable[[int], Any]


def test_a_quote_says_price_terms_and_what_cancelling_costs_at_each_time(acme_buys: Buyer) -> None:
    quote = acme_buys.quote(8, 200, 224)
    assert (quote.discount_bp, quote.per_gpu_hour_micros) == (1000, PRICE * 9 // 10)
    assert quote.total_micros == 8 * 24 * PRICE * 9 // 10
    costs = quote.terms["cancellation_costs"]
    assert [(cost["kept_bp"], cost["kept_micros"]) for cost in costs] == [
        (0, 0), (1000, quote.total_micros // 10), (5000, quote.total_micros // 2), (10_000, quote.total_micros)
    ]  # fmt: skip
    assert costs[0]["until"] == acme_buys.at(200 - 168).isoformat()
    assert quote.expires_at == acme_buys.noon + timedelta(minutes=10)
    assert not CommittedDay.objects.exists()


def hours_of(buyer: Buyer) -> list[int]:
    """How many GPUs of the buyer's offer are committed in each hour that has any."""
    found = calendar.committed(offer_ids=[buyer.offer.pk], starts_at=buyer.noon)
    return [gpus for _, gpus in sorted(found[buyer.offer.pk].items())]


def test_a_block_is_paid_ahead_and_its_hours_are_committed(acme_buys: Buyer) -> None:
    before = acme_buys.wallet().available_micros
    reservation = acme_buys.buy(8, 24, 34)
    assert reservation.state == "scheduled"
    paid = 8 * 10 * PRICE
    assert reservation.paid_micros == paid == deferred_micros()
    assert acme_buys.wallet().available_micros == before - paid
    assert acme_buys.wallet().held_micros == 0
    assert hours_of(acme_buys) == [8] * 10
    assert AuditEntry.objects.filter(verb="reservation.buy", subject_id=reservation.public_id).exists()
    check_conserved(at=acme_buys.noon)


def test_a_booking_is_eight_statements_in_three_round_trips(
    acme_buys: Buyer, django_assert_num_queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme_buys.buy(8, 24, 34)
    quote = acme_buys.quote(8, 48, 78)
    trips = []
    monkeypatch.setattr(prepared, "_database", lambda real=prepared._database: trips.append(1) or real())
    with django_assert_num_queries(8):  # and of the surrounding transaction, its beginning and its end
        reservations.buy(actor=acme_buys.actor, quote=quote, at=acme_buys.noon)
    assert len(trips) == 3
    check_conserved(at=acme_buys.noon)


def assert_nothing_happened(buyer: Buyer) -> None:
    assert Reservation.objects.count() == 0
    assert not CommittedDay.objects.exists()
    assert Hold.objects.count() == 0
    assert deferred_micros() == 0
    assert buyer.wallet().available_micros == 1000 * USD


@pytest.mark.parametrize(
    ("first", "last", "field", "rule"),
    [
        (-2, 3, "starts_at", "has begun already"),
        (24, 24, "ends_at", "after the start"),
        (24, 23, "ends_at", "after the start"),
        (24, 24 + 87_600, "ends_at", "hours; this one would last 87600"),
        (9000, 9001, "ends_at", "ahead; this one would end later"),
        (24.5, 26, "starts_at", "whole UTC hours"),
        (24, 25.25, "ends_at", "whole UTC hours"),
    ],
)
def test_a_window_that_cannot_be_is_refused_by_its_rule(
    acme_buys: Buyer, first: float, last: float, field: str, rule: str
) -> None:
    with pytest.raises(BadOrder, match=rule) as refusal:
        acme_buys.quote(1, first, last)
    assert refusal.value.field == field
    assert Quote.objects.count() == 0


@pytest.mark.parametrize("gpus", [0, 1025])
def test_a_size_that_is_not_sold_is_refused(acme_buys: Buyer, gpus: int) -> None:
    with pytest.raises(BadOrder, match="have 1 to 1024 GPUs"):
        acme_buys.quote(gpus, 24, 25)


def test_more_than_there_is_is_neither_quoted_nor_sold(acme_buys: Buyer, other_buys: Buyer) -> None:
    with pytest.raises(NoCapacity, match="at its fullest, 16 are"):
        acme_buys.quote(17, 24, 25)
    early = acme_buys.quote(8, 24, 26)
    other_buys.buy(9, 25, 26)
    with pytest.raises(NoCapacity, match="at its fullest, 7 are"), transaction.atomic():
        reservations.buy(actor=acme_buys.actor, quote=early, at=acme_buys.noon)
    assert Reservation.objects.filter(project=acme_buys.project).count() == 0
    assert acme_buys.wallet().available_micros == 1000 * USD
    early.refresh_from_db()
    assert early.used_at is None


def test_a_block_that_has_begun_since_it_was_quoted_is_not_bought(acme_buys: Buyer) -> None:
    quote = acme_buys.quote(1, 2, 3, at=1.9)
    with pytest.raises(BadOrder, match="has begun meanwhile"), transaction.atomic():
        reservations.buy(actor=acme_buys.actor, quote=quote, at=acme_buys.at(2.01))
    assert_nothing_happened(acme_buys)


def test_of_two_quotes_for_the_same_hours_behind_the_end_one_is_used(acme_buys: Buyer) -> None:
    reservation = acme_buys.buy(4, 24, 26)
    first, second = (
        quotes.for_extension(reservation=reservation, ends_at=acme_buys.at(28), at=acme_buys.noon) for _ in range(2)
    )
    reservations.extend(actor=acme_buys.actor, reservation=reservation, quote=first, at=acme_buys.noon)
    with pytest.raises(Conflict, match="end has changed"), transaction.atomic():
        reservations.extend(actor=acme_buys.actor, reservation=reservation, quote=second, at=acme_buys.noon)
    assert deferred_micros() == 4 * 4 * PRICE
    check_conserved(at=acme_buys.noon)


def test_a_quote_is_good_for_ten_minutes_and_one_use(acme_buys: Buyer) -> None:
    quote = acme_buys.quote(1, 24, 25)
    with pytest.raises(quotes.QuoteExpired, match="Ask for a new one"), transaction.atomic():
        reservations.buy(actor=acme_buys.actor, quote=quote, at=quote.expires_at)
    assert_nothing_happened(acme_buys)
    reservations.buy(actor=acme_buys.actor, quote=quote, at=quote.expires_at - timedelta(seconds=1))
    with pytest.raises(quotes.QuoteUsed, match="used already"), transaction.atomic():
        reservations.buy(actor=acme_buys.actor, quote=quote, at=acme_buys.noon)
    assert Reservation.objects.count() == 1


def test_a_quote_outlives_a_change_of_price_and_terms(acme_buys: Buyer) -> None:
    quote = acme_buys.quote(1, 24, 25)
    BlockTerms.objects.update(cancellation=[], discounts=[])
    reservation = reservations.buy(actor=acme_buys.actor, quote=quote, at=acme_buys.noon)
    assert reservation.paid_micros == quote.total_micros
    assert reservation.terms["cancellation"] == [[168, 0], [24, 1000], [1, 5000]]


def test_without_funds_nothing_is_held(acme_buys: Buyer) -> None:
    quotas.set_limit(project_id=acme_buys.project.pk, limit=100)
    quote = acme_buys.quote(16, 24, 24 + 100)
    with pytest.raises(InsufficientFunds), transaction.atomic():
        reservations.buy(actor=acme_buys.actor, quote=quote, at=acme_buys.noon)
    assert_nothing_happened(acme_buys)


def test_the_quota_counts_what_is_reserved_in_the_same_hours(acme_buys: Buyer) -> None:
    quotas.set_limit(project_id=acme_buys.project.pk, limit=8)
    acme_buys.buy(8, 24, 26)
    acme_buys.buy(8, 26, 28)
    with pytest.raises(QuotaExceeded), transaction.atomic():
        acme_buys.buy(1, 25, 30)
    assert Reservation.objects.count() == 2
    check_conserved(at=acme_buys.noon)


def test_what_runs_on_demand_leaves_no_more_than_the_rest(acme_buys: Buyer) -> None:
    calendar.open_ended(offer_id=acme_buys.offer.pk, gpus=10, at=acme_buys.noon)
    acme_buys.buy(6, 24, 26)
    with pytest.raises(NoCapacity):
        acme_buys.quote(1, 25, 26)
    with pytest.raises(NoCapacity):
        calendar.open_ended(offer_id=acme_buys.offer.pk, gpus=1, at=acme_buys.noon)


@pytest.mark.parametrize(("hours_before", "kept_bp"), [(168, 0), (100, 1000), (24, 1000), (23, 5000), (2, 5000)])
def test_cancelling_costs_what_the_schedule_says(acme_buys: Buyer, hours_before: int, kept_bp: int) -> None:
    reservation = acme_buys.buy(4, 200, 210)
    paid = reservation.paid_micros
    at = acme_buys.at(200 - hours_before)
    quote = quotes.for_cancellation(reservation=reservation, at=at)
    assert (quote.total_micros, quote.refund_micros) == (paid * kept_bp // 10_000, paid - paid * kept_bp // 10_000)
    reservations.cancel(actor=acme_buys.actor, reservation=reservation, quote=quote, at=at)
    assert Reservation.objects.get().state == "cancelled"
    assert acme_buys.wallet().available_micros == 1000 * USD - quote.total_micros
    assert not CommittedDay.objects.exists()
    check_conserved(at=at)


def test_nothing_is_cancelled_once_it_is_locked(acme_buys: Buyer) -> None:
    reservation = acme_buys.buy(4, 24, 25)
    with pytest.raises(IllegalMove, match="until 60 minutes before"):
        quotes.for_cancellation(reservation=reservation, at=acme_buys.at(23.1))
    quote = quotes.for_cancellation(reservation=reservation, at=acme_buys.at(22.9))
    with pytest.raises(IllegalMove), transaction.atomic():
        reservations.cancel(actor=acme_buys.actor, reservation=reservation, quote=quote, at=acme_buys.at(23.02))
    assert Reservation.objects.get().state == "scheduled"


def test_a_cancellation_quote_of_another_reservation_or_kind_is_no_quote(acme_buys: Buyer) -> None:
    first, second = acme_buys.buy(1, 24, 25), acme_buys.buy(1, 30, 31)
    quote = quotes.for_cancellation(reservation=first, at=acme_buys.noon)
    with pytest.raises(BadOrder, match="another reservation"), transaction.atomic():
        reservations.cancel(actor=acme_buys.actor, reservation=second, quote=quote, at=acme_buys.noon)
    with pytest.raises(BadOrder, match="something else"), transaction.atomic():
        reservations.buy(actor=acme_buys.actor, quote=quote, at=acme_buys.noon)
    assert [row.state for row in Reservation.objects.all()] == ["scheduled"] * 2


def test_an_extension_follows_the_end_with_the_same_gpus(acme_buys: Buyer) -> None:
    reservation = acme_buys.buy(4, 24, 26)
    quote = quotes.for_extension(reservation=reservation, ends_at=acme_buys.at(30), at=acme_buys.noon)
    assert (quote.gpus, quote.hours, quote.total_micros) == (4, 4, 16 * PRICE)
    extended = reservations.extend(actor=acme_buys.actor, reservation=reservation, quote=quote, at=acme_buys.noon)
    assert extended.ends_at == acme_buys.at(30)
    assert extended.paid_micros == 24 * PRICE
    assert hours_of(acme_buys) == [4] * 6
    check_conserved(at=acme_buys.noon)


def test_an_extension_into_hours_that_are_taken_changes_nothing(acme_buys: Buyer, other_buys: Buyer) -> None:
    reservation = acme_buys.buy(10, 24, 26)
    quote = quotes.for_extension(reservation=reservation, ends_at=acme_buys.at(28), at=acme_buys.noon)
    other_buys.buy(10, 27, 28)
    funds = acme_buys.wallet().available_micros
    with pytest.raises(NoCapacity), transaction.atomic():
        reservations.extend(actor=acme_buys.actor, reservation=reservation, quote=quote, at=acme_buys.noon)
    assert Reservation.objects.get(pk=reservation.pk).ends_at == acme_buys.at(26)
    assert acme_buys.wallet().available_micros == funds
    check_conserved(at=acme_buys.noon)


def test_a_payment_that_was_interrupted_is_taken_by_the_sweep(
    acme_buys: Buyer, monkeypatch: pytest.MonkeyPatch
) -> None:
    quote = acme_buys.quote(4, 24, 26)
    with monkeypatch.context() as crash:
        crash.setattr(reservations, "take_payment", lambda *args, **kwargs: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            reservations.buy(actor=acme_buys.actor, quote=quote, at=acme_buys.noon)
    reservation = Reservation.objects.get()
    assert reservation.state == "payment_pending"
    assert acme_buys.wallet().held_micros == 8 * PRICE
    check_conserved(at=acme_buys.noon)
    acme_buys.go_to(0.01)
    assert Reservation.objects.get().state == "scheduled"
    assert deferred_micros() == 8 * PRICE
    acme_buys.go_to(0.02)
    assert deferred_micros() == 8 * PRICE


def test_a_booking_whose_money_is_gone_gives_its_hours_back(acme_buys: Buyer, monkeypatch: pytest.MonkeyPatch) -> None:
    quote = acme_buys.quote(4, 24, 26)
    with monkeypatch.context() as crash:
        crash.setattr(reservations, "take_payment", lambda *args, **kwargs: None)
        reservations.buy(actor=acme_buys.actor, quote=quote, at=acme_buys.noon)
    holds.expire(at=acme_buys.at(2))
    acme_buys.go_to(2)
    assert Reservation.objects.get().state == "payment_failed"
    assert not CommittedDay.objects.exists()
    assert acme_buys.wallet().available_micros == 1000 * USD
    check_conserved(at=acme_buys.at(2))


def test_what_was_not_paid_is_never_scheduled(acme_buys: Buyer, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as crash:
        crash.setattr(reservations, "take_payment", lambda *args, **kwargs: None)
        reservation = acme_buys.buy(4, 24, 26)
    paid = acme_buys.buy(4, 24, 26)
    with pytest.raises(StaleInstance), transaction.atomic():
        prepared.together(reservation.schedule(payment=payment_key(reservation.public_id), at=acme_buys.noon))
    with pytest.raises(StaleInstance), transaction.atomic():
        prepared.together(paid.schedule(payment=payment_key(paid.public_id), at=acme_buys.noon))
    assert Reservation.objects.get(pk=reservation.pk).state == "payment_pending"
    assert reservation.state == "payment_pending"


def test_a_reservation_that_changed_since_its_cancellation_was_quoted_is_quoted_anew(acme_buys: Buyer) -> None:
    reservation = acme_buys.buy(4, 100, 102)
    quote = quotes.for_cancellation(reservation=reservation, at=acme_buys.noon)
    more = quotes.for_extension(reservation=reservation, ends_at=acme_buys.at(103), at=acme_buys.noon)
    reservations.extend(actor=acme_buys.actor, reservation=reservation, quote=more, at=acme_buys.noon)
    with pytest.raises(Conflict, match="has changed"), transaction.atomic():
        reservations.cancel(actor=acme_buys.actor, reservation=reservation, quote=quote, at=acme_buys.noon)
    assert Reservation.objects.get().state == "scheduled"


def test_quotes_that_nobody_used_are_forgotten(acme_buys: Buyer) -> None:
    acme_buys.quote(1, 24, 25)
    bought = acme_buys.buy(1, 24, 25)
    quotes.forget(at=acme_buys.noon + 8 * 24 * HOUR, limit=10)
    assert [quote.used_at is not None for quote in Quote.objects.all()] == [True]
    assert bought.state == "scheduled"
