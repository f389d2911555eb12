"""The month closes: what a fault took from a customer comes back by itself, and its supplier bears its part."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import time_machine
from django.db import transaction

from billing import accounts, books, charging
from billing.models import SlaVerdict, SupplierAdjustment, UsageSpan
from billing.suppliers import accruing, cards
from billing.suppliers.cards import Terms
from marketplace import rentals
from marketplace.sla import closing
from provisioning import quotas
from provisioning.health import faults
from tests.blocks import Buyer, sell_blocks
from tests.conftest import make_person, order

pytestmark = pytest.mark.django_db
LATE = datetime(2026, 3, 30, 12, 0, tzinfo=UTC)
APRIL = datetime(2026, 4, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def clock():
    with time_machine.travel(LATE, tick=False) as clock:
        yield clock


@pytest.fixture
def broken(clock, running, operator):
    """An instance that ran for an hour, broke, and lay there for the rest of the month; its supplier has a card."""
    by, decided_by = make_person("dan@operator.example").pk, make_person("eve@operator.example").pk
    card = cards.propose(
        supplier=operator, terms=Terms(share_bps=8_000), effective_from=LATE, by=by, key=uuid4(), at=LATE
    )
    cards.approve(card=card, by=decided_by, at=LATE)
    clock.move_to(LATE + HOUR)
    faults.fail(instance=running, happened="A GPU broke.", fault_at=LATE + HOUR, at=LATE + HOUR)
    running.refresh_from_db()
    return running


def test_spans_say_whose_gpus_they_are(clock, running, fleet):
    labels = UsageSpan.objects.get(resource_id=running.public_id).labels
    assert labels["supplier"] == fleet.h200.supplier.public_id
    assert sum(labels["nodes"].values()) == 1


def test_a_fault_is_paid_back_at_the_months_end_and_once(broken, acme):
    before = accounts.wallet(organization=acme).promo_micros
    assert closing.close_due(at=APRIL + HOUR) == 0
    assert closing.close_due(at=APRIL + 3 * HOUR) == 1
    assert closing.close_due(at=APRIL + 4 * HOUR) == 0
    verdict = SlaVerdict.objects.get()
    assert (verdict.up_ms, verdict.down_ms) == (3_600_000, 24 * 3_600_000)
    assert verdict.credit_micros == verdict.paid_micros == 2_490_000
    assert accounts.wallet(organization=acme).promo_micros == before + 2_490_000
    accruing.accrue(at=APRIL + 4 * HOUR)
    assert SupplierAdjustment.objects.get().amount_micros == -2_490_000
    assert (books.check(at=APRIL + 9 * HOUR), books.recompute()) == ([], [])


def test_what_ran_well_is_judged_and_costs_nobody_anything(clock, running, acme):
    clock.move_to(APRIL + 3 * HOUR)
    charging.charge_due(at=APRIL + 3 * HOUR)
    before = accounts.wallet(organization=acme)
    assert closing.close_due(at=APRIL + 3 * HOUR) == 1
    verdict = SlaVerdict.objects.get()
    assert (verdict.availability_ppm, verdict.credit_micros, verdict.down_ms) == (1_000_000, 0, 0)
    assert accounts.wallet(organization=acme) == before


def test_an_open_month_shows_how_it_stands(broken):
    verdict, case, _ = closing.so_far([broken], at=LATE + 2 * HOUR)[broken.public_id]
    assert (verdict.up_ms, verdict.down_ms, verdict.availability_ppm) == (3_600_000, 3_600_000, 500_000)
    assert case.seen.paid_micros == verdict.credit_micros == 2_490_000


def test_reserved_hours_are_paid_back_from_what_was_paid_for_them(clock, run_until_idle, actor, project, fleet):
    """Four GPUs for 24 hours at 2 dollars less a tenth; one of them ran for an hour, broke, and lay there."""
    sell_blocks(fleet.h200, at=LATE)
    quotas.set_limit(project_id=project.pk, limit=100)
    buyer = Buyer(actor, project, fleet.h200, LATE)
    reservation = buyer.buy(4, 1, 25)
    clock.move_to(LATE + HOUR)
    buyer.go_to(1)
    with transaction.atomic():
        instance = rentals.rent(actor=actor, project=project, order=order(fleet.h200), at=LATE + HOUR)
    run_until_idle()
    instance.refresh_from_db()
    assert (instance.reservation_id, instance.phase) == (reservation.pk, "running")
    clock.move_to(LATE + 2 * HOUR)
    faults.fail(instance=instance, happened="A GPU broke.", fault_at=LATE + 2 * HOUR, at=LATE + 2 * HOUR)
    assert closing.close_due(at=APRIL + 3 * HOUR) == 1
    verdict = SlaVerdict.objects.get()
    # From its start to the end of the block, 24 hours later, at what one GPU had cost; all of it is given back.
    each = reservation.strips.get().paid_micros
    assert 23 * each < verdict.paid_micros <= 24 * each
    assert verdict.credit_micros == verdict.paid_micros
    assert (books.check(at=APRIL + 9 * HOUR), books.recompute()) == ([], [])
