"""What customers say is wrong with an invoice: nobody asks for it until somebody has decided.

Once, and in time: what was rejected cannot be disputed again, so that nobody holds an invoice off for ever. An operator
who thinks otherwise later proposes a credit (`crediting.propose`), which needs no dispute.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import QuerySet, Sum

from billing import accounts, collecting, moves, notices, repeats
from billing.errors import AlreadyDecided, CreditTooLarge, DisputedAlready, DisputedTooLate, RejectedAlready
from billing.invoicing import crediting
from billing.invoicing.rounding import half_up, minor_unit_micros
from billing.models import CreditProposal, Invoice, InvoiceDispute, InvoiceLine, Notice

# How long after its issue an invoice can be disputed; docs/payments.md says so to customers.
DISPUTED_WITHIN = timedelta(days=60)

State = InvoiceDispute.State
MOVES: Mapping[State, tuple[State, ...]] = {
    State.OPEN: (State.UPHELD, State.REJECTED, State.WITHDRAWN),
    State.UPHELD: (),
    State.REJECTED: (),
    State.WITHDRAWN: (),
}


@transaction.atomic
def open_dispute(
    *,
    invoice: Invoice,
    line: InvoiceLine | None,
    net_micros: int | None,
    reason: str,
    by: int,
    key: UUID,
    at: datetime,
) -> InvoiceDispute:
    """Say that an amount before tax of an invoice, or of one of its lines, is wrong; all of it where none is named.

    Once per key. Raises CreditTooLarge for more than is left of it, DisputedAlready for what is disputed already,
    RejectedAlready for what was decided, DisputedTooLate for an invoice that is older than `DISPUTED_WITHIN`.
    """
    accounts.lock(organization_id=invoice.organization_id, currency=invoice.currency)
    first = repeats.find(
        InvoiceDispute, key, invoice_id=invoice.pk, line_id=line.pk if line else None, asked_micros=net_micros,
        reason=reason,
    )  # fmt: skip
    if first is not None:
        return first
    if at > invoice.issued_at + DISPUTED_WITHIN:
        raise DisputedTooLate(days=DISPUTED_WITHIN.days)
    most = _disputable_micros(invoice, line)
    wanted = most if net_micros is None else net_micros
    unit = minor_unit_micros(invoice.currency)
    if not 0 < wanted <= most or wanted % unit:
        raise CreditTooLarge(asked_micros=wanted, left_micros=max(0, most), currency=invoice.currency)
    tax = half_up(invoice.tax_micros * wanted // invoice.net_micros, unit)
    try:
        with transaction.atomic():
            made = InvoiceDispute.objects.create(
                invoice=invoice, line=line, net_micros=wanted, gross_micros=wanted + tax, reason=reason,
                asked_micros=net_micros, opened_by_id=by, opened_at=at, key=key,
            )  # fmt: skip
    except IntegrityError as error:
        if "dispute_open_once_per_line" not in str(error):
            raise
        raise DisputedAlready("it is disputed already") from error
    collecting.review(organization=invoice.organization, at=at)
    return made


def _disputable_micros(invoice: Invoice, line: InvoiceLine | None) -> int:
    """Return how much before tax can be disputed: what is left, less what is open and what was rejected.

    Raises RejectedAlready where nothing but what was rejected is left.
    """
    found = InvoiceDispute.objects.filter(invoice=invoice)
    open_now = found.filter(state=State.OPEN).aggregate(total=Sum("net_micros"))["total"] or 0
    rejected = found.filter(state=State.REJECTED)
    left = crediting.left_micros(invoice) - open_now
    most = left - (rejected.aggregate(total=Sum("net_micros"))["total"] or 0)
    if line is not None:
        left = min(left, line.amount_micros)
        of_line = rejected.filter(line=line).aggregate(total=Sum("net_micros"))["total"] or 0
        most = min(most, line.amount_micros - of_line)
    if most <= 0 < left:
        raise RejectedAlready("it was decided that this is right")
    return most


@transaction.atomic
def uphold(*, dispute: InvoiceDispute, answer: str, by: int, at: datetime) -> CreditProposal:
    """Agree: propose the credit, which another person has to approve. Until then nobody asks for the amount either."""
    invoice = dispute.invoice
    accounts.lock(organization_id=invoice.organization_id, currency=invoice.currency)
    proposal = crediting.propose(
        invoice=invoice, net_micros=dispute.net_micros, reason=f"Dispute: {dispute.reason}"[:200], by=by,
        key=dispute.key, at=at,
    )  # fmt: skip
    _move(dispute, State.UPHELD, by=by, at=at, answer=answer, proposal=proposal)
    return proposal


@transaction.atomic
def reject(*, dispute: InvoiceDispute, answer: str, by: int, at: datetime) -> None:
    """Disagree, with a reason that the customer reads; the amount is asked for again."""
    _gate(dispute)
    _move(dispute, State.REJECTED, by=by, at=at, answer=answer)
    collecting.review(organization=dispute.invoice.organization, at=at)


@transaction.atomic
def withdraw(*, dispute: InvoiceDispute, by: int, at: datetime) -> None:
    """Take it back; the amount is asked for again."""
    _gate(dispute)
    _move(dispute, State.WITHDRAWN, by=by, at=at)
    collecting.review(organization=dispute.invoice.organization, at=at)


def listed() -> QuerySet[InvoiceDispute]:
    """Return all disputes with what is shown of them, the newest first."""
    found = InvoiceDispute.objects.select_related(
        "invoice__organization", "line", "opened_by", "decided_by", "proposal__credit_note"
    )
    return found.order_by("-pk")


def _gate(dispute: InvoiceDispute) -> None:
    accounts.lock(organization_id=dispute.invoice.organization_id, currency=dispute.invoice.currency)


def _move(dispute: InvoiceDispute, state: State, *, by: int, at: datetime, **facts: object) -> None:
    if not moves.move(dispute, state, MOVES, decided_by_id=by, decided_at=at, **facts):
        raise AlreadyDecided("somebody decided about this already")
    dispute.refresh_from_db()
    if state == State.WITHDRAWN:
        return
    told = {
        "number": dispute.invoice.number, "answer": dispute.answer, "currency": dispute.invoice.currency,
        "left_micros": str(dispute.gross_micros),
    }  # fmt: skip
    kind = Notice.Kind.DISPUTE_UPHELD if state == State.UPHELD else Notice.Kind.DISPUTE_REJECTED
    news = notices.News(dispute.invoice.organization_id, kind, f"dispute:{dispute.public_id}", told)
    notices.tell([news], at=at)
