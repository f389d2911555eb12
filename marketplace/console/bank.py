"""Money by bank and disputes of customers, as the operator handles them."""

from datetime import date, datetime
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet
from django.utils.translation import gettext as _

from billing import bank, disputes
from billing.errors import BadBankTransfer, CreditTooLarge, InsufficientFunds
from billing.models import BankTransfer, Invoice, InvoiceDispute
from marketplace import audit, money
from marketplace.access import Actor
from marketplace.errors import BadOrder, Conflict, NotFound
from marketplace.models import Organization


def transfers(organization: Organization | None = None) -> QuerySet[BankTransfer]:
    """Return bank transfers, the newest first: of an organization, or all."""
    found = BankTransfer.objects.select_related("organization", "invoice", "proposed_by", "decided_by").order_by("-pk")
    return found.filter(organization=organization) if organization else found


def transfer_for(transfer_id: str) -> BankTransfer:
    """Return any bank transfer, or raise NotFound."""
    found = transfers().filter(public_id=transfer_id).first()
    if found is None:
        raise NotFound
    return found


@transaction.atomic
def record(
    *,
    actor: Actor,
    organization: Organization,
    direction: str,
    amount_micros: int,
    bank_reference: str,
    value_on: date,
    invoice: Invoice | None,
    note: str,
    key: UUID,
    at: datetime,
) -> BankTransfer:
    """Record a line of the bank's statement; somebody else approves it."""
    try:
        row = bank.record(
            organization=organization, direction=BankTransfer.Direction(direction), amount_micros=amount_micros,
            bank_reference=bank_reference, value_on=value_on, invoice=invoice, note=note, by=actor.user.pk, key=key,
            at=at,
        )  # fmt: skip
    except BadBankTransfer as error:
        raise BadOrder(error.field, str(_SAID[error.field]())) from error
    if not audit.is_recorded("bank_transfer.record", row.public_id):
        _record(actor, row, "bank_transfer.record")
    return row


_SAID = {
    "amount_micros": lambda: _("A bank transfers whole minor units of the currency, such as cents."),
    "value_on": lambda: _("This day has not come yet."),
    "invoice": lambda: _("It is no invoice of this customer, or the money goes back."),
    "bank_reference": lambda: _("This line of the bank was recorded before."),
}


@transaction.atomic
def approve(*, actor: Actor, row: BankTransfer, at: datetime) -> None:
    """Let the money count; not by whoever recorded it."""
    try:
        bank.approve(transfer=row, by=actor.user.pk, at=at)
    except InsufficientFunds as error:
        available = money.shown(error.available_micros, error.currency)
        raise Conflict(_("Only %(available)s of its cash is free.") % {"available": available}) from error
    _record(actor, row, "bank_transfer.approve")


@transaction.atomic
def decline(*, actor: Actor, row: BankTransfer, at: datetime) -> None:
    """Let a record not count."""
    bank.decline(transfer=row, by=actor.user.pk, at=at)
    _record(actor, row, "bank_transfer.decline")


def dispute_for(dispute_id: str) -> InvoiceDispute:
    """Return any dispute, or raise NotFound."""
    found = disputes.listed().filter(public_id=dispute_id).first()
    if found is None:
        raise NotFound
    return found


@transaction.atomic
def uphold(*, actor: Actor, dispute: InvoiceDispute, answer: str, at: datetime) -> None:
    """Agree: the credit is proposed, and somebody else approves it."""
    try:
        disputes.uphold(dispute=dispute, answer=answer, by=actor.user.pk, at=at)
    except CreditTooLarge as error:
        raise Conflict(
            _("Less than that is left of the invoice: a credit was proposed or issued meanwhile.")
        ) from error
    _record_dispute(actor, dispute, "invoice_dispute.uphold")


@transaction.atomic
def reject(*, actor: Actor, dispute: InvoiceDispute, answer: str, at: datetime) -> None:
    """Disagree, and say why."""
    disputes.reject(dispute=dispute, answer=answer, by=actor.user.pk, at=at)
    _record_dispute(actor, dispute, "invoice_dispute.reject")


def _record(actor: Actor, row: BankTransfer, verb: str) -> None:
    audit.record(
        actor=actor,
        organization=row.organization,
        verb=verb,
        subject_id=row.public_id,
        after={
            "direction": row.direction,
            "amount": money.decimal_string(row.amount_micros),
            "currency": row.currency,
            "bank_reference": row.bank_reference,
            "invoice": row.invoice.number if row.invoice else None,
        },
    )


def _record_dispute(actor: Actor, row: InvoiceDispute, verb: str) -> None:
    after: dict[str, object] = {"invoice": row.invoice.number, "net": money.decimal_string(row.net_micros)}
    audit.record(
        actor=actor, organization=row.invoice.organization, verb=verb, subject_id=row.public_id,
        after=after | {"answer": row.answer},
    )  # fmt: skip
