"""Blocks over HTTP: a quote, a purchase that is done once, resale, lending, and every refusal by its rule."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from marketplace import spot_terms, trades
from marketplace.models import Listing, Offer, Quote, Reservation, Trade, User
from provisioning import calendar
from provisioning.calendar import hour_of
from tests.blocks import sell_blocks
from tests.conftest import Fleet, make_token
from tests.marketplace.api.program import Program, problem_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def offer(fleet: Fleet) -> Offer:
    sell_blocks(fleet.h200)
    calendar.count(at=timezone.now())
    return fleet.h200


@pytest.fixture
def other(charlie: User) -> Program:
    return Program(make_token(charlie, charlie.memberships.get().organization))


def utc(hours: float) -> str:
    return f"{hour_of(timezone.now()) + timedelta(hours=hours):%Y-%m-%dT%H:%M:%SZ}"


def order(**changes: Any) -> dict[str, Any]:
    ordinary = {"offer": "h200-narvik", "gpus": 4, "starts_at": utc(48), "ends_at": utc(58)}
    return {name: value for name, value in (ordinary | changes).items() if value is not None}


def bought(program: Program, **changes: Any) -> dict[str, Any]:
    quote = program.post("quotes", order(**changes)).json()
    answer = program.post("reservations", {"quote": quote["id"]}, key=f"buy {quote['id']}")
    assert answer.status_code == 202, answer.content
    found: dict[str, Any] = answer.json()
    return found


def test_a_block_is_found_quoted_and_bought_once(program: Program, offer: Offer) -> None:
    asked = f"windows?gpus=16&hours=24&before={utc(72)}&gpu_model=H200"
    [window] = program.get(asked).json()["data"]
    assert (window["buy_by"], window["total"]["amount"]) == ("quote", "691.200000")
    quote = program.post("quotes", order()).json()
    assert quote["total"] == {"amount": "80.000000", "currency": "USD"}
    assert [cost["kept_percent"] for cost in quote["cancellation_costs"]] == ["10.00", "50.00", "100.00"]
    assert program.get(f"quotes/{quote['id']}").json() == quote
    first = program.post("reservations", {"quote": quote["id"]}, key="one")
    again = program.post("reservations", {"quote": quote["id"]}, key="one")
    assert (first.status_code, first.json()) == (202, again.json())
    assert again.headers["Idempotency-Replayed"] == "true"
    assert Reservation.objects.count() == 1
    assert first.json()["steps"] == [{"starts_at": utc(48), "ends_at": utc(58), "gpus": 4}]
    problem_of(program.post("reservations", {"quote": quote["id"]}, key="two"), 409, "quote_used")
    hours = program.get(f"offers/h200-narvik/calendar?starts_at={utc(48)}&hours=11").json()["hours"]
    assert [hour["free_gpus"] for hour in hours] == [12] * 10 + [16]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ("calendar?starts_at=9999-12-31T23:00:00Z&hours=2", "/starts_at"),
        ("spot/history?until=0001-01-01T00:00:00Z", "/until"),
    ],
)
def test_a_time_at_the_end_of_all_calendars_is_refused_by_its_field(
    program: Program, offer: Offer, asked: str, field: str
) -> None:
    spot_terms.set_terms(
        offer=offer, by="carol@operator.example", at=timezone.now(), reserve_micros=500_000, grid_micros=10_000
    )
    problem_of(program.get(f"offers/h200-narvik/{asked}"), 422, "invalid_request", names=field)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"starts_at": utc(-3)}, "/starts_at"),
        ({"ends_at": utc(48)}, "/ends_at"),
        ({"ends_at": utc(24 * 3650)}, "/ends_at"),
        ({"starts_at": utc(48.5)}, "/starts_at"),
        ({"gpus": 0}, "/gpus"),
        ({"gpus": "4"}, "/gpus"),
        ({"gpus": None}, "/gpus"),
        ({"offer": None}, "/offer"),
        ({"starts_at": "tomorrow"}, "/starts_at"),
        ({"kind": "gift"}, "/kind"),
        ({"price": 1}, "/price"),
        ({"kind": "cancellation"}, "/offer"),
    ],
)
def test_an_order_that_makes_no_sense_names_its_field(
    program: Program, offer: Offer, changes: dict[str, Any], field: str
) -> None:
    problem_of(program.post("quotes", order(**changes)), 422, "invalid_request", names=field)
    assert Quote.objects.count() == 0


def test_what_cannot_be_had_or_paid_is_said(program: Program, offer: Offer) -> None:
    problem_of(program.post("quotes", order(gpus=17)), 409, "no_capacity")
    dear = program.post("quotes", order(gpus=16, ends_at=utc(48 + 100))).json()
    problem_of(program.post("reservations", {"quote": dear["id"]}, key="k"), 402, "insufficient_funds")
    quote = program.post("quotes", order()).json()
    Quote.objects.update(expires_at=timezone.now())
    problem_of(program.post("reservations", {"quote": quote["id"]}, key="k2"), 409, "quote_expired")
    problem_of(program.post("reservations", {"quote": quote["id"]}), 400, "idempotency_key_required")
    assert Reservation.objects.count() == 0


def test_it_is_extended_lent_and_cancelled(program: Program, offer: Offer) -> None:
    row = bought(program)
    longer = {"kind": "extension", "reservation": row["id"], "ends_at": utc(60)}
    quote = program.post("quotes", longer).json()
    extended = program.post(f"reservations/{row['id']}/extend", {"quote": quote["id"]}, key="e").json()
    assert (extended["ends_at"], extended["paid"]["amount"]) == (utc(60), "96.000000")
    assert program.ask("patch", f"reservations/{row['id']}", {"is_lent": True}).json()["is_lent"] is True
    quote = program.post("quotes", {"kind": "cancellation", "reservation": row["id"]}).json()
    assert (quote["total"]["amount"], quote["refund"]["amount"]) == ("9.600000", "86.400000")
    gone = program.post(f"reservations/{row['id']}/cancel", {"quote": quote["id"]}, key="c").json()
    assert gone["state"] == "cancelled"
    assert gone["actions"]["extend"]["available"] is False
    states = [event["new_state"] for event in program.get(f"reservations/{row['id']}/events").json()["data"]]
    assert states[0] == "cancelled"


def test_hours_are_listed_and_bought_by_somebody_else(program: Program, other: Program, offer: Offer) -> None:
    row = bought(program, gpus=16)
    listing = {"reservation": row["id"], "starts_at": utc(48), "ends_at": utc(58), "gpus": 16, "ask": "1.5"}
    problem_of(program.post("listings", listing | {"ask": "1.505"}, key="a"), 422, "invalid_request", names="/ask")
    problem_of(program.post("listings", listing | {"ask": "free"}, key="a"), 422, "invalid_request", names="/ask")
    made = program.post("listings", listing, key="l").json()
    problem_of(program.post("listings", listing, key="twice"), 409, "conflict")
    [ask] = other.get("offers/h200-narvik/asks").json()["data"]
    assert (ask["listing"], ask["ask"]["amount"], ask["is_mine"]) == (made["id"], "1.500000", False)
    wanted = order(gpus=2, limit="1.4")
    problem_of(other.post("trades", wanted, key="t"), 409, "limit_too_low")
    problem_of(program.post("trades", wanted | {"limit": "9"}, key="t"), 409, "no_capacity")
    fill = other.post("trades?dry_run=true", wanted | {"limit": "9"}, key="t").json()
    assert (fill["total"]["amount"], fill["dearest"]["amount"]) == ("30.000000", "1.500000")
    assert Trade.objects.count() == 0
    for _ in range(2):
        trade = other.post("trades", wanted | {"limit": "1.5"}, key="t").json()
    assert trade["total"]["amount"] == "30.000000"
    assert Trade.objects.count() == 1
    assert other.get(f"reservations/{trade['reservation']}").json()["gpus"] == 2
    sold = program.get(f"listings/{made['id']}").json()
    assert (sold["sold_gpu_hours"], sold["proceeds"]["amount"]) == (20, "28.500000")
    problem_of(other.get(f"listings/{made['id']}"), 404, "not_found")
    assert program.ask("delete", f"listings/{made['id']}").json()["state"] == "withdrawn"
    assert Listing.objects.get().state == "withdrawn"


def test_a_window_without_end_is_refused_before_anybody_looks_at_its_hours(
    program: Program, offer: Offer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trades, "supply_of", None)
    wanted = order(limit="9", ends_at="9999-12-31T00:00:00Z")
    for path in ("trades?dry_run=true", "trades"):
        problem_of(program.post(path, wanted, key="t"), 422, "invalid_request", names="/ends_at")
    problem_of(program.post("quotes", order(ends_at="9999-12-31T00:00:00Z")), 422, "invalid_request", names="/ends_at")
