"""What tiers, minimums and commitments change, as lines of an invoice."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import connection
from django.db.models import F

from billing.models import Adjustment, CommitmentPrice, Invoice, InvoiceAdjustment, InvoiceLine
from billing.months import next_month
from billing.rating import MILLISECONDS_PER_HOUR

BULK = 2000
MARK = """
UPDATE billing_adjustment SET invoiced_micros = mark.micros, invoiced_through = mark.through
FROM unnest(%s::bigint[], %s::timestamptz[], %s::bigint[]) AS mark (id, through, micros)
WHERE billing_adjustment.id = mark.id
"""
# Documents keep the words of their day, in their own language: see `marketplace.invoices.words`.
WORDS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "tiers": "Tiers of {name}: {hours} {unit}-hours in {month}",
        "minimum": "Tiers and minimum of {name}: {hours} {unit}-hours in {month}",
        "commitment": "Commitment {commitment}: {name}, {covered} of {hours} {unit}-hours in {month}",
        "breakage": "Commitment {commitment}: what was promised and not used until {month}",
        "gpu": "GPU",
        "gib": "GiB",
    },
    "ja": {
        "tiers": "段階料金：{name}、{month}のご利用 {hours} {unit}時間",
        "minimum": "段階料金と最低料金：{name}、{month}のご利用 {hours} {unit}時間",
        "commitment": "利用契約 {commitment}：{name}、{month}のご利用 {hours} {unit}時間のうち {covered} 時間",
        "breakage": "利用契約 {commitment}：{month}までの未利用分",
        "gpu": "GPU",
        "gib": "GiB",
    },
}


@dataclass(frozen=True, slots=True)
class Adjusted:
    """An adjustment as far as the next invoice is about it."""

    row: Adjustment
    name: str

    @property
    def public_id(self) -> str:
        return self.row.public_id

    @property
    def month(self) -> datetime:
        return self.row.month

    @property
    def ends(self) -> datetime:
        return next_month(self.row.month)

    @property
    def amount_micros(self) -> int:
        """What it adds to an invoice, or takes off."""
        return self.row.amount_micros - self.row.invoiced_micros


def uninvoiced(organization_ids: Collection[int]) -> dict[int, list[Adjusted]]:
    """Return what each organization has that no invoice had yet, those of the running month included."""
    rows = Adjustment.objects.filter(organization__in=organization_ids).exclude(amount_micros=F("invoiced_micros"))
    rows = rows.select_related("price_version", "commitment").order_by("month", "pk")
    found: dict[int, list[Adjusted]] = {key: [] for key in organization_ids}
    rows_now = list(rows)
    agreed = CommitmentPrice.objects.filter(commitment__in=[row.commitment_id for row in rows_now if row.commitment_id])
    names = dict(agreed.values_list("sku", "name")) if rows_now else {}
    for row in rows_now:
        version = row.price_version
        name = (version.name or names.get(version.sku, version.sku)) if version else ""
        found[row.organization_id].append(Adjusted(row, name))
    return found


def line(each: Adjusted, invoice: Invoice, *, key: str, is_late: bool, amount_micros: int) -> InvoiceLine:
    """Return an adjustment as a line. Its hours stand in its text: the lines of the use count them already."""
    row = each.row
    return InvoiceLine(
        invoice=invoice,
        key=key,
        resource_name=_text(each, invoice.language)[:200],
        is_late=is_late,
        price_version_id=row.price_version_id,
        starts_at=max(row.month, row.invoiced_through or row.month),
        ends_at=row.through,
        unit_milliseconds=0,
        exact_micros=each.amount_micros,
        amount_micros=amount_micros,
    )


def write(lines: Sequence[tuple[Adjusted, InvoiceLine]]) -> None:
    """Write down what is behind these lines, and that it was invoiced."""
    InvoiceAdjustment.objects.bulk_create(
        [
            InvoiceAdjustment(
                line=line,
                adjustment=each.row,
                through=each.row.through,
                unit_milliseconds=each.row.unit_milliseconds,
                covered_unit_milliseconds=each.row.covered_unit_milliseconds,
                base_micros=each.row.base_micros,
                committed_micros=each.row.committed_micros,
                minimum_micros=each.row.minimum_micros,
                rated_micros=each.row.rated_micros,
                before_micros=each.row.invoiced_micros,
                amount_micros=each.amount_micros,
            )
            for each, line in lines
        ],
        batch_size=BULK,
    )
    with connection.cursor() as cursor:
        cursor.execute(
            MARK,
            [
                [each.row.pk for each, _ in lines],
                [each.row.through for each, _ in lines],
                [each.row.amount_micros for each, _ in lines],
            ],
        )


def _text(each: Adjusted, language: str) -> str:
    row = each.row
    said = WORDS.get(language, WORDS["en"])
    if row.price_version is None:
        kind = "breakage"
    elif row.covered_unit_milliseconds:
        kind = "commitment"
    else:
        kind = "minimum" if row.minimum_micros else "tiers"
    return said[kind].format(
        name=each.name,
        month=f"{row.month:%Y-%m}",
        hours=_hours(row.unit_milliseconds),
        covered=_hours(row.covered_unit_milliseconds),
        unit=said[row.price_version.unit] if row.price_version else "",
        commitment=row.commitment.public_id if row.commitment else "",
    )


def _hours(unit_milliseconds: int) -> str:
    """Return hours to a hundredth, cut off."""
    whole, rest = divmod(unit_milliseconds * 100 // MILLISECONDS_PER_HOUR, 100)
    return f"{whole:,}.{rest:02}"
