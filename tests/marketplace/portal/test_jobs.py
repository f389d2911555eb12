"""Pages of jobs: the form in both of its forms, one job with very many tasks, one task, and cancelling."""

import time
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from marketplace.access import Actor
from marketplace.contracts import claims, reversing, sweeping
from marketplace.jobs import running
from marketplace.models import Claim, Job, JobState, Organization, Project, Receipt, Task
from marketplace.portal import grids
from marketplace.receipts import writing
from tests.conftest import Fleet, Run
from tests.marketplace.jobs.conftest import Works, works
from tests.marketplace.portal.reading import faults, read
from tests.outcomes import PRICE, make_deal, make_work

pytestmark = pytest.mark.django_db

__all__ = ["works"]

FIELDS = {"name": "sweep", "offer": "h200-narvik", "command": "work $GPUMARKET_TASK", "array": "3", "gpus": "1",
          "time_limit": "30m", "retries": "1", "market": "on_demand", "key": "a key"}  # fmt: skip


def test_the_form_submits_a_job_once_and_leads_to_it(owner: Client, fleet: Fleet) -> None:
    form = read(owner.get(reverse("job-new")))
    assert (faults(form), form.value("disk")) == ([], "20G")
    checked = read(owner.post(reverse("job-new"), FIELDS | {"check": "1"}))
    # Three tasks, two attempts each, half an hour of 2.49.
    assert "$7.47" in checked.text
    assert not Job.objects.exists()
    answers = [owner.post(reverse("job-new"), FIELDS) for _ in range(2)]
    job = Job.objects.get()
    assert {answer.headers["Location"] for answer in answers} == {reverse("job", args=[job.public_id])}
    assert (job.size, job.retries, job.time_limit_s, job.most_micros) == (3, 1, 1800, 7_470_000)
    assert job.spec["command"] == "work $GPUMARKET_TASK"


def test_a_job_is_paid_by_a_contract_that_was_agreed_to_and_costs_what_its_results_did(
    owner: Client, fleet: Fleet, acme: Organization, actor: Actor, project: Project
) -> None:
    assert not read(owner.get(reverse("job-new"))).all("select", id="contract")
    deal, at = make_deal(acme), timezone.now()
    page = read(owner.get(reverse("job-new"), {"contract": deal.version.public_id}))
    assert faults(page) == []
    assert [one.attributes["value"] for one in page.all("option", selected="")].count(deal.version.public_id) == 1
    assert "Rendered frames v1 – $0.50 per task" in page.text
    refused = owner.post(reverse("job-new"), FIELDS | {"contract": "ctv_" + "a" * 20})
    assert (refused.status_code, "There is no such version" in read(refused).text) == (422, True)
    owner.post(reverse("job-new"), FIELDS | {"contract": deal.version.public_id})
    assert Job.objects.get().most_micros == 3 * PRICE

    work = make_work(deal, project, fleet.h200, actor, tasks=2, at=at)
    paid = claims.open(task=work.succeeds(0), at=at)
    for hours in (1, 3, 9):
        sweeping.advance(at=at + timedelta(hours=hours), limit=9)
    where = reverse("job", args=[work.job.public_id])
    page = read(owner.get(where))
    assert faults(page) == []
    assert "Spent $0.50" in page.text
    assert page.all("a", href=reverse("claim", args=[paid.public_id]))
    reversing.reverse(actor=deal.merchant, claim=paid, reason="It was black", at=at + timedelta(hours=9))
    assert "$0.50 given back" in read(owner.get(where)).text
    task = read(owner.get(reverse("job-task", args=[work.job.public_id, 0])))
    assert faults(task) == []
    assert "$0.50 −$0.50" in task.text
    claim = read(owner.get(reverse("claim", args=[paid.public_id])))
    assert faults(claim) == []
    assert "$0.00 paid $0.50 given back" in claim.text
    assert paid.public_id in read(owner.get(reverse("claims"), {"job": work.job.public_id})).text
    assert paid.public_id not in read(owner.get(reverse("claims"), {"job": "job_other"})).text
    overview = read(owner.get(reverse("balance")))
    assert faults(overview) == []
    assert "Given back for results" in overview.text


def test_what_is_wrong_is_told_beside_its_field(owner: Client, fleet: Fleet) -> None:
    answer = owner.post(
        reverse("job-new"), FIELDS | {"gpus": "two", "time_limit": "soon", "retries": "-1", "disk": "9"}
    )
    page = read(answer)
    assert (answer.status_code, faults(page)) == (422, [])
    assert "This is to be a whole number." in page.text
    assert "Write a whole number with s, m, h or d" in page.text
    assert "Write a whole number with M, G or T" in page.text
    assert (page.value("gpus"), page.value("disk")) == ("two", "9")
    assert not Job.objects.exists()


def test_a_file_is_told_its_lines(owner: Client, fleet: Fleet) -> None:
    page = read(owner.get(reverse("job-new") + "?as=file"))
    assert faults(page) == []
    typed = {"as": "file", "file": "offer: h200-narvik\ncommand: [a]\nretriess: 2\n", "key": "k"}
    answer = owner.post(reverse("job-new"), typed)
    assert answer.status_code == 422
    assert "line 3: There is no field “retriess”; did you mean “retries”?" in read(answer).text
    good = typed | {"file": "jobs:\n- {name: a, offer: h200-narvik, command: [a]}\n"
                            "- {name: b, offer: h200-narvik, command: [b], needs: [a]}\n"}  # fmt: skip
    assert owner.post(reverse("job-new"), good).headers["Location"] == reverse("jobs")
    assert set(Job.objects.values_list("name", "state")) == {("a", "active"), ("b", "waiting")}
    listed = read(owner.get(reverse("jobs")))
    assert faults(listed) == []
    assert "Waits for other jobs" in listed.text


def test_a_job_and_its_tasks_are_shown(owner: Client, works: Works, run_until_idle: Run) -> None:
    job = works.one(name="sweep", matrix={"LR": ["0.1", "0.2"]})
    works.go()
    works.exits(works.running(job)[1], 3)
    works.go()
    page = read(owner.get(reverse("job", args=[job.public_id])))
    assert faults(page) == []
    assert "LR=0.1" in page.text
    assert "Its command failed" in page.text
    only = read(owner.get(reverse("job", args=[job.public_id]) + "?state=failed"))
    assert "LR=0.1" not in only.text
    task = read(owner.get(reverse("job-task", args=[job.public_id, 1])))
    assert faults(task) == []
    assert "exit code 3" in task.text
    assert owner.get(reverse("job-task", args=[job.public_id, 2])).status_code == 404


def test_a_job_of_ten_thousand_tasks_is_as_many_queries_as_one_of_one_and_fast(owner: Client, works: Works) -> None:
    small, large = works.one(array=1), works.one(array=10_000)
    running.work_on(small.pk)
    counts, spent = [], []
    for job in (small, large, small, large):
        with CaptureQueriesContext(connection) as queries:
            began = time.process_time()
            answer = owner.get(reverse("job", args=[job.public_id]))
            spent.append(time.process_time() - began)
        assert answer.status_code == 200
        counts.append(len(queries))
    assert counts[2] == counts[3]
    assert spent[3] < 0.2


def test_a_result_leads_to_its_claim_verdict_and_receipt(owner: Client, works: Works) -> None:
    deal = make_deal(works.project.organization, acceptance={"window_s": 0}, disputes={"window_s": 0})
    job = works.one(contract=deal.version.public_id, array=2)
    works.go()
    works.exits(works.running(job)[0])
    works.go()
    sweeping.advance(at=timezone.now(), limit=10)
    sweeping.advance(at=timezone.now(), limit=10)
    writing.issue_due(at=timezone.now(), limit=10)
    claim, receipt = Claim.objects.get(), Receipt.objects.get()
    for path in (reverse("job", args=[job.public_id]), reverse("job-task", args=[job.public_id, 0])):
        answer = owner.get(path)
        assert faults(read(answer)) == []
        page = answer.content.decode()
        assert reverse("claim", args=[claim.public_id]) in page
        assert reverse("receipt", args=[receipt.public_id]) in page
        assert "Exit code and outputs: Passed" in page
    shown = read(owner.get(reverse("job", args=[job.public_id]))).text
    assert "$0.50" in shown, "spent is what results were paid"
    assert "of at most $1.00" in shown
    assert "Exit code and outputs" not in owner.get(reverse("job-task", args=[job.public_id, 1])).content.decode()


def test_a_job_of_many_results_is_as_many_queries_as_one_of_one(
    owner: Client, works: Works, actor: Actor, fleet: Fleet
) -> None:
    deal, counts = make_deal(works.project.organization), []
    for size in (1, 40):
        work = make_work(deal, works.project, fleet.h200, actor, tasks=size, at=timezone.now())
        for index in range(size):
            work.succeeds(index)
        running.work_on(work.job.pk)
        sweeping.advance(at=timezone.now(), limit=100)
        path = reverse("job", args=[work.job.public_id])
        owner.get(path)
        with CaptureQueriesContext(connection) as queries:
            page = owner.get(path).content.decode()
        assert page.count("Exit code and outputs: Passed") == size
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_cancelling_asks_first(owner: Client, works: Works) -> None:
    job = works.one(array=2)
    running.work_on(job.pk)
    path = reverse("job-cancel", args=[job.public_id])
    assert faults(read(owner.get(path))) == []
    assert owner.post(path).headers["Location"] == reverse("job", args=[job.public_id])
    works.go()
    assert Job.objects.get(pk=job.pk).state == JobState.CANCELLED
    assert "cannot be cancelled any more" in read(owner.get(path)).text


def test_a_stranger_finds_no_task(stranger: Client, works: Works) -> None:
    job = works.one()
    assert stranger.get(reverse("job-task", args=[job.public_id, 0])).status_code == 404
    assert Task.objects.filter(job=job).count() == 1


def test_squares_stand_in_rows() -> None:
    grid = grids.of(["succeeded"] * 26 + ["failed"])
    assert (grid.width, grid.height) == (250, 20)
    assert [(layer.state, layer.path.count("M")) for layer in grid.layers] == [("succeeded", 26), ("failed", 1)]
    assert grid.layers[1].path == "M10 10h8v8h-8z"
    assert grids.of([]).layers == []
