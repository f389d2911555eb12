"""gpumarket statements: what a supplier sees, saves, and was paid."""

import json

import pytest

from tests.marketplace.cli.shop import Shop

STATEMENT = {
    "id": "sts_aaaaaaaaaaaaaaaaaaaa", "number": "ST-000001", "issued_at": "2026-06-01T04:00:00Z", "currency": "USD",
    "period": {"start": "2026-05-01T00:00:00Z", "end": "2026-06-01T00:00:00Z"}, "supplier": {"name": "Nordlys"},
    "opening": "0.000000", "charged": "24.900000", "payout": "15.687000", "held_back": "1.743000", "fee": "7.470000",
    "adjustments": "0.000000", "paid_out": "0.000000", "closing": "17.430000", "closing_held_back": "1.743000",
}  # fmt: skip
LINE = {
    "offer": "H200 in Narvik", "text": "", "node": "h200-1", "month": "2026-05", "gpu_milliseconds": 36_000_000,
    "charged": "24.900000", "payout": "15.687000", "held_back": "1.743000", "adjustment": "0.000000",
}  # fmt: skip
PAYOUT = {
    "id": "pyt_1", "statement": "ST-000001", "day": "2026-06-05", "amount": "15.680000", "currency": "USD",
    "state": "paid", "failure": "",
}  # fmt: skip


class ShopOfASupplier(Shop):
    """A shop that has sent one statement and one payout."""

    def answer(self, method, words, query, headers, body):
        match method, words:
            case "GET", ["statements"]:
                return 200, {"data": [STATEMENT], "next_cursor": None}
            case "GET", ["statements", key] if key == STATEMENT["id"]:
                return 200, STATEMENT
            case "GET", ["statements", _, "lines"]:
                return 200, {"data": [LINE], "next_cursor": None}
            case "GET", ["statements", _, "pdf"]:
                return 200, b"%PDF-1.4 bytes that are no text: \xff\x00"
            case "GET", ["payouts"]:
                return 200, {"data": [PAYOUT], "next_cursor": None}
        return super().answer(method, words, query, headers, body)


@pytest.fixture
def shop():
    shop = ShopOfASupplier()
    shop.open()
    yield shop
    shop.close()


def test_statements_are_listed_and_shown_with_what_each_node_earned(gpumarket):
    listed = gpumarket("statements", "list")
    for words in ("ST-000001", "2026-05-01 - 2026-06-01", "24.90 USD", "17.43 USD"):
        assert words in listed.out
    shown = gpumarket("statements", "show", "st-000001")
    for words in ("h200-1", "36,000,000", "15.687000 USD"):
        assert words in shown.out
    for words in ("Nordlys", "Closing: 17.43 USD"):
        assert words in shown.err
    assert json.loads(gpumarket("statements", "show", STATEMENT["id"], "--json").out)["lines"] == [LINE]


def test_its_pdf_is_saved_and_written_over_nothing(gpumarket, tmp_path):
    path = tmp_path / "mine.pdf"
    assert gpumarket("statements", "download", "ST-000001", "--output", str(path)).code == 0
    assert path.read_bytes().startswith(b"%PDF")
    again = gpumarket("statements", "download", "ST-000001", "--output", str(path))
    assert again.code != 0
    assert "could not be saved" in again.err


def test_payouts_are_listed_and_a_statement_that_is_none_is_named(gpumarket):
    assert "2026-06-05" in gpumarket("statements", "payouts").out
    missing = gpumarket("statements", "show", "ST-9")
    assert "There is no statement ST-9" in missing.err
