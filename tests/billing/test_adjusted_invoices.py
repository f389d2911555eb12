"""Tiers, minimums and commitments on invoices: lines of their own, with their arithmetic, and nothing twice."""

import pytest
from django.db import IntegrityError, connection, transaction

from billing import adjusting, books, charging, usage
from billing.errors import NothingToInvoice
from billing.invoicing import issuing, proof
from billing.models import Adjustment, Invoice, InvoiceAdjustment, InvoiceLine
from tests.billing.invoicing import APRIL, CLOSE, MAY, close, details, make_seller, use
from tests.billing.makers import HOUR, NOON, PRICE, USD, make_organization, wallet
from tests.billing.pricing import SKU, committed, cost, in_force, item, tiered

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def the_books_balance(db):
    yield
    assert books.check(at=MAY + 20 * HOUR) == []
    assert books.recompute(at=MAY + 20 * HOUR) == []


@pytest.fixture
def acme(db):
    make_seller()
    return make_organization(cash=10_000 * USD)


def last():
    return Invoice.objects.order_by("pk").last()


def lines(invoice=None):
    rows = InvoiceLine.objects.filter(invoice=invoice or last()).order_by("pk")
    return {row.resource_name: row.amount_micros for row in rows}


def test_tiers_are_a_line_beside_the_use_and_the_proof_shows_each_tier(acme):
    use(acme, begin=NOON, hours=150, price=tiered(name="H100 in Narvik"), quantity=1)
    close()
    assert lines() == {
        "trainer": 150 * PRICE,
        "Tiers of H100 in Narvik: 150.00 GPU-hours in 2026-03": cost(150) - 150 * PRICE,
    }
    assert last().subtotal_micros == cost(150)
    assert wallet(acme).cash_micros == 10_000 * USD - last().total_micros
    found = proof.of_lines(last(), list(last().lines.order_by("pk")))
    assert all(each.agrees for each in found)
    steps = [(step.from_unit_hours, step.up_to_unit_hours, step.exact) for step in found[1].adjustment.steps]
    assert steps == [(0, 100, 250 * USD), (100, 1000, 100 * USD)]


def test_no_close_before_is_needed_and_a_later_one_changes_nothing(acme):
    use(acme, begin=NOON, hours=150, price=tiered(), quantity=1)
    close()
    assert adjusting.post_due(at=CLOSE + HOUR) == 0
    assert close(at=CLOSE + HOUR) == 0


def test_two_invoices_of_a_month_share_its_tiers_without_taking_them_twice(acme):
    span = use(acme, begin=NOON, hours=None, price=tiered(), quantity=1)
    issuing.issue(organization=acme, at=NOON + 120 * HOUR)
    assert last().subtotal_micros == cost(120)
    usage.stop(resource_id=span.resource_id, at=NOON + 200 * HOUR)
    close()
    assert Invoice.objects.count() == 2
    assert sum(Invoice.objects.values_list("subtotal_micros", flat=True)) == cost(200)
    assert not any(InvoiceLine.objects.values_list("is_late", flat=True))


def test_the_running_month_waits_for_its_own_invoice(acme):
    use(acme, begin=APRIL - 50 * HOUR, hours=None, price=tiered(), quantity=1)
    adjusting.post_due(at=APRIL + 150 * HOUR)
    close(at=APRIL + 150 * HOUR)
    assert lines() == {"trainer": 50 * PRICE}
    assert Adjustment.objects.get(month=APRIL).invoiced_micros == 0
    usage.stop(resource_id="ins_1", at=APRIL + 151 * HOUR)
    adjusting.post_due(at=APRIL + 152 * HOUR)


def test_late_use_of_a_month_brings_its_tiers_to_the_next_invoice(acme):
    price = tiered()
    use(acme, begin=NOON, hours=100, price=price, quantity=1)
    close()
    use(acme, begin=NOON + HOUR, hours=50, price=price, quantity=1, resource_id="ins_2")
    use(acme, begin=APRIL + HOUR, hours=1, price=price, quantity=1, resource_id="ins_3")
    adjusting.post_due(at=APRIL + 30 * HOUR)
    close(at=MAY + 2 * HOUR)
    late = InvoiceLine.objects.get(adjustment__isnull=False)
    assert (late.is_late, late.amount_micros) == (True, -25 * USD)
    assert sum(Invoice.objects.values_list("subtotal_micros", flat=True)) == cost(150) + cost(1)


def test_use_that_was_taken_back_takes_back_its_tiers(acme):
    span = use(acme, begin=NOON, hours=None, price=tiered(rows=((0, 10, USD), (10, None, 2 * USD))), quantity=1)
    charging.charge_span(span=span, through=NOON + 20 * HOUR)
    issuing.issue(organization=acme, at=NOON + 20 * HOUR)
    assert last().subtotal_micros == 30 * USD
    usage.stop(resource_id=span.resource_id, at=NOON + 5 * HOUR)
    with pytest.raises(NothingToInvoice):
        issuing.issue(organization=acme, at=NOON + 21 * HOUR)
    use(acme, begin=NOON + 30 * HOUR, hours=40, resource_id="ins_2", price=in_force(item("b"), begins=NOON)["b"])
    close()
    asked, taken = (
        sum(Invoice.objects.filter(kind=kind).values_list("subtotal_micros", flat=True))
        for kind in ("invoice", "credit_note")
    )
    assert (asked - taken, taken) == (5 * USD + 80 * PRICE, 15 * USD)  # the tiers follow on the next invoice


def test_a_commitment_is_on_the_invoice_and_so_is_what_it_left_over(acme):
    price = in_force(item(name="H100 in Narvik"), begins=NOON - HOUR)[SKU]
    promise = committed(acme, amount=100)
    use(acme, begin=APRIL, hours=30, price=price, quantity=1)
    close(at=MAY + 2 * HOUR)
    said = f"Commitment {promise.public_id}: "
    assert lines() == {
        "trainer": 75 * USD,
        f"{said}H100 in Narvik, 30.00 of 30.00 GPU-hours in 2026-04": -15 * USD,
        f"{said}what was promised and not used until 2026-04": 140 * USD,
    }
    assert last().subtotal_micros == 200 * USD


def test_a_commitment_that_nobody_used_is_invoiced_alone(acme):
    in_force(item(), begins=NOON - HOUR)
    committed(acme, amount=100)
    adjusting.post_due(at=MAY + HOUR)
    assert close(at=MAY + 2 * HOUR) == 1
    assert last().subtotal_micros == 200 * USD


def test_a_minimum_is_a_line_of_the_month_that_missed_it(acme):
    use(acme, begin=NOON, hours=10, price=in_force(item(minimum_micros=100 * USD), begins=NOON - HOUR)[SKU], quantity=1)
    close()
    assert lines() == {
        "trainer": 25 * USD,
        f"Tiers and minimum of {SKU}: 10.00 GPU-hours in 2026-03": 75 * USD,
    }


def test_a_rebate_returns_cash_before_credit_and_the_invoice_counts_the_credit_that_paid():
    make_seller()
    acme = make_organization(promo=20 * USD, cash=1000 * USD)
    use(acme, begin=NOON, hours=150, price=tiered(), quantity=1)
    close()
    assert (last().subtotal_micros, last().promo_micros, last().net_micros) == (350 * USD, 20 * USD, 330 * USD)
    assert wallet(acme).promo_micros == 0


def test_documents_in_japanese_have_japanese_words():
    make_seller("JP", "T5835678256246")
    acme = make_organization(currency="JPY", cash=10_000_000 * USD)
    details(acme, "JP", language="ja")
    rows = ((0, 100, 333_333_333), (100, None, 300_000_000))
    price = in_force(item(rows=rows, model="graduated", name="H100"), currency="JPY", begins=NOON - HOUR)[SKU]
    use(acme, begin=NOON, hours=150, price=price, quantity=1)
    close()
    assert "段階料金：H100、2026-03のご利用 150.00 GPU時間" in lines()
    assert last().subtotal_micros == 48_333 * USD  # 48,333.3333 yen


@pytest.mark.parametrize("change", ["UPDATE {} SET id = id", "DELETE FROM {}"])
def test_the_database_refuses_to_change_what_was_issued(acme, change):
    use(acme, begin=NOON, hours=150, price=tiered(), quantity=1)
    close()
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(change.format("billing_invoiceadjustment"))


@pytest.mark.parametrize(
    "damage",
    [
        "rated_micros = rated_micros + 5, before_micros = before_micros + 5",
        "unit_milliseconds = unit_milliseconds + 3600000",
        "amount_micros = amount_micros + 7, before_micros = before_micros - 7",
    ],
)
def test_the_proof_finds_a_line_that_was_tampered_with(acme, damage):
    use(acme, begin=NOON, hours=150, price=tiered(), quantity=1)
    close()
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            cursor.execute("ALTER TABLE billing_invoiceadjustment DISABLE TRIGGER USER")
            cursor.execute(f"UPDATE billing_invoiceadjustment SET {damage}")
        assert books.recompute()
        transaction.set_rollback(True)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE billing_adjustment SET unit_milliseconds = unit_milliseconds + 1",
        "UPDATE billing_adjustment SET base_micros = base_micros - 1, rated_micros = rated_micros - 1",
        "DELETE FROM billing_adjustment",
    ],
)
def test_the_second_calculator_finds_a_month_that_was_worked_out_wrongly(acme, damage):
    use(acme, begin=NOON, hours=150, price=tiered(), quantity=1)
    adjusting.post_due(at=CLOSE)
    assert books.recompute() == []
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            cursor.execute("ALTER TABLE billing_adjustmentposting DISABLE TRIGGER USER")
            cursor.execute("DELETE FROM billing_adjustmentposting")
            cursor.execute(damage)
        assert {finding.rule for finding in books.recompute()} == {"adjustment_comes_out_the_same"}
        transaction.set_rollback(True)


def test_a_correction_that_the_next_close_brings_is_no_contradiction(acme):
    span = use(acme, begin=NOON, hours=None, price=tiered(), quantity=1)
    charging.charge_span(span=span, through=NOON + 150 * HOUR)
    adjusting.post_due(at=NOON + 150 * HOUR)
    usage.stop(resource_id=span.resource_id, at=NOON + 120 * HOUR)
    assert books.recompute() == []
    adjusting.post_due(at=NOON + 151 * HOUR)
    assert books.recompute() == []
    assert InvoiceAdjustment.objects.count() == 0
