"""Evidence that the terms name: what lacks it does not pass, whoever says it does."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from marketplace.access import Actor
from marketplace.contracts import answering, claims, evidence, sweeping, verifying
from marketplace.errors import BadOrder, IllegalState
from marketplace.models import Claim, Project
from provisioning import statements
from provisioning.agent.signing import STATEMENT, digest, new_private, public_of, signed
from provisioning.models import Assignment, CounterSample, NodeKey
from tests.conftest import Fleet
from tests.marketplace.contracts.test_verifying import fresh
from tests.outcomes import BY_CUSTOMER, make_deal, make_work

pytestmark = pytest.mark.django_db
SIGNED = {"evidence": ["exit_code", "outputs", "gpu_uuids", "node_signature"]}


@pytest.fixture
def claimed(acme: Any, actor: Actor, project: Project, fleet: Fleet) -> Any:
    """Claim the result of a task that ran on a node with one GPU."""

    def made(**differs: Any) -> tuple[Claim, Assignment]:
        at = timezone.now()
        work = make_work(make_deal(acme, **differs), project, fleet.h200, actor, tasks=1, at=at)
        task = work.succeeds(0)
        row = task.tries.get().instance.assignments.create(
            node=fleet.nodes["h200-1"].node, replica=0, fence=1, gpu_uuids=["GPU-1"], observed="gone", exit_code=0
        )
        return claims.open(task=task, at=at), row

    return made


def states(row: Assignment, **changes: Any) -> None:
    """Let the node of an assignment sign what it saw."""
    private, at = new_private(), timezone.now()
    statements.learn_key(node=row.node, public=public_of(private), at=at)
    instance = row.instance
    body = {
        "kind": STATEMENT, "node": row.node.public_id, "assignment": row.public_id, "fence": row.fence,
        "instance": instance.public_id, "replica": row.replica, "gpus": row.gpu_uuids, "image": instance.image,
        "image_digest": None, "command_sha256": digest(instance.command), "inputs": None,
        "outputs": instance.outputs_sha256, "state": "exited", "exit_code": 0, "message": "", "running_at": None,
        "ended_at": None,
    }  # fmt: skip
    statements.take(row.node, at, signed(body | changes, private=private, at=at))


@pytest.mark.parametrize(("then", "state"), [("wiping", "verified"), ("gone", "verified"), ("exited", "failed")])
def test_a_result_whose_log_is_not_told_to_its_end_waits_for_it_and_fails_without(
    claimed: Any, then: str, state: str
) -> None:
    claim, row = claimed(evidence=["exit_code", "logs"])
    Assignment.objects.filter(pk=row.pk).update(observed="exited")
    at = claim.claimed_at
    sweeping.advance(at=at, limit=10)
    assert (fresh(claim).state, fresh(claim).due_at) == ("claimed", at + verifying.LOOK_AGAIN)
    Assignment.objects.filter(pk=row.pk).update(observed=then)
    sweeping.advance(at=at + evidence.WAIT, limit=10)
    assert fresh(claim).state == state
    if state == "failed":
        assert "its log" in fresh(claim).message


def test_a_result_whose_node_signed_nothing_waits_for_it_and_then_fails(claimed: Any) -> None:
    claim, _ = claimed(**SIGNED)
    at = claim.claimed_at
    sweeping.advance(at=at, limit=10)
    assert (fresh(claim).state, fresh(claim).due_at) == ("claimed", at + verifying.LOOK_AGAIN)
    sweeping.advance(at=at + evidence.WAIT, limit=10)
    assert fresh(claim).state == "failed"
    assert "evidence that its terms name is missing: the node's signature" in claim.verdicts.get().detail


def test_a_result_whose_node_signs_it_in_time_passes(claimed: Any) -> None:
    claim, row = claimed(**SIGNED)
    sweeping.advance(at=claim.claimed_at, limit=10)
    states(row)
    sweeping.advance(at=claim.claimed_at + timedelta(minutes=1), limit=10)
    assert fresh(claim).state == "verified"


@pytest.mark.parametrize("spoilt", ["contradicts", "is revoked", "names no GPU"])
def test_a_statement_that_does_not_count_is_no_evidence(claimed: Any, spoilt: str) -> None:
    claim, row = claimed(**SIGNED)
    if spoilt == "names no GPU":
        Assignment.objects.filter(pk=row.pk).update(gpu_uuids=[])
        row.refresh_from_db()
    states(row, **({"gpus": ["GPU-2"]} if spoilt == "contradicts" else {}))
    if spoilt == "is revoked":
        statements.revoke_key(key=NodeKey.objects.get(), because="it leaked", at=timezone.now())
    sweeping.advance(at=claim.claimed_at + evidence.WAIT, limit=10)
    assert fresh(claim).state == "failed"


def test_terms_that_name_no_signature_ask_for_none(claimed: Any) -> None:
    claim, _ = claimed()
    sweeping.advance(at=claim.claimed_at, limit=10)
    assert fresh(claim).state == "verified"


def test_who_accepts_before_the_evidence_is_there_is_told_so(claimed: Any, actor: Actor) -> None:
    claim, row = claimed(**SIGNED, **BY_CUSTOMER)
    with pytest.raises(IllegalState, match="the node's signature"):
        answering.accept(actor=actor, claim=claim, at=claim.claimed_at)
    assert fresh(claim).state == "claimed"
    states(row)
    answering.accept(actor=actor, claim=claim, at=claim.claimed_at)
    assert fresh(claim).state == "accepted"


def test_readings_that_the_terms_name_have_to_be_there(claimed: Any) -> None:
    for is_read, state in ((False, "failed"), (True, "verified")):
        claim, row = claimed(evidence=["exit_code", "counter"])
        instance = row.instance
        instance.__class__.objects.filter(pk=instance.pk).update(counters={"port": 1, "names": ["tokens_total"]})
        if is_read:
            at = timezone.now()
            CounterSample.objects.create(
                instance=instance, assignment=row, name="tokens_total", since=at, at=at, value=1, increase=0
            )
        sweeping.advance(at=claim.claimed_at + evidence.WAIT, limit=10)
        assert fresh(claim).state == state


def test_what_a_seller_files_has_each_piece_that_the_terms_name(acme: Any, project: Project) -> None:
    deal = make_deal(acme, **BY_CUSTOMER)
    for lacks in ({"outputs": ""}, {"outputs": None}, {"exit_code": None}):
        with pytest.raises(BadOrder, match=next(iter(lacks))) as refused:
            deal.claim(project, "frame 1", evidence=lacks)
        assert refused.value.field == "evidence"
    assert not Claim.objects.exists()
    assert deal.claim(project, "frame 1").evidence["exit_code"] == 0
