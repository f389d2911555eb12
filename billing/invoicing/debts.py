"""What of issued invoices is still to be paid."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from django.db.models import Q, Sum

from billing.accounts import Organization
from billing.models import Account, Invoice, InvoicePayment, Transfer

# Transfers that change what use costs.
CHEAPER = Q(key__startswith="refund:") | Q(key__startswith="invoice:", key__endswith=":rounding:receivable")


def left_due_micros(*, organization: Organization, invoices: Iterable[Invoice]) -> dict[int, int]:
    """Return what is still owed of each of these, by id; four queries at most.

    What was paid for an invoice by name counts for it. With all else the oldest
    debt is paid first: what came in since an invoice was issued paid what was
    owed then for earlier ones, then the invoice. What made use cheaper (a tier,
    a correction, a rounding) paid nothing, unless a credit note named it: the next invoice asks for less.
    """
    invoices = list(invoices)
    owing = [invoice for invoice in invoices if invoice.due_micros]
    left = {invoice.pk: 0 for invoice in invoices}
    if not owing:
        return left
    debt = Account.objects.filter(
        organization=organization.pk, kind=Account.Kind.RECEIVABLE, currency=organization.currency, balance_micros__lt=0
    ).first()
    if debt is None:
        return left
    payments = Transfer.objects.filter(target=debt, effective_at__gte=min(one.issued_at for one in owing))
    payments = payments.exclude(CHEAPER)
    came = list(payments.values_list("effective_at").annotate(total=Sum("amount_micros")))
    named = [
        _Named(*row)
        for row in InvoicePayment.objects.filter(invoice__organization=organization.pk).values_list(
            "at", "invoice", "invoice__issued_at", "amount_micros", "transfer_key"
        )
    ]
    for invoice in owing:
        left[invoice.pk] = min(_left(invoice, came, named), -debt.balance_micros)
    return left


class _Named(NamedTuple):
    """What paid an invoice by name, or is owed for it again (less than nothing).

    Neither a correction nor a debt is money that came in, so nothing else was left of it.
    """

    at: datetime
    invoice_id: int
    issued_at: datetime
    micros: int
    key: str

    @property
    def came_in(self) -> int:
        return 0 if self.key.startswith("refund:") else max(0, self.micros)


def _left(invoice: Invoice, came: Sequence[tuple[datetime, int]], named: Sequence[_Named]) -> int:
    since = [row for row in named if row.at >= invoice.issued_at]
    paid_by_name = sum(row.micros for row in since if row.invoice_id == invoice.pk)
    older_by_name = sum(row.micros for row in since if row.issued_at < invoice.issued_at)
    others = sum(total for at, total in came if at >= invoice.issued_at) - sum(row.came_in for row in since)
    own = max(0, others - max(0, invoice.older_due_micros - older_by_name))
    return max(0, invoice.due_micros - paid_by_name - own)
