"""Credit notes that come by themselves: for use and hours paid ahead that turned out to be less after their invoice.

Those for results are issued when these are taken back, see `returning`.

The money went back when that became known (a correction, a cancellation); the
note says so on paper and gives back the tax, that of the invoice on which the
positive amount stood, whatever the tax is by now. What cannot be taken back
from that invoice is a line below zero on the next one.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from django.db import connection
from django.db.models import F

from billing import collecting, invoice_payments, ledger, runway
from billing.accounts import CustomerAccounts
from billing.invoicing import crediting, prepaid, writing
from billing.invoicing.crediting import Amounts
from billing.invoicing.rounding import half_up, minor_unit_micros, shared_out
from billing.models import (
    Charge,
    Invoice,
    InvoiceItem,
    InvoiceLine,
    InvoicePayment,
    InvoicePrepaid,
    PrepaidItem,
    Transfer,
    UsageCorrection,
    UsageSpan,
)
from billing.rating import MILLISECOND

# Documents keep the words of their day, in their own language: see `marketplace.invoices.words`.
WORDS: Mapping[str, str] = {"en": "Less was used than was invoiced", "ja": "請求後に判明したご利用減少分"}
# Spans that became shorter after their invoice, and what was given back of hours paid ahead that were invoiced.
DUE = """
SELECT organization_id FROM (
    SELECT organization_id FROM billing_usagespan
    WHERE ended_at IS NOT NULL AND invoiced_through <> ended_at AND ended_at < invoiced_through
      AND charged_micros < invoiced_micros
    UNION
    SELECT back.organization_id FROM billing_prepaiditem back
    WHERE back.amount_micros < 0 AND back.outcome_id IS NULL
      AND NOT EXISTS (SELECT FROM billing_invoiceprepaid done WHERE done.item_id = back.id)
      AND EXISTS (
          SELECT FROM billing_prepaiditem paid JOIN billing_invoiceprepaid done ON done.item_id = paid.id
          WHERE paid.organization_id = back.organization_id AND paid.resource_id = back.resource_id
      )
) due WHERE organization_id > %(after)s ORDER BY organization_id LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class Part:
    """What is taken back of a line that was invoiced: of a span between two moments, or an item of hours paid ahead."""

    line: InvoiceLine
    micros: int
    starts_at: datetime
    ends_at: datetime
    span: UsageSpan | None = None
    item: PrepaidItem | None = None

    @property
    def key(self) -> str:
        return self.item.key if self.item else self.line.key

    @property
    def unit_milliseconds(self) -> int:
        return self.span.quantity * ((self.starts_at - self.ends_at) // MILLISECOND) if self.span else 0


@dataclass(frozen=True, slots=True)
class _Draft:
    """A credit note without a number. `amounts` are what its lines say, by their keys."""

    invoice: Invoice
    parts: Sequence[Part]
    amounts: Mapping[str, int]
    exact_promo_micros: int
    promo_micros: int

    @property
    def exact_micros(self) -> int:
        return sum(part.micros for part in self.parts)

    @property
    def subtotal_micros(self) -> int:
        return sum(self.amounts.values())

    @property
    def net_micros(self) -> int:
        return self.subtotal_micros - self.promo_micros

    @property
    def rounding_micros(self) -> int:
        """What the note gives back beyond what was given back for the use: less than a minor unit, of either sign."""
        return self.net_micros - (self.exact_micros - self.exact_promo_micros)


def due(*, after: int, limit: int) -> list[int]:
    """Return the next organizations, in the order of their ids, of whose invoices something may be taken back."""
    with connection.cursor() as cursor:
        cursor.execute(DUE, {"after": after, "limit": limit})
        return [organization_id for (organization_id,) in cursor.fetchall()]


def found(organization_ids: Collection[int]) -> list[Part]:
    """Return what may be taken back of these organizations' invoices. Two queries where that is nothing."""
    return [*_of_spans(organization_ids), *_of_items(organization_ids)]


def issue(
    parts_of_all: Iterable[Part],
    *,
    payers: Mapping[int, CustomerAccounts],
    credit_returned: Mapping[int, int],
    at: datetime,
) -> list[Invoice]:
    """Issue the credit notes of organizations whose accounts are locked, and kept up in memory.

    `credit_returned` is how much promotional credit came back beyond what paid for use that is on no invoice.
    """
    by_invoice: dict[int, list[Part]] = defaultdict(list)
    for part in parts_of_all:
        by_invoice[part.line.invoice_id].append(part)
    invoices = Invoice.objects.select_related("organization").in_bulk(by_invoice)
    left_out: set[int] = set()  # spans of which a newer part stays where it is
    credit = dict(credit_returned)
    notes = []
    for key in sorted(by_invoice, reverse=True):
        parts = [part for part in by_invoice[key] if part.span is None or part.span.pk not in left_out]
        invoice = invoices[key]
        draft = _drafted(invoice, parts, credit=max(0, credit.get(invoice.organization_id, 0)))
        if draft is None or draft.net_micros > crediting.left_micros(invoice):
            left_out |= {part.span.pk for part in parts if part.span}
            continue
        ahead = sum(-part.item.promo_micros for part in parts if part.item)
        credit[invoice.organization_id] = credit.get(invoice.organization_id, 0) - (draft.exact_promo_micros - ahead)
        notes.append(_write(draft, payers[invoice.organization_id], at=at))
    return notes


def _of_spans(organization_ids: Collection[int]) -> list[Part]:
    """Return what spans that became shorter take back, of the newest invoice first."""
    shorter = UsageSpan.objects.filter(
        organization__in=organization_ids,
        is_charged=True,
        ended_at__lt=F("invoiced_through"),
        charged_micros__lt=F("invoiced_micros"),
    )
    spans = {span.pk: span for span in shorter.order_by("pk")}
    if not spans:
        return []
    standing: dict[int, list[Part]] = defaultdict(list)
    for item in InvoiceItem.objects.filter(span__in=spans).select_related("line").order_by("pk"):
        mine = standing[item.span_id]
        if item.amount_micros > 0:
            mine.append(Part(item.line, item.amount_micros, item.starts_at, item.ends_at, span=spans[item.span_id]))
        else:
            _take(mine, -item.amount_micros)
    return [part for key, span in spans.items() for part in _shortened(span, standing[key])]


def _take(standing: list[Part], micros: int) -> None:
    """Take an amount off what stands on invoices, the newest first."""
    while micros and standing:
        last = standing.pop()
        if last.micros > micros:
            standing.append(replace(last, micros=last.micros - micros))
        micros = max(0, micros - last.micros)


def _shortened(span: UsageSpan, standing: Sequence[Part]) -> list[Part]:
    assert span.ended_at is not None
    assert span.invoiced_through is not None
    rest, through, found = span.invoiced_micros - span.charged_micros, span.invoiced_through, []
    for part in reversed(standing):
        taken = min(rest, part.micros)
        if taken:
            ends_at = max(part.starts_at, span.ended_at)
            found.append(Part(part.line, taken, through, ends_at, span=span))
            rest, through = rest - taken, ends_at
    return found


def _of_items(organization_ids: Collection[int]) -> list[Part]:
    """Return what was given back of hours that are on an invoice: on that which has these hours, or the last."""
    backs = list(
        PrepaidItem.objects.filter(
            organization__in=organization_ids, invoiced=None, amount_micros__lt=0, outcome=None
        ).order_by("pk")
    )
    if not backs:
        return []
    paid = InvoicePrepaid.objects.filter(
        item__organization__in={back.organization_id for back in backs},
        item__resource_id__in={back.resource_id for back in backs},
        item__amount_micros__gt=0,
    )
    known: dict[tuple[int, str], list[InvoicePrepaid]] = defaultdict(list)
    for row in paid.select_related("item", "line").order_by("-pk"):
        known[row.item.organization_id, row.item.resource_id].append(row)
    found = []
    for back in backs:
        mine = known[back.organization_id, back.resource_id]
        of_them = [row for row in mine if row.item.starts_at <= back.starts_at < row.item.ends_at] or mine
        found += [Part(row.line, -back.amount_micros, back.starts_at, back.ends_at, item=back) for row in of_them[:1]]
    return found


def _drafted(invoice: Invoice, parts: Sequence[Part], *, credit: int) -> _Draft | None:
    """Return the credit note of an invoice; None where it would give back nothing but credit."""
    unit = minor_unit_micros(invoice.currency)
    exact: dict[str, int] = defaultdict(int)
    for part in parts:
        exact[part.key] += part.micros
    of_use = min(sum(part.micros for part in parts if part.span), credit)
    exact_promo = of_use + sum(-part.item.promo_micros for part in parts if part.item)
    draft = _Draft(invoice, parts, shared_out(exact, unit), exact_promo, half_up(exact_promo, unit))
    return draft if draft.net_micros > 0 else None


def _write(draft: _Draft, payer: CustomerAccounts, *, at: datetime) -> Invoice:
    left = invoice_payments.left_micros(draft.invoice, draft.invoice.organization)
    amounts = Amounts(draft.exact_micros, draft.exact_promo_micros, draft.subtotal_micros, draft.promo_micros)
    note = crediting.number_note(draft.invoice, amounts, reason=_reason(draft), at=at)
    _write_lines(draft, note)
    moves = writing.moves_of(
        payer, note, writing.Platform(), tax_micros=-note.tax_micros, rounding_micros=-draft.rounding_micros, at=at
    )
    ledger.move_all(moves)
    to_cash = sum(move.amount_micros for move in moves if move.target_id == payer.cash.pk)
    cause = f"invoice:{note.public_id}"
    payer.cash.balance_micros -= invoice_payments.recover(
        invoice=draft.invoice, most_micros=to_cash, cause=cause, at=at
    )
    back = [move for move in moves if move.target_id == payer.receivable.pk]
    for moved in [*_lifted(draft, payer), *back]:
        share = min(left, moved.amount_micros)
        if share:
            invoice_payments.name(invoice=draft.invoice, transfer_key=moved.key, amount_micros=share, at=at)
        left -= share
    runway.shift(moves)
    collecting.review(organization=draft.invoice.organization, at=at)
    return note


def _reason(draft: _Draft) -> str:
    """What people gave as the reason of corrections, or our own words."""
    spans = [part.span for part in draft.parts if part.span]
    said = UsageCorrection.objects.filter(span__in=spans, state=UsageCorrection.State.APPROVED).order_by("pk")
    reasons = dict.fromkeys(said.values_list("reason", flat=True))
    return "; ".join(reasons)[:200] or WORDS.get(draft.invoice.language, WORDS["en"])


def _write_lines(draft: _Draft, note: Invoice) -> None:
    by_key: dict[str, list[Part]] = defaultdict(list)
    for part in draft.parts:
        by_key[part.key].append(part)
    rows = {key: _line(parts, note, amount_micros=draft.amounts[key]) for key, parts in by_key.items()}
    InvoiceLine.objects.bulk_create(rows.values())
    prepaid.write([(part.item, rows[part.key]) for part in draft.parts if part.item])
    of_spans = [(part, part.span) for part in draft.parts if part.span]
    InvoiceItem.objects.bulk_create(
        InvoiceItem(
            line=rows[part.key],
            span=span,
            starts_at=part.starts_at,
            ends_at=part.ends_at,
            unit_milliseconds=-part.unit_milliseconds,
            amount_micros=-part.micros,
        )
        for part, span in of_spans
    )
    for part, span in of_spans:
        span.invoiced_micros -= part.micros
        span.invoiced_through = part.ends_at
        span.save(update_fields=["invoiced_micros", "invoiced_through"])


def _line(parts: Sequence[Part], note: Invoice, *, amount_micros: int) -> InvoiceLine:
    """Return a line of a credit note: as on the invoice, with what is taken back above zero."""
    first = parts[0]
    if first.item:
        row = prepaid.line([first.item], note, key=first.key, is_late=False, amount_micros=amount_micros)
        row.exact_micros = first.micros
        return row
    copied = (
        "key",
        "resource_id",
        "resource_name",
        "project",
        "meter",
        "unit",
        "market",
        "price_version_id",
        "micros_per_unit_hour",
    )
    return InvoiceLine(
        **{name: getattr(first.line, name) for name in copied},
        invoice=note,
        starts_at=min(part.ends_at for part in parts),
        ends_at=max(part.starts_at for part in parts),
        unit_milliseconds=sum(part.unit_milliseconds for part in parts),
        exact_micros=sum(part.micros for part in parts),
        amount_micros=amount_micros,
    )


def _lifted(draft: _Draft, payer: CustomerAccounts) -> list[Transfer]:
    """Return what corrections of these spans have lifted of a debt and that was not named for an invoice yet."""
    charges = Charge.objects.filter(span__in=[part.span for part in draft.parts if part.span], owed_micros__lt=0)
    keys = {f"{posting}:receivable" for posting in charges.values_list("posting", flat=True)}
    named = InvoicePayment.objects.filter(transfer_key__in=keys).values_list("transfer_key", flat=True)
    lifted = Transfer.objects.filter(key__in=keys - set(named), target=payer.receivable)
    return list(lifted.order_by("pk"))
