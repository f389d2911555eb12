"""What a bank took of a payment and cash did not cover: for which invoices it is owed again.

The oldest debt is paid first, so what is owed is the newest: what the payment paid by name is owed for that again; the
rest is of use that is on no invoice yet, then of the newest invoice that cash had paid, then of the one before it.
What is more than all of that, because the customer's other money went elsewhere (back to a card, to its bank), is owed
for nothing: a debt of its own (`TakenDebt`), which forbids by the table of dunning what an unpaid invoice does.
"""

from datetime import datetime, timedelta
from typing import NamedTuple

from django.db.models import F, Sum

from billing import accounts, collecting, credit_lines, invoice_payments, ledger
from billing.accounts import CustomerAccounts
from billing.invoicing import debts, issuing
from billing.invoicing.rounding import minor_unit_micros
from billing.models import (
    Account,
    Collection,
    Dispute,
    Invoice,
    InvoicePayment,
    InvoiceSeries,
    Payment,
    TakenDebt,
    Transfer,
)


class Again(NamedTuple):
    """So much of an invoice is not paid any more."""

    invoice: Invoice
    micros: int


class Spread(NamedTuple):
    """For what an amount is owed again: invoices, and nothing at all, with what was owed before for older things."""

    invoices: list[Again]
    nothing_micros: int
    older_micros: int


def owe(*, dispute: Dispute, payer: CustomerAccounts, micros: int, at: datetime) -> list[Again]:
    """Let a customer owe what a bank took and cash did not cover, once for a dispute; return for which invoices.

    Behind the gate, with the accounts as they are before it. What is owed for use that is on no invoice comes with the
    next one, and what is owed for nothing is due in the usual time. What a payment had recovered is a loss again, and
    owed to nobody.
    """
    lost = _lost_again(dispute, micros, at=at)
    spread = _spread(dispute, payer, micros - sum(one.micros for one in lost), at=at)
    again = spread.invoices
    for one in again:
        key = f"dispute:{dispute.public_id}:{one.invoice.public_id}"
        take(key, dispute, payer.receivable, one.micros, at=at)
        invoice_payments.name(invoice=one.invoice, transfer_key=key, amount_micros=-one.micros, at=at)
        collecting.reopen(one.invoice, at=at)
    rest = micros - sum(one.micros for one in [*lost, *again])
    if rest:
        take(f"dispute:{dispute.public_id}:{payer.receivable.kind}", dispute, payer.receivable, rest, at=at)
    if spread.nothing_micros:
        _owe_for_nothing(dispute, spread, at=at)
    return [*lost, *again]


def pay_again(*, dispute: Dispute, micros: int, cause: str, at: datetime) -> None:
    """Pay with money that came back the invoices that were owed again without it, as far as it reaches."""
    taken = InvoicePayment.objects.filter(transfer_key__startswith=f"dispute:{dispute.public_id}:").order_by("pk")
    numbers = list(taken.values_list("invoice__public_id", flat=True))
    if dispute.payment.purpose == Payment.Purpose.INVOICE and dispute.payment.reference not in numbers:
        numbers.append(dispute.payment.reference)
    for number in numbers:
        micros -= invoice_payments.pay_named(number, dispute.payment.organization, micros, f"{cause}:{number}", at)


def _owe_for_nothing(dispute: Dispute, spread: Spread, *, at: datetime) -> None:
    organization_id = dispute.payment.organization_id
    days = credit_lines.net_days_of([organization_id])[organization_id]
    TakenDebt.objects.create(
        dispute=dispute,
        organization_id=organization_id,
        due_micros=spread.nothing_micros,
        older_due_micros=spread.older_micros,
        issued_at=at,
        due_at=at + timedelta(days=days),
        look_at=at,
    )


def take(key: str, dispute: Dispute, source: Account, micros: int, *, at: datetime) -> None:
    """Move to the processor's account what a bank took of a payment, from cash, from what is owed, or as a loss."""
    payment = dispute.payment
    ledger.transfer(
        key=key,
        source=source,
        target=accounts.platform(Account.Kind.PROCESSOR, payment.currency),
        amount_micros=micros,
        reason=f"Payment {payment.public_id} was disputed",
        at=at,
    )


def _lost_again(dispute: Dispute, most_micros: int, *, at: datetime) -> list[Again]:
    """Let what a payment had recovered of an invoice that was written off be a loss again, up to an amount."""
    payment = dispute.payment
    came = Transfer.objects.filter(key=f"recover:{payment.processor_key}").first()
    if came is None:
        return []
    row = Collection.objects.select_related("invoice__organization").get(
        invoice__public_id=payment.reference, organization=payment.organization_id
    )
    share = min(came.amount_micros, row.recovered_micros, most_micros)
    if not share:
        return []
    bad_debt = accounts.platform(Account.Kind.BAD_DEBT, payment.currency)
    take(f"dispute:{dispute.public_id}:{bad_debt.kind}", dispute, bad_debt, share, at=at)
    collecting.move(row, Collection.State.UNCOLLECTIBLE, at=at)
    Collection.objects.filter(pk=row.pk).update(recovered_micros=F("recovered_micros") - share)
    return [Again(row.invoice, share)]


def _spread(dispute: Dispute, payer: CustomerAccounts, micros: int, *, at: datetime) -> Spread:
    """Return for what an amount is owed again, each in whole minor units: they are asked for by card."""
    unit = minor_unit_micros(dispute.payment.currency)
    invoices = list(
        Invoice.objects.select_related("organization")
        .filter(organization=dispute.payment.organization_id, kind=InvoiceSeries.Kind.INVOICE)
        .order_by("-pk")
    )
    left = debts.left_due_micros(organization=dispute.payment.organization, invoices=invoices)
    paid = _paid(invoices, left)
    named = InvoicePayment.objects.filter(transfer_key=f"settle:{dispute.payment.processor_key}:invoice").first()
    by_name = min(named.amount_micros, micros, paid[named.invoice_id]) // unit * unit if named else 0
    not_invoiced = issuing.not_invoiced_micros(payer=payer, at=at)
    owed_already = payer.owed_micros - sum(left.values()) - not_invoiced
    rest = micros - by_name + min(0, owed_already)
    again: list[Again] = []
    for invoice in invoices:
        share = by_name if named and invoice.pk == named.invoice_id else 0
        more = max(0, min(rest, paid[invoice.pk] - share)) // unit * unit
        rest -= more
        if share + more:
            again.append(Again(invoice, share + more))
    return Spread(again, max(0, rest) // unit * unit, sum(left.values()) + max(0, owed_already))


def _paid(invoices: list[Invoice], left: dict[int, int]) -> dict[int, int]:
    """Return what cash has paid of each of these; of one that was written off, that is nothing more to ask for."""
    notes = Invoice.objects.filter(credited__in=invoices).values("credited").order_by()
    credited = dict(notes.annotate(total=Sum("total_micros")).values_list("credited", "total"))
    given_up = set(
        Collection.objects.filter(invoice__in=invoices, written_off_micros__gt=0).values_list("invoice", flat=True)
    )
    return {
        one.pk: 0 if one.pk in given_up else max(0, one.total_micros - credited.get(one.pk, 0) - left[one.pk])
        for one in invoices
    }  # fmt: skip
