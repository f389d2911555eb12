"""gpumarket commitments, and the tiers that gpumarket offers tells."""

import pytest

from marketplace.cli.offers import tiers_of
from tests.marketplace.cli.shop import Shop

ROW = {
    "id": "cmt_1", "kind": "hours", "currency": "USD", "committed": "200.000000", "committed_unit_hours": 100,
    "drawn": "60.000000", "drawn_unit_milliseconds": 108000000, "left": "140.000000", "left_over": "0.000000",
    "discount_bps": 2000, "starts_at": "2026-04-01T00:00:00Z", "ends_at": "2026-05-01T00:00:00Z",
    "prices": [{"name": "H100", "sku": "ofr_1/on_demand", "unit": "gpu_hour", "amount": "2.000000",
                "currency": "USD", "list_amount": "2.500000"}],
}  # fmt: skip


class ShopWithCommitments(Shop):
    rows = (ROW,)

    def answer(self, method, words, query, headers, body):
        if (method, words) == ("GET", ["commitments"]):
            return 200, {"data": list(self.rows), "next_cursor": None}
        return super().answer(method, words, query, headers, body)


@pytest.fixture
def shop():
    shop = ShopWithCommitments()
    shop.open()
    yield shop
    shop.close()


def test_commitments_have_their_columns(gpumarket):
    said = gpumarket("commitments")
    assert said.code == 0
    for text in ("cmt_1", "2026-04-01 - 2026-05-01", "200.00", "60.00", "140.00", "H100 2.00"):
        assert text in said.out


def test_without_commitments_it_says_what_holds(gpumarket, shop):
    shop.rows = ()
    assert "everything is charged by the list" in gpumarket("commitments").err


def test_a_program_gets_the_rows(gpumarket):
    assert '"drawn": "60.000000"' in gpumarket("commitments", "--json").out


@pytest.mark.parametrize(
    ("model", "minimum", "said"),
    [
        ("graduated", None, "0-100 h 2.50 USD, 100- h 2.00 USD per month; each hour at its tier"),
        ("volume", "10.000000", "0-100 h 2.50 USD, 100- h 2.00 USD per month; all hours at the tier that the month"
                                " reaches; at least 10.00 USD in a month of use"),
    ],
)  # fmt: skip
def test_offers_tell_their_tiers(model, minimum, said):
    tiers = [
        {"from_unit_hours": 0, "up_to_unit_hours": 100, "amount": "2.500000"},
        {"from_unit_hours": 100, "up_to_unit_hours": None, "amount": "2.000000"},
    ]
    price = {"currency": "USD", "model": model, "tiers": tiers, "minimum_per_month": minimum}
    assert tiers_of(price) == said
    assert tiers_of(price | {"tiers": [], "minimum_per_month": None}) == ""
