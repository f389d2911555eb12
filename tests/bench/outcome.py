"""What a replay gave: how full the fleet was, who waited how long, what each market earned, and what is wrong."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from django.db import connection
from django.db.models import Sum

from marketplace import holdings
from marketplace.models import LendingShare, Reservation
from provisioning import calendar, quotas
from provisioning.models import Interruption
from tests.bench import machine
from tests.bench.trace import NOTICE, Job
from tests.blocks import check_conserved

if TYPE_CHECKING:
    from tests.bench.played import Replay

# A notice, the end of what runs then, and the next look of whoever waits for the GPUs.
RECALLED_WITHIN = NOTICE + timedelta(seconds=10)


def at_the_end(job: Job, waits: Collection[int]) -> str:
    """Return where a job stands that has not finished, given the numbers of those that wait; each in one place."""
    if job.runs_since is not None:
        return "still running"
    if job.number in waits:
        return "still waiting"
    if job.instance is None:
        return "block still ahead" if job.block is not None else "never ordered"
    return "bids without GPUs" if job.market == "spot" else "ended early"


def figures(replay: "Replay", begin: datetime, end: datetime) -> dict[str, Any]:
    """Return the figures of a replay that has come to its end; `faults` is empty where everything is right."""
    waited = [(job.started_at - job.at).total_seconds() for job in replay.jobs if job.started_at and not job.block]
    used_s, markets = _by_market(end)
    markets["reserved"] = _reserved(markets.get("reserved", {}))
    total_s = replay.gpus * (end - begin).total_seconds()
    return {
        "jobs": len(replay.jobs),
        "gpus": replay.gpus,
        "tenants": len(replay.projects),
        "days": round((end - begin) / timedelta(days=1), 2),
        "outcomes": dict(sorted(replay.ends.items())),
        "utilization": round(used_s / total_s, 4) if total_s else 0.0,
        "wait_s": {"p50": machine.percentile(waited, 0.5), "p95": machine.percentile(waited, 0.95)},
        "entry_s": {"p50": machine.percentile(replay.entered_s, 0.5), "most": max(replay.entered_s, default=0.0)},
        "interruptions": Interruption.objects.filter(state="interrupted").count(),
        "markets": markets,
        "faults": _faults(end, replay.entered_s),
    }


def _reserved(used: dict[str, Any]) -> dict[str, Any]:
    """Return what blocks earned for their hours that are over, used or not, and what lending paid their holders."""
    blocks = list(Reservation.objects.prefetch_related("strips"))
    over = [holdings.clipped(one.strips.all(), one.starts_at, one.earned_through) for one in blocks]
    hours = Decimal(sum(holdings.gpu_milliseconds(strips, one.starts_at, one.earned_through)
                        for one, strips in zip(blocks, over, strict=True))) / 3_600_000  # fmt: skip
    micros = sum(holdings.worth_micros(strips, one.starts_at, one.earned_through)
                 for one, strips in zip(blocks, over, strict=True))  # fmt: skip
    lent = LendingShare.objects.aggregate(total=Sum("amount_micros"))["total"] or 0
    return {
        "blocks": len(blocks),
        "spans": used.get("spans", 0),
        "gpu_hours": round(float(hours), 1),
        "used_gpu_hours": used.get("gpu_hours", 0.0),
        "revenue": str(round(Decimal(micros) / 10**6, 2)),
        "per_gpu_hour": str(round(Decimal(micros) / 10**6 / hours, 4)) if hours else None,
        "paid_for_lending": str(round(Decimal(lent) / 10**6, 2)),
    }


SPANS = """
SELECT labels ->> 'market', count(*), sum(charged_micros),
    sum(quantity * extract(epoch FROM coalesce(ended_at, %(now)s) - started_at))
FROM billing_usagespan GROUP BY 1 ORDER BY 1
"""


def _by_market(end: datetime) -> tuple[float, dict[str, Any]]:
    """Return the GPU-seconds that were used, and by market what they brought in."""
    with connection.cursor() as cursor:
        cursor.execute(SPANS, {"now": end})
        rows = cursor.fetchall()
    markets = {}
    for market, spans, micros, gpu_s in rows:
        hours = Decimal(gpu_s) / 3600
        markets[market] = {
            "spans": spans,
            "gpu_hours": round(float(hours), 1),
            "revenue": str(round(Decimal(micros) / 10**6, 2)),
            "per_gpu_hour": str(round(Decimal(micros) / 10**6 / hours, 4)) if hours else None,
        }
    return sum(float(row[3]) for row in rows), markets


FAULTS = {
    "GPUs are held twice": """
        SELECT gpu_id FROM provisioning_gpuhold WHERE released_at IS NULL GROUP BY gpu_id HAVING count(*) > 1
    """,
    "instances hold other GPUs than they take quota for": """
        SELECT instance.id FROM provisioning_instance instance
        LEFT JOIN provisioning_assignment assignment ON assignment.instance_id = instance.id
        LEFT JOIN provisioning_gpuhold hold ON hold.assignment_id = assignment.id AND hold.released_at IS NULL
        WHERE instance.phase IN ('running', 'notified', 'draining')
        GROUP BY instance.id HAVING count(hold.id) <> instance.quota_held
    """,
    "instances have another quota than they say": """
        SELECT instance.id FROM provisioning_instance instance
        LEFT JOIN provisioning_quotahold hold ON hold.holder = instance.public_id
        WHERE instance.market <> 'reserved' AND instance.quota_held <> coalesce(hold.gpus, 0)
    """,
    "what is inside a reservation holds quota": """
        SELECT instance.id FROM provisioning_instance instance
        JOIN provisioning_quotahold hold ON hold.holder = instance.public_id WHERE instance.market = 'reserved'
    """,
    "offers are sold beyond their GPUs": """
        SELECT offer_id FROM provisioning_capacity WHERE open_ended + peak > gpus
    """,
    "offers miscount what runs without an end": """
        SELECT capacity.offer_id FROM provisioning_capacity capacity LEFT JOIN provisioning_instance instance
            ON instance.offer_id = capacity.offer_id AND instance.market = 'on_demand'
        GROUP BY capacity.offer_id, open_ended HAVING open_ended <> coalesce(sum(quota_held), 0)
    """,
    "reservations run more than they hold": """
        SELECT held.id FROM marketplace_reservation held
        JOIN provisioning_instance instance ON instance.reservation_id = held.id AND instance.quota_held > 0
        WHERE instance.phase NOT IN ('terminating', 'stopping', 'draining')
        GROUP BY held.id, held.gpus HAVING sum(instance.quota_held) > held.gpus
    """,
    "charges were shared beyond what spot paid": """
        SELECT charge.key FROM billing_charge charge JOIN marketplace_lendingshare share ON share.cause = charge.key
        GROUP BY charge.key, charge.amount_micros HAVING sum(share.amount_micros) > charge.amount_micros
    """,
    "orders that waited started twice": """
        SELECT instance_id FROM marketplace_waitingorder WHERE instance_id IS NOT NULL
        GROUP BY instance_id HAVING count(*) > 1
    """,
}


def _faults(end: datetime, entered_s: Sequence[float]) -> list[str]:
    """Return which invariants are violated; an empty list is the expected answer."""
    calendar.count(at=end)
    found = []
    with connection.cursor() as cursor:
        for fault, rows in FAULTS.items():
            cursor.execute(rows)
            if broken := cursor.fetchall():
                found.append(f"{len(broken)} {fault}")
    found += [f"quota {quota} is miscounted" for quota in quotas.miscounted()]
    late = [seconds for seconds in entered_s if seconds > RECALLED_WITHIN.total_seconds()]
    found += [f"{len(late)} holders waited longer than the notice, the last {late[-1]} s"] if late else []
    try:
        check_conserved(at=end)
    except AssertionError as fault:
        found.append(str(fault)[:500] or "hours, money or books are wrong")
    return found
