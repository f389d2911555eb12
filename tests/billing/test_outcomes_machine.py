"""Random histories of an escrow and its results beside a few numbers that say what must come out."""

from collections import defaultdict
from datetime import timedelta

import pytest
from django.db import transaction
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)  # fmt: skip

from billing import accounts, books
from billing.errors import EscrowClosed, HoldClosed, InsufficientFunds, KeyReused, ReversedAlready
from billing.models import Escrow
from billing.outcomes import periods, sharing
from billing.outcomes.periods import Period
from billing.outcomes.sharing import parts
from billing.outcomes.words import Share
from billing.suppliers import purses
from tests.billing.makers import NOON, grant, make_organization, pay_in, wallet
from tests.billing.results import VERSION, item, release, reverse, set_aside, settle

amounts = st.integers(min_value=1, max_value=60)
CAP = 150
PERIOD = Period(NOON, NOON + timedelta(days=1), CAP)


class OutcomesMachine(RuleBasedStateMachine):
    """One customer with credit and cash, escrows, results with a cap, reversals and suppliers' parts."""

    escrows = Bundle("escrows")
    paid = Bundle("paid")

    @initialize(promo=amounts, cash=amounts)
    def open(self, promo, cash):
        self.atomic = transaction.atomic()
        self.atomic.__enter__()
        self.acme, self.supplier = make_organization(), make_organization()
        grant(self.acme, promo)
        pay_in(self.acme, cash)
        self.funds = promo + cash
        self.left, self.open_ones = {}, set()
        self.taken, self.posted, self.voided, self.put_in = {}, 0, 0, 0
        self.counted, self.serial, self.keys = 0, 0, defaultdict(dict)
        self.shares = [Share(self.supplier, 6_667), Share(None, 3_333)]

    def teardown(self):
        if hasattr(self, "atomic"):
            for one in list(self.open_ones):
                release(key=f"end {one}", resource_id=one)
            sharing.share_out(at=NOON)
            assert books.check(at=NOON) == []
            assert not any(books.recompute(at=NOON))
            assert all(row.left_micros == 0 for row in Escrow.objects.all())
            owed = sum(parts(left, [(self.supplier.pk, 6_667), (None, 3_333)])[self.supplier.pk]
                       for left in self.taken.values())  # fmt: skip
            purse = purses.of(self.supplier.pk).get("USD")
            assert (purse.payable.balance_micros if purse else 0) == owed
            transaction.set_rollback(True)
            self.atomic.__exit__(None, None, None)

    def new(self, word):
        self.serial += 1
        return f"{word}_{self.serial}"

    @property
    def free(self):
        return self.funds - sum(self.left.values())

    @rule(target=escrows, micros=amounts)
    def set_aside(self, micros):
        job = self.new("job")
        if micros > self.free:
            with pytest.raises(InsufficientFunds):
                set_aside(self.acme, micros, resource_id=job)
            return multiple()
        for _ in range(2):
            set_aside(self.acme, micros, resource_id=job)
        self.left[job] = micros
        self.open_ones.add(job)
        self.put_in += micros
        return job

    @rule(target=paid, job=escrows, micros=amounts, bps=st.integers(0, 10_000), has_cap=st.booleans())
    def settle(self, job, micros, bps, has_cap):
        sold = item(self.new("subject"), micros_per_unit=micros, bps=bps)
        period = PERIOD if has_cap else None
        wanted = (2 * micros * bps + 10_000) // 20_000
        assert sold.asked_micros == wanted
        room = min(wanted, max(0, CAP - self.counted)) if has_cap else wanted
        if job not in self.open_ones or room > self.left[job]:
            with pytest.raises(HoldClosed if job in self.open_ones else EscrowClosed):
                settle(self.acme, sold, resource_id=job, shares=self.shares, period=period)
            return multiple()
        made = [settle(self.acme, sold, resource_id=job, shares=self.shares, period=period) for _ in range(2)]
        assert made[0] == made[1]
        assert made[0].amount_micros == room
        with pytest.raises(KeyReused):
            settle(self.acme, sold, resource_id=job, key=self.new("key"), shares=self.shares)
        self.left[job] -= room
        self.funds -= room
        self.posted += room
        self.counted += room if has_cap else 0
        self.taken[made[0].pk] = room
        return made[0]

    @rule(job=escrows, micros=st.none() | amounts)
    def release(self, job, micros):
        key = self.new("release")
        if job not in self.open_ones or (micros or 0) > self.left[job]:
            with pytest.raises(HoldClosed if job in self.open_ones else EscrowClosed):
                release(micros, key=key, resource_id=job)
            return
        back = [release(micros, key=key, resource_id=job).amount_micros for _ in range(2)]
        expected = self.left[job] if micros is None else micros
        assert back == [expected, expected]
        self.left[job] -= expected
        self.voided += expected
        if micros is None:
            self.open_ones.discard(job)

    @rule(one=paid, micros=st.none() | amounts)
    def reverse(self, one, micros):
        key, left = self.new("reverse"), self.taken[one.pk]
        wanted = left if micros is None else micros
        if not 0 < wanted <= left:
            with pytest.raises(ReversedAlready):
                reverse(one, micros, key=key)
            return
        for _ in range(2):
            assert reverse(one, micros, key=key).amount_micros == wanted
        self.taken[one.pk] -= wanted
        self.funds += wanted
        self.counted -= wanted if one.period else 0

    @rule()
    def share_out(self):
        sharing.share_out(at=NOON)

    @invariant()
    def all_of_it_is_somewhere(self):
        if not hasattr(self, "acme"):
            return
        assert self.put_in == self.posted + self.voided + sum(self.left.values())
        now = wallet(self.acme)
        assert (now.available_micros, now.held_micros) == (self.free, sum(self.left.values()))
        assert now.owed_micros == 0
        counted = periods.counted_micros(version=VERSION, organization=self.acme, period=PERIOD)
        assert counted == self.counted <= CAP
        assert accounts.wallet(organization=self.acme).promo_micros >= 0


@pytest.mark.django_db
def test_what_was_set_aside_is_posted_or_given_back_whatever_happens():
    run_state_machine_as_test(
        OutcomesMachine,
        settings=settings(
            max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
