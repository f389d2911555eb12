"""The month closes: what a fault took from a customer comes back by itself, and its supplier bears its part."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.db import transaction

from billing import accounts, adjusting, books, charging, price_lists
from billing.models import SlaVerdict, SupplierAdjustment, UsageSpan
from billing.months import month_of, next_month
from billing.sla import posting, terms
from billing.suppliers import accruing, cards
from billing.suppliers.cards import Terms
from marketplace import quotes, rentals, reservations
from marketplace.console import closings
from marketplace.models import Reservation, ReservationStrip, Shortfall
from marketplace.sla import closing, evidence
from provisioning import placement, quotas
from provisioning.health import faults
from provisioning.models import Gpu, GpuHold, Instance, Node
from tests.billing.pricing import approved, committed, item
from tests.blocks import USD, Buyer, sell_blocks
from tests.conftest import make_person, order
from tests.standing import frozen

pytestmark = pytest.mark.django_db
LATE = datetime(2026, 3, 30, 12, 0, tzinfo=UTC)
APRIL, MAY = datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


clock = frozen(LATE)


def give_card(operator):
    """Let the operator as a supplier earn four fifths."""
    by, decided_by = make_person("dan@operator.example").pk, make_person("eve@operator.example").pk
    card = cards.propose(
        supplier=operator, terms=Terms(share_bps=8_000), effective_from=LATE, by=by, key=uuid4(), at=LATE
    )
    cards.approve(card=card, by=decided_by, at=LATE)


@pytest.fixture
def broken(clock, running, operator):
    """An instance that ran for an hour, broke, and lay there for the rest of the month; its supplier has a card."""
    give_card(operator)
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


@pytest.fixture
def buyer(clock, actor, project, fleet):
    """Has four GPUs for 24 hours from an hour on, at 2 dollars less a tenth; more there are not."""
    sell_blocks(fleet.h200, at=LATE)
    quotas.set_limit(project_id=project.pk, limit=100)
    buyer = Buyer(actor, project, fleet.h200, LATE)
    buyer.buy(4, 1, 25)
    clock.move_to(LATE + HOUR)
    buyer.go_to(1)
    return buyer


def launch(buyer, run_until_idle, **asked):
    with transaction.atomic():
        at = buyer.at(1)
        instance = rentals.rent(actor=buyer.actor, project=buyer.project, order=order(buyer.offer, **asked), at=at)
    run_until_idle()
    instance.refresh_from_db()
    assert (instance.market, instance.phase) == ("reserved", "running")
    return instance


def break_at(clock, instance, at, run_until_idle):
    """Break the GPU of an instance, for good."""
    clock.move_to(at)
    Gpu.objects.filter(holds__assignment__instance=instance, holds__released_at=None).update(healthy=False)
    placement.recount(list(Node.objects.values_list("pk", flat=True)))
    faults.fail(instance=instance, happened="A GPU broke.", fault_at=at, at=at)
    run_until_idle()


def leave_only(gpus):
    """Let all GPUs be broken but those in use and so many more."""
    held = GpuHold.objects.filter(released_at=None).values("gpu")
    spare = Gpu.objects.exclude(pk__in=held).order_by("pk")[:gpus]
    Gpu.objects.exclude(pk__in=held).exclude(pk__in=list(spare.values_list("pk", flat=True))).update(healthy=False)
    placement.recount(list(Node.objects.values_list("pk", flat=True)))


def each_hour(clock, buyer, *, first=2):
    """Let the sweeps see the hours of the reservation pass, each a quarter in, and what comes after them."""
    for hours in range(first, 27):
        clock.move_to(buyer.at(hours + 0.25))
        buyer.go_to(hours + 0.25)


def test_reserved_hours_are_paid_back_from_what_was_paid_for_them(clock, buyer, run_until_idle):
    """There are GPUs to spare, so that nothing was given back for any hour: it could have been started again."""
    instance = launch(buyer, run_until_idle)
    break_at(clock, instance, LATE + 2 * HOUR, run_until_idle)
    each_hour(clock, buyer)
    assert not Shortfall.objects.exists()
    assert closing.close_due(at=APRIL + 3 * HOUR) == 1
    verdict = SlaVerdict.objects.get()
    # From its start to the end of the block, 24 hours later, at what one GPU had cost; all of it is given back.
    each = Reservation.objects.get().strips.get().paid_micros
    assert verdict.paid_micros == verdict.credit_micros == 24 * each
    assert (books.check(at=APRIL + 9 * HOUR), books.recompute()) == ([], [])


def test_reserved_hours_count_though_it_was_started_again_outside_of_its_reservation(clock, buyer, run_until_idle):
    instance = launch(buyer, run_until_idle)
    break_at(clock, instance, LATE + 2 * HOUR, run_until_idle)
    each_hour(clock, buyer)
    instance.refresh_from_db()
    with transaction.atomic():
        rentals.start(actor=buyer.actor, instance=instance, at=buyer.at(27))
    clock.move_to(buyer.at(27))
    run_until_idle()
    instance.refresh_from_db()
    assert (instance.reservation, instance.phase) == (None, "running")
    with transaction.atomic():
        rentals.stop(actor=buyer.actor, instance=instance, at=buyer.at(29))
    clock.move_to(buyer.at(29))
    run_until_idle()
    assert closing.close_due(at=APRIL + 3 * HOUR) == 1
    verdict = SlaVerdict.objects.get()
    each = Reservation.objects.get().strips.get().paid_micros
    on_demand = sum(span.charged_micros for span in UsageSpan.objects.filter(covered_by=""))
    assert on_demand > 0
    assert verdict.paid_micros == verdict.credit_micros == 24 * each + on_demand
    assert books.recompute() == []


def test_reserved_hours_in_which_it_is_down_over_the_end_of_a_month_count(clock, buyer, run_until_idle):
    """It runs again outside of the reservation only in the new month, most of whose hours it was down inside."""
    instance = launch(buyer, run_until_idle)
    clock.move_to(buyer.at(1.5))
    faults.fail(instance=instance, happened="A GPU broke.", fault_at=buyer.at(1.5), at=buyer.at(1.5))
    run_until_idle()
    Instance.objects.filter(pk=instance.pk).update(attach=Instance.Attach.FORBID)
    instance.refresh_from_db()
    clock.move_to(buyer.at(20))
    with transaction.atomic():
        rentals.start(actor=buyer.actor, instance=instance, at=buyer.at(20))
    run_until_idle()
    each = Reservation.objects.get().strips.get().paid_micros
    (seen,) = evidence.between([instance.public_id], buyer.at(10), buyer.at(24), terms=terms.in_force(LATE))
    on_demand = 4 * 2_490_000
    assert seen.seen.paid_micros == 10 * each + on_demand
    (alone,) = evidence.between([instance.public_id], buyer.at(10), buyer.at(11), terms=terms.in_force(LATE))
    assert alone.seen.paid_micros == each  # an hour that it was down whole


def test_a_reserved_hour_that_was_lost_is_paid_back_once(clock, buyer, run_until_idle, acme):
    """Three GPUs are left of four, so 23 hours of one are given back as they pass, and its first one by the level."""
    before = accounts.wallet(organization=acme)
    instance = launch(buyer, run_until_idle)
    leave_only(3)
    break_at(clock, instance, LATE + 2 * HOUR, run_until_idle)
    each_hour(clock, buyer)
    each = Reservation.objects.get().strips.get().paid_micros
    assert sorted(Shortfall.objects.values_list("gpus", "refund_micros")) == [(1, each)] * 23
    assert closing.close_due(at=APRIL + 3 * HOUR) == 1
    verdict = SlaVerdict.objects.get()
    assert (verdict.credit_bps, verdict.paid_micros, verdict.credit_micros) == (10_000, each, each)
    after = accounts.wallet(organization=acme)
    assert after.available_micros - before.available_micros == 24 * each
    assert (books.check(at=APRIL + 9 * HOUR), books.recompute()) == ([], [])


def test_hours_of_a_reservation_that_was_left_are_paid_back_once(clock, buyer, run_until_idle, acme):
    """Its customer leaves in the fourth hour what is not delivered, and has the rest of it back at once."""
    before = accounts.wallet(organization=acme)
    instance = launch(buyer, run_until_idle)
    leave_only(3)
    break_at(clock, instance, LATE + 2 * HOUR, run_until_idle)
    for hours in (2.25, 3.25):
        clock.move_to(buyer.at(hours))
        buyer.go_to(hours)
    reservation = Reservation.objects.get()
    quote = quotes.for_cancellation(reservation=reservation, at=buyer.at(3.3))
    reservations.cancel(actor=buyer.actor, reservation=reservation, quote=quote, at=buyer.at(3.3))
    each_hour(clock, buyer, first=4)
    each = reservation.strips.get().paid_micros
    assert closing.close_due(at=APRIL + 3 * HOUR) == 1
    verdict = SlaVerdict.objects.get()
    assert (verdict.credit_bps, verdict.credit_micros) == (10_000, each)
    after = accounts.wallet(organization=acme)
    assert after.available_micros - before.available_micros == (1 + 2 + 21 * 4) * each
    assert books.check(at=APRIL + 9 * HOUR) == []


def test_what_was_given_back_is_of_the_instance_that_was_down(clock, buyer, run_until_idle):
    broken, well = launch(buyer, run_until_idle), launch(buyer, run_until_idle)
    leave_only(2)
    break_at(clock, broken, LATE + 2 * HOUR, run_until_idle)
    each_hour(clock, buyer)
    each = Reservation.objects.get().strips.get().paid_micros
    assert closing.close_due(at=APRIL + 3 * HOUR) == 2
    paid = dict(SlaVerdict.objects.values_list("resource_id", "paid_micros"))
    assert paid == {broken.public_id: each, well.public_id: 24 * each}


def test_of_two_that_were_down_the_longer_one_lacked_what_was_given_back_also_where_it_is_asked_for_alone(
    clock, buyer, run_until_idle
):
    """One GPU is missing. In the first hour the later instance was down longer; from then on both were, whole."""
    early, late = launch(buyer, run_until_idle), launch(buyer, run_until_idle)
    leave_only(3)
    break_at(clock, late, buyer.at(2), run_until_idle)
    break_at(clock, early, buyer.at(2.1), run_until_idle)
    each_hour(clock, buyer)
    reservation = Reservation.objects.get()
    assert set(reservation.shortfalls.values_list("gpus", flat=True)) == {1}
    each = reservation.strips.get().paid_micros
    assert paid_alone(early, buyer.at(1), buyer.at(25)) == 2 * each  # the first hour, and the one of the later one
    assert paid_alone(late, buyer.at(1), buyer.at(25)) == 23 * each


def test_what_was_given_back_of_an_hour_in_which_all_ran_is_not_what_they_cost(clock, buyer, run_until_idle):
    instance = launch(buyer, run_until_idle, gpus=4)
    reservation = Reservation.objects.get()
    each = reservation.strips.get().paid_micros
    Shortfall.objects.create(
        reservation=reservation, hour=buyer.at(2), gpus=1, refund_micros=each, worth_micros=each, message="",
        seen_at=buyer.at(2.25),
    )  # fmt: skip
    assert paid_alone(instance, buyer.at(2), buyer.at(3)) == 3 * each


def paid_alone(instance, begins, ends):
    """What an instance cost where nothing else is asked for."""
    (case,) = evidence.between([instance.public_id], begins, ends, terms=terms.in_force(LATE))
    return case.seen.paid_micros


def test_the_dearest_is_given_back_and_who_is_left_pays_for_what_is_left(clock, buyer, run_until_idle):
    """Of four GPUs one cost twice as much as the others; nobody can tell whose it was while all were there."""
    broken, well = launch(buyer, run_until_idle), launch(buyer, run_until_idle)
    strip = Reservation.objects.get().strips.get()
    each = strip.paid_micros
    ReservationStrip.objects.filter(pk=strip.pk).update(gpus=3)
    strip.pk, strip.gpus, strip.paid_micros, strip.worth_micros = None, 1, 2 * each, 2 * each
    strip.save(force_insert=True)
    leave_only(2)
    break_at(clock, broken, LATE + 2 * HOUR, run_until_idle)
    each_hour(clock, buyer)
    assert set(Shortfall.objects.values_list("gpus", "refund_micros")) == {(1, 2 * each)}
    assert closing.close_due(at=APRIL + 3 * HOUR) == 2
    paid = dict(SlaVerdict.objects.values_list("resource_id", "paid_micros"))
    assert paid == {broken.public_id: each * 5 // 4, well.public_id: each * 5 // 4 + 23 * each}


def test_a_credit_is_of_what_tiers_made_of_the_price(clock, rent, run_until_idle, fleet, acme):
    """2.49 for the first hour, and a dollar for each from the second on: ten hours cost 11.49, not 24.90."""
    rows = ((0, 1, 2_490_000), (1, None, USD))
    tiers = item(fleet.h200.sku, rows=rows, model="graduated")
    list_of_tiers = approved(tiers, at=LATE)
    price_lists.schedule(price_list=list_of_tiers, effective_from=LATE + HOUR, by="ann@example.com", at=LATE)
    assert ran_for_ten_hours(clock, rent, run_until_idle, since=LATE + HOUR) == 11_490_000
    assert SlaVerdict.objects.get().credit_bps == 10_000
    assert spent(acme) == 0
    assert (books.check(at=APRIL + 9 * HOUR), books.recompute()) == ([], [])


def test_a_credit_is_of_what_a_commitment_made_of_the_price(clock, rent, run_until_idle, fleet, acme):
    """A hundred hours are promised at 40 per cent less; what is left over of them is nothing that ran."""
    sku = fleet.h200.sku
    committed(acme, skus=(sku,), amount=100, discount_bps=4_000, starts_at=APRIL, at=LATE)
    assert ran_for_ten_hours(clock, rent, run_until_idle, since=APRIL + HOUR) == 14_940_000


def test_a_month_is_not_judged_before_it_is_known_what_it_cost(clock, rent, run_until_idle, fleet, acme):
    committed(acme, skus=(fleet.h200.sku,), starts_at=APRIL, at=LATE)
    clock.move_to(APRIL + HOUR)
    instance = rent()
    run_until_idle()
    instance.refresh_from_db()
    faults.fail(instance=instance, happened="A GPU broke.", fault_at=APRIL + HOUR, at=APRIL + HOUR)
    adjusting.post_due(at=APRIL + 3 * HOUR)
    clock.move_to(MAY + 3 * HOUR)
    assert closing.close_due(at=MAY + 3 * HOUR) == 0
    adjusting.post_due(at=MAY + 3 * HOUR)
    assert closing.close_due(at=MAY + 3 * HOUR) == 1


def test_a_month_whose_prices_never_come_is_judged_after_two_weeks_and_shown_until_then(
    clock, rent, run_until_idle, fleet, acme
):
    """Of ten hours two were worked out, at 40 per cent less; the rest counts as these."""
    committed(acme, skus=(fleet.h200.sku,), discount_bps=4_000, starts_at=APRIL, at=LATE)
    clock.move_to(APRIL + HOUR)
    instance = rent()
    run_until_idle()
    instance.refresh_from_db()
    adjusting.post_due(at=APRIL + 3 * HOUR)
    clock.move_to(APRIL + 11 * HOUR)
    faults.fail(instance=instance, happened="A GPU broke.", fault_at=APRIL + 11 * HOUR, at=APRIL + 11 * HOUR)
    assert closings.late(at=MAY + 23 * HOUR) == []
    two_weeks = MAY + 14 * 24 * HOUR
    assert closing.close_due(at=two_weeks - HOUR) == 0
    shown = [one for one in closings.late(at=two_weeks - HOUR) if one.until]
    assert [(one.organization, one.month, one.until) for one in shown] == [(acme, APRIL, two_weeks)]
    assert closing.close_due(at=two_weeks) == 1
    assert SlaVerdict.objects.get().paid_micros == 14_940_000
    assert [one for one in closings.late(at=two_weeks) if "instances" in one.what] == []


def test_what_cannot_be_judged_is_shown_and_after_three_months_left_to_a_person(broken, acme, monkeypatch):
    def fail(**_facts):
        raise RuntimeError("broken")

    monkeypatch.setattr(posting, "post", fail)
    assert closing.close_due(at=APRIL + 3 * HOUR) == 0
    (tried,) = [one for one in closings.late(at=APRIL + 30 * HOUR) if "instances" in one.what]
    (left,) = [one for one in closings.late(at=APRIL + 120 * 24 * HOUR) if "instances" in one.what]
    assert (tried.organization, "Tried again" in tried.then, "Not tried any more" in left.then) == (acme, True, True)


def ran_for_ten_hours(clock, rent, run_until_idle, *, since):
    """Let an instance run for ten hours and lie broken for 24, close its month, and return what it was judged to cost.

    All of that is given back.
    """
    clock.move_to(since)
    instance = rent()
    run_until_idle()
    instance.refresh_from_db()
    broke_at = since + 10 * HOUR
    clock.move_to(broke_at)
    faults.fail(instance=instance, happened="A GPU broke.", fault_at=broke_at, at=broke_at)
    over = next_month(month_of(since)) + 3 * HOUR
    clock.move_to(over)
    adjusting.post_due(at=over)
    assert closing.close_due(at=over) == 1
    verdict = SlaVerdict.objects.get()
    assert verdict.credit_micros == verdict.paid_micros
    return verdict.paid_micros


def spent(organization):
    """What is gone of a thousand dollars of credit."""
    wallet = accounts.wallet(organization=organization)
    return 1000 * USD - wallet.promo_micros - wallet.cash_micros + wallet.owed_micros
