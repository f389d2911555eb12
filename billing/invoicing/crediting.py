"""Taking back part of an invoice: one person proposes, another decides, and a credit note says so for ever."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet, Sum

from billing import accounts, collecting, decisions, invoice_payments, ledger, receivables, repeats, runway
from billing.errors import AlreadyDecided, CreditTooLarge
from billing.invoicing import sellers
from billing.invoicing.rounding import minor_unit_micros, part_of_tax
from billing.invoicing.writing import given_to
from billing.models import Account, Collection, CreditProposal, Invoice, InvoiceLine, InvoiceMail, InvoiceSeries

State = CreditProposal.State
MOVES: Mapping[str, tuple[str, ...]] = {
    State.PROPOSED: (State.ISSUED, State.DECLINED),
    State.ISSUED: (),
    State.DECLINED: (),
}


# The key of the line of a note that has only one, of its own.
ONE_LINE = "credit"


@dataclass(frozen=True, slots=True)
class Amounts:
    """What a credit note gives back: exactly, of it credit, and both in whole minor units."""

    exact_micros: int
    exact_promo_micros: int
    subtotal_micros: int
    promo_micros: int

    @property
    def net_micros(self) -> int:
        return self.subtotal_micros - self.promo_micros


def left_micros(invoice: Invoice) -> int:
    """Return what can still be credited of a net amount: what no credit note, issued or proposed, takes back."""
    if invoice.is_credit_note:
        return 0
    proposed = CreditProposal.objects.filter(invoice=invoice, state=State.PROPOSED)
    return invoice.net_micros - credited_micros(invoice) - (proposed.aggregate(total=Sum("net_micros"))["total"] or 0)


@transaction.atomic
def propose(*, invoice: Invoice, net_micros: int, reason: str, by: int, key: UUID, at: datetime) -> CreditProposal:
    """Propose to take back a net amount of an invoice, once per key; nothing moves yet. `by` is a person's id.

    Raises CreditTooLarge for more than what is left of it, or for what is no whole minor unit.
    """
    accounts.lock(organization_id=invoice.organization_id, currency=invoice.currency)
    first = repeats.find(CreditProposal, key, invoice_id=invoice.pk, net_micros=net_micros, reason=reason)
    if first is not None:
        return first
    left = left_micros(invoice)
    if not 0 < net_micros <= left or net_micros % minor_unit_micros(invoice.currency):
        raise CreditTooLarge(asked_micros=net_micros, left_micros=left, currency=invoice.currency)
    return CreditProposal.objects.create(
        invoice=invoice, net_micros=net_micros, reason=reason, proposed_by_id=by, proposed_at=at, key=key
    )


@transaction.atomic
def approve(*, proposal: CreditProposal, by: int, at: datetime) -> Invoice:
    """Issue the credit note of a proposal and give the money back. `by` is the id of another person than the proposer.

    The money goes to what the organization owes, then to its cash; of an invoice that was given up, to its loss first.
    """
    invoice = proposal.invoice
    decisions.check_person(proposal, State.ISSUED, by=by)
    payer = accounts.lock(organization_id=invoice.organization_id, currency=invoice.currency)
    _still_open(proposal)
    note = _write(proposal, at=at)
    left = invoice_payments.left_micros(invoice, invoice.organization)
    was_given_up = Collection.objects.filter(invoice=invoice, state=Collection.State.UNCOLLECTIBLE).exists()
    for what, kind, micros in (
        ("net", Account.Kind.REVENUE, note.net_micros),
        ("tax", Account.Kind.TAX, note.tax_micros),
    ):
        for target, share in [(payer.cash, micros)] if was_given_up and micros else given_to(payer, micros):
            target.balance_micros += share
            ledger.transfer(
                key=f"invoice:{note.public_id}:{what}:{target.kind}",
                source=accounts.platform(kind, invoice.currency),
                target=target,
                amount_micros=share,
                reason=f"Credit note {note.number}",
                at=at,
            )
            if target.kind == Account.Kind.RECEIVABLE and (named := min(left, share)):
                key = f"invoice:{note.public_id}:{what}:{target.kind}"
                invoice_payments.name(invoice=invoice, transfer_key=key, amount_micros=named, at=at)
                left -= named
    if was_given_up:
        cause, most = f"invoice:{note.public_id}", note.total_micros
        invoice_payments.pay_from_cash(payer=payer, invoice=invoice, most_micros=most, cause=cause, at=at)
        receivables.settle(freed=payer.cash, cause=cause, at=at)
    decisions.decide(proposal, State.ISSUED, by=by, at=at, moves=MOVES, credit_note=note)
    runway.refresh(organization=invoice.organization, at=at)
    collecting.review(organization=invoice.organization, at=at)
    return note


@transaction.atomic
def decline(*, proposal: CreditProposal, by: int, at: datetime) -> None:
    """Leave an invoice as it is; whoever proposed may take the proposal back in this way too."""
    accounts.lock(organization_id=proposal.invoice.organization_id, currency=proposal.invoice.currency)
    decisions.decide(proposal, State.DECLINED, by=by, at=at, moves=MOVES)


def proposals() -> QuerySet[CreditProposal]:
    """Return all proposals with what is shown of them, the newest first."""
    found = CreditProposal.objects.select_related("invoice__organization", "proposed_by", "decided_by", "credit_note")
    return found.order_by("-pk")


def _still_open(proposal: CreditProposal) -> None:
    if not CreditProposal.objects.filter(pk=proposal.pk, state=State.PROPOSED).exists():
        raise AlreadyDecided("somebody decided about this already")


def credited_micros(invoice: Invoice) -> int:
    """Return the net amount that credit notes of an invoice took back."""
    return Invoice.objects.filter(credited=invoice).aggregate(total=Sum("net_micros"))["total"] or 0


def _write(proposal: CreditProposal, *, at: datetime) -> Invoice:
    amounts = Amounts(proposal.net_micros, 0, proposal.net_micros, 0)
    return write_note(proposal.invoice, amounts, text=proposal.reason, reason=proposal.reason, at=at).invoice


def write_note(invoice: Invoice, amounts: Amounts, *, text: str, reason: str, at: datetime) -> InvoiceLine:
    """Write a credit note with its one line, and return that; the money is its caller's to move, behind the gate."""
    return InvoiceLine.objects.create(
        invoice=number_note(invoice, amounts, reason=reason, at=at),
        key=ONE_LINE,
        resource_name=text,
        starts_at=invoice.period_start,
        ends_at=invoice.period_end,
        unit_milliseconds=0,
        exact_micros=amounts.exact_micros,
        amount_micros=amounts.subtotal_micros,
    )


def number_note(invoice: Invoice, amounts: Amounts, *, reason: str, at: datetime) -> Invoice:
    """Write a credit note with the next number and its part of the tax, and without lines: those are its caller's."""
    ((series, sequence, number),) = sellers.take_numbers(InvoiceSeries.Kind.CREDIT_NOTE, 1)
    tax = part_of_tax(
        tax_micros=invoice.tax_micros,
        net_micros=invoice.net_micros,
        credited_micros=credited_micros(invoice),
        now_micros=amounts.net_micros,
        unit=minor_unit_micros(invoice.currency),
    )
    copied = (
        "period_start", "period_end", "currency", "language", "seller", "customer", "tax_treatment", "tax_country",
        "tax_name", "tax_rate_bps", "organization",
    )  # fmt: skip
    note = Invoice.objects.create(
        **{name: getattr(invoice, name) for name in copied},
        number=number,
        series=series,
        sequence=sequence,
        kind=series.kind,
        credited=invoice,
        issued_at=at,
        exact_micros=amounts.exact_micros,
        exact_promo_micros=amounts.exact_promo_micros,
        subtotal_micros=amounts.subtotal_micros,
        promo_micros=amounts.promo_micros,
        net_micros=amounts.net_micros,
        tax_micros=tax,
        total_micros=amounts.net_micros + tax,
        paid_micros=amounts.net_micros + tax,
        due_micros=0,
        reason=reason,
    )
    InvoiceMail.objects.create(invoice=note, next_try_at=at)
    return note
