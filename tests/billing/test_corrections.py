"""Corrections of use that has ended: two people, the money to where it came from, and both calculators agree."""

import random
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from billing import adjusting, books, corrections, usage
from billing.errors import AlreadyDecided, AlreadyProposed, BadCorrection, KeyReused, SecondPersonNeeded
from billing.models import Accrual, Adjustment, Charge, UsageCorrection, UsageSpan
from billing.suppliers import accruing
from tests.billing.invoicing import APRIL, MAY, make_seller, use
from tests.billing.makers import HOUR, NOON, PRICE, USD, make_organization, make_price, pay_in, start, wallet
from tests.billing.people import two_people
from tests.billing.pricing import tiered
from tests.billing.supplying import labels, make_card, make_supplier

pytestmark = pytest.mark.django_db
LATER = NOON + 100 * HOUR
END = datetime(2026, 9, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def the_books_balance(db):
    yield
    accruing.accrue(at=END)
    assert books.check(at=END) == []
    assert books.recompute(at=END) == []


def propose(span, ended_at, *, at=LATER, by=None, key=None, reason="It was switched off"):
    who = by or two_people()[0]
    return corrections.propose(span=span, ended_at=ended_at, reason=reason, by=who, key=key or uuid4(), at=at)


def correct(span, ended_at, *, at=LATER):
    made = propose(span, ended_at, at=at)
    corrections.approve(correction=made, by=two_people()[1], at=at)
    span.refresh_from_db()
    return made


def test_use_that_ended_earlier_gives_back_what_paid_for_it_and_only_after_a_second_person(acme):
    span = use(acme, begin=NOON, hours=2, quantity=3)  # 15: all of the credit, and the cash
    assert (wallet(acme).promo_micros, wallet(acme).cash_micros) == (0, 0)
    made = propose(span, NOON + HOUR)
    assert wallet(acme).cash_micros == 0
    with pytest.raises(SecondPersonNeeded):
        corrections.approve(correction=made, by=made.proposed_by_id, at=LATER)
    corrections.approve(correction=made, by=two_people()[1], at=LATER)
    span.refresh_from_db()
    assert (span.ended_at, span.charged_micros) == (NOON + HOUR, 3 * PRICE)
    # What cash paid comes back as cash, what credit paid as credit.
    assert (wallet(acme).cash_micros, wallet(acme).promo_micros) == (5 * USD, 2_500_000)
    assert made.amount_micros == -3 * PRICE
    with pytest.raises(AlreadyDecided):
        corrections.approve(correction=made, by=two_people()[1], at=LATER)


def test_use_that_ended_later_is_charged_for_the_difference(acme):
    span = use(acme, begin=NOON, hours=1, quantity=1)
    made = correct(span, NOON + 2 * HOUR)
    assert (span.charged_micros, span.charged_through, made.amount_micros) == (2 * PRICE, NOON + 2 * HOUR, PRICE)


def test_a_span_can_be_corrected_there_and_back_and_there_again(acme):
    pay_in(acme, 100 * USD)
    before = wallet(acme)
    span = use(acme, begin=NOON, hours=4)
    for hours in (1, 4, 1, 0, 4):
        correct(span, NOON + hours * HOUR)
        assert span.charged_micros == 2 * PRICE * hours
    correct(span, NOON)
    assert wallet(acme) == before
    assert Charge.objects.filter(correction__isnull=False).count() == 6


def test_random_corrections_of_random_spans_agree_with_both_calculators():
    dice = random.Random(20260301)
    supplier = make_supplier()
    make_card(supplier)
    price, flat = tiered(), make_price(sku="flat", micros_per_unit_hour=1_234_567)
    customers = [make_organization(promo=dice.randrange(200) * USD, cash=300 * USD) for _ in range(3)]
    spans = [
        use(
            dice.choice(customers), begin=NOON + dice.randrange(600) * HOUR, hours=dice.randrange(1, 90),
            resource_id=f"ins_{n}", price=dice.choice([price, flat]), quantity=1, labels=labels(supplier),
        )
        for n in range(12)
    ]  # fmt: skip
    adjusting.post_due(at=APRIL)
    for _ in range(25):
        span = dice.choice(spans)
        wanted = span.started_at + timedelta(milliseconds=dice.randrange(100 * 3_600_000))
        correct(span, wanted, at=MAY + dice.randrange(60 * 24) * HOUR)
        if dice.random() < 0.3:
            accruing.accrue(at=MAY)


def test_tiers_of_a_month_that_no_close_reads_any_more_follow_a_correction():
    acme = make_organization(cash=1000 * USD)
    span = use(acme, begin=NOON, hours=150, price=tiered(), quantity=1)
    adjusting.post_due(at=APRIL + HOUR)
    correct(span, NOON + 50 * HOUR, at=END - HOUR)
    assert Adjustment.objects.get().amount_micros == 0
    assert wallet(acme).cash_micros + wallet(acme).promo_micros == 1000 * USD - 50 * PRICE


def test_correcting_takes_as_many_questions_however_often_a_thing_was_used(acme):
    pay_in(acme, 1000 * USD)
    price = tiered()

    def questions(span):
        with CaptureQueriesContext(connection) as asked:
            correct(span, span.started_at + HOUR / 2)
        return len(asked)

    spans = [use(acme, begin=NOON + number * HOUR, hours=1, price=price, quantity=1) for number in range(3)]
    adjusting.post_due(at=LATER)
    questions(spans.pop())
    before = questions(spans.pop())
    for number in range(3, 23):
        use(acme, begin=NOON + number * HOUR, hours=1, price=price, quantity=1)
    adjusting.post_due(at=LATER)
    assert questions(spans.pop()) == before


def test_the_supplier_gets_its_part_of_what_is_left():
    supplier, acme = make_supplier(), make_organization(cash=100 * USD)
    make_card(supplier)
    span = use(acme, begin=NOON, hours=4, labels=labels(supplier))
    accruing.accrue(at=LATER)
    correct(span, NOON + HOUR)
    accruing.accrue(at=LATER + HOUR)
    assert Accrual.objects.get().charge_micros == 2 * PRICE


@pytest.mark.parametrize("hours", [-1, 2, 5, 200])
def test_an_end_that_cannot_be_is_refused(acme, hours):
    span = use(acme, begin=NOON, hours=2)
    use(acme, begin=NOON + 4 * HOUR, hours=1, price=span.price_version)
    with pytest.raises(BadCorrection) as refused:
        propose(span, NOON + hours * HOUR)
    assert refused.value.field == "ended_at"


def test_what_still_runs_is_stopped_instead(acme):
    with pytest.raises(BadCorrection) as refused:
        propose(start(acme), NOON + HOUR)
    assert refused.value.field == "span"
    usage.stop(resource_id="ins_1", at=NOON + HOUR)


def test_a_proposal_counts_once_and_another_waits_for_it(acme):
    span, key = use(acme, begin=NOON, hours=2), uuid4()
    made = propose(span, NOON + HOUR, key=key)
    assert propose(span, NOON + HOUR, key=key) == made
    with pytest.raises(KeyReused):
        propose(span, NOON + HOUR / 2, key=key)
    with pytest.raises(AlreadyProposed):
        propose(span, NOON + HOUR / 2)
    corrections.decline(correction=made, by=made.proposed_by_id, at=LATER)
    correct(span, NOON + HOUR / 2)


def test_the_database_refuses_one_person_alone_and_a_second_charge_of_one_correction(acme):
    made = correct(use(acme, begin=NOON, hours=2), NOON + HOUR)
    with pytest.raises(IntegrityError, match="usage_correction_needs_a_second_person"), transaction.atomic():
        UsageCorrection.objects.update(decided_by=made.proposed_by_id)
    with pytest.raises(IntegrityError, match="charge_once_per_correction"), transaction.atomic():
        Charge.objects.create(
            key="x", posting="x", span=made.span, through=NOON, amount_micros=1, cash_micros=1, correction=made
        )


def test_the_audit_finds_a_span_whose_end_was_moved_without_a_correction(acme):
    use(acme, begin=NOON, hours=2)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("UPDATE billing_usagespan SET ended_at = started_at, charged_through = started_at")
        assert {one.rule for one in books.check(at=END)} == {"span_costs_what_it_measured"}
        transaction.set_rollback(True)
    make_seller()
    assert UsageSpan.objects.get().ended_at == NOON + 2 * HOUR
