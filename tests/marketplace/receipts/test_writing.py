"""Receipts of claims: each that ends gets one, another when it is reversed, with what its nodes signed."""

import json
import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from marketplace import access_receipts
from marketplace.access import Actor
from marketplace.contracts import claims, reversing, settling
from marketplace.errors import NotFound
from marketplace.models import Claim, Organization, Project, Receipt, ReceiptDue, Verdict
from marketplace.receipts import writing
from provisioning import statements
from provisioning.agent.signing import STATEMENT, digest, new_private, public_of, signed
from provisioning.models import Assignment, Instance, NodeStatement
from tests.conftest import Fleet
from tests.marketplace.receipts.conftest import append, verified
from tests.outcomes import Work, make_deal, make_work


@pytest.fixture
def work(acme: Organization, project: Project, fleet: Fleet, actor: Actor) -> Work:
    deal = make_deal(acme, title="Rendered frames ✓", shares=[{"to": "seller", "bps": 10_000}])
    return make_work(deal, project, fleet.h200, actor, tasks=3, at=timezone.now())


def claimed(work: Work, index: int) -> Claim:
    work.loses_its_node(index, at=timezone.now())
    return claims.open(task=work.succeeds(index), at=timezone.now())


def settled(work: Work, index: int) -> Claim:
    """A claim that passed, was accepted by its customer's silence, and is paid."""
    at, claim = timezone.now(), claimed(work, index)
    Verdict.objects.create(claim=claim, verifier="outputs", result="pass", at=at, inputs={"outputs": "a" * 64})
    claim.move_to("verified", at=at)
    claim.move_to("accepted", at=at, due_at=at)
    return settling.settle(claim=claim, at=at)


def issued() -> list[Receipt]:
    while writing.issue_due(at=timezone.now(), limit=100):
        pass
    return list(Receipt.objects.order_by("sequence"))


def assigned(work: Work, claim: Claim, private: str, **changes: Any) -> NodeStatement:
    """Put the claim's instance on a node that states what it saw."""
    instance = Instance.objects.get(attempt__task=claim.task, attempt__state="succeeded")
    node = next(iter(Assignment._meta.get_field("node").related_model.objects.filter(offer=work.offer)))
    row = Assignment.objects.create(
        instance=instance,
        node=node,
        replica=0,
        fence=1,
        gpu_uuids=["GPU-1"],
        desired="gone",
        observed="gone",
        exit_code=0,
    )
    body = {
        "kind": STATEMENT, "node": node.public_id, "assignment": row.public_id, "fence": 1,
        "instance": instance.public_id, "replica": 0, "gpus": ["GPU-1"], "image": "", "image_digest": None,
        "command_sha256": digest(["true"]), "inputs": None, "outputs": None, "state": "exited", "exit_code": 0,
        "message": "", "running_at": None, "ended_at": None,
    }  # fmt: skip
    at = timezone.now()
    statements.learn_key(node=node, public=public_of(private), at=at)
    statements.take(node, at, signed(body | changes, private=private, at=at))
    return NodeStatement.objects.get(assignment=row)


def test_a_claim_that_is_paid_has_a_receipt_that_anybody_verifies(work: Work) -> None:
    claim = settled(work, 0)
    assert assigned(work, claim, new_private()).trouble == ""
    (receipt,) = issued()
    assert (receipt.event, receipt.subject_id, receipt.amount_micros) == ("settled", claim.public_id, claim.paid_micros)
    assert receipt.organization == claim.organization
    assert verified([receipt]) == []
    body = json.loads(receipt.text)
    assert body["price"]["paid_micros"] == str(claim.paid_micros) != "0"
    assert body["contract"]["sha256"] == claim.version.sha256
    assert [one["state"] for one in body["attempts"]] == ["faulted", "succeeded"]
    assert body["attempts"][1]["replicas"][0]["statement"]["body"]["gpus"] == ["GPU-1"]
    assert [move["to"] for move in body["claim"]["history"]] == ["claimed", "verified", "accepted", "settled"]
    assert digest(body["claim"]["evidence"]) == body["claim"]["evidence_sha256"] == claim.evidence_sha256
    assert body["verdicts"][0]["result"] == "pass"
    assert body["energy"] is None
    assert "@" not in receipt.text  # Nobody's name or address.


def test_a_reversal_adds_a_second_receipt_and_nothing_is_said_twice(work: Work) -> None:
    claim = settled(work, 0)
    assert [one.event for one in issued()] == ["settled"]
    reversing.reverse(actor=work.deal.merchant, claim=claim, reason="It was wrong", at=timezone.now())
    receipts = issued()
    assert [(one.event, one.amount_micros) for one in receipts] == [("settled", claim.paid_micros), ("reversed", 0)]
    assert verified(receipts) == []
    assert not ReceiptDue.objects.exists()
    ReceiptDue.objects.create(claim=claim)
    assert issued() == receipts
    assert not ReceiptDue.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_reversal_while_its_receipt_is_being_written_has_one_too(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, gather = settled(work, 0), writing.gathered

    def reverse() -> None:
        reversing.reverse(actor=work.deal.merchant, claim=claim, reason="It was wrong", at=timezone.now())
        connection.close()

    thread = threading.Thread(target=reverse)

    def is_waiting() -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE transactionid = pg_current_xact_id()::xid "
                           "AND NOT granted)")  # fmt: skip
            return bool(cursor.fetchone()[0])

    def gathered(claims: list[Claim]) -> writing.Evidence:
        if not thread.ident:
            thread.start()
            while thread.is_alive() and not is_waiting():
                thread.join(0.01)
        return gather(claims)

    monkeypatch.setattr(writing, "gathered", gathered)
    assert writing.issue_due(at=timezone.now(), limit=100) == 1
    thread.join()
    assert [one.event for one in issued()] == ["settled", "reversed"]


def test_what_is_withdrawn_or_fails_has_a_receipt_of_nothing_and_what_is_open_has_none(work: Work) -> None:
    at = timezone.now()
    voided, failed, _ = claimed(work, 0), claimed(work, 1), claimed(work, 2)
    settling.void(actor=work.deal.merchant, claim=voided, at=at, reason="no longer wanted")
    failed.move_to("failed", at=at, due_at=at)
    settling.close(failed, at=at)
    receipts = issued()
    assert sorted((one.event, one.amount_micros) for one in receipts) == [("failed", 0), ("voided", 0)]
    assert verified(receipts) == []


def test_the_seller_sees_the_receipt_of_what_it_sold_and_no_other(work: Work) -> None:
    settled(work, 0)
    (sold,) = issued()
    (other,) = append(sold.organization, "clm_of_another_seller")
    merchant = work.deal.merchant
    assert access_receipts.receipt_for(merchant, sold.public_id, verb="receipt.view") == sold
    assert access_receipts.neighbours(merchant, sold) == (None, None)
    with pytest.raises(NotFound):
        access_receipts.receipt_for(merchant, other.public_id, verb="receipt.view")


def test_many_are_written_with_as_many_queries_as_one(work: Work, django_assert_max_num_queries: Any) -> None:
    for index in range(3):
        settled(work, index)
    with django_assert_max_num_queries(26):  # ten, seven for the organization, and savepoints
        assert writing.issue_due(at=timezone.now(), limit=100) == 3


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ({"exit_code": 1}, "differs from what is known of: exit_code"),
        ({"gpus": ["GPU-2"]}, "differs from what is known of: gpus"),
    ],
)
def test_what_a_node_states_wrongly_is_named_and_not_shown_as_evidence(work: Work, spoil: Any, why: str) -> None:
    claim = settled(work, 0)
    assigned(work, claim, new_private(), **spoil)
    (receipt,) = issued()
    (replica,) = json.loads(receipt.text)["attempts"][1]["replicas"]
    assert (replica["statement"], replica["key"]) == (None, None)
    assert why in replica["why_not"]
    assert verified([receipt]) == []


def test_what_came_after_the_statement_and_a_revoked_key_take_its_worth(work: Work) -> None:
    at = timezone.now()
    first, second = settled(work, 0), settled(work, 1)
    stated = assigned(work, first, new_private())
    Assignment.objects.filter(pk=stated.assignment_id).update(exit_code=2)
    other = assigned(work, second, new_private())
    assert other.key is not None
    statements.revoke_key(key=other.key, because="it leaked", at=at - timedelta(seconds=1))
    why = [json.loads(receipt.text)["attempts"][1]["replicas"][0]["why_not"] for receipt in issued()]
    assert why == ["it states another exit code than its node", "the key that signed it was revoked"]
