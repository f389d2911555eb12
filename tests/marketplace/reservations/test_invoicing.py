"""Blocks on invoices: bought, extended, cancelled, not delivered and resold, each with the arithmetic of its hours."""

import pytest
from django.urls import reverse

from billing import books
from billing.invoicing import issuing, proof, sellers
from billing.models import Invoice, InvoiceLine, PrepaidItem
from marketplace import quotes, refunds, reservations
from marketplace.api import invoice_answers
from marketplace.invoices import export, pdf
from marketplace.models import Organization, Reservation
from tests.billing.makers import pay_in
from tests.blocks import PRICE, Buyer, check_conserved
from tests.marketplace.invoices.conftest import leave_little_credit
from tests.marketplace.portal.conftest import browser

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def sold_by_somebody(acme_buys: Buyer, other_buys: Buyer) -> None:
    for buyer in (acme_buys, other_buys):
        leave_little_credit(buyer.project.organization)
        pay_in(buyer.project.organization, 1_000_000_000)
    seller = Organization.objects.create(name="Operator")
    sellers.save_details(organization=seller, legal_name="Operator AS", address="Havnegata 1", country="NO")
    sellers.name_seller(organization=seller)


def invoice_of(buyer: Buyer, *, hours: float = 2) -> dict[str, tuple[int, int]]:
    """Issue an invoice now; return price and credit of each line, after proving it."""
    found = issuing.issue(organization=buyer.project.organization, at=buyer.at(hours))
    lines = list(InvoiceLine.objects.filter(invoice=found))
    assert all(one.agrees for one in proof.of_lines(found, lines))
    assert books.check(at=buyer.at(hours)) == []
    assert books.recompute(at=buyer.at(hours)) == []
    return {item.kind: (one.amount_micros, item.promo_micros) for one in lines for item in [one.prepaid.get().item]}


def test_a_block_and_its_extension_are_lines_and_deliver_without_another(acme_buys: Buyer) -> None:
    mine = acme_buys.buy(8, 24, 26)
    quote = quotes.for_extension(reservation=mine, ends_at=acme_buys.at(27), at=acme_buys.at(1))
    reservations.extend(actor=acme_buys.actor, reservation=mine, quote=quote, at=acme_buys.at(1))
    lines = invoice_of(acme_buys)
    assert {kind: amount for kind, (amount, _) in lines.items()} == {
        "reservation": 8 * 2 * PRICE, "extension": 8 * PRICE
    }  # fmt: skip
    for hour in range(23, 29):
        acme_buys.go_to(hour)
    assert Reservation.objects.get(pk=mine.pk).state == "expired"
    assert PrepaidItem.objects.count() == 2
    assert Invoice.objects.count() == 1
    check_conserved(at=acme_buys.at(28))


def test_a_cancellation_gives_back_what_is_not_kept(acme_buys: Buyer) -> None:
    mine = acme_buys.buy(8, 24, 34)
    quote = quotes.for_cancellation(reservation=mine, at=acme_buys.at(1))
    reservations.cancel(actor=acme_buys.actor, reservation=mine, quote=quote, at=acme_buys.at(1))
    lines = invoice_of(acme_buys)
    assert lines["cancelled"][0] == -quote.refund_micros
    assert sum(amount for amount, _ in lines.values()) == quote.total_micros
    assert PrepaidItem.objects.get(kind="cancelled").kept_micros == quote.total_micros > 0


def test_what_was_not_delivered_comes_off(acme_buys: Buyer) -> None:
    mine = acme_buys.buy(8, 24, 34)
    refunds.give_back_hour(Reservation.objects.get(pk=mine.pk), 3, hour=acme_buys.at(24), at=acme_buys.at(24.5))
    refunds.give_back_hour(Reservation.objects.get(pk=mine.pk), 5, hour=acme_buys.at(24), at=acme_buys.at(24.6))
    assert sorted(PrepaidItem.objects.filter(kind="shortfall").values_list("amount_micros", flat=True)) == [
        -3 * PRICE, -2 * PRICE
    ]  # fmt: skip
    invoice_of(acme_buys, hours=30)
    assert Invoice.objects.get().subtotal_micros == 75 * PRICE


@pytest.mark.parametrize(("ask", "sold"), [(1_500_000, 8), (2_490_000, 2)])
def test_resold_hours_are_the_buyers_line_and_give_the_seller_back_no_more_than_they_cost(
    acme_buys: Buyer, other_buys: Buyer, ask: int, sold: int
) -> None:
    mine = acme_buys.buy(8, 24, 34)
    acme_buys.put_up(mine, 8, 24, 34, ask)
    trade = other_buys.trade(10, 24, 34, 4 * PRICE)
    assert invoice_of(other_buys)["trade"][0] == trade.total_micros
    cost, came = sold * 10 * PRICE, sold * 10 * ask * 95 // 100
    returned = PrepaidItem.objects.get(kind="resold")
    assert (-returned.amount_micros, returned.kept_micros) == (min(came, cost), max(0, cost - came))
    assert invoice_of(acme_buys)["resold"][0] == -min(came, cost)
    assert Invoice.objects.get(organization=acme_buys.project.organization).subtotal_micros == 160_000_000 - min(
        came, cost
    )
    check_conserved(at=acme_buys.at(2))


def test_the_page_the_file_and_the_api_show_how_its_price_comes_about(acme_buys: Buyer) -> None:
    acme_buys.buy(8, 24, 34)
    invoice_of(acme_buys)
    invoice = Invoice.objects.select_related("organization", "credited").get()
    lines = list(invoice.lines.select_related("price_version"))
    page = browser(acme_buys.actor.user).get(reverse("invoice", args=[invoice.public_id])).content.decode()
    assert "8 GPUs × 10 h × $2" in page
    assert "80 GPU-hours" in page
    (answer,) = [invoice_answers.proof(one) for one in proof.of_lines(invoice, lines)]
    assert answer["prepaid"]["hours"] == [{"gpus": 8, "hours": 10, "price_per_gpu_hour": "2.000000"}]
    assert (answer["prepaid"]["hours_cost"], answer["prepaid"]["amount"]) == ("160.000000", "160.000000")
    _header, row = export.csv_of(invoice, lines)
    assert f"Reservation {lines[0].resource_id}: 80 GPU-hours" in row
    assert pdf.drawn(invoice, lines).startswith(b"%PDF")
