"""A bank takes back more than everything that was ever asked for: it is owed all the same, asked for, and acted on."""

from datetime import date
from uuid import uuid4

import pytest
import time_machine
from django.db import transaction
from django.db.utils import IntegrityError

from billing import bank, books, collecting, invoice_payments, standing, taken_debts
from billing.collecting import Action
from billing.errors import PaymentsPastDue
from billing.invoicing import crediting
from billing.models import BankTransfer, Card, Collection, Invoice, Notice, TakenDebt
from billing.test_processor import disputes as far_disputes
from tests.billing.invoicing import APRIL, CLOSE, MAY, close, make_seller
from tests.billing.makers import HOUR, NOON, USD, hold_money, make_organization, wallet
from tests.billing.payments.test_taken_back import left, take_back, top_up, used
from tests.billing.people import give_credit_line, two_people
from tests.billing.test_bank import approved, recorded
from tests.billing.test_dunning import DAY, after, days, owing, run, sanction

pytestmark = pytest.mark.django_db
TAKEN = NOON + 2 * DAY


@pytest.fixture
def acme(processor):
    """A customer with a card, who may owe as well."""
    make_seller("US")
    organization = make_organization()
    give_credit_line(organization, 1000 * USD, net_days=7, at=NOON - DAY)
    processor.card(organization)
    return organization


def pay_out(organization, dollars, *, at):
    """Give cash back to the customer's bank account."""
    sent = bank.record(
        organization=organization, direction=BankTransfer.Direction.OUT, amount_micros=dollars * USD, invoice=None,
        key=uuid4(), bank_reference=f"out/{uuid4()}", value_on=date(2026, 3, 2), by=two_people()[0], at=at,
    )  # fmt: skip
    approved(sent, at=at)


@pytest.fixture
def taken(acme, processor):
    """Fifty dollars that were given back by bank, and then taken back by the card's bank as well."""
    payment = top_up(processor, acme, 50)
    pay_out(acme, 50, at=NOON + DAY)
    return take_back(processor, payment, at=TAKEN)


def of(organization):
    """Return what is left of what banks took for nothing."""
    return [micros for _, micros in collecting.taken_back(organization)]


def look(at):
    TakenDebt.objects.filter(look_at__isnull=False).update(look_at=at)
    taken_debts.run_due(at=at)


def test_what_was_never_asked_for_is_owed_and_due_in_the_usual_time(acme, taken):
    debt = TakenDebt.objects.get()
    assert (of(acme), wallet(acme).owed_micros) == ([50 * USD], 50 * USD)
    assert (debt.due_at - debt.issued_at, debt.older_due_micros) == (7 * DAY, 0)
    assert not Collection.objects.exists()
    assert Notice.objects.get(kind="payment_taken_back").facts["left_micros"] == str(50 * USD)
    assert books.check(at=TAKEN + HOUR) == []


def test_what_dunning_forbids_is_forbidden_on_its_days_and_each_step_is_told_once(acme, taken):
    due = TakenDebt.objects.get().due_at
    table = [
        (plan.step.action, (plan.at - due).days) for plan in taken_debts.planned(TakenDebt.objects.get(), at=TAKEN)
    ]
    assert table == [("restrict", 7), ("stop_spot", 14), ("stop_on_demand", 21)]
    for action, day in table:
        look(due + day * DAY - HOUR)
        assert sanction(acme) != action
        for _ in range(2):
            look(due + day * DAY + HOUR)
        assert sanction(acme) == action
        assert books.check(at=due + day * DAY + HOUR) == []
    told = Notice.objects.filter(kind="taken_back_due").order_by("pk")
    assert [(one.facts["did"], one.facts["next"]) for one in told] == [
        ("restrict", "stop_spot"), ("stop_spot", "stop_on_demand"), ("stop_on_demand", "")
    ]  # fmt: skip
    assert standing.past_due(Action.STOP_ON_DEMAND, at=due + 22 * DAY) == [acme.pk]
    with pytest.raises(PaymentsPastDue) as refused:
        hold_money(acme, USD)
    assert (refused.value.owed_micros, refused.value.number) == (50 * USD, "")


def test_a_refusal_asks_for_what_is_past_due_and_not_for_what_a_bank_took_back_only_now(acme, processor):
    first, second = top_up(processor, acme, 50), top_up(processor, acme, 30, at=NOON + HOUR)
    pay_out(acme, 80, at=NOON + DAY)
    take_back(processor, first, at=TAKEN)
    take_back(processor, second, at=TAKEN + 10 * DAY)  # each is due after seven days
    look(TAKEN + 15 * DAY)
    for day, dollars in ((16, 50), (18, 80)):
        with time_machine.travel(TAKEN + day * DAY, tick=False), pytest.raises(PaymentsPastDue) as refused:
            hold_money(acme, USD)
        assert refused.value.owed_micros == dollars * USD


def test_a_sweep_that_was_away_takes_no_two_steps_at_once(acme, taken):
    due = TakenDebt.objects.get().due_at
    for day in (60, 66, 67, 73, 74):
        look(due + day * DAY)
        assert sanction(acme) == {60: "restrict", 66: "restrict", 67: "stop_spot", 73: "stop_spot"}.get(
            day, "stop_on_demand"
        )


def test_whatever_comes_in_pays_it_and_all_is_as_before_at_once(acme, processor, taken):
    due = TakenDebt.objects.get().due_at
    for day in (7, 14, 21):
        look(due + day * DAY)
    approved(recorded(acme, 20 * USD), at=due + 22 * DAY)
    assert (of(acme), sanction(acme)) == ([30 * USD], "stop_on_demand")
    top_up(processor, acme, 40, at=due + 23 * DAY)
    assert (of(acme), sanction(acme), wallet(acme).cash_micros) == ([], "", 10 * USD)
    assert TakenDebt.objects.get().look_at is None
    assert standing.past_due(Action.RESTRICT, at=due + 23 * DAY) == []
    hold_money(acme, USD)
    assert books.check(at=due + 24 * DAY) == []


def test_what_is_won_pays_it(acme, processor, taken):
    processor.at = TAKEN + DAY
    far_disputes.close_dispute(processor.world, taken["id"], is_won=True)
    processor.deliver()
    assert (of(acme), wallet(acme).owed_micros, TakenDebt.objects.get().look_at) == ([], 0, None)


def test_invoices_that_the_payment_had_paid_come_first_and_only_the_rest_is_owed_for_nothing(acme, processor):
    payment = top_up(processor, acme, 50)
    used(acme, 20, begin=NOON + HOUR)
    close()
    pay_out(acme, 30, at=CLOSE + DAY)
    take_back(processor, payment, at=CLOSE + 2 * DAY)
    assert (left(acme), of(acme), wallet(acme).owed_micros) == ([20 * USD], [30 * USD], 50 * USD)
    approved(recorded(acme, 25 * USD), at=CLOSE + 3 * DAY)
    assert (left(acme), of(acme)) == ([0], [25 * USD])
    assert books.check(at=CLOSE + 4 * DAY) == []


def test_what_a_credit_note_gave_back_is_owed_for_nothing_and_not_for_its_invoice(acme, processor):
    payment = top_up(processor, acme, 50)
    used(acme, 20, begin=NOON + HOUR)
    close()
    (carol, dan), invoice = two_people(), Invoice.objects.get()
    proposal = crediting.propose(invoice=invoice, net_micros=3 * USD, reason="Slow", by=carol, key=uuid4(), at=CLOSE)
    crediting.approve(proposal=proposal, by=dan, at=CLOSE)
    pay_out(acme, 33, at=CLOSE + DAY)
    take_back(processor, payment, at=CLOSE + 2 * DAY)
    assert (left(acme), of(acme), wallet(acme).owed_micros) == ([17 * USD], [33 * USD], 50 * USD)
    assert books.check(at=CLOSE + 3 * DAY) == []


def test_what_had_paid_a_part_of_an_invoice_that_was_given_up_since_is_owed_for_nothing(processor):
    """Of ten dollars six were paid and four written off: the six are owed again, and the four are all that can be paid
    of the invoice."""
    acme, invoice = owing()
    for day in (-8, -7):
        run(after(day))
    processor.card(acme)
    payment = top_up(processor, acme, 6, at=after(-6))
    Card.objects.update(is_default=False)  # so that no step charges it
    for day in days(-5, 70):
        run(after(day))
    assert Collection.objects.get().written_off_micros == 4 * USD
    take_back(processor, payment, at=after(71))
    row = Collection.objects.get()
    assert (row.state, invoice_payments.payable_micros(invoice.public_id, acme)) == ("uncollectible", 4 * USD)
    assert (left(acme), of(acme), wallet(acme).owed_micros) == ([0], [6 * USD], 6 * USD)
    assert books.check(at=after(72)) == []


def test_use_that_is_on_no_invoice_yet_is_owed_with_the_next_and_not_twice(acme, processor):
    payment = top_up(processor, acme, 50)
    used(acme, 20, begin=NOON + HOUR)
    pay_out(acme, 30, at=NOON + DAY)
    take_back(processor, payment, at=TAKEN)
    assert (of(acme), wallet(acme).owed_micros) == ([30 * USD], 50 * USD)
    close()
    assert (left(acme), of(acme), wallet(acme).owed_micros) == ([20 * USD], [30 * USD], 50 * USD)


def test_what_is_older_than_an_invoice_is_paid_before_it_and_what_names_it_pays_it(acme, processor, taken):
    used(acme, 30, begin=APRIL + 5 * HOUR)
    close(MAY + 2 * HOUR)
    assert (left(acme), of(acme)) == ([30 * USD], [50 * USD])
    approved(recorded(acme, 30 * USD), at=MAY + DAY)
    assert (left(acme), of(acme)) == ([30 * USD], [20 * USD])
    (row,) = Collection.objects.select_related("invoice")
    approved(recorded(acme, 30 * USD, invoice=row.invoice), at=MAY + 2 * DAY)
    assert (left(acme), of(acme), wallet(acme).owed_micros) == ([0], [20 * USD], 20 * USD)
    run(MAY + 3 * DAY)
    assert books.check(at=MAY + 3 * DAY) == []


def test_the_database_and_the_audit_refuse_one_that_no_bank_took_and_harm_before_it_is_due(acme, taken):
    debt = TakenDebt.objects.get()
    with pytest.raises(IntegrityError, match="taken_debt_is_harmless_until"), transaction.atomic():
        TakenDebt.objects.update(sanction="restrict", sanction_at=debt.due_at)
    TakenDebt.objects.update(due_micros=51 * USD)
    assert [finding.rule for finding in books.check(at=TAKEN)] == ["taken_debt_is_of_what_a_bank_took"]
