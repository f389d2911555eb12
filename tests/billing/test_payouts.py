"""Payouts: by the calendar, above the minimum, once at the processor and once in the books, whatever is cut off."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import books, usage
from billing.errors import AlreadyDecided, NoDetails, OutcomeUnknown, ProcessorRefused, SecondPersonNeeded
from billing.models import Payout, PayoutAccount, SupplierStatement
from billing.payments import gateway
from billing.payments.objects import ConnectAccount, Transferred
from billing.suppliers import accruing, audit, connecting, payouts, purses, schedule, statements
from tests.billing.invoicing import details, make_seller
from tests.billing.makers import HOUR, NOON, USD, at_the_same_moment, make_organization, start
from tests.billing.supplying import labels, make_card, make_person, make_supplier

pytestmark = pytest.mark.django_db
APRIL = datetime(2026, 4, 1, tzinfo=UTC)
CLOSE, PAYDAY = APRIL + 4 * HOUR, datetime(2026, 4, 5, 9, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class Processor:
    """Connect, played: it does a key once, and may lose its answer before or after doing so."""

    def __init__(self):
        self.transfers = {}
        self.calls = Counter()
        self.trouble = []  # one word for each call to come: "before", "after", "no"

    def connect_account(self, *, key, country, email):
        self.calls[key] += 1
        return ConnectAccount("acct_1", country, can_be_paid=False, is_submitted=False, is_missing=("papers",))

    def connected_account(self, account_id):
        return ConnectAccount(account_id, "NO", can_be_paid=True, is_submitted=True, is_missing=())

    def onboarding_url(self, *, account_id, refresh_url, return_url):
        return f"https://connect.example/{account_id}"

    def transfer(self, *, key, account_id, amount_micros, currency, group=""):
        self.calls[key] += 1
        trouble = self.trouble.pop(0) if self.trouble else ""
        if trouble == "before":
            raise OutcomeUnknown("no answer")
        if trouble == "no":
            raise ProcessorRefused("the account cannot be paid")
        made = Transferred(f"tr_{len(self.transfers)}", key, account_id, amount_micros, 0, currency)
        made = self.transfers.setdefault(key, made)
        if trouble == "after":
            raise OutcomeUnknown("no answer")
        return made

    def find_transfer(self, *, account_id, key):
        return self.transfers.get(key)

    def transferred(self, transfer_id):
        return next(made for made in self.transfers.values() if made.id == transfer_id)

    def reverse_transfer(self, *, key, transfer_id, amount_micros, currency):
        if self.trouble and self.trouble.pop(0) == "no":
            raise ProcessorRefused("the account has less")
        before = self.transferred(transfer_id)
        after = Transferred(before.id, before.key, before.account_id, before.amount_micros, amount_micros, currency)
        self.transfers[before.key] = after
        return "trr_1"


@pytest.fixture
def processor(monkeypatch):
    played = Processor()
    monkeypatch.setattr(gateway, "is_there", lambda: True)
    for name in dir(Processor):
        if not name.startswith("_"):
            monkeypatch.setattr(gateway, name, getattr(played, name))
    return played


def make_ready(*, hours=30, customer=None):
    """A supplier whose statement says that it gets 94.50: 150 dollars of use, seven tenths, a tenth held back."""
    make_seller()
    supplier, customer = make_supplier(), customer or make_organization(cash=5000 * USD)
    details(supplier, legal_name="Nordlys Compute AS")
    make_card(supplier)
    start(customer, labels=labels(supplier))
    usage.stop(resource_id="ins_1", at=NOON + hours * HOUR)
    accruing.accrue(at=NOON + hours * HOUR)
    statements.issue_due(at=CLOSE)
    PayoutAccount.objects.create(supplier_id=supplier.pk, processor_id="acct_1", country="NO", can_be_paid=True)
    return supplier


@pytest.fixture
def nordlys(db):
    return make_ready()


def payable(supplier):
    return purses.of(supplier.pk)["USD"].payable.balance_micros


def is_clean():
    return (books.check(at=PAYDAY + 99 * HOUR), books.recompute()) == ([], [])


def pay(at=PAYDAY):
    payouts.order_due(at=at)
    payouts.look_due(at=at)
    return Payout.objects.order_by("-pk").first()


def test_a_statement_is_paid_out_on_the_day_of_the_calendar(nordlys, processor):
    made = pay()
    assert (made.state, made.amount_micros, made.slot) == ("paid", 94_500_000, date(2026, 4, 5))
    assert payable(nordlys) == 0
    assert [one.amount_micros for one in processor.transfers.values()] == [94_500_000]
    assert is_clean()


def test_nothing_is_paid_before_its_day(nordlys, processor):
    assert payouts.order_due(at=CLOSE) == 0
    assert payouts.order_due(at=PAYDAY - timedelta(days=1)) == 0
    assert payouts.order_due(at=PAYDAY) == 1


def test_nothing_is_paid_twice(nordlys, processor):
    pay()
    for at in (PAYDAY + HOUR, PAYDAY + timedelta(days=20)):
        pay(at)
    assert Payout.objects.count() == 1
    assert sum(processor.calls.values()) == 1


def test_less_than_the_minimum_stays_for_the_next_time(db, processor):
    make_ready(hours=10)  # 31.50
    assert pay() is None


@pytest.mark.parametrize("hindrance", [{"can_be_paid": False}, {"held_at": NOON}, {"processor_id": ""}])
def test_who_cannot_be_paid_is_not(nordlys, processor, hindrance):
    PayoutAccount.objects.update(**hindrance)
    assert pay() is None


def test_an_answer_that_was_lost_is_found_by_looking(nordlys, processor):
    processor.trouble = ["after"]
    assert pay().state == "unknown"
    payouts.look_due(at=PAYDAY + 11 * MINUTE)
    assert Payout.objects.get().state == "paid"
    assert sum(processor.calls.values()) == 1
    assert is_clean()


def test_a_call_that_never_arrived_is_made_again_with_the_same_key(nordlys, processor):
    processor.trouble = ["before"]
    pay()
    payouts.look_due(at=PAYDAY + 11 * MINUTE)
    made = Payout.objects.get()
    assert made.state == "paid"
    assert processor.calls == {made.processor_key: 2}
    assert is_clean()


def test_after_a_day_a_call_is_not_made_again(nordlys, processor):
    processor.trouble = ["before"]
    pay()
    payouts.look_due(at=PAYDAY + timedelta(hours=24))
    made = Payout.objects.get()
    assert (made.state, sum(processor.calls.values())) == ("failed", 1)
    assert payable(nordlys) == 94_500_000
    assert is_clean()


def test_a_worker_that_died_while_sending_is_made_up_for(nordlys, processor):
    payouts.order_due(at=PAYDAY)
    made = Payout.objects.get()
    assert payouts.move(made, "sending", at=PAYDAY, sent_at=PAYDAY, look_at=PAYDAY + 2 * MINUTE)
    payouts.look_due(at=PAYDAY + MINUTE)
    assert Payout.objects.get().state == "sending"
    payouts.look_due(at=PAYDAY + 3 * MINUTE)
    assert Payout.objects.get().state == "paid"
    assert is_clean()


def test_a_refusal_leaves_the_money_and_is_tried_in_the_same_slot(nordlys, processor):
    processor.trouble = ["no"]
    made = pay()
    assert (made.state, made.failure) == ("failed", "the account cannot be paid")
    assert pay(PAYDAY + HOUR).state == "paid"
    assert is_clean()


def test_what_is_refused_again_and_again_is_tried_more_and_more_rarely(nordlys, processor):
    processor.trouble = ["no"] * 100
    for minute in range(0, 3 * 24 * 60, 30):
        pay(PAYDAY + minute * MINUTE)
    tried = [one.finished_at - PAYDAY for one in Payout.objects.order_by("pk")]
    assert tried == [hours * HOUR for hours in (0, 1, 5, 29, 53)]
    assert sum(processor.calls.values()) == 5
    processor.trouble = []
    assert pay(PAYDAY + 77 * HOUR).state == "paid"
    assert is_clean()


def test_a_new_day_of_the_calendar_does_not_wait_for_the_refusals_of_the_last(nordlys, processor):
    processor.trouble = ["no"] * 2
    last = datetime(2026, 4, 19, 23, 30, tzinfo=UTC)
    assert [pay(at).state for at in (last - HOUR, last)] == ["failed", "failed"]
    assert pay(last + HOUR).state == "paid"


def test_what_waits_can_be_called_off(nordlys, processor):
    payouts.order_due(at=PAYDAY)
    payouts.cancel(payout=Payout.objects.get(), at=PAYDAY)
    assert Payout.objects.get().state == "cancelled"
    pay(PAYDAY + HOUR)
    with pytest.raises(AlreadyDecided):
        payouts.cancel(payout=Payout.objects.latest("pk"), at=PAYDAY)


def test_what_was_ordered_waits_while_payouts_are_held_back(nordlys, processor):
    payouts.order_due(at=PAYDAY)
    account = PayoutAccount.objects.get()
    connecting.hold(account=account, is_held=True, at=PAYDAY)
    assert payouts.look_due(at=PAYDAY + MINUTE) == 0
    assert payouts.look(payout_id=Payout.objects.get().pk, at=PAYDAY + MINUTE).state == "created"
    assert not processor.calls
    connecting.hold(account=account, is_held=False, at=PAYDAY + HOUR)
    assert payouts.look_due(at=PAYDAY + HOUR) == 1
    assert Payout.objects.get().state == "paid"


def test_a_payout_is_taken_back_by_two_people(nordlys, processor):
    made, first, second = pay(), make_person(), make_person()
    with pytest.raises(SecondPersonNeeded):
        payouts.approve_reversal(payout=made, by=second, at=PAYDAY)
    payouts.propose_reversal(payout=made, by=first)
    with pytest.raises(SecondPersonNeeded):
        payouts.approve_reversal(payout=made, by=first, at=PAYDAY)
    payouts.approve_reversal(payout=made, by=second, at=PAYDAY)
    payouts.look_due(at=PAYDAY + MINUTE)
    payouts.look_due(at=PAYDAY + HOUR)
    assert Payout.objects.get().state == "reversed"
    assert payable(nordlys) == 94_500_000
    assert is_clean()


def test_a_reversal_that_is_refused_leaves_it_paid(nordlys, processor):
    made = pay()
    payouts.propose_reversal(payout=made, by=make_person())
    payouts.approve_reversal(payout=made, by=make_person(), at=PAYDAY)
    processor.trouble = ["no"]
    payouts.look_due(at=PAYDAY + MINUTE)
    assert (Payout.objects.get().state, payable(nordlys)) == ("paid", 0)
    assert is_clean()


def test_a_reversal_that_is_refused_later_withholds_nothing_of_the_next_payout(nordlys, processor):
    made = pay()
    went_at = made.finished_at
    start(make_organization(cash=5000 * USD), resource_id="ins_2", at=APRIL + 99 * HOUR, labels=labels(nordlys))
    usage.stop(resource_id="ins_2", at=APRIL + 129 * HOUR)
    accruing.accrue(at=APRIL + 129 * HOUR)
    may = datetime(2026, 5, 1, 4, 0, tzinfo=UTC)
    statements.issue_due(at=may)
    payouts.propose_reversal(payout=made, by=make_person())
    payouts.approve_reversal(payout=made, by=make_person(), at=may + HOUR)
    processor.trouble = ["no"]
    payouts.look_due(at=may + HOUR)
    made.refresh_from_db()
    assert (made.state, made.finished_at) == ("paid", went_at)
    following = pay(datetime(2026, 5, 5, 9, 0, tzinfo=UTC))
    assert (following.pk != made.pk, following.amount_micros, following.state) == (True, 94_500_000, "paid")
    assert is_clean()


def test_the_next_statement_says_what_was_paid_out(nordlys, processor):
    pay()
    statements.issue_due(at=datetime(2026, 5, 1, 4, 0, tzinfo=UTC))
    last = SupplierStatement.objects.latest("pk")
    assert (last.paid_micros, last.closing_micros, last.due_micros) == (94_500_000, 10_500_000, 0)
    assert is_clean()


@pytest.mark.parametrize(
    ("day", "slot", "following"),
    [((4, 4), (3, 20), (4, 5)), ((4, 5), (4, 5), (4, 20)), ((4, 30), (4, 20), (5, 5))],
)
def test_the_calendar(day, slot, following):
    at = datetime(2026, *day, 12, tzinfo=UTC)
    assert (schedule.slot(at), schedule.following(at)) == (date(2026, *slot), date(2026, *following))


def test_an_account_is_made_once_and_learns_how_far_it_is(processor):
    supplier = make_supplier()
    wanted = {"supplier": supplier, "email": "a@b.example", "refresh_url": "/", "return_url": "/", "at": NOON}
    with pytest.raises(NoDetails):
        connecting.onboarding_url(**wanted)
    details(supplier)
    for _ in range(2):
        assert connecting.onboarding_url(**wanted) == "https://connect.example/acct_1"
    assert sum(processor.calls.values()) == 1
    assert not connecting.of(supplier).can_be_paid
    assert connecting.look_due(at=NOON + 7 * HOUR) == 1
    assert connecting.of(supplier).can_be_paid


@given(trouble=st.lists(st.sampled_from(["before", "after", "", "no"]), max_size=6), wait=st.integers(1, 400))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_lost_there_is_one_transfer_at_the_processor_and_one_in_the_books(
    nordlys, processor, trouble, wait
):
    from django.db import transaction

    with transaction.atomic():
        processor.trouble, processor.transfers = list(trouble), {}
        for turn in range(12):
            pay(PAYDAY + turn * wait * MINUTE)
        for turn in range(1, 8):  # however soon those were: once more after each trouble
            pay(PAYDAY + (12 * wait + turn * 11) * MINUTE)
        there = sum(one.amount_micros for one in processor.transfers.values())
        assert there == 94_500_000 - payable(nordlys)
        assert len(processor.transfers) <= 1
        assert books.check(at=PAYDAY + 999 * HOUR) == []
        transaction.set_rollback(True)


@pytest.mark.django_db(transaction=True)
def test_two_workers_send_one_payout(processor):
    make_ready()
    assert at_the_same_moment(*[pay] * 3) == ["done"] * 3
    assert sum(processor.calls.values()) == 1
    assert Payout.objects.get().state == "paid"


@pytest.mark.parametrize(
    ("rule", "sql"),
    [("payout_moved_its_money", "UPDATE billing_payout SET amount_micros = amount_micros + 10000")],
)
def test_the_audit_finds(nordlys, processor, rule, sql):
    pay()
    assert rule in audit.RULES
    with connection.cursor() as cursor:
        cursor.execute(sql)
    assert rule in {finding.rule for finding in books.check(at=PAYDAY)}
