"""What of issued invoices is still to be paid."""

from collections.abc import Iterable

from django.db.models import Sum

from billing.accounts import Organization
from billing.models import Account, Invoice, Transfer


def left_due_micros(*, organization: Organization, invoices: Iterable[Invoice]) -> dict[int, int]:
    """Return what is still owed of each of these, by id; three queries at most.

    The oldest debt is paid first: what came in since an invoice was issued paid
    what was owed then for earlier ones, then the invoice.
    """
    invoices = list(invoices)
    owing = [invoice for invoice in invoices if invoice.due_micros]
    left = {invoice.pk: 0 for invoice in invoices}
    debt = Account.objects.filter(
        organization=organization.pk, kind=Account.Kind.RECEIVABLE, currency=organization.currency, balance_micros__lt=0
    ).first()
    if debt is None or not owing:
        return left
    payments = Transfer.objects.filter(target=debt, effective_at__gte=min(one.issued_at for one in owing))
    came = list(payments.values("effective_at").annotate(total=Sum("amount_micros")))
    for invoice in owing:
        paid = sum(row["total"] for row in came if row["effective_at"] >= invoice.issued_at)
        own = max(0, paid - invoice.older_due_micros)
        left[invoice.pk] = min(max(0, invoice.due_micros - own), -debt.balance_micros)
    return left
