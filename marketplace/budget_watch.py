"""What becomes of budgets by itself: alerts at their shares, and the end of what runs once one is used up.

A sweep measures all budgets at once and writes in sets; how many there are
makes no more statements. Each alert is a row that the database lets in once.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import structlog
from django.db import connection, transaction
from django.db.models import QuerySet

from billing.months import month_of
from marketplace import spend
from marketplace.budget_counters import COUNTERS, Measure, Whose
from marketplace.models import Budget, Organization
from provisioning import instances
from provisioning.errors import ProvisioningError
from provisioning.models import CHARGED_PHASES, STARTING, Instance, Reason

log = structlog.get_logger("marketplace.budgets")

STOPPED = "The budget of %(owner)s for this month is used up. Nothing more is charged for it."

# A share is reached where used x 100 >= amount x share; of nothing used nothing is reached.
ALERT = """
WITH found AS (
    SELECT * FROM unnest(%(ids)s::bigint[], %(used)s::bigint[], %(forecast)s::bigint[]) AS one (id, used, forecast)
)
INSERT INTO marketplace_budgetalert (budget_id, period, kind, share, amount, reached, at, tries, next_try_at)
SELECT budget.id, %(period)s, told.kind, told.share, budget.amount, told.reached, %(at)s, 0, %(at)s
FROM found JOIN marketplace_budget budget USING (id) CROSS JOIN LATERAL (
    SELECT 'used' AS kind, share, found.used AS reached FROM unnest(budget.used_shares) AS share
    UNION SELECT 'forecast', share, found.forecast FROM unnest(budget.forecast_shares) AS share
) told
WHERE told.reached > 0 AND told.reached::numeric * 100 >= budget.amount::numeric * told.share
ON CONFLICT DO NOTHING
"""
NOTE_PASSED = """
UPDATE marketplace_budget budget
SET passed_at = CASE WHEN found.used > 0 AND found.used >= budget.amount THEN coalesce(passed_at, %(at)s) END
FROM unnest(%(ids)s::bigint[], %(used)s::bigint[]) AS found (id, used)
WHERE budget.id = found.id AND (passed_at IS NULL) = (found.used > 0 AND found.used >= budget.amount)
"""


def look(*, at: datetime) -> int:
    """Measure all budgets, write the alerts that are due and note which budgets are used up; return how many alerts.

    One statement, four for any number of budgets of a counter, and those for what shares of revenue will ask. Any
    number of sweeps at once write each alert once.
    """
    written = 0
    every = list(Budget.objects.order_by("pk").values_list("counts", "pk", "organization", "project", "token"))
    for name, counter in COUNTERS.items():
        rows = [row for counts, *row in every if counts == name]
        found = counter.measure([Whose(*keys) for _, *keys in rows], at)
        written += _write([pk for pk, *_ in rows], found, at=at)
    return written


@transaction.atomic
def _write(ids: Sequence[int], found: Sequence[Measure], *, at: datetime) -> int:
    if not ids:
        return 0
    given: dict[str, Any] = {"ids": list(ids), "used": [one.used for one in found], "at": at}
    with connection.cursor() as cursor:
        # In the order of keys, so that two sweeps lock these rows in one order.
        cursor.execute("SELECT id FROM marketplace_budget WHERE id = ANY (%(ids)s) ORDER BY id FOR UPDATE", given)
        cursor.execute(NOTE_PASSED, given)
        forecast = [one.forecast for one in found]
        cursor.execute(ALERT, given | {"forecast": forecast, "period": month_of(at)})
        return int(cursor.rowcount)


def stop_what_is_over(*, at: datetime, limit: int) -> int:
    """Stop what runs on a budget that is used up and whose grace is over; return how many were asked to stop.

    What runs inside a reservation goes on: its hours are paid for. Volumes stay as they are, and so cost on.
    """
    stopped = 0
    for budget in _over(at):
        for instance in running_on(budget)[: limit - stopped]:
            message = STOPPED % {"owner": budget.owner.name}
            try:
                instances.stop(instance=instance, at=at, reason=Reason.BUDGET, message=message)
            except ProvisioningError:
                # It moved meanwhile: the next sweep looks again, the others come first.
                log.warning("not stopped", instance=instance.public_id, exc_info=True)
                continue
            stopped += 1
    return stopped


def _over(at: datetime) -> list[Budget]:
    passed = Budget.objects.filter(action=Budget.Action.STOP, passed_at__lte=at)
    passed = passed.select_related("organization", "project", "token").order_by("passed_at", "pk")
    return [budget for budget in passed if budget.stops_at is not None and budget.stops_at <= at]


def running_on(budget: Budget) -> QuerySet[Instance]:
    """Return the instances that a budget pays for now: those on their way too, and none that is paid for otherwise."""
    alive = Instance.objects.filter(phase__in=CHARGED_PHASES | STARTING, reservation=None, paid_by="")
    if budget.token is not None:
        alive = alive.filter(ordered_with__public_id__in=spend.made_by(budget.token))
    elif budget.project_id is not None:
        alive = alive.filter(project=budget.project_id)
    else:
        alive = alive.filter(project__organization=budget.organization_id)
    return alive.order_by("pk")


def coming_stops(organization: Organization) -> list[Budget]:
    """Return the budgets of an organization that are used up and stop what runs, the most urgent first. One query."""
    passed = Budget.objects.filter(organization=organization, action=Budget.Action.STOP, passed_at__isnull=False)
    found = passed.select_related("organization", "project", "token")
    return sorted(found, key=lambda budget: budget.stops_at or datetime.max.replace(tzinfo=UTC))


def coming_stops_of(instance: Instance) -> list[Budget]:
    """Return the budgets that are used up and will stop this instance. One query where it runs, and one for each
    budget that is used up, a few for a token's."""
    if instance.reservation_id is not None or instance.paid_by or instance.phase not in CHARGED_PHASES | STARTING:
        return []
    found = coming_stops(instance.project.organization)
    return [budget for budget in found if running_on(budget).filter(pk=instance.pk).exists()]
