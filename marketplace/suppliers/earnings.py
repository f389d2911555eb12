"""What a supplier sees of its GPUs: earned by day, used of what there is, and its nodes."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db import connection
from django.db.models import Q, QuerySet, Sum
from django.db.models.functions import TruncDay

from billing.models import Earning, RateCard, SupplierAdjustment
from billing.suppliers import cards, purses, statements
from billing.suppliers.purses import Purse
from marketplace.models import Offer, Organization
from provisioning.models import Node

DAYS = 30
HOUR_MS = 3_600_000
FIGURES = ("charge_micros", "payout_micros", "reserve_micros", "fee_micros")
# GPU-milliseconds of an offer's spans since a moment, and how many GPUs run now.
USED = """
SELECT labels ->> 'offer', sum(quantity * round(1000 * extract(epoch FROM
           least(coalesce(ended_at, %(at)s), %(at)s) - greatest(started_at, %(since)s))))::bigint,
       coalesce(sum(quantity) FILTER (WHERE ended_at IS NULL), 0)::bigint
FROM billing_usagespan
WHERE meter = 'gpu' AND labels ->> 'offer' = ANY (%(offers)s) AND started_at < %(at)s
  AND (ended_at IS NULL OR ended_at > %(since)s)
GROUP BY 1
"""


@dataclass(frozen=True)
class Day:
    """What one UTC day added: customers paid `charge_micros`, of which the supplier gets now or later `owed_micros`."""

    day: datetime
    charge_micros: int
    payout_micros: int
    reserve_micros: int
    fee_micros: int

    @property
    def owed_micros(self) -> int:
        return self.payout_micros + self.reserve_micros


@dataclass(frozen=True)
class Use:
    """How much of an offer's GPUs was used in the last days, in millionths of their time."""

    offer: Offer
    gpus: int
    used_now: int
    used_ppm: int
    card: RateCard | None


def days(supplier: Organization, *, currency: str, at: datetime, count: int = DAYS) -> list[Day]:
    """Return the last days, the oldest first, those without earnings too. One query."""
    today = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    first = today - timedelta(days=count - 1)
    rows = Earning.objects.filter(supplier=supplier, currency=currency, at__gte=first)
    totals = rows.annotate(day=TruncDay("at", tzinfo=UTC)).order_by().values("day")
    found = {row["day"]: row for row in totals.annotate(**{f"sum_{name}": Sum(name) for name in FIGURES})}
    moments = [first + timedelta(days=number) for number in range(count)]
    return [Day(day, *(found.get(day, {}).get(f"sum_{name}") or 0 for name in FIGURES)) for day in moments]


def offers_of(supplier: Organization) -> QuerySet[Offer]:
    """Return what a supplier sells."""
    return Offer.objects.filter(supplier=supplier).select_related("site").order_by("name")


def nodes_of(supplier: Organization) -> QuerySet[Node]:
    """Return a supplier's nodes, those that left too."""
    return Node.objects.filter(offer__supplier=supplier).select_related("offer", "fabric__site").order_by("name")


def utilization(supplier: Organization, *, at: datetime, count: int = DAYS) -> list[Use]:
    """Return for each offer how much of it was used in the last days, of the GPUs that it has now. Three queries."""
    offers = list(offers_of(supplier))
    since = at - timedelta(days=count)
    with connection.cursor() as cursor:
        cursor.execute(USED, {"offers": [one.public_id for one in offers], "at": at, "since": since})
        used = {offer: (milliseconds, now) for offer, milliseconds, now in cursor.fetchall()}
    gpus: dict[int, int] = defaultdict(int)
    alive = Node.objects.filter(offer__in=offers).exclude(state__in=[Node.State.NEW, Node.State.RETIRED])
    gpus.update(alive.order_by().values_list("offer").annotate(total=Sum("gpu_count")))
    approved = list(cards.of(supplier).filter(Q(state=RateCard.State.APPROVED), effective_from__lte=at))
    found = []
    for one in offers:
        milliseconds, now = used.get(one.public_id, (0, 0))
        room = gpus[one.pk] * count * 24 * HOUR_MS
        card = next((card for wanted in (one.public_id, "") for card in approved if card.offer == wanted), None)
        ppm = min(1_000_000, milliseconds * 1_000_000 // room) if room else 0
        found.append(Use(one, gpus[one.pk], now, ppm, card))
    return found


@dataclass(frozen=True)
class Balance:
    """A supplier's money in one currency."""

    currency: str
    purse: Purse

    @property
    def payable_micros(self) -> int:
        return self.purse.payable.balance_micros

    @property
    def reserve_micros(self) -> int:
        return self.purse.reserve.balance_micros


def balances(supplier: Organization) -> list[Balance]:
    """Return what a supplier is owed and what is held back for it, by currency."""
    return [Balance(currency, purse) for currency, purse in purses.of(supplier.pk).items()]


def adjustments(supplier: Organization) -> QuerySet[SupplierAdjustment]:
    """Return what moved, or was proposed, beside the share of use; the newest first."""
    return SupplierAdjustment.objects.filter(supplier=supplier).select_related("verdict").order_by("-pk")


next_statements_at = statements.next_issue
