"""What of issued invoices is still to be paid."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from django.db.models import Q

from billing.accounts import Organization
from billing.models import Account, Invoice, InvoicePayment, TakenDebt, Transfer

# Transfers that change what use costs.
CHEAPER = Q(key__startswith="refund:") | Q(key__startswith="invoice:", key__endswith=":rounding:receivable")


def left_due_micros(*, organization: Organization, invoices: Iterable[Invoice]) -> dict[int, int]:
    """Return what is still owed of each of these, by id; three queries at most.

    What was paid for an invoice by name counts for it. With all else the oldest
    debt is paid first: what came in since an invoice was issued paid what was
    owed then for earlier ones, then the invoice. What made use cheaper (a tier,
    a correction, a rounding) paid nothing, unless a credit note named it: the next invoice asks for less.
    What a bank took back is owed from then on, and paid only by what comes later.
    """
    invoices = list(invoices)
    left = {invoice.pk: 0 for invoice in invoices}
    debt = _debt(organization) if invoices else None
    if debt is None:
        return left
    events = _events(debt, organization, since=min(one.issued_at for one in invoices))
    for invoice in invoices:
        left[invoice.pk] = min(_left(invoice, events, named=invoice.pk), -debt.balance_micros)
    return left


def left_taken_micros(
    *, organization: Organization, taken: Sequence[TakenDebt], invoices_micros: int
) -> dict[int, int]:
    """Return what is still owed of what a bank took back and no invoice asks for, by id; three queries at most.

    Paid as an invoice is that was issued then. What `invoices_micros` are left of invoices is owed for these first.
    """
    left = {row.pk: 0 for row in taken}
    debt = _debt(organization) if taken else None
    if debt is None:
        return left
    events = _events(debt, organization, since=min(row.issued_at for row in taken))
    most = max(0, -debt.balance_micros - invoices_micros)
    for row in sorted(taken, key=lambda row: row.pk, reverse=True):
        left[row.pk] = min(_left(row, events, named=None), most)
        most -= left[row.pk]
    return left


def _debt(organization: Organization) -> Account | None:
    return Account.objects.filter(
        organization=organization.pk, kind=Account.Kind.RECEIVABLE, currency=organization.currency, balance_micros__lt=0
    ).first()


class _Event(NamedTuple):
    """Money that came in, for the oldest debt; or what paid one invoice by name, less than nothing: owed again."""

    at: datetime
    micros: int
    invoice_id: int | None = None
    issued_at: datetime | None = None


def _events(debt: Account, organization: Organization, *, since: datetime) -> list[_Event]:
    """Return what came in since a moment and what it was named for, in the order in which it moved. Two queries."""
    rows = InvoicePayment.objects.filter(invoice__organization=organization.pk, at__gte=since)
    named = {
        key: _Event(at, micros, invoice_id, issued_at)
        for key, at, micros, invoice_id, issued_at in rows.values_list(
            "transfer_key", "at", "amount_micros", "invoice", "invoice__issued_at"
        )
    }
    came = Q(target=debt, effective_at__gte=since) & ~CHEAPER
    moved = Transfer.objects.filter(came | Q(key__in=list(named))).order_by("pk")
    events: list[_Event] = []
    for key, at, micros in moved.values_list("key", "effective_at", "amount_micros"):
        by_name = named.get(key)
        if by_name is None:
            events.append(_Event(at, micros))
            continue
        # A correction counts from when a note named it: its transfer stands where the use became less.
        events.append(by_name)
        # Neither a correction nor a debt is money that came in, so nothing else is left of it.
        is_money = by_name.micros > 0 and not key.startswith("refund:")
        events += [_Event(at, micros - by_name.micros)] if is_money else []
    return events


def _left(owed: Invoice | TakenDebt, events: Iterable[_Event], *, named: int | None) -> int:
    older, own = owed.older_due_micros, owed.due_micros
    for event in events:
        if event.at < owed.issued_at:
            continue
        if event.issued_at is None:
            of_older = min(older, event.micros)
            older, own = older - of_older, own - (event.micros - of_older)
        elif event.invoice_id == named:
            own -= event.micros
        elif event.issued_at < owed.issued_at:
            older -= event.micros
        older, own = max(0, older), max(0, own)
    return own
