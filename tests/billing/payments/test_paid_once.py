"""An invoice is charged once, however often its customer's bank asks, and is owed again once a bank took it back."""

import pytest

from billing import books, dunning, invoice_payments
from billing.invoicing import debts
from billing.models import AutomaticTopUp, DunningEvent, Invoice, InvoicePayment, Notice, Payment
from billing.payments import automatic, cards, paying
from billing.test_processor import disputes as far_disputes
from billing.test_processor import hosted
from tests.billing.invoicing import CLOSE, close, use
from tests.billing.makers import USD, make_price, wallet
from tests.billing.payments.stage import GOOD, NEEDS_PROOF
from tests.billing.test_bank import approved, recorded
from tests.billing.test_dunning import after, days, owing, run, sanction, state

pytestmark = pytest.mark.django_db
State = Payment.State


@pytest.fixture
def asked(processor):
    """A customer who owes ten dollars, whose card always wants a proof, and who was asked for it a week before."""
    acme, invoice = owing()
    processor.card(acme, NEEDS_PROOF)
    sweep(processor, after(-7))
    payment = Payment.objects.get()
    assert payment.state == State.NEEDS_ACTION
    return acme, invoice, payment


@pytest.fixture
def charged(processor):
    """A customer whose card paid the invoice a week before it was due."""
    acme, invoice = owing()
    processor.card(acme)
    sweep(processor, after(-7))
    assert state() == "paid"
    return acme, invoice, Payment.objects.get()


def sweep(processor, at):
    """Let dunning look, and the card rail do what it says."""
    processor.at = at
    run(at)
    paying.look_due(at=at)
    run(at)


def confirm(processor, payment):
    """Let the customer prove who they are; the processor knows it first."""
    url = paying.continue_url(payment=payment, at=processor.at)
    hosted.prove(processor.world, url.rpartition("/")[2], is_them=True)


def pay(organization, invoice, at, *, card=None, key="now"):
    """Order what the button does."""
    return paying.charge(
        organization=organization, amount_micros=10 * USD, purpose=Payment.Purpose.INVOICE, key=key,
        reference=invoice.public_id, card=card, at=at,
    )  # fmt: skip


def far_state(processor, payment):
    payment.refresh_from_db()
    return processor.world.get("payment_intent", payment.processor_id)["status"]


def states():
    return list(Payment.objects.order_by("pk").values_list("state", flat=True))


def test_a_second_charge_is_sent_only_once_the_first_is_cancelled_at_the_processor(asked, processor):
    acme, _, first = asked
    for day in (-3, 0):
        sweep(processor, after(day))
    assert states() == ["cancelled", "needs_action"]
    assert far_state(processor, first) == "canceled"
    assert paying.continue_url(payment=first, at=after(0)) == ""
    confirm(processor, Payment.objects.get(state="needs_action"))
    processor.deliver()
    assert (state(), wallet(acme).cash_micros, len(processor.charges)) == ("paid", 0, 1)
    assert books.check(at=after(1)) == []


def test_a_charge_waits_while_nobody_knows_whether_the_one_before_is_cancelled(asked, processor):
    _, _, first = asked
    sweep(processor, after(-3))
    processor.fails("silent_before", path=f"/v1/payment_intents/{first.processor_id}/cancel")
    sweep(processor, after(0))
    assert states() == ["needs_action", "created"]
    sweep(processor, after(0, hours=1))
    assert states() == ["cancelled", "needs_action"]


def test_what_waits_for_its_customer_ends_when_a_bank_transfer_pays_the_invoice(asked, processor):
    acme, invoice, first = asked
    processor.at = after(-6)
    assert paying.look_due(at=after(-6)) == 1  # so that nobody would look again for an hour
    assert paying.look_due(at=after(-6)) == 0
    approved(recorded(acme, 10 * USD, invoice=invoice), at=after(-6))
    assert paying.look_due(at=after(-6)) == 1
    assert (states(), far_state(processor, first)) == (["cancelled"], "canceled")
    assert (state(), wallet(acme).cash_micros) == ("paid", 0)


def test_who_comes_to_confirm_what_was_paid_otherwise_is_turned_away(asked, processor):
    acme, invoice, first = asked
    approved(recorded(acme, 4 * USD, invoice=invoice), at=after(-6))
    assert paying.continue_url(payment=first, at=after(-6)) == ""  # less is left than it would take
    assert (states(), far_state(processor, first)) == (["cancelled"], "canceled")
    assert (wallet(acme).owed_micros, state()) == (6 * USD, "open")


def test_a_cancellation_that_comes_too_late_is_resolved_by_looking(asked, processor):
    acme, invoice, first = asked
    other = processor.card(acme, GOOD)
    confirm(processor, first)  # its event is still on its way
    second = pay(acme, invoice, after(-6), card=other)
    paying.send(payment_id=second.pk, at=after(-6))
    assert states() == ["succeeded", "cancelled"]
    assert (state(), wallet(acme).cash_micros, len(processor.charges)) == ("paid", 0, 1)


def test_paying_with_another_card_ends_what_waits_for_its_customer(asked, processor):
    acme, invoice, first = asked
    second = pay(acme, invoice, after(-6), card=processor.card(acme, GOOD))
    paying.send(payment_id=second.pk, at=after(-6))
    assert states() == ["cancelled", "succeeded"]
    assert far_state(processor, first) == "canceled"


def test_what_crossed_a_bank_transfer_after_all_is_the_customers_cash(asked, processor):
    acme, invoice, first = asked
    confirm(processor, first)
    approved(recorded(acme, 10 * USD, invoice=invoice), at=after(-6))
    processor.deliver()
    assert (state(), wallet(acme).cash_micros) == ("paid", 10 * USD)
    assert books.check(at=after(1)) == []


def test_a_written_off_invoice_can_still_be_paid_by_what_waits_for_its_customer(asked, processor):
    acme, invoice, _ = asked
    for day in days(-6, 70):
        sweep(processor, after(day))
    assert state() == "uncollectible"
    pay(acme, invoice, after(71))
    sweep(processor, after(71.5))
    last = Payment.objects.get(state="needs_action")
    assert invoice_payments.payable_micros(last.reference, acme) == 10 * USD
    confirm(processor, last)
    processor.deliver()
    assert (state(), books.check(at=after(72))) == ("paid", [])


def take_back(processor, payment):
    opened = far_disputes.open_dispute(processor.world, payment.processor_id)
    processor.deliver()
    return opened


def test_an_invoice_whose_payment_was_taken_back_is_asked_for_again_by_its_table(charged, processor):
    acme, invoice, payment = charged
    processor.at = after(-5)
    take_back(processor, payment)
    assert (state(), wallet(acme).owed_micros) == ("open", 10 * USD)
    assert invoice_payments.left_micros(invoice, acme) == 10 * USD
    notice = Notice.objects.get(kind="invoice_owed_again")
    assert (notice.facts["number"], notice.facts["left_micros"]) == (invoice.number, str(10 * USD))
    for day in days(-5, 23):
        sweep(processor, after(day))
    assert (state(), sanction(acme)) == ("past_due", "stop_on_demand")
    assert Payment.objects.count() == 1  # the card whose bank took it back is not charged by itself
    assert set(DunningEvent.objects.exclude(payment=payment).values_list("outcome", flat=True)) == {"done", "disputed"}
    approved(recorded(acme, 10 * USD, invoice=invoice), at=after(23))
    assert (state(), sanction(acme), wallet(acme).owed_micros) == ("paid", "", 0)
    assert books.check(at=after(24)) == []


def test_what_was_paid_long_ago_is_past_due_at_once_and_no_step_comes_sooner_than_the_table_leaves(charged, processor):
    _, _, payment = charged
    processor.at = after(90)
    take_back(processor, payment)
    assert state() == "past_due"
    sweep(processor, after(91))
    assert DunningEvent.objects.filter(step__action="mail").count() == 1
    assert not DunningEvent.objects.filter(step__action__in=["restrict", "stop_spot", "stop_on_demand"]).exists()


def test_a_dispute_that_is_won_pays_its_invoice_again(charged, processor):
    acme, invoice, payment = charged
    opened = take_back(processor, payment)
    far_disputes.close_dispute(processor.world, opened["id"], is_won=True)
    processor.deliver()
    assert (state(), wallet(acme).owed_micros, wallet(acme).cash_micros) == ("paid", 0, 0)
    assert invoice_payments.left_micros(invoice, acme) == 0
    assert sorted(InvoicePayment.objects.values_list("amount_micros", flat=True)) == [-10 * USD, 10 * USD, 10 * USD]
    assert books.check(at=after(1)) == []


def test_a_dispute_that_is_won_after_the_invoice_was_paid_again_is_cash(charged, processor):
    acme, invoice, payment = charged
    opened = take_back(processor, payment)
    approved(recorded(acme, 10 * USD, invoice=invoice), at=processor.at)
    far_disputes.close_dispute(processor.world, opened["id"], is_won=True)
    processor.deliver()
    assert (state(), wallet(acme).cash_micros) == ("paid", 10 * USD)


def test_what_cash_covered_leaves_the_invoice_paid(charged, processor):
    acme, _, payment = charged
    approved(recorded(acme, 10 * USD), at=after(-6))
    take_back(processor, payment)
    assert (state(), wallet(acme).cash_micros, wallet(acme).owed_micros) == ("paid", 0, 0)
    assert Notice.objects.get(kind="payment_taken_back").facts["payment"] == payment.public_id


def test_a_newer_invoice_is_not_paid_by_what_pays_the_one_that_was_taken_back(charged, processor):
    acme, old, payment = charged
    price = make_price(sku="other", micros_per_unit_hour=4 * USD)
    use(acme, begin=CLOSE, hours=1, resource_id="ins_2", price=price, quantity=1)
    close(at=after(30))
    new = Invoice.objects.exclude(pk=old.pk).get()
    processor.at = after(31)
    take_back(processor, payment)
    for dollars, expected in ((0, (10, 4)), (4, (6, 4)), (6, (0, 4)), (4, (0, 0))):
        if dollars:
            approved(recorded(acme, dollars * USD), at=processor.later())
        left = debts.left_due_micros(organization=acme, invoices=[old, new])
        assert (left[old.pk], left[new.pk]) == tuple(dollars * USD for dollars in expected)
    assert books.check(at=after(60)) == []


def test_the_customer_may_pay_with_the_same_card_again(charged, processor):
    acme, invoice, payment = charged
    take_back(processor, payment)
    again = pay(acme, invoice, processor.at)
    paying.send(payment_id=again.pk, at=processor.at)
    assert (state(), Payment.objects.filter(state="succeeded").count()) == ("paid", 2)
    assert dunning.run_due(at=after(90)) == 0


def test_automatic_top_up_is_paused_and_its_owner_told_when_a_bank_takes_a_payment_back(customer, processor):
    processor.card(customer)
    rule = {"threshold_micros": 10 * USD, "amount_micros": 20 * USD, "monthly_ceiling_micros": 90 * USD}
    automatic.set_rule(organization=customer, at=processor.at, **rule)
    assert automatic.top_up_due(at=processor.at) == 1
    paying.look_due(at=processor.at)
    take_back(processor, Payment.objects.get())
    assert wallet(customer).cash_micros == 0
    for _ in range(3):
        assert automatic.top_up_due(at=processor.later()) == 0
    assert AutomaticTopUp.objects.get().paused_code == "disputed"
    assert Notice.objects.filter(kind="top_up_paused").get().facts["failure_code"] == "disputed"
    assert cards.of(customer).count() == 1
    automatic.set_rule(organization=customer, at=processor.later(), **rule)
    assert automatic.top_up_due(at=processor.at) == 1
