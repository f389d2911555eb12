"""What lies down over a month's end is judged for both months, also where it never ran in the second."""

from datetime import timedelta

import pytest
from django.db import transaction

from billing import accounts, books
from billing.models import SlaVerdict, SupplierAdjustment
from billing.suppliers import accruing
from marketplace import rentals
from marketplace.models import Reservation, Shortfall
from marketplace.sla import closing
from provisioning import quotas
from provisioning.health import faults
from tests.blocks import Buyer, sell_blocks
from tests.marketplace.sla.test_closing import APRIL, HOUR, LATE, MAY, clock, each_hour, give_card, launch

__all__ = ["clock"]
pytestmark = pytest.mark.django_db
EVE = APRIL - 12 * HOUR


def fail(clock, instance, *, at):
    clock.move_to(at)
    faults.fail(instance=instance, happened="A GPU broke.", fault_at=at, at=at)
    instance.refresh_from_db()


def verdicts():
    rows = SlaVerdict.objects.order_by("month")
    return [
        (row.month, row.up_ms // 3_600_000, row.down_ms // 3_600_000, row.paid_micros, row.credit_micros)
        for row in rows
    ]


def test_what_lies_failed_over_the_months_end_counts_in_both_months(clock, running, operator, acme):
    """It ran for 30 hours and lay down for 24, of which 18 are of April, in which it cost nothing."""
    give_card(operator)
    fail(clock, running, at=APRIL - 6 * HOUR)
    before = accounts.wallet(organization=acme).promo_micros
    assert closing.close_due(at=APRIL + 3 * HOUR) == 1
    cost = 30 * 2_490_000
    assert verdicts() == [(month_before(APRIL), 30, 6, cost, cost)]
    assert closing.close_due(at=MAY + 3 * HOUR) == 1
    assert verdicts()[1:] == [(APRIL, 0, 18, 0, 0)]
    assert SlaVerdict.objects.get(month=APRIL).availability_ppm == 0
    assert closing.close_due(at=MAY + 4 * HOUR) == 0
    assert accounts.wallet(organization=acme).promo_micros == before + cost
    assert SupplierAdjustment.objects.get().amount_micros == -cost
    accruing.accrue(at=MAY + 4 * HOUR)
    assert (books.check(at=MAY + 9 * HOUR), books.recompute()) == ([], [])


def month_before(month):
    return (month - timedelta(days=1)).replace(day=1)


def test_reserved_hours_of_a_month_in_which_it_never_ran_are_given_back_and_its_supplier_bears_its_part(
    clock, actor, project, fleet, operator, acme, run_until_idle
):
    """One GPU for 24 hours from noon and one on the last of March: it runs for an hour, then lies down to their end."""
    give_card(operator)
    clock.move_to(EVE)
    sell_blocks(fleet.h200, at=EVE)
    quotas.set_limit(project_id=project.pk, limit=100)
    buyer = Buyer(actor, project, fleet.h200, EVE)
    buyer.buy(4, 1, 25)
    clock.move_to(EVE + HOUR)
    buyer.go_to(1)
    instance = launch(buyer, run_until_idle)
    fail(clock, instance, at=EVE + 2 * HOUR)
    run_until_idle()
    each_hour(clock, buyer)
    assert not Shortfall.objects.exists()
    each = Reservation.objects.get().strips.get().paid_micros
    before = accounts.wallet(organization=acme).promo_micros
    assert closing.close_due(at=APRIL + 30 * HOUR) == 1
    assert closing.close_due(at=MAY + 3 * HOUR) == 1
    assert verdicts() == [
        (month_before(APRIL), 1, 10, 11 * each, 11 * each), (APRIL, 0, 14, 13 * each, 13 * each)
    ]  # fmt: skip
    assert accounts.wallet(organization=acme).promo_micros == before + 24 * each
    borne = SupplierAdjustment.objects.order_by("pk").values_list("verdict__month", "amount_micros")
    assert dict(borne) == {month_before(APRIL): -11 * each, APRIL: -13 * each}
    accruing.accrue(at=MAY + 4 * HOUR)
    assert (books.check(at=MAY + 9 * HOUR), books.recompute()) == ([], [])


def test_what_waits_to_start_again_over_the_months_end_is_down_until_its_customer_stops_it(
    clock, running, actor, run_until_idle
):
    fail(clock, running, at=APRIL - 6 * HOUR)
    run_until_idle()
    running.refresh_from_db()
    clock.move_to(APRIL - HOUR)
    with transaction.atomic():
        rentals.start(actor=actor, instance=running, at=APRIL - HOUR)
    running.refresh_from_db()
    clock.move_to(APRIL + 30 * HOUR)
    with transaction.atomic():
        rentals.stop(actor=actor, instance=running, at=APRIL + 30 * HOUR)
    assert closing.close_due(at=MAY + 3 * HOUR) == 2
    assert verdicts()[1] == (APRIL, 0, 30, 0, 0)


@pytest.mark.parametrize("ended", ["by its customer", "before the month"])
def test_what_was_not_down_in_a_month_and_never_ran_in_it_is_not_judged(clock, running, actor, ended):
    fail(clock, running, at=LATE + HOUR if ended == "before the month" else APRIL - 6 * HOUR)
    if ended == "by its customer":
        clock.move_to(APRIL - HOUR)
        with transaction.atomic():
            rentals.terminate(actor=actor, instance=running, at=APRIL - HOUR)
    assert closing.close_due(at=MAY + 3 * HOUR) == 1
    assert [month for month, *_ in verdicts()] == [month_before(APRIL)]
