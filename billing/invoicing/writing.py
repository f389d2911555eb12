"""Writing invoices down, with the money that they still have to move: a few statements for a batch of any size."""

from collections.abc import Sequence
from datetime import datetime

from django.db import connection

from billing import accounts, collecting, ledger, runway
from billing.accounts import CustomerAccounts
from billing.invoicing import adjusted, prepaid
from billing.invoicing.drafts import Draft, Line
from billing.invoicing.rounding import half_up, minor_unit_micros
from billing.models import (
    Account,
    Invoice,
    InvoiceItem,
    InvoiceLine,
    InvoiceMail,
    InvoiceSeries,
    Transfer,
)

MARK = """
UPDATE billing_usagespan SET invoiced_through = mark.through, invoiced_micros = mark.micros
FROM unnest(%s::bigint[], %s::timestamptz[], %s::bigint[]) AS mark (id, through, micros)
WHERE billing_usagespan.id = mark.id
"""
BULK = 2000


def write(drafts: Sequence[Draft], *, numbers: Sequence[tuple[InvoiceSeries, int, str]], at: datetime) -> list[Invoice]:
    """Write drafts down as invoices with these numbers, and take their tax. The caller holds all locks."""
    invoices = [_invoice(draft, number, at) for draft, number in zip(drafts, numbers, strict=True)]
    platform = Platform()
    moves = [
        move
        for draft, invoice in zip(drafts, invoices, strict=True)
        for move in moves_of(
            draft.payer, invoice, platform, tax_micros=draft.tax_micros, rounding_micros=draft.rounding_micros, at=at
        )
    ]
    for draft, invoice in zip(drafts, invoices, strict=True):
        _tell_paid(draft, invoice)
    Invoice.objects.bulk_create(invoices, batch_size=BULK)
    ledger.move_all(moves)
    lines = [
        (line, _line(line, invoice))
        for draft, invoice in zip(drafts, invoices, strict=True)
        for line in draft.lines
    ]  # fmt: skip
    InvoiceLine.objects.bulk_create([row for _, row in lines], batch_size=BULK)
    InvoiceItem.objects.bulk_create([item for line, row in lines for item in _items(line, row)], batch_size=BULK)
    adjusted.write([(line.adjustment, row) for line, row in lines if line.adjustment is not None])
    prepaid.write([(item, row) for line, row in lines for item in line.prepaid])
    collecting.open_for(invoices, at=at)
    InvoiceMail.objects.bulk_create([InvoiceMail(invoice=invoice, next_try_at=at) for invoice in invoices])
    marked = [piece for draft in drafts for piece in draft.marked]
    with connection.cursor() as cursor:
        cursor.execute(
            MARK,
            [
                [piece.span_id for piece in marked],
                [piece.through for piece in marked],
                [piece.whole_micros for piece in marked],
            ],
        )
    runway.shift(moves)
    return invoices


def _invoice(draft: Draft, number: tuple[InvoiceSeries, int, str], at: datetime) -> Invoice:
    series, sequence, text = number
    return Invoice(
        number=text,
        series=series,
        sequence=sequence,
        kind=series.kind,
        organization_id=draft.organization_id,
        period_start=draft.period_start,
        period_end=draft.period_end,
        issued_at=at,
        currency=draft.payer.cash.currency,
        language=draft.language,
        seller=draft.seller,
        customer=draft.customer,
        exact_micros=draft.exact_micros,
        exact_promo_micros=draft.exact_promo_micros,
        subtotal_micros=draft.subtotal_micros,
        promo_micros=draft.promo_micros,
        net_micros=draft.net_micros,
        tax_treatment=draft.tax.treatment,
        tax_country=draft.tax.country,
        tax_name=draft.tax.name,
        tax_rate_bps=draft.tax.rate_bps,
        tax_micros=draft.tax_micros,
        total_micros=draft.total_micros,
    )


class Platform(dict[tuple[Account.Kind, str], Account]):
    """The platform's accounts by kind and currency, each looked up once."""

    def __missing__(self, key: tuple[Account.Kind, str]) -> Account:
        self[key] = accounts.platform(*key)
        return self[key]


def moves_of(
    payer: CustomerAccounts,
    invoice: Invoice,
    platform: Platform,
    *,
    tax_micros: int,
    rounding_micros: int,
    at: datetime,
) -> list[Transfer]:
    """Return the transfers of an invoice: its tax, and the rounding; below zero they are given back.

    The payer's balances are kept up in memory.
    """
    found: list[Transfer] = []
    for what, kind, micros in (
        ("rounding", Account.Kind.REVENUE, rounding_micros),
        ("tax", Account.Kind.TAX, tax_micros),
    ):
        for account, share in paid_by(payer, micros) if micros > 0 else given_to(payer, -micros):
            other = platform[kind, invoice.currency]
            account.balance_micros += share if micros < 0 else -share
            found.append(
                Transfer(
                    key=f"invoice:{invoice.public_id}:{what}:{account.kind}",
                    source=other if micros < 0 else account,
                    target=account if micros < 0 else other,
                    amount_micros=share,
                    reason=f"{what.capitalize()} of invoice {invoice.number}",
                    effective_at=at,
                )
            )
    return found


def paid_by(payer: CustomerAccounts, micros: int) -> list[tuple[Account, int]]:
    """Return what pays an amount: cash that is free, and a debt for the rest. Promotional credit pays no tax."""
    cash = min(micros, max(0, payer.cash.free_micros))
    return [pair for pair in ((payer.cash, cash), (payer.receivable, micros - cash)) if pair[1]]


def given_to(payer: CustomerAccounts, micros: int) -> list[tuple[Account, int]]:
    """Return where an amount goes that is given back: to what is owed, then to cash."""
    owed = min(micros, payer.owed_micros)
    return [pair for pair in ((payer.receivable, owed), (payer.cash, micros - owed)) if pair[1]]


def _tell_paid(draft: Draft, invoice: Invoice) -> None:
    """Say how much of the invoice the balance has paid. The oldest debt is paid first, so what is owed is the newest:
    use that is on no invoice yet, then this invoice, then older ones."""
    unit = minor_unit_micros(invoice.currency)
    owed = half_up(max(0, draft.payer.owed_micros - draft.uninvoiced_micros), unit)
    invoice.due_micros = min(invoice.total_micros, owed)
    invoice.paid_micros = invoice.total_micros - invoice.due_micros
    invoice.older_due_micros = owed - invoice.due_micros


def _line(line: Line, invoice: Invoice) -> InvoiceLine:
    if line.adjustment is not None:
        return adjusted.line(
            line.adjustment, invoice, key=line.key, is_late=line.is_late, amount_micros=line.amount_micros
        )
    if line.prepaid:
        return prepaid.line(line.prepaid, invoice, key=line.key, is_late=line.is_late, amount_micros=line.amount_micros)
    last = line.pieces[-1]
    return InvoiceLine(
        invoice=invoice,
        key=line.key,
        resource_id=last.resource_id,
        resource_name=last.resource_name,
        project=last.project,
        meter=last.meter,
        unit=last.unit,
        market=last.market,
        is_late=line.is_late,
        price_version_id=last.price_id,
        micros_per_unit_hour=last.micros_per_unit_hour,
        starts_at=min(min(piece.since, piece.through) for piece in line.pieces),
        ends_at=max(max(piece.since, piece.through) for piece in line.pieces),
        unit_milliseconds=sum(piece.unit_milliseconds for piece in line.pieces),
        exact_micros=line.exact_micros,
        amount_micros=line.amount_micros,
    )


def _items(line: Line, row: InvoiceLine) -> list[InvoiceItem]:
    return [
        InvoiceItem(
            line=row,
            span_id=piece.span_id,
            starts_at=piece.since,
            ends_at=piece.through,
            unit_milliseconds=piece.unit_milliseconds,
            amount_micros=piece.amount_micros,
        )
        for piece in line.pieces
    ]
