"""gpumarket sla: what it shows."""

import pytest

from tests.marketplace.cli.shop import Shop

ROW = {
    "id": "sla_1", "instance": {"id": "ins_1", "name": "trainer"}, "month": "2026-10", "is_final": True,
    "terms_version": "2026-01", "up_ms": 3_600_000, "down_ms": 61_000, "degraded_ms": 0,
    "availability_ppm": 983_337, "paid": "2.490000", "credit_bps": 2500, "credit": "0.622500", "currency": "USD",
}  # fmt: skip


class ShopWithVerdicts(Shop):
    """A shop that judged one month."""

    rows = (ROW,)

    def answer(self, method, words, query, headers, body):
        if (method, words) == ("GET", ["service-levels"]):
            return 200, {"data": list(self.rows), "next_cursor": None}
        return super().answer(method, words, query, headers, body)


@pytest.fixture
def shop():
    shop = ShopWithVerdicts()
    shop.open()
    yield shop
    shop.close()


def test_a_month_has_its_figures(gpumarket):
    said = gpumarket("sla")
    assert said.code == 0
    for text in ("2026-10", "trainer", "98.3337 %", "1:00:00", "0:01:01", "0.6225"):
        assert text in said.out


def test_json_is_the_document(gpumarket):
    assert gpumarket("sla", "--json").json == {"data": [ROW], "next_cursor": None}


def test_before_the_first_month_it_says_so(gpumarket, shop):
    shop.rows = ()
    assert "No month is over yet" in gpumarket("sla").err
