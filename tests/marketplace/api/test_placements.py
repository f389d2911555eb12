"""Decisions and policies over the API: what is told, to whom, and what a refusal leaves behind."""

from typing import Any

from django.db import transaction
from django.utils import timezone

from marketplace import rentals
from marketplace.access import person
from marketplace.models import Organization, Project
from provisioning.models import Instance, Node, PlacementDecision
from tests.conftest import Fleet, make_organization, make_person, order
from tests.marketplace.api.program import Program

ORDER = {"offer": "h200-narvik", "command": ["true"]}


def launched(program: Program, **changes: Any) -> Any:
    return program.post("instances", {**ORDER, **changes}, key=str(Instance.objects.count()))


def test_a_launch_is_explained(program: Program) -> None:
    answer = launched(program, replicas=2, gpus=8, placement={"strategy": "spread", "level": "node", "required": True})
    assert answer.status_code == 202
    wish = {"strategy": "spread", "level": "node", "required": True, "max_skew": 1}
    assert answer.json()["placement"] == wish
    (decision,) = program.get(f"instances/{answer.json()['id']}/placements").json()["data"]
    assert decision["outcome"] == "placed"
    assert (decision["nodes"], decision["candidates"], decision["level"]) == (2, 2, "node")
    assert decision["request"] == {"replicas": 2, "gpus": 8, **wish}
    assert program.get(f"placements/{decision['id']}").json() == decision


def test_a_refused_launch_names_the_decision_that_outlives_it(program: Program) -> None:
    Node.objects.filter(name="h200-1").update(state="cordoned")
    answer = launched(program, replicas=2, gpus=8)
    assert (answer.status_code, answer.json()["code"]) == (409, "no_capacity")
    assert not Instance.objects.exists()
    decision = program.get(f"placements/{answer.json()['placement']}").json()
    assert (decision["outcome"], decision["instance"], decision["candidates"]) == ("refused", None, 1)
    assert decision["rejected"] == [{"rule": "state", "nodes": 1, "reason": "taken out of service by the operator"}]
    assert decision["most"] == {"node": 1, "rack": 1, "fabric": 1, "site": 1}
    assert (decision["relaxation"], decision["advice"]) == ({"replicas": 1}, "1 replicas would fit now.")


def test_a_launch_leaves_alone_what_is_kept_for_who_waits(program: Program) -> None:
    Node.objects.filter(name="h200-1").update(kept_for="queue")
    answer = launched(program, replicas=2, gpus=8)
    assert (answer.status_code, answer.json()["code"]) == (409, "no_capacity")
    assert "Some of its nodes are kept for orders that wait and for reservations" in answer.json()["detail"]
    decision = program.get(f"placements/{answer.json()['placement']}").json()
    assert decision["rejected"] == [
        {"rule": "kept", "nodes": 1, "reason": "kept for orders that wait or for reservations"}
    ]


def test_a_decision_names_no_other_tenant(program: Program, fleet: Fleet) -> None:
    user = make_person("other@secret.example")
    theirs = Project.objects.select_related("organization").get(organization=make_organization("Secret", user))
    with transaction.atomic():
        rentals.rent(actor=person(user), project=theirs, order=order(fleet.h200, gpus=8), at=timezone.now())
    Node.objects.filter(free_gpus=8, name__startswith="h200").update(exclusive_to=theirs.organization)
    answer = launched(program)
    decision = program.get(f"placements/{answer.json()['placement']}")
    assert [row["rule"] for row in decision.json()["rejected"]] == ["another_tenant", "full"]
    assert "Secret" not in decision.text
    assert "h200-1" not in decision.text
    row = PlacementDecision.objects.get(instance__project=theirs)
    assert program.get(f"placements/{row.public_id}").status_code == 404


def test_a_policy_is_replaced_as_a_whole_and_only_at_the_version_that_was_read(
    program: Program, acme: Organization
) -> None:
    path = f"organizations/{acme.public_id}/policy"
    before = program.get(path)
    assert (before.json()["document"], before.headers["ETag"]) == ({}, '"0"')
    after = program.ask("put", path, {"countries": {"deny": ["no"]}}, If_Match='"0"')
    assert (after.status_code, after.json()["document"]) == (200, {"countries": {"deny": ["NO"]}})
    assert after.headers["ETag"] == '"1"'
    late = program.ask("put", path, {}, If_Match='"0"')
    assert (late.status_code, late.json()["code"], late.json()["retry"]) == (409, "stale_version", "new_request")
    refused = launched(program)
    assert (refused.status_code, refused.json()["code"]) == (409, "policy_excludes")
    assert "in a country that a policy excludes" in refused.json()["detail"]
    assert program.ask("put", path, {}).status_code == 200
    assert launched(program).status_code == 202


def test_a_policy_that_makes_no_sense_names_its_field(program: Program, project: Project) -> None:
    path = f"projects/{project.public_id}/policy"
    answer = program.ask("put", path, {"near": {"latitude": 91, "longitude": 0, "within_ms": 5}})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/near/latitude"
    assert program.ask("put", path, {}, If_Match="mine").status_code == 422


def test_a_wish_that_contradicts_itself_is_refused(program: Program) -> None:
    answer = launched(program, placement={"strategy": "spread", "level": "site"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/placement")
