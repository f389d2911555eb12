"""Automatic top-up: below the threshold, never above the month's ceiling, and not again after a card failed."""

from datetime import timedelta

import pytest

from billing.errors import BadAmount
from billing.models import AutomaticTopUp, Notice, Payment
from billing.payments import automatic, cards, paying
from tests.billing.makers import NOON, USD, account, grant, hold_money, make_organization, move, wallet
from tests.billing.payments.stage import DECLINED_LATER, NEEDS_PROOF

RULE = {"threshold_micros": 10 * USD, "amount_micros": 20 * USD, "monthly_ceiling_micros": 50 * USD}


@pytest.fixture
def ruled(customer, processor):
    processor.card(customer)
    automatic.set_rule(organization=customer, at=NOON, **RULE)
    return customer


def sweep(processor):
    ordered = automatic.top_up_due(at=processor.at)
    paying.look_due(at=processor.at)
    return ordered


def spend_all(customer):
    move(account(customer, "cash"), "revenue", wallet(customer).cash_micros)


def test_below_the_threshold_the_default_card_is_charged_once(ruled, processor):
    assert sweep(processor) == 1
    assert sweep(processor) == 0
    assert wallet(ruled).cash_micros == 20 * USD
    assert [one.purpose for one in Payment.objects.all()] == ["automatic"]


def test_what_is_held_or_owed_is_not_free_and_what_was_given_is(ruled, processor):
    grant(ruled, 15 * USD)
    assert sweep(processor) == 0
    hold_money(ruled, 6 * USD)
    assert sweep(processor) == 1


def test_a_debt_counts_against_what_is_free(ruled, processor):
    grant(ruled, 12 * USD)
    move(account(ruled, "receivable"), "revenue", 5 * USD)
    assert sweep(processor) == 1


def test_a_month_never_takes_more_than_the_ceiling(ruled, processor):
    for expected in (1, 1, 0):
        assert sweep(processor) == expected
        spend_all(ruled) if wallet(ruled).cash_micros else None
    processor.later(timedelta(days=31))
    assert sweep(processor) == 1


def test_one_that_is_on_its_way_keeps_the_next_from_being_ordered(ruled, processor):
    assert automatic.top_up_due(at=processor.at) == 1
    assert automatic.top_up_due(at=processor.at) == 0


def test_those_who_wait_keep_nobody_else_from_being_topped_up(ruled, processor):
    for _ in range(2):  # so much is what a month may take
        assert sweep(processor) == 1
        spend_all(ruled)
    others = [make_organization() for _ in range(2)]
    for other in others:
        processor.card(other)
        automatic.set_rule(organization=other, at=NOON, **RULE)
    assert [automatic.top_up_due(at=processor.at, limit=1) for _ in range(3)] == [1, 1, 0]
    assert [one.organization for one in Payment.objects.order_by("-pk")[:2]] == others[::-1]


def test_after_a_card_failed_it_waits_until_somebody_changes_it(customer, processor):
    processor.card(customer, DECLINED_LATER)
    automatic.set_rule(organization=customer, at=NOON, **RULE)
    assert sweep(processor) == 1
    for _ in range(3):
        processor.later()
        assert sweep(processor) == 0
    assert AutomaticTopUp.objects.get().paused_because == "Your card was declined."
    cards.make_default(card=processor.card(customer))
    automatic.set_rule(organization=customer, at=processor.later(), **RULE)
    assert sweep(processor) == 1
    assert wallet(customer).cash_micros == 20 * USD


def test_without_a_card_it_is_paused_with_its_reason(customer, processor):
    automatic.set_rule(organization=customer, at=NOON, **RULE)
    assert sweep(processor) == 0
    assert AutomaticTopUp.objects.get().paused_because == "There is no card that can be charged."


def test_what_is_switched_off_charges_nothing(ruled, processor):
    automatic.switch_off(organization=ruled, at=NOON)
    assert sweep(processor) == 0


@pytest.mark.parametrize(
    "facts",
    [{"threshold_micros": -1}, {"amount_micros": 0}, {"amount_micros": 60 * USD}, {"amount_micros": 20 * USD + 1}],
)
def test_a_rule_that_makes_no_sense_is_refused(customer, facts):
    with pytest.raises(BadAmount):
        automatic.set_rule(organization=customer, at=NOON, **(RULE | facts))


def test_who_was_not_there_is_told_once_that_a_card_failed(customer, processor):
    processor.card(customer, DECLINED_LATER)
    automatic.set_rule(organization=customer, at=NOON, **RULE)
    for _ in range(4):
        sweep(processor)
    notice = Notice.objects.get()
    assert (notice.kind, notice.facts["left_micros"]) == ("top_up_paused", str(20 * USD))
    assert notice.facts["failure_code"] == AutomaticTopUp.objects.get().paused_code != ""
    automatic.set_rule(organization=customer, at=processor.later(), **RULE)
    for _ in range(3):
        sweep(processor)
    assert Notice.objects.count() == 2


def test_who_was_not_there_is_told_that_the_bank_wants_them(customer, processor):
    processor.card(customer, NEEDS_PROOF)
    automatic.set_rule(organization=customer, at=NOON, **RULE)
    for _ in range(3):
        sweep(processor)
        processor.later()
    notice = Notice.objects.get()
    assert notice.kind == "payment_needs_you"
    assert Payment.objects.get().public_id in notice.facts["page"]
