"""Paying an invoice by card: of two who pay at once only one is charged."""

import time
from functools import partial

import pytest
from django.utils import timezone

from billing import dunning
from billing.invoicing import issuing
from billing.models import Card, Collection, Payment
from billing.payments import gateway
from marketplace import owing
from marketplace.access import Actor
from marketplace.models import AuditEntry, Organization
from tests.billing.makers import at_the_same_moment
from tests.marketplace.invoices.conftest import use_beyond_credit


@pytest.mark.django_db(transaction=True)
def test_of_two_who_pay_an_invoice_at_once_the_second_is_refused(
    actor: Actor, seller: Organization, acme: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_beyond_credit(acme)
    invoice = issuing.issue(organization=acme, at=timezone.now())
    Card.objects.create(
        organization=acme, processor_id="pm_1", brand="visa", last4="4242", exp_month=1, exp_year=2030, is_default=True
    )
    looked = dunning.under_way

    def slowly(row: Collection) -> bool:
        is_under_way = looked(row)
        time.sleep(0.3)
        return is_under_way

    monkeypatch.setattr(dunning, "under_way", slowly)
    monkeypatch.setattr(gateway, "is_there", lambda: True)
    pay = partial(owing.pay, actor=actor, invoice=invoice, at=timezone.now())
    assert at_the_same_moment(partial(pay, key="1"), partial(pay, key="2")) == ["Conflict", "done"]
    first = Payment.objects.get()
    assert pay(key=first.key.rpartition(":")[2]) == first
    assert AuditEntry.objects.filter(verb="invoice.pay").count() == 1
