"""What customers say is wrong with an invoice: nobody asks for it until somebody has decided."""

from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import QuerySet, Sum

from billing import accounts, collecting, moves, notices
from billing.errors import AlreadyDecided, CreditTooLarge, DisputedAlready, KeyReused
from billing.invoicing import crediting
from billing.invoicing.rounding import half_up, minor_unit_micros
from billing.models import CreditProposal, Invoice, InvoiceDispute, InvoiceLine, Notice

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

    Once per key. Raises CreditTooLarge for more than is left of it, DisputedAlready for what is disputed already.
    """
    accounts.lock(organization_id=invoice.organization_id, currency=invoice.currency)
    first = InvoiceDispute.objects.filter(key=key).first()
    if first is not None:
        if (first.invoice_id, first.line_id) != (invoice.pk, line.pk if line else None):
            raise KeyReused(str(key))
        return first
    open_now = InvoiceDispute.objects.filter(invoice=invoice, state=State.OPEN)
    disputed = open_now.aggregate(total=Sum("net_micros"))["total"] or 0
    left = crediting.left_micros(invoice) - disputed
    wanted = min(line.amount_micros if line else left, left) if net_micros is None else net_micros
    most = min(left, line.amount_micros) if line else left
    unit = minor_unit_micros(invoice.currency)
    if not 0 < wanted <= most or wanted % unit:
        raise CreditTooLarge(asked_micros=wanted, left_micros=max(0, most), currency=invoice.currency)
    tax = half_up(invoice.tax_micros * wanted // invoice.net_micros, unit)
    try:
        with transaction.atomic():
            return InvoiceDispute.objects.create(
                invoice=invoice, line=line, net_micros=wanted, gross_micros=wanted + tax, reason=reason,
                opened_by_id=by, opened_at=at, key=key,
            )  # fmt: skip
    except IntegrityError as error:
        if "dispute_open_once_per_line" not in str(error):
            raise
        raise DisputedAlready("it is disputed already") from error


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
