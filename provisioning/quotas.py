"""What an organization and a project may hold at once: every limit that applies, in one guarded statement.

A launch on H200s in the on-demand market is counted by each quota of its
project and of its organization that names this model or none, and this market
or none; one that counts spend per hour counts its price. All of them have
room, or none is touched. What is held is written down by who holds it, so
giving back takes the same amounts from the same quotas, once.

GPUs that are promised for later hold nothing, but take room: whoever promises
them keeps in `reserved` the most of them in one hour to come. What runs has no
end, so it counts beside every such hour, as in the calendar; a launch looks at
two numbers of the locked row.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from django.db import connection, transaction
from django.db.models import F, Q, Sum
from django.db.models.functions import Coalesce

from billing.prepared import ask
from billing.wire import Value
from provisioning.errors import QuotaExceeded
from provisioning.models import CHARGED_PHASES, Instance, Quota, QuotaHold

DEFAULT_LIMIT = 16
ORGANIZATION_DEFAULT_LIMIT = 64

# The rows are locked in id order before any is changed. `rules` has them as they are once locked, since locking
# follows a row to its newest version; that the set of rows is not of an older moment, `_make` sees to.
TAKE = """
WITH rules AS MATERIALIZED (
    SELECT id, project_id, gpu_model, market, unit, "limit", held, reserved,
        CASE unit WHEN 'gpus' THEN %(gpus)s::bigint ELSE %(micros)s::bigint END AS wanted
    FROM provisioning_quota
    WHERE organization_id = (SELECT organization_id FROM marketplace_project WHERE id = %(project)s::bigint)
        AND (project_id IS NULL OR project_id = %(project)s::bigint)
        AND gpu_model IN ('', %(gpu_model)s::text) AND market IN ('', %(market)s::text)
    ORDER BY id FOR NO KEY UPDATE
), verdict AS (
    SELECT coalesce(bool_and(held + reserved + wanted <= "limit" OR wanted = 0), false)
        AND count(*) FILTER (WHERE gpu_model = '' AND market = '' AND unit = 'gpus') = 2 AS is_good FROM rules
), taken AS (
    UPDATE provisioning_quota quota SET held = quota.held + rules.wanted FROM rules
    WHERE quota.id = rules.id AND (SELECT is_good FROM verdict)
), kept AS (
    INSERT INTO provisioning_quotahold (holder, project_id, token_id, gpu_model, market, gpus, micros_per_hour)
    SELECT %(holder)s::text, %(project)s::bigint, %(token)s::bigint, %(gpu_model)s::text, %(market)s::text,
        %(gpus)s::bigint, %(micros)s::bigint
    WHERE (SELECT is_good FROM verdict)
)
SELECT project_id IS NULL, gpu_model, market, unit, wanted, held, "limit", id, reserved FROM rules ORDER BY id
"""

GIVE_BACK = """
WITH gone AS (
    DELETE FROM provisioning_quotahold WHERE holder = %(holder)s
    RETURNING project_id, gpu_model, market, gpus, micros_per_hour
), rules AS MATERIALIZED (
    SELECT quota.id, CASE quota.unit WHEN 'gpus' THEN gone.gpus ELSE gone.micros_per_hour END AS given
    FROM gone JOIN marketplace_project project ON project.id = gone.project_id
    JOIN provisioning_quota quota ON quota.organization_id = project.organization_id
        AND (quota.project_id IS NULL OR quota.project_id = gone.project_id)
        AND quota.gpu_model IN ('', gone.gpu_model) AND quota.market IN ('', gone.market)
    ORDER BY quota.id FOR NO KEY UPDATE OF quota
)
UPDATE provisioning_quota quota SET held = quota.held - rules.given FROM rules WHERE quota.id = rules.id
"""

REPRICE = """
WITH rules AS MATERIALIZED (
    SELECT quota.id, %(micros)s - hold.micros_per_hour AS more
    FROM provisioning_quotahold hold JOIN marketplace_project project ON project.id = hold.project_id
    JOIN provisioning_quota quota ON quota.organization_id = project.organization_id
        AND (quota.project_id IS NULL OR quota.project_id = hold.project_id)
        AND quota.gpu_model IN ('', hold.gpu_model) AND quota.market IN ('', hold.market)
        AND quota.unit = 'micros_per_hour'
    WHERE hold.holder = %(holder)s
    ORDER BY quota.id FOR NO KEY UPDATE OF quota
), priced AS (
    UPDATE provisioning_quotahold SET micros_per_hour = %(micros)s WHERE holder = %(holder)s
)
UPDATE provisioning_quota quota SET held = quota.held + rules.more FROM rules WHERE quota.id = rules.id
"""

USED = """
SELECT quota.id, sum(CASE quota.unit WHEN 'gpus' THEN hold.gpus ELSE hold.micros_per_hour END)
FROM provisioning_quota quota
JOIN marketplace_project project ON project.organization_id = quota.organization_id
    AND (quota.project_id IS NULL OR quota.project_id = project.id)
JOIN provisioning_quotahold hold ON hold.project_id = project.id
    AND quota.gpu_model IN ('', hold.gpu_model) AND quota.market IN ('', hold.market)
JOIN provisioning_instance instance ON instance.public_id = hold.holder AND instance.phase = ANY(%(charged)s)
WHERE quota.id = ANY(%(quotas)s) GROUP BY quota.id
"""


class _Rule(NamedTuple):
    """A limit that applies, as it was before the taking."""

    is_organization: bool
    gpu_model: str
    market: str
    unit: str
    wanted: int
    held: int
    limit: int
    id: int
    reserved: int

    @property
    def is_first(self) -> bool:
        return not self.gpu_model and not self.market and self.unit == Quota.Unit.GPUS

    @property
    def refuses(self) -> bool:
        return self.wanted > 0 and self.held + self.reserved + self.wanted > self.limit


def take(
    *,
    holder: str,
    project_id: int,
    gpu_model: str,
    gpus: int,
    micros_per_hour: int,
    market: str = Instance.Market.ON_DEMAND,
    token_id: int | None = None,
) -> None:
    """Hold GPUs and their price per hour of every quota that applies, or raise QuotaExceeded with nothing held.

    The refusal names the first quota that has no room; what is reserved counts as held there. `holder` is the public
    id of what holds it; `give_back` takes the same. One statement.
    """
    assert gpus > 0
    assert micros_per_hour >= 0
    wanted: dict[str, Value] = {
        "holder": holder, "project": project_id, "token": token_id, "gpu_model": gpu_model, "market": market,
        "gpus": gpus, "micros": micros_per_hour,
    }  # fmt: skip
    rules = _take(wanted)
    if sum(rule.is_first for rule in rules) < 2:
        open_for(project_id=project_id)
        rules = _take(wanted)
    for rule in rules:
        if rule.refuses:
            raise QuotaExceeded(
                wanted=rule.wanted, held=rule.held + rule.reserved, limit=rule.limit,
                is_organization=rule.is_organization, gpu_model=rule.gpu_model, market=rule.market, unit=rule.unit,
                reserved_in=[one.id for one in rules if one.refuses and one.reserved],
            )  # fmt: skip


def _take(wanted: Mapping[str, Value]) -> list[_Rule]:
    return [_Rule(*row) for row in ask(TAKE, wanted)]


def give_back(*, holder: str) -> None:
    """Let go of all that this holder holds; giving back twice changes nothing. One statement."""
    with connection.cursor() as cursor:
        cursor.execute(GIVE_BACK, {"holder": holder})


def reprice(*, holder: str, micros_per_hour: int) -> None:
    """Let what somebody holds cost so much per hour from now on. What runs goes on, also beyond a limit. One statement.

    The caller keeps the holder from giving back meanwhile; without a hold nothing changes.
    """
    assert micros_per_hour >= 0
    with connection.cursor() as cursor:
        cursor.execute(REPRICE, {"holder": holder, "micros": micros_per_hour})


def price_held(*, holder: str) -> int | None:
    """Return what somebody's hold costs per hour, None where they hold nothing. One query."""
    return QuotaHold.objects.filter(holder=holder).values_list("micros_per_hour", flat=True).first()


def bid_anew(*, holder: str, micros_per_hour: int, before: int, token_id: int | None) -> None:
    """Let what somebody holds already cost so much per hour; raise QuotaExceeded where more than `before` is too much.

    Only limits of spend are looked at: how many GPUs it holds stays, and a limit that was lowered meanwhile ends
    nothing. The caller rolls back.
    """
    reprice(holder=holder, micros_per_hour=micros_per_hour)
    hold = QuotaHold.objects.select_related("project").get(holder=holder)
    QuotaHold.objects.filter(pk=hold.pk).update(token=token_id)
    applies = Quota.objects.filter(
        Q(project=None) | Q(project=hold.project_id), organization=hold.project.organization_id,
        gpu_model__in=["", hold.gpu_model], market__in=["", hold.market], unit=Quota.Unit.MICROS_PER_HOUR,
    )  # fmt: skip
    passed = applies.filter(held__gt=F("limit")).order_by("pk").first() if micros_per_hour > before else None
    if passed is not None:
        raise QuotaExceeded(
            wanted=micros_per_hour, held=passed.held - micros_per_hour, limit=passed.limit,
            is_organization=passed.project_id is None, gpu_model=passed.gpu_model, market=passed.market,
            unit=passed.unit,
        )  # fmt: skip


def open_for(*, project_id: int) -> None:
    """Give a project, and its organization if need be, the limits that everybody begins with."""
    organization_id = _owner_of(project_id)
    firsts = Quota.objects.filter(organization_id=organization_id, **FIRST)
    if not firsts.filter(project=None).exists():
        _make(organization_id=organization_id, project_id=None, limit=ORGANIZATION_DEFAULT_LIMIT, **FIRST)
    if not firsts.filter(project=project_id).exists():
        _make(organization_id=organization_id, project_id=project_id, limit=DEFAULT_LIMIT, **FIRST)


def touch(*, organization_id: int | None, project_id: int | None) -> None:
    """Let whoever reserves of an organization's first quota from now on wait for this transaction, and see it."""
    owner = organization_id if project_id is None else _owner_of(project_id)
    assert owner is not None
    first = Quota.objects.filter(organization=owner, project=None, **FIRST)
    if not first.update(reserved=F("reserved")):
        _make(organization_id=owner, project_id=None, limit=ORGANIZATION_DEFAULT_LIMIT, **FIRST)


FIRST: dict[str, str] = {"gpu_model": "", "market": "", "unit": Quota.Unit.GPUS}


def set_limit(
    *,
    limit: int,
    project_id: int | None = None,
    organization_id: int | None = None,
    gpu_model: str = "",
    market: str = "",
    unit: str = Quota.Unit.GPUS,
) -> Quota:
    """Allow a project, or an organization over all its projects, to hold `limit` of what these words name.

    A limit below what is held stops nothing; it only refuses more.
    """
    assert (project_id is None) != (organization_id is None), "of a project or of an organization"
    owner = organization_id if project_id is None else _owner_of(project_id)
    assert owner is not None
    words = {"gpu_model": gpu_model, "market": market, "unit": unit}
    found = Quota.objects.filter(organization=owner, project=project_id, **words)
    if found.update(limit=limit):
        return found.get()
    return _make(organization_id=owner, project_id=project_id, limit=limit, **words)


@transaction.atomic
def _make(*, organization_id: int, project_id: int | None, limit: int, **words: str) -> Quota:
    """Make a quota that counts from the start what is held already.

    The table's lock waits for whoever is taking or giving back, and they wait
    for it before they look: nobody holds something that a new quota does not
    count. Limits are made seldom.
    """
    with connection.cursor() as cursor:
        cursor.execute("LOCK TABLE provisioning_quota IN SHARE ROW EXCLUSIVE MODE")
    quota = Quota(organization_id=organization_id, project_id=project_id, limit=limit, **words)
    # Somebody else may have made it while we waited.
    there = Quota.objects.filter(organization=organization_id, project=project_id, **words)
    if there.update(limit=limit):
        return there.get()
    quota.held = _held(quota)
    quota.save()
    return quota


def remove(*, quota: Quota) -> None:
    """Let a limit apply no more. The limit of all GPUs together can be changed but never removed."""
    assert not quota.is_first
    Quota.objects.filter(pk=quota.pk).delete()


def _held(quota: Quota) -> int:
    """Return what is held of a quota, from the holds themselves."""
    amount = "micros_per_hour" if quota.is_spend else "gpus"
    held: int = counted_by(quota).aggregate(held=Coalesce(Sum(amount), 0))["held"]
    return held


def counted_by(quota: Quota) -> Any:
    """Return the holds that a quota counts."""
    counts = Q(project__organization=quota.organization_id)
    if quota.project_id is not None:
        counts &= Q(project=quota.project_id)
    if quota.gpu_model:
        counts &= Q(gpu_model=quota.gpu_model)
    if quota.market:
        counts &= Q(market=quota.market)
    return QuotaHold.objects.filter(counts)


def miscounted() -> list[Quota]:
    """Return the quotas whose `held` is not the sum of their holds; none, unless there is a fault of ours."""
    return [quota for quota in Quota.objects.order_by("pk") if quota.held != _held(quota)]


def used(quotas: Iterable[Quota]) -> dict[int, int]:
    """Return by primary key what of each quota's `held` runs now; the rest is starting or ending. One query."""
    with connection.cursor() as cursor:
        cursor.execute(USED, {"quotas": [quota.pk for quota in quotas], "charged": sorted(CHARGED_PHASES)})
        return {pk: int(amount) for pk, amount in cursor.fetchall()}


def _owner_of(project_id: int) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT organization_id FROM marketplace_project WHERE id = %s", [project_id])
        return int(cursor.fetchone()[0])
