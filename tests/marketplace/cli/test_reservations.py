"""gpumarket reserve, windows, reservations, resell, listings, lend: what they ask, say and print."""

from datetime import UTC, datetime

import pytest

from marketplace.cli.problems import Problem
from marketplace.cli.times import moment
from tests.marketplace.cli.shop import Shop, make_problem

NOW = datetime(2026, 11, 26, 13, 20, tzinfo=UTC)
USD = {"currency": "USD"}
TERMS = {
    "lock_minutes": 60, "notice_minutes": 40, "drain_minutes": 30, "resale_fee_percent": "5.00",
    "resale_cutoff_minutes": 60, "lend_share_percent": "50.00",
}  # fmt: skip
OFFER = {
    "slug": "h200-narvik",
    "name": "H200 in Narvik",
    "gpu_model": "H200",
    "site": {"name": "Narvik", "country": "NO"},
}
COSTS = [{"until": "2026-11-27T10:00:00Z", "kept_percent": "10.00", "kept": {"amount": "10.000000", **USD},
          "refund": {"amount": "90.000000", **USD}}]  # fmt: skip


def make_quote(**changes):
    return {
        "id": "qte_1", "kind": "purchase", "offer": OFFER, "gpus": 8, "hours": 24, "discount_percent": "10.00",
        "starts_at": "2026-11-28T10:00:00Z", "ends_at": "2026-11-29T10:00:00Z",
        "list_price": {"amount": "2.000000", **USD}, "price": {"amount": "1.800000", **USD},
        "total": {"amount": "345.600000", **USD}, "refund": {"amount": "0.000000", **USD}, "terms": TERMS,
        "cancellation_costs": COSTS, "expires_at": "2026-11-26T13:30:00Z",
    } | changes  # fmt: skip


def make_reservation(**changes):
    can = {"available": True, "reason": None}
    return {
        "id": "rsv_1", "state": "scheduled", "offer": OFFER, "project": {"name": "default"}, "gpus": 8, "used_gpus": 0,
        "starts_at": "2026-11-28T10:00:00Z", "ends_at": "2026-11-29T10:00:00Z", "message": "", "is_lent": False,
        "steps": [{"starts_at": "2026-11-28T10:00:00Z", "ends_at": "2026-11-29T10:00:00Z", "gpus": 8}],
        "paid": {"amount": "345.600000", **USD}, "lent": {"amount": "0.000000", **USD}, "shortfalls": [],
        "cancellation_costs": COSTS, "terms": TERMS,
        "actions": {"extend": can, "cancel": {"available": False, "reason": "It is locked."}},
    } | changes  # fmt: skip


def make_listing(**changes):
    return {
        "id": "lst_1", "reservation": "rsv_1", "state": "open", "offer": OFFER, "gpus": 4,
        "starts_at": "2026-11-28T10:00:00Z", "ends_at": "2026-11-29T10:00:00Z", "sold_gpu_hours": 3,
        "ask": {"amount": "1.500000", **USD}, "proceeds": {"amount": "4.280000", **USD},
    } | changes  # fmt: skip


WINDOW = {
    "offer": OFFER, "gpus": 8, "starts_at": "2026-11-28T10:00:00Z", "ends_at": "2026-11-29T10:00:00Z",
    "total": {"amount": "345.600000", **USD}, "dearest": {"amount": "1.800000", **USD}, "resold_gpu_hours": 0,
    "buy_by": "quote",
}  # fmt: skip


class ShopWithBlocks(Shop):
    """A shop that sells ahead: one window, one reservation, one listing."""

    def answer(self, method, words, query, headers, body):
        match method, words:
            case "GET", ["windows"]:
                return 200, {"data": [WINDOW], "as_of": "2026-11-26T13:20:00Z"}
            case "POST", ["quotes"]:
                return 201, make_quote(kind=body.get("kind", "purchase"))
            case "GET", ["reservations"]:
                return 200, {"data": [make_reservation()], "next_cursor": None}
            case _, ["reservations", "rsv_1", *_] | ["reservations"]:
                return 202, make_reservation()
            case "GET", ["listings"]:
                return 200, {"data": [make_listing()], "next_cursor": None}
            case _, ["listings", *_]:
                return 201, make_listing()
            case "GET", ["offers", "h200-narvik", "asks"]:
                ask = {"ask": {"amount": "1.500000", **USD}, "min_gpus": 1, "min_hours": 1, "is_mine": False,
                       "steps": make_reservation()["steps"]}  # fmt: skip
                return 200, {"data": [ask]}
            case "POST", ["trades"]:
                leg = {"source": "listing", "gpus": 2, "starts_at": "2026-11-28T10:00:00Z",
                       "ends_at": "2026-11-28T12:00:00Z", "price": {"amount": "1.500000", **USD}}  # fmt: skip
                return 202, {
                    "id": "trd_1",
                    "reservation": "rsv_2",
                    "total": {"amount": "6.000000", **USD},
                    "legs": [leg],
                }
            case _, ["reservations", *_]:
                return make_problem(404, "not_found")
        return super().answer(method, words, query, headers, body)


@pytest.fixture
def shop():
    shop = ShopWithBlocks()
    shop.open()
    yield shop
    shop.close()


RESERVE = ("reserve", "h200-narvik", "--gpus", "8", "--start", "2026-11-28T10:00", "--hours", "24")


def test_reserve_shows_the_quote_and_buys_it(gpumarket, shop):
    said = gpumarket(*RESERVE, "--yes")
    assert (said.code, said.out) == (0, "rsv_1\n")
    for words in ("8 H200 in Narvik from 2026-11-28 10:00 UTC", "10.00 % less than 2.00 USD", "345.60 USD, paid now",
                  "told 40 min and stopped 30 min before", "10.00 USD kept, 90.00 USD back"):  # fmt: skip
        assert words in said.err
    (asked,) = shop.asked("POST", "/api/v1/quotes")
    assert asked["body"] == {
        "offer": "h200-narvik", "gpus": 8, "starts_at": "2026-11-28T10:00:00Z", "ends_at": "2026-11-29T10:00:00Z"
    }  # fmt: skip
    (bought,) = shop.asked("POST", "/api/v1/reservations")
    assert bought["body"] == {"quote": "qte_1"}
    assert bought["headers"]["Idempotency-Key"]


def test_the_quote_of_a_cancellation_says_nothing_of_buying(gpumarket):
    said = gpumarket("reservations", "cancel", "rsv_1", "--yes").err
    assert "  good      until" in said
    assert "until it is bought" not in said


def test_reserving_what_is_not_for_sale_leads_to_the_offers(gpumarket, shop):
    said = gpumarket("reserve", "nosuch", *RESERVE[2:], "--yes")
    assert said.code == 4
    assert "See what there is: gpumarket offers" in said.err
    assert not shop.asked("POST", "/api/v1/quotes")


def test_nobody_pays_without_having_said_yes(gpumarket, shop):
    said = gpumarket(*RESERVE)
    assert said.code == 2
    assert "Add --yes" in said.err
    assert shop.asked("POST", "/api/v1/reservations") == []


def test_the_cheapest_window_is_taken_where_only_an_end_is_named(gpumarket, shop):
    said = gpumarket("reserve", "--gpus", "8", "--hours", "24", "--before", "2026-12-01T00:00", "--yes", "--json")
    assert said.json["id"] == "rsv_1"
    assert "The cheapest of 1: h200-narvik" in said.err
    (asked,) = shop.asked("GET", "/api/v1/windows")
    assert asked["query"]["before"] == "2026-12-01T00:00:00Z"


@pytest.mark.parametrize(
    "wrong",
    [("reserve", "--gpus", "8", "--start", "2026-11-28T10:00", "--hours", "1"),
     ("reserve", "h200-narvik", "--gpus", "8"),
     ("reserve", "h200-narvik", "--gpus", "8", "--start", "soon", "--hours", "1"),
     ("reserve", "h200-narvik", "--gpus", "8", "--start", "2026-11-28T10:00", "--hours", "1", "--end", "friday"),
     ("reserve", "--gpus", "8", "--before", "friday")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_anything_is_asked(gpumarket, shop, wrong):
    assert gpumarket(*wrong, "--yes").code == 2
    assert shop.asked("POST", "/api/v1/quotes") == []


def test_windows_says_what_to_type_next(gpumarket, shop):
    said = gpumarket("windows", "--gpus", "8", "--hours", "24", "--before", "friday", "--gpu-model", "H200")
    assert "345.60 USD" in said.out
    assert "gpumarket reserve h200-narvik --gpus 8 --start 2026-11-28T10:00:00Z --hours 24" in said.err
    assert gpumarket("windows", "--gpus", "8", "--hours", "24", "--before", "friday", "--json").json["data"] == [WINDOW]


def test_reservations_are_listed_shown_extended_cancelled_and_lent(gpumarket, shop):
    assert "scheduled" in gpumarket("reservations").out
    assert gpumarket("reservations", "--json").json["data"][0]["id"] == "rsv_1"
    shown = gpumarket("reservations", "show", "rsv_1").out
    assert "8 GPUs from 2026-11-28 10:00 UTC" in shown
    assert "not now: It is locked." in shown
    assert "for sale  4 GPUs from 2026-11-28 10:00 UTC until 2026-11-29 10:00 UTC at 1.50 USD per GPU-hour" in shown
    assert "lasts until" in gpumarket("reservations", "extend", "rsv_1", "--hours", "2", "--yes").err
    (asked,) = shop.asked("POST", "/api/v1/quotes")
    assert asked["body"] == {"kind": "extension", "reservation": "rsv_1", "ends_at": "2026-11-29T12:00:00Z"}
    assert "came back" in gpumarket("reservations", "cancel", "rsv_1", "--yes").err
    assert shop.asked("POST", "/api/v1/reservations/rsv_1/cancel")[0]["body"] == {"quote": "qte_1"}
    assert "50.00 % of what spot pays" in gpumarket("lend", "rsv_1").err
    assert "lent any more" in gpumarket("lend", "rsv_1", "--stop").err
    assert [one["body"] for one in shop.asked("PATCH", "/api/v1/reservations/rsv_1")] == [
        {"is_lent": True}, {"is_lent": False}
    ]  # fmt: skip


def test_hours_are_sold_withdrawn_and_bought(gpumarket, shop):
    said = gpumarket("resell", "rsv_1", "--gpus", "4", "--ask", "1.50")
    assert (said.code, said.out) == (0, "lst_1\n")
    assert "5.00 % of what it sells is kept" in said.err
    (asked,) = shop.asked("POST", "/api/v1/listings")
    assert asked["body"]["starts_at"] == "2026-11-28T10:00:00Z"
    assert "3 GPU-h" in gpumarket("listings").out
    assert "stays yours" in gpumarket("listings", "withdraw", "lst_1").err
    assert "1.50 USD" in gpumarket("listings", "asks", "h200-narvik").out
    order = (
        "listings",
        "buy",
        "h200-narvik",
        "--gpus",
        "2",
        "--start",
        "2026-11-28T10:00",
        "--hours",
        "2",
        "--limit",
        "2",
    )
    said = gpumarket(*order, "--yes", "--key", "once")
    assert said.out == "rsv_2\n"
    assert "from a holder" in said.err
    rehearsed, bought = shop.asked("POST", "/api/v1/trades")
    assert (rehearsed["query"], bought["query"]) == ({"dry_run": "true"}, {})
    assert rehearsed["headers"]["Idempotency-Key"] != "once" == bought["headers"]["Idempotency-Key"]


@pytest.mark.parametrize(
    ("pointer", "option"), [("/ask", "--ask"), ("/min_gpus", "--min-gpus"), ("/starts_at", "--start")]
)
def test_what_is_wrong_about_a_listing_is_said_by_its_option(gpumarket, shop, pointer, option):
    shop.faults.append(make_problem(422, "invalid_request", errors=[{"pointer": pointer, "detail": "Not so."}]))
    said = gpumarket("resell", "rsv_1", "--gpus", "4", "--ask", "1.50")
    assert said.code == 2
    assert f"{option}: Not so." in said.err


def test_an_instance_is_launched_inside_a_reservation(gpumarket, shop):
    gpumarket("launch", "h200-narvik", "--reservation", "rsv_1", "--", "true")
    gpumarket("launch", "h200-narvik", "--reservation", "strict", "--", "true")
    named, strict = (one["body"] for one in shop.asked("POST", "/api/v1/instances"))
    assert (named["reservation"], strict["attach"]) == ("rsv_1", "strict")
    assert "attach" not in named


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("2026-11-27T18:00", "2026-11-27T18:00"), ("2026-11-27 18:00", "2026-11-27T18:00"),
     ("2026-11-27T18:00+09:00", "2026-11-27T09:00"), ("friday", "2026-11-27T00:00"), ("Thursday", "2026-12-03T00:00"),
     ("tomorrow", "2026-11-27T00:00"), ("+6h", "2026-11-26T19:00"), ("2026-11-27", "2026-11-27T00:00")],
)  # fmt: skip
def test_times_are_read_as_people_type_them(typed, meant):
    assert moment(typed, now=NOW) == datetime.fromisoformat(meant).replace(tzinfo=UTC)


def test_what_is_no_time_says_how_to_write_one():
    with pytest.raises(Problem, match="is no time"):
        moment("soonish", now=NOW)
