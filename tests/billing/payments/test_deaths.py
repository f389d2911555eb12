"""Workers and connections that die at every boundary of a payment: one charge at the processor, one transfer of ours.

A boundary is where something becomes true outside of the worker: before and after each commit, and before and after
each call to the processor. At each in turn the worker dies, or its connection to the database is cut; then the sweeps
come by as they would.
"""

import threading

import pytest
from django.db import DatabaseError, InterfaceError, connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from billing import books
from billing.models import Payment, Refund, Transfer
from billing.payments import paying, refunds
from billing.test_processor.client import InProcess
from tests.billing.makers import NOON, USD, wallet
from tests.billing.payments.stage import order
from tests.billing.payments.test_refunds import refund_of

pytestmark = pytest.mark.django_db(transaction=True)


class Death(BaseException):
    """The worker is gone. Nobody catches this."""


class Boundaries:
    """Counts them, and does its worst at one."""

    def __init__(self, monkeypatch, kill):
        self.passed, self.deadly, self.kill = 0, None, kill
        commit, request = BaseDatabaseWrapper._commit, InProcess.request
        monkeypatch.setattr(BaseDatabaseWrapper, "_commit", self.around(commit))
        monkeypatch.setattr(InProcess, "request", self.around(request))

    def around(self, verb):
        def done(*args, **kwargs):
            self.reach()
            result = verb(*args, **kwargs)
            self.reach()
            return result

        return done

    def reach(self):
        self.passed += 1
        if self.passed == self.deadly:
            self.kill()

    def watch(self, deadly, work):
        """Do the work and die at this boundary, or nowhere; return how many boundaries were passed."""
        self.passed, self.deadly = 0, deadly
        try:
            work()
        except (Death, DatabaseError, InterfaceError):
            pass
        finally:
            self.deadly = None
            connection.close()
        return self.passed


def die():
    connection.close()
    raise Death


def cut_connection():
    """Let somebody else end our connection, as a failing server would."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()

    def end():
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
        connections.close_all()

    other = threading.Thread(target=end)
    other.start()
    other.join()


@pytest.mark.parametrize("kill", [die, cut_connection])
def test_a_payment_survives_every_death(customer, processor, monkeypatch, kill):
    card = processor.card(customer)
    boundaries = Boundaries(monkeypatch, kill)

    def survived(number, deadly):
        payment = order(customer, key=str(number), card=card)
        passed = boundaries.watch(deadly, lambda: paying.send(payment_id=payment.pk, at=processor.at))
        processor.look_until_closed(payment)
        assert payment.state == "succeeded"
        made = [one for one in processor.charges if one["metadata"]["gpumarket"] == payment.processor_key]
        assert len(made) == 1
        assert Transfer.objects.filter(key=payment.processor_key).count() == 1
        return passed

    total = survived(0, None)
    assert total >= 8
    for deadly in range(1, total + 1):
        survived(deadly, deadly)
    assert wallet(customer).cash_micros == 20 * USD * (total + 1)
    assert len(processor.charges) == total + 1
    assert Payment.objects.exclude(state="succeeded").count() == 0
    assert books.check(at=NOON) == []


@pytest.mark.parametrize("kill", [die, cut_connection])
def test_a_refund_survives_every_death(customer, processor, monkeypatch, kill):
    processor.card(customer)
    payment = paying.send(payment_id=order(customer, 1000 * USD).pk, at=NOON)
    boundaries = Boundaries(monkeypatch, kill)

    def survived(deadly):
        refund = refund_of(payment, 5 * USD)
        passed = boundaries.watch(deadly, lambda: refunds.look(refund_id=refund.pk, at=processor.later()))
        for _ in range(4):
            refunds.look_due(at=processor.later(paying.LOOK_AGAIN_MOST))
        refund.refresh_from_db()
        assert refund.state == "succeeded"
        return passed

    total = survived(None)
    for deadly in range(1, total + 1):
        survived(deadly)
    assert len(processor.world.things["refund"]) == total + 1 == Refund.objects.count()
    assert Transfer.objects.filter(key__startswith="payback:").count() == total + 1
    assert wallet(customer).cash_micros == 1000 * USD - 5 * USD * (total + 1)
    assert books.check(at=NOON) == []


def test_two_workers_at_once_send_one_charge(customer, processor):
    processor.card(customer)
    payment = order(customer)

    def send():
        try:
            paying.send(payment_id=payment.pk, at=processor.at)
        finally:
            connections.close_all()

    workers = [threading.Thread(target=send) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    payment.refresh_from_db()
    assert (payment.state, len(processor.charges), processor.sent()) == ("succeeded", 1, 1)
