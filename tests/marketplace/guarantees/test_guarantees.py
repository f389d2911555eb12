"""Guaranteed performance end to end: counters and faults in, credits out by themselves, and their suppliers' part."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse

from billing import accounts, books, charging, daily
from billing.models import GuaranteeHour, SupplierAdjustment
from billing.suppliers import purses
from marketplace.contracts import offering
from marketplace.errors import BadOrder, Conflict, IllegalState, NotFound
from marketplace.guarantees import evaluating, guarding
from marketplace.models import Guarantee, Side
from marketplace.sla import closing
from provisioning.health import faults
from provisioning.models import CounterSample
from tests.agreed import GUARANTEE, guarantee
from tests.conftest import make_organization, make_token
from tests.standing import frozen

pytestmark = pytest.mark.django_db
NOON = datetime(2026, 3, 30, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
READ = timedelta(seconds=15)
PRICE = 2_490_000  # an hour of one H200


clock = frozen(NOON)


@pytest.fixture
def steady(clock, running, operator, acme, alice, actor):
    """An instance under a guarantee of 2,500 tokens a second, from noon on."""
    version = guarantee(operator, acme, alice, NOON)
    guarding.begin(actor=actor, instance=running, version_id=version.public_id, at=NOON)
    return running


@pytest.fixture(autouse=True)
def the_books_balance(db):
    yield
    at = NOON + 48 * HOUR
    daily.sum_up(at=at)
    assert books.check(at=at) == []


def count(instance, rates, *, begins=NOON):
    """Let a node read the counter each 15 seconds, at a rate per second for each quarter of an hour."""
    place = instance.assignments.get()
    value, rows, at = 0, [], begins
    for rate in rates:
        for _ in range(60):
            value += rate * 15
            rows.append(CounterSample(
                instance=instance, assignment=place, name="tokens_total", since=at, at=at + READ, value=value,
                increase=rate * 15,
            ))  # fmt: skip
            at += READ
    CounterSample.objects.bulk_create(rows)


def judge(clock, hours=1, *, late=timedelta(minutes=5)):
    """Let time pass to some minutes after the end of so many hours, and judge them."""
    at = NOON + hours * HOUR + late
    clock.move_to(at)
    charging.charge_due(at=at)
    return sum(evaluating.judge_due(at=at, limit=100) for _ in range(hours))


def test_what_its_customer_has_left_guarantees_no_other_instance(clock, running, operator, acme, alice, actor):
    version = guarantee(operator, acme, alice, NOON)
    assert list(guarding.offered(running)) == [version]
    offering.leave(actor=actor, version=version, organization=acme, at=NOON)
    assert list(guarding.offered(running)) == []
    with pytest.raises(BadOrder, match="ended this agreement"):
        guarding.begin(actor=actor, instance=running, version_id=version.public_id, at=NOON)


def test_an_hour_that_keeps_its_floor_credits_nothing_and_is_judged_once(clock, steady, acme):
    count(steady, [2_500] * 4)
    before = accounts.wallet(organization=acme).promo_micros
    assert evaluating.judge_due(at=NOON + HOUR + timedelta(minutes=4), limit=10) == 0
    assert judge(clock) == 1
    assert judge(clock) == 0
    row = GuaranteeHour.objects.get()
    assert (row.measured_milli, row.achieved_bps, row.credit_micros) == (2_500_000, 10_000, 0)
    assert row.paid_micros == PRICE
    assert accounts.wallet(organization=acme).promo_micros <= before
    assert not SupplierAdjustment.objects.exists()


def test_a_shortfall_is_credited_by_its_curve_within_the_hour_and_its_seller_bears_its_part(
    clock, steady, acme, operator
):
    type(operator).objects.filter(pk=operator.pk).update(is_supplier=True)
    count(steady, [2_500, 2_500, 0, 2_500] + [2_500] * 4)  # a quarter of an hour stood still: 75 % of the floor
    judge(clock)
    row = GuaranteeHour.objects.get()
    assert (row.achieved_bps, row.credit_bps, row.credit_micros) == (7_500, 10_000, PRICE)
    assert SupplierAdjustment.objects.get().amount_micros == -(PRICE * 7_500 // 10_000)
    assert purses.of(operator.pk)["USD"].payable.balance_micros == -(PRICE * 7_500 // 10_000)
    assert judge(clock, 2) == 1
    assert [one.credit_micros for one in GuaranteeHour.objects.order_by("hour")] == [PRICE, 0]
    assert books.recompute(at=NOON + 3 * HOUR) == []
    # What was credited by the hour is not given back by the month again.
    assert closing.so_far([steady], at=NOON + 3 * HOUR)[steady.public_id][1].seen.returned_micros == PRICE


def test_an_hour_that_nobody_read_is_not_judged(clock, steady):
    assert judge(clock) == 1
    row = GuaranteeHour.objects.get()
    assert (row.achieved_bps, row.credit_micros, row.measured_milli) == (None, 0, None)


def test_a_fault_counts_as_time_in_which_nothing_came(clock, running, operator, acme, alice, actor):
    version = guarantee(operator, acme, alice, NOON, metric="availability", counter=None, floor_milli=99_500)
    guarding.begin(actor=actor, instance=running, version_id=version.public_id, at=NOON)
    clock.move_to(NOON + HOUR / 2)
    faults.fail(instance=running, happened="A GPU broke.", fault_at=NOON + HOUR / 2, at=NOON + HOUR / 2)
    judge(clock)
    row = GuaranteeHour.objects.get()
    assert (row.measured_milli, row.achieved_bps) == (50_000, 5_025)
    assert row.credit_micros == row.paid_micros == PRICE // 2


def test_it_ends_with_the_hour_that_runs_and_is_judged_to_its_end(clock, steady, actor):
    count(steady, [0] * 8)
    clock.move_to(NOON + HOUR / 2)
    ended = guarding.end(actor=actor, instance=steady, at=NOON + HOUR / 2)
    assert ended.ended_at == NOON + HOUR
    assert judge(clock, 3) == 1
    assert Guarantee.objects.get().is_judged
    with pytest.raises(NotFound):
        guarding.end(actor=actor, instance=steady, at=NOON + HOUR)


def test_a_guarantee_that_ended_before_it_began_judges_no_hour_however_often_it_is_begun(
    clock, running, operator, acme, alice, actor
):
    version = guarantee(operator, acme, alice, NOON)
    for minute in (10, 20, 30):
        at = NOON + timedelta(minutes=minute)
        guarding.begin(actor=actor, instance=running, version_id=version.public_id, at=at)
        ended = guarding.end(actor=actor, instance=running, at=at + timedelta(minutes=1))
        assert ended.ended_at == ended.since == NOON + HOUR
    count(running, [0] * 8)
    assert judge(clock, 3) == 3
    assert not GuaranteeHour.objects.exists()
    assert Guarantee.objects.filter(is_judged=True).count() == 3


def test_an_hour_of_a_resource_is_credited_once_whichever_guarantee_asks(clock, steady):
    count(steady, [0] * 4)
    judge(clock)
    row = GuaranteeHour.objects.get()
    row.pk, row.public_id, row.guarantee = None, "ghr_other", "gua_other"
    with pytest.raises(IntegrityError, match="guarantee_judges_an_hour_of_a_resource_once"), transaction.atomic():
        row.save(force_insert=True)


def test_only_who_owns_the_gpus_guarantees_and_one_guarantee_holds_at_a_time(
    clock, steady, acme, alice, actor, operator, charlie
):
    other = guarantee(make_organization("Else", charlie), acme, alice, NOON)
    with pytest.raises(Conflict):
        guarding.begin(
            actor=actor, instance=steady, version_id=guarantee(operator, acme, alice, NOON).public_id, at=NOON
        )
    guarding.end(actor=actor, instance=steady, at=NOON)
    with pytest.raises(BadOrder):
        guarding.begin(actor=actor, instance=steady, version_id=other.public_id, at=NOON)
    with pytest.raises(NotFound):
        guarding.begin(actor=actor, instance=steady, version_id="ctv_none", at=NOON)


def test_nobody_is_bound_by_a_guarantee_that_its_seller_does_not_offer(clock, running, operator, acme, alice, actor):
    agreed = guarantee(operator, acme, alice, NOON)
    everything = {**GUARANTEE, "curve": [{"below_bps": 10_000, "credit_bps": 10_000}], "seller_bps": 10_000}
    type(operator).objects.filter(pk=operator.pk).update(is_supplier=True)
    proposed = offering.amend(
        actor=actor, contract=agreed.contract, terms={**agreed.terms, "guarantee": everything}, side=Side.BUYER, at=NOON
    )
    with pytest.raises(IllegalState, match="not offered"):
        guarding.begin(actor=actor, instance=running, version_id=proposed.public_id, at=NOON)
    assert list(guarding.offered(running)) == [agreed]
    offering.withdraw(actor=actor, version=agreed, at=NOON)
    with pytest.raises(IllegalState, match="not offered"):
        guarding.begin(actor=actor, instance=running, version_id=agreed.public_id, at=NOON)
    assert not guarding.offered(running).exists()
    assert not Guarantee.objects.exists()


def test_what_was_begun_goes_on_when_its_seller_offers_it_no_more(clock, steady, actor):
    version = Guarantee.objects.get().version
    offering.withdraw(actor=actor, version=version, at=NOON)
    kept = guarding.begin(actor=actor, instance=steady, version_id=version.public_id, at=NOON)
    assert (kept, kept.ended_at) == (Guarantee.objects.get(), None)


def test_the_api_and_the_page_show_the_curve_against_the_floor(clock, steady, acme, alice):
    count(steady, [2_500, 1_000, 2_500, 2_500])
    judge(clock)
    token = make_token(alice, acme)
    client = Client(headers={"Authorization": f"Bearer {token}", "Idempotency-Key": "k"})
    found = client.get(f"/api/v1/instances/{steady.public_id}/guarantee").json()
    assert found["guarantee"]["terms"]["floor_milli"] == 2_500_000
    (hour,) = client.get(f"/api/v1/instances/{steady.public_id}/guarantee/hours").json()["data"]
    assert (hour["achieved_bps"], hour["credit"]) == (8_500, "0.124500")
    person = Client()
    person.force_login(alice)
    page = person.get(reverse("instance-guarantee", args=[steady.public_id])).content.decode()
    assert "2,125/s" in page
    assert "<polyline" in page
    assert person.post(reverse("instance-guarantee", args=[steady.public_id]), {"end": "yes"}).status_code == 302
    assert client.delete(f"/api/v1/instances/{steady.public_id}/guarantee").status_code == 404
