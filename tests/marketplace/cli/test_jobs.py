"""gpumarket job: what it asks for, what it prints where, and how it exits."""

import pytest

from tests.marketplace.cli.shop import Shop, make_problem

FILE = "name: sweep\noffer: h200-narvik\narray: 3\n"


def make_job(**changes):
    return {
        "id": "job_1", "name": "sweep", "project": {"id": "prj_1", "name": "research"}, "offer": "h200-narvik",
        "market": "on_demand", "gpus": 1, "replicas": 1, "state": "active", "reason": None, "message": "",
        "waits_for": {"why": "capacity", "message": "No GPUs are free"},
        "tasks": {"total": 3, "pending": 1, "running": 2, "verifying": 0, "succeeded": 0, "failed": 0, "cancelled": 0},
        "progress": {"percent": 0, "per_hour": 240, "seconds_left": 45},
        "cost": {"currency": "USD", "spent": "1.250000", "most": "7.470000"}, "deadline": None, "contract": None,
        "needs": [], "spec": {}, "actions": {"cancel": {"available": True, "reason": None}},
    } | changes  # fmt: skip


OVER = {"state": "failed", "reason": "tasks", "message": "1 of 3 tasks failed.", "waits_for": None,
        "progress": {"percent": 100, "per_hour": None, "seconds_left": None},
        "actions": {"cancel": {"available": False, "reason": "It is over."}},
        "tasks": {"total": 3, "pending": 0, "running": 0, "verifying": 0, "succeeded": 2, "failed": 1,
                  "cancelled": 0}}  # fmt: skip
TASK = {"index": 1, "state": "failed", "reason": "exit_code", "message": "Its command ended with exit code 3.",
        "parameters": {"LR": "0.1"}, "attempts": 2, "failures": 2, "faults": 0}  # fmt: skip


def make_try(number):
    return {"number": number, "instance": f"ins_{number}", "phase": "terminated", "state": "failed", "exit_code": 3,
            "message": "Its command ended with exit code 3.", "cost": "0.100000", "ended_at": "2026-11-26T12:00:00Z",
            "outputs": None}  # fmt: skip


class ShopWithJobs(Shop):
    """One job, which is over at the third look."""

    def __init__(self):
        super().__init__()
        self.job = make_job()
        self.looks = 0
        self.folders = []

    def answer(self, method, words, query, headers, body):
        match method, words:
            case "POST", ["jobs"] if query.get("dry_run"):
                if "offr" in body["file"]:
                    return make_problem(422, "invalid_job", errors=[
                        {"pointer": "/offr", "detail": "line 2: There is no field “offr”; did you mean “offer”?"},
                    ])  # fmt: skip
                row = {"name": "sweep", "offer": "h200-narvik", "market": "on_demand", "tasks": 3, "currency": "USD",
                       "most": "7.470000"}  # fmt: skip
                return 200, {"data": [row], "folders": self.folders}
            case "POST", ["jobs"]:
                return 201, {"data": [self.job]}
            case "GET", ["jobs"]:
                rows = [self.job] if query.get("name") in {None, self.job["name"]} else []
                return 200, {"data": rows, "next_cursor": None}
            case "GET", ["jobs", "schema"]:
                return 200, {"title": "gpumarket job file"}
            case _, ["jobs", "job_1", *rest]:
                return 200, self.about_job(rest, query)
        return super().answer(method, words, query, headers, body)

    def about_job(self, rest, query):
        match rest:
            case ["tasks"]:
                return {"data": [TASK | {"attempt": make_try(2)}], "next_cursor": None}
            case ["tasks", "1"]:
                return TASK | {"tries": [make_try(2), make_try(1)]}
            case ["tasks", "1", "logs"]:
                text = f"printed by attempt {query['attempt']}\n"
                pieces = [] if query.get("cursor") else [{"replica": 0, "offset": 0, "text": text}]
                return {"data": pieces, "next_cursor": "c", "complete": True}
            case ["cancel"]:
                self.job |= {"state": "ending"}
                return self.job
        self.looks += 1
        if self.looks > 2:
            self.job |= OVER
        return self.job


@pytest.fixture
def shop():
    shop = ShopWithJobs()
    shop.open()
    yield shop
    shop.close()


@pytest.fixture
def file(empty_home):
    path = empty_home / "job.yaml"
    path.write_text(FILE)
    return path


def test_a_file_is_submitted_and_its_id_printed(gpumarket, shop, file):
    said = gpumarket("job", "submit", str(file))
    assert (said.code, said.out) == (0, "job_1\n")
    assert "sweep: 3 tasks, it costs at most 7.47 USD." in said.err
    rehearsed, asked = shop.asked("POST", "/api/v1/jobs")
    assert rehearsed["query"] == {"dry_run": "true"}
    assert asked["body"] == {"file": FILE}
    assert asked["headers"]["Idempotency-Key"]


def test_a_dry_run_submits_nothing(gpumarket, shop, file):
    shop.folders = ["data"]
    said = gpumarket("job", "submit", "--dry-run", str(file))
    assert "sweep: 3 tasks of h200-narvik (on demand), at most 7.47 USD" in said.err
    assert "It would send the folder data." in said.err
    assert len(shop.asked("POST", "/api/v1/jobs")) == 1


def test_what_is_wrong_in_a_file_is_told_by_its_line(gpumarket, shop, file):
    file.write_text("name: sweep\noffr: h200\n")
    said = gpumarket("job", "submit", str(file))
    assert said.code == 2
    assert "Why: line 2: There is no field “offr”; did you mean “offer”?" in said.err
    assert gpumarket("job", "submit", "nowhere.yaml").code == 2


def test_waiting_ends_with_the_job_and_fails_with_it(gpumarket, shop, file):
    said = gpumarket("job", "submit", "--wait", str(file))
    assert said.code == 1
    assert "sweep failed. 1 of 3 tasks failed." in said.err


def test_jobs_are_listed_and_shown(gpumarket, shop):
    listed = gpumarket("job", "ls")
    assert listed.out.splitlines()[1].split() == [
        "sweep", "job_1", "active", "0/3", "2", "0", "45", "s", "1.25", "USD", "7.47", "USD",
    ]  # fmt: skip
    shown = gpumarket("job", "show", "sweep").out
    assert "0 of 3 tasks done, 2 running, 240 an hour, 45 s left" in shown
    assert "1.25 USD of at most 7.47 USD" in shown
    assert "No GPUs are free" in shown
    shop.looks = 9
    assert "task 1: Its command ended with exit code 3." in gpumarket("job", "show", "job_1").out
    task = gpumarket("job", "show", "job_1", "--task", "1").out
    assert "LR = 0.1" in task
    assert "attempt 2: failed, exit code 3, ins_2 (terminated)" in task
    assert gpumarket("job", "show", "nobody").code == 4
    assert gpumarket("job", "show", "job_1", "--json").json["id"] == "job_1"


def test_the_log_of_a_task_is_the_last_attempts_own(gpumarket, shop):
    assert gpumarket("job", "logs", "job_1").code == 2
    assert gpumarket("job", "logs", "job_1", "--task", "1").out == "printed by attempt 2\n"
    assert gpumarket("job", "logs", "-f", "job_1", "--task", "1").out == "printed by attempt 2\n"
    assert gpumarket("job", "logs", "job_1", "--task", "1", "--attempt", "1").out == "printed by attempt 1\n"


def test_a_job_is_cancelled(gpumarket, shop):
    said = gpumarket("job", "cancel", "sweep")
    assert (said.code, shop.job["state"]) == (0, "ending")
    assert "sweep is ending" in said.err


def test_the_schema_is_printed_for_editors(gpumarket, shop):
    assert gpumarket("job", "schema").json == {"title": "gpumarket job file"}
