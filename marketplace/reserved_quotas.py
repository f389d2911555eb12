"""What quotas of GPUs have reserved: of blocks ahead of time, the most GPUs in one hour to come (`Quota.reserved`).

Who books raises the number first (`reservations`), so it is never below what is
reserved; hours that are over or given up are taken off it by a sweep, and by a
launch before it is refused.
"""

from collections.abc import Callable, Collection
from datetime import datetime

from billing.prepared import Asking, Steps, ask
from billing.wire import Asked
from marketplace.blocks import Window
from marketplace.models import OVER, Project
from provisioning import quotas
from provisioning.errors import QuotaExceeded
from provisioning.models import Quota

# Reservations that take no room any more.
GONE = ", ".join(f"'{state}'" for state in sorted(OVER))
# For a CTE `rules` of quotas: the most GPUs in one hour of a window, without an end where it has none, by a running sum
# over where strips of reservations begin and end.
RESERVED = f"""
strips AS (
    SELECT rules.id, greatest(strip.starts_at, %(start)s::timestamptz) AS starts_at, strip.ends_at, strip.gpus
    FROM rules JOIN marketplace_project project ON project.organization_id = rules.organization_id
        AND (rules.project_id IS NULL OR rules.project_id = project.id)
    JOIN marketplace_reservation booked ON booked.project_id = project.id
        AND booked.state <> ALL (ARRAY[{GONE}])
        AND booked.ends_at > %(start)s::timestamptz
        AND booked.starts_at < coalesce(%(end)s::timestamptz, 'infinity')
    JOIN marketplace_offer offer ON offer.id = booked.offer_id AND rules.gpu_model IN ('', offer.gpu_model)
    JOIN marketplace_reservationstrip strip ON strip.reservation_id = booked.id
        AND strip.ends_at > %(start)s::timestamptz
        AND strip.starts_at < coalesce(%(end)s::timestamptz, 'infinity')
    WHERE rules.unit = 'gpus' AND rules.market IN ('', 'reserved')
), edge AS (
    SELECT id, starts_at AS at, gpus FROM strips UNION ALL SELECT id, ends_at, -gpus FROM strips
), most AS (
    SELECT id, max(running) AS gpus FROM (
        SELECT id, sum(gpus) OVER (PARTITION BY id ORDER BY at, gpus) AS running FROM edge
    ) summed GROUP BY id
)
"""  # noqa: S608  nothing in it comes from outside
# A row that somebody changes between the look at the strips and the lock is left for the next time (`version`).
RECOUNT = f"""
WITH rules AS MATERIALIZED (
    SELECT id, xmin AS version, organization_id, project_id, gpu_model, market, unit, reserved FROM provisioning_quota
    WHERE CASE WHEN %(quotas)s::bigint[] IS NOT NULL THEN id = ANY (%(quotas)s::bigint[])
        ELSE reserved > 0 OR organization_id IN (
            SELECT project.organization_id FROM marketplace_reservation booked
            JOIN marketplace_project project ON project.id = booked.project_id
            WHERE booked.state <> ALL (ARRAY[{GONE}])
        ) END
), {RESERVED}, locked AS MATERIALIZED (
    SELECT quota.id, quota.xmin AS version FROM provisioning_quota quota
    WHERE quota.id IN (SELECT id FROM rules LEFT JOIN most USING (id) WHERE reserved <> coalesce(most.gpus, 0))
    ORDER BY quota.id LIMIT %(limit)s::bigint FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE provisioning_quota quota SET reserved = coalesce(most.gpus, 0)
FROM rules JOIN locked USING (id, version) LEFT JOIN most USING (id) WHERE quota.id = rules.id
RETURNING quota.id
"""  # noqa: S608  nothing in it comes from outside
# The first quota that a window would pass, with what it has taken in the fullest of its hours: what is held now has no
# end, so it counts in all of them. Where none is passed, each keeps in mind what is reserved then. Whether the strips
# are older than the locked rows: then somebody else booked meanwhile. And whether there is any policy to look at.
PASSED = f"""
WITH rules AS MATERIALIZED (
    SELECT id, xmin AS version, organization_id, project_id, gpu_model, market, unit, "limit", held
    FROM provisioning_quota
    WHERE organization_id = %(organization)s::bigint AND unit = 'gpus' AND market IN ('', 'reserved')
        AND (project_id IS NULL OR project_id = %(project)s::bigint) AND gpu_model IN ('', %(gpu_model)s::text)
    ORDER BY id FOR NO KEY UPDATE
), {RESERVED}, sums AS (
    SELECT id, coalesce(most.gpus, 0) AS reserved, held + coalesce(most.gpus, 0) AS taken, "limit"
    FROM rules LEFT JOIN most USING (id)
), passed AS (
    SELECT id, taken FROM sums WHERE taken + %(gpus)s::bigint > "limit" ORDER BY id LIMIT 1
), kept AS (
    UPDATE provisioning_quota quota SET reserved = greatest(quota.reserved, sums.reserved + %(gpus)s::bigint)
    FROM sums WHERE quota.id = sums.id AND NOT EXISTS (SELECT FROM passed)
)
SELECT (SELECT count(*) FROM rules WHERE gpu_model = '' AND market = ''),
    EXISTS (SELECT FROM rules JOIN provisioning_quota there USING (id) WHERE there.xmin <> rules.version),
    (SELECT id FROM passed), (SELECT taken FROM passed), EXISTS (
        SELECT FROM provisioning_policy
        WHERE project_id = %(project)s::bigint OR organization_id = %(organization)s::bigint
    )
"""  # noqa: S608  nothing in it comes from outside


@Asking
def reserve(project: Project, window: Window) -> Steps[bool]:
    """Raise QuotaExceeded where more GPUs would be taken in some hour than a quota allows; keep in mind what then is.

    A quota counts what is reserved in the hours themselves, so blocks that follow each other do not add up, and what is
    held now in every hour to come. It locks these quotas, and no account is locked before them: bookings and launches
    of one organization follow each other here. Returns whether there are policies to look at.
    """
    asked = _passed(project, window)
    ((firsts, is_stale, quota_id, taken, has_policy),) = yield asked
    if firsts < 2 or is_stale:
        quotas.open_for(project_id=project.pk)
        ((_, _, quota_id, taken, has_policy),) = yield asked
    if quota_id is not None:
        quota = Quota.objects.get(pk=quota_id)
        raise QuotaExceeded(
            wanted=window.gpus, held=int(taken), limit=quota.limit, is_organization=quota.project_id is None,
            gpu_model=quota.gpu_model, market=quota.market, unit=quota.unit,
        )  # fmt: skip
    return bool(has_policy)


def _passed(project: Project, window: Window) -> Asked:
    return PASSED, {
        "organization": project.organization_id,
        "project": project.pk,
        "gpu_model": window.offer.gpu_model,
        "gpus": window.gpus,
        "start": window.starts_at,
        "end": window.ends_at,
    }


def recount(*, at: datetime, quota_ids: Collection[int] | None = None, limit: int = 1000) -> int:
    """Count what is reserved in the hours to come, of these quotas or of all; return how many had another number.

    One statement. It waits for nobody: whose quota is in use this moment is counted the next time.
    """
    chosen = None if quota_ids is None else list(quota_ids)
    return len(ask(RECOUNT, {"quotas": chosen, "start": at, "end": None, "limit": limit}))


def take(hold: Callable[[], None], *, at: datetime) -> None:
    """Let somebody hold of quotas; where hours refuse it that may be over, count those anew and try once more."""
    try:
        hold()
    except QuotaExceeded as refusal:
        if not (refusal.reserved_in and recount(at=at, quota_ids=refusal.reserved_in)):
            raise
        hold()
