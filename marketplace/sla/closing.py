"""The service level by itself: every month that is over is judged, and what it owes is given back without a claim."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from celery.exceptions import SoftTimeLimitExceeded
from django.db import connection

from billing.months import month_of, next_month
from billing.sla import availability, posting, terms
from billing.sla.availability import Verdict
from billing.sla.terms import Terms
from marketplace.guarantees import correcting
from marketplace.sla import evidence
from marketplace.sla.evidence import Case
from marketplace.sla.history import EXPECTED
from marketplace.sla.reserved import LOOKED_BACK
from provisioning.models import STARTING, Instance
from provisioning.models.instances import INFRASTRUCTURE

log = structlog.get_logger("marketplace.sla")

# How long after the end of a month its last reports are waited for.
GRACE = timedelta(hours=2)
MONTHS_BACK = 3
# How long a month waits for what tiers or a commitment make of its price; then it counts as far as that was posted.
WAITS_FOR_PRICES = timedelta(days=14)
BATCH = 200

# What ran and was not judged yet. While tiers or a commitment were not worked out to the month's end nobody knows what
# it cost, and it waits, for a time.
NOT_JUDGED = """
FROM billing_usagespan span
WHERE meter = 'gpu' AND started_at < %(end)s AND (ended_at IS NULL OR ended_at > %(month)s)
  AND NOT EXISTS (
      SELECT FROM billing_slaverdict verdict WHERE verdict.resource_id = span.resource_id AND month = %(month)s
  )
"""
WAITS = """EXISTS (
    SELECT FROM billing_adjustment adjustment
    WHERE adjustment.organization_id = span.organization_id AND adjustment.price_version_id = span.price_version_id
      AND adjustment.month = %(month)s AND adjustment.through < %(end)s
)"""
# What lay down in a month without running in it: it ran before, and no move has ended what a fault of ours began. What
# it cost is known: of use nothing, and reserved hours were paid ahead.
LAY_DOWN = """
SELECT instance.public_id
FROM provisioning_instanceevent failure JOIN provisioning_instance instance ON instance.id = failure.instance_id
LEFT JOIN LATERAL (
    SELECT new_phase, at FROM provisioning_instanceevent move
    WHERE move.instance_id = instance.id AND move.kind = 'phase' AND move.at < %(month)s
    ORDER BY move.at DESC, move.id DESC LIMIT 1
) was ON true
WHERE failure.new_phase = 'failed' AND failure.reason = ANY(%(ours)s)
  AND failure.at >= %(looked_back)s AND failure.at < %(end)s
  AND (was.new_phase = ANY(%(under_way)s) OR (was.new_phase = 'failed' AND was.at > %(failed_since)s))
  AND EXISTS (
      SELECT FROM billing_usagespan span
      WHERE span.resource_id = instance.public_id AND meter = 'gpu' AND ended_at <= %(month)s
  )
  AND NOT EXISTS (
      SELECT FROM billing_usagespan span
      WHERE span.resource_id = instance.public_id AND meter = 'gpu' AND started_at < %(end)s
        AND (ended_at IS NULL OR ended_at > %(month)s)
  )
  AND NOT EXISTS (
      SELECT FROM billing_slaverdict verdict WHERE verdict.resource_id = instance.public_id AND month = %(month)s
  )
"""
DUE = f"""
SELECT resource_id FROM (
    SELECT resource_id {NOT_JUDGED} AND (%(is_late)s OR NOT {WAITS}) UNION {LAY_DOWN}
) due WHERE resource_id > %(after)s
ORDER BY resource_id LIMIT %(limit)s
"""  # noqa: S608  nothing in it comes from outside
WAITING = f"""
SELECT organization_id, count(DISTINCT resource_id), bool_or({WAITS}) {NOT_JUDGED}
GROUP BY organization_id ORDER BY organization_id LIMIT %(limit)s
"""


@dataclass(frozen=True)
class Waiting:
    """Instances of an organization whose month is over and was not judged; `until` is when that ends by itself."""

    organization_id: int
    month: datetime
    instances: int
    waits_for_prices: bool
    until: datetime | None


def close_due(*, at: datetime, seconds: int = 40) -> int:
    """Judge what ran, or lay down, in each of the last months that are over and was not judged; return how many.

    Stops after some time and goes on with the next call; each instance is judged in a transaction of its own, once.
    Hours that are corrected first take three quarters of that time at most, so that nobody's keep the others waiting.
    """
    begun = time.monotonic()
    deadline, correct_until = begun + seconds, begun + seconds * 3 / 4
    judged = 0
    for month in months_over(at):
        found = terms.in_force(month)
        after = ""
        while found is not None and (batch := _due(month, after, terms=found, at=at)):
            failed = correcting.correct(batch, month=month, terms=found, at=at, deadline=correct_until)
            ready = [resource_id for resource_id in batch if resource_id not in failed]
            for case in evidence.cases(ready, month=month, terms=found, at=at):
                judged += _post(case, found, at=at)
            after = batch[-1]
            if time.monotonic() > deadline:
                return judged
    return judged


def months_over(at: datetime) -> list[datetime]:
    """Return the last months that ended a grace ago and are still judged, oldest first."""
    month = month_of(at - GRACE)
    found = []
    for _ in range(MONTHS_BACK):
        month = month_of(month - timedelta(days=1))
        found.append(month)
    return found[::-1]


def _due(month: datetime, after: str, *, terms: Terms, at: datetime) -> list[str]:
    end = next_month(month)
    asked: dict[str, str | int | datetime | list[str]] = {
        "month": month, "end": end, "after": after, "limit": BATCH, "is_late": at >= end + WAITS_FOR_PRICES,
        "looked_back": month - LOOKED_BACK, "failed_since": month - terms.failed_counts_for,
        "ours": sorted(INFRASTRUCTURE), "under_way": sorted(STARTING | EXPECTED),
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(DUE, asked)
        return [resource_id for (resource_id,) in cursor.fetchall()]


def waiting(*, at: datetime, since: timedelta, months: int, limit: int) -> list[Waiting]:
    """Return what was not judged though its month ended longer ago than `since`, the oldest month first.

    What waits for prices is judged without them at `until`. All else could not be judged: that is tried again until
    three months are over, and then nobody does by themselves.
    """
    found: list[Waiting] = []
    month = month_of(at - since)
    for _ in range(months):
        month = month_of(month - timedelta(days=1))
        end = next_month(month)
        with connection.cursor() as cursor:
            cursor.execute(WAITING, {"month": month, "end": end, "limit": limit})
            rows = cursor.fetchall()
        found = [
            Waiting(key, month, count, waits, end + WAITS_FOR_PRICES if waits else None) for key, count, waits in rows
        ] + found
    return found[:limit]


def _post(case: Case, found: Terms, *, at: datetime) -> bool:
    if not case.seen.measured and not availability.judge(case.seen, found).down_ms:
        return False  # Its customer had stopped it, or the fault ended before the month: nothing is to be judged.
    instance = case.instance
    subject = posting.Subject(
        organization=instance.project.organization,
        resource_id=instance.public_id,
        resource_name=instance.name,
        project=instance.project.public_id,
        supplier_id=instance.offer.supplier_id,
        offer=instance.offer.public_id,
    )
    try:
        return posting.post(subject=subject, seen=case.seen, terms=found, at=at) is not None
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # one that cannot be judged must not keep the others from it
        log.exception("not judged", instance=instance.public_id)
        return False


def so_far(instances: Iterable[Instance], *, at: datetime) -> dict[str, tuple[Verdict, Case, Terms]]:
    """Return how each stands in the month that runs, by id: what its credit would be if it ended now."""
    month = month_of(at)
    found = terms.in_force(month)
    if found is None:
        return {}
    keys = [instance.public_id for instance in instances]
    made = evidence.cases(keys, month=month, terms=found, at=at)
    return {case.instance.public_id: (availability.judge(case.seen, found), case, found) for case in made}
