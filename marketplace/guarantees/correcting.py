"""Hours that fell short, at what they cost in the end: once a month's prices are known, before it is judged itself."""

from collections import defaultdict
from collections.abc import Collection
from datetime import datetime

import structlog

from billing.models import Adjustment, GuaranteeHour
from billing.months import next_month
from billing.outcomes import shortfalls
from billing.sla.terms import Terms
from marketplace.guarantees.guarding import HOUR
from marketplace.sla import evidence

log = structlog.get_logger("marketplace.guarantees")


def correct(resource_ids: Collection[str], *, month: datetime, terms: Terms, at: datetime) -> set[str]:
    """Credit what the hours of these resources in a month credit more at its prices, each once (`shortfalls.correct`).

    Returns those of which that failed: their month is not judged yet, so that they are tried again with it. One query
    where no tiers and no commitments changed a price.
    """
    adjusted = Adjustment.objects.filter(month=month).values("organization")
    short = GuaranteeHour.objects.filter(
        resource_id__in=resource_ids, hour__gte=month, hour__lt=next_month(month), credit_bps__gt=0, correction=None,
        organization__in=adjusted,
    )  # fmt: skip
    by_hour: dict[datetime, list[GuaranteeHour]] = defaultdict(list)
    for row in short.select_related("organization"):
        by_hour[row.hour].append(row)
    failed: set[str] = set()
    for hour, rows in sorted(by_hour.items()):
        try:
            _correct_hour(hour, rows, terms, at=at)
        except Exception:  # hours that cannot be worked out must not keep the others from it
            log.exception("not corrected", hour=hour.isoformat())
            failed |= {row.resource_id for row in rows}
    return failed


def _correct_hour(begins: datetime, rows: Collection[GuaranteeHour], terms: Terms, *, at: datetime) -> None:
    keys = [row.resource_id for row in rows]
    seen = {case.instance.public_id: case.seen for case in evidence.between(keys, begins, begins + HOUR, terms=terms)}
    for row in rows:
        found = seen[row.resource_id]
        # What was given back of it by now includes what it credited itself.
        returned = min(found.paid_micros, max(0, found.returned_micros - row.credit_micros))
        shortfalls.correct(hour=row, paid_micros=found.paid_micros, returned_micros=returned, at=at)
