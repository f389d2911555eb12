"""Paying one invoice by name: what a customer says that money is for counts for that, and not for the oldest debt."""

from collections.abc import Iterable
from datetime import datetime

from django.db.models import F

from billing import accounts, collecting, ledger
from billing.accounts import CustomerAccounts, Organization
from billing.invoicing import debts
from billing.invoicing.rounding import asked
from billing.models import Account, Collection, Invoice, InvoicePayment, UsageSpan


def collection_of(invoice: Invoice) -> Collection | None:
    """Return how the debt of an invoice is collected, as it was read beside it; None where nothing was owed."""
    row: Collection | None = getattr(invoice, "collection", None)  # Without one, Django raises an AttributeError.
    return row


def left_micros(invoice: Invoice, organization: Organization) -> int:
    """Return what is still to be paid of an invoice."""
    return debts.left_due_micros(organization=organization, invoices=[invoice])[invoice.pk]


def pay_from_cash(*, payer: CustomerAccounts, invoice: Invoice, most_micros: int, cause: str, at: datetime) -> int:
    """Pay what is left of an invoice from cash that is free, up to an amount; return how much that was.

    One that was written off is recovered.

    Called in the transaction that brought the money, behind the gate, with the accounts as they are now and before what
    else is owed is settled. `cause` is the key of that event.
    """
    most_micros = min(most_micros, payer.cash.free_micros)
    lost = Collection.objects.filter(invoice=invoice, state=Collection.State.UNCOLLECTIBLE).first()
    if lost is not None:
        return _recover(lost, invoice, payer, most_micros, cause=cause, at=at)
    share = min(left_micros(invoice, invoice.organization), most_micros)
    if share <= 0:
        return 0
    key = f"settle:{cause}:invoice"
    ledger.transfer(
        key=key,
        source=payer.cash,
        target=payer.receivable,
        amount_micros=share,
        reason=f"Payment of invoice {invoice.number}",
        at=at,
    )
    name(invoice=invoice, transfer_key=key, amount_micros=share, at=at)
    return share


def given_up(span: UsageSpan) -> list[Collection]:
    """Return the invoices with use of a span that were given up, the newest first."""
    lost = Collection.objects.filter(state=Collection.State.UNCOLLECTIBLE, invoice__lines__items__span=span)
    return list(lost.select_related("invoice").distinct().order_by("-pk"))


def recover(*, invoice: Invoice, most_micros: int, cause: str, at: datetime) -> int:
    """Let cash that went back of an invoice make its loss less first, where it was given up; return how much that was.

    Nobody is paid back what nobody has paid. Behind the gate, before what else is owed is settled.
    """
    lost = Collection.objects.filter(invoice=invoice, state=Collection.State.UNCOLLECTIBLE).first()
    if lost is None or not most_micros:
        return 0
    payer = accounts.lock(organization_id=invoice.organization_id, currency=invoice.currency)
    return _recover(lost, invoice, payer, min(most_micros, payer.cash.free_micros), cause=cause, at=at)


def _recover(
    lost: Collection, invoice: Invoice, payer: CustomerAccounts, most_micros: int, *, cause: str, at: datetime
) -> int:
    share = min(lost.lost_micros, most_micros)
    if share <= 0:
        return 0
    ledger.transfer(
        key=f"recover:{cause}",
        source=payer.cash,
        target=accounts.platform(Account.Kind.BAD_DEBT, invoice.currency),
        amount_micros=share,
        reason=f"Invoice {invoice.number} paid after it was written off",
        at=at,
    )
    Collection.objects.filter(pk=lost.pk).update(recovered_micros=F("recovered_micros") + share)
    lost.refresh_from_db()
    if not lost.lost_micros:
        collecting.move(lost, Collection.State.PAID, at=at)
    return share


def payable_micros(public_id: str, organization: Organization) -> int | None:
    """Return what is to be asked for an invoice, also for one that was given up; None where there is none."""
    invoice = _named(public_id, organization)
    return None if invoice is None else payable_micros_of([invoice], invoice.organization)[invoice.pk]


def chargeable_micros(public_id: str, organization: Organization) -> int | None:
    """Return the most that a charge for an invoice may take: with it may come earlier ones that no card is charged for
    by themselves. None where there is no such invoice."""
    invoice = _named(public_id, organization)
    if invoice is None:
        return None
    unpaid = {row.invoice_id: row.invoice for row in collecting.unpaid(organization)}
    asked_micros = collecting.to_ask_for(organization, list(unpaid.values())).get(invoice.pk, (0, 0))[1]
    return max(payable_micros_of([invoice], organization)[invoice.pk], asked_micros)


def payable_micros_of(invoices: Iterable[Invoice], organization: Organization) -> dict[int, int]:
    """Return what is to be asked for each of these, by id, in whole minor units; their collections are read beside
    them."""
    invoices = list(invoices)
    payable = debts.left_due_micros(organization=organization, invoices=invoices)
    for invoice in invoices:
        row = collection_of(invoice)
        if row is not None and row.state == Collection.State.UNCOLLECTIBLE:
            payable[invoice.pk] = row.lost_micros
    return {key: asked(micros, organization.currency) for key, micros in payable.items()}


def pay_named(public_id: str, organization: Organization, most_micros: int, cause: str, at: datetime) -> int:
    """Pay an invoice of an organization from the cash that has just come for it; return how much that was.

    Where there is no such invoice, that is nothing.
    """
    invoice = _named(public_id, organization)
    if invoice is None:
        return 0
    payer = accounts.lock(organization_id=organization.pk, currency=invoice.currency)
    return pay_from_cash(payer=payer, invoice=invoice, most_micros=most_micros, cause=cause, at=at)


def _named(public_id: str, organization: Organization) -> Invoice | None:
    found = Invoice.objects.select_related("organization", "collection")
    return found.filter(public_id=public_id, organization=organization.pk).first()


def name(*, invoice: Invoice, transfer_key: str, amount_micros: int, at: datetime) -> None:
    """Say that a transfer into what is owed, or part of it, paid this invoice. Once for the transfer.

    Less than nothing says that by this transfer it is owed again.
    """
    InvoicePayment.objects.get_or_create(
        transfer_key=transfer_key, defaults={"invoice": invoice, "amount_micros": amount_micros, "at": at}
    )
