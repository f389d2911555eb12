"""A batch of many spans is what its spans would be one after the other, whatever runs beside it or cuts it off."""

from datetime import timedelta

import pytest
from django.db import connection, connections, transaction
from django.db.utils import OperationalError
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import accounts, books, charging, floating, holds, rating, runway, usage
from billing.models import Charge, Hold, Transfer, UsageSpan
from tests.billing.makers import (
    HOUR,
    NOON,
    USD,
    at_the_same_moment,
    grant,
    hold_money,
    make_organization,
    make_price,
    start,
    wallet,
)

MINUTE = timedelta(minutes=1)
MS = timedelta(milliseconds=1)
KINDS = ("promo", "cash", "receivable")

spans_of_somebody = st.lists(
    st.tuples(
        st.integers(min_value=0, max_value=2),  # whose
        st.integers(min_value=0, max_value=3),  # at which price: still, dear, floating, or paid for ahead
        st.integers(min_value=0, max_value=3_600_000),  # from when on
        st.integers(min_value=1, max_value=8),  # how much
        st.integers(min_value=0, max_value=12 * USD),  # what is set aside for it
        st.booleans(),  # whether it ended without being charged
    ),
    min_size=1,
    max_size=9,
)
money_of_each = st.lists(
    st.tuples(st.integers(min_value=0, max_value=30 * USD), st.integers(min_value=0, max_value=30 * USD)),
    min_size=3,
    max_size=3,
)


def make_prices():
    series = floating.open_series(
        sku="ofr_1/spot", currency="USD", micros_per_unit_hour=700_001, by="operator@example.com", at=NOON
    )
    for turn in range(1, 6):
        floating.append(series=series, micros_per_unit_hour=700_001 + 99 * turn, at=NOON + turn * 7 * MINUTE)
    still = make_price(sku="ofr_1/on_demand")
    return [still, make_price(sku="ofr_2/on_demand", micros_per_unit_hour=9_999_999), series, still]


def make_fleet(money, plan):
    """Organizations with money, holds and spans, none of which was charged."""
    organizations = [make_organization(promo=promo, cash=cash) for promo, cash in money]
    prices = make_prices()
    for number, (whose, price, began, quantity, aside, ended) in enumerate(plan):
        resource_id = f"ins_{number}"
        if 0 < aside <= wallet(organizations[whose]).available_micros:
            hold_money(organizations[whose], aside, resource_id=resource_id, expires_at=NOON + 9 * HOUR)
        span = start(
            organizations[whose],
            resource_id=resource_id,
            at=NOON + began * MS,
            price_version=prices[price],
            quantity=quantity,
            covered_by="rsv_1" if price == 3 else "",
        )
        if ended:
            UsageSpan.objects.filter(pk=span.pk).update(ended_at=span.started_at + 20 * MINUTE)
            runway.refresh(organization=organizations[whose], at=NOON)
    return organizations


def taken(organizations):
    """Everything that charging changes, without what names a posting."""
    return {
        "accounts": sorted(
            (row.organization_id, row.kind, row.balance_micros, row.held_micros)
            for one in organizations
            for row in one.accounts.all()
        ),
        "holds": sorted(Hold.objects.values_list("pk", "posted_micros", "state")),
        "spans": sorted(UsageSpan.objects.values_list("pk", "charged_micros", "charged_through", "is_charged")),
        "charges": sorted(
            Charge.objects.values_list(
                "key", "span", "through", "amount_micros", "promo_micros", "cash_micros", "owed_micros"
            )
        ),
    }


def charge_one_by_one(at):
    """Charge each span alone, in the order of a batch."""
    for span in UsageSpan.objects.order_by("organization", "charged_through", "pk"):
        charging.charge_span(span=span, through=at)


@pytest.mark.django_db
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(money=money_of_each, plan=spans_of_somebody, again=st.integers(min_value=0, max_value=7_200_000))
def test_a_batch_takes_what_its_spans_would_take_one_after_the_other(money, plan, again):
    with transaction.atomic():
        organizations = make_fleet(money, plan)
        outcomes = []
        for charge in (charge_one_by_one, lambda at: charging.charge_due(at=at)):
            with transaction.atomic():
                for at in (NOON + 2 * HOUR, NOON + 3 * HOUR + again * MS):
                    charge(at)
                outcomes.append(taken(organizations))
                assert books.check(at=NOON + 9 * HOUR) == []
                transaction.set_rollback(True)
        assert outcomes[0] == outcomes[1]
        transaction.set_rollback(True)


@pytest.mark.django_db
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(money=money_of_each, plan=spans_of_somebody)
def test_a_batch_pays_from_holds_then_credit_then_cash_and_the_rest_is_owed(money, plan):
    with transaction.atomic():
        organizations = make_fleet(money, plan)
        free = {one.pk: [account.free_micros for account in payer(one)] for one in organizations}
        held = {
            (hold.resource_id, hold.account.kind): hold.left_micros for hold in Hold.objects.select_related("account")
        }
        expected = {}
        for span in UsageSpan.objects.select_related("price_version").order_by("charged_through", "pk"):
            micros = usage.amount_micros(span=span, at=NOON + 2 * HOUR)
            own, rest = rating.take_in_turn(micros, [held.get((span.resource_id, kind), 0) for kind in KINDS[:2]])
            shares, owed = rating.take_in_turn(rest, free[span.organization_id])
            free[span.organization_id] = [left - s for left, s in zip(free[span.organization_id], shares, strict=True)]
            if micros:
                expected[span.pk] = (own[0] + shares[0], own[1] + shares[1], owed)
        made = charging.charge_due(at=NOON + 2 * HOUR)
        charges = Charge.objects.values_list("span", "promo_micros", "cash_micros", "owed_micros")
        assert {span: tuple(shares) for span, *shares in charges} == expected
        assert made == len(expected)
        transaction.set_rollback(True)


def payer(organization):
    found = accounts.lock(organization_id=organization.pk, currency="USD")
    return found.promo, found.cash


@pytest.fixture
def fleet(transactional_db):
    """Three organizations with something of everything, and more than one batch can hold where a batch holds four."""
    plan = [(number % 3, number % 4, number * MINUTE // MS, 1 + number % 3, USD // 2 * (number % 2), number % 5 == 0)
            for number in range(12)]  # fmt: skip
    accounts.platform("revenue", "USD")
    return make_fleet([(2 * USD, 5 * USD), (0, 3 * USD), (40 * USD, 0)], plan)


def test_a_batch_is_eight_statements_however_many_spans_it_has(fleet):
    with CaptureQueriesContext(connection) as queries:
        charging.charge_due(at=NOON + 2 * HOUR)
    verbs = [" ".join(query["sql"].split()[:3]) for query in queries]
    assert verbs == [
        "SELECT organization_id, id",  # what is due, once for all batches
        "BEGIN",
        'SELECT "billing_account"."id" AS',  # the gate of all who pay
        "SELECT FROM billing_priceversion",  # floating prices stand still
        "WITH due AS",  # rates, charges, moves spans on
        'SELECT "billing_account"."id", "billing_account"."public_id",',  # the revenue
        "INSERT INTO billing_transfer",
        "UPDATE billing_hold SET",
        "UPDATE billing_account SET",
        "COMMIT",
    ]


def test_a_sweep_goes_through_its_spans_in_batches(fleet, monkeypatch):
    monkeypatch.setattr(charging, "BATCH", 4)
    with CaptureQueriesContext(connection) as queries:
        charging.charge_due(at=NOON + 2 * HOUR)
    assert sum(query["sql"] == "COMMIT" for query in queries) == 3
    assert books.check(at=NOON + 9 * HOUR) == []


def test_the_second_sweep_finds_nothing_and_changes_nothing(fleet):
    charging.charge_due(at=NOON + 2 * HOUR)
    before = taken(fleet), Transfer.objects.count()
    assert charging.charge_due(at=NOON + 2 * HOUR) == 0
    assert (taken(fleet), Transfer.objects.count()) == before


class Cut:
    """Ends the server's side of our connection at a statement: before it is sent, or once it was answered."""

    def __init__(self, turn, *, answered):
        self.turns_left, self.answered = turn, answered

    def __call__(self, execute, sql, params, many, context):
        self.turns_left -= 1
        if self.turns_left or self.answered:
            answer = execute(sql, params, many, context)
        if not self.turns_left:
            pid = context["connection"].connection.info.backend_pid
            other = connections["default"].copy()
            with other.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            other.close()
        return answer if self.answered or self.turns_left else execute(sql, params, many, context)


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_connection_cut_at_any_statement_changes_nothing_and_the_next_sweep_does_all(fleet, turn, answered):
    before, cut = taken(fleet), Cut(turn, answered=answered)
    with pytest.raises(OperationalError), connection.execute_wrapper(cut):
        charging.charge_due(at=NOON + 2 * HOUR)
    connection.close()
    assert cut.turns_left <= 0
    assert taken(fleet) == before
    assert charging.charge_due(at=NOON + 2 * HOUR) > 0
    assert charging.charge_due(at=NOON + 2 * HOUR) == 0
    assert books.check(at=NOON + 9 * HOUR) == []


def test_a_connection_cut_after_the_commit_leaves_what_was_committed(fleet, monkeypatch):
    monkeypatch.setattr(charging, "BATCH", 4)
    whole, calls = charging._charge_batch, []

    def charge_then_lose_the_connection(batch, at):
        calls.append(whole(batch, at))
        if len(calls) == 2:
            raise OperationalError("the connection is lost")
        return calls[-1]

    monkeypatch.setattr(charging, "_charge_batch", charge_then_lose_the_connection)
    with pytest.raises(OperationalError):
        charging.charge_due(at=NOON + 2 * HOUR)
    assert Charge.objects.count() == sum(calls)
    charging.charge_due(at=NOON + 2 * HOUR)
    assert len(calls) == 3
    assert not UsageSpan.objects.filter(charged_through__lt=NOON + HOUR, ended_at=None).exists()
    assert books.check(at=NOON + 9 * HOUR) == []


def sweep(turn=0):
    return charging.charge_due(at=NOON + 2 * HOUR + turn * MS)


@pytest.mark.parametrize("turn", range(3))
def test_sweeps_stops_holds_and_grants_at_the_same_moment_keep_the_books_right(fleet, turn):
    outcomes = at_the_same_moment(
        sweep,
        lambda: sweep(turn=1),
        lambda: usage.stop(resource_id=f"ins_{turn + 1}", at=NOON + 2 * HOUR - MINUTE),
        lambda: usage.stop(resource_id=f"ins_{turn + 6}", at=NOON + 2 * HOUR - 5 * MINUTE),
        lambda: hold_money(fleet[2], USD, key=f"k{turn}", resource_id="ins_new", expires_at=NOON + 9 * HOUR),
        lambda: grant(fleet[0], 3 * USD, key=f"g{turn}"),
        lambda: holds.void_for(resource_id=f"ins_{turn + 3}", at=NOON + 2 * HOUR),
    )
    assert set(outcomes) <= {"done", "InsufficientFunds"}
    assert outcomes.count("done") >= 6
    sweep(turn=60_001)
    assert books.check(at=NOON + 9 * HOUR) == []
    for has in map(wallet, fleet):
        assert not has.owed_micros or has.promo_micros + has.cash_micros == has.held_micros


def test_the_parts_of_a_sweep_take_all_organizations_between_them_and_none_of_them_twice(fleet):
    whole = {one.pk for one in fleet}
    charged = []
    for part in range(2):
        before = set(Charge.objects.values_list("pk", flat=True))
        charging.charge_due(at=NOON + 2 * HOUR, part=part, parts=2)
        new = Charge.objects.exclude(pk__in=before)
        charged.append(set(new.values_list("span__organization", flat=True)))
    assert all(charged)
    assert charged[0] | charged[1] == whole
    assert not charged[0] & charged[1]
    assert charging.charge_due(at=NOON + 2 * HOUR) == 0
    assert books.check(at=NOON + 9 * HOUR) == []


def test_a_part_takes_its_share_of_the_limit(fleet):
    dues = [charging.charge_due(at=NOON + 2 * HOUR, limit=4, part=part, parts=2) for part in range(2)]
    assert dues == [2, 2]


def test_a_part_does_not_wait_for_the_organizations_of_another(fleet):
    kept = fleet[0]
    other = connections["default"].copy()
    try:
        with other.cursor() as cursor, connection.cursor() as ours:
            cursor.execute("BEGIN")
            cursor.execute("SELECT FROM billing_account WHERE organization_id = %s FOR NO KEY UPDATE", [kept.pk])
            ours.execute("SET lock_timeout = '2s'")
            assert charging.charge_due(at=NOON + 2 * HOUR, part=1 - kept.pk % 2, parts=2) > 0
            with pytest.raises(OperationalError, match="lock timeout"):
                charging.charge_due(at=NOON + 2 * HOUR, part=kept.pk % 2, parts=2)
    finally:
        other.close()
        connection.close()
