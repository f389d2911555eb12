"""What was sold: revenue by day, offer, market and supplier, of all customers, in two statements.

Use counts from the millisecond on which it happened, charged or not; reserved
hours as they are earned; what tiers, minimums and commitments make of use on the
day when it was posted. Before tax and credit notes.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import connection

from marketplace.breakdown import ADJUSTMENT, DAYS, RESERVED, SLICE, STORAGE, WITHIN, window
from marketplace.invoices.export import Echo, harmless
from marketplace.models import Offer
from marketplace.money import decimal_string

GROUPS = ("offer", "market", "supplier")

REVENUE = f"""
WITH part AS (
    SELECT slice.number, span.labels ->> 'offer' AS offer,
        CASE WHEN span.meter = 'volume' THEN '{STORAGE}' ELSE coalesce(span.labels ->> 'market', '') END AS market,
        price.currency, {SLICE} AS micros
    FROM billing_usagespan span JOIN billing_priceversion price ON price.id = span.price_version_id {DAYS}
    WHERE {WITHIN}
    UNION ALL
    SELECT width_bucket(moved.effective_at, %(edges)s::timestamptz[]), offer.public_id, '{RESERVED}', target.currency,
        moved.amount_micros
    FROM billing_transfer moved
    JOIN billing_account source ON source.id = moved.source_id AND source.kind = 'deferred'
    JOIN billing_account target ON target.id = moved.target_id AND target.kind = 'revenue'
    LEFT JOIN marketplace_reservation held ON held.public_id = split_part(moved.key, ':', 2)
    LEFT JOIN marketplace_offer offer ON offer.id = held.offer_id
    WHERE moved.key LIKE 'earn:%%' AND moved.effective_at >= %(since)s AND moved.effective_at < %(until)s
    UNION ALL
    SELECT width_bucket(posting.through - interval '1 millisecond', %(edges)s::timestamptz[]),
        split_part(price.sku, '/', 1), '{ADJUSTMENT}', organization.currency, posting.amount_micros
    FROM billing_adjustmentposting posting
    JOIN billing_adjustment adjustment ON adjustment.id = posting.adjustment_id
    JOIN marketplace_organization organization ON organization.id = adjustment.organization_id
    LEFT JOIN billing_priceversion price ON price.id = adjustment.price_version_id
    WHERE posting.through > %(since)s AND posting.through <= %(until)s
)
SELECT number, coalesce(offer, ''), market, currency, sum(micros)::bigint
FROM part GROUP BY 1, 2, 3, 4 HAVING sum(micros) <> 0 ORDER BY 1, 2, 3, 4
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
    """Revenue of some days, and what its ids are called."""

    rows: list[Revenue]
    offers: Mapping[str, str]
    suppliers: Mapping[str, str]

    @property
    def currencies(self) -> list[str]:
        """The currencies, that with the most days and things first."""
        counts: dict[str, int] = {}
        for row in self.rows:
            counts[row.currency] = counts.get(row.currency, 0) + 1
        return sorted(counts, key=lambda currency: (-counts[currency], currency))

    def of(self, currency: str) -> list[Revenue]:
        return [row for row in self.rows if row.currency == currency]


def sold(edges: Sequence[datetime], *, at: datetime) -> Sold:
    """Return what was sold between these edges of days until `at`. Two queries, however many spans there are."""
    known = {offer.public_id: offer for offer in Offer.objects.select_related("supplier")}
    with connection.cursor() as cursor:
        cursor.execute(REVENUE, window(edges, at=at))
        rows = [
            Revenue(
                day=edges[number - 1],
                offer=offer,
                market=market,
                currency=currency,
                supplier=known[offer].supplier.public_id if offer in known else "",
                micros=micros,
            )
            for number, offer, market, currency, micros in cursor.fetchall()
        ]
    return Sold(
        rows=rows,
        offers={offer.public_id: offer.name for offer in known.values()},
        suppliers={offer.supplier.public_id: offer.supplier.name for offer in known.values()},
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
