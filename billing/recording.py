"""Taking up use that was measured elsewhere and is over: in sets, once, as if its meters had run here."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connection, transaction

from billing import accounts, floating
from billing.errors import BadUsage
from billing.models import UNITS
from billing.public_ids import new_public_id

# Prices have to be in the payer's currency, of the meter's unit, and in force; what overlaps is not written: of two
# that overlap each other the later one.
RECORD = """
INSERT INTO billing_usagespan (public_id, organization_id, resource_id, resource_name, labels, meter, quantity,
    price_version_id, covered_by, started_at, ended_at, charged_micros, charged_through, invoiced_micros)
SELECT new.public_id, organization.id, resource_id, resource_name, labels::jsonb, meter, quantity, price.id, '',
    started_at, ended_at, 0, started_at, 0
FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::int[],
            %s::bigint[], %s::timestamptz[], %s::timestamptz[]) WITH ORDINALITY
    AS new (public_id, organization, resource_id, resource_name, labels, meter, unit, quantity, price, started_at,
            ended_at, place)
JOIN marketplace_organization organization ON organization.id = new.organization
JOIN billing_priceversion price ON price.id = new.price AND price.currency = organization.currency
    AND price.unit = new.unit AND price.effective_from <= new.started_at
ORDER BY place
ON CONFLICT DO NOTHING
"""
# Of those that were not written: the places of what is not here already, just as it was told.
MISSING = """
SELECT place FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::int[], %s::bigint[], %s::timestamptz[],
                         %s::timestamptz[]) WITH ORDINALITY
    AS told (organization, resource_id, meter, quantity, price, started_at, ended_at, place)
WHERE NOT EXISTS (
    SELECT FROM billing_usagespan span
    WHERE span.resource_id = told.resource_id AND span.meter = told.meter AND span.started_at = told.started_at
      AND span.ended_at = told.ended_at AND span.organization_id = told.organization
      AND span.quantity = told.quantity AND span.price_version_id = told.price
) ORDER BY place LIMIT 1
"""


class Recorded(NamedTuple):
    """Use from a moment to another, in whole milliseconds. `organization_id` and `price_version_id` are keys."""

    organization_id: int
    resource_id: str
    resource_name: str
    labels: Mapping[str, Any]
    meter: str
    quantity: int
    price_version_id: int
    started_at: datetime
    ended_at: datetime


@transaction.atomic
def record_many(found: Sequence[Recorded], *, at: datetime) -> int:
    """Take up use that is over, all of it or none; return how many spans are new. The next sweep charges them.

    Telling the same again changes nothing. Raises BadUsage, which names the place of the first that cannot be: it lies
    in the future or ends before its start, overlaps other use of the same thing, or its price is not for it.
    """
    if not found:
        return 0
    for place, one in enumerate(found):
        if one.meter not in UNITS or one.quantity < 1 or not one.started_at <= one.ended_at <= at:
            raise BadUsage(place, "it has a meter, at least one unit, and ends between its start and now")
        if one.started_at.microsecond % 1000 or one.ended_at.microsecond % 1000:
            raise BadUsage(place, "its times are whole milliseconds")
    accounts.lock_many({one.organization_id for one in found})
    floating.keep_still({one.price_version_id for one in found})
    organizations, resources, names, labels, meters, quantities, prices, starts, ends = map(
        list, zip(*found, strict=True)
    )
    written = [
        [new_public_id("spn") for _ in found], organizations, resources, names, [json.dumps(one) for one in labels],
        meters, [UNITS[meter] for meter in meters], quantities, prices, starts, ends,
    ]  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(RECORD, written)
        new = int(cursor.rowcount)
        if new < len(found):
            cursor.execute(MISSING, [organizations, resources, meters, quantities, prices, starts, ends])
            for (place,) in cursor.fetchall():
                raise BadUsage(place - 1, "it overlaps other use of the same thing, or its price is not for it")
    return new
