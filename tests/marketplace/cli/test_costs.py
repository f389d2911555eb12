"""gpumarket cost: what it shows, and what it refuses before it asks."""

import pytest

from tests.marketplace.cli.shop import Shop

FOUND = {
    "organization": {"id": "org_1", "name": "Acme"}, "currency": "USD", "by": ["day", "project"], "total": "12.345678",
    "data": [{"day": "2026-11-03", "project": {"id": "prj_1", "name": "default"}, "amount": "12.345678"}],
}  # fmt: skip


class ShopWithCosts(Shop):
    """A shop in which one project used something on one day of November."""

    def answer(self, method, words, query, headers, body):
        if (method, words) == ("GET", ["costs"]):
            is_november = query.get("month") in (None, "2026-11")
            return 200, FOUND if is_november else {**FOUND, "data": [], "total": "0.000000"}
        return super().answer(method, words, query, headers, body)


@pytest.fixture
def shop():
    shop = ShopWithCosts()
    shop.open()
    yield shop
    shop.close()


def test_costs_have_their_columns_and_their_sum(gpumarket):
    said = gpumarket("cost", "--by", "day,project")
    assert said.code == 0
    for text in ("DAY", "PROJECT", "2026-11-03", "default", "12.345678 USD"):
        assert text in said.out
    assert "Together 12.345678 USD." in said.err


def test_a_month_without_use_says_so(gpumarket):
    assert "Nothing was used in this month" in gpumarket("cost", "--month", "2026-10").err


def test_json_is_the_document(gpumarket):
    assert gpumarket("cost", "--json").json == FOUND


@pytest.mark.parametrize("words", [("--by", "colour"), ("--month", "11/2026")])
def test_what_makes_no_sense_is_refused_before_anything_is_asked(gpumarket, words):
    assert gpumarket("cost", *words).code == 2
