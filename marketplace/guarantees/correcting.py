"""Hours that fell short, at what they cost in the end: once a month's prices are known, before it is judged itself."""

import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import datetime

import structlog
from celery.exceptions import SoftTimeLimitExceeded

from billing.models import Adjustment, GuaranteeHour
from billing.months import next_month
from billing.outcomes import shortfalls
from billing.sla.terms import Terms
from marketplace.guarantees.guarding import HOUR
from marketplace.sla import evidence

log = structlog.get_logger("marketplace.guarantees")


def correct(resource_ids: Collection[str], *, month: datetime, terms: Terms, at: datetime, deadline: float) -> set[str]:
    """Credit what the hours of these resources in a month credit more at its prices, each once (`shortfalls.correct`).

    Returns those of which that failed, or that the deadline (of `time.monotonic`) came before: their month is not
    judged yet, so that they are tried again with it. One resource after the other, so that those that were finished
    are judged and never worked out again. One query where no tiers and no commitments changed a price.
    """
    adjusted = Adjustment.objects.filter(month=month).values("organization")
    short = GuaranteeHour.objects.filter(
        resource_id__in=resource_ids, hour__gte=month, hour__lt=next_month(month), credit_bps__gt=0, correction=None,
        organization__in=adjusted,
    )  # fmt: skip
    by_resource: dict[str, list[GuaranteeHour]] = defaultdict(list)
    for row in short.select_related("organization").order_by("resource_id", "hour"):
        by_resource[row.resource_id].append(row)
    return {key for key, rows in by_resource.items() if not _correct_all(rows, terms, at=at, deadline=deadline)}


def _correct_all(rows: Iterable[GuaranteeHour], terms: Terms, *, at: datetime, deadline: float) -> bool:
    """Correct these hours of a resource; return whether none was left."""
    for row in rows:
        if time.monotonic() >= deadline:
            return False
        try:
            _correct_hour(row, terms, at=at)
        except SoftTimeLimitExceeded:
            raise
        except Exception:  # a resource that cannot be worked out must not keep the others from it
            log.exception("not corrected", resource=row.resource_id, hour=row.hour.isoformat())
            return False
    return True


def _correct_hour(row: GuaranteeHour, terms: Terms, *, at: datetime) -> None:
    (case,) = evidence.between([row.resource_id], row.hour, row.hour + HOUR, terms=terms)
    found = case.seen
    # What was given back of it by now includes what it credited itself.
    returned = min(found.paid_micros, max(0, found.returned_micros - row.credit_micros))
    shortfalls.correct(hour=row, paid_micros=found.paid_micros, returned_micros=returned, at=at)
