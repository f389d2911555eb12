"""Money for results: what is set aside, taken, given back and shared out; and that the books know each micro."""

import pytest
from django.db import IntegrityError, connection, transaction

from billing import accounts, books, daily, holds, usage
from billing.errors import BadOutcome, EscrowClosed, HoldClosed, InsufficientFunds, KeyReused, ReversedAlready
from billing.models import Account, Delivery, Escrow, Hold, Outcome, OutcomeCost, SupplierAdjustment
from billing.outcomes import costs, floors, margins, periods, reversing, sharing
from billing.outcomes.audit import RULES
from billing.outcomes.periods import Period
from billing.outcomes.words import Share
from billing.suppliers import accruing, purses
from tests.billing.makers import HOUR, NOON, PRICE, USD, at_the_same_moment, make_organization, start, wallet
from tests.billing.results import JOB, VERSION, item, release, reverse, set_aside, settle
from tests.billing.supplying import make_card, make_supplier

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def the_books_balance(db):
    yield
    daily.sum_up(at=NOON + 50 * HOUR)
    assert books.check(at=NOON + 50 * HOUR) == []
    assert books.recompute(at=NOON + 50 * HOUR) == []


def balance(kind):
    return accounts.balance_micros(accounts.platform(kind, "USD"))


def test_each_accepted_result_takes_its_part_of_what_was_set_aside_and_the_rest_comes_back(acme):
    set_aside(acme, 12 * USD)
    assert (wallet(acme).available_micros, wallet(acme).held_micros) == (3 * USD, 12 * USD)
    first = settle(acme, item("task 0", micros_per_unit=11 * USD))
    assert (first.amount_micros, first.promo_micros) == (11 * USD, 10 * USD)  # credit first
    assert settle(acme, item("task 0", micros_per_unit=11 * USD)) == first
    assert balance("revenue") == 11 * USD
    back = release()
    assert release() == back
    assert back.amount_micros == USD
    assert (wallet(acme).available_micros, wallet(acme).held_micros) == (4 * USD, 0)
    assert Escrow.objects.get().state == "closed"
    with pytest.raises(EscrowClosed):
        settle(acme, item("task 1"))
    with pytest.raises(EscrowClosed):
        release(key="again")


def test_an_escrow_does_not_expire_and_holds_no_more_than_there_is(acme):
    with pytest.raises(InsufficientFunds):
        set_aside(acme, 16 * USD)
    assert not Escrow.objects.exists()
    made = set_aside(acme, 5 * USD)
    assert set_aside(acme, 5 * USD) == made
    with pytest.raises(KeyReused):
        set_aside(acme, 6 * USD)
    assert holds.expire(at=NOON + 100_000 * HOUR) == 0
    with pytest.raises(IntegrityError), transaction.atomic():
        Hold.objects.update(expires_at=NOON)


def test_no_more_is_taken_than_is_left_and_than_the_arithmetic_says(acme):
    set_aside(acme, 2 * USD)
    with pytest.raises(HoldClosed):
        settle(acme, item(micros_per_unit=3 * USD))
    with pytest.raises(BadOutcome):
        settle(acme, item(micros_per_unit=USD), micros=USD + 1)
    with pytest.raises(BadOutcome):
        settle(acme, item(), shares=[Share(None, 9_999)])
    assert not Outcome.objects.exists()
    assert wallet(acme).held_micros == 2 * USD


def test_a_subject_is_paid_once_whatever_the_key(acme):
    set_aside(acme, 5 * USD)
    paid = settle(acme, item("frame 7"), key="one")
    with pytest.raises(KeyReused):
        settle(acme, item("frame 7"), key="two")
    reverse(paid)
    with pytest.raises(KeyReused):
        settle(acme, item("frame 7"), key="three")


def test_a_part_that_comes_back_leaves_debts_credit_limit_then_cash_before_credit(acme):
    set_aside(acme, 14 * USD)
    release(3 * USD, key="a")
    assert {row.account.kind: row.left_micros for row in Hold.objects.select_related("account")} == {
        "promo": 10 * USD, "cash": USD,
    }  # fmt: skip
    with pytest.raises(KeyReused):
        release(2 * USD, key="a")
    with pytest.raises(HoldClosed):
        release(12 * USD, key="b")
    settle(acme, item(micros_per_unit=11 * USD))
    assert wallet(acme).cash_micros == 4 * USD


def test_a_result_that_is_taken_back_returns_cash_before_credit_in_parts_and_never_more(acme):
    set_aside(acme, 12 * USD)
    paid = settle(acme, item(micros_per_unit=12 * USD))
    assert reverse(paid, 3 * USD, key="a").promo_micros == USD  # two dollars of it were cash
    with pytest.raises(KeyReused):
        reverse(paid, 2 * USD, key="a")
    assert reversing.left_micros(paid) == 9 * USD
    with pytest.raises(ReversedAlready):
        reverse(paid, 10 * USD, key="b")
    reverse(paid, key="c")
    assert (wallet(acme).promo_micros, wallet(acme).cash_micros) == (10 * USD, 5 * USD)
    assert balance("revenue") == 0
    with pytest.raises(ReversedAlready):
        reverse(paid, key="d")
    with pytest.raises(BadOutcome):
        reverse(Outcome.objects.get(key="a"), key="e")


def test_suppliers_get_their_parts_once_and_give_back_exactly_what_a_full_reversal_takes(acme):
    one, two = make_supplier(), make_supplier()
    set_aside(acme, 10 * USD)
    shares = [Share(one, 3_333), Share(two, 3_333), Share(None, 3_334)]
    paid = [settle(acme, item(f"task {n}", micros_per_unit=100_001), shares=shares) for n in range(3)]
    assert sharing.share_out(at=NOON) == 3
    assert sharing.share_out(at=NOON) == 0
    each = purses.of(one.pk)["USD"].payable.balance_micros
    assert each == 3 * 33_330
    assert SupplierAdjustment.objects.filter(kind="outcome").count() == 2  # one for each supplier, not for each result
    reverse(paid[0], 1, key="a")
    reverse(paid[0], key="b")
    for other in paid[1:]:
        reverse(other)
    sharing.share_out(at=NOON)
    assert [purses.of(each.pk)["USD"].payable.balance_micros for each in (one, two)] == [0, 0]
    assert balance("revenue") == 0


def test_a_cap_lowers_what_counts_in_its_period_and_a_reversal_makes_room_again(acme):
    set_aside(acme, 10 * USD)
    period = Period(NOON - 12 * HOUR, NOON + 12 * HOUR, cap_micros=2_500_000)
    taken = [settle(acme, item(f"task {n}"), period=period) for n in range(4)]
    assert [one.amount_micros for one in taken] == [USD, USD, 500_000, 0]
    assert taken[3].asked_micros == USD
    reverse(taken[0])
    assert settle(acme, item("task 9"), period=period).amount_micros == USD
    assert periods.counted_micros(version=VERSION, organization=acme, period=period) == 2_500_000
    following = Period(NOON + 12 * HOUR, NOON + 36 * HOUR, cap_micros=2_500_000)
    assert settle(acme, item("task 10"), period=following).amount_micros == USD


def test_a_floor_is_charged_once_at_the_end_of_its_period_from_the_balance_and_what_is_missing_is_owed(acme):
    set_aside(acme, USD)
    period = Period(NOON, NOON + HOUR)
    settle(acme, item(), period=period)
    wanted = {
        "organization": acme, "resource_id": VERSION, "key": "floor:2026-03", "floor_micros": 20 * USD,
        "period": period, "shares": [Share(None, 10_000)], "item": item("2026-03", unit="minimum"), "at": NOON + HOUR,
    }  # fmt: skip
    made = floors.true_up(**wanted)
    assert floors.true_up(**wanted) == made
    assert (made.amount_micros, made.kind) == (19 * USD, "true_up")
    assert (wallet(acme).available_micros, wallet(acme).owed_micros) == (0, 5 * USD)
    assert floors.true_up(**wanted | {"key": "floor:b", "floor_micros": 20 * USD}) is None


def test_the_time_of_attempts_costs_the_platform_its_list_price_and_pays_who_owns_the_gpus(acme):
    supplier = make_supplier()
    make_card(supplier, reserve_bps=0)
    set_aside(acme, 10 * USD)
    span = start(acme, resource_id="ins_1", covered_by=JOB, labels={"supplier": supplier.public_id, "offer": "ofr_1"})
    assert costs.book_costs(at=NOON) == 0  # it runs
    usage.stop(resource_id="ins_1", at=NOON + HOUR)
    assert costs.book_costs(at=NOON + HOUR) == 1
    assert costs.book_costs(at=NOON + HOUR) == 0
    assert OutcomeCost.objects.get(span=span).amount_micros == 2 * PRICE
    assert balance(Account.Kind.OUTCOME_COST) == -2 * PRICE
    accruing.accrue(at=NOON + 2 * HOUR)
    assert purses.of(supplier.pk)["USD"].payable.balance_micros == 2 * PRICE * 7 // 10
    assert Delivery.objects.get().amount_micros == 2 * PRICE
    settle(acme, item(micros_per_unit=6 * USD), shares=[Share(supplier, 1_000), Share(None, 9_000)])
    sharing.share_out(at=NOON + 2 * HOUR)
    (found,) = margins.margins()
    assert (found.paid_micros, found.shared_micros, found.cost_micros) == (6 * USD, 600_000, 2 * PRICE)
    assert found.margin_micros == 6 * USD - 600_000 - 2 * PRICE


def test_written_rows_refuse_every_change(acme):
    set_aside(acme, 5 * USD)
    settle(acme, item())
    for change in (
        "UPDATE billing_outcome SET amount_micros = 1", "DELETE FROM billing_outcome",
        "UPDATE billing_prepaiditem SET amount_micros = 1",
    ):  # fmt: skip
        with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(change)
    sharing.share_out(at=NOON)
    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("UPDATE billing_outcome SET sharing_id = NULL")


BREAKING = {
    "escrow_is_what_it_gave_out_and_has_left": "UPDATE billing_escrow SET posted_micros = posted_micros - 1",
    "outcomes_of_a_period_are_counted": "UPDATE billing_outcomeperiod SET micros = micros + 1",
    "hold_of_an_escrow_has_one": "UPDATE billing_escrow SET resource_id = 'job_2'",
    "outcome_moved_its_money": "UPDATE billing_outcome SET amount_micros = amount_micros - 1, promo_micros = 0",
    "outcome_costs_what_its_arithmetic_says": "UPDATE billing_outcome SET asked_micros = asked_micros + 1",
    "outcome_is_an_item": "UPDATE billing_prepaiditem SET amount_micros = amount_micros + 1",
    "suppliers_part_of_outcomes_was_moved": "UPDATE billing_outcomeshare SET amount_micros = amount_micros + 1",
    "totals_of_a_version_are_what_was_shared_out_and_booked": "UPDATE billing_outcometotal SET cost_micros = 1",
    "what_results_took_was_booked": "UPDATE billing_outcomecost SET amount_micros = amount_micros + 1",
}


def test_the_audit_finds_what_was_tampered_with(acme):
    supplier = make_supplier()
    set_aside(acme, 5 * USD)
    settle(acme, item(), shares=[Share(supplier, 10_000)], period=Period(NOON, NOON + HOUR))
    start(acme, covered_by=JOB)
    usage.stop(resource_id="ins_1", at=NOON + HOUR)
    costs.book_costs(at=NOON + HOUR)
    sharing.share_out(at=NOON + HOUR)
    assert set(BREAKING) <= set(RULES)
    for rule, change in BREAKING.items():
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL session_replication_role = replica")
            cursor.execute(change)
            assert rule in {found.rule for found in books.check(at=NOON + HOUR)}
            transaction.set_rollback(True)


@pytest.mark.django_db(transaction=True)
def test_of_two_who_settle_at_once_one_subject_is_paid_once_and_the_escrow_never_gives_out_more():
    acme = make_organization(cash=10 * USD)
    set_aside(acme, 3 * USD)
    assert at_the_same_moment(*[lambda: settle(acme, item("frame 1"), key="same")] * 2) == ["done", "done"]
    calls = [lambda n=n: settle(acme, item(f"task {n}"), key=f"key {n}") for n in range(3)]
    assert at_the_same_moment(*calls) == ["HoldClosed", "done", "done"]
    assert Escrow.objects.get().left_micros == 0
