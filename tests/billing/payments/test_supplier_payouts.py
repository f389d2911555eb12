"""A supplier is paid through the real SDK: papers, the calendar, an answer that is lost, taken back, and reconciled."""

from datetime import UTC, datetime, timedelta

import pytest

from billing import books
from billing.models import Payout, PayoutAccount, Transfer
from billing.payments import paying, reconciliation
from billing.suppliers import connecting, payouts
from billing.test_processor import connect
from tests.billing.makers import HOUR, USD, make_organization
from tests.billing.payments.stage import order
from tests.billing.supplying import make_person
from tests.billing.test_payouts import PAYDAY, make_ready, payable

pytestmark = pytest.mark.django_db
MINE = 94_500_000


@pytest.fixture
def nordlys(processor):
    """Its statement says 94.50, its papers are given, and the platform has a thousand dollars at the processor."""
    customer = make_organization()
    processor.card(customer)
    paying.send(payment_id=order(customer, 1000 * USD).pk, at=processor.at)
    supplier = make_ready(customer=customer)
    PayoutAccount.objects.all().delete()
    processor.at = PAYDAY
    url = connecting.onboarding_url(
        supplier=supplier, email="n@nordlys.example", refresh_url="https://x/", return_url="https://x/done", at=PAYDAY
    )
    assert payouts.order_due(at=PAYDAY) == 0
    connect.give_papers(processor.world, url.rpartition("/")[2])
    assert connecting.look_due(at=PAYDAY + 7 * HOUR) == 1
    processor.at = PAYDAY + 7 * HOUR
    return supplier


def at_processor(processor):
    (account,) = processor.world.things["account"].values()
    return account["balance"].get("usd", 0) * 10_000


def agree():
    """Both sides say the same, nothing is left to explain, and the books balance."""
    late = max(datetime.now(tz=UTC), *Transfer.objects.values_list("created_at", flat=True)) + timedelta(hours=1)
    reconciliation.run(at=late)
    (dollars,) = reconciliation.comparisons(at=late)
    assert (dollars.difference_micros, dollars.unexplained_micros) == (0, 0), list(reconciliation.cases())
    assert not reconciliation.cases().exists()
    assert (books.check(at=late), books.recompute()) == ([], [])


@pytest.mark.parametrize("trouble", ["", "silent_before", "silent_after"])
def test_it_is_paid_once_whatever_becomes_of_the_answer(processor, nordlys, trouble):
    if trouble:
        processor.fails(trouble, path="/v1/transfers")
    assert payouts.order_due(at=processor.at) == 1
    payouts.look_due(at=processor.at)
    for _ in range(3):
        payouts.look_due(at=processor.later(timedelta(minutes=15)))
    made = Payout.objects.get()
    assert (made.state, at_processor(processor), payable(nordlys)) == ("paid", MINE, 0)
    assert payouts.order_due(at=processor.at) == 0
    agree()


def test_it_is_taken_back_by_two_people_and_the_statement_agrees(processor, nordlys):
    payouts.order_due(at=processor.at)
    payouts.look_due(at=processor.at)
    made = Payout.objects.get()
    agree()
    payouts.propose_reversal(payout=made, by=make_person())
    payouts.approve_reversal(payout=made, by=make_person(), at=processor.at)
    payouts.look_due(at=processor.later())
    made.refresh_from_db()
    assert (made.state, at_processor(processor), payable(nordlys)) == ("reversed", 0, MINE)
    agree()


def paid_out(processor):
    payouts.order_due(at=processor.at)
    payouts.look_due(at=processor.at)
    return Payout.objects.get()


def test_a_transfer_that_is_taken_back_at_the_processor_is_booked_and_nothing_more_goes_out(processor, nordlys):
    made = paid_out(processor)
    connect.create_reversal(processor.world, {}, thing=made.processor_id)
    reconciliation.run(at=max(datetime.now(tz=UTC), processor.at) + HOUR)
    (case,) = reconciliation.cases()
    assert (case.our_key, case.difference_micros) == (f"payout:{made.public_id}", -MINE)
    assert f"{made.public_id} is reversed" in processor.deliver()
    made.refresh_from_db()
    assert (made.state, made.reversal_found_at is not None, payable(nordlys)) == ("reversed", True, MINE)
    agree()
    later = processor.later(timedelta(days=15))
    assert payouts.order_due(at=later) == 0
    connecting.hold(account=PayoutAccount.objects.get(), is_held=False, at=later)
    assert payouts.order_due(at=later) == 1


def test_a_part_that_is_taken_back_there_stays_a_case(processor, nordlys):
    made = paid_out(processor)
    connect.create_reversal(processor.world, {"amount": 100}, thing=made.processor_id)
    assert f"{made.public_id} is paid" in processor.deliver()
    reconciliation.run(at=max(datetime.now(tz=UTC), processor.at) + HOUR)
    assert [case.difference_micros for case in reconciliation.cases()] == [-USD]


def test_an_event_finds_a_payout_of_which_the_answer_was_lost(processor, nordlys):
    processor.fails("silent_after", path="/v1/transfers")
    assert paid_out(processor).state == "unknown"
    processor.deliver()
    assert (Payout.objects.get().state, payable(nordlys)) == ("paid", 0)
    agree()


def test_one_that_we_take_back_ourselves_holds_nobody(processor, nordlys):
    made = paid_out(processor)
    payouts.propose_reversal(payout=made, by=make_person())
    payouts.approve_reversal(payout=made, by=make_person(), at=processor.at)
    connect.create_reversal(processor.world, {"metadata": {"gpumarket": made.reversal_key}}, thing=made.processor_id)
    processor.deliver()
    made.refresh_from_db()
    assert (made.state, made.reversal_found_at) == ("reversed", None)
    assert PayoutAccount.objects.get().held_at is None
    payouts.look_due(at=processor.later())
    agree()


def test_events_of_an_account_let_us_look_at_it(processor, nordlys, caplog):
    account = PayoutAccount.objects.get()
    PayoutAccount.objects.update(can_be_paid=False, looked_at=processor.at)
    outcomes = processor.deliver()
    assert f"{account.public_id} can be paid" in outcomes
    account.refresh_from_db()
    assert account.can_be_paid
    there = processor.world.get("account", account.processor_id)
    there["payouts_enabled"] = False
    bank = {"id": "ba_1", "object": "bank_account", "account": account.processor_id}
    sent = processor.world.happened("payout.failed", {"id": "po_1", "object": "payout"}) | {"account": there["id"]}
    told = [processor.world.happened("account.external_account.updated", bank), sent]
    assert processor.deliver(*told)[-2:] == [f"{account.public_id} cannot be paid"] * 2
    stranger = processor.world.happened("account.updated", {"id": "acct_stranger", "object": "account"})
    assert processor.deliver(stranger)[-1] == "refused: it belongs to none of our suppliers"


def test_without_the_money_it_fails_and_nothing_is_booked(processor, nordlys):
    connect.pay_out(processor.world, 90_000, "usd")
    payouts.order_due(at=processor.at)
    payouts.look_due(at=processor.at)
    made = Payout.objects.get()
    assert (made.state, made.failure) == ("failed", "You have insufficient available funds.")
    assert payable(nordlys) == MINE
    agree()


def test_one_that_was_called_off_is_never_sent(processor, nordlys):
    payouts.order_due(at=processor.at)
    payouts.cancel(payout=Payout.objects.get(), at=processor.at)
    payouts.look_due(at=processor.later())
    assert at_processor(processor) == 0
    agree()
