"""Hours that fell short are credited at what they cost in the end: the closed form, never against the customer."""

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import floor

import pytest
import time_machine
from celery.exceptions import SoftTimeLimitExceeded
from django.db import IntegrityError, connection, transaction
from django.db.models import Sum

from billing import adjusting, books, charging, price_lists
from billing.models import CreditGrant, GuaranteeCorrection, GuaranteeHour, SlaVerdict, SupplierAdjustment
from billing.outcomes import margins, shortfalls
from billing.outcomes.curve import Hour
from billing.outcomes.shortfalls import Guaranteed
from billing.sla import posting
from marketplace import access_till, rentals
from marketplace.api.guarantees import _hour
from marketplace.events import feed
from marketplace.guarantees import evaluating, guarding
from marketplace.models import Event
from marketplace.sla import closing
from provisioning.health import faults
from tests.agreed import GUARANTEE, guarantee
from tests.billing.makers import USD
from tests.billing.pricing import approved, committed, item
from tests.marketplace.guarantees.test_guarantees import PRICE, count

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)
LATE = datetime(2026, 3, 30, 12, 0, tzinfo=UTC)
APRIL, MAY = datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC)
OVER = MAY + 3 * HOUR
FAST, SLOW = [2_500] * 4, [2_500, 1_000, 2_500, 2_500]  # all of the floor, 85 % of it: five per cent are credited


@pytest.fixture
def clock():
    with time_machine.travel(LATE, tick=False) as clock:
        yield clock


@pytest.fixture
def promised(clock, fleet, acme):
    """Two hours of April at 40 per cent less, which are used up first."""
    committed(acme, skus=(fleet.h200.sku,), amount=2, discount_bps=4_000, starts_at=APRIL, at=LATE)


def fell_short(clock, rent, run_until_idle, *, operator, acme, alice, actor):
    """Return an instance of which the first hour of April fell short and was judged, and that runs on."""
    version = guarantee(operator, acme, alice, LATE)
    clock.move_to(APRIL)
    instance = rent()
    run_until_idle()
    instance.refresh_from_db()
    guarding.begin(actor=actor, instance=instance, version_id=version.public_id, at=APRIL)
    count(instance, [*SLOW, *FAST], begins=APRIL)
    adjusting.post_due(at=APRIL + HOUR)
    for hours in (1, 2):
        at = APRIL + hours * HOUR + timedelta(minutes=5)
        clock.move_to(at)
        charging.charge_due(at=at)
        assert evaluating.judge_due(at=at, limit=10) == 1
    clock.move_to(APRIL + 10 * HOUR)
    return instance


@pytest.fixture
def short(promised, clock, rent, run_until_idle, operator, acme, alice, actor):
    type(operator).objects.filter(pk=operator.pk).update(is_supplier=True)
    return fell_short(clock, rent, run_until_idle, operator=operator, acme=acme, alice=alice, actor=actor)


def stop(clock, instance, actor, run_until_idle):
    with transaction.atomic():
        rentals.stop(actor=actor, instance=instance, at=APRIL + 10 * HOUR)
    run_until_idle()
    clock.move_to(OVER)


def month_over():
    adjusting.post_due(at=OVER)
    return closing.close_due(at=OVER)


def test_an_hour_that_became_dearer_is_credited_the_rest_once_before_its_month_is_judged(
    clock, short, actor, acme, run_until_idle
):
    """While the commitment lasted an hour cost 60 per cent; of ten hours two did, so in the end each cost 92."""
    stop(clock, short, actor, run_until_idle)
    row = GuaranteeHour.objects.get(credit_bps__gt=0)
    assert (row.credit_bps, row.paid_micros, row.credit_micros) == (500, PRICE * 60 // 100, PRICE * 60 // 100 // 20)
    borne = SupplierAdjustment.objects.get().amount_micros
    assert closing.close_due(at=OVER) == 0  # its prices are not known yet
    assert not GuaranteeCorrection.objects.exists()
    assert month_over() == 1
    found = GuaranteeCorrection.objects.get()
    assert (found.hour, found.paid_micros, found.returned_micros) == (row, PRICE * 92 // 100, 0)
    assert found.credit_micros == PRICE * 92 // 100 // 20 - row.credit_micros == 39_840
    assert SupplierAdjustment.objects.get().amount_micros == borne  # the rest is the platform's
    (left,) = margins.margins()
    assert (left.version, left.credited_micros) == (row.version, row.credit_micros + borne + found.credit_micros)
    assert left.margin_micros == -left.credited_micros
    assert margins.margins(since=OVER + HOUR) == []
    (listed, _) = [_hour(one) for one in access_till.guarantee_hours(short).order_by("hour")]
    assert (listed["credit"], listed["credited"]) == ("0.074700", "0.114540")
    assert closing.close_due(at=OVER + HOUR) == 0
    assert GuaranteeCorrection.objects.count() == 1
    feed.publish(at=OVER, limit=1000)
    told = Event.objects.get(type="guarantee.corrected")
    assert (told.subject_id, told.project, told.organization) == (short.public_id, short.project, acme)
    assert (told.data["credit"], told.data["credited"]) == ("0.039840", "0.114540")
    assert told.data["hour"] == Event.objects.get(type="guarantee.shortfall").data["hour"]
    assert (books.check(at=OVER), books.recompute(at=OVER)) == ([], [])


def test_what_was_corrected_is_not_given_back_by_the_month_again(clock, short):
    """It breaks and is down for 24 hours: all of the month comes back, and nothing of it twice."""
    faults.fail(instance=short, happened="A GPU broke.", fault_at=APRIL + 10 * HOUR, at=APRIL + 10 * HOUR)
    clock.move_to(OVER)
    assert month_over() == 1
    verdict = SlaVerdict.objects.get()
    cost = PRICE * 92 * 10 // 100
    hours = GuaranteeHour.objects.aggregate(total=Sum("credit_micros"))["total"]
    more = GuaranteeCorrection.objects.get().credit_micros
    assert more > 0
    assert (verdict.credit_bps, verdict.paid_micros) == (10_000, cost)
    assert verdict.credit_micros + hours + more == cost
    given = CreditGrant.objects.filter(cause__startswith="service-credit:").aggregate(total=Sum("amount_micros"))
    assert given["total"] == cost
    assert (books.check(at=OVER), books.recompute(at=OVER)) == ([], [])


def test_where_use_became_cheaper_the_customer_keeps_what_the_hour_credited(
    clock, rent, run_until_idle, fleet, operator, acme, alice, actor
):
    rows = ((0, 1, PRICE), (1, None, USD))
    falling = approved(item(fleet.h200.sku, rows=rows, model="graduated"), at=LATE)
    price_lists.schedule(price_list=falling, effective_from=LATE + HOUR, by="ann@example.com", at=LATE)
    instance = fell_short(clock, rent, run_until_idle, operator=operator, acme=acme, alice=alice, actor=actor)
    stop(clock, instance, actor, run_until_idle)
    assert month_over() == 1
    assert GuaranteeHour.objects.get(credit_bps__gt=0).credit_micros == PRICE // 20
    assert SlaVerdict.objects.get().paid_micros == PRICE + 9 * USD
    assert not GuaranteeCorrection.objects.exists()


def test_a_month_whose_hours_cannot_be_corrected_is_not_judged_before_they_are(
    clock, short, actor, run_until_idle, monkeypatch
):
    def fail(**_facts):
        raise RuntimeError("broken")

    stop(clock, short, actor, run_until_idle)
    with monkeypatch.context() as broken:
        broken.setattr(shortfalls, "correct", fail)
        assert month_over() == 0
    assert not SlaVerdict.objects.exists()
    assert closing.close_due(at=OVER + HOUR) == 1
    assert GuaranteeCorrection.objects.count() == 1


def test_hours_that_there_is_no_time_for_are_left_for_the_next_run_and_keep_no_other_from_being_judged(
    clock, short, rent, actor, run_until_idle
):
    other = rent()
    run_until_idle()
    other.refresh_from_db()
    clock.move_to(APRIL + 11 * HOUR)
    for one in (short, other):
        with transaction.atomic():
            rentals.stop(actor=actor, instance=one, at=APRIL + 11 * HOUR)
    run_until_idle()
    clock.move_to(OVER)
    adjusting.post_due(at=OVER)
    assert closing.close_due(at=OVER, seconds=0) == 1
    assert SlaVerdict.objects.get().resource_id == other.public_id
    assert not GuaranteeCorrection.objects.exists()
    assert closing.close_due(at=OVER) == 1
    assert GuaranteeCorrection.objects.count() == 1


@pytest.mark.parametrize("place", [(shortfalls, "correct"), (posting, "post")])
def test_a_run_whose_time_is_over_ends_and_takes_it_for_no_fault_of_an_hour_or_a_month(
    clock, short, actor, run_until_idle, monkeypatch, place
):
    def stopped(**_facts):
        raise SoftTimeLimitExceeded

    stop(clock, short, actor, run_until_idle)
    monkeypatch.setattr(*place, stopped)
    with pytest.raises(SoftTimeLimitExceeded):
        month_over()


@pytest.mark.parametrize(
    ("paid", "step", "in_the_end", "returned"),
    [
        (1_000_000, 500, 1_500_000, 0), (1_000_000, 500, 1_000_000, 0), (1_000_000, 500, 700_000, 0),
        (999_999, 3_333, 1_234_567, 0), (1, 5_000, 3, 0), (1_000_000, 10_000, 1_500_000, 600_000),
        (1_000_000, 10_000, 1_500_000, 1_500_000), (0, 2_500, 1_000_001, 7),
    ],
)  # fmt: skip
def test_what_is_credited_more_is_the_closed_form(acme, paid, step, in_the_end, returned):
    terms = GUARANTEE | {"curve": [{"below_bps": 10_000, "credit_bps": step}], "cap_bps": 10_000}
    guaranteed = Guaranteed(
        guarantee="gua_1", version="ctv_1", organization=acme, resource_id="ins_1", resource_name="one", project="",
        terms=terms, supplier=None,
    )  # fmt: skip
    hour = Hour(APRIL, APRIL + HOUR, up_ms=3_600_000, increase_milli=1, read_ms=3_600_000, paid_micros=paid)
    row = shortfalls.post(guaranteed=guaranteed, hour=hour, at=APRIL + HOUR)
    assert row.credit_bps == step

    def credit(cost, back):
        return min(cost - back, floor(Fraction(cost * step, 10_000) + Fraction(1, 2)))

    more = max(0, credit(in_the_end, returned) - credit(paid, 0))
    for _ in range(2):
        shortfalls.correct(hour=row, paid_micros=in_the_end, returned_micros=returned, at=OVER)
    assert [one.credit_micros for one in GuaranteeCorrection.objects.all()] == [more] * bool(more)
    row = GuaranteeHour.objects.select_related("correction").get()
    assert row.credited_micros == credit(paid, 0) + more
    found = shortfalls.credited_micros(resource_ids=["ins_1"], since=APRIL, until=MAY)
    assert found == {"ins_1": row.credited_micros}
    assert books.check(at=OVER) == []


def test_the_database_and_the_audit_refuse_a_correction_that_takes_or_that_nothing_says(acme):
    test_what_is_credited_more_is_the_closed_form(acme, 1_000_000, 500, 1_500_000, 0)
    row = GuaranteeCorrection.objects.get()
    with pytest.raises(IntegrityError), transaction.atomic():
        GuaranteeCorrection.objects.update(credit_micros=1)
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("ALTER TABLE billing_guaranteecorrection DISABLE TRIGGER billing_guaranteecorrection_keeps")
    with pytest.raises(IntegrityError, match="guarantee_is_corrected_for_its_customer"), transaction.atomic():
        GuaranteeCorrection.objects.update(credit_micros=0)
    GuaranteeCorrection.objects.filter(pk=row.pk).update(paid_micros=row.paid_micros + 20)
    rule = "shortfall_is_corrected_by_what_its_step_says_of_the_price_in_the_end"
    assert [finding.rule for finding in books.check(at=OVER)] == [rule]
