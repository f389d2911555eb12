"""Random histories of the ledger beside a few dictionaries that say what must come out."""

from collections import defaultdict
from datetime import timedelta

import pytest
from django.db import transaction
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from billing import accounts, books, charging, holds, usage
from billing.errors import HoldClosed, InsufficientFunds, KeyReused
from billing.models import Account, Hold
from tests.billing.makers import HOUR, NOON, account, grant, hold_money, make_organization, make_price, move, start

KINDS = ("promo", "cash", "receivable")
quantities = st.integers(min_value=1, max_value=3)
amounts = st.integers(min_value=1, max_value=50)
who = st.integers(min_value=0, max_value=1)


class LedgerMachine(RuleBasedStateMachine):
    """Two customers and the platform; every answer and every balance is foretold."""

    moves = Bundle("moves")
    placed = Bundle("placed")

    @initialize()
    def open(self):
        self.atomic = transaction.atomic()
        self.atomic.__enter__()
        self.organizations = [make_organization(), make_organization()]
        self.balance = defaultdict(int)
        self.held = defaultdict(int)
        self.left = {}
        self.resource = {}
        self.price = make_price(micros_per_unit_hour=60)  # one micro for a unit and a minute
        self.meters = {}
        self.clock = NOON
        self.serial = 0

    def teardown(self):
        if hasattr(self, "atomic"):
            assert books.check(at=NOON) == []
            transaction.set_rollback(True)
            self.atomic.__exit__(None, None, None)

    def new_key(self):
        self.serial += 1
        return f"key-{self.serial}"

    def row(self, place):
        number, kind = place
        if number is None:
            return accounts.platform(kind, "USD")
        return account(self.organizations[number], kind)

    def free(self, place):
        return self.balance[place] - self.held[place]

    def expect_settled(self, number):
        owed = max(0, -self.balance[number, "receivable"])
        for kind in ("promo", "cash"):
            share = min(owed, self.free((number, kind)))
            self.balance[number, kind] -= share
            self.balance[number, "receivable"] += share
            owed -= share

    places = st.tuples(who, st.sampled_from(KINDS)) | st.tuples(st.none(), st.sampled_from(["revenue", "processor"]))

    @rule(target=moves, source=places, target_place=places, amount=amounts)
    def transfer(self, source, target_place, amount):
        if source == target_place:
            return multiple()
        key = self.new_key()
        refused = source[1] in {"promo", "cash"} and self.free(source) < amount
        if refused:
            with pytest.raises(InsufficientFunds):
                move(self.row(source), self.row(target_place), amount, key=key)
            return multiple()
        move(self.row(source), self.row(target_place), amount, key=key)
        self.balance[source] -= amount
        self.balance[target_place] += amount
        return (key, source, target_place, amount)

    @rule(moved=moves)
    def repeat_a_transfer(self, moved):
        key, source, target, amount = moved
        move(self.row(source), self.row(target), amount, key=key)

    @rule(moved=moves, more=amounts)
    def reuse_a_key(self, moved, more):
        key, source, target, amount = moved
        with pytest.raises(KeyReused):
            move(self.row(source), self.row(target), amount + more, key=key)
        with pytest.raises(KeyReused):
            move(self.row(target), self.row(source), amount, key=key)

    @rule(number=who, amount=amounts)
    def grant_credit(self, number, amount):
        key = self.new_key()
        for _ in range(2):
            grant(self.organizations[number], amount, key=key)
        self.balance[number, "promo"] += amount
        self.balance[None, "promo_expense"] -= amount
        self.expect_settled(number)

    @rule(target=placed, number=who, amount=amounts)
    def place_a_hold(self, number, amount):
        key = self.new_key()
        available = self.free((number, "promo")) + self.free((number, "cash"))
        available = max(0, available - max(0, -self.balance[number, "receivable"]))
        if amount > available:
            with pytest.raises(InsufficientFunds) as refusal:
                hold_money(self.organizations[number], amount, key=key)
            assert refusal.value.available_micros == available
            return multiple()
        for _ in range(2):
            rows = hold_money(self.organizations[number], amount, key=key, resource_id=key)
        from_promo = min(amount, self.free((number, "promo")))
        expected = {"promo": from_promo, "cash": amount - from_promo}
        assert {row.account.kind: row.amount_micros for row in rows} == {k: v for k, v in expected.items() if v}
        for row in rows:
            self.held[number, row.account.kind] += row.amount_micros
            self.left[row.pk] = (number, row.account.kind, row.amount_micros)
            self.resource[row.pk] = key
        return multiple(*[row.pk for row in rows])

    @rule(pk=placed, amount=amounts)
    def post_a_hold(self, pk, amount):
        number, kind, left = self.left[pk]
        body = {
            "key": self.new_key(),
            "hold": Hold.objects.select_related("account").get(pk=pk),
            "target": accounts.platform(Account.Kind.REVENUE, "USD"),
            "amount_micros": amount,
            "reason": "Test",
            "at": NOON,
        }
        if amount > left:
            with pytest.raises(HoldClosed):
                holds.post(**body)
            return
        for _ in range(2):
            holds.post(**body)
        self.left[pk] = (number, kind, left - amount)
        self.held[number, kind] -= amount
        self.balance[number, kind] -= amount
        self.balance[None, "revenue"] += amount

    @rule(pk=consumes(placed))
    def void_the_holds_of_a_resource(self, pk):
        resource_id = Hold.objects.get(pk=pk).resource_id
        for _ in range(2):
            holds.void_for(resource_id=resource_id, at=NOON)
        self.expect_closed(Hold.objects.filter(resource_id=resource_id).values_list("pk", flat=True))

    @precondition(lambda self: any(left for _, _, left in self.left.values()))
    @rule()
    def let_every_hold_expire(self):
        holds.expire(at=NOON + HOUR - timedelta(microseconds=1))
        holds.expire(at=NOON + HOUR)
        self.expect_closed(self.left)

    def expect_closed(self, pks):
        for pk in sorted(pks):
            number, kind, left = self.left[pk]
            self.left[pk] = (number, kind, 0)
            self.held[number, kind] -= left
            if left:
                self.expect_settled(number)

    @rule(number=who, quantity=quantities)
    def open_a_meter(self, number, quantity):
        self.open_meter_of(self.new_key(), number, quantity)

    @rule(pk=placed, quantity=quantities)
    def open_the_meter_of_what_holds_money(self, pk, quantity):
        if self.resource[pk] not in self.meters:
            self.open_meter_of(self.resource[pk], self.left[pk][0], quantity)

    def open_meter_of(self, resource_id, number, quantity):
        for _ in range(2):
            span = start(
                self.organizations[number],
                resource_id=resource_id,
                at=self.clock,
                quantity=quantity,
                price_version=self.price,
            )
        self.meters[resource_id] = [span.started_at, span.pk, number, quantity]

    @rule(minutes=st.integers(min_value=1, max_value=9))
    def charge_everybody_at_once(self, minutes):
        self.clock += timedelta(minutes=minutes)
        made = charging.charge_due(at=self.clock)
        assert made == len(self.meters)
        assert charging.charge_due(at=self.clock) == 0
        for resource_id in sorted(self.meters, key=self.meters.get):
            self.expect_charged(resource_id)

    @precondition(lambda self: self.meters)
    @rule(chosen=st.randoms(use_true_random=False), minutes=st.integers(min_value=0, max_value=9))
    def stop_a_meter(self, chosen, minutes):
        self.clock += timedelta(minutes=minutes)
        resource_id = chosen.choice(sorted(self.meters))
        for _ in range(2):
            usage.stop(resource_id=resource_id, at=self.clock)
        self.expect_charged(resource_id)
        del self.meters[resource_id]
        self.expect_closed(pk for pk, held_for in self.resource.items() if held_for == resource_id)

    def expect_charged(self, resource_id):
        """A micro for each unit and minute: from the own holds, credit, cash; the rest is owed."""
        since, _, number, quantity = self.meters[resource_id]
        self.meters[resource_id][0] = self.clock
        due = quantity * ((self.clock - since) // timedelta(minutes=1))
        self.balance[None, "revenue"] += due
        for pk in sorted(pk for pk, held_for in self.resource.items() if held_for == resource_id):
            _, kind, left = self.left[pk]
            share = min(left, due)
            self.left[pk] = (number, kind, left - share)
            self.held[number, kind] -= share
            self.balance[number, kind] -= share
            due -= share
        for kind in ("promo", "cash"):
            share = min(due, self.free((number, kind)))
            self.balance[number, kind] -= share
            due -= share
        self.balance[number, "receivable"] -= due

    @invariant()
    def every_balance_is_as_foretold(self):
        if not hasattr(self, "balance"):
            return
        for number, organization in enumerate(self.organizations):
            rows = {row.kind: row for row in organization.accounts.all()}
            for kind in KINDS:
                assert rows[kind].balance_micros == self.balance[number, kind]
                assert rows[kind].held_micros == self.held[number, kind]


@pytest.mark.django_db
def test_no_history_of_the_ledger_surprises_its_oracle():
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
