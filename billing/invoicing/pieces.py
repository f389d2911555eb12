"""What of an organization's use was not invoiced yet: questions in sets, over any number of organizations at once."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from django.db import connection

from billing.rating import MILLISECOND

# A span is rated whole from its start, as when it is charged; what was invoiced before is taken off. Those of which
# everything was invoiced are in no index that this reads.
OPEN = "(span.ended_at IS NULL OR span.invoiced_through IS NULL OR span.invoiced_through <> span.ended_at)"
PIECES = f"""
SELECT piece.id, organization_id, resource_id, resource_name, meter, coalesce(labels ->> 'market', ''),
       coalesce(labels ->> 'project', ''), quantity, price.id, price.public_id, price.unit,
       CASE WHEN covered_by <> '' THEN 0 WHEN price.is_floating THEN NULL ELSE price.micros_per_unit_hour END,
       covered_by,
       started_at, since, through, invoiced_micros, charged_micros, charged_through,
       CASE WHEN covered_by <> '' THEN 0
       WHEN price.is_floating THEN div(2 * quantity * (
           (last.sum_micro_ms + last.micros_per_unit_hour * round(1000 * extract(epoch FROM through - last.starts_at)))
           - (first.sum_micro_ms
              + first.micros_per_unit_hour * round(1000 * extract(epoch FROM started_at - first.starts_at)))
       ) + 3600000, 7200000)
       ELSE div(2 * price.micros_per_unit_hour::numeric * quantity
           * round(1000 * extract(epoch FROM through - started_at)) + 3600000, 7200000)
       END
FROM (
    SELECT span.*, coalesce(invoiced_through, started_at) AS since,
           greatest(started_at, least(%(cutoff)s, coalesce(ended_at, %(cutoff)s))) AS through
    FROM billing_usagespan span WHERE organization_id = ANY(%(organizations)s) AND {OPEN}
) piece
JOIN billing_priceversion price ON price.id = piece.price_version_id
LEFT JOIN LATERAL (
    SELECT * FROM billing_pricepoint
    WHERE price.is_floating AND price_version_id = price.id AND starts_at <= piece.started_at
    ORDER BY starts_at DESC LIMIT 1
) first ON true
LEFT JOIN LATERAL (
    SELECT * FROM billing_pricepoint
    WHERE price.is_floating AND price_version_id = price.id AND starts_at <= piece.through
    ORDER BY starts_at DESC LIMIT 1
) last ON true
ORDER BY piece.organization_id, piece.started_at, piece.id
"""  # noqa: S608  our own text
# Who has something before a cutoff, and no invoice that goes as far; nor was it found that it asks for nothing.
NOT_INVOICED = """NOT EXISTS (
    SELECT FROM billing_invoice invoice
    WHERE invoice.organization_id = open.organization_id AND kind = 'invoice' AND period_end >= %(cutoff)s
) AND NOT EXISTS (
    SELECT FROM billing_invoicewait waits WHERE waits.organization_id = open.organization_id AND through >= %(cutoff)s
)"""
# What was paid ahead. Who got as much back asks for no invoice: that waits for the next with something on it.
NEW_ITEM = "NOT EXISTS (SELECT FROM billing_invoiceprepaid done WHERE done.item_id = open.id)"
DUE = f"""
SELECT organization_id FROM (
    (SELECT DISTINCT organization_id FROM billing_usagespan open
    WHERE {OPEN.replace("span.", "open.")} AND started_at < %(cutoff)s AND organization_id > %(after)s
      AND coalesce(invoiced_through, started_at) IS DISTINCT FROM least(%(cutoff)s, coalesce(ended_at, %(cutoff)s))
      AND {NOT_INVOICED} ORDER BY organization_id LIMIT %(limit)s)
    UNION
    (SELECT DISTINCT organization_id FROM billing_adjustment open
    WHERE amount_micros <> invoiced_micros AND month < %(cutoff)s AND organization_id > %(after)s
      AND {NOT_INVOICED} ORDER BY organization_id LIMIT %(limit)s)
    UNION
    (SELECT organization_id FROM billing_prepaiditem open
    WHERE {NEW_ITEM} AND at < %(cutoff)s AND organization_id > %(after)s AND {NOT_INVOICED}
    GROUP BY organization_id HAVING sum(amount_micros) > 0 ORDER BY organization_id LIMIT %(limit)s)
) due ORDER BY organization_id LIMIT %(limit)s
"""  # noqa: S608  our own text
EARLIEST = f"""
SELECT least((
    SELECT min(coalesce(invoiced_through, started_at)) FROM billing_usagespan span
    WHERE {OPEN} AND (span.ended_at IS NULL OR span.ended_at > coalesce(invoiced_through, started_at))
), (SELECT min(month) FROM billing_adjustment WHERE amount_micros <> invoiced_micros), (
    SELECT min(first) FROM (
        SELECT min(at) AS first FROM billing_prepaiditem open WHERE {NEW_ITEM}
        GROUP BY organization_id HAVING sum(amount_micros) > 0
    ) paid_ahead
))
"""  # noqa: S608  our own text
# Promotional credit that paid for use: all that came in otherwise than from corrections of use, less what is left and
# what went elsewhere. Those are a few rows in an index of their own, where the charges for use are one a minute.
PROMO_USED = """
SELECT promo.organization_id, coalesce((
    SELECT sum(amount_micros) FROM billing_transfer WHERE target_id = promo.id AND key NOT LIKE 'refund:%%'
), 0) - promo.balance_micros - coalesce((
    SELECT sum(amount_micros) FROM billing_transfer WHERE source_id = promo.id AND NOT key::text LIKE 'charge:%%'
), 0)
FROM billing_account promo WHERE promo.id = ANY(%(accounts)s)
"""


@dataclass(slots=True)
class Piece:
    """A span as far as the next invoice is about it. `whole_micros` is what it costs from its start to `through`."""

    span_id: int
    organization_id: int
    resource_id: str
    resource_name: str
    meter: str
    market: str
    project: str
    quantity: int
    price_id: int
    price_public_id: str
    unit: str
    micros_per_unit_hour: int | None
    covered_by: str
    started_at: datetime
    since: datetime
    through: datetime
    invoiced_micros: int
    charged_micros: int
    charged_through: datetime
    whole_micros: int

    @property
    def amount_micros(self) -> int:
        """What it adds to an invoice: negative where less was used than was invoiced."""
        return self.whole_micros - self.invoiced_micros

    @property
    def unit_milliseconds(self) -> int:
        return self.quantity * ((self.through - self.since) // MILLISECOND)

    @property
    def adds_something(self) -> bool:
        return bool(self.unit_milliseconds or self.amount_micros)


def uninvoiced(organization_ids: Collection[int], *, cutoff: datetime) -> dict[int, list[Piece]]:
    """Return what each organization has that was not invoiced whole, cut at `cutoff`. One query.

    Use that began after the cutoff is among them, as pieces that add nothing:
    what was charged for it counts when a debt is told apart.
    """
    found: dict[int, list[Piece]] = {key: [] for key in organization_ids}
    with connection.cursor() as cursor:
        cursor.execute(PIECES, {"cutoff": cutoff, "organizations": list(organization_ids)})
        for row in cursor.fetchall():
            piece = Piece(*row)
            piece.whole_micros = int(piece.whole_micros)  # which PostgreSQL works out as numeric
            found[piece.organization_id].append(piece)
    return found


def due(*, cutoff: datetime, after: int, limit: int) -> list[int]:
    """Return the next organizations, in the order of their ids, that have use before `cutoff` and no invoice for it."""
    with connection.cursor() as cursor:
        cursor.execute(DUE, {"cutoff": cutoff, "after": after, "limit": limit})
        return [organization_id for (organization_id,) in cursor.fetchall()]


def earliest() -> datetime | None:
    """Return since when anybody has use that was not invoiced."""
    with connection.cursor() as cursor:
        cursor.execute(EARLIEST)
        found: tuple[datetime | None] = cursor.fetchone()
    return found[0]


def promo_used(promo_account_ids: Collection[int]) -> dict[int, int]:
    """Return the promotional credit that has paid for use ever, by organization."""
    with connection.cursor() as cursor:
        cursor.execute(PROMO_USED, {"accounts": list(promo_account_ids)})
        return {organization_id: int(micros) for organization_id, micros in cursor.fetchall()}
