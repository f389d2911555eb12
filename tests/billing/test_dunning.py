"""Dunning: a table of steps, each once and in order, and nobody is stopped who paid."""

from datetime import timedelta
from itertools import pairwise
from uuid import uuid4

import pytest
from django.db import transaction
from django.db.utils import IntegrityError
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from billing import bank, books, collecting, credits, disputes, dunning, holds, invoice_payments, runway, standing
from billing.errors import PaymentsPastDue
from billing.invoicing import crediting, debts
from billing.models import Account, Card, Collection, DunningEvent, DunningStep, Invoice, Notice, Payment, Runway
from billing.payments import gateway, paying
from tests.billing.invoicing import CLOSE, close, make_seller, use
from tests.billing.makers import (
    HOUR,
    NOON,
    USD,
    at_the_same_moment,
    hold_money,
    make_organization,
    make_price,
    start,
    wallet,
)
from tests.billing.people import give_credit_line, two_people
from tests.billing.test_bank import approved, recorded
from tests.billing.test_disputes import disputed

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)


@pytest.fixture
def card_rail(monkeypatch):
    """A card processor that is there; its answers are played by moving payments."""
    monkeypatch.setattr(gateway, "is_there", lambda: True)


def owing(*, days=7, micros=10 * USD):
    """A customer who owes an invoice of March, issued on 1 April at two."""
    make_seller("US")
    acme = make_organization()
    give_credit_line(acme, 1000 * USD, net_days=days)
    use(acme, begin=NOON, hours=2, quantity=1, price=make_price(micros_per_unit_hour=micros // 2))
    close()
    return acme, Invoice.objects.select_related("organization").get()


def save_card(organization):
    return Card.objects.create(
        organization_id=organization.pk, processor_id=f"pm_{uuid4().hex}", brand="visa", last4="4242", exp_month=1,
        exp_year=2030, is_default=True,
    )  # fmt: skip


def settle_payment(payment, state, *, at):
    """Play the processor: what it says about a payment."""
    if payment.state == Payment.State.CREATED:
        paying.move(payment, Payment.State.SENDING, at=at, sent_at=at)
    paying.move(payment, state, at=at, processor_id=f"pi_{payment.pk}")


def after(days, *, hours=0):
    """A moment so many days after the invoice was due."""
    return CLOSE + (7 + days) * DAY + hours * HOUR


def days(first, end):
    """The days, counted from the due day, on which something happens, and the first and last of the stretch."""
    return sorted({first, end - 1} | {day for day in (-7, -3, 0, 1, 3, 7, 14, 21, 30, 60) if first <= day < end})


def run(at):
    """Look as often as the sweep does until nothing more happens."""
    for _ in range(30):
        Collection.objects.filter(look_at__isnull=False).update(look_at=at)
        before = DunningEvent.objects.count()
        dunning.run_due(at=at)
        if DunningEvent.objects.count() == before:
            return


def actions():
    return [event.step.action for event in DunningEvent.objects.order_by("pk").select_related("step")]


def state():
    return Collection.objects.get().state


def sanction(organization):
    return Account.objects.get(organization=organization.pk, kind="receivable").sanction


def test_an_invoice_that_is_paid_at_its_issue_is_never_collected():
    make_seller("US")
    acme = make_organization(cash=100 * USD)
    use(acme, begin=NOON)
    close()
    assert not Collection.objects.exists()


def test_the_steps_are_taken_in_their_order_on_their_days():
    acme, _ = owing()
    for day in days(-8, 70):
        run(after(day, hours=1))
    assert actions() == [
        "charge", "mail", "charge", "mail", "charge", "charge", "restrict", "charge", "stop_spot", "stop_on_demand",
        "mail", "write_off",
    ]  # fmt: skip
    assert state() == "uncollectible"
    assert wallet(acme).owed_micros == 0
    assert sanction(acme) == "stop_on_demand"
    told = list(Notice.objects.filter(organization=acme).order_by("pk").values_list("kind", flat=True))
    assert told == ["due_soon", "past_due", "due_restricted", "due_spot_stopped", "due_stopped", "past_due",
                    "due_written_off"]  # fmt: skip
    assert books.check(at=after(80)) == []


def test_a_sweep_that_was_away_for_months_leaves_the_time_between_two_steps():
    acme, _ = owing()
    run(after(100))
    assert "stop_spot" not in actions()
    assert sanction(acme) == ""
    taken = {event.step.day_offset: event.at for event in DunningEvent.objects.select_related("step")}
    assert set(taken.values()) == {after(100)}
    for day in range(101, 200, 3):
        run(after(day))
    events = list(DunningEvent.objects.order_by("pk").select_related("step"))
    for one, other in pairwise(events):
        assert other.at - one.at >= (other.step.day_offset - one.step.day_offset) * DAY


def test_nothing_new_starts_while_an_invoice_is_restricted_and_does_again_once_it_is_paid():
    acme, invoice = owing()
    for day in days(-8, 8):
        run(after(day))
    assert sanction(acme) == "restrict"
    with pytest.raises(PaymentsPastDue) as refusal:
        hold_money(acme, USD)
    assert refusal.value.owed_micros == 10 * USD
    approved(recorded(acme, 10 * USD, invoice=invoice), at=after(8))
    assert (state(), sanction(acme)) == ("paid", "")
    hold_money(acme, USD)


def test_money_that_came_by_any_way_counts_at_the_launch_itself():
    acme, _ = owing()
    for day in days(-8, 8):
        run(after(day))
    from tests.billing.makers import grant

    grant(acme, 50 * USD, at=after(8))
    assert sanction(acme) == "restrict"  # no sweep has looked yet
    hold_money(acme, USD)
    assert (state(), sanction(acme)) == ("paid", "")


def test_who_paid_before_the_stop_is_not_stopped_whatever_the_sweep_has_seen():
    acme, _ = owing()
    for day in days(-8, 22):
        run(after(day))
    assert standing.stopped(at=after(22)) == [acme.pk]
    assert standing.spot_stopped(at=after(22)) == [acme.pk]
    transfer = recorded(acme, 10 * USD)
    approved(transfer, at=after(22))
    assert standing.stopped(at=after(22)) == standing.spot_stopped(at=after(22)) == []


def test_a_saved_card_is_charged_a_week_before_and_paid_by_it(card_rail):
    acme, invoice = owing()
    save_card(acme)
    run(after(-7))
    payment = Payment.objects.get()
    assert (payment.amount_micros, payment.reference) == (10 * USD, invoice.public_id)
    run(after(-6))
    assert actions() == ["charge"]  # nothing happens while it is under way
    settle_payment(payment, Payment.State.SUCCEEDED, at=after(-6))
    run(after(-5))
    assert state() == "paid"
    for day in days(-5, 70):
        run(after(day))
    assert actions() == ["charge"]


def test_a_card_pays_an_invoice_whole_where_credit_left_a_fraction_of_a_cent(card_rail):
    acme, _ = owing()
    save_card(acme)
    credits.compensate(organization=acme, amount_micros=1_234_567, key="sla", reason="It was down", at=CLOSE + HOUR)
    run(after(-7))
    payment = Payment.objects.get()
    assert payment.amount_micros == 8_770_000
    settle_payment(payment, Payment.State.SUCCEEDED, at=after(-6))
    run(after(-5))
    assert (state(), wallet(acme).owed_micros, wallet(acme).cash_micros) == ("paid", 0, 4_567)
    assert books.check(at=after(0)) == []


def test_a_card_recovers_what_was_written_off_to_a_fraction_of_a_cent(card_rail):
    acme, invoice = owing()
    credits.compensate(organization=acme, amount_micros=1_234_567, key="sla", reason="It was down", at=CLOSE + HOUR)
    for day in days(-8, 70):
        run(after(day))
    asked = invoice_payments.payable_micros(invoice.public_id, acme)
    assert (asked, collecting.refusal(acme).owed_micros) == (8_770_000, 8_770_000)
    save_card(acme)
    payment = paying.charge(
        organization=acme, amount_micros=asked, purpose=Payment.Purpose.INVOICE, key="late",
        reference=invoice.public_id, at=after(80),
    )  # fmt: skip
    settle_payment(payment, Payment.State.SUCCEEDED, at=after(80))
    assert (state(), sanction(acme), wallet(acme).cash_micros) == ("paid", "", 4_567)


def test_an_outcome_that_nobody_knows_holds_every_step_back(card_rail):
    acme, _ = owing()
    save_card(acme)
    run(after(-7))
    payment = Payment.objects.get()
    paying.move(payment, Payment.State.SENDING, at=after(-7), sent_at=after(-7))
    paying.move(payment, Payment.State.UNKNOWN, at=after(-7))
    for day in days(-7, 40):
        run(after(day))
    assert actions() == ["charge"]
    settle_payment(payment, Payment.State.FAILED, at=after(40))
    run(after(40))
    assert Notice.objects.filter(kind="charge_failed").count() == 1
    assert sanction(acme) == ""


def test_a_card_that_fails_is_told_once_and_charged_again_on_its_days(card_rail):
    acme, _ = owing()
    save_card(acme)
    for day in days(-8, 20):
        run(after(day))
        for payment in Payment.objects.filter(state="created"):
            settle_payment(payment, Payment.State.FAILED, at=after(day))
        run(after(day))
    assert Payment.objects.count() == 5
    assert Notice.objects.filter(kind="charge_failed").count() == 5
    assert sanction(acme) == "stop_spot"
    assert len({payment.key for payment in Payment.objects.all()}) == 5


def test_a_payment_by_card_pays_the_invoice_that_it_names(card_rail):
    acme, old = owing()
    use(
        acme,
        begin=CLOSE,
        hours=1,
        resource_id="ins_2",
        price=make_price(sku="other", micros_per_unit_hour=4 * USD),
        quantity=1,
    )
    close(at=CLOSE + 31 * DAY)
    new = Invoice.objects.exclude(pk=old.pk).get()
    save_card(acme)
    payment = paying.charge(
        organization=acme, amount_micros=4 * USD, purpose=Payment.Purpose.INVOICE, key="now", reference=new.public_id,
        at=CLOSE + 32 * DAY,
    )  # fmt: skip
    settle_payment(payment, Payment.State.SUCCEEDED, at=CLOSE + 32 * DAY)
    left = debts.left_due_micros(organization=acme, invoices=[old, new])
    assert (left[old.pk], left[new.pk]) == (10 * USD, 0)


def test_what_is_written_off_and_paid_after_all_is_recovered():
    acme, invoice = owing()
    for day in days(-8, 70):
        run(after(day))
    approved(recorded(acme, 4 * USD, invoice=invoice), at=after(80))
    assert state() == "uncollectible"
    approved(recorded(acme, 10 * USD, invoice=invoice), at=after(81))
    assert (state(), sanction(acme), wallet(acme).cash_micros) == ("paid", "", 4 * USD)
    assert books.check(at=after(90)) == []


def test_a_card_recovers_what_was_written_off_as_a_bank_transfer_does(card_rail):
    acme, invoice = owing()
    for day in days(-8, 70):
        run(after(day))
    save_card(acme)
    for number, expected in enumerate(("uncollectible", "paid")):
        payment = paying.charge(
            organization=acme, amount_micros=(4 + 2 * number) * USD, purpose=Payment.Purpose.INVOICE,
            key=f"late-{number}", reference=invoice.public_id, at=after(80),
        )  # fmt: skip
        settle_payment(payment, Payment.State.SUCCEEDED, at=after(80))
        assert state() == expected
    assert (sanction(acme), wallet(acme).cash_micros) == ("", 0)
    assert books.check(at=after(90)) == []


def test_nothing_is_written_off_while_a_part_is_disputed():
    _, invoice = owing()
    dispute = disputed(invoice, 4 * USD)
    for day in days(-8, 70):
        run(after(day))
    assert (state(), actions()[-1]) == ("past_due", "mail")
    disputes.reject(dispute=dispute, answer="It ran", by=two_people()[1], at=after(70))
    run(after(70))
    assert state() == "uncollectible"


def test_what_is_written_off_is_not_owed_any_more_so_the_money_lasts_longer():
    acme, _ = owing()
    start(acme, quantity=1, at=CLOSE, price_version=make_price(sku="volume", micros_per_unit_hour=1))
    for day in days(-8, 59):
        run(after(day))
    before = Runway.objects.get().funds_micros
    run(after(60))
    assert state() == "uncollectible"
    now = runway.refresh(organization=acme, at=after(60))
    assert Runway.objects.get().funds_micros == now.funds_micros
    assert now.funds_micros > before


def test_the_database_refuses_a_step_twice_and_harm_before_the_due_day():
    _, invoice = owing()
    run(after(-7))
    event = DunningEvent.objects.first()
    with pytest.raises(IntegrityError, match="dunning_step_once_per_invoice"), transaction.atomic():
        DunningEvent.objects.create(invoice=invoice, step=event.step, at=NOON, outcome="no_card", left_micros=1)
    with pytest.raises(IntegrityError, match="dunning_is_harmless_until"), transaction.atomic():
        DunningStep.objects.create(day_offset=0, action="stop_spot")


@pytest.mark.django_db(transaction=True)
def test_two_sweeps_at_once_take_each_step_once():
    owing()
    Collection.objects.update(look_at=after(0))
    collection = Collection.objects.get()
    outcomes = at_the_same_moment(*[lambda: dunning.look(collection_id=collection.pk, at=after(0))] * 3)
    assert outcomes == ["done"] * 3
    assert DunningEvent.objects.count() == 1  # the next one keeps its four days from this one


@pytest.mark.django_db(transaction=True)
def test_a_payment_and_a_step_at_once_never_leave_somebody_restricted_who_paid():
    acme, invoice = owing()
    for day in days(-8, 7):
        run(after(day))
    transfer = recorded(acme, 10 * USD, invoice=invoice)
    collection = Collection.objects.get()
    at_the_same_moment(
        lambda: bank.approve(transfer=transfer, by=two_people()[1], at=after(7)),
        lambda: dunning.look(collection_id=collection.pk, at=after(7)),
    )
    assert (state(), sanction(acme)) == ("paid", "")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("place", ["tell", "event", "review", "charge"])
def test_a_sweep_that_dies_at_any_step_is_repeated_without_anything_twice(place, monkeypatch, card_rail):
    acme, _ = owing()
    save_card(acme)
    for day in days(-8, 7):
        run(after(day))
        for payment in Payment.objects.filter(state="created"):
            settle_payment(payment, Payment.State.FAILED, at=after(day))
    before = DunningEvent.objects.count(), Payment.objects.count(), Notice.objects.count()
    owner, name = {
        "tell": (dunning.notices, "tell"), "event": (DunningEvent.objects, "create"),
        "review": (collecting, "_sanction"), "charge": (paying, "charge"),
    }[place]  # fmt: skip
    real = getattr(owner, name)

    def dies(*args, **kwargs):
        real(*args, **kwargs)
        raise ConnectionError

    monkeypatch.setattr(owner, name, dies)
    with pytest.raises(ConnectionError):
        dunning.look(collection_id=Collection.objects.get().pk, at=after(7))
    monkeypatch.undo()
    monkeypatch.setattr(gateway, "is_there", lambda: True)
    assert before == (DunningEvent.objects.count(), Payment.objects.count(), Notice.objects.count())
    run(after(7))
    for payment in Payment.objects.filter(state="created"):
        settle_payment(payment, Payment.State.FAILED, at=after(7))
    run(after(7))
    assert actions()[-2:] == ["charge", "restrict"]
    assert sanction(acme) == "restrict"


class DunningMachine(RuleBasedStateMachine):
    """Payments, failures, time, bank transfers and credit notes in any order, beside plain sums."""

    @initialize()
    def open(self):
        self.at = CLOSE
        self.atomic = transaction.atomic()
        self.atomic.__enter__()
        self.acme, self.invoice = owing()
        save_card(self.acme)
        self.paid = 0
        self.was_written_off = False
        self.events = []

    def teardown(self):
        if hasattr(self, "atomic"):
            found = books.check(at=self.at + 400 * DAY)
            transaction.set_rollback(True)
            self.atomic.__exit__(None, None, None)
            assert found == []

    @property
    def left(self):
        return max(0, 10 * USD - self.paid)

    @rule(days=st.integers(0, 12))
    def time_passes(self, days):
        self.at += days * DAY
        run(self.at)

    @rule(dollars=st.integers(1, 12), by_name=st.booleans())
    def bank_transfer(self, dollars, by_name):
        if Collection.objects.get().state == "uncollectible":
            return
        approved(recorded(self.acme, dollars * USD, invoice=self.invoice if by_name else None), at=self.at)
        self.paid += dollars * USD

    @precondition(lambda self: Payment.objects.filter(state__in=["created", "needs_action"]).exists())
    @rule(answer=st.sampled_from(["succeeded", "failed", "needs_action"]))
    def the_processor_answers(self, answer):
        payment = Payment.objects.filter(state__in=["created", "needs_action"]).first()
        settle_payment(payment, answer, at=self.at)
        if answer == "succeeded":
            self.paid += payment.amount_micros

    @rule(dollars=st.integers(1, 4))
    def credit_note(self, dollars):
        if crediting.left_micros(self.invoice) < dollars * USD or Collection.objects.get().state == "uncollectible":
            return
        carol, dan = two_people()
        proposal = crediting.propose(
            invoice=self.invoice, net_micros=dollars * USD, reason="Slow", by=carol, key=uuid4(), at=self.at
        )
        crediting.approve(proposal=proposal, by=dan, at=self.at)
        self.paid += dollars * USD

    @rule()
    def a_sweep_looks(self):
        run(self.at)

    @invariant()
    def what_is_left_is_a_plain_difference(self):
        if not hasattr(self, "acme"):
            return
        row = Collection.objects.get()
        left = invoice_payments.left_micros(self.invoice, self.acme)
        written_off = row.state == "uncollectible"
        assert left == (0 if written_off else self.left)

    @invariant()
    def each_step_is_taken_once_and_nobody_is_restricted_who_paid(self):
        if not hasattr(self, "acme"):
            return
        taken = list(DunningEvent.objects.order_by("pk").values_list("step", flat=True))
        assert taken[: len(self.events)] == self.events
        assert len(set(taken)) == len(taken)
        self.events = taken
        collecting.review(organization=self.acme, at=self.at)
        row = Collection.objects.get()
        if not self.left and row.state != "uncollectible":
            assert (row.state, sanction(self.acme)) == ("paid", "")
            assert standing.stopped(at=self.at) == []
        elif row.state == "open":
            assert self.at < row.due_at


def test_any_order_of_payments_failures_time_and_credit_ends_in_the_right_state(card_rail):
    run_state_machine_as_test(
        DunningMachine,
        settings=settings(
            max_examples=8, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_a_hold_that_was_placed_before_goes_on():
    acme, _ = owing()
    hold_money(acme, USD, resource_id="ins_before", key="first-hour:before", expires_at=after(50))
    for day in days(-8, 8):
        run(after(day))
    hold_money(acme, USD, resource_id="ins_before", key="first-hour:before", expires_at=after(50))
    assert holds.void_for(resource_id="ins_before", at=after(8)) == 1
