"""gpumarket idle: what it lists, and how a project's setting is changed."""

import pytest

from tests.marketplace.cli.shop import Shop

ROW = {
    "instance": {"id": "ins_1", "name": "trainer"}, "project": {"id": "prj_1", "name": "default"},
    "since": "2026-11-26T10:00:00Z", "per_hour": {"amount": "4.980000", "currency": "USD"},
    "for_nothing": {"amount": "9.960000", "currency": "USD"}, "warned_at": None, "stops_at": None,
}  # fmt: skip


class ShopWithIdle(Shop):
    """A shop in which one instance does nothing."""

    rows = (ROW,)

    def answer(self, method, words, query, headers, body):
        match method, words:
            case "GET", ["idle"]:
                return 200, {"data": list(self.rows)}
            case "PUT", ["projects", "prj_1", "idle"]:
                return 200, {"stop_minutes": 60} | body
        return super().answer(method, words, query, headers, body)


@pytest.fixture
def shop():
    shop = ShopWithIdle()
    shop.open()
    yield shop
    shop.close()


def test_what_is_idle_is_listed_with_what_it_costs(gpumarket, shop):
    said = gpumarket("idle")
    for text in ("trainer", "default", "4.98 USD", "9.96 USD"):
        assert text in said.out
    assert gpumarket("idle", "--json").json == {"data": [ROW]}
    shop.rows = ()
    assert "Nothing is idle" in gpumarket("idle").err


def test_a_project_says_what_is_done_about_it(gpumarket):
    said = gpumarket("idle", "set", "prj_1", "--then", "stop", "--after", "15")
    assert said.code == 0
    assert "stops it, 15 minutes after that" in said.err
    assert gpumarket("idle", "set", "prj_1", "--then", "melt").code == 2
