"""Payments as the operator sees them: all of them, refunds with a second person, and the processor's statement."""

from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils.translation import gettext as _

from billing import tasks
from billing.errors import RefundTooLarge
from billing.models import BalanceEntry, Dispute, Payment, ProcessorEvent, ReconciliationCase, Refund
from billing.payments import reconciliation, refunds
from marketplace import audit, money
from marketplace.access import Actor
from marketplace.errors import BadOrder, Conflict, NotFound


def listed(*, search: str = "", state: str = "") -> QuerySet[Payment]:
    """Return payments, newest first; `search` is an id (ours or the processor's) or part of a customer's name."""
    found = Payment.objects.select_related("organization", "card").order_by("-pk")
    if state:
        found = found.filter(state=state)
    search = search.strip()
    if not search:
        return found
    by_id = Q(public_id=search) | Q(processor_id=search) | Q(charge_id=search)
    return found.filter(by_id | Q(organization__name__icontains=search))


def payment_for(payment_id: str) -> Payment:
    """Return any payment, or raise NotFound."""
    found = Payment.objects.select_related("organization", "card").filter(public_id=payment_id).first()
    if found is None:
        raise NotFound
    return found


def refunds_of(payment: Payment) -> QuerySet[Refund]:
    """Return what was proposed to refund of a payment, newest first."""
    return refunds.rows().filter(payment=payment)


def proposed() -> QuerySet[Refund]:
    """Return the refunds that wait for a second person."""
    return refunds.rows().filter(state=Refund.State.PROPOSED)


def disputes_of(payment: Payment) -> QuerySet[Dispute]:
    """Return the disputes of a payment."""
    return Dispute.objects.filter(payment=payment).order_by("-pk")


def refund_for(refund_id: str) -> Refund:
    """Return any refund, or raise NotFound."""
    found = refunds.rows().filter(public_id=refund_id).first()
    if found is None:
        raise NotFound
    return found


def case_for(case_id: str) -> ReconciliationCase:
    """Return any case of the reconciliation, or raise NotFound."""
    found = ReconciliationCase.objects.filter(public_id=case_id).first()
    if found is None:
        raise NotFound
    return found


def closed_cases() -> QuerySet[ReconciliationCase]:
    """Return the cases on which both sides agree by now, the last ones first."""
    return ReconciliationCase.objects.filter(closed_at__isnull=False).order_by("-closed_at")


def statement() -> QuerySet[BalanceEntry]:
    """Return the lines of the processor's statement, newest first."""
    return BalanceEntry.objects.order_by("-created_at", "-pk")


def unheard() -> QuerySet[ProcessorEvent]:
    """Return what the processor told us and nobody could handle yet, the oldest first."""
    return ProcessorEvent.objects.filter(handled_at=None, tries__gt=0).order_by("pk")


@transaction.atomic
def propose_refund(
    *, actor: Actor, payment: Payment, amount_micros: int, reason: str, key: UUID, at: datetime
) -> Refund:
    """Propose to give part of a payment back to its card; somebody else decides."""
    try:
        refund = refunds.propose(
            payment=payment, amount_micros=amount_micros, reason=reason, by=actor.user.pk, key=key, at=at
        )
    except RefundTooLarge as error:
        raise BadOrder("amount_micros", why(error)) from error
    if not audit.is_recorded("refund.propose", refund.public_id):
        _record(actor, refund, "refund.propose")
    return refund


@transaction.atomic
def approve_refund(*, actor: Actor, refund: Refund, at: datetime) -> Refund:
    """Let a refund be sent; not by whoever proposed it."""
    try:
        refunds.approve(refund=refund, by=actor.user.pk, at=at)
    except RefundTooLarge as error:
        raise Conflict(
            _("The customer has spent it: %(left)s is left in cash.")
            % {"left": money.shown(error.left_micros, error.currency)}
        ) from error
    _record(actor, refund, "refund.approve")
    return refund


@transaction.atomic
def decline_refund(*, actor: Actor, refund: Refund, at: datetime) -> None:
    """Refund nothing."""
    refunds.decline(refund=refund, by=actor.user.pk, at=at)
    _record(actor, refund, "refund.decline")


@transaction.atomic
def note_case(*, actor: Actor, case: ReconciliationCase, reason: str) -> None:
    """Write down what explains a difference. It stays open until both sides agree."""
    ReconciliationCase.objects.filter(pk=case.pk).update(note=reason, noted_by=actor.user)
    audit.record(
        actor=actor,
        organization=None,
        verb="reconciliation.note",
        subject_id=case.public_id,
        before={"note": case.note},
        after={"note": reason, "key": case.our_key},
    )


def reconcile(*, actor: Actor) -> bool:
    """Read the processor's statement now, and compare; return whether a long one goes on by itself. Network."""
    is_reading: bool = tasks.reconcile()
    audit.record(
        actor=actor, organization=None, verb="reconciliation.run", subject_id="processor",
        after={"open_cases": reconciliation.cases().count()},
    )  # fmt: skip
    return is_reading


def why(error: RefundTooLarge) -> str:
    """Return how much can be refunded, in the reader's language."""
    return _("At most %(left)s of it can be refunded, in whole units of its currency.") % {
        "left": money.shown(max(0, error.left_micros), error.currency)
    }


def _record(actor: Actor, refund: Refund, verb: str) -> None:
    audit.record(
        actor=actor,
        organization=refund.payment.organization,
        verb=verb,
        subject_id=refund.public_id,
        after={
            "payment": refund.payment.public_id,
            "amount": money.decimal_string(refund.amount_micros),
            "reason": refund.reason,
        },
    )
