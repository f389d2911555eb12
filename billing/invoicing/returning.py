"""Credit notes that come by themselves: for what was given back of results after their invoice.

The price itself went back at once, to the micro (`outcomes.reverse`). The note says so on paper, in whole minor units,
and brings the tax: all notes of an invoice together are rounded once, so taking back everything on it returns exactly
what it asked, its tax included.
"""

from datetime import datetime

from django.db.models import Sum

from billing import accounts, collecting, invoice_payments, ledger
from billing.accounts import CustomerAccounts
from billing.invoicing import crediting, prepaid
from billing.invoicing.crediting import Amounts
from billing.invoicing.rounding import half_up, minor_unit_micros
from billing.invoicing.writing import given_to, paid_by
from billing.models import Account, Invoice, InvoiceLine, InvoicePrepaid, Outcome, PrepaidItem, Transfer

REASON_MAX = 200


def credit(*, of: Outcome, reason: str, at: datetime) -> Invoice | None:
    """Issue the credit note for all that was given back of the invoice on which an outcome is, and on no note yet.

    None where the outcome is on no invoice, or where what waits is less than a minor unit, or more than what is left of
    the invoice: then it is a line of the next invoice. Behind the gate.
    """
    invoice = invoice_of(of)
    if invoice is None:
        return None
    waiting = list(
        PrepaidItem.objects.filter(
            invoiced=None, kind=Outcome.Kind.REVERSED, outcome__of__item__invoiced__line__invoice=invoice
        )
        .select_related("outcome")
        .order_by("pk")
    )
    amounts = _amounts(invoice, waiting)
    if not 0 < amounts.net_micros <= crediting.left_micros(invoice):
        return None
    text = prepaid.text(waiting, invoice.language)[:REASON_MAX]
    line = crediting.write_note(invoice, amounts, text=text, reason=reason[:REASON_MAX], at=at)
    prepaid.write([(item, line) for item in waiting])
    _move(line, amounts, at=at)
    collecting.review(organization=invoice.organization, at=at)
    return line.invoice


def invoice_of(outcome: Outcome) -> Invoice | None:
    """Return the invoice on which an outcome is, if it is on one."""
    done = InvoicePrepaid.objects.filter(item__outcome=outcome).select_related("line__invoice__organization").first()
    return done.line.invoice if done else None


def recover(*, of: Outcome, micros: int, cause: str, at: datetime) -> None:
    """Let cash that went back for an outcome pay first what was given up of its invoice."""
    invoice = invoice_of(of)
    if invoice is not None:
        invoice_payments.recover(invoice=invoice, most_micros=micros, cause=cause, at=at)


def name_what_was_paid(*, of: Outcome, cause: str, at: datetime) -> None:
    """Let what was given back of an outcome count for its own invoice, as far as it paid what was owed."""
    invoice = invoice_of(of)
    if invoice is None:
        return
    for moved in Transfer.objects.filter(key__in=[f"settle:{cause}:promo", f"settle:{cause}:cash"]):
        left = invoice_payments.left_micros(invoice, invoice.organization)
        if named := min(left, moved.amount_micros):
            invoice_payments.name(invoice=invoice, transfer_key=moved.key, amount_micros=named, at=at)


def _amounts(invoice: Invoice, waiting: list[PrepaidItem]) -> Amounts:
    """What all notes through the next one come to, less what those before it came to."""
    unit = minor_unit_micros(invoice.currency)
    notes = Invoice.objects.filter(credited=invoice)
    before = notes.aggregate(exact=Sum("exact_micros", default=0), promo=Sum("exact_promo_micros", default=0))
    exact, promo = -sum(item.amount_micros for item in waiting), -sum(item.promo_micros for item in waiting)
    return Amounts(
        exact,
        promo,
        half_up(before["exact"] + exact, unit) - half_up(before["exact"], unit),
        half_up(before["promo"] + promo, unit) - half_up(before["promo"], unit),
    )


def _move(line: InvoiceLine, amounts: Amounts, *, at: datetime) -> None:
    """Move the tax, and what rounding makes of the price."""
    note = line.invoice
    payer = accounts.lock(organization_id=note.organization_id, currency=note.currency)
    rounding, to_cash = amounts.net_micros - (amounts.exact_micros - amounts.exact_promo_micros), 0
    for what, kind, micros in (
        ("rounding", Account.Kind.REVENUE, rounding),
        ("tax", Account.Kind.TAX, note.tax_micros),
    ):
        other = accounts.platform(kind, note.currency)
        for account, share in _whose(payer, micros):
            account.balance_micros += share if micros > 0 else -share
            ledger.transfer(
                key=f"invoice:{note.public_id}:{what}:{account.kind}",
                source=other if micros > 0 else account,
                target=account if micros > 0 else other,
                amount_micros=share,
                reason=f"{what.capitalize()} of credit note {note.number}",
                at=at,
            )
            to_cash += share if micros > 0 and account.kind == Account.Kind.CASH else 0
    assert note.credited is not None
    invoice_payments.recover(invoice=note.credited, most_micros=to_cash, cause=f"invoice:{note.public_id}", at=at)


def _whose(payer: CustomerAccounts, micros: int) -> list[tuple[Account, int]]:
    return given_to(payer, micros) if micros >= 0 else paid_by(payer, -micros)
