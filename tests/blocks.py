"""Blocks for sale in a test: terms, a price, and a customer who buys by quote."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone
from structlog.testing import capture_logs

from billing import accounts, books, prices
from billing.models import Account
from marketplace import delivery, holdings, quotes, resale, reservations, trades
from marketplace.access import Actor
from marketplace.blocks import Window
from marketplace.models import OVER, BlockTerms, Listing, Offer, Project, Quote, Reservation, ReservationStrip, Trade
from provisioning import calendar, interruptions, quotas
from provisioning.models import Quota

HOUR = timedelta(hours=1)
PRICE = 2_000_000
USD = 1_000_000


def sell_blocks(offer: Offer, *, price_micros: int = PRICE, at: datetime | None = None, **overrides: Any) -> BlockTerms:
    """Put blocks of an offer up for sale; what differs from the ordinary terms is named."""
    at = at or timezone.now()
    prices.publish(
        sku=offer.reserved_sku, currency="USD", micros_per_unit_hour=price_micros, effective_from=at, by="test", at=at
    )
    ordinary: dict[str, Any] = {
        "max_gpus": 1024,
        "max_hours": 24 * 180,
        "horizon_hours": 24 * 365,
        "discounts": [[24, 1000], [168, 2000]],
        "cancellation": [[168, 0], [24, 1000], [1, 5000]],
    }
    return BlockTerms.objects.create(offer=offer, **ordinary | overrides)


@dataclass
class Buyer:
    """A customer and a clock. Hours are counted from `noon`, a full hour ahead of the real time."""

    actor: Actor
    project: Project
    offer: Offer
    noon: datetime

    def at(self, hours: float) -> datetime:
        return self.noon + timedelta(hours=hours)

    def window(self, gpus: int, first: float, last: float) -> Window:
        return Window(self.offer, gpus, self.at(first), self.at(last))

    def quote(self, gpus: int, first: float, last: float, *, at: float = 0) -> Quote:
        return quotes.for_purchase(project=self.project, window=self.window(gpus, first, last), at=self.at(at))

    def buy(self, gpus: int, first: float, last: float, *, at: float = 0) -> Reservation:
        quote = self.quote(gpus, first, last, at=at)
        with transaction.atomic():  # As doors do: a refusal leaves nothing behind.
            return reservations.buy(actor=self.actor, quote=quote, at=self.at(at))

    def put_up(self, reservation: Reservation, gpus: int, first: float, last: float, ask: int, **more: Any) -> Listing:
        at = self.at(more.pop("at", 0))
        ask_for = resale.Ask(self.at(first), self.at(last), gpus, ask, **more)
        return resale.put_up(actor=self.actor, reservation=reservation, ask=ask_for, at=at)

    def trade(self, gpus: int, first: float, last: float, limit: int, *, at: float = 0) -> Trade:
        window = self.window(gpus, first, last)
        return trades.buy(actor=self.actor, project=self.project, window=window, limit_micros=limit, at=self.at(at))

    def wallet(self) -> accounts.Wallet:
        return accounts.wallet(organization=self.project.organization)

    def go_to(self, hours: float) -> None:
        """Let the sweep run at a moment, as often as it would find something."""
        for _ in range(5):
            with capture_logs() as said:
                done = delivery.advance(at=self.at(hours), limit=100)
            assert [line for line in said if line["log_level"] == "error"] == []
            if not done + interruptions.announce_due(at=self.at(hours), limit=100):
                return


def deferred_micros(currency: str = "USD") -> int:
    """Return what the platform keeps of money that was paid ahead."""
    return accounts.balance_micros(accounts.platform(Account.Kind.DEFERRED, currency))


def check_conserved(*, at: datetime) -> None:
    """Assert what is always true: hours are committed once, money kept is worth hours to come, books balance."""
    held: dict[tuple[int, datetime], int] = {}
    owed = 0
    for reservation in Reservation.objects.exclude(state__in=OVER):
        strips = list(reservation.strips.all())
        for step in holdings.steps(strips):
            for number in range((step.ends_at - step.starts_at) // HOUR):
                hour = (reservation.offer_id, step.starts_at + number * HOUR)
                held[hour] = held.get(hour, 0) + step.gpus
        if reservation.state != "payment_pending":
            owed += worth_to_come(reservation, strips)
    for reservation in Reservation.objects.filter(state="expired"):
        owed += worth_to_come(reservation, list(reservation.strips.all()))
    offers = list(Offer.objects.values_list("pk", flat=True))
    by_offer = calendar.committed(offer_ids=offers, starts_at=at - 400 * 24 * HOUR)
    committed = {(offer, hour): gpus for offer, hours in by_offer.items() for hour, gpus in hours.items()}
    running = {hour: gpus for hour, gpus in held.items() if hour[1] >= calendar.hour_of(at)}
    assert {hour: gpus for hour, gpus in committed.items() if hour[1] >= calendar.hour_of(at)} == running
    check_quotas(at=at)
    assert deferred_micros() == owed
    assert books.check(at=at) == []


def worth_to_come(reservation: Reservation, strips: list[ReservationStrip]) -> int:
    worth = holdings.worth_micros(strips, reservation.earned_through, reservation.ends_at)
    short = reservation.shortfalls.filter(hour__gte=reservation.earned_through)
    return worth - sum(short.values_list("worth_micros", flat=True))


def check_quotas(*, at: datetime) -> None:
    """Assert that no quota has less in mind than is reserved in an hour to come."""
    booked: dict[int, dict[datetime, int]] = {}
    for reservation in Reservation.objects.exclude(state__in=OVER):
        hours = booked.setdefault(reservation.project_id, {})
        for step in holdings.steps(list(reservation.strips.all())):
            for number in range((step.ends_at - step.starts_at) // HOUR):
                hour = step.starts_at + number * HOUR
                hours[hour] = hours.get(hour, 0) + step.gpus * (hour + HOUR > at)
    for quota in Quota.objects.filter(project__isnull=False, **quotas.FIRST):
        assert quota.reserved >= max(booked.get(quota.project_id or 0, {}).values(), default=0)
