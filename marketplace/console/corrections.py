"""Corrections of use that has ended, as the operator makes them: proposed by one person, approved by another."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils.translation import gettext as _

from billing import corrections, recording
from billing.errors import BadCorrection, BadUsage
from billing.models import PriceVersion, UsageCorrection, UsageSpan
from billing.recording import Recorded
from marketplace import audit, money
from marketplace.access import Actor
from marketplace.errors import BadOrder, NotFound
from marketplace.models import Organization


def found(search: str) -> QuerySet[UsageSpan]:
    """Return the spans of a resource, or the one with this id, the newest first."""
    spans = UsageSpan.objects.filter(Q(public_id=search.strip()) | Q(resource_id=search.strip()))
    return spans.select_related("organization", "price_version").order_by("-pk")


def span_for(span_id: str) -> UsageSpan:
    """Return any span, or raise NotFound."""
    span = UsageSpan.objects.select_related("organization", "price_version").filter(public_id=span_id).first()
    if span is None:
        raise NotFound
    return span


def correction_for(correction_id: str) -> UsageCorrection:
    """Return any correction, or raise NotFound."""
    row = corrections.listed().filter(public_id=correction_id).first()
    if row is None:
        raise NotFound
    return row


@transaction.atomic
def propose(
    *, actor: Actor, span: UsageSpan, ended_at: datetime, reason: str, key: UUID, at: datetime
) -> UsageCorrection:
    """Propose that a span ended at another moment; somebody else decides."""
    try:
        made = corrections.propose(span=span, ended_at=ended_at, reason=reason, by=actor.user.pk, key=key, at=at)
    except BadCorrection as error:
        raise BadOrder("ended_at", _refused(error)) from error
    if not audit.is_recorded("usage.propose_correction", made.public_id):
        _record(actor, made, "usage.propose_correction")
    return made


@transaction.atomic
def approve(*, actor: Actor, correction: UsageCorrection, at: datetime) -> None:
    """Let the span have ended then; not by whoever proposed it."""
    try:
        corrections.approve(correction=correction, by=actor.user.pk, at=at)
    except BadCorrection as error:
        raise BadOrder("ended_at", _refused(error)) from error
    _record(actor, correction, "usage.correct")


@transaction.atomic
def decline(*, actor: Actor, correction: UsageCorrection, at: datetime) -> None:
    """Leave the span as it is."""
    corrections.decline(correction=correction, by=actor.user.pk, at=at)
    _record(actor, correction, "usage.decline_correction")


@transaction.atomic
def record(*, actor: Actor, told: Sequence[dict[str, Any]], at: datetime) -> int:
    """Take up use that was measured elsewhere and is over, all of it or none; return how many spans are new."""
    by_id = Organization.objects.in_bulk({one["organization"] for one in told}, field_name="public_id")
    prices = dict(
        PriceVersion.objects.filter(public_id__in={one["price"] for one in told}).values_list("public_id", "pk")
    )
    rows = []
    for place, one in enumerate(told):
        if one["organization"] not in by_id or one["price"] not in prices:
            raise BadOrder(f"usage/{place}", _("There is no such organization or price."))
        rows.append(
            Recorded(
                by_id[one["organization"]].pk, one["resource"], one["name"], one["labels"], one["meter"],
                one["quantity"], prices[one["price"]], one["started_at"], one["ended_at"],
            )
        )  # fmt: skip
    try:
        new = recording.record_many(rows, at=at)
    except BadUsage as error:
        raise BadOrder(
            f"usage/{error.place}",
            _("It is in the future, overlaps other use of the same thing, or its price is not for it."),
        ) from error
    for organization in by_id.values() if new else ():
        mine = sum(one["organization"] == organization.public_id for one in told)
        audit.record(
            actor=actor, organization=organization, verb="usage.record", subject_id=organization.public_id,
            after={"spans": mine},
        )  # fmt: skip
    return new


def _refused(error: BadCorrection) -> str:
    if error.field == "span":
        return _("It still runs: stop what it is of.")
    return _(
        "It cannot have ended then: use ends between its start and now, at another moment than before, and before the"
        " next use of the same thing."
    )


def _record(actor: Actor, correction: UsageCorrection, verb: str) -> None:
    moved = correction.amount_micros
    audit.record(
        actor=actor,
        organization=correction.span.organization,
        verb=verb,
        subject_id=correction.public_id,
        after={
            "span": correction.span.public_id,
            "was_ended_at": correction.was_ended_at.isoformat(),
            "ended_at": correction.ended_at.isoformat(),
            "reason": correction.reason,
            "amount": None if moved is None else money.decimal_string(moved),
        },
    )
