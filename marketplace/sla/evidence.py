"""What the availability of instances in a month follows from: read in a few queries for many at once."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from math import floor

from django.db.models import Q, Sum

from billing import floating
from billing.models import UsageSpan
from billing.months import next_month
from billing.outcomes import shortfalls
from billing.sla import availability
from billing.sla.availability import Seen
from billing.sla.terms import Terms
from marketplace import holdings
from marketplace.models import ReservationStrip
from marketplace.sla import history
from marketplace.sla.history import Move
from provisioning.models import Instance, InstanceEvent, Interruption

HOUR_MS = 3_600_000
EVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Case:
    """An instance with what was seen of it in a month."""

    instance: Instance
    seen: Seen


def cases(resource_ids: Collection[str], *, month: datetime, terms: Terms, at: datetime) -> list[Case]:
    """Return what was seen of these instances in a month, as far as it has gone by `at`. Eight queries at most."""
    return between(resource_ids, month, min(next_month(month), max(month, at)), terms=terms)


def between(resource_ids: Collection[str], begins: datetime, ends: datetime, *, terms: Terms) -> list[Case]:
    """Return what was seen of these instances from one moment of a month to another. Eight queries at most."""
    found = Instance.objects.filter(public_id__in=resource_ids).select_related("project__organization", "offer")
    rows = list(found.order_by("public_id"))
    spans = _spans(resource_ids, begins, ends)
    paid = _paid(spans, begins, ends)
    moves, notes = _events([row.pk for row in rows], before=ends)
    strips = _strips(rows, begins, ends)
    returned = _returned([row.pk for row in rows], begins, ends)
    fell_short = shortfalls.credited_micros(resource_ids=list(resource_ids), since=begins, until=ends)
    made = []
    for row in rows:
        told = history.told(moves[row.pk], until=ends, failed_counts_for=terms.failed_counts_for)
        seen = Seen(
            begins=begins,
            ends=ends,
            expected=_touching(told.expected, begins),
            down=_touching(told.down, begins),
            measured=tuple((span.started_at, span.ended_at or ends) for span in spans[row.public_id]),
            noted=tuple(note for note in notes[row.pk] if note + terms.degraded_for > begins),
            paid_micros=paid[row.public_id] + _paid_ahead(row, spans[row.public_id], told, strips[row.reservation_id]),
            returned_micros=returned[row.pk] + fell_short.get(row.public_id, 0),
        )
        made.append(Case(row, seen))
    return made


def _touching(stretches: Sequence[tuple[datetime, datetime]], month: datetime) -> tuple[tuple[datetime, datetime], ...]:
    return tuple((begin, end) for begin, end in stretches if end > month and begin < end)


def _spans(resource_ids: Collection[str], month: datetime, ends: datetime) -> dict[str, list[UsageSpan]]:
    there = Q(ended_at=None) | Q(ended_at__gt=month)
    rows = UsageSpan.objects.filter(
        there, resource_id__in=resource_ids, meter=UsageSpan.Meter.GPU, started_at__lt=ends
    ).select_related("price_version")
    found: dict[str, list[UsageSpan]] = defaultdict(list)
    for row in rows.order_by("started_at"):
        found[row.resource_id].append(row)
    return found


def _paid(spans: dict[str, list[UsageSpan]], month: datetime, ends: datetime) -> dict[str, int]:
    """What each cost in the month: the whole until its end less the whole until its beginning, as invoices have it."""
    rows = [span for each in spans.values() for span in each]
    until = floating.amounts_micros([(span, min(ends, span.ended_at or ends)) for span in rows])
    before = floating.amounts_micros([(span, month) for span in rows])
    paid: dict[str, int] = defaultdict(int)
    for span, whole, less in zip(rows, until, before, strict=True):
        paid[span.resource_id] += whole - less
    return paid


def _strips(rows: Sequence[Instance], month: datetime, ends: datetime) -> dict[int | None, list[ReservationStrip]]:
    """Return the hours that reservations hold in a month, cut to it, by the reservation of these instances."""
    found: dict[int | None, list[ReservationStrip]] = defaultdict(list)
    keys = {row.reservation_id for row in rows if row.reservation_id is not None}
    if keys:
        strips = ReservationStrip.objects.filter(reservation__in=keys, starts_at__lt=ends, ends_at__gt=month)
        for strip in strips:
            found[strip.reservation_id] += holdings.clipped([strip], month, ends)
    return found


def _paid_ahead(
    instance: Instance, spans: Sequence[UsageSpan], told: history.Told, strips: Sequence[ReservationStrip]
) -> int:
    """What had been paid for the reserved hours in which it ran or should have: its GPUs at what one had cost then.

    Hours of several prices count with their average, as nobody can tell which GPU is whose.
    """
    covered = [(span.started_at, span.ended_at or EVER) for span in spans if span.covered_by]
    if not covered or not strips:
        return 0
    stretches = availability.joined([*covered, *told.expected, *told.down])
    gpus, exact = instance.replicas * instance.gpus_per_replica, Fraction(0)
    for step in holdings.steps(strips):
        here = [one for one in strips if one.starts_at <= step.starts_at < one.ends_at]
        cost = Fraction(sum(one.gpus * one.paid_micros for one in here), step.gpus)
        inside = [(max(begin, step.starts_at), min(end, step.ends_at)) for begin, end in stretches]
        lasted = availability.total_ms((begin, end) for begin, end in inside if begin < end)
        exact += min(gpus, step.gpus) * cost * lasted / HOUR_MS
    return floor(exact)


def _events(keys: Sequence[int], *, before: datetime) -> tuple[dict[int, list[Move]], dict[int, list[datetime]]]:
    moves: dict[int, list[Move]] = defaultdict(list)
    notes: dict[int, list[datetime]] = defaultdict(list)
    rows = InstanceEvent.objects.filter(instance__in=keys, at__lt=before).order_by("at", "pk")
    for key, kind, at, phase, reason in rows.values_list("instance_id", "kind", "at", "new_phase", "reason"):
        if kind == InstanceEvent.Kind.HEALTH:
            notes[key].append(at)
        else:
            moves[key].append(Move(at, phase, reason))
    return moves, notes


def _returned(keys: Sequence[int], month: datetime, ends: datetime) -> dict[int, int]:
    """What was given back of that time for interruptions already."""
    rows = Interruption.objects.filter(instance__in=keys, ended_at__gte=month, ended_at__lt=ends)
    totals = rows.order_by().values_list("instance").annotate(total=Sum("credited_micros"))
    return defaultdict(int, {key: total or 0 for key, total in totals})
