"""Availability is a pure function of its evidence; a credit follows from it, is never more than was paid, and once."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import DatabaseError, connection, transaction
from hypothesis import given, settings
from hypothesis import strategies as st

from billing import books, charging, usage
from billing.errors import AlreadyDecided, BadAdjustment, SecondPersonNeeded
from billing.models import SlaVerdict, SupplierAdjustment
from billing.sla import audit, availability, posting, terms
from billing.sla.availability import Seen
from billing.suppliers import accruing, adjusting, purses
from tests.billing.makers import HOUR, NOON, USD, account, at_the_same_moment, make_organization, start
from tests.billing.supplying import labels, make_card, make_person, make_supplier

MARCH, APRIL = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
TERMS = terms.VERSIONS["2026-01"]
FIVE_HUNDRED_HOURS = (MARCH, MARCH + 500 * HOUR)


def seen(**overrides):
    return Seen(**{"begins": MARCH, "ends": APRIL, "paid_micros": 1000 * USD} | overrides)


def judged(**overrides):
    return availability.judge(seen(**overrides), TERMS)


@pytest.mark.parametrize("hours", [1, 500, 743])
def test_healthy_hours_give_no_credit(hours):
    whole = (MARCH, MARCH + hours * HOUR)
    verdict = judged(expected=(whole,), measured=(whole,))
    assert (verdict.availability_ppm, verdict.credit_micros, verdict.down_ms) == (1_000_000, 0, 0)


def test_ten_thousand_healthy_hours_give_no_credit():
    stretches = tuple((MARCH + n * HOUR, MARCH + (n + 1) * HOUR) for n in range(10_000))
    verdict = judged(ends=MARCH + 10_000 * HOUR, expected=stretches, measured=stretches)
    assert verdict.up_ms == 10_000 * 3_600_000
    assert verdict.credit_micros == 0


@pytest.mark.parametrize(
    ("down", "ppm", "credit"),
    [
        (timedelta(minutes=29), 999_033, 0),
        (timedelta(minutes=31), 998_966, 100 * USD),
        (timedelta(hours=5), 990_000, 100 * USD),
        (timedelta(hours=5, seconds=1), 989_999, 250 * USD),
        (timedelta(hours=26), 948_000, 1000 * USD),
    ],
)
def test_a_credit_is_that_of_its_tier(down, ppm, credit):
    begin, end = FIVE_HUNDRED_HOURS
    verdict = judged(expected=((begin, end),), measured=((begin, end - down),))
    assert (verdict.availability_ppm, verdict.credit_micros) == (ppm, credit)


def test_degraded_time_counts_half():
    notes = tuple(MARCH + n * HOUR for n in range(12))  # two hours of five hundred
    verdict = judged(expected=(FIVE_HUNDRED_HOURS,), measured=(FIVE_HUNDRED_HOURS,), noted=notes)
    assert verdict.degraded_ms == 2 * 3_600_000
    assert verdict.availability_ppm == 998_000
    assert verdict.credit_bps == 1_000


def test_notes_that_overlap_count_once():
    notes = (MARCH, MARCH + 5 * MINUTE, MARCH + 5 * MINUTE)
    assert judged(measured=(FIVE_HUNDRED_HOURS,), noted=notes).degraded_ms == 15 * 60_000


def test_an_incident_under_a_minute_does_not_count():
    begin, end = FIVE_HUNDRED_HOURS
    verdict = judged(expected=((begin, end),), measured=((begin, end - 59 * SECOND),))
    assert verdict.down_ms == 0


def test_what_was_given_back_already_is_not_given_back_again():
    verdict = judged(expected=((MARCH, MARCH + HOUR),), paid_micros=10 * USD, returned_micros=4 * USD)
    assert verdict.credit_micros == 6 * USD


def test_nothing_that_was_expected_is_wholly_available():
    assert judged().availability_ppm == 1_000_000


POINT = st.integers(0, 4000).map(lambda seconds: MARCH + seconds * SECOND)
STRETCHES = st.lists(st.tuples(POINT, POINT).map(lambda pair: (min(pair), max(pair))), max_size=5).map(tuple)
EVIDENCE = st.builds(
    Seen,
    begins=st.just(MARCH + 500 * SECOND),
    ends=st.just(MARCH + 3500 * SECOND),
    expected=STRETCHES,
    down=STRETCHES,
    measured=STRETCHES,
    noted=st.lists(POINT, max_size=4).map(tuple),
    paid_micros=st.integers(0, 10**13),
    returned_micros=st.integers(0, 10**13),
)


@given(evidence=EVIDENCE)
@settings(max_examples=150)
def test_the_verdict_is_what_counting_second_by_second_gives(evidence):
    """An oracle that knows nothing of stretches: it asks of each second what it was."""
    up, down, degraded, run = 0, 0, 0, 0
    for number in range(500, 3501):
        at = MARCH + number * SECOND

        def inside(stretches, at=at):
            return any(begin <= at < end for begin, end in stretches)

        is_up = number < 3500 and inside(evidence.measured)
        is_down = number < 3500 and not is_up and (inside(evidence.expected) or inside(evidence.down))
        up += is_up
        degraded += is_up and any(note <= at < note + TERMS.degraded_for for note in evidence.noted)
        run = run + 1 if is_down else 0 * (down := down + (run if run >= 60 else 0))
    verdict = availability.judge(evidence, TERMS)
    assert (verdict.up_ms, verdict.down_ms, verdict.degraded_ms) == (up * 1000, down * 1000, degraded * 1000)
    ppm = 1_000_000 if not up + down else (2 * up - degraded) * 500_000 // (up + down)
    assert verdict.availability_ppm == ppm
    bps = 10_000 if ppm < 950_000 else 2_500 if ppm < 990_000 else 1_000 if ppm < 999_000 else 0
    left = max(0, evidence.paid_micros - evidence.returned_micros)
    assert verdict.credit_micros == min(evidence.paid_micros * bps // 10_000, left)
    assert verdict.credit_micros <= evidence.paid_micros
    assert Seen.read(evidence.as_json()) == evidence


def test_terms_begin_with_a_month_and_stay():
    assert terms.in_force(datetime(2025, 12, 1, tzinfo=UTC)) is None
    assert terms.in_force(MARCH) == TERMS


@pytest.fixture
def nordlys(db):
    return make_supplier()


def subject(organization, supplier=None):
    return posting.Subject(
        organization=organization, resource_id="ins_1", resource_name="trainer", project="prj_1",
        supplier_id=supplier.pk if supplier else None, offer="ofr_1",
    )  # fmt: skip


def half_a_day(**overrides):
    """Twelve hours wanted, six measured: all of it is given back."""
    wanted = {"expected": ((NOON, NOON + 12 * HOUR),), "measured": ((NOON, NOON + 6 * HOUR),), "paid_micros": 3 * USD}
    return seen(**wanted | overrides)


def post(organization, supplier=None, **overrides):
    return posting.post(
        subject=subject(organization, supplier), seen=half_a_day(**overrides), terms=TERMS, at=APRIL + 3 * HOUR
    )


@pytest.mark.django_db
def test_a_credit_comes_by_itself_and_once(acme):
    before = account(acme, "promo").balance_micros
    assert post(acme).credit_micros == 3 * USD
    assert post(acme, paid_micros=9 * USD) is None
    assert account(acme, "promo").balance_micros == before + 3 * USD
    assert (books.check(at=APRIL + 9 * HOUR), books.recompute()) == ([], [])


@pytest.mark.django_db
def test_a_month_without_trouble_is_written_down_as_well(acme):
    verdict = post(acme, measured=((NOON, NOON + 12 * HOUR),))
    assert (verdict.availability_ppm, verdict.credit_micros) == (1_000_000, 0)


@pytest.mark.django_db
def test_the_supplier_bears_its_part_from_its_reserve_first(acme, nordlys):
    make_card(nordlys, sla_bps=5_000)
    start(acme, labels=labels(nordlys))
    usage.stop(resource_id="ins_1", at=NOON + HOUR)
    accruing.accrue(at=NOON + HOUR)  # 3.15 can be paid out, 0.35 is held back
    verdict = post(acme, nordlys)
    purse = purses.of(nordlys.pk)["USD"]
    assert verdict.back_charge.amount_micros == -3 * USD // 2
    assert (purse.reserve.balance_micros, purse.payable.balance_micros) == (0, 3_500_000 - 3 * USD // 2)
    assert (books.check(at=APRIL + 9 * HOUR), books.recompute()) == ([], [])


@pytest.mark.django_db
def test_the_supplier_bears_its_part_by_the_card_of_the_months_last_moment(acme, nordlys):
    make_card(nordlys, sla_bps=2_000, begins=APRIL - timedelta(milliseconds=1))
    make_card(nordlys, sla_bps=9_000, begins=APRIL)
    assert post(acme, nordlys).back_charge.amount_micros == -3 * USD // 5


@pytest.mark.django_db
def test_what_a_supplier_owes_may_fall_below_zero_and_is_earned_back(acme, nordlys):
    make_card(nordlys)
    post(acme, nordlys)
    assert purses.of(nordlys.pk)["USD"].payable.balance_micros == -3 * USD
    span = start(acme, labels=labels(nordlys), at=APRIL + 9 * HOUR)
    charging.charge_span(span=span, through=APRIL + 11 * HOUR)
    accruing.accrue(at=APRIL + 11 * HOUR)
    assert purses.of(nordlys.pk)["USD"].payable.balance_micros == 3_300_000
    assert books.check(at=APRIL + 99 * HOUR) == []


@pytest.mark.django_db
def test_without_a_rate_card_the_platform_bears_all(acme, nordlys):
    post(acme, nordlys)
    assert not SupplierAdjustment.objects.exists()


@pytest.mark.django_db
def test_a_verdict_is_never_changed(acme):
    post(acme)
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        SlaVerdict.objects.update(credit_micros=0)


@pytest.mark.django_db(transaction=True)
def test_two_closes_at_once_give_one_credit():
    acme = make_organization()
    assert at_the_same_moment(*[lambda: post(acme)] * 3) == ["done"] * 3
    assert account(acme, "promo").balance_micros == 3 * USD


def propose(supplier, micros, **overrides):
    from uuid import uuid4

    ordinary = {"kind": SupplierAdjustment.Kind.REFUND, "currency": "USD", "reason": "Two hours without a network"}
    return adjusting.propose(
        supplier=supplier, amount_micros=micros, by=make_person(), key=uuid4(), at=NOON, **ordinary | overrides
    )


@pytest.mark.django_db
def test_an_adjustment_moves_when_a_second_person_approves(nordlys):
    made = propose(nordlys, 5 * USD)
    with pytest.raises(SecondPersonNeeded):
        adjusting.approve(adjustment=made, by=made.proposed_by_id, at=NOON)
    assert purses.of(nordlys.pk) == {}
    adjusting.approve(adjustment=made, by=make_person(), at=NOON)
    with pytest.raises(AlreadyDecided):
        adjusting.decline(adjustment=made, by=make_person(), at=NOON)
    assert purses.of(nordlys.pk)["USD"].payable.balance_micros == 5 * USD
    assert books.check(at=NOON + HOUR) == []


@pytest.mark.django_db
@pytest.mark.parametrize("bad", [{"kind": SupplierAdjustment.Kind.SLA}, {"reason": " "}, {"micros": 0}])
def test_an_adjustment_says_how_much_and_why(nordlys, bad):
    with pytest.raises(BadAdjustment):
        propose(nordlys, **{"micros": USD} | bad)


SUSPENDED = """
    SET CONSTRAINTS ALL IMMEDIATE;
    ALTER TABLE billing_slaverdict DISABLE TRIGGER USER;
    ALTER TABLE billing_supplieradjustment DISABLE TRIGGER USER;
    ALTER TABLE billing_transfer DISABLE TRIGGER USER;
"""
BREAKS = {
    "sla_credit_is_what_its_tier_says": "UPDATE billing_slaverdict SET credit_micros = 1",
    "sla_credit_was_posted": "UPDATE billing_transfer SET key = 'x' || key WHERE key LIKE 'service-credit:%'",
    "supplier_bears_no_more_than_the_credit": "UPDATE billing_supplieradjustment SET amount_micros = -9000000",
    "supplier_adjustment_moved_its_money": "UPDATE billing_supplieradjustment SET amount_micros = -1",
}


@pytest.mark.django_db
@pytest.mark.parametrize("rule", audit.RULES)
def test_the_audit_finds(acme, nordlys, rule):
    make_card(nordlys)
    post(acme, nordlys)
    with connection.cursor() as cursor:
        cursor.execute(SUSPENDED)
        cursor.execute(BREAKS[rule])
    assert rule in {finding.rule for finding in books.check(at=APRIL + 9 * HOUR)}


@pytest.mark.django_db
def test_the_evidence_gives_the_verdict_again(acme):
    post(acme)
    with connection.cursor() as cursor:
        cursor.execute(SUSPENDED)
        cursor.execute("UPDATE billing_slaverdict SET down_ms = down_ms + 1")
    assert [finding.rule for finding in books.recompute()] == ["sla_comes_out_the_same"]
