"""The audit finds every kind of broken invoice; each is broken here on purpose."""

import json
from uuid import uuid4

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connection

from billing import books
from billing.invoicing import audit, crediting
from billing.models import Invoice
from tests.billing.invoicing import CLOSE, MAY, close, make_seller, use
from tests.billing.makers import HOUR, NOON, USD, make_organization, make_price

pytestmark = pytest.mark.django_db

SUSPENDED = """
    SET CONSTRAINTS ALL IMMEDIATE;
    ALTER TABLE billing_invoice DISABLE TRIGGER USER;
    ALTER TABLE billing_invoiceline DISABLE TRIGGER USER;
    ALTER TABLE billing_invoiceitem DISABLE TRIGGER USER;
    ALTER TABLE billing_invoiceseries DISABLE TRIGGER USER;
    ALTER TABLE billing_transfer DISABLE TRIGGER USER;
    ALTER TABLE billing_invoice DROP CONSTRAINT invoice_adds_up;
"""
BREAKS = {
    "invoice_numbers_have_no_gap": "UPDATE billing_invoice SET sequence = 3 WHERE number = 'INV-000002'",
    "invoice_is_the_sum_of_its_lines": "UPDATE billing_invoiceline SET amount_micros = amount_micros + 10000",
    "invoice_line_is_the_sum_of_its_items": "UPDATE billing_invoiceitem SET unit_milliseconds = 1",
    "span_is_invoiced_once": "UPDATE billing_usagespan SET invoiced_micros = 1",
    "invoice_moved_its_money": "UPDATE billing_transfer SET key = 'x' || key WHERE key LIKE 'invoice:%:tax:%'",
    "invoice_is_credited_no_more_than_it_asked": "UPDATE billing_invoice SET net_micros = 20000000 WHERE kind <> "
    "'invoice'",
    "invoices_of_an_organization_follow_each_other": "UPDATE billing_invoice SET period_start = '2026-01-01'",
}


@pytest.fixture
def issued(db):
    """Two invoices of one customer, one of them credited in part."""
    make_seller()
    acme = make_organization(cash=100 * USD)
    price = make_price()
    use(acme, begin=NOON, price=price)
    close()
    use(acme, begin=CLOSE + HOUR, resource_id="ins_2", price=price)
    close(at=MAY + 2 * HOUR)
    users = apps.get_model("marketplace", "User").objects
    carol, dan = (users.create_user(f"{name}@operator.example").pk for name in ("carol", "dan"))
    first = Invoice.objects.get(number="INV-000001")
    proposal = crediting.propose(invoice=first, net_micros=USD, reason="slow", by=carol, key=uuid4(), at=CLOSE)
    crediting.approve(proposal=proposal, by=dan, at=CLOSE)
    assert books.check(at=MAY + 9 * HOUR) == []
    assert books.recompute() == []
    return first


def run_sql(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)


@pytest.mark.parametrize("rule", audit.RULES)
def test_the_audit_finds(issued, rule):
    run_sql(SUSPENDED)
    run_sql(BREAKS[rule])
    assert rule in {finding.rule for finding in books.check(at=MAY + 9 * HOUR)}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE billing_invoiceitem SET amount_micros = amount_micros + 1",
        "UPDATE billing_invoiceline SET exact_micros = exact_micros + 1 WHERE meter <> ''",
        "UPDATE billing_invoiceline SET amount_micros = amount_micros - 10000",
        "UPDATE billing_invoice SET tax_micros = tax_micros + 10000",
        "UPDATE billing_invoice SET tax_rate_bps = 1900 WHERE kind = 'invoice'",
        "ALTER TABLE billing_priceversion DISABLE TRIGGER USER; "
        "UPDATE billing_priceversion SET micros_per_unit_hour = 2500001",
    ],
)
def test_the_second_calculation_finds(issued, change):
    run_sql(SUSPENDED)
    run_sql(change)
    assert books.recompute() != []


def test_the_command_works_invoices_out_again(issued, capsys):
    call_command("check_books", "--json", "--recompute")
    assert json.loads(capsys.readouterr().out)["balanced"] is True
    run_sql(SUSPENDED)
    run_sql("UPDATE billing_invoice SET tax_rate_bps = 1900 WHERE number = 'INV-000001'")
    with pytest.raises(SystemExit):
        call_command("check_books", "--recompute")
    assert "invoice_comes_out_the_same: INV-000001" in capsys.readouterr().out
