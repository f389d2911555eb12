"""What was sold: revenue by UTC day, offer, market and supplier, of all customers, from the summary of the ledger.

Use counts on the day on which it happened, as soon as it is charged and summed
up (`billing.daily`); reserved hours as they are earned; what tiers, minimums and
commitments make of use on the day when it was posted. Before tax and credit
notes.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time

from django.db import connection

from marketplace.breakdown import RESERVED
from marketplace.invoices.export import Echo, harmless
from marketplace.models import Offer
from marketplace.money import decimal_string

# Of reserved hours the summary knows the reservation; its offer is known here.
REVENUE = f"""
SELECT daily.day, CASE WHEN daily.market = '{RESERVED}' THEN coalesce(offer.public_id, '') ELSE daily.thing END,
    daily.market, daily.currency, sum(daily.micros)::bigint, max(daily.summed_at)
FROM billing_dailyrevenue daily
LEFT JOIN marketplace_reservation held ON daily.market = '{RESERVED}' AND held.public_id = daily.thing
LEFT JOIN marketplace_offer offer ON offer.id = held.offer_id
WHERE daily.day >= %(since)s AND daily.day < %(until)s
GROUP BY 1, 2, 3, 4 HAVING sum(daily.micros) <> 0 ORDER BY 1, 2, 3, 4
"""  # noqa: S608  nothing in it comes from outside


@dataclass(frozen=True, slots=True)
class Revenue:
    """What one offer brought on one market in one day. Ids and codes, no words; storage has no offer."""

    day: datetime
    offer: str
    market: str
    currency: str
    supplier: str
    micros: int


@dataclass(frozen=True)
class Sold:
    """Revenue of some days, what its ids are called, and when it was summed up last."""

    rows: list[Revenue]
    offers: Mapping[str, str]
    suppliers: Mapping[str, str]
    summed_at: datetime | None

    @property
    def currencies(self) -> list[str]:
        """The currencies, that with the most days and things first."""
        counts: dict[str, int] = {}
        for row in self.rows:
            counts[row.currency] = counts.get(row.currency, 0) + 1
        return sorted(counts, key=lambda currency: (-counts[currency], currency))

    def of(self, currency: str) -> list[Revenue]:
        return [row for row in self.rows if row.currency == currency]

    def between(self, since: datetime, until: datetime) -> "Sold":
        """Return what was sold in some of these days."""
        return replace(self, rows=[row for row in self.rows if since <= row.day < until])


def sold(since: datetime, until: datetime) -> Sold:
    """Return what was sold from one UTC midnight to another, as far as it is summed up. Two queries of few rows."""
    known = {offer.public_id: offer for offer in Offer.objects.select_related("supplier")}
    with connection.cursor() as cursor:
        cursor.execute(REVENUE, {"since": since.date(), "until": until.date()})
        found = cursor.fetchall()
    rows = [
        Revenue(
            day=datetime.combine(day, time.min, tzinfo=UTC),
            offer=offer,
            market=market,
            currency=currency,
            supplier=known[offer].supplier.public_id if offer in known else "",
            micros=micros,
        )
        for day, offer, market, currency, micros, _ in found
    ]
    return Sold(
        rows=rows,
        offers={offer.public_id: offer.name for offer in known.values()},
        suppliers={offer.supplier.public_id: offer.supplier.name for offer in known.values()},
        summed_at=max((summed_at for *_, summed_at in found), default=None),
    )


def csv_of(found: Sold, rows: Iterable[Revenue]) -> Iterator[str]:
    """Yield revenue as CSV (RFC 4180), the names of the columns first."""
    writer = csv.writer(Echo())
    yield writer.writerow(["day", "offer", "offer_name", "market", "supplier", "supplier_name", "amount", "currency"])
    for row in rows:
        names = [harmless(found.offers.get(row.offer, "")), harmless(found.suppliers.get(row.supplier, ""))]
        yield writer.writerow(
            [f"{row.day:%Y-%m-%d}", row.offer, names[0], row.market, row.supplier, names[1],
             decimal_string(row.micros), row.currency]
        )  # fmt: skip
