"""What is taken off what suppliers earn: service credits by earning, corrections, and what was lent to spot."""

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from uuid import uuid4

import pytest

from billing import accounts, charging, prepayments, usage
from billing.models import Accrual, Earning, PriceVersion, SupplierAdjustment, UsageSpan
from billing.suppliers import accruing, adjusting
from billing.suppliers.accruing import Supplied
from tests.billing.makers import HOUR, NOON, USD, block, make_organization, make_price, start
from tests.billing.supplying import labels, make_card, make_person, make_supplier
from tests.billing.test_corrections import correct
from tests.billing.test_suppliers import balances, is_clean

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)


@pytest.fixture
def nordlys(db):
    return make_supplier()


def earn(acme, nordlys, *, begin, hours=1):
    """Accrue some hours by themselves: 3.50 of each go to the supplier, 0.35 of that held back for 30 days."""
    start(acme, labels=labels(nordlys), at=begin, price_version=PriceVersion.objects.first() or make_price())
    usage.stop(resource_id="ins_1", at=begin + hours * HOUR)
    (made,) = accruing.accrue(at=begin + hours * HOUR)
    return made


def test_a_service_credit_takes_from_what_is_released_next_and_each_release_says_its_own(nordlys):
    acme = make_organization(cash=100 * USD)
    make_card(nordlys)
    first, second = earn(acme, nordlys, begin=NOON), earn(acme, nordlys, begin=NOON + DAY)
    taken = adjusting.propose(
        supplier=nordlys, kind=SupplierAdjustment.Kind.REFUND, amount_micros=-500_000, currency="USD",
        reason="Slow network", by=make_person(), key=uuid4(), at=NOON + DAY,
    )  # fmt: skip
    adjusting.approve(adjustment=taken, by=make_person(), at=NOON + DAY)
    third = earn(acme, nordlys, begin=NOON + 2 * DAY)
    assert accruing.release_due(at=NOON + 60 * DAY) == 3
    released = [Earning.objects.get(pk=one.pk) for one in (first, second, third)]
    assert [(one.taken_micros, one.released_micros) for one in released] == [
        (350_000, 0), (150_000, 200_000), (0, 350_000)
    ]  # fmt: skip
    assert balances(nordlys) == (3 * 3_500_000 - 500_000, 0)
    assert is_clean()


def test_a_correction_takes_its_reserve_from_the_earnings_that_hold_one(nordlys):
    acme = make_organization(cash=100 * USD)
    make_card(nordlys)
    earn(acme, nordlys, begin=NOON, hours=2)
    span = UsageSpan.objects.get()
    correct(span, NOON + HOUR, at=NOON + DAY)
    accruing.accrue(at=NOON + DAY)
    assert Earning.objects.earliest("pk").taken_micros == 350_000
    assert balances(nordlys) == (3_150_000, 350_000)
    accruing.release_due(at=NOON + 60 * DAY)
    assert balances(nordlys) == (3_500_000, 0)
    assert is_clean()


def lend(span, *, through, micros, share):
    """Play what the shop front does once a charge was shared with whoever lent the GPUs."""
    charging.charge_span(span=span, through=through)
    charge = span.charges.latest("through")
    holder = make_organization()
    prepayments.pay_out(
        organization=holder, key=f"lend:{charge.key}:rsv_1", source=accounts.platform("revenue", "USD"),
        sent=prepayments.Paid(0, micros), reason="Lending", at=through,
    )  # fmt: skip
    accruing.note_lent(charge=charge, amount_micros=micros, share=share)
    return charge


def test_what_lending_pays_is_taken_off_before_the_supplier_gets_its_share(nordlys):
    acme = make_organization(cash=100 * USD)
    make_card(nordlys)
    span = start(acme, labels=labels(nordlys))
    charging.charge_span(span=span, through=NOON + HOUR)
    accruing.accrue(at=NOON + HOUR)
    lend(span, through=NOON + 2 * HOUR, micros=1_000_000, share=Fraction(1, 2))
    usage.stop(resource_id="ins_1", at=NOON + 3 * HOUR)
    accruing.accrue(at=NOON + 3 * HOUR)
    (one,) = Accrual.objects.all()
    # Three hours of two GPUs at 2.50, less a dollar for the holder; and an hour of one GPU that the block has earned.
    assert (one.charge_micros, one.unit_milliseconds) == (14 * USD, 5 * 3_600_000)
    assert one.payout_micros + one.reserve_micros == 9_800_000
    assert is_clean()


def test_a_share_that_comes_after_the_close_of_its_month_is_taken_off_that_month(nordlys):
    acme = make_organization(cash=1000 * USD)
    make_card(nordlys)
    april = datetime(2026, 4, 1, tzinfo=UTC)
    span = start(acme, labels=labels(nordlys), at=april - 2 * HOUR)
    charging.charge_span(span=span, through=april)
    usage.stop(resource_id="ins_1", at=april + HOUR)
    accruing.accrue(at=april + HOUR)
    charge = span.charges.get(through=april)
    prepayments.pay_out(
        organization=make_organization(), key=f"lend:{charge.key}:rsv_1", source=accounts.platform("revenue", "USD"),
        sent=prepayments.Paid(0, 2 * USD), reason="Lending", at=april,
    )  # fmt: skip
    accruing.note_lent(charge=charge, amount_micros=2 * USD, share=Fraction(1, 1))
    accruing.note_lent(charge=charge, amount_micros=2 * USD, share=Fraction(1, 1))
    accruing.accrue(at=april + 2 * HOUR)
    assert list(Accrual.objects.order_by("month").values_list("charge_micros", flat=True)) == [8 * USD, 5 * USD]
    assert is_clean()


def test_a_fixed_card_pays_an_hour_once_whether_it_was_reserved_or_lent(nordlys):
    acme = make_organization(cash=100 * USD)
    make_card(nordlys, fixed_micros=2 * USD, fixed_currency="USD", reserve_bps=0)
    prepayments.pay(
        organization=acme, key="trade:1", block=block("trade"), reason="Block", at=NOON,
        parts=[prepayments.Part("block", accounts.platform("deferred", "USD"), 4 * USD)],
    )  # fmt: skip
    prepayments.earn(key="rsv_1:x", currency="USD", amount_micros=4 * USD, reason="Delivery", at=NOON + HOUR)
    supplied = Supplied(nordlys.pk, "ofr_1", NOON, NOON + HOUR, 2 * 3_600_000)
    accruing.note_delivery(key="rsv_1:x", currency="USD", amount_micros=4 * USD, supplied=supplied)
    span = start(acme, labels=labels(nordlys))  # spot on those two GPUs in the same hour
    lend(span, through=NOON + HOUR, micros=2_500_000, share=Fraction(1, 1))
    usage.stop(resource_id="ins_1", at=NOON + HOUR)
    accruing.accrue(at=NOON + HOUR)
    assert balances(nordlys) == (4 * USD, 0)
    assert is_clean()
