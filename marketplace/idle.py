"""What does nothing and costs money: found from the GPUs' readings, shown, told and, where a project wants it, stopped.

An instance is idle once every GPU of it was read in every minute of an hour and
was never used 5 % or more. A minute without a reading is not idle: nobody knows
what the GPU did in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from django.db import connection, transaction
from django.db.models import QuerySet
from django.utils.translation import gettext

from billing import rating
from marketplace import access, audit, costs, instance_texts
from marketplace.access import Actor
from marketplace.errors import BadOrder
from marketplace.models import IdleAction, IdleSpell, Project
from provisioning import instances
from provisioning.errors import ProvisioningError
from provisioning.models import Instance, Phase, Reason
from provisioning.rollups import done_until

log = structlog.get_logger("marketplace.idle")

UNDER_PERCENT = 5
LOOKED_AT = timedelta(hours=1)
# Where readings are summed up later than this, nothing is known about now.
LATE_MAX = timedelta(minutes=5)
STOP_MINUTES_MIN, STOP_MINUTES_MAX = 10, 7 * 24 * 60

IDLE = """
SELECT instance.id, instance.run
FROM provisioning_instance instance
JOIN provisioning_assignment assignment ON assignment.instance_id = instance.id AND assignment.fence = instance.run
JOIN provisioning_gpuhold hold ON hold.assignment_id = assignment.id AND hold.released_at IS NULL
CROSS JOIN LATERAL (
    SELECT count(*) AS minutes, max(utilization_percent_max) AS most FROM provisioning_minute minute
    WHERE minute.gpu_id = hold.gpu_id AND minute.at >= %(since)s AND minute.at < %(until)s
        AND minute.utilization_percent_count > 0
) used
WHERE instance.phase = 'running' AND instance.ready_at <= %(since)s AND NOT instance.is_off_limits
GROUP BY instance.id, instance.run
HAVING count(*) = instance.replicas * instance.gpus_per_replica AND min(used.minutes) = %(minutes)s
    AND max(used.most) < %(under)s
"""


@dataclass(frozen=True)
class Idle:
    """A spell that goes on, with what its instance costs in an hour and has cost since it began."""

    spell: IdleSpell
    currency: str
    per_hour_micros: int
    for_nothing_micros: int


def look(*, at: datetime) -> int:
    """Begin and end spells as the readings say; return how many began. Five statements for any number of instances."""
    until = done_until("minute")
    found = _idle(until) if until is not None and until >= at - LATE_MAX else {}
    with transaction.atomic():
        known = {
            (pk, run): spell
            for spell, pk, run in IdleSpell.objects.filter(ended_at=None).values_list("pk", "instance", "run")
        }
        # Also where another run of the instance does nothing: nobody was warned of that one.
        gone = [spell for one, spell in known.items() if one not in found.items()]
        IdleSpell.objects.filter(pk__in=gone, ended_at=None).update(ended_at=at)
        fresh = [
            IdleSpell(instance_id=pk, run=run, since=until - LOOKED_AT, found_at=at, next_try_at=at)
            for pk, run in found.items()
            if until is not None and (pk, run) not in known
        ]
        # Of two looks at once the second finds it there already.
        IdleSpell.objects.bulk_create(fresh, ignore_conflicts=True)
    return len(fresh)


def _idle(until: datetime) -> Mapping[int, int]:
    """Return the run of each instance that did nothing in the hour before this moment."""
    with connection.cursor() as cursor:
        cursor.execute(
            IDLE,
            {
                "since": until - LOOKED_AT, "until": until, "under": UNDER_PERCENT,
                "minutes": LOOKED_AT // timedelta(minutes=1),
            },
        )  # fmt: skip
        return dict(cursor.fetchall())


def stop_what_is_idle(*, at: datetime, limit: int) -> int:
    """Stop what stayed idle for as long after its warning as its project says; return how many were asked to stop."""
    open_spells = IdleSpell.objects.filter(ended_at=None, sent_at__lte=at, instance__phase=Phase.RUNNING)
    wanted = open_spells.filter(instance__project__idle_action=IdleAction.STOP).select_related("instance__project")
    due = [spell for spell in wanted.order_by("sent_at") if spell.stops_at is not None and spell.stops_at <= at]
    stopped = 0
    for spell in due[:limit]:
        message = instance_texts.IDLE(since=f"{spell.since:%Y-%m-%d %H:%M}")
        try:
            instances.stop(instance=spell.instance, at=at, reason=Reason.IDLE, message=message)
        except ProvisioningError:
            # It moved meanwhile: the next sweep looks again, the others come first.
            log.warning("not stopped", instance=spell.instance.public_id, exc_info=True)
            continue
        stopped += 1
    return stopped


def spells(actor: Actor) -> QuerySet[IdleSpell]:
    """Return the spells that go on, of what this actor sees, the longest first."""
    seen = access.instances(actor).filter(phase=Phase.RUNNING)
    found = IdleSpell.objects.filter(ended_at=None, instance__in=seen.values("pk"))
    return found.select_related(
        "instance__project__organization", "instance__offer__site", "instance__price_version"
    ).order_by("since", "pk")


def listed(found: QuerySet[IdleSpell], *, at: datetime) -> list[Idle]:
    """Return spells with what they cost. Three queries, however many they are; floating prices take two more."""
    rows = list(found)
    cost = costs.of([row.instance for row in rows], at=at)
    return [
        Idle(
            spell=row,
            currency=cost[row.instance_id].currency,
            per_hour_micros=cost[row.instance_id].per_hour_micros,
            # At the present price: where that floats, nearly.
            for_nothing_micros=rating.amount_micros(
                micros_per_unit_hour=cost[row.instance_id].per_hour_micros,
                unit_milliseconds=rating.unit_milliseconds(quantity=1, start=row.since, end=at),
            ),
        )
        for row in rows
    ]


def by_instance(rows: list[Instance]) -> dict[int, IdleSpell]:
    """Return the spell that goes on of each of these instances. One query; none where nothing runs."""
    running = [row.pk for row in rows if row.phase == Phase.RUNNING]
    if not running:
        return {}
    found = IdleSpell.objects.filter(ended_at=None, instance__in=running).select_related("instance__project")
    return {spell.instance_id: spell for spell in found}


@transaction.atomic
def change(*, actor: Actor, project: Project, action: str, stop_minutes: int) -> None:
    """Say what a project wants done about what is idle; `stop_minutes` count from the warning."""
    if action not in IdleAction.values:
        raise BadOrder("action", gettext("What is done is one of: show, warn, stop."))
    if not STOP_MINUTES_MIN <= stop_minutes <= STOP_MINUTES_MAX:
        bounds = {"least": STOP_MINUTES_MIN, "most": STOP_MINUTES_MAX}
        raise BadOrder("stop_minutes", gettext("The time until the stop is %(least)s to %(most)s minutes.") % bounds)
    before = {"action": project.idle_action, "stop_minutes": project.idle_stop_minutes}
    after = {"action": action, "stop_minutes": stop_minutes}
    Project.objects.filter(pk=project.pk).update(idle_action=action, idle_stop_minutes=stop_minutes)
    project.idle_action, project.idle_stop_minutes = action, stop_minutes
    if before != after:
        audit.record(
            actor=actor, organization=project.organization, verb="idle.change", subject_id=project.public_id,
            before=before, after=after,
        )  # fmt: skip
