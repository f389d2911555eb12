"""Tiers, minimums and commitments as money: the whole of a month until now, less what was charged and moved before."""

from itertools import count
from types import SimpleNamespace
from uuid import uuid4

import pytest
from django.db import IntegrityError, connection, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import accounts, adjusting, books, charging, commitments, tasks, usage
from billing.errors import (
    AlreadyCommitted,
    AlreadyDecided,
    BadCommitment,
    CurrencyMismatch,
    KeyReused,
    SecondPersonNeeded,
)
from billing.models import Adjustment, AdjustmentPosting, Commitment, Transfer, UsageSpan
from tests.billing.makers import (
    HOUR,
    NOON,
    PRICE,
    USD,
    at_the_same_moment,
    grant,
    make_organization,
    make_price,
    start,
    wallet,
)
from tests.billing.pricing import (
    APRIL,
    MARCH,
    MAY,
    SKU,
    adjusted,
    committed,
    cost,
    in_force,
    item,
    person,
    tiered,
)

pytestmark = pytest.mark.django_db
RICH = 100_000 * USD


@pytest.fixture(autouse=True)
def the_books_balance(db):
    yield
    assert books.check(at=MAY) == []


@pytest.fixture
def rich(db):
    return make_organization(cash=RICH)


def test_a_month_that_nobody_swept_to_its_end_is_finished_however_late(rich):
    price = tiered(begins=MARCH)
    start(rich, price_version=price, at=MARCH + HOUR, quantity=1)
    usage.stop(resource_id="ins_1", at=MARCH + 201 * HOUR)
    adjusting.post_due(at=MARCH + 300 * HOUR)
    late = MAY + 30 * 24 * HOUR
    assert adjusting.unfinished(until=MAY, limit=9) == [(rich.pk, MARCH)]
    adjusting.post_due(at=late)
    assert (adjusting.unfinished(until=MAY, limit=9), adjusted().through) == ([], APRIL)


def spent(organization):
    found = wallet(organization)
    return RICH - found.cash_micros - found.promo_micros + found.owed_micros


def run(organization, version, *, begin=NOON, hours=1, **overrides):
    span = start(organization, resource_id=f"ins_{uuid4().hex}", at=begin, price_version=version, **overrides)
    if hours is not None:
        usage.stop(resource_id=span.resource_id, at=begin + hours * HOUR)
    return UsageSpan.objects.get(pk=span.pk)


def test_after_the_close_a_month_costs_what_its_tiers_say(rich):
    price = tiered()
    run(rich, price, hours=60, quantity=2)
    run(rich, price, hours=30, quantity=1)
    assert spent(rich) == 150 * PRICE
    assert adjusting.post_due(at=NOON + 60 * HOUR) == 1
    assert spent(rich) == cost(150)
    assert (adjusted().unit_milliseconds, adjusted().amount_micros) == (150 * 3_600_000, cost(150) - 150 * PRICE)


def test_a_close_that_finds_nothing_new_moves_nothing(rich):
    run(rich, tiered(), hours=150)
    moved = [adjusting.post_due(at=NOON + 200 * HOUR) for _ in range(3)]
    assert moved == [1, 0, 0]
    assert AdjustmentPosting.objects.count() == 1


def test_one_whose_month_cannot_be_worked_out_keeps_nobody_else_from_theirs(rich, monkeypatch):
    price, other, whole = tiered(), make_organization(cash=RICH), adjusting._rated
    for organization in (rich, other):
        run(organization, price, hours=150, quantity=1)

    def fails(key, *rest):
        if key == rich.pk:
            raise ArithmeticError
        return whole(key, *rest)

    monkeypatch.setattr(adjusting, "_rated", fails)
    assert adjusting.post_due(at=NOON + 200 * HOUR) == 1
    assert (spent(rich), spent(other)) == (150 * PRICE, cost(150))
    monkeypatch.undo()
    assert adjusting.post_due(at=NOON + 200 * HOUR) == 1
    assert spent(rich) == cost(150)


def test_whom_the_time_did_not_suffice_for_comes_first_the_next_time(rich, monkeypatch):
    price, other, whole, turns = tiered(), make_organization(cash=RICH), adjusting._post, []
    for organization in (rich, other):
        run(organization, price, hours=150, quantity=1)

    def post(organization_ids, **moments):
        turns.append(*organization_ids)
        return whole(organization_ids, **moments)

    def sweep():
        """One that has the time for one customer."""
        ticks = count(0, 20)
        monkeypatch.setattr(adjusting, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
        adjusting.post_due(at=NOON + 200 * HOUR, seconds=40)

    monkeypatch.setattr(adjusting, "_post", post)
    monkeypatch.setattr(adjusting, "BATCH", 1)
    sweep()
    sweep()
    Adjustment.objects.filter(organization=other.pk).update(evaluated_at=NOON)
    sweep()
    assert turns == [rich.pk, other.pk, other.pk]


def test_what_still_runs_is_counted_until_now_and_the_rest_later(rich):
    span = run(rich, tiered(), hours=None, quantity=1)
    for hours in (99, 101, 150):
        charging.charge_span(span=span, through=NOON + hours * HOUR)
        adjusting.post_due(at=NOON + hours * HOUR)
        assert spent(rich) == cost(hours)
    assert AdjustmentPosting.objects.count() == 2


def test_each_month_and_each_version_begins_anew(rich):
    price = tiered(begins=MARCH)
    run(rich, price, begin=APRIL - 120 * HOUR, hours=240, quantity=1)
    adjusting.post_due(at=APRIL + 200 * HOUR)
    assert spent(rich) == 2 * cost(120)
    assert list(Adjustment.objects.order_by("month").values_list("month", flat=True)) == [MARCH, APRIL]


def test_a_volume_tier_turns_back_what_was_taken(rich):
    price = tiered("volume", rows=((0, 15, 10 * USD), (15, None, 5 * USD)))
    span = run(rich, price, hours=None, quantity=1)
    taken = []
    for hours in (15, 16):
        charging.charge_span(span=span, through=NOON + hours * HOUR)
        adjusting.post_due(at=NOON + hours * HOUR)
        taken.append(spent(rich))
    assert taken == [150 * USD, 80 * USD]
    assert list(AdjustmentPosting.objects.values_list("amount_micros", flat=True)) == [-80 * USD]


def test_a_meter_that_ended_earlier_gives_the_tiers_back_too(rich):
    span = run(rich, tiered(), hours=None, quantity=1)
    charging.charge_span(span=span, through=NOON + 150 * HOUR)
    adjusting.post_due(at=NOON + 150 * HOUR)
    usage.stop(resource_id=span.resource_id, at=NOON + 50 * HOUR)
    adjusting.post_due(at=NOON + 151 * HOUR)
    assert spent(rich) == cost(50) == 50 * PRICE
    assert adjusted().amount_micros == 0


def test_use_that_vanished_takes_its_adjustment_with_it(rich):
    span = run(rich, tiered(rows=((0, 1, USD), (1, None, 2 * USD))), hours=None, quantity=1)
    charging.charge_span(span=span, through=NOON + 9 * HOUR)
    adjusting.post_due(at=NOON + 9 * HOUR)
    assert spent(rich) == 17 * USD
    usage.stop(resource_id=span.resource_id, at=NOON)
    adjusting.post_due(at=NOON + 10 * HOUR)
    assert spent(rich) == 0


def test_a_minimum_is_taken_when_its_month_is_over(rich):
    price = in_force(item(minimum_micros=100 * USD), begins=NOON - HOUR)[SKU]
    run(rich, price, hours=10, quantity=1)
    adjusting.post_due(at=APRIL - HOUR)
    assert spent(rich) == 25 * USD
    adjusting.post_due(at=APRIL)
    assert spent(rich) == 100 * USD
    adjusting.post_due(at=APRIL + 500 * HOUR)
    assert spent(rich) == 100 * USD


def test_flat_prices_and_what_was_paid_ahead_are_left_alone(rich):
    run(rich, make_price(), hours=500)
    run(rich, tiered(sku="other"), hours=500, covered_by="rsv_1")
    assert adjusting.post_due(at=APRIL + HOUR) == 0
    assert not Adjustment.objects.exists()


def test_a_rebate_pays_debts_then_returns_the_cash_that_paid_and_then_credit():
    poor = make_organization(promo=200 * USD)
    run(poor, tiered(), hours=150, quantity=1)
    assert wallet(poor).owed_micros == 150 * PRICE - 200 * USD
    adjusting.post_due(at=NOON + 150 * HOUR)
    assert (wallet(poor).owed_micros, wallet(poor).promo_micros, wallet(poor).cash_micros) == (150 * USD, 0, 0)
    paid = make_organization(promo=20 * USD, cash=1000 * USD)
    run(paid, tiered(sku="other", begins=NOON - HOUR / 2), hours=150, quantity=1)
    adjusting.post_due(at=NOON + 151 * HOUR)
    assert (wallet(paid).promo_micros, wallet(paid).cash_micros) == (0, 670 * USD)


def test_what_a_rise_of_tiers_asks_is_taken_as_use_is():
    poor = make_organization(promo=25 * USD, cash=5 * USD)
    run(poor, tiered(rows=((0, 10, USD), (10, None, 2 * USD))), hours=20, quantity=1)
    assert wallet(poor).available_micros == 10 * USD
    adjusting.post_due(at=NOON + 20 * HOUR)
    assert (wallet(poor).available_micros, wallet(poor).owed_micros) == (0, 0)
    grant(poor, 5 * USD)
    assert wallet(poor).promo_micros == 5 * USD


def test_money_that_comes_back_lasts_longer(rich):
    span = run(rich, tiered(), hours=None, quantity=1)
    charging.charge_span(span=span, through=NOON + 200 * HOUR)
    before = rich.runway.exhausts_at
    adjusting.post_due(at=NOON + 200 * HOUR)
    rich.runway.refresh_from_db()
    assert rich.runway.exhausts_at - before == 20 * HOUR  # 50 at 2.50 an hour


def test_many_customers_are_brought_up_to_date_in_as_many_statements_as_one(django_assert_max_num_queries):
    price = tiered()
    for _ in range(12):
        run(make_organization(cash=RICH), price, hours=150, quantity=1)
    with django_assert_max_num_queries(28):
        assert adjusting.post_due(at=NOON + 200 * HOUR) == 12


def test_the_sweep_is_a_task(rich, monkeypatch):
    run(rich, tiered(), hours=150, quantity=1)
    monkeypatch.setattr("billing.tasks.timezone.now", lambda: NOON + 200 * HOUR)
    tasks.post_adjustments.apply()
    assert adjusted().amount_micros == -25 * USD


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False), st.sampled_from(["graduated", "volume"]))
def test_any_order_of_closes_ends_with_the_same_money(db, randomly, model):
    with transaction.atomic():
        price = tiered(model)
        looks, bills = ([160], [*sorted(randomly.sample(range(1, 160), 4)), 160]), []
        for hours in looks:
            customer = make_organization(cash=RICH)
            span = run(customer, price, hours=None, quantity=1)
            for hour in hours:
                charging.charge_span(span=span, through=NOON + hour * HOUR)
                adjusting.post_due(at=NOON + hour * HOUR)
            bills.append(spent(customer))
        assert bills[0] == bills[1]
        assert books.check(at=MAY) == []
        transaction.set_rollback(True)


def test_a_commitment_is_drawn_at_its_price_and_the_rest_is_paid_by_the_list(rich):
    price = tiered()
    promise = committed(rich, amount=100)
    run(rich, price, begin=APRIL, hours=130, quantity=1)
    adjusting.post_due(at=APRIL + 130 * HOUR)
    promise.refresh_from_db()
    assert spent(rich) == 100 * 2 * USD + 30 * PRICE
    assert (promise.drawn_micros, promise.left_micros) == (200 * USD, 0)
    assert promise.drawn_unit_milliseconds == 100 * 3_600_000


def test_a_commitment_to_spend_covers_several_things_month_after_month(rich):
    prices = in_force(item(), item("disk", unit="gib", rows=((0, None, 1000),)), begins=NOON - HOUR)
    promise = committed(rich, kind="spend", skus=(SKU, "disk"), amount=100 * USD, months=2)
    run(rich, prices[SKU], begin=APRIL, hours=30, quantity=1)  # 60 at the discount
    adjusting.post_due(at=APRIL + 40 * HOUR)
    promise.refresh_from_db()
    assert promise.drawn_micros == 60 * USD
    run(rich, prices[SKU], begin=MAY, hours=30, quantity=1)  # 40 at the discount, 10 hours at 2.50
    adjusting.post_due(at=MAY + 40 * HOUR)
    promise.refresh_from_db()
    assert (promise.drawn_micros, promise.breakage_micros) == (100 * USD, 0)
    assert spent(rich) == 125 * USD


def test_what_a_term_leaves_over_is_paid_at_its_end(rich):
    price = in_force(item(), begins=NOON - HOUR)[SKU]
    promise = committed(rich, amount=100)
    run(rich, price, begin=APRIL, hours=30, quantity=1)
    adjusting.post_due(at=MAY - HOUR)
    assert spent(rich) == 60 * USD
    adjusting.post_due(at=MAY)
    promise.refresh_from_db()
    assert spent(rich) == 200 * USD
    assert (promise.drawn_micros, promise.breakage_micros, promise.left_micros) == (60 * USD, 140 * USD, 0)
    assert adjusting.post_due(at=MAY + HOUR) == 0


def test_late_use_takes_back_what_was_left_over(rich):
    price = in_force(item(), begins=NOON - HOUR)[SKU]
    promise = committed(rich, amount=100)
    adjusting.post_due(at=MAY)
    assert spent(rich) == 200 * USD
    run(rich, price, begin=APRIL, hours=30, quantity=1)
    adjusting.post_due(at=MAY + HOUR)
    promise.refresh_from_db()
    assert spent(rich) == 200 * USD
    assert (promise.drawn_micros, promise.breakage_micros) == (60 * USD, 140 * USD)


def test_no_later_list_changes_what_was_agreed(rich):
    in_force(item(), begins=NOON - HOUR)
    committed(rich, amount=100)
    dearer = in_force(item(rows=((0, None, 9 * USD),)), begins=APRIL - HOUR)[SKU]
    run(rich, dearer, begin=APRIL, hours=50, quantity=1)
    adjusting.post_due(at=APRIL + 50 * HOUR)
    assert spent(rich) == 100 * USD


def test_use_outside_of_the_term_is_not_covered(rich):
    price = in_force(item(), begins=NOON - HOUR)[SKU]
    committed(rich, amount=1)
    run(rich, price, begin=NOON, hours=5, quantity=1)
    run(rich, price, begin=MAY, hours=5, quantity=1)
    adjusting.post_due(at=MAY + 10 * HOUR)
    assert spent(rich) == 25 * USD + 2 * USD  # and the hour that was promised


def test_a_proposal_alone_covers_nothing(rich):
    price = in_force(item(), begins=NOON - HOUR)[SKU]
    committed(rich, agreed=False)
    run(rich, price, begin=APRIL, hours=5, quantity=1)
    assert adjusting.post_due(at=MAY) == 0


@pytest.mark.parametrize(
    ("order", "field"),
    [
        ({"starts_at": MARCH}, "starts_at"),
        ({"starts_at": APRIL + HOUR}, "starts_at"),
        ({"months": 0}, "months"),
        ({"months": 61}, "months"),
        ({"amount": 0}, "amount"),
        ({"amount": -5}, "amount"),
        ({"kind": "spend", "amount": 1}, "amount"),
        ({"kind": "gift"}, "kind"),
        ({"discount_bps": 10_000}, "discount_bps"),
        ({"skus": ()}, "skus"),
        ({"skus": (SKU, "disk")}, "skus"),
        ({"skus": ("nothing",)}, "skus"),
    ],
)
def test_what_cannot_be_promised_is_refused(rich, order, field):
    in_force(item(), item("disk"), begins=NOON - HOUR)
    with pytest.raises(BadCommitment) as refusal:
        committed(rich, **order)
    assert refusal.value.field == field
    assert not Commitment.objects.exists()


def test_a_commitment_is_in_the_currency_of_its_organization(rich):
    in_force(item(), currency="EUR", begins=NOON - HOUR)
    with pytest.raises(CurrencyMismatch):
        commitments.propose(
            organization=rich, currency="EUR", kind="hours", skus=(SKU,), amount=1, discount_bps=0, starts_at=APRIL,
            months=1, note="x", by=person(), key=uuid4(), at=NOON,
        )  # fmt: skip
    assert not Commitment.objects.exists()


def test_a_commitment_needs_a_second_person_and_its_first_month_still_to_come(rich):
    in_force(item(), begins=NOON - HOUR)
    promise = committed(rich, agreed=False)
    with pytest.raises(SecondPersonNeeded):
        commitments.agree(commitment=promise, by=person(), at=NOON)
    with pytest.raises(BadCommitment):
        commitments.agree(commitment=promise, by=person("bob"), at=APRIL)
    commitments.agree(commitment=promise, by=person("bob"), at=NOON)
    for verb in (commitments.agree, commitments.decline):
        with pytest.raises(AlreadyDecided):
            verb(commitment=promise, by=person("bob"), at=NOON)
    with pytest.raises(AlreadyCommitted):
        committed(rich, months=3)
    committed(rich, starts_at=MAY)


def test_a_declined_proposal_leaves_its_place(rich):
    in_force(item(), begins=NOON - HOUR)
    commitments.decline(commitment=committed(rich, agreed=False), by=person(), at=NOON)
    committed(rich)
    assert [row.state for row in commitments.of_organization(rich)] == ["agreed"]
    assert commitments.of_organization(rich, agreed_only=False).count() == 2
    assert not commitments.waiting().exists()


def test_a_proposal_is_made_once_per_key(rich):
    in_force(item(), begins=NOON - HOUR)
    order = {
        "organization": rich, "currency": "USD", "kind": "hours", "skus": (SKU,), "amount": 5, "discount_bps": 0,
        "starts_at": APRIL, "months": 1, "by": person(), "key": uuid4(), "at": NOON,
    }  # fmt: skip
    first = commitments.propose(note="one", **order)
    assert commitments.propose(note="one", **order) == first
    others = (
        {"note": "two"}, {"amount": 6}, {"discount_bps": 1}, {"months": 2}, {"starts_at": MAY}, {"skus": ("disk",)},
        {"kind": "spend", "amount": first.committed_micros},
    )  # fmt: skip
    for other in others:
        with pytest.raises(KeyReused):
            commitments.propose(**({"note": "one"} | order | other))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE billing_commitment SET committed_micros = committed_micros + 1",
        "UPDATE billing_commitment SET ends_at = ends_at + interval '1 day'",
        "UPDATE billing_commitment SET drawn_micros = committed_micros + 1",
        "UPDATE billing_commitment SET drawn_micros = -1",
        "DELETE FROM billing_commitment",
        "UPDATE billing_commitmentprice SET micros_per_unit_hour = 1",
        "UPDATE billing_adjustmentposting SET amount_micros = 1",
        "DELETE FROM billing_adjustmentposting",
        "UPDATE billing_adjustment SET rated_micros = rated_micros + 1",
    ],
)
def test_the_database_refuses_to_change_what_was_agreed_or_moved(rich, change):
    price = in_force(item(), begins=NOON - HOUR)[SKU]
    committed(rich, amount=10)
    run(rich, price, begin=APRIL, hours=5, quantity=1)
    adjusting.post_due(at=APRIL + 5 * HOUR)
    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(change)


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        ("UPDATE billing_adjustment SET amount_micros = amount_micros + 1, rated_micros = rated_micros + 1",
         "adjustment_is_the_sum_of_its_postings"),
        ("UPDATE billing_adjustment SET invoiced_micros = 5", "adjustment_is_invoiced_once"),
        ("UPDATE billing_commitment SET drawn_micros = drawn_micros - 1", "commitment_is_drawn_by_its_adjustments"),
        ("UPDATE billing_adjustment SET minimum_micros = -1", "adjustment_is_of_its_own_parts"),
    ],
)  # fmt: skip
def test_the_audit_finds_damage(rich, damage, rule):
    price = in_force(item(), begins=NOON - HOUR)[SKU]
    committed(rich, amount=10)
    run(rich, price, begin=APRIL, hours=5, quantity=1)
    adjusting.post_due(at=APRIL + 5 * HOUR)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(damage)
        assert rule in {finding.rule for finding in books.check(at=APRIL + 6 * HOUR)}
        transaction.set_rollback(True)


@pytest.mark.django_db(transaction=True)
def test_two_closes_at_once_post_once(rich):
    run(rich, tiered(), hours=150, quantity=1)
    close = lambda: adjusting.post_due(at=NOON + 200 * HOUR)  # noqa: E731
    assert at_the_same_moment(close, close, close) == ["done"] * 3
    assert AdjustmentPosting.objects.count() == Adjustment.objects.count() == 1
    assert spent(rich) == cost(150)


def test_a_close_and_the_platforms_revenue_agree(rich):
    run(rich, tiered(), hours=150, quantity=1)
    adjusting.post_due(at=NOON + 200 * HOUR)
    assert accounts.balance_micros(accounts.platform("revenue", "USD")) == cost(150)
    assert set(Transfer.objects.filter(key__startswith="refund:apo_").values_list("reason", flat=True)) == {
        "Tiers and commitments of 2026-03"
    }
