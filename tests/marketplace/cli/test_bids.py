"""gpumarket bid, bids and spot-price: what they ask for, what they print where, and how they exit."""

import json
from decimal import Decimal

import pytest

from marketplace.cli import bids
from tests.marketplace.cli.shop import Shop, make_offer, make_problem


def price(amount):
    return {"amount": amount, "currency": "USD", "unit": "gpu_hour"}


def make_bid(**changes):
    can = {"available": True, "reason": None}
    return {
        "id": "bid_abc",
        "instance": {"id": "ins_1", "name": "trainer", "phase": "queued"},
        "project": {"id": "prj_1", "name": "default"},
        "offer": {"id": "ofr_1", "slug": "h200-narvik", "name": "H200", "gpu_model": "H200", "site": {}},
        "gpus": 2,
        "max_price": price("1.250000"),
        "state": "waiting",
        "reason": None,
        "held": {"amount": "0.050000", "currency": "USD"},
        "revision": 1,
        "placed_at": "2026-11-26T12:00:00Z",
        "interruption": None,
        "actions": {"change": can, "withdraw": can, "simulate_interruption": can},
    } | changes


TOLD = {
    "id": "int_abc", "run": 1, "reason": "outbid", "state": "notified", "notice_at": "2026-11-26T12:00:00Z",
    "deadline_at": "2999-11-26T12:02:00Z", "sigterm_at": "2999-11-26T12:01:50Z", "min_notice_s": 120, "ended_at": None,
    "credited": "0.000000", "message": "",
}  # fmt: skip
NOW = {
    "offer": {"slug": "h200-narvik"}, "enabled": True, "price": price("0.700000"), "cleared_price": price("0.800000"),
    "reserve": price("0.500000"), "highest_bid_allowed": price("2.490000"),
    "step": {"amount": "0.010000", "currency": "USD"}, "interval_s": 300, "min_notice_s": 120,
    "next_auction_at": "2026-11-26T12:05:00Z", "capacity_gpus": 16, "cap_gpus": 4,
    "allocated_gpus": 12, "demanded_gpus": 30,
    "interruption_risk": {"level": "moderate", "percent_per_hour": "1.25", "interruptions": 3, "instance_hours": 240,
                          "since": "2026-11-19T12:01:00Z"},
    "depth": [{"price": "0.900000", "gpus": 4}], "auction": None, "as_of": "2026-11-26T12:01:00Z",
}  # fmt: skip


class ShopWithAuctions(Shop):
    def __init__(self):
        super().__init__()
        self.bid = make_bid()

    def answer(self, method, words, query, headers, body):
        match method, words:
            case "POST", ["bids"] if "dry_run" in query:
                worst = {"amount": "2.500000", "currency": "USD"}
                return 200, {"would_bid": True, "hold": self.bid["held"], "worst_hour": worst}
            case "POST", ["bids"]:
                return 202, self.bid
            case "GET", ["bids"]:
                return 200, {"data": [self.bid], "next_cursor": None}
            case "GET", ["bids", "bid_abc"]:
                return 200, self.bid
            case "POST", ["bids", "bid_abc", "price"]:
                if body["expected_price"] != self.bid["max_price"]["amount"]:
                    return make_problem(409, "conflict")
                self.bid |= {"max_price": price(body["max_price"]), "interruption": None}
                return 200, self.bid
            case "POST", ["bids", "bid_abc", "withdraw"]:
                return 202, self.bid
            case "GET", ["offers", "h200-narvik", "spot"]:
                return 200, NOW
            case "GET", ["offers", _, "spot", "history"]:
                row = {"at": "2026-11-26T11:00:00Z", "until": "2026-11-26T11:15:00Z", "min": "0.500000",
                       "max": "0.900000", "last": "0.700000", "reserve": "0.500000", "capacity_gpus": 16,
                       "auctions": 3}  # fmt: skip
                return 200, {"currency": "USD", "data": [row, row | {"last": "0.900000"}]}
        return super().answer(method, words, query, headers, body)


@pytest.fixture
def shop():
    shop = ShopWithAuctions()
    shop.open()
    yield shop
    shop.close()


def test_a_bid_is_placed_once_and_says_what_it_holds(shop, gpumarket):
    done = gpumarket("bid", "h200-narvik", "--gpus", "2", "--max-price", "1.25", "--", "python3", "train.py")
    assert (done.code, done.out) == (0, "bid_abc\n")
    assert "0.05 USD are set aside" in done.err
    (asked,) = [request for request in shop.requests if request["method"] == "POST"]
    assert (asked["body"]["max_price"], asked["body"]["command"]) == ("1.25", ["python3", "train.py"])


@pytest.mark.parametrize("typed", ["1,25", "-1", "", "1e3", "free"])
def test_what_is_no_amount_is_refused_before_it_is_sent(shop, gpumarket, typed):
    done = gpumarket("bid", "h200-narvik", f"--max-price={typed}", "--", "true")
    assert done.code != 0
    assert "is not an amount" in done.err


def test_the_list_says_when_gpus_are_taken(shop, gpumarket):
    shop.bid |= {"state": "notified", "interruption": TOLD}
    done = gpumarket("bids")
    assert "trainer" in done.out
    assert "notified (outbid: ends in" in done.out
    assert json.loads(gpumarket("bids", "--json").out)["data"][0]["id"] == "bid_abc"


def test_what_a_policy_keeps_out_of_the_auctions_says_why(shop, gpumarket):
    shop.bid |= {"state": "excluded", "reason": "It takes part in no auction."}
    done = gpumarket("bids")
    assert "excluded" in done.out
    assert "trainer: It takes part in no auction." in done.err


def test_an_instance_that_bids_is_shown_with_its_bid_its_reason_and_the_next_auction(shop, gpumarket):
    shop.rent({"name": "trainer", "offer": "h200-narvik", "gpus": 1, "replicas": 1, "command": ["true"]}, {})
    instance = shop.instances["ins_1"]
    instance["market"] = "spot"
    shown = gpumarket("show", "trainer").out
    assert "bid       bid_abc, 1.25 USD per GPU-hour at most: waiting" in shown
    assert "auction   0.70 USD per GPU-hour now, every 300 s, the next at 2026-11-26" in shown
    assert "reason" not in shown
    shop.bid |= {"state": "excluded", "reason": "It takes part in no auction."}
    assert "reason    It takes part in no auction." in gpumarket("show", "trainer").out
    shop.bid |= {"state": "ended", "reason": None}
    assert "auction" not in gpumarket("show", "trainer").out
    instance["market"] = "on_demand"
    assert "bid_abc" not in gpumarket("show", "trainer").out


def test_raising_says_that_the_interruption_is_called_off(shop, gpumarket):
    shop.bid |= {"state": "notified", "interruption": TOLD}
    done = gpumarket("bids", "raise", "bid_abc", "2.00")
    assert done.code == 0
    assert "bids 2.00 USD per GPU-hour now. Its interruption is called off." in done.err
    assert gpumarket("bids", "withdraw", "bid_abc").code == 0


def test_the_price_is_shown_with_its_history_and_depth(shop, gpumarket):
    done = gpumarket("spot-price", "h200-narvik")
    for part in (
        "0.70 USD per GPU-hour",
        "wins 4 GPUs of them at most",
        "moderate: 1.25 % an hour",
        "▁█",
        "4 GPUs at 0.90 USD",
        "12 given of 16",
        "LEAST",
    ):
        assert part in done.out
    assert len(json.loads(gpumarket("spot-price", "h200-narvik", "--json").out)["history"]) == 2


def test_an_offer_without_auctions_says_how_else_it_is_had(shop, gpumarket):
    shop.offers.append(make_offer("l40s-osaka"))
    done = gpumarket("spot-price", "l40s-osaka")
    assert done.code == 4
    assert "l40s-osaka is not sold by auction." in done.err
    assert "gpumarket launch l40s-osaka" in done.err


def test_a_sparkline_goes_from_the_least_to_the_most():
    assert bids.sparkline([Decimal(1), Decimal(8)]) == "▁█"
    assert bids.sparkline([Decimal(3)] * 3) == "▁▁▁"
