"""A bank takes a top-up back: what it had paid is owed for the invoices that this leaves unpaid, the newest first."""

from uuid import uuid4

import pytest

from billing import books, invoice_payments
from billing.invoicing import crediting, debts
from billing.models import Collection, DunningEvent, Invoice, Notice, Payment
from billing.payments import paying
from billing.test_processor import disputes as far_disputes
from tests.billing.invoicing import APRIL, CLOSE, MARCH, MAY, close, make_seller, use
from tests.billing.makers import HOUR, NOON, USD, grant, make_organization, make_price, wallet
from tests.billing.payments.stage import order
from tests.billing.people import give_credit_line, two_people
from tests.billing.test_bank import approved, recorded
from tests.billing.test_dunning import DAY, after, days, owing, run, sanction, state

pytestmark = pytest.mark.django_db


def top_up(processor, organization, dollars, *, at=NOON):
    processor.at = at
    ordered = order(
        organization, dollars * USD, key=f"top-up:{at}", at=at, purpose=Payment.Purpose.TOP_UP
    )  # fmt: skip
    return paying.send(payment_id=ordered.pk, at=at)


def take_back(processor, payment, *, at):
    processor.at = at
    opened = far_disputes.open_dispute(processor.world, payment.processor_id)
    processor.deliver()
    return opened


def used(organization, dollars, *, begin, name="ins_1"):
    """Let an hour cost so much."""
    price = make_price(sku=f"{name}/x", micros_per_unit_hour=dollars * USD)
    use(organization, begin=begin, hours=1, quantity=1, price=price, resource_id=name)


def left(organization):
    invoices = list(Invoice.objects.filter(organization=organization, kind="invoice").order_by("pk"))
    found = debts.left_due_micros(organization=organization, invoices=invoices)
    return [found[one.pk] for one in invoices]


@pytest.fixture
def acme(processor):
    """A customer who pays ahead, with a card."""
    make_seller("US")
    organization = make_organization()
    processor.card(organization)
    return organization


@pytest.fixture
def paid(acme, processor):
    """Fifty dollars of a top-up: twenty paid March, thirty April, each before its invoice was issued."""
    payment = top_up(processor, acme, 50)
    used(acme, 20, begin=NOON + HOUR)
    close()
    used(acme, 30, begin=APRIL + 5 * HOUR, name="ins_2")
    close(MAY + 2 * HOUR)
    assert (left(acme), Collection.objects.count(), wallet(acme).cash_micros) == ([0, 0], 0, 0)
    return payment


def test_a_top_up_that_paid_invoices_before_their_issue_leaves_them_unpaid_the_newest_first(acme, processor, paid):
    at = MAY + DAY
    take_back(processor, paid, at=at)
    assert (left(acme), wallet(acme).owed_micros) == ([20 * USD, 30 * USD], 50 * USD)
    assert {row.due_at - row.state_since for row in Collection.objects.all()} == {7 * DAY}
    assert set(Notice.objects.filter(kind="invoice_owed_again").values_list("facts__left_micros", flat=True)) == {
        str(20 * USD), str(30 * USD)
    }  # fmt: skip
    assert not Notice.objects.filter(kind="payment_taken_back").exists()
    assert books.check(at=at + HOUR) == []


def test_dunning_asks_for_it_by_its_table_and_money_that_comes_pays_the_oldest_first(acme, processor, paid):
    take_back(processor, paid, at=MAY + DAY)
    for day in days(-7, 31):
        run(MAY + DAY + DAY * (8 + day))
    assert sanction(acme) == "stop_on_demand"
    assert set(DunningEvent.objects.filter(step__action="charge").values_list("outcome", flat=True)) == {"disputed"}
    approved(recorded(acme, 25 * USD), at=MAY + 40 * DAY)
    assert left(acme) == [0, 25 * USD]
    approved(recorded(acme, 30 * USD), at=MAY + 41 * DAY)
    assert (left(acme), wallet(acme).cash_micros, sanction(acme)) == ([0, 0], 5 * USD, "")
    assert set(Collection.objects.values_list("state", flat=True)) == {"paid"}
    assert books.check(at=MAY + 42 * DAY) == []


def test_use_that_is_on_no_invoice_yet_is_the_newest_and_comes_with_the_next(acme, processor, paid):
    top_up(processor, acme, 40, at=MAY + DAY)
    used(acme, 40, begin=MAY + 2 * DAY, name="ins_3")
    take_back(processor, paid, at=MAY + 3 * DAY)
    assert (left(acme), wallet(acme).owed_micros) == ([0, 10 * USD], 50 * USD)
    assert Notice.objects.get(kind="payment_taken_back").facts["left_micros"] == str(40 * USD)
    close(MAY + 31 * DAY + 2 * HOUR)
    assert left(acme) == [0, 10 * USD, 40 * USD]
    assert Invoice.objects.latest("pk").older_due_micros == 10 * USD
    assert books.check(at=MAY + 32 * DAY) == []


def test_what_cash_covers_leaves_every_invoice_paid(acme, processor, paid):
    top_up(processor, acme, 60, at=MAY + DAY)
    take_back(processor, paid, at=MAY + 2 * DAY)
    assert (left(acme), wallet(acme).cash_micros, Collection.objects.count()) == ([0, 0], 10 * USD, 0)


def test_what_is_won_pays_the_invoices_that_it_left_unpaid_before_anything_older(acme, processor, paid):
    opened = take_back(processor, paid, at=MAY + DAY)
    approved(recorded(acme, 5 * USD), at=MAY + 2 * DAY)
    processor.at = MAY + 3 * DAY
    far_disputes.close_dispute(processor.world, opened["id"], is_won=True)
    processor.deliver()
    assert (left(acme), wallet(acme).cash_micros, wallet(acme).owed_micros) == ([0, 0], 5 * USD, 0)
    assert set(Collection.objects.values_list("state", flat=True)) == {"paid"}
    assert books.check(at=MAY + 4 * DAY) == []


def test_what_was_credited_or_paid_with_promotional_credit_is_owed_by_nobody(acme, processor):
    grant(acme, 5 * USD)
    payment = top_up(processor, acme, 50)
    used(acme, 20, begin=NOON + HOUR)
    close()
    (carol, dan), invoice = two_people(), Invoice.objects.get()
    proposal = crediting.propose(invoice=invoice, net_micros=3 * USD, reason="Slow", by=carol, key=uuid4(), at=CLOSE)
    crediting.approve(proposal=proposal, by=dan, at=CLOSE)
    used(acme, 38, begin=APRIL + 5 * HOUR, name="ins_2")
    take_back(processor, payment, at=APRIL + DAY)
    assert (left(acme), wallet(acme).owed_micros) == ([12 * USD], 50 * USD)
    assert books.check(at=APRIL + 2 * DAY) == []


def test_a_top_up_that_paid_an_invoice_after_its_issue_opens_it_again(acme, processor):
    give_credit_line(acme, 1000 * USD, at=MARCH)
    used(acme, 20, begin=NOON + HOUR)
    close()
    assert left(acme) == [20 * USD]
    payment = top_up(processor, acme, 20, at=CLOSE + DAY)
    assert (left(acme), state()) == ([0], "paid")
    take_back(processor, payment, at=CLOSE + 2 * DAY)
    assert (left(acme), state(), Collection.objects.get().due_at) == ([20 * USD], "open", CLOSE + 30 * DAY)


def test_what_a_payment_paid_by_name_is_owed_for_that_invoice_however_old_it_is(acme, processor):
    give_credit_line(acme, 1000 * USD, at=MARCH)
    used(acme, 20, begin=NOON + HOUR)
    close()
    march = Invoice.objects.get()
    processor.at = CLOSE + DAY
    ordered = order(acme, 20 * USD, key="march", at=CLOSE + DAY, reference=march.public_id)
    payment = paying.send(payment_id=ordered.pk, at=CLOSE + DAY)
    used(acme, 30, begin=CLOSE + 2 * DAY, name="ins_2")
    close(MAY + 2 * HOUR)
    approved(recorded(acme, 30 * USD), at=MAY + DAY)
    assert left(acme) == [0, 0]
    take_back(processor, payment, at=MAY + 2 * DAY)
    assert left(acme) == [20 * USD, 0]
    assert books.check(at=MAY + 3 * DAY) == []


def test_what_is_owed_again_is_not_paid_by_what_came_before_it(acme, processor):
    """A debt of later use that was paid long ago is no money for an invoice that is owed again since."""
    give_credit_line(acme, 1000 * USD, at=MARCH)
    used(acme, 20, begin=NOON + HOUR)
    close()
    payment = top_up(processor, acme, 20, at=CLOSE + DAY)
    used(acme, 40, begin=CLOSE + 2 * DAY, name="ins_2")
    approved(recorded(acme, 40 * USD), at=CLOSE + 3 * DAY)
    close(MAY + 2 * HOUR)
    take_back(processor, payment, at=MAY + DAY)
    assert (left(acme), wallet(acme).owed_micros) == ([0, 20 * USD], 20 * USD)


def test_what_a_card_had_recovered_of_a_written_off_invoice_is_lost_again(processor):
    acme, invoice = owing()
    for day in days(-8, 70):
        run(after(day))
    assert state() == "uncollectible"
    processor.card(acme)
    processor.at = after(71)
    ordered = order(acme, 10 * USD, key="late", at=after(71), reference=invoice.public_id)
    payment = paying.send(payment_id=ordered.pk, at=after(71))
    assert (state(), sanction(acme), invoice_payments.payable_micros(invoice.public_id, acme)) == ("paid", "", 0)
    opened = take_back(processor, payment, at=after(72))
    row = Collection.objects.get()
    assert invoice_payments.payable_micros(invoice.public_id, acme) == row.lost_micros == 10 * USD
    assert (row.state, row.recovered_micros, row.written_off_micros) == ("uncollectible", 0, 10 * USD)
    assert (sanction(acme), wallet(acme).owed_micros) == ("stop_on_demand", 0)
    assert Notice.objects.filter(kind="invoice_owed_again").get().facts["number"] == invoice.number
    assert books.check(at=after(73)) == []
    far_disputes.close_dispute(processor.world, opened["id"], is_won=True)
    processor.deliver()
    assert (state(), sanction(acme), Collection.objects.get().recovered_micros) == ("paid", "", 10 * USD)
    assert books.check(at=after(74)) == []


def test_the_audit_sees_a_recovery_that_nobody_paid(processor):
    owing()
    for day in days(-8, 70):
        run(after(day))
    Collection.objects.update(recovered_micros=USD)
    assert [finding.rule for finding in books.check(at=after(71))] == ["recovered_is_what_came_of_what_was_written_off"]
