"""The sweeps find by themselves what there is to do."""

from datetime import timedelta

import pytest
import time_machine

from billing import tasks
from billing.models import Charge, Hold
from tests.billing.makers import HOUR, NOON, USD, hold_money, start

pytestmark = pytest.mark.django_db


def test_the_sweep_charges_what_has_run_for_a_while(acme):
    start(acme)
    with time_machine.travel(NOON + timedelta(minutes=5), tick=False):
        tasks.charge_due()
        tasks.charge_due()
    assert Charge.objects.get().through == NOON + timedelta(minutes=5)


def test_the_sweep_expires_holds_whose_time_is_over(acme):
    (hold,) = hold_money(acme, USD)
    with time_machine.travel(NOON + HOUR, tick=False):
        tasks.expire_holds()
        tasks.expire_holds()
    assert Hold.objects.get(pk=hold.pk).state == Hold.State.EXPIRED
