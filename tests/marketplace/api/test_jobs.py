"""Jobs over HTTP: submitted once for a key, told by line what is wrong, followed to the end."""

import pytest
from django.utils import timezone

from marketplace.contracts import sweeping
from marketplace.models import Claim, Job
from tests.marketplace.api.program import Program, problem_of
from tests.marketplace.jobs.conftest import Works, works
from tests.outcomes import make_deal

__all__ = ["works"]
pytestmark = pytest.mark.django_db

FILE = "name: sweep\noffer: h200-narvik\ncommand: [work]\nmatrix: {LR: [0.1, 0.2]}\ntime_limit: 1h\n"


def test_a_job_is_submitted_once_followed_and_collected(program: Program, works: Works) -> None:
    first = program.post("jobs", {"file": FILE}, key="k")
    assert first.status_code == 201
    (job,) = first.json()["data"]
    assert program.post("jobs", {"file": FILE}, key="k").json() == first.json()
    problem_of(program.post("jobs", {"file": FILE + "retries: 1\n"}, key="k"), 422, "idempotency_key_reused")
    assert Job.objects.count() == 1
    works.go()
    seen = program.get(f"jobs/{job['id']}").json()
    assert (seen["state"], seen["tasks"]["running"], seen["cost"]["most"]) == ("active", 2, "4.980000")
    assert (seen["spec"]["matrix"], seen["needs"]) == ({"LR": ["0.1", "0.2"]}, [])
    node = works.fleet.nodes["h200-1"]
    node.prints("hello\n")
    row = Job.objects.get()
    works.exits(works.running(row)[0])
    works.exits(works.running(row)[1], 5)
    works.go()
    over = program.get(f"jobs/{job['id']}").json()
    assert (over["state"], over["reason"], over["actions"]["cancel"]["available"]) == ("failed", "tasks", False)
    (failed,) = program.get(f"jobs/{job['id']}/tasks?state=failed").json()["data"]
    assert (failed["index"], failed["parameters"], failed["attempt"]["exit_code"]) == (1, {"LR": "0.2"}, 5)
    task = program.get(f"jobs/{job['id']}/tasks/0").json()
    assert [(one["number"], one["state"], one["phase"]) for one in task["tries"]] == [(1, "succeeded", "terminated")]
    logs = [program.get(f"jobs/{job['id']}/tasks/{index}/logs").json() for index in (0, 1)]
    assert sorted("".join(piece["text"] for piece in log["data"]) for log in logs) == ["", "hello\n"]
    assert all(log["complete"] for log in logs)
    assert program.get(f"jobs/{job['id']}/outputs").json()["data"] == []
    problem_of(program.get(f"jobs/{job['id']}/tasks/2"), 404, "not_found")
    problem_of(program.get(f"jobs/{job['id']}/tasks/0/logs?attempt=2"), 404, "not_found")
    problem_of(program.post(f"jobs/{job['id']}/cancel"), 409, "wrong_state")


def test_a_task_tells_what_became_of_its_result(program: Program, works: Works) -> None:
    deal = make_deal(works.project.organization, acceptance={"window_s": 0}, disputes={"window_s": 0})
    job = works.one(contract=deal.version.public_id, array=2)
    works.go()
    works.exits(works.running(job)[0])
    works.go()
    for _ in range(2):
        sweeping.advance(at=timezone.now(), limit=10)
    claim = Claim.objects.get()
    rows = program.get(f"jobs/{job.public_id}/tasks").json()["data"]
    whole, none = sorted(rows, key=lambda row: int(row["index"]))
    assert (none["claim"], whole["claim"]["id"], whole["claim"]["state"]) == (None, claim.public_id, "settled")
    assert [(row["verifier"], row["result"]) for row in whole["claim"]["verdicts"]] == [("outputs", "pass")]
    assert program.get(f"jobs/{job.public_id}/tasks/0").json()["claim"] == whole["claim"]
    cost = program.get(f"jobs/{job.public_id}").json()["cost"]
    assert (cost["spent"], cost["most"], whole["claim"]["paid"]) == ("0.500000", "1.000000", "0.500000")
    alone = program.get(f"claims/{claim.public_id}").json()
    assert whole["claim"]["given_back"] == alone["given_back"]["amount"] == "0.000000"
    assert whole["claim"].keys() - {"receipts"} <= alone.keys(), "one word for a thing, wherever a claim is shown"


def test_a_dry_run_tells_the_most_and_the_folders(program: Program, works: Works) -> None:
    answer = program.post("jobs?dry_run=true", {"file": FILE + "inputs: data\n"}, key="k").json()
    assert answer["folders"] == ["data"]
    assert [(row["name"], row["tasks"], row["most"]) for row in answer["data"]] == [("sweep", 2, "4.980000")]
    assert not Job.objects.exists()


def test_what_is_wrong_is_told_by_pointer_and_line(program: Program, works: Works) -> None:
    body = {"file": "offer: h200-narvik\ncommand: [a]\nretriess: 2\ngpus: none\n"}
    document = problem_of(program.post("jobs", body, key="k"), 422, "invalid_job")
    assert document["errors"] == [
        {"pointer": "/retriess", "detail": "line 3: There is no field “retriess”; did you mean “retries”?"},
        {"pointer": "/gpus", "detail": "line 4: This is to be a whole number."},
    ]
    sent = {"jobs": [{"offer": "h200-narvik", "command": ["a"], "gpus": 9}]}
    (fault,) = problem_of(program.post("jobs", sent, key="k"), 422, "invalid_job")["errors"]
    assert fault["pointer"] == "/jobs/0/gpus"
    for wrong in ({}, {"file": FILE, "jobs": []}, {"file": 3}, {"jobs": "x"}, {"file": FILE, "folders": {"a": "b"}}):
        problem_of(program.post("jobs", wrong, key="k"), 422, "invalid_request")
    problem_of(program.post("jobs", {"jobs": [{"offer": "a", "env": {"A": "\ud800"}}]}, key="k"), 422, "invalid_job")
    assert not Job.objects.exists()
