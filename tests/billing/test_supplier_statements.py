"""Statements: every month once, numbered without a gap, adding up to what moved; late use stands on the next one."""

from datetime import UTC, datetime

import pytest
from django.db import DatabaseError, connection, transaction

from billing import books, charging, usage
from billing.models import StatementLine, StatementSeries, SupplierStatement, UsageSpan
from billing.suppliers import accruing, adjusting, audit, purses, statements
from tests.billing.invoicing import details, make_seller
from tests.billing.makers import HOUR, NOON, USD, at_the_same_moment, make_organization, make_price, start
from tests.billing.supplying import labels, make_card, make_person, make_supplier

pytestmark = pytest.mark.django_db
APRIL, MAY = datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC)
CLOSE, NEXT_CLOSE = APRIL + 4 * HOUR, MAY + 4 * HOUR


@pytest.fixture
def nordlys(db):
    make_seller()
    supplier = make_supplier()
    details(supplier, legal_name="Nordlys Compute AS")
    make_card(supplier)
    return supplier


@pytest.fixture
def customer(db):
    return make_organization(cash=5000 * USD)


def run(customer, supplier, *, at=NOON, hours=1, resource_id="ins_1", nodes=None, price=None):
    price = price or make_price()
    start(customer, resource_id=resource_id, at=at, labels=labels(supplier, nodes=nodes), price_version=price)
    usage.stop(resource_id=resource_id, at=at + hours * HOUR)
    accruing.accrue(at=at + hours * HOUR)


def is_clean(at=MAY + 99 * HOUR):
    return (books.check(at=at), books.recompute()) == ([], [])


def test_a_month_is_stated_by_node_and_adds_up(customer, nordlys):
    run(customer, nordlys, nodes={"nod_1": 1, "nod_2": 1})
    assert statements.issue_due(at=CLOSE) == 1
    made = SupplierStatement.objects.get()
    assert (made.number, made.charge_micros, made.closing_micros) == ("ST-000001", 5 * USD, 3_500_000)
    assert (made.held_micros, made.due_micros) == (350_000, 3_150_000)
    assert made.party["name"] == "Nordlys Compute AS"
    lines = StatementLine.objects.order_by("node").values_list("node", "charge_micros", "payout_micros")
    assert list(lines) == [("nod_1", 2_500_000, 1_575_000), ("nod_2", 2_500_000, 1_575_000)]
    assert is_clean()


def test_what_cannot_be_halved_is_shared_out_whole(customer, nordlys):
    price = make_price(micros_per_unit_hour=1)
    run(customer, nordlys, hours=1, nodes={"nod_1": 1, "nod_2": 1}, price=price)
    statements.issue_due(at=CLOSE)
    assert sum(StatementLine.objects.values_list("payout_micros", flat=True)) == 1
    assert is_clean()


def test_issuing_again_issues_nothing(customer, nordlys):
    run(customer, nordlys)
    statements.issue_due(at=CLOSE)
    assert statements.issue_due(at=CLOSE + HOUR) == 0
    assert statements.issue_due(at=APRIL + 2 * HOUR) == 0


def test_a_reserve_that_is_held_no_more_is_stated_though_nothing_ran_since(customer, nordlys):
    run(customer, nordlys)
    statements.issue_due(at=CLOSE)
    later = datetime(2026, 8, 1, 4, tzinfo=UTC)
    assert accruing.release_due(at=later) == 1
    assert statements.issue_due(at=later) == 1
    last = SupplierStatement.objects.order_by("-pk")[0]
    assert (last.charge_micros, last.held_micros, last.due_micros) == (0, 0, 3_500_000)
    assert statements.issue_due(at=later + HOUR) == 0
    assert is_clean(at=later)


def test_a_month_waits_for_its_last_charges(customer, nordlys):
    run(customer, nordlys)
    assert statements.issue_due(at=APRIL + 2 * HOUR) == 0


def test_what_runs_over_a_months_end_is_stated_on_both_sides_of_it(customer, nordlys):
    run(customer, nordlys, at=APRIL - HOUR, hours=3)
    statements.issue_due(at=CLOSE)
    made = SupplierStatement.objects.get()
    assert (made.charge_micros, made.closing_micros, made.held_micros) == (5 * USD, 3_500_000, 350_000)
    statements.issue_due(at=NEXT_CLOSE)
    assert list(SupplierStatement.objects.order_by("pk").values_list("charge_micros", flat=True)) == [5 * USD, 10 * USD]
    assert is_clean()


def test_a_correction_of_an_earlier_month_stands_on_the_next_statement(customer, nordlys):
    span = start(customer, at=APRIL - 2 * HOUR, labels=labels(nordlys))
    charging.charge_span(span=span, through=APRIL + HOUR)
    accruing.accrue(at=APRIL + HOUR)
    statements.issue_due(at=CLOSE)
    usage.stop(resource_id="ins_1", at=APRIL - HOUR)
    accruing.accrue(at=CLOSE + HOUR)
    statements.issue_due(at=NEXT_CLOSE)
    late = SupplierStatement.objects.order_by("pk").last()
    assert (late.charge_micros, late.opening_micros) == (-5 * USD, 7_000_000)
    assert late.closing_micros == 3_500_000
    assert is_clean()


def test_adjustments_stand_on_the_statement_once(customer, nordlys):
    from uuid import uuid4

    run(customer, nordlys)
    made = adjusting.propose(
        supplier=nordlys, kind="other", amount_micros=-USD, currency="USD", reason="Late papers", by=make_person(),
        key=uuid4(), at=NOON,
    )  # fmt: skip
    adjusting.approve(adjustment=made, by=make_person(), at=NOON)
    statements.issue_due(at=CLOSE)
    statements.issue_due(at=NEXT_CLOSE)
    one = SupplierStatement.objects.get()
    assert (one.adjustment_micros, one.closing_micros) == (-USD, 2_500_000)
    assert is_clean()


def test_a_negative_balance_is_carried_forward(customer, nordlys):
    from uuid import uuid4

    made = adjusting.propose(
        supplier=nordlys, kind="refund", amount_micros=-9 * USD, currency="USD", reason="Refund", by=make_person(),
        key=uuid4(), at=NOON,
    )  # fmt: skip
    adjusting.approve(adjustment=made, by=make_person(), at=NOON)
    statements.issue_due(at=CLOSE)
    run(customer, nordlys, at=APRIL + 9 * HOUR)
    statements.issue_due(at=NEXT_CLOSE)
    rows = SupplierStatement.objects.order_by("pk").values_list("opening_micros", "closing_micros")
    assert list(rows) == [(0, -9 * USD), (-9 * USD, -5_500_000)]
    assert purses.of(nordlys.pk)["USD"].payable.balance_micros == -9 * USD + 3_150_000
    assert is_clean()


def test_a_statement_is_never_changed(customer, nordlys):
    run(customer, nordlys)
    statements.issue_due(at=CLOSE)
    for model in (SupplierStatement, StatementLine, StatementSeries):
        with pytest.raises(DatabaseError), transaction.atomic():
            model.objects.all().delete()
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        SupplierStatement.objects.update(number="ST-9")


def test_a_line_is_proved_by_its_spans(customer, nordlys):
    run(customer, nordlys)
    statements.issue_due(at=CLOSE)
    (step,) = statements.proof(StatementLine.objects.get())
    assert step["of"] == UsageSpan.objects.get().public_id
    assert (step["share_bps"], step["charge_micros"], step["payout_micros"]) == (7_000, 5 * USD, 3_150_000)


def test_without_a_seller_nothing_is_issued_and_no_number_is_lost(customer):
    supplier = make_supplier()
    make_card(supplier)
    run(customer, supplier)
    assert statements.issue_due(at=CLOSE) == 0
    make_seller()
    assert statements.issue_due(at=CLOSE) == 1
    assert SupplierStatement.objects.get().number == "ST-000001"


@pytest.mark.django_db(transaction=True)
def test_two_who_issue_at_once_issue_one_statement():
    make_seller()
    supplier, customer = make_supplier(), make_organization(cash=99 * USD)
    make_card(supplier)
    run(customer, supplier)
    assert at_the_same_moment(*[lambda: statements.issue_due(at=CLOSE)] * 3) == ["done"] * 3
    assert SupplierStatement.objects.count() == 1


SUSPENDED = """
    SET CONSTRAINTS ALL IMMEDIATE;
    ALTER TABLE billing_supplierstatement DISABLE TRIGGER USER;
    ALTER TABLE billing_supplierstatement DROP CONSTRAINT statement_adds_up;
    ALTER TABLE billing_statementline DISABLE TRIGGER USER;
    ALTER TABLE billing_statementitem DISABLE TRIGGER USER;
"""
BREAKS = {
    "statement_numbers_have_no_gap": "UPDATE billing_supplierstatement SET sequence = 3",
    "statement_is_the_sum_of_its_lines": "UPDATE billing_statementline SET charge_micros = charge_micros + 1",
    "statement_line_is_the_sum_of_its_items": "UPDATE billing_statementitem SET unit_milliseconds = 1",
    "accrual_is_stated_once": "UPDATE billing_accrual SET stated_payout_micros = stated_payout_micros + 1",
    "statements_of_a_supplier_follow_each_other": "UPDATE billing_supplierstatement SET opening_micros = 1",
    "supplier_has_what_was_earned_and_not_paid_out": "UPDATE billing_account SET balance_micros = 1 "
    "WHERE kind = 'reserve'",
}


@pytest.mark.parametrize("rule", BREAKS)
def test_the_audit_finds(customer, nordlys, rule):
    assert rule in audit.RULES
    run(customer, nordlys)
    statements.issue_due(at=CLOSE)
    with connection.cursor() as cursor:
        cursor.execute(SUSPENDED)
        cursor.execute(BREAKS[rule])
    assert rule in {finding.rule for finding in books.check(at=MAY)}
