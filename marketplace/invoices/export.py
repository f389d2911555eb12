"""The lines of an invoice for a spreadsheet or a program."""

import csv
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from billing.models import Invoice, InvoiceLine
from marketplace.money import decimal_string

COLUMNS = (
    "invoice", "line", "resource", "name", "project", "meter", "market", "late", "unit", "unit_milliseconds",
    "price_version", "price_per_unit_hour", "starts_at", "ends_at", "exact", "amount", "currency",
)  # fmt: skip
# What a spreadsheet would take for a formula.
FORMULAS = ("=", "+", "-", "@", "\t", "\r")


class Echo:
    """A file that hands back what is written to it."""

    def write(self, text: str) -> str:
        return text


def csv_of(invoice: Invoice, lines: Iterable[InvoiceLine]) -> Iterator[str]:
    """Yield an invoice's lines as CSV (RFC 4180), the names of the columns first."""
    writer = csv.writer(Echo())
    yield writer.writerow(COLUMNS)
    for line in lines:
        yield writer.writerow(_cells(invoice, line))


def _cells(invoice: Invoice, line: InvoiceLine) -> list[Any]:
    price = line.micros_per_unit_hour
    return [
        invoice.number,
        line.key,
        line.resource_id,
        harmless(line.resource_name),
        line.project,
        line.meter,
        line.market,
        "yes" if line.is_late else "no",
        line.unit,
        line.unit_milliseconds,
        line.price_version.public_id if line.price_version else "",
        "" if price is None else decimal_string(price),
        _moment(line.starts_at),
        _moment(line.ends_at),
        decimal_string(line.exact_micros),
        decimal_string(line.amount_micros),
        invoice.currency,
    ]


def harmless(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(FORMULAS) else text


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
