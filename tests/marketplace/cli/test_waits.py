"""gpumarket wait, waits, quota and budget: what they ask for, what they print where, and how they exit."""

import pytest

from tests.marketplace.cli.shop import Shop, make_problem

QUOTA = {
    "id": "quo_1",
    "organization": {"id": "org_1", "name": "Acme"},
    "project": {"id": "prj_1", "name": "research"},
    "gpu_model": "H200",
    "market": "spot",
    "unit": "gpus",
    "currency": None,
    "limit": 16,
    "held": 5,
    "used": 4,
    "reserved": 2,
    "free": 9,
}
SPEND = QUOTA | {
    "project": None, "gpu_model": None, "market": None, "unit": "per_hour", "currency": "USD", "limit": "100.000000",
    "held": "12.450000", "used": "0.000000", "reserved": "0.000000", "free": "87.550000",
}  # fmt: skip
BUDGET = {
    "id": "prj_1", "kind": "project", "name": "research", "currency": "USD", "monthly": "500.000000", "hourly": None,
    "month_since": "2026-11-01T00:00:00Z", "spent": "1.000000", "set_aside": "2.490000", "shares_due": "120.000000",
    "per_hour": "2.490000",
    "counts": "money", "used": "401.000000", "forecast": "600.000000", "action": "block", "grace_minutes": 60,
    "used_shares": [50, 80, 100], "forecast_shares": [100], "passed_at": None, "stops_at": None,
    "alerts": [{"kind": "used", "share": 80, "amount": "500.000000", "reached": "400.000000",
                "at": "2026-11-20T00:00:00Z", "sent_at": None}],
}  # fmt: skip


def make_wait(body, **changes):
    return {
        "id": "wtg_1", "project": {"id": "prj_1", "name": "research"}, "offer": body["offer"], "gpus": body["gpus"],
        "replicas": body["replicas"], "max_price": {"amount": body["max_price"], "currency": "USD"},
        "until": "2026-12-01T00:00:00Z", "state": "waiting", "position": 2, "why": "capacity",
        "message": "Too few GPUs are free now.", "estimate": None, "instance": None,
    } | changes  # fmt: skip


class ShopWithQueue(Shop):
    """A shop that is sold out at first: the second look at an order that waits finds it started."""

    def __init__(self):
        super().__init__()
        self.waits = {}
        self.is_full = True
        self.looks = 0
        self.ends_as = "started"

    def answer(self, method, words, query, headers, body):
        match method, words:
            case _, ["quotas" | "quota-requests" | "budgets", *_]:
                return self.about_limits(method, words, body)
            case "POST", ["instances"] if self.is_full:
                return make_problem(409, "no_capacity")
            case "POST", ["waits"]:
                self.waits["wtg_1"] = make_wait(body)
                self.order = body
                return 202, self.waits["wtg_1"]
            case "GET", ["waits"]:
                rows = [row for row in self.waits.values() if query.get("state") in {None, row["state"]}]
                return 200, {"data": rows, "next_cursor": None}
            case "GET", ["waits", "wtg_1"]:
                return 200, self.look()
            case "POST", ["waits", "wtg_1", "cancel"]:
                self.waits["wtg_1"] |= {"state": "cancelled"}
                return 200, self.waits["wtg_1"]
        return super().answer(method, words, query, headers, body)

    def about_limits(self, method, words, body):
        match method, words:
            case "GET", ["quotas"]:
                return 200, {"data": [QUOTA, SPEND], "next_cursor": None}
            case "POST", ["quota-requests"]:
                asked = SPEND if isinstance(body["limit"], str) else QUOTA
                return 201, asked | {"limit": body["limit"], "state": "approved", "decided_by": "rule “paid”"}
            case "GET", ["budgets"]:
                return 200, {"data": [BUDGET]}
            case "GET", ["budgets", "prj_1"]:
                return 200, BUDGET
            case "PUT", ["budgets", "prj_1"]:
                return 200, BUDGET | body
        return make_problem(404, "not_found")

    def look(self):
        self.looks += 1
        row = self.waits["wtg_1"]
        if self.looks > 1 and row["state"] == "waiting":
            row |= {"state": self.ends_as, "position": None}
            if self.ends_as == "started":
                _, instance = self.rent(self.order, {})
                row["instance"] = instance["id"]
        return row


@pytest.fixture
def shop():
    shop = ShopWithQueue()
    shop.open()
    yield shop
    shop.close()


def test_an_order_waits_at_todays_price_for_a_day(gpumarket, shop):
    said = gpumarket("wait", "h200-narvik", "--gpus", "8", "--", "python3", "train.py")
    assert (said.code, said.out) == (0, "wtg_1\n")
    assert "Place 2 in the queue of h200-narvik" in said.err
    (asked,) = shop.asked("POST", "/api/v1/waits")
    assert asked["body"]["max_price"] == "2.490000"
    assert asked["body"]["command"] == ["python3", "train.py"]
    assert asked["headers"]["Idempotency-Key"]


def test_what_waits_is_listed_and_cancelled(gpumarket, shop):
    gpumarket("wait", "h200-narvik", "--max-price", "2", "--until", "8h", "--", "true")
    listed = gpumarket("waits")
    assert "wtg_1" in listed.out
    assert "2.00 USD" in listed.out
    assert gpumarket("waits", "--json").json["data"][0]["position"] == 2
    assert "nothing was charged" in gpumarket("waits", "cancel", "wtg_1").err
    assert "Nothing waits" in gpumarket("waits").err
    assert "cancelled" in gpumarket("waits", "--all").out


def test_a_run_waits_and_then_runs(gpumarket, shop):
    said = gpumarket("run", "h200-narvik", "--wait", "--", "true")
    assert (said.code, said.out) == (0, "hello\n")
    assert "Place 2 in the queue" in said.err


def test_an_order_keeps_its_contract_while_it_waits(gpumarket, shop):
    assert gpumarket("run", "h200-narvik", "--wait", "--contract", "ctv_1", "--", "true").code == 0
    assert gpumarket("wait", "h200-narvik", "--contract", "ctv_1", "--", "true").code == 0
    assert [one["body"]["contract"] for one in shop.asked("POST", "/api/v1/waits")] == ["ctv_1", "ctv_1"]


def test_a_run_that_waited_in_vain_exits_like_one_without_capacity(gpumarket, shop):
    shop.ends_as = "expired"
    said = gpumarket("run", "h200-narvik", "--wait", "--", "true")
    assert said.code == 6
    assert "did not come free in time" in said.err


def test_a_run_without_wait_is_refused_at_once(gpumarket, shop):
    assert gpumarket("run", "h200-narvik", "--", "true").code == 6
    assert not shop.asked("POST", "/api/v1/waits")


@pytest.mark.parametrize("bad", [("--max-price", "much"), ("--until", "soon")])
def test_what_is_no_price_or_time_is_told_before_anything_is_asked(gpumarket, shop, bad):
    assert gpumarket("wait", "h200-narvik", *bad, "--", "true").code == 2
    assert not shop.asked("POST", "/api/v1/waits")


def test_quotas_are_a_table_of_limit_held_used_and_free(gpumarket, shop):
    said = gpumarket("quota")
    assert said.code == 0
    rows = [line.split() for line in said.out.splitlines()]
    assert rows[0] == ["OF", "COUNTS", "LIMIT", "HELD", "USED", "RESERVED", "FREE"]
    assert ["research", "H200,", "spot", "16", "5", "4", "2", "9"] in rows
    assert [
        "Acme",
        "all,",
        "per",
        "hour",
        "100.00",
        "USD",
        "12.45",
        "USD",
        "0.00",
        "USD",
        "0.00",
        "USD",
        "87.55",
        "USD",
    ] in rows
    assert gpumarket("quota", "--json").json["data"][0]["free"] == 9


def test_more_is_asked_for_with_a_reason(gpumarket, shop):
    said = gpumarket("quota", "request", "64", "--gpu-model", "H200", "--market", "spot", "--reason", "a run")
    assert (said.code, said.out) == (0, "quo_1\n")
    assert "approved by rule “paid”" in said.err
    (asked,) = shop.asked("POST", "/api/v1/quota-requests")
    assert asked["body"] == {"limit": 64, "reason": "a run", "gpu_model": "H200", "market": "spot"}
    assert gpumarket("quota", "request", "64").code == 2


def test_more_money_an_hour_is_asked_for_by_its_amount(gpumarket, shop):
    said = gpumarket("quota", "request", "250.50", "--per-hour", "--reason", "a run")
    assert said.code == 0
    (asked,) = shop.asked("POST", "/api/v1/quota-requests")
    assert asked["body"] == {"limit": "250.50", "reason": "a run"}
    said = gpumarket("quota", "request", "250.50", "--reason", "a run")
    assert said.code == 2
    assert "money with --per-hour" in said.err


def test_a_budget_is_set_and_what_is_not_named_stays(gpumarket, shop):
    shown = gpumarket("budget")
    for text in ("500.00 USD", "401.00 USD", "80 %", "600.00 USD", "starts nothing new"):
        assert text in shown.out
    head, row = shown.out.splitlines()
    assert head.index("REVENUE SHARES") + len("REVENUE SHARES") == row.index("120.00 USD") + len("120.00 USD")
    assert "80 % of the budget of project research used: 400.00 USD of 500.00 USD." in shown.err
    said = gpumarket("budget", "set", "prj_1", "--hour", "20")
    assert "500.00 USD a month, 20.00 USD an hour" in said.err
    gpumarket("budget", "set", "prj_1", "--month", "none")
    first, second = shop.asked("PUT", "/api/v1/budgets/prj_1")
    assert (first["body"], second["body"]["monthly"]) == ({"monthly": "500.000000", "hourly": "20"}, None)
    gpumarket(
        "budget", "set", "prj_1", "--then", "stop", "--grace", "30", "--alert", "70,90", "--forecast-alert", "none"
    )
    asked = shop.asked("PUT", "/api/v1/budgets/prj_1")[-1]["body"]
    assert {name: asked[name] for name in ("action", "grace_minutes", "used_shares", "forecast_shares")} == {
        "action": "stop", "grace_minutes": 30, "used_shares": [70, 90], "forecast_shares": [],
    }  # fmt: skip
    wrongs = (["--then", "explode"], ["--alert", "half"], ["--outcomes", "2.5"], ["--outcomes", "5", "--month", "5"])
    for wrong in wrongs:
        assert gpumarket("budget", "set", "prj_1", *wrong).code == 2
    assert gpumarket("budget", "set", "prj_1").code == 2
    assert gpumarket("budget", "set", "prj_1", "--month", "lots").code == 2


def test_a_budget_of_outcomes_is_set_beside_the_one_of_money(gpumarket, shop):
    said = gpumarket("budget", "set", "prj_1", "--outcomes", "1200")
    assert "1,200 outcomes a month" in said.err
    asked = shop.asked("PUT", "/api/v1/budgets/prj_1")[-1]["body"]
    assert asked == {"counts": "outcomes", "monthly": "1200", "hourly": None}


@pytest.mark.parametrize("typed", ["NaN", "Infinity", "-1", "1e3", "1,000"])
def test_what_is_no_amount_is_refused_before_it_is_sent(gpumarket, shop, typed):
    for line in (["budget", "set", "prj_1", f"--month={typed}"], ["wait", "h200-narvik", f"--max-price={typed}"]):
        said = gpumarket(*line, *(["--", "true"] if line[0] == "wait" else []))
        assert said.code != 0
        assert "is not an amount" in said.err
    assert shop.asked("PUT", "/api/v1/budgets/prj_1") == shop.asked("POST", "/api/v1/waits") == []
