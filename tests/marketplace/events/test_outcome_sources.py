"""Jobs, contracts and claims in the feed: of tasks the sum, and both sides of a contract hear of it."""

from typing import Any

from django.utils import timezone

from marketplace.access import Actor, person
from marketplace.contracts import answering, claims, disputing, offering, sweeping
from marketplace.models import Claim, JobEvent, Organization, Project, Side
from tests.conftest import Fleet, make_person
from tests.marketplace.events.conftest import published
from tests.outcomes import BY_CUSTOMER, make_deal, make_work


def test_jobs_contracts_and_claims_are_told_to_both_sides(
    acme: Organization, project: Project, fleet: Fleet, actor: Actor
) -> None:
    at = timezone.now()
    deal = make_deal(acme)
    work = make_work(deal, project, fleet.h200, actor, tasks=2, at=at)
    JobEvent.objects.create(job=work.job, at=at, new_state="active")
    for index in range(2):
        claim = claims.open(task=work.succeeds(index), at=at)
        JobEvent.objects.create(job=work.job, task=work.task(index), at=at, old_state="running", new_state="verifying")
        JobEvent.objects.create(job=work.job, task=work.task(index), at=at, old_state="verifying", new_state="failed")
    claim.move_to("verified", at=at)
    events = published()
    jobs = [event for event in events if event.type.startswith("job.")]
    assert [event.type for event in jobs] == ["job.active", "job.progress"]  # Of two tasks one sum.
    assert jobs[1].data["tasks"]["size"] == 2
    sides = {(event.type, event.organization_id) for event in events if event.type.startswith(("contract.", "claim."))}
    both = {acme.pk, deal.seller.pk}
    assert {one for kind, one in sides if kind == "contract.accepted"} == both
    assert {one for kind, one in sides if kind == "claim.claimed"} == both
    assert {one for kind, one in sides if kind == "claim.verified"} == both
    assert {one for kind, one in sides if kind == "contract.offered"} == {deal.seller.pk}
    claimed = [event for event in events if event.type == "claim.claimed"]
    assert len(claimed) == 4
    seen = {(event.organization_id, event.data["side"], event.project_id) for event in claimed}
    assert seen == {(acme.pk, "buyer", project.pk), (deal.seller.pk, "seller", None)}


def test_that_a_customer_leaves_is_told_to_both_sides(acme: Organization, actor: Actor) -> None:
    deal, at = make_deal(acme), timezone.now()
    for _ in range(2):
        offering.leave(actor=actor, version=deal.version, organization=acme, at=at)
    told = [event for event in published() if event.type == "contract.left"]
    assert sorted(event.organization_id for event in told) == sorted([acme.pk, deal.seller.pk])
    assert {(event.data["version"], event.data["by"]) for event in told} == {(deal.version.public_id, acme.public_id)}


def test_a_dispute_is_told_to_both_sides_also_where_it_is_paid_already(acme: Organization, project: Project) -> None:
    at = timezone.now()
    deal = make_deal(acme, **BY_CUSTOMER)
    customer = person(acme.memberships.get(role="owner").user)
    for subject in ("frame 1", "frame 2"):
        claim = deal.claim(project, subject, at=at)
        answering.accept(actor=customer, claim=claim, at=at)
        sweeping.advance(at=at, limit=10)
    paid, other = Claim.objects.filter(state="settled").order_by("pk")
    how: dict[str, Any] = {"actor": customer, "side": Side.BUYER, "reason": "other", "text": "It is black", "at": at}
    contested = disputing.open(claim=paid, **how)
    judge = person(make_person("judge@operator.example", is_staff=True))
    disputing.resolve(actor=judge, dispute=contested, due_bps=0, note="It is.", at=at)
    dropped = disputing.open(claim=other, **how)
    disputing.withdraw(actor=customer, dispute=dropped, side=Side.BUYER, at=at)
    told = [event for event in published() if event.type.startswith("claim_dispute.")]
    found = {(event.subject_id, event.type.partition(".")[2], event.data["side"]) for event in told}
    assert found == {
        (one.public_id, state, side)
        for one, states in ((contested, ("opened", "rejected")), (dropped, ("opened", "withdrawn")))
        for state in states
        for side in ("buyer", "seller")
    }
    assert len(told) == 8
    assert {event.data["due_bps"] for event in told if event.type == "claim_dispute.opened"} == {None}
    assert {event.project for event in told if event.data["side"] == "seller"} == {None}
