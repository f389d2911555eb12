"""Money, quotas and receipts in the feed: each state that people are told of, to whom it concerns."""

from datetime import date
from typing import Any
from uuid import uuid4

from django.utils import timezone

from billing.models import Payment, Payout, PayoutAccount, Refund, SupplierStatement
from marketplace import quota_requests
from marketplace.access import Actor
from marketplace.events import feed
from marketplace.events.money import TOLD_STATES
from marketplace.models import Budget, BudgetAlert, Event, Organization, Project, QuotaRequest, StateChange
from tests.conftest import Fleet
from tests.marketplace.events.conftest import published
from tests.marketplace.receipts.conftest import append


def told(kind: str) -> list[Event]:
    return [event for event in published() if event.type.partition(".")[0] == kind]


def pay(organization: Organization, **changes: Any) -> Payment:
    facts = {"key": str(uuid4()), "purpose": "top_up", "amount_micros": 20_000_000, "currency": "USD"}
    return Payment.objects.create(**facts | {"organization": organization, "created_at": timezone.now()} | changes)


def test_a_payment_and_its_refund_are_told_when_something_comes_of_them(
    acme: Organization, alice: Any, carol: Any
) -> None:
    at = timezone.now()
    payment = pay(acme)
    for state, more in (("sending", {}), ("succeeded", {"processor_id": "pi_1", "finished_at": at})):
        Payment.objects.filter(pk=payment.pk).update(state=state, **more)
    Payment.objects.filter(pk=payment.pk).update(state="succeeded")  # It came to nothing new.
    refund = Refund.objects.create(
        payment=payment, amount_micros=5_000_000, reason="r", key=uuid4(), proposed_by=alice, proposed_at=at
    )
    Refund.objects.filter(pk=refund.pk).update(state="approved", decided_by=carol, decided_at=at)
    Refund.objects.filter(pk=refund.pk).update(state="succeeded")
    (paid,) = told("payment")
    assert (paid.type, paid.subject_id, paid.data["amount"]) == ("payment.succeeded", payment.public_id, "20.000000")
    assert (paid.organization, paid.data["failure"]) == (acme, None)
    assert [event.type for event in told("refund")] == ["refund.approved", "refund.succeeded"]
    assert told("refund")[1].data["payment"] == payment.public_id


def test_one_payment_that_is_asked_about_twice_is_told_twice(acme: Organization) -> None:
    payment = pay(acme)
    for state in ("needs_action", "processing", "needs_action"):
        Payment.objects.filter(pk=payment.pk).update(state=state)
    assert [event.type for event in told("payment")] == ["payment.needs_action"] * 2


def test_statements_and_payouts_are_told_to_the_supplier(operator: Organization) -> None:
    from tests.marketplace.api.tenant import empty_statement

    at = timezone.now()
    statement: SupplierStatement = empty_statement(operator)
    account = PayoutAccount.objects.create(supplier=operator, country="NO")
    payout = Payout.objects.create(
        supplier=operator, account=account, statement=statement, currency="USD", amount_micros=1_000_000,
        slot=date(2026, 11, 26), created_at=at,
    )  # fmt: skip
    Payout.objects.filter(pk=payout.pk).update(state="sending")
    Payout.objects.filter(pk=payout.pk).update(state="paid", finished_at=at)
    (stated,) = told("supplier_statement")
    assert (stated.organization, stated.data["number"]) == (operator, statement.number)
    assert [event.type for event in told("payout")] == ["payout.created", "payout.paid"]
    assert {event.data["statement"] for event in told("payout")} == {statement.public_id}


def test_a_request_for_quota_is_told_until_it_is_decided(
    actor: Actor, acme: Organization, project: Project, fleet: Fleet
) -> None:
    asked = quota_requests.request(
        actor=actor, organization=acme, project=project, gpu_model="H200", market="", limit=64, reason="A big model",
        at=timezone.now(),
    )  # fmt: skip
    quota_requests.withdraw(actor=actor, found=asked, at=timezone.now())
    events = told("quota_request")
    assert [event.type for event in events] == ["quota_request.pending", "quota_request.withdrawn"]
    assert (events[0].project, events[0].data["limit"]) == (project, 64)


def test_an_alert_of_a_budget_is_told_with_its_figures(acme: Organization, project: Project) -> None:
    budget = Budget.objects.create(organization=acme, project=project, amount=100_000_000)
    BudgetAlert.objects.create(
        budget=budget, period=timezone.now(), kind="used", share=80, amount=100_000_000, reached=81_000_000,
        at=timezone.now(), next_try_at=timezone.now(),
    )  # fmt: skip
    (event,) = told("budget")
    assert (event.type, event.project, event.subject_id) == ("budget.alert", project, budget.public_id)
    assert (event.data["share"], event.data["reached"], event.data["amount"]) == (80, "81.000000", "100.000000")


def test_a_receipt_is_told_and_old_notes_of_states_are_forgotten(acme: Organization, project: Project) -> None:
    (row,) = append(acme, "clm_1")
    (event,) = told("receipt")
    assert (event.type, event.subject_id, event.data["digest"]) == ("receipt.issued", row.public_id, row.digest)
    pay(acme, state="failed", finished_at=timezone.now())
    assert StateChange.objects.count() == 1
    feed.purge(at=timezone.now() + feed.KEPT_FOR * 2, limit=100)
    assert not StateChange.objects.exists()


def test_the_states_that_are_told_exist() -> None:
    models = {"payment": Payment, "refund": Refund, "payout": Payout, "quota_request": QuotaRequest}
    for kind, states in TOLD_STATES.items():
        assert set(states) <= set(models[kind].State.values)  # type: ignore[attr-defined]
