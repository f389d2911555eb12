"""Correcting use that has ended: when it really did, with a reason and a second person.

The difference moves at the approval, as charges and refunds do. Tiers and
commitments of its months, the supplier's part, revenue by the day and the next
document take it up as they take up everything: they work the whole out anew.
"""

from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import Q, QuerySet, Sum

from billing import accounts, adjusting, charging, decisions, rating, repeats, runway
from billing.errors import AlreadyProposed, BadCorrection
from billing.models import Charge, UsageCorrection, UsageSpan
from billing.months import month_of

State = UsageCorrection.State


@transaction.atomic
def propose(*, span: UsageSpan, ended_at: datetime, reason: str, by: int, key: UUID, at: datetime) -> UsageCorrection:
    """Propose another end for a span that ended, once per key; nothing moves yet. `by` is a person's id.

    Raises BadCorrection for an end that cannot be, AlreadyProposed while another one waits.
    """
    wanted = rating.whole_millisecond(ended_at)
    accounts.lock(organization_id=span.organization_id, currency=span.price_version.currency)
    first = repeats.find(UsageCorrection, key, span_id=span.pk, ended_at=wanted, reason=reason)
    if first is not None:
        return first
    span.refresh_from_db()
    was_ended_at = _checked(span, wanted, at=at)
    if UsageCorrection.objects.filter(span=span, state=State.PROPOSED).exists():
        raise AlreadyProposed("another correction of it waits for a second person")
    return UsageCorrection.objects.create(
        span=span, was_ended_at=was_ended_at, ended_at=wanted, reason=reason, proposed_by_id=by, proposed_at=at, key=key
    )


@transaction.atomic
def approve(*, correction: UsageCorrection, by: int, at: datetime) -> None:
    """Let a span have ended when a proposal says, and move the difference. `by` is another person than the proposer.

    Raises BadCorrection where the span has changed since it was proposed.
    """
    span = UsageSpan.objects.select_related("organization", "price_version").get(pk=correction.span_id)
    currency = span.price_version.currency
    accounts.lock(organization_id=span.organization_id, currency=currency)
    decisions.check_person(correction, State.APPROVED, by=by)
    waits = UsageCorrection.objects.filter(pk=correction.pk, state=State.PROPOSED).exists()
    span.refresh_from_db(fields=["ended_at", "charged_micros", "charged_through"])
    if waits and span.ended_at != correction.was_ended_at:
        raise BadCorrection("ended_at", "it was corrected otherwise meanwhile")
    if waits:
        _checked(span, correction.ended_at, at=at)
        charging.charge_locked([span.pk], through=correction.was_ended_at)
        charging.correct_locked(correction)
        UsageSpan.objects.filter(pk=span.pk).update(is_accrued=False)
    decisions.decide(correction, State.APPROVED, by=by, at=at, amount_micros=_moved(correction))
    earliest = month_of(min(correction.ended_at, correction.was_ended_at))
    since = min(adjusting.window_start(at), earliest)
    payer = accounts.lock(organization_id=span.organization_id, currency=currency)
    adjusting.bring_up_to_date({span.organization_id: payer}, since=since, at=at)
    runway.refresh(organization=span.organization, at=at)


@transaction.atomic
def decline(*, correction: UsageCorrection, by: int, at: datetime) -> None:
    """Leave a span as it is; whoever proposed may take the proposal back in this way too."""
    decisions.decide(correction, State.DECLINED, by=by, at=at)


def listed() -> QuerySet[UsageCorrection]:
    """Return all corrections with what is shown of them, the newest first."""
    found = UsageCorrection.objects.select_related(
        "span__organization", "span__price_version", "proposed_by", "decided_by"
    )
    return found.order_by("-pk")


def _moved(correction: UsageCorrection) -> int:
    charges = Charge.objects.filter(correction=correction)
    return charges.aggregate(total=Sum("amount_micros", default=0))["total"] or 0


def _checked(span: UsageSpan, ended_at: datetime, *, at: datetime) -> datetime:
    """Return when a span ended, if it may have ended at another moment instead."""
    if span.ended_at is None:
        raise BadCorrection("span", "it still runs; stop what it is of")
    if ended_at == span.ended_at:
        raise BadCorrection("ended_at", "that is when it ended already")
    if not span.started_at <= ended_at <= at:
        raise BadCorrection("ended_at", "use ends between its start and now")
    others = UsageSpan.objects.filter(resource_id=span.resource_id, meter=span.meter).exclude(pk=span.pk)
    later = others.filter(Q(ended_at=None) | Q(ended_at__gt=span.ended_at), started_at__lt=ended_at)
    if later.filter(started_at__gte=span.ended_at).exists():
        raise BadCorrection("ended_at", "another use of the same thing had begun by then")
    return span.ended_at
