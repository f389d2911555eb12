"""What outcomes of each version brought and took so far, kept as they are shared out and booked.

A seller's limit is looked at by every dispatch of its work, so that look must not grow with what it ever sold.
"""

from collections.abc import Iterable

from django.db import connection

ADD = """
INSERT INTO billing_outcometotal (version, currency, brought_micros, cost_micros)
SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[]) AS more (version, currency, brought, cost)
ORDER BY version, currency
ON CONFLICT (version, currency) DO UPDATE SET
    brought_micros = billing_outcometotal.brought_micros + excluded.brought_micros,
    cost_micros = billing_outcometotal.cost_micros + excluded.cost_micros
"""
Changed = tuple[str, str, int, int]  # version, currency, micros brought, micros taken


def add(changes: Iterable[Changed]) -> None:
    """Count what outcomes of each version brought and took more, each version and currency once. One statement."""
    rows = list(changes)
    if rows:
        with connection.cursor() as cursor:
            cursor.execute(ADD, [list(column) for column in zip(*rows, strict=True)])
