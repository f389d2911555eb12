"""Invoices: what stands on them, what they move, and that no use is on two of them or on none."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, transaction
from django.db.utils import IntegrityError

from billing import accounts, books, floating, prepayments, usage
from billing.errors import NoSeller, NothingToInvoice
from billing.invoicing import issuing, sellers
from billing.models import Account, Invoice, InvoiceItem, InvoiceLine, InvoiceMail, InvoiceSeries, Transfer, UsageSpan
from billing.prepayments import Paid, Part
from tests.billing.invoicing import APRIL, CLOSE, MARCH, MAY, charged, close, details, make_seller, use
from tests.billing.makers import HOUR, NOON, USD, block, make_organization, make_price, wallet

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def the_books_balance(db):
    yield
    assert books.check(at=datetime(2030, 1, 1, tzinfo=UTC)) == []
    assert books.recompute() == []


@pytest.fixture
def seller(db):
    return make_seller()


def only():
    return Invoice.objects.get()


def test_a_month_of_use_becomes_one_invoice_with_a_line_for_each_resource_and_price(seller):
    acme = make_organization(cash=100 * USD)
    details(acme)
    gpus, disk = make_price(), make_price(sku="site/storage", micros_per_unit_hour=100, unit="gib")
    use(acme, begin=NOON, hours=2, resource_id="ins_1", price=gpus, labels={"market": "on_demand"})
    use(acme, begin=NOON + 3 * HOUR, hours=2, resource_id="ins_1", price=gpus, labels={"market": "on_demand"})
    use(acme, begin=NOON, hours=1, resource_id="ins_2", price=gpus, labels={"market": "spot"})
    use(acme, begin=NOON, hours=10, resource_id="vol_1", price=disk, meter="volume", quantity=1000)
    assert close() == 1
    invoice = only()
    assert invoice.number == "INV-000001"
    assert (invoice.period_start, invoice.period_end) == (MARCH, APRIL)
    lines = InvoiceLine.objects.filter(invoice=invoice).order_by("resource_id")
    assert [(line.resource_id, line.market, line.unit, line.amount_micros) for line in lines] == [
        ("ins_1", "on_demand", "gpu", 20 * USD),
        ("ins_2", "spot", "gpu", 5 * USD),
        ("vol_1", "", "gib", USD),
    ]
    assert (invoice.net_micros, invoice.tax_micros, invoice.total_micros) == (26 * USD, 6_500_000, 32_500_000)
    assert (invoice.paid_micros, invoice.due_micros) == (32_500_000, 0)
    assert wallet(acme).cash_micros == 100 * USD - 32_500_000
    assert InvoiceMail.objects.filter(invoice=invoice, sent_at=None).exists()


def test_closing_again_issues_nothing(seller):
    use(make_organization(cash=100 * USD), begin=NOON)
    assert (close(), close(), close(at=MAY + 2 * HOUR)) == (1, 0, 0)


def test_a_month_is_closed_an_hour_after_it_ended(seller):
    use(make_organization(cash=100 * USD), begin=NOON)
    assert close(at=APRIL + HOUR - timedelta(milliseconds=1)) == 0
    assert close(at=APRIL + HOUR) == 1


def test_what_runs_on_is_cut_at_the_month_and_its_parts_add_up(seller):
    acme = make_organization(cash=100_000 * USD)
    price = make_price(micros_per_unit_hour=2_490_001)
    span = charged(use(acme, begin=NOON, hours=None, price=price), through=CLOSE)
    close()
    charged(span, through=MAY + HOUR)
    close(at=MAY + HOUR)
    usage.stop(resource_id="ins_1", at=MAY + 30 * HOUR)
    issuing.issue(organization=acme, at=MAY + 31 * HOUR)
    ends = InvoiceItem.objects.order_by("pk").values_list("starts_at", "ends_at")
    assert list(ends) == [(NOON, APRIL), (APRIL, MAY), (MAY, MAY + 30 * HOUR)]
    whole = UsageSpan.objects.get(pk=span.pk)
    assert sum(InvoiceItem.objects.values_list("amount_micros", flat=True)) == whole.charged_micros
    assert [invoice.number for invoice in Invoice.objects.order_by("pk")] == ["INV-000001", "INV-000002", "INV-000003"]


def test_months_that_nobody_closed_are_closed_one_by_one(seller):
    acme = make_organization(cash=100_000 * USD)
    charged(use(acme, begin=NOON, hours=None), through=MAY + 2 * HOUR)
    assert close(at=MAY + 2 * HOUR) == 2
    assert [one.period_end for one in Invoice.objects.order_by("pk")] == [APRIL, MAY]


def test_a_leap_day_belongs_to_february(seller):
    acme = make_organization(cash=1000 * USD)
    price = make_price()
    leap = datetime(2028, 2, 29, 23, 0, tzinfo=UTC)
    use(acme, begin=leap, hours=2, price=price)
    close(at=datetime(2028, 4, 2, tzinfo=UTC))
    february, march = Invoice.objects.order_by("pk")
    assert (february.period_start, february.period_end) == (
        datetime(2028, 2, 1, tzinfo=UTC), datetime(2028, 3, 1, tzinfo=UTC)
    )  # fmt: skip
    assert february.net_micros == march.net_micros == 5 * USD


def test_use_that_becomes_known_late_is_a_line_of_its_own_in_the_open_period(seller):
    acme = make_organization(cash=1000 * USD)
    price = make_price()
    use(acme, begin=NOON, price=price)
    close()
    use(acme, begin=NOON + 5 * HOUR, resource_id="ins_late", price=price)
    use(acme, begin=APRIL + HOUR, resource_id="ins_now", price=price)
    assert close() == 0
    assert close(at=MAY + 2 * HOUR) == 1
    invoice = Invoice.objects.order_by("pk").last()
    assert (invoice.period_start, invoice.period_end) == (APRIL, MAY)
    lines = {line.resource_id: line.is_late for line in InvoiceLine.objects.filter(invoice=invoice)}
    assert lines == {"ins_late": True, "ins_now": False}


def test_a_meter_that_turns_out_to_have_ended_in_a_closed_month_is_taken_back_of_its_invoice(seller):
    acme = make_organization(cash=10_000 * USD)
    price = make_price()
    charged(use(acme, begin=APRIL - 10 * HOUR, hours=None, price=price), through=CLOSE)
    close()
    usage.stop(resource_id="ins_1", at=APRIL - 2 * HOUR)
    use(acme, begin=APRIL + 3 * HOUR, hours=10, resource_id="ins_2", price=price)
    close(at=MAY + 2 * HOUR)
    april = Invoice.objects.get(period_end=MAY)
    assert InvoiceLine.objects.get(invoice=april).amount_micros == april.net_micros == 50 * USD
    note = Invoice.objects.get(kind="credit_note")
    assert (note.credited.period_end, note.net_micros, note.tax_micros) == (APRIL, 10 * USD, 2_500_000)


def test_promotional_credit_comes_off_before_the_tax_and_cash_pays_the_rest(seller):
    acme = make_organization(promo=10 * USD, cash=100 * USD)
    use(acme, begin=NOON, hours=6)
    close()
    invoice = only()
    assert (invoice.subtotal_micros, invoice.promo_micros, invoice.net_micros) == (30 * USD, 10 * USD, 20 * USD)
    assert (invoice.tax_micros, invoice.paid_micros, invoice.due_micros) == (5 * USD, 25 * USD, 0)
    assert wallet(acme).cash_micros == 75 * USD


def test_what_credit_paid_whole_asks_for_nothing_and_waits_for_what_cash_pays(seller):
    acme = make_organization(promo=10 * USD, cash=100 * USD)
    price = make_price()
    use(acme, begin=NOON, hours=1, price=price)
    assert close() == 0
    with pytest.raises(NothingToInvoice):
        issuing.issue(organization=acme, at=CLOSE)
    use(acme, begin=APRIL + HOUR, hours=3, resource_id="ins_2", price=price)
    assert close(at=MAY + 2 * HOUR) == 1
    lines = InvoiceLine.objects.filter(invoice=only()).values_list("resource_id", "amount_micros", "is_late")
    assert sorted(lines) == [("ins_1", 5 * USD, False), ("ins_2", 15 * USD, False)]
    assert (only().period_start, only().period_end) == (MARCH, MAY)
    assert (only().promo_micros, only().net_micros, only().tax_micros) == (10 * USD, 10 * USD, 2_500_000)


def test_who_asks_for_nothing_is_looked_at_once_a_month(seller, monkeypatch):
    use(make_organization(promo=100 * USD), begin=NOON, hours=1)
    looked = []
    monkeypatch.setattr(issuing, "drafted", lambda **known: looked.append(known["cutoff"]))
    assert [close(), close(at=CLOSE + HOUR), close(at=MAY + 2 * HOUR)] == [0, 0, 0]
    assert looked == [APRIL, MAY]


def test_use_that_nobody_is_ever_asked_for_keeps_no_later_month_from_its_invoice(seller):
    price = make_price()
    use(make_organization(promo=100 * USD), begin=NOON, hours=1, price=price)
    much_later = datetime(2029, 11, 3, tzinfo=UTC)
    use(make_organization(cash=100 * USD), begin=much_later, resource_id="ins_2", price=price)
    assert close(at=datetime(2029, 12, 1, 2, tzinfo=UTC)) == 1
    assert only().period_start == datetime(2029, 11, 1, tzinfo=UTC)


def test_the_database_refuses_an_invoice_of_nothing(seller):
    use(make_organization(cash=100 * USD), begin=NOON)
    close()
    again = only()
    again.pk, again.sequence, again.number, again.public_id, again.period_end = None, 2, "INV-000002", "ivc_x", MAY
    again.subtotal_micros, again.net_micros, again.total_micros = 0, 0, again.tax_micros
    again.paid_micros, again.due_micros = again.total_micros, 0
    with pytest.raises(IntegrityError, match="invoice_asks_for_something"), transaction.atomic():
        again.save(force_insert=True)


def test_what_nobody_paid_is_due_and_older_debts_are_told_apart(seller):
    acme = make_organization(cash=4 * USD)
    price = make_price()
    use(acme, begin=NOON, hours=1, price=price)
    close()
    first = only()
    assert (first.total_micros, first.paid_micros, first.due_micros) == (6_250_000, 4 * USD, 2_250_000)
    use(acme, begin=APRIL + HOUR, hours=2, resource_id="ins_2", price=price)
    use(acme, begin=MAY + HOUR / 2, hours=1, resource_id="ins_3", price=price)
    close(at=MAY + 2 * HOUR)
    second = Invoice.objects.order_by("pk").last()
    assert (second.total_micros, second.due_micros) == (12_500_000, 12_500_000)
    assert second.older_due_micros == 2_250_000
    assert wallet(acme).owed_micros == 2_250_000 + 12_500_000 + 5 * USD


def test_the_ledger_holds_exactly_what_invoices_ask_for(seller):
    acme = make_organization(cash=100 * USD)
    price = make_price(micros_per_unit_hour=1_111_111)
    for number in range(3):
        use(acme, begin=NOON + number * HOUR, resource_id=f"ins_{number}", price=price, quantity=1)
    close()
    assert wallet(acme).cash_micros == 100 * USD - only().total_micros
    assert only().subtotal_micros == 3_330_000
    assert Transfer.objects.filter(key__startswith=f"invoice:{only().public_id}:rounding:").count() == 1


def test_a_currency_without_minor_units_is_invoiced_in_whole_ones():
    make_seller("JP", "T5835678256246")
    acme = make_organization(currency="JPY")
    details(acme, "JP")
    use(acme, begin=NOON, hours=3, price=make_price(micros_per_unit_hour=333_333_333, currency="JPY"), quantity=1)
    close()
    assert (only().net_micros, only().tax_micros, only().total_micros) == (1000 * USD, 100 * USD, 1100 * USD)


def test_floating_prices_are_cut_at_the_month_too(seller):
    acme = make_organization(cash=1000 * USD)
    series = floating.open_series(
        sku="ofr_1/spot", currency="USD", micros_per_unit_hour=1_000_000, by="x", at=APRIL - 10 * HOUR
    )
    span = use(acme, begin=APRIL - 8 * HOUR, hours=None, price=series, labels={"market": "spot"})
    floating.append(series=series, micros_per_unit_hour=3_000_000, at=APRIL - 2 * HOUR)
    charged(span, through=CLOSE)
    close()
    line = InvoiceLine.objects.get()
    assert line.micros_per_unit_hour is None
    assert line.amount_micros == 2 * (6 * USD + 2 * 3 * USD)


def test_what_was_not_charged_yet_is_charged_first(seller):
    acme = make_organization(cash=1000 * USD)
    use(acme, begin=NOON, hours=None)
    invoice = issuing.issue(organization=acme, at=NOON + 4 * HOUR)
    assert invoice.subtotal_micros == 20 * USD
    assert UsageSpan.objects.get().charged_through == NOON + 4 * HOUR


def test_each_organization_has_an_invoice_of_its_own_and_the_next_number(seller):
    price = make_price()
    for number in range(5):
        use(make_organization(cash=100 * USD), begin=NOON, resource_id=f"ins_{number}", price=price)
    assert close() == 5
    assert sorted(Invoice.objects.values_list("sequence", flat=True)) == [1, 2, 3, 4, 5]
    assert Invoice.objects.values("organization").distinct().count() == 5


def test_what_costs_less_than_half_a_cent_waits(seller):
    acme = make_organization(cash=USD)
    use(acme, begin=NOON, hours=1, price=make_price(micros_per_unit_hour=2_000))
    assert close() == 0
    use(acme, begin=APRIL + HOUR, hours=1, resource_id="ins_2", price=make_price(micros_per_unit_hour=4_000, sku="b"))
    assert close(at=MAY + 2 * HOUR) == 1
    assert only().subtotal_micros == 10_000


def test_without_a_seller_nothing_is_issued_and_nothing_is_lost(db):
    acme = make_organization(cash=100 * USD)
    use(acme, begin=NOON)
    assert close() == 0
    with pytest.raises(NoSeller):
        issuing.issue(organization=acme, at=CLOSE)
    make_seller()
    assert close() == 1


def test_an_organization_without_details_is_invoiced_under_its_name_as_if_in_the_sellers_country(seller):
    acme = make_organization(cash=100 * USD)
    use(acme, begin=NOON)
    close()
    assert only().customer["name"] == acme.name
    assert only().tax_treatment == Invoice.Treatment.DOMESTIC


def test_later_details_do_not_change_what_was_issued(seller):
    acme = make_organization(cash=100 * USD)
    details(acme, legal_name="Acme Old")
    use(acme, begin=NOON)
    close()
    details(acme, "DE", "DE136695976", legal_name="Acme New")
    assert only().customer["name"] == "Acme Old"
    assert only().tax_country == "NO"


def test_taxes_shorten_how_long_the_money_lasts(seller):
    acme = make_organization(cash=100 * USD)
    charged(use(acme, begin=APRIL - 10 * HOUR, hours=None), through=CLOSE)
    lasts = acme.runway.exhausts_at
    close()
    acme.runway.refresh_from_db()
    assert lasts - acme.runway.exhausts_at == timedelta(hours=2.5)  # 12.50 of tax on 50, at 5 an hour


@pytest.mark.parametrize("table", ["billing_invoice", "billing_invoiceline", "billing_invoiceitem"])
@pytest.mark.parametrize("change", ["UPDATE {} SET id = id", "DELETE FROM {}"])
def test_the_database_refuses_to_change_what_was_issued(seller, table, change):
    use(make_organization(cash=100 * USD), begin=NOON)
    close()
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(change.format(table))


@pytest.mark.parametrize("change", ["SET next_number = 1", "SET prefix = 'X'", "SET next_number = next_number - 1"])
def test_the_database_refuses_to_give_a_number_again(seller, change):
    use(make_organization(cash=100 * USD), begin=NOON)
    close()
    with pytest.raises(IntegrityError, match="keeps its numbers"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"UPDATE billing_invoiceseries {change} WHERE kind = 'invoice'")


def test_the_database_refuses_two_invoices_of_one_period(seller):
    use(make_organization(cash=100 * USD), begin=NOON)
    close()
    again = only()
    again.pk, again.sequence, again.number, again.public_id = None, 2, "INV-000002", "ivc_x"
    with pytest.raises(IntegrityError, match="invoice_once_per_period"), transaction.atomic():
        again.save(force_insert=True)


def test_a_seller_that_moves_on_keeps_the_numbers(seller):
    acme = make_organization(cash=100 * USD)
    use(acme, begin=NOON)
    close()
    sellers.name_seller(organization=make_seller("DE"))
    use(acme, begin=APRIL + HOUR, resource_id="ins_2", price=make_price(sku="other"))
    close(at=MAY + 2 * HOUR)
    assert Invoice.objects.order_by("pk").last().number == "INV-000002"
    assert InvoiceSeries.objects.count() == 2


def test_use_that_was_paid_ahead_is_a_line_that_asks_for_nothing(seller):
    acme = make_organization(cash=100 * USD)
    price = make_price()
    use(acme, begin=NOON, price=price, covered_by="rsv_1", labels={"market": "reserved"})
    assert close() == 0
    use(acme, begin=APRIL + HOUR, resource_id="ins_1", price=price, labels={"market": "reserved"})
    assert close(at=MAY + 2 * HOUR) == 1
    lines = InvoiceLine.objects.order_by("starts_at").values_list("micros_per_unit_hour", "amount_micros")
    assert list(lines) == [(0, 0), (2_500_000, 5 * USD)]


def test_credit_that_paid_ahead_takes_nothing_off_the_use(seller):
    acme = make_organization(promo=10 * USD, cash=100 * USD)
    deferred = accounts.platform(Account.Kind.DEFERRED, "USD")
    prepayments.pay(
        organization=acme, key="trade:trd_1", parts=[Part("offer", deferred, 8 * USD)],
        block=block("trade", ((1, 1, 8 * USD),)), reason="Hours", at=NOON,
    )  # fmt: skip
    prepayments.give_back(
        organization=acme, key="rsv_1:cancelled", back=Paid(USD, 0), deferred_micros=USD,
        block=block("cancelled", ((1, 1, 8 * USD),), kept=7 * USD), reason="Refund", at=NOON,
    )  # fmt: skip
    use(acme, begin=NOON, hours=2)
    close()
    assert (only().promo_micros, only().net_micros) == ((3 + 8 - 1) * USD, 7 * USD)
