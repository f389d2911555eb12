"""Guaranteed hours are judged by themselves: each some minutes after it ended, so credits come within the hour."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta

import structlog
from django.db.models import F

from billing.outcomes import shortfalls
from billing.outcomes.curve import THROUGHPUT, Hour
from billing.outcomes.shortfalls import Guaranteed
from billing.sla import availability, terms
from billing.sla.availability import Seen
from marketplace.guarantees.guarding import HOUR
from marketplace.models import Guarantee
from marketplace.sla import evidence
from provisioning import counters
from provisioning.models import Phase

log = structlog.get_logger("marketplace.guarantees")

# How long after the end of an hour its last reports are waited for.
GRACE = timedelta(minutes=5)
MILLI = 1000


def judge_due(*, at: datetime, limit: int) -> int:
    """Judge the hours that are over, the oldest first; return how many. Safe to repeat and to run twice at once."""
    due = Guarantee.objects.filter(is_judged=False, judged_until__lte=at - HOUR - GRACE)
    related = "instance__project__organization", "instance__offer__supplier", "version__contract__seller"
    by_hour: dict[datetime, list[Guarantee]] = defaultdict(list)
    for one in due.select_related(*related).order_by("judged_until", "pk")[:limit]:
        by_hour[one.judged_until].append(one)
    return sum(_judge_hour(hour, found, at=at) for hour, found in sorted(by_hour.items()))


def _judge_hour(begins: datetime, found: Iterable[Guarantee], *, at: datetime) -> int:
    """Judge one hour of several guarantees; a fixed number of queries for what was seen of all of them."""
    rules = terms.in_force(begins)
    assert rules is not None, "there were service levels before there were guarantees"
    keys = [one.instance.public_id for one in found]
    cases = {case.instance.pk: case.seen for case in evidence.between(keys, begins, begins + HOUR, terms=rules)}
    judged = 0
    for one in found:
        try:
            judged += _judge(one, _hour(one, cases[one.instance_id], rules), at=at)
        except Exception:  # one that cannot be judged must not keep the others from it
            log.exception("not judged", guarantee=one.public_id, hour=begins.isoformat())
    return judged


def _hour(one: Guarantee, seen: Seen, rules: terms.Terms) -> Hour:
    verdict = availability.judge(seen, rules)
    guarantee = one.version.terms["guarantee"]
    increase, read_ms = None, 0
    if guarantee["metric"] == THROUGHPUT:
        increase, read_ms = _read(one, guarantee["counter"], seen)
    return Hour(
        begins=seen.begins, ends=seen.ends, up_ms=verdict.up_ms, down_ms=verdict.down_ms,
        degraded_ms=verdict.degraded_ms, increase_milli=increase, read_ms=read_ms, paid_micros=seen.paid_micros,
        returned_micros=min(seen.returned_micros, seen.paid_micros),
    )  # fmt: skip


def _read(one: Guarantee, name: str, seen: Seen) -> tuple[int | None, int]:
    """By how much a counter grew in an hour, in thousandths, and for how long of it somebody read it."""
    found = counters.samples(one.instance, name, since=seen.begins, until=seen.ends).values_list("since", "at")
    within = [(max(since, seen.begins), min(at, seen.ends)) for since, at in found]
    read_ms = availability.total_ms(availability.joined(within))
    if not within:
        return None, 0
    return counters.increase(one.instance, name, since=seen.begins, until=seen.ends) * MILLI, read_ms


def _judge(one: Guarantee, hour: Hour, *, at: datetime) -> bool:
    """Post an hour and go on to the next: neither one that was posted before, nor one that begins after its end."""
    instance, contract = one.instance, one.version.contract
    is_under = one.ended_at is None or hour.begins < one.ended_at
    if is_under and (hour.up_ms or hour.down_ms):
        shortfalls.post(
            guaranteed=Guaranteed(
                guarantee=one.public_id,
                version=one.version.public_id,
                organization=instance.project.organization,
                resource_id=instance.public_id,
                resource_name=instance.name,
                project=instance.project.public_id,
                terms=one.version.terms["guarantee"],
                supplier=contract.seller if contract.seller.is_supplier else None,
            ),
            hour=hour,
            at=at,
        )
    over = instance.phase == Phase.TERMINATED and not (hour.up_ms or hour.down_ms)
    ended = one.ended_at or (hour.ends if over else None)
    return bool(
        Guarantee.objects.filter(pk=one.pk, judged_until=hour.begins).update(
            judged_until=F("judged_until") + HOUR, ended_at=ended,
            is_judged=ended is not None and ended <= hour.ends,
        )
    )  # fmt: skip
