"""Which rows of ours are events, who may see them, and what each says.

A new kind of event is one entry here, or in `money` or `outcomes`; a trigger in a migration; and a line in
docs/events.md. Rows that are only ever added are noted as they are (`marketplace_note`); of rows that change, each
change of state is (`marketplace_note_state`).
"""

from collections.abc import Collection, Iterable
from typing import Any

from billing.models import Invoice
from marketplace.events import agreements, money, outcomes
from marketplace.events.reading import Source, moment
from marketplace.models import Event, ReservationEvent, ReservationState, Shortfall
from marketplace.money import decimal_string
from provisioning.models import InstanceEvent, Interruption, Phase

TOLD = {Phase.NOTIFIED, Phase.DRAINING, Phase.INTERRUPTED}


def _instances(rows: Collection[int]) -> Iterable[Event]:
    """One query, and one for interruptions where one was told."""
    found = list(InstanceEvent.objects.filter(pk__in=rows).select_related("instance__project", "instance__offer"))
    told = {row.instance_id for row in found if row.new_phase in TOLD}
    announced = Interruption.objects.filter(instance__in=told).exclude(notice_at=None).order_by("pk") if told else []
    interruptions = {(one.instance_id, one.run): one for one in announced}
    for row in found:
        instance, is_move = row.instance, row.kind == InstanceEvent.Kind.PHASE
        data: dict[str, Any] = {
            "name": instance.name, "offer": instance.offer.slug, "market": instance.market, "gpus": instance.gpus,
            "run": row.run, "old_phase": row.old_phase or None, "phase": row.new_phase, "reason": row.reason or None,
            "message": row.message,
        }  # fmt: skip
        one = interruptions.get((row.instance_id, row.run))
        if is_move and row.new_phase in TOLD and one is not None:
            data["interruption"] = {
                "id": one.public_id, "reason": one.reason, "min_notice_s": one.min_notice_s,
                "notice_at": moment(one.notice_at), "deadline_at": moment(one.deadline_at),
            }  # fmt: skip
        yield Event(
            organization_id=instance.project.organization_id, project=instance.project, at=row.at, row=row.pk,
            type=f"instance.{row.new_phase if is_move else 'health'}", subject_id=instance.public_id, data=data,
        )  # fmt: skip


def _risks(rows: Collection[int]) -> Iterable[Event]:
    """One query."""
    found = Interruption.objects.filter(pk__in=rows).select_related("instance__project", "instance__offer")
    for row in found:
        instance = row.instance
        data = {
            "name": instance.name, "offer": instance.offer.slug, "market": instance.market, "gpus": instance.gpus,
            "run": row.run, "level": "elevated",
            "interruption": {"id": row.public_id, "min_notice_s": row.min_notice_s},
        }  # fmt: skip
        yield Event(
            organization_id=instance.project.organization_id, project=instance.project, row=row.pk,
            at=row.advised_at or row.created_at,
            type="risk.elevated", subject_id=instance.public_id, data=data,
        )  # fmt: skip


def _reservations(rows: Collection[int]) -> Iterable[Event]:
    """Moves alone: a note moves nothing. One query."""
    found = ReservationEvent.objects.filter(pk__in=rows).select_related("reservation__project", "reservation__offer")
    for row in found:
        if row.old_state == row.new_state:
            continue
        kept = row.reservation
        data = {
            "offer": kept.offer.slug, "gpus": kept.gpus, "starts_at": moment(kept.starts_at),
            "ends_at": moment(kept.ends_at), "old_state": row.old_state or None, "state": row.new_state,
            "message": row.message,
        }  # fmt: skip
        yield Event(
            organization_id=kept.project.organization_id, project=kept.project, at=row.at, row=row.pk,
            type=f"reservation.{row.new_state}", subject_id=kept.public_id, data=data,
        )  # fmt: skip


def _shortfalls(rows: Collection[int]) -> Iterable[Event]:
    """One query."""
    for row in Shortfall.objects.filter(pk__in=rows).select_related("reservation__project"):
        kept = row.reservation
        data = {
            "hour": moment(row.hour), "gpus": row.gpus, "refund": decimal_string(row.refund_micros),
            "currency": kept.currency, "message": row.message,
        }  # fmt: skip
        yield Event(
            organization_id=kept.project.organization_id, project=kept.project, at=row.seen_at, row=row.pk,
            type="reservation.shortfall", subject_id=kept.public_id, data=data,
        )  # fmt: skip


def _invoices(rows: Collection[int]) -> Iterable[Event]:
    """One query."""
    for row in Invoice.objects.filter(pk__in=rows):
        data = {
            "number": row.number, "total": decimal_string(row.total_micros), "due": decimal_string(row.due_micros),
            "currency": row.currency, "period_start": moment(row.period_start), "period_end": moment(row.period_end),
        }  # fmt: skip
        yield Event(
            organization_id=row.organization_id, at=row.issued_at, row=row.pk, subject_id=row.public_id, data=data,
            type="credit_note.issued" if row.is_credit_note else "invoice.issued",
        )  # fmt: skip


SOURCES: dict[str, Source] = {
    "instance": Source(
        "instance.view", (*(f"instance.{phase}" for phase in Phase.values), "instance.health"), _instances
    ),
    "risk": Source("instance.view", ("risk.elevated",), _risks),
    "reservation": Source(
        "reservation.view", tuple(f"reservation.{state}" for state in ReservationState.values),
        _reservations,
    ),
    "shortfall": Source("reservation.view", ("reservation.shortfall",), _shortfalls),
    "invoice": Source("invoice.view", ("invoice.issued", "credit_note.issued"), _invoices),
    **money.SOURCES,
    **outcomes.SOURCES,
    **agreements.SOURCES,
    # Made at once and for one endpoint, when somebody tries it.
    "test": Source("webhook.view", ("webhook.test",), lambda rows: ()),
}  # fmt: skip
TYPES: tuple[str, ...] = tuple(name for source in SOURCES.values() for name in source.types)


def are_types(patterns: Iterable[str]) -> list[str]:
    """Return those that name no type: `instance.failed` is one, `instance.*` all of a kind."""
    kinds = {name.partition(".")[0] + ".*" for name in TYPES}
    return [pattern for pattern in patterns if pattern not in TYPES and pattern not in kinds]


def matches(patterns: Collection[str], name: str) -> bool:
    """Return whether a type is among these patterns; none at all stand for every type."""
    return not patterns or name in patterns or name.partition(".")[0] + ".*" in patterns
