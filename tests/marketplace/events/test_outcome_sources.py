"""Jobs, contracts and claims in the feed: of tasks the sum, and both sides of a contract hear of it."""

from django.utils import timezone

from marketplace.access import Actor
from marketplace.contracts import claims
from marketplace.models import JobEvent, Organization, Project
from tests.conftest import Fleet
from tests.marketplace.events.conftest import published
from tests.outcomes import make_deal, make_work


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
