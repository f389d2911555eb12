"""How fast the till closes an hour of a large fleet, and a month: invoices for many organizations, without their PDFs.

    uv run python -m tests.bench.till --spans 360000 --invoices 10000 --json

Fills a database of its own with organizations that used something last month,
charged and paid, and issues all their invoices; then with spans that run, and
charges them all (`close.py`). Works the books out after each. The bound is PostgreSQL's own:
the same rows, written by one statement per table.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil

from tests import schema
from tests.bench import close, machine
from tests.bench.stage import set_up

MARCH, APRIL = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SPANS_EACH = 3
PRICE_MICROS = 2_490_000
COPIED = ("billing_invoice", "billing_invoiceline", "billing_invoiceitem")
CHUNK = 1000
PROVED = 100


def main() -> int:
    """Run the benchmark; the last line of the output is JSON. Returns 1 when the books do not balance afterwards."""
    parser = argparse.ArgumentParser("python -m tests.bench.till", description=__doc__)
    parser.add_argument("--spans", type=int, default=360_000, help="spans to charge for an hour (default: 360000)")
    parser.add_argument("--invoices", type=int, default=10_000, help="organizations to invoice (default: 10000)")
    parser.add_argument("--json", action="store_true", help="print nothing but the line of JSON")
    given = parser.parse_args()
    here = machine.facts()
    with set_up() as stage:
        os.environ.update(stage.environ)
        import django

        django.setup()
        schema.fill()
        say = (lambda text: None) if given.json else print
        figures = run(given.invoices, say) if given.invoices else {}
        figures |= close.run(given.spans, stage.database_pid, say) if given.spans else {}
        faults = figures.pop("close_faults", []) + figures.pop("faults", [])
    print(machine.last_line("till", {**figures, "faults": faults}, here))
    return 1 if faults else 0


def run(count: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Fill, issue, measure the bound, and check."""
    from billing import books
    from billing.invoicing import issuing, proof
    from billing.models import Invoice, InvoiceLine

    say(f"Filling {count} organizations ...")
    fill(count)
    say("Issuing ...")
    began, cpu = time.monotonic(), time.process_time()
    issued = issuing.issue_due(at=APRIL + 2 * HOUR, seconds=3600)
    issue_s, issue_cpu_s = time.monotonic() - began, time.process_time() - cpu
    memory_mib = round(psutil.Process().memory_info().rss / 2**20)
    began = time.monotonic()
    again = issuing.issue_due(at=APRIL + 2 * HOUR, seconds=3600)
    again_s = time.monotonic() - began
    bare_s = bare_copy()
    say("Checking ...")
    faults = [f"{one.rule}: {one.subject}: {one.detail}" for one in books.check(at=APRIL + 3 * HOUR)]
    faults += [f"{number}: {detail}" for number, detail in proof.findings(limit=PROVED)]
    faults += [f"issued {issued} and then {again}"] if (issued, again) != (count, 0) else []
    return {
        "invoices": issued,
        "lines": InvoiceLine.objects.count(),
        "issue_s": round(issue_s, 2),
        "issue_cpu_s": round(issue_cpu_s, 2),
        "invoices_per_s": round(issued / issue_s),
        "again_s": round(again_s, 2),
        "bare_copy_s": round(bare_s, 2),
        "memory_mib": memory_mib,
        "numbers": [Invoice.objects.order_by("sequence")[0].number, Invoice.objects.order_by("-sequence")[0].number],
        "faults": faults[:20],
    }


def fill(count: int) -> None:
    """Make a seller and so many customers in four countries, each with use of last month that its cash has paid."""
    from billing import accounts
    from billing.invoicing import sellers
    from billing.models import Account, PriceVersion
    from marketplace.models import Organization

    seller = Organization.objects.create(name="Seller")
    sellers.save_details(organization=seller, legal_name="Seller AS", address="Narvik", country="NO")
    sellers.name_seller(organization=seller)
    price = PriceVersion.objects.create(
        sku="bench", currency="USD", micros_per_unit_hour=PRICE_MICROS, effective_from=MARCH, published_at=MARCH,
        published_by="bench",
    )  # fmt: skip
    processor = accounts.platform(Account.Kind.PROCESSOR, "USD")
    revenue = accounts.platform(Account.Kind.REVENUE, "USD")
    for begin in range(0, count, CHUNK):
        customers = Organization.objects.bulk_create(
            [Organization(name=f"Customer {number}") for number in range(begin, min(begin + CHUNK, count))]
        )
        fill_chunk(customers, price, processor, revenue)


def fill_chunk(customers: list[Any], price: Any, processor: Any, revenue: Any) -> None:
    """Give each customer accounts, details, spans, and the charges and transfers that belong to them."""
    from billing import daily
    from billing.models import Account, BillingDetails, Charge, Transfer, UsageSpan

    countries = (("NO", ""), ("DE", "DE136695976"), ("US", ""), ("JP", "T5835678256246"))
    details, spans = [], []
    for number, customer in enumerate(customers):
        country, tax_id = countries[number % len(countries)]
        details.append(
            BillingDetails(
                organization=customer, legal_name=customer.name, address="Street 1", country=country, tax_id=tax_id
            )
        )
        for place in range(SPANS_EACH):
            started_at = MARCH + (number % 500 + place * 24) * HOUR
            ended_at = started_at + timedelta(hours=5, milliseconds=number % 3600 * 1000 + place)
            cost = (2 * PRICE_MICROS * ((ended_at - started_at) // timedelta(milliseconds=1)) + 3_600_000) // 7_200_000
            spans.append(
                UsageSpan(
                    organization=customer, resource_id=f"ins_{customer.pk}_{place}", resource_name=f"run {place}",
                    labels={"market": "on_demand"}, quantity=1, price_version=price, started_at=started_at,
                    ended_at=ended_at, charged_through=ended_at, charged_micros=cost,
                )
            )  # fmt: skip
    BillingDetails.objects.bulk_create(details)
    UsageSpan.objects.bulk_create(spans)
    paid_in = 1000 * 1_000_000
    spent = {customer.pk: 0 for customer in customers}
    for span in spans:
        spent[span.organization_id] += span.charged_micros
    accounts = Account.objects.bulk_create(
        [
            Account(
                organization=customer, kind=kind, currency="USD",
                balance_micros=paid_in - spent[customer.pk] if kind == "cash" else 0,
            )
            for customer in customers
            for kind in ("promo", "cash", "receivable")
        ]
    )  # fmt: skip
    cash = {account.organization_id: account for account in accounts if account.kind == "cash"}
    charges = Charge.objects.bulk_create(
        [
            Charge(key=f"charge:{span.public_id}:end", posting=f"charge:{span.public_id}:end", span=span,
                   through=span.ended_at, amount_micros=span.charged_micros, cash_micros=span.charged_micros)
            for span in spans
        ]
    )  # fmt: skip
    Transfer.objects.bulk_create(
        [
            Transfer(key=f"top-up:{account.pk}", source=processor, target=account, amount_micros=paid_in,
                     reason="bench", effective_at=MARCH)
            for account in cash.values()
        ]
        + [
            Transfer(key=f"{charge.key}:cash", source=cash[charge.span.organization_id], target=revenue,
                     amount_micros=charge.amount_micros, reason="bench", effective_at=charge.through)
            for charge in charges
        ]
    )  # fmt: skip
    daily.touch(since=MARCH, through=APRIL)


def bare_copy() -> float:
    """Return the seconds in which PostgreSQL writes the same rows, with the same indexes, by one statement a table."""
    from django.db import connection

    with connection.cursor() as cursor:
        for table in COPIED:
            cursor.execute(f"CREATE TABLE bare_{table} (LIKE {table} INCLUDING DEFAULTS INCLUDING INDEXES)")
        began = time.monotonic()
        for table in COPIED:
            cursor.execute(f"INSERT INTO bare_{table} SELECT * FROM {table}")
        return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
