"""How an invoice comes about, worked out a second time.

This shares nothing with what issued the invoice but the rows: not the rating,
not the integrals of floating prices, not the rounding. It walks the spans and
the points of their prices in plain integers and fractions.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from math import floor

from django.db.models import QuerySet

from billing.invoicing import proof_of_outcomes, proof_of_prepaid, proof_of_tiers
from billing.invoicing.proof_of_outcomes import OutcomeProof
from billing.invoicing.proof_of_prepaid import PrepaidProof
from billing.invoicing.proof_of_tiers import AdjustmentProof
from billing.models import Invoice, InvoiceItem, InvoiceLine, PricePoint, UsageSpan

HOUR_MS = 3_600_000
STEPS_MAX = 500
BATCH = 200
HALF = Fraction(1, 2)


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch of a span at one price."""

    starts_at: datetime
    ends_at: datetime
    milliseconds: int
    micros_per_unit_hour: int


@dataclass(slots=True)
class SpanProof:
    """A span's part of a line. amount = what it costs from its start through `ends_at`, rounded half up to a micro,
    less what it cost through `starts_at`, which earlier invoices had."""

    span: UsageSpan
    starts_at: datetime
    ends_at: datetime
    steps: list[Step]
    steps_left_out: int
    through_micros: int
    before_micros: int
    written_micros: int

    @property
    def amount_micros(self) -> int:
        return self.through_micros - self.before_micros

    @property
    def unit_milliseconds(self) -> int:
        return self.span.quantity * _ms(self.ends_at - self.starts_at)

    @property
    def agrees(self) -> bool:
        return self.amount_micros == self.written_micros


@dataclass(slots=True)
class LineProof:
    """A line with its spans; `rounded_micros` is what it must say next to the invoice's other lines."""

    line: InvoiceLine
    rounded_micros: int
    is_credit: bool = False
    spans: list[SpanProof] = field(default_factory=list)
    adjustment: AdjustmentProof | None = None
    prepaid: PrepaidProof | None = None
    outcomes: OutcomeProof | None = None

    @property
    def exact_micros(self) -> int:
        """What its spans, tiers, hours paid ahead or results cost. Of a credit note: what was given back of results,
        or what was decided."""
        if self.adjustment is not None:
            return self.adjustment.amount_micros
        sign = -1 if self.is_credit else 1
        if self.prepaid is not None:
            return sign * self.prepaid.amount_micros
        if self.outcomes is not None:
            return abs(self.outcomes.amount_micros) if self.is_credit else self.outcomes.amount_micros
        return sign * sum(span.amount_micros for span in self.spans) if self.spans else self.line.exact_micros

    @property
    def agrees(self) -> bool:
        return (
            all(span.agrees for span in self.spans)
            and (self.adjustment is None or self.adjustment.agrees)
            and (self.prepaid is None or self.prepaid.agrees)
            and (self.outcomes is None or self.outcomes.agrees)
            and self.exact_micros == self.line.exact_micros
            and self.rounded_micros == self.line.amount_micros
        )


@dataclass(frozen=True, slots=True)
class TotalsProof:
    """The invoice's own figures beside those worked out anew, by name."""

    written: dict[str, int]
    expected: dict[str, int]

    @property
    def agrees(self) -> bool:
        return self.written == self.expected


def of_lines(invoice: Invoice, lines: Sequence[InvoiceLine]) -> list[LineProof]:
    """Prove some lines of an invoice; eight queries at most, however many they are."""
    rounded = _rounded(invoice)
    proofs = {line.pk: LineProof(line, rounded[line.key], is_credit=invoice.is_credit_note) for line in lines}
    items = list(InvoiceItem.objects.filter(line__in=proofs).select_related("span__price_version").order_by("pk"))
    points = _points(item.span for item in items)
    for item in items:
        proof = _prove(item.span, item.starts_at, item.ends_at, item.amount_micros, points)
        proofs[item.line_id].spans.append(proof)
    for line_id, adjustment in proof_of_tiers.of_lines(proofs).items():
        proofs[line_id].adjustment = adjustment
    for line_id, prepaid in proof_of_prepaid.of_lines(proofs).items():
        proofs[line_id].prepaid = prepaid
    for line_id, outcomes in proof_of_outcomes.of_lines(proofs).items():
        proofs[line_id].outcomes = outcomes
    return list(proofs.values())


def of_span(span: UsageSpan, *, until: datetime, written_micros: int) -> SpanProof:
    """Prove what a span costs from its start until a moment beside what was worked out elsewhere; one query."""
    return _prove(span, span.started_at, until, written_micros, _points([span]))


def of_totals(invoice: Invoice) -> TotalsProof:
    """Prove an invoice's totals from its lines; a credit note's from the invoice that it credits."""
    unit = _unit(invoice.currency)
    names = ("subtotal_micros", "net_micros", "tax_micros", "total_micros", "due_micros")
    written = {name: getattr(invoice, name) for name in names}
    subtotal = sum(_rounded(invoice).values())
    net = subtotal - _rounded_promo(invoice, unit)
    if invoice.credited is None:
        tax = _half_up(Fraction(net * invoice.tax_rate_bps, 10_000), unit)
    else:
        tax = _credited_tax(invoice, invoice.credited, unit)
    expected = [subtotal, net, tax, net + tax, net + tax - invoice.paid_micros]
    return TotalsProof(written, dict(zip(names, expected, strict=True)))


def findings(*, limit: int | None = None) -> Iterator[tuple[str, str]]:
    """Work out every invoice anew, newest first; yield the number and what differs."""
    for invoice in Invoice.objects.select_related("credited").order_by("-pk")[:limit].iterator(chunk_size=BATCH):
        totals = of_totals(invoice)
        if not totals.agrees:
            yield invoice.number, f"totals {totals.written}, worked out {totals.expected}"
        lines = InvoiceLine.objects.filter(invoice=invoice).order_by("pk")
        for begin in range(0, lines.count(), BATCH):
            for proof in of_lines(invoice, list(lines[begin : begin + BATCH])):
                if not proof.agrees:
                    said = f"{proof.line.exact_micros} rounded to {proof.line.amount_micros}"
                    found = f"{proof.exact_micros} rounded to {proof.rounded_micros}"
                    yield invoice.number, f"line {proof.line.key} says {said}, worked out {found}"


def _prove(
    span: UsageSpan, starts_at: datetime, ends_at: datetime, written_micros: int, points: dict[int, list[PricePoint]]
) -> SpanProof:
    begin, end = sorted((starts_at, ends_at))
    steps = list(_steps(span, points, begin, end))
    return SpanProof(
        span=span,
        starts_at=starts_at,
        ends_at=ends_at,
        steps=steps[:STEPS_MAX],
        steps_left_out=max(0, len(steps) - STEPS_MAX),
        through_micros=_cost(span, points, ends_at),
        before_micros=_cost(span, points, starts_at),
        written_micros=written_micros,
    )


def _cost(span: UsageSpan, points: dict[int, list[PricePoint]], end: datetime) -> int:
    """Return what a span costs from its start until a moment, rounded half up to a micro."""
    steps = _steps(span, points, span.started_at, end)
    product = span.quantity * sum(step.micros_per_unit_hour * step.milliseconds for step in steps)
    return _half_up(Fraction(product, HOUR_MS), 1)


def _steps(span: UsageSpan, points: dict[int, list[PricePoint]], begin: datetime, end: datetime) -> Iterator[Step]:
    price = span.price_version
    if span.covered_by or not price.is_floating:
        if end > begin:
            yield Step(begin, end, _ms(end - begin), 0 if span.covered_by else price.micros_per_unit_hour)
        return
    series = points[price.pk]
    for number, point in enumerate(series):
        since = max(begin, point.starts_at)
        until = min(end, series[number + 1].starts_at) if number + 1 < len(series) else end
        if until > since:
            yield Step(since, until, _ms(until - since), point.micros_per_unit_hour)


def _points(spans: Iterable[UsageSpan]) -> dict[int, list[PricePoint]]:
    floating = {span.price_version_id for span in spans if span.price_version.is_floating}
    found: dict[int, list[PricePoint]] = defaultdict(list)
    for point in PricePoint.objects.filter(price_version__in=floating).order_by("price_version", "starts_at"):
        found[point.price_version_id].append(point)
    return found


def _rounded(invoice: Invoice) -> dict[str, int]:
    """Round all lines of an invoice together by largest remainder: the rule of docs/billing.md, in fractions.

    The one line of a credit note of one amount is what all of its invoice through it comes to, less all before it.
    """
    unit = _unit(invoice.currency)
    if _has_one_line(invoice):
        before = sum(_notes_before(invoice).values_list("exact_micros", flat=True))
        (key,) = InvoiceLine.objects.filter(invoice=invoice).values_list("key", flat=True)
        whole_now = _half_up(Fraction(before + invoice.exact_micros), unit)
        return {str(key): whole_now - _half_up(Fraction(before), unit)}
    rows = InvoiceLine.objects.filter(invoice=invoice).values_list("key", "exact_micros")
    shares = {key: Fraction(exact, unit) for key, exact in rows}
    whole = {key: floor(share) for key, share in shares.items()}
    missing = _half_up(sum(shares.values(), Fraction()) * unit, unit) // unit - sum(whole.values())
    order = sorted(shares, key=lambda key: (whole[key] - shares[key], key))
    return {key: (whole[key] + (place < missing)) * unit for place, key in enumerate(order)}


def _rounded_promo(invoice: Invoice, unit: int) -> int:
    if not _has_one_line(invoice):
        return _half_up(Fraction(invoice.exact_promo_micros), unit)
    before = sum(_notes_before(invoice).values_list("exact_promo_micros", flat=True))
    through = before + invoice.exact_promo_micros
    return _half_up(Fraction(through), unit) - _half_up(Fraction(before), unit)


def _has_one_line(note: Invoice) -> bool:
    """Whether it is a credit note of one amount, not of lines that its invoice has."""
    return note.is_credit_note and InvoiceLine.objects.filter(invoice=note, key="credit").exists()


def _notes_before(note: Invoice) -> QuerySet[Invoice]:
    return Invoice.objects.filter(credited=note.credited_id, sequence__lt=note.sequence)


def _credited_tax(note: Invoice, invoice: Invoice, unit: int) -> int:
    before = sum(_notes_before(note).values_list("net_micros", flat=True))
    whole = [_half_up(Fraction(invoice.tax_micros * net, invoice.net_micros), unit) for net in (
        before + note.net_micros, before
    )]  # fmt: skip
    return whole[0] - whole[1]


def _half_up(micros: Fraction, unit: int) -> int:
    """Round to whole units, half a unit away from zero."""
    size = floor(abs(micros) * Fraction(1, unit) + HALF) * unit
    return size if micros >= 0 else -size


def _unit(currency: str) -> int:
    return 1_000_000 if currency == "JPY" else 10_000


def _ms(time: timedelta) -> int:
    return time // timedelta(milliseconds=1)
