"""What suppliers are owed: from the charges for their GPUs, by the card that was in force."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.db import DatabaseError, connection, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import accounts, books, charging, floating, prepayments, usage
from billing.errors import AlreadyDecided, BadRateCard, KeyReused, RetroactivePrice, SecondPersonNeeded
from billing.models import Accrual, Earning, RateCard, UsageSpan
from billing.suppliers import accruing, audit, cards, purses, shares
from billing.suppliers.accruing import Supplied
from billing.suppliers.cards import Terms
from tests.billing.makers import HOUR, NOON, USD, at_the_same_moment, block, make_organization, make_price, start
from tests.billing.supplying import TERMS, labels, make_card, make_person, make_supplier

pytestmark = pytest.mark.django_db
LATER = NOON + 400 * HOUR
MARCH, APRIL = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)


@pytest.fixture
def nordlys(db):
    return make_supplier()


def balances(supplier, currency="USD"):
    purse = purses.of(supplier.pk)[currency]
    return purse.payable.balance_micros, purse.reserve.balance_micros


def run(customer, supplier, *, hours=1, at=NOON, price=None, offer="ofr_1", resource_id="ins_1", **overrides):
    price = price or make_price(currency=customer.currency)
    start(
        customer, resource_id=resource_id, labels=labels(supplier, offer=offer), at=at, price_version=price, **overrides
    )
    usage.stop(resource_id=resource_id, at=at + hours * HOUR)


def is_clean(at=LATER):
    return (books.check(at=at), books.recompute()) == ([], [])


def test_a_supplier_is_owed_its_share_and_a_part_of_that_is_held_back(acme, nordlys):
    make_card(nordlys)
    run(acme, nordlys)  # two GPUs for an hour: five dollars
    (earning,) = accruing.accrue(at=NOON + 2 * HOUR)
    assert earning.charge_micros == 5 * USD
    assert (earning.payout_micros, earning.reserve_micros, earning.fee_micros) == (3_150_000, 350_000, 1_500_000)
    assert balances(nordlys) == (3_150_000, 350_000)
    assert is_clean()


def test_accruing_again_adds_nothing(acme, nordlys):
    make_card(nordlys)
    run(acme, nordlys)
    accruing.accrue(at=NOON + 2 * HOUR)
    assert accruing.accrue(at=NOON + 3 * HOUR) == []
    assert balances(nordlys) == (3_150_000, 350_000)


def test_what_runs_accrues_as_it_is_charged(acme, nordlys):
    make_card(nordlys)
    span = start(acme, labels=labels(nordlys))
    charging.charge_span(span=span, through=NOON + HOUR)
    accruing.accrue(at=NOON + HOUR)
    assert balances(nordlys) == (3_150_000, 350_000)
    usage.stop(resource_id="ins_1", at=NOON + 2 * HOUR)
    accruing.accrue(at=NOON + 3 * HOUR)
    assert balances(nordlys) == (6_300_000, 700_000)
    assert is_clean()


def test_use_that_turns_out_shorter_is_taken_back(acme, nordlys):
    make_card(nordlys)
    span = start(acme, labels=labels(nordlys))
    charging.charge_span(span=span, through=NOON + 2 * HOUR)
    accruing.accrue(at=NOON + 2 * HOUR)
    usage.stop(resource_id="ins_1", at=NOON + HOUR)
    (earning,) = accruing.accrue(at=NOON + 3 * HOUR)
    assert earning.charge_micros == -5 * USD
    assert balances(nordlys) == (3_150_000, 350_000)
    assert is_clean()


def test_use_of_earlier_than_the_first_card_is_the_platforms(acme, nordlys):
    make_card(nordlys, begins=NOON + HOUR)
    run(acme, nordlys, hours=2)
    (earning,) = accruing.accrue(at=NOON + 3 * HOUR)
    assert earning.charge_micros == 5 * USD
    assert is_clean()


def test_a_new_card_holds_from_its_moment_on(acme, nordlys):
    make_card(nordlys)
    make_card(nordlys, begins=NOON + HOUR, share_bps=8_000, reserve_bps=0)
    run(acme, nordlys, hours=2)
    accruing.accrue(at=NOON + 3 * HOUR)
    assert balances(nordlys) == (3_150_000 + 4_000_000, 350_000)
    assert is_clean()


def test_an_offers_own_card_comes_before_that_of_all(acme, nordlys):
    make_card(nordlys)
    make_card(nordlys, offer="ofr_2", share_bps=9_000, reserve_bps=0)
    run(acme, nordlys, offer="ofr_2")
    accruing.accrue(at=NOON + 3 * HOUR)
    assert balances(nordlys) == (4_500_000, 0)
    assert is_clean()


def test_a_fixed_rate_is_paid_by_the_hour_even_where_the_customer_paid_less(acme, nordlys):
    make_card(nordlys, fixed_micros=3 * USD, fixed_currency="USD")
    run(acme, nordlys)
    (earning,) = accruing.accrue(at=NOON + 3 * HOUR)
    assert (earning.payout_micros, earning.reserve_micros, earning.fee_micros) == (5_400_000, 600_000, -1_000_000)
    assert is_clean()


def test_a_fixed_rate_of_another_currency_leaves_the_share(nordlys):
    tokyo = make_organization(cash=900 * USD, currency="JPY")
    make_card(nordlys, fixed_micros=3 * USD, fixed_currency="USD")
    run(tokyo, nordlys)
    accruing.accrue(at=NOON + 3 * HOUR)
    assert balances(nordlys, "JPY") == (3_150_000, 350_000)
    assert is_clean()


def test_a_span_is_cut_where_a_month_begins(nordlys):
    acme = make_organization(cash=900 * USD)
    make_card(nordlys)
    run(acme, nordlys, at=APRIL - HOUR, hours=3)
    accruing.accrue(at=APRIL + 3 * HOUR)
    found = Accrual.objects.order_by("month").values_list("month", "charge_micros")
    assert list(found) == [(MARCH, 5 * USD), (APRIL, 10 * USD)]
    assert is_clean(APRIL + 9 * HOUR)


def test_what_floats_is_cut_by_its_integral(acme, nordlys):
    make_card(nordlys)
    make_card(nordlys, begins=NOON + HOUR / 2, share_bps=10_000, reserve_bps=0)
    series = floating.open_series(sku="ofr_1/spot", currency="USD", micros_per_unit_hour=USD, by="x", at=NOON)
    start(acme, labels=labels(nordlys), price_version=series, quantity=1)
    floating.append(series=series, micros_per_unit_hour=3 * USD, at=NOON + HOUR / 4)
    usage.stop(resource_id="ins_1", at=NOON + HOUR)
    accruing.accrue(at=NOON + HOUR)
    assert sorted(Accrual.objects.values_list("charge_micros", flat=True)) == [USD, 3 * USD // 2]
    assert is_clean()


def test_hours_paid_ahead_accrue_when_they_are_earned(acme, nordlys):
    make_card(nordlys)
    supplied = Supplied(nordlys.pk, "ofr_1", NOON, NOON + HOUR, 8 * 3_600_000)
    for _ in range(2):
        accruing.note_delivery(key="rsv_1:x", currency="USD", amount_micros=10 * USD, supplied=supplied)
    prepayments.earn(key="rsv_1:x", currency="USD", amount_micros=10 * USD, reason="Delivery", at=NOON)
    accruing.accrue(at=NOON + HOUR)
    accruing.accrue(at=NOON + HOUR)
    assert balances(nordlys) == (6_300_000, 700_000)
    assert {f.rule for f in books.check(at=LATER)} == {"no_more_is_earned_than_was_paid_ahead"}
    assert books.recompute() == []


def test_use_that_was_paid_ahead_is_not_counted_again(acme, nordlys):
    make_card(nordlys)
    run(acme, nordlys, covered_by="rsv_1")
    assert accruing.accrue(at=NOON + HOUR) == []


def test_the_operators_own_gpus_owe_nobody_anything(acme):
    start(acme)
    usage.stop(resource_id="ins_1", at=NOON + HOUR)
    assert accruing.accrue(at=NOON + HOUR) == []
    assert UsageSpan.objects.get().is_accrued


def test_a_reserve_is_released_once_its_days_are_over(acme, nordlys):
    make_card(nordlys)
    run(acme, nordlys)
    accruing.accrue(at=NOON + HOUR)
    assert accruing.release_due(at=NOON + timedelta(days=29)) == 0
    assert accruing.release_due(at=NOON + timedelta(days=31)) == 1
    assert accruing.release_due(at=NOON + timedelta(days=31)) == 0
    assert balances(nordlys) == (3_500_000, 0)
    assert is_clean()


def test_a_correction_after_the_release_is_taken_from_what_is_owed(acme, nordlys):
    make_card(nordlys, reserve_days=0)
    span = start(acme, labels=labels(nordlys))
    charging.charge_span(span=span, through=NOON + HOUR)
    accruing.accrue(at=NOON + HOUR)
    accruing.release_due(at=NOON + HOUR)
    usage.stop(resource_id="ins_1", at=NOON)
    accruing.accrue(at=NOON + HOUR)
    assert balances(nordlys) == (0, 0)
    assert is_clean()


def test_a_card_needs_a_second_person(nordlys):
    by = make_person()
    card = cards.propose(supplier=nordlys, terms=TERMS, effective_from=NOON, by=by, key=uuid4(), at=NOON)
    with pytest.raises(SecondPersonNeeded):
        cards.approve(card=card, by=by, at=NOON)
    assert cards.in_force(supplier=nordlys, offer="", at=NOON) is None
    cards.approve(card=card, by=make_person(), at=NOON)
    assert cards.in_force(supplier=nordlys, offer="ofr_1", at=NOON) == card
    with pytest.raises(AlreadyDecided):
        cards.decline(card=card, by=make_person(), at=NOON)


def test_a_card_never_begins_in_the_past(nordlys):
    with pytest.raises(RetroactivePrice):
        cards.propose(supplier=nordlys, terms=TERMS, effective_from=NOON - HOUR, by=make_person(), key=uuid4(), at=NOON)
    card = cards.propose(supplier=nordlys, terms=TERMS, effective_from=NOON, by=make_person(), key=uuid4(), at=NOON)
    assert cards.approve(card=card, by=make_person(), at=NOON + HOUR).effective_from == NOON + HOUR


def test_a_card_that_was_decided_is_never_changed(nordlys):
    card = make_card(nordlys)
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        RateCard.objects.filter(pk=card.pk).update(share_bps=1)


def test_the_same_key_proposes_once(nordlys):
    key, by = uuid4(), make_person()
    wanted = {"supplier": nordlys, "effective_from": NOON, "by": by, "key": key, "at": NOON}
    assert cards.propose(terms=TERMS, **wanted) == cards.propose(terms=TERMS, **wanted)
    with pytest.raises(KeyReused):
        cards.propose(terms=Terms(share_bps=1), **wanted)


@pytest.mark.parametrize(
    "terms",
    [
        Terms(share_bps=10_001),
        Terms(share_bps=-1),
        Terms(share_bps=1, fixed_micros=-1, fixed_currency="USD"),
        Terms(share_bps=1, fixed_micros=1),
        Terms(share_bps=1, fixed_currency="USD"),
    ],
)
def test_a_card_by_which_nobody_can_be_paid_is_refused(nordlys, terms):
    with pytest.raises(BadRateCard):
        cards.propose(supplier=nordlys, terms=terms, effective_from=NOON, by=make_person(), key=uuid4(), at=NOON)


BPS = st.integers(0, 10_000)
FIXED = st.none() | st.integers(0, 9 * USD)


@given(total=st.integers(0, 10**12), weights=st.lists(st.integers(1, 1000), min_size=1, max_size=8))
def test_shares_add_up_and_are_within_one_micro_of_their_proportion(total, weights):
    parts = shares.largest_remainder(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part * sum(weights) - total * weight) < sum(weights)


@given(charge=st.integers(0, 10**15), ms=st.integers(0, 10**12), share=BPS, reserve=BPS, fixed=FIXED)
@settings(max_examples=300)
def test_payout_reserve_and_fee_are_the_charge(charge, ms, share, reserve, fixed):
    card = RateCard(share_bps=share, reserve_bps=reserve, fixed_micros=fixed, fixed_currency="USD" if fixed else "")
    parts = shares.split(card=card, currency="USD", charge_micros=charge, unit_milliseconds=ms)
    assert sum(parts) == charge
    assert parts.payout_micros >= 0
    assert parts.reserve_micros >= 0
    if not fixed:
        assert abs(parts.payout_micros * 10**8 - charge * share * (10_000 - reserve)) < 10**8
        assert parts.fee_micros >= 0


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "charge", "stop", "stop early", "card", "own card", "price", "accrue"]),
        st.integers(1, 3_000_000),
        BPS,
        BPS,
        st.none() | st.integers(0, 9 * USD),
    ),
    min_size=3,
    max_size=14,
)


@given(steps=STEPS, price=st.integers(1, 9 * USD))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_on_every_history_the_parts_are_the_charge_and_both_calculators_agree(db, steps, price):
    """The close's SQL, whenever it ran, against Python that reads only rows when all is over."""
    with transaction.atomic():
        acme, nordlys = make_organization(cash=10**12), make_supplier()
        fixed_price = make_price(micros_per_unit_hour=price)
        series = floating.open_series(sku="ofr_1/spot", currency="USD", micros_per_unit_hour=price, by="x", at=NOON)
        at, running, numbers = NOON, None, 0
        for what, seconds, share, reserve, fixed in steps:
            before, at = at, at + timedelta(seconds=seconds, milliseconds=seconds % 1000)
            if what == "start" and running is None:
                numbers += 1
                running = start(
                    acme, resource_id=f"ins_{numbers}", at=at, labels=labels(nordlys), quantity=1 + share % 7,
                    price_version=series if reserve % 2 else fixed_price,
                )  # fmt: skip
            elif what == "charge" and running:
                charging.charge_span(span=running, through=at)
            elif what.startswith("stop") and running:
                usage.stop(resource_id=running.resource_id, at=before if what == "stop early" else at)
                running = None
            elif what.endswith("card"):
                money = {"fixed_micros": fixed, "fixed_currency": "USD"} if fixed is not None else {}
                own = {"offer": "ofr_1"} if what == "own card" else {}
                make_card(nordlys, begins=at, share_bps=share, reserve_bps=reserve, **money, **own)
            elif what == "price":
                floating.append(series=series, micros_per_unit_hour=1 + seconds, at=at)
            elif what == "accrue":
                accruing.accrue(at=at)
        if running:
            usage.stop(resource_id=running.resource_id, at=at + HOUR)
        accruing.accrue(at=at + HOUR)
        for earning in Earning.objects.all():
            assert earning.payout_micros + earning.reserve_micros + earning.fee_micros == earning.charge_micros
        assert books.recompute() == []
        assert books.check(at=at + 9 * HOUR) == []
        transaction.set_rollback(True)


SUSPENDED = """
    SET CONSTRAINTS ALL IMMEDIATE;
    ALTER TABLE billing_earning DISABLE TRIGGER USER;
    ALTER TABLE billing_delivery DISABLE TRIGGER USER;
    ALTER TABLE billing_transfer DISABLE TRIGGER USER;
"""
BREAKS = {
    "earnings_are_what_accrued": "UPDATE billing_accrual SET payout_micros = payout_micros + 1, fee_micros = "
    "fee_micros - 1",
    "earning_moved_its_money": "UPDATE billing_transfer SET key = 'x' || key WHERE key LIKE 'accrue:%:fees'",
    "accrual_is_for_no_more_than_was_charged": "UPDATE billing_usagespan SET charged_micros = charged_micros - 1",
    "delivery_is_what_was_earned": "UPDATE billing_delivery SET amount_micros = amount_micros + 1",
    "delivery_accrues_once": "UPDATE billing_delivery SET amount_micros = amount_micros + 1",
    "reserve_is_released_once": "UPDATE billing_earning SET released_micros = released_micros + 1",
}


@pytest.mark.parametrize("rule", BREAKS)
def test_the_audit_finds(acme, nordlys, rule):
    assert rule in audit.RULES
    make_card(nordlys)
    run(acme, nordlys)
    prepayments.pay(
        organization=acme, key="trade:1", block=block("trade"), reason="Block", at=NOON,
        parts=[prepayments.Part("block", accounts.platform("deferred", "USD"), 2 * USD)],
    )  # fmt: skip
    prepayments.earn(key="rsv_1:x", currency="USD", amount_micros=2 * USD, reason="Delivery", at=NOON)
    supplied = Supplied(nordlys.pk, "ofr_1", NOON, NOON + HOUR, 3_600_000)
    accruing.note_delivery(key="rsv_1:x", currency="USD", amount_micros=2 * USD, supplied=supplied)
    accruing.accrue(at=NOON + HOUR)
    accruing.release_due(at=NOON + timedelta(days=31))
    assert is_clean()
    with connection.cursor() as cursor:
        cursor.execute(SUSPENDED)
        cursor.execute(BREAKS[rule])
    assert rule in {finding.rule for finding in books.check(at=LATER)}


def test_the_second_calculator_finds_what_the_first_got_wrong(acme, nordlys):
    make_card(nordlys)
    run(acme, nordlys)
    accruing.accrue(at=NOON + HOUR)
    Accrual.objects.update(payout_micros=3_150_001, fee_micros=1_499_999)
    assert [finding.rule for finding in books.recompute()] == ["accrual_comes_out_the_same"]


@pytest.mark.django_db(transaction=True)
def test_two_closes_at_once_owe_once():
    acme, nordlys = make_organization(cash=9 * USD), make_supplier()
    make_card(nordlys)
    run(acme, nordlys)
    assert at_the_same_moment(*[lambda: accruing.accrue(at=NOON + HOUR)] * 3) == ["done"] * 3
    assert balances(nordlys) == (3_150_000, 350_000)
