"""gpumarket invoices: what it lists, shows and saves."""

import pytest

from tests.marketplace.cli.shop import Shop

INVOICE = {
    "id": "ivc_aaaaaaaaaaaaaaaaaaaa", "number": "INV-000007", "kind": "invoice", "issued_at": "2026-04-01T02:00:00Z",
    "period": {"start": "2026-03-01T00:00:00Z", "end": "2026-04-01T00:00:00Z"}, "currency": "USD",
    "customer": {"name": "Acme"}, "subtotal": "17.400000", "promo": "0.000000", "net": "17.400000",
    "taxes": [{"name": "MWST", "treatment": "domestic", "rate_bps": 810, "tax": "1.410000"}], "total": "18.810000",
    "due": "0.000000", "state": "paid", "written_off": "0.000000", "recovered": "0.000000",
}  # fmt: skip
LINE = {
    "name": "trainer", "resource": "ins_1", "market": "spot", "late": False, "unit": "gpu",
    "unit_milliseconds": 21_600_000, "price_per_unit_hour": None, "exact": "17.399999", "amount": "17.400000",
}  # fmt: skip


PAID = {
    "id": "pay_1", "invoice": {"id": INVOICE["id"], "number": "INV-000007"}, "state": "created", "amount": "18.810000",
    "currency": "USD", "card": "visa 4242",
}  # fmt: skip
DISPUTED = {"id": "idp_1", "net": "10.000000", "gross": "10.810000", "currency": "USD", "state": "open"}


class ShopWithInvoices(Shop):
    """A shop that has sent one invoice."""

    def answer(self, method, words, query, headers, body):
        match method, words:
            case "GET", ["invoices"]:
                return 200, {"data": [INVOICE], "next_cursor": None}
            case "GET", ["invoices", key] if key == INVOICE["id"]:
                return 200, INVOICE
            case "GET", ["invoices", _, "lines"]:
                return 200, {"data": [LINE], "next_cursor": None}
            case "GET", ["invoices", key, "pdf"] if key == INVOICE["id"]:
                return 200, b"%PDF-1.4 bytes that are no text: \xff\x00"
            case "POST", ["invoices", key, "pay"] if key == INVOICE["id"]:
                assert headers.get("Idempotency-Key")
                return 202, PAID
            case "POST", ["invoices", key, "disputes"] if key == INVOICE["id"]:
                return 201, DISPUTED | {"reason": body["reason"]}
        return super().answer(method, words, query, headers, body)


@pytest.fixture
def shop():
    shop = ShopWithInvoices()
    shop.open()
    yield shop
    shop.close()


def test_the_list_has_number_period_and_amounts(gpumarket):
    said = gpumarket("invoices", "list")
    assert said.code == 0
    for text in ("INV-000007", "2026-03-01 - 2026-04-01", "17.40 USD", "1.41 USD", "18.81 USD"):
        assert text in said.out


def test_one_invoice_has_its_lines_and_totals(gpumarket):
    said = gpumarket("invoices", "show", "INV-000007")
    assert "17.399999 USD" in said.out
    assert "21,600,000 GPU-ms" in said.out
    assert "MWST 8.1 %: 1.41 USD" in said.err


def test_one_that_was_given_up_says_how_much_and_what_can_still_be_paid(gpumarket, monkeypatch):
    lost = {"state": "uncollectible", "due": "6.810000", "written_off": "18.810000", "recovered": "12.000000"}
    monkeypatch.setattr("tests.marketplace.cli.test_invoices.INVOICE", INVOICE | lost)
    listed = gpumarket("invoices", "list").out
    assert "6.81 USD" in listed
    assert "uncollectible" in listed
    said = gpumarket("invoices", "show", "INV-000007").err
    for text in ("Given up: 18.81 USD", "Paid after all: 12.00 USD", "Can still be paid: 6.81 USD"):
        assert text in said
    assert "Still due" not in said


def test_json_is_one_document_with_the_lines(gpumarket):
    assert gpumarket("invoices", "show", INVOICE["id"], "--json").json == {**INVOICE, "lines": [LINE]}


def test_the_pdf_is_saved_and_never_written_over(gpumarket, empty_home):
    assert gpumarket("invoices", "download", "INV-000007").code == 0
    assert (empty_home / "INV-000007.pdf").read_bytes() == b"%PDF-1.4 bytes that are no text: \xff\x00"
    again = gpumarket("invoices", "download", "INV-000007")
    assert again.code != 0
    assert "Name another file" in again.err


def test_an_invoice_that_does_not_exist_is_said_so(gpumarket):
    said = gpumarket("invoices", "show", "INV-9")
    assert said.code != 0
    assert "There is no invoice INV-9" in said.err


def test_an_invoice_is_paid_with_the_saved_card(gpumarket):
    said = gpumarket("invoices", "pay", "INV-000007")
    assert said.code == 0
    assert "18.81 USD for INV-000007 is being charged to visa 4242 (created)." in said.err
    assert gpumarket("invoices", "pay", "INV-000007", "--json").json == PAID


def test_an_invoice_is_disputed(gpumarket):
    said = gpumarket("invoices", "dispute", "INV-000007", "--reason", "It was stopped")
    assert "10.81 USD of INV-000007 is disputed (idp_1)" in said.err
    assert gpumarket("invoices", "dispute", "INV-000007", "--reason", "Slow", "--json").json["reason"] == "Slow"
