"""What the availability of instances in a month follows from: read in a few queries for many at once."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from math import floor

from django.db.models import Q, Sum

from billing import adjusting, credits, floating
from billing.models import SlaVerdict, UsageSpan
from billing.months import month_of, next_month
from billing.outcomes import shortfalls
from billing.sla import availability
from billing.sla.availability import Seen, Stretch
from billing.sla.terms import Terms
from marketplace.sla import history, reserved
from marketplace.sla.history import Move, Told
from provisioning.models import Instance, InstanceEvent, Interruption

EVER_SINCE, EVER = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Case:
    """An instance with what was seen of it in a month."""

    instance: Instance
    seen: Seen


def cases(resource_ids: Collection[str], *, month: datetime, terms: Terms, at: datetime) -> list[Case]:
    """Return what was seen of these instances in a month, as far as it has gone by `at`. Fourteen queries at most."""
    return between(resource_ids, month, min(next_month(month), max(month, at)), terms=terms)


def between(resource_ids: Collection[str], begins: datetime, ends: datetime, *, terms: Terms) -> list[Case]:
    """Return what was seen of these instances from one moment of a month to another. Fourteen queries at most."""
    found = Instance.objects.filter(public_id__in=resource_ids).select_related("project__organization", "offer")
    rows = list(found.order_by("public_id"))
    spans, covers = _spans(resource_ids, begins, ends), _covers(resource_ids, begins)
    paid = _paid(spans, begins, ends)
    lost = reserved.lost(_covered_by(spans, covers), begins, ends)
    others = reserved.beside(rows, lost, begins, ends)
    if others:
        keys = [row.public_id for row in others]
        spans |= _spans(keys, begins, ends)
        covers |= _covers(keys, begins)
    everybody = [*rows, *others]
    moves, notes = _events([row.pk for row in everybody], before=ends)
    told = {
        row.pk: history.told(moves[row.pk], until=ends, failed_counts_for=terms.failed_counts_for) for row in everybody
    }
    uses = [
        use
        for row in everybody
        for use in _uses(row, spans[row.public_id], told[row.pk], covers.get(row.public_id, ""), (begins, ends))
    ]
    ahead = reserved.paid_micros(uses, lost, begins, ends)
    returned = _returned([row.pk for row in rows], begins, ends)
    fell_short = shortfalls.credited_micros(resource_ids=list(resource_ids), since=begins, until=ends)
    faulted = credits.compensated(attempt_key(row) for row in rows)
    made = []
    for row in rows:
        cost = paid.get(row.public_id, 0) + ahead.get(row.pk, 0)
        # A fault that ended an attempt at a task gave back all that it had cost, whenever that was.
        whole = min(cost, faulted.get(attempt_key(row), 0))
        seen = Seen(
            begins=begins,
            ends=ends,
            expected=_touching(told[row.pk].expected, begins),
            down=_touching(told[row.pk].down, begins),
            measured=tuple((span.started_at, span.ended_at or ends) for span in spans[row.public_id]),
            noted=tuple(note for note in notes[row.pk] if note + terms.degraded_for > begins),
            paid_micros=cost,
            returned_micros=returned[row.pk] + fell_short.get(row.public_id, 0) + whole,
        )
        made.append(Case(row, seen))
    return made


def attempt_key(instance: Instance) -> str:
    """Return by which key the cost of an attempt at a task is given back that a fault of ours ended."""
    return f"attempt:{instance.public_id}"


def given_back(instances: Sequence[Instance]) -> dict[int, int]:
    """Return what of each one's cost came back by now: for interruptions, hours below a floor, and months judged.

    Three queries.
    """
    names = [instance.public_id for instance in instances]
    found = _returned([instance.pk for instance in instances], EVER_SINCE, EVER)
    hours = shortfalls.credited_micros(resource_ids=names, since=EVER_SINCE, until=EVER)
    judged = SlaVerdict.objects.filter(resource_id__in=names).order_by().values_list("resource_id")
    months = dict(judged.annotate(total=Sum("credit_micros")))
    return {one.pk: found[one.pk] + hours.get(one.public_id, 0) + months.get(one.public_id, 0) for one in instances}


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


def _covers(resource_ids: Collection[str], begins: datetime) -> dict[str, str]:
    """Return what covered the last use of each before a moment, as it may be down since then. One query."""
    before = UsageSpan.objects.filter(
        resource_id__in=resource_ids, meter=UsageSpan.Meter.GPU, started_at__lt=begins,
        ended_at__gt=begins - reserved.LOOKED_BACK,
    )  # fmt: skip
    rows = before.order_by("resource_id", "-started_at").distinct("resource_id")
    return dict(rows.values_list("resource_id", "covered_by"))


def _covered_by(spans: Mapping[str, Sequence[UsageSpan]], covers: Mapping[str, str]) -> set[str]:
    return {span.covered_by for each in spans.values() for span in each} | set(covers.values()) - {""}


def _paid(spans: Mapping[str, Sequence[UsageSpan]], begins: datetime, ends: datetime) -> dict[str, int]:
    """What each cost between two moments of a month: at base rates as charges have it, by what the month made of them.

    Tiers and commitments change what all use of a price version costs together, so each use of it by the same part.
    """
    rows = [span for each in spans.values() for span in each]
    until = floating.amounts_micros([(span, min(ends, span.ended_at or ends)) for span in rows])
    before = floating.amounts_micros([(span, begins) for span in rows])
    parts = adjusting.parts_of_base(rows, month=month_of(begins))
    exact: dict[str, Fraction] = defaultdict(Fraction)
    for span, whole, less in zip(rows, until, before, strict=True):
        exact[span.resource_id] += (whole - less) * parts.get(
            (span.organization_id, span.price_version_id), Fraction(1)
        )
    return {resource_id: floor(micros) for resource_id, micros in exact.items()}


def _uses(
    instance: Instance, spans: Sequence[UsageSpan], told: Told, before: str, month: Stretch
) -> list[reserved.Use]:
    """Return when an instance ran in each of its reservations, or should have.

    While it is down it is where it ran last (`before`, at first), until it runs elsewhere.
    """
    begins, ends = month
    up = availability.joined((span.started_at, span.ended_at or ends) for span in spans)
    should = availability.joined([*told.expected, *told.down])
    down = availability.without(should, up)
    stays: dict[str, list[Stretch]] = defaultdict(list)
    edges = [*((span.started_at, span.covered_by) for span in spans), (EVER, "")]
    since, where = begins, before or (spans[0].covered_by if spans else "")
    for moment, covered_by in edges:
        stays[where].append((since, moment))
        since, where = max(begins, moment), covered_by
    ran = [(span.started_at, span.ended_at or EVER) for span in spans]
    there = availability.joined([*ran, *should])
    return [
        reserved.Use(
            instance,
            name,
            tuple(part for stay in stayed for part in availability.within(there, *stay)),
            tuple(part for stay in stayed for part in availability.within(down, *stay)),
        )
        for name, stayed in stays.items()
        if name
    ]


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
