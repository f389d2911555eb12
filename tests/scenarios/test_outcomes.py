"""Real work by its outcome, end to end: what is right is paid, what is wrong or disputed is not, and all is proved.

24 tasks by default; `TASKS=200 uv run pytest tests/scenarios/test_outcomes.py` takes them all, each a few seconds long.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil

from tests.scenarios.conftest import ROOT, Market, plain_environment

TASKS = int(os.environ.get("TASKS", "24"))
ROUNDS = 300 if TASKS >= 200 else 5
WRONG = (TASKS // 8, TASKS // 2)
DISPUTED = TASKS // 3
CONTESTABLE = {"verified", "auto_accepted"}
PRICE_MICROS = 30_000
WITHIN_S = 120 + 6 * TASKS

# The trace of a power of a matrix that only the task's number decides.
COMPUTE = f"""
import os
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import numpy
def trace(index):
    matrix = numpy.random.default_rng(index).random((160, 160))
    for _ in range({ROUNDS}):
        matrix = matrix @ matrix.T
        matrix /= numpy.abs(matrix).max()
    return round(float(numpy.trace(matrix)), 6)
"""
TASK = f"""{COMPUTE}
import json, time
time.sleep(4)  # So that a node that is killed while it runs has something to lose.
index = int(os.environ["GPUMARKET_TASK"])
found = trace(index) + (1 if index in {WRONG} else 0)
json.dump({{"task": index, "trace": found}}, open("result.json", "w"))
print("computed", index)
"""
CHECK = f"""{COMPUTE}
import json, sys
said = json.load(open("result.json"))
sys.exit(0 if said["trace"] == trace(said["task"]) else 1)
"""
# Each of these does what its name says; none of them answers.
MISBEHAVING = ("passes", "network", "hangs", "disk", "killed")
MISBEHAVES = """
import json, os, signal, socket, sys, time
what = json.load(open("result.json"))["what"]
if what == "network":
    for address in (("127.0.0.1", PORT), ("192.0.2.1", 80)):
        try:
            socket.create_connection(address, timeout=1)
            sys.exit(0)  # It would pass, and be paid.
        except OSError:
            pass
    sys.exit(7)
if what == "hangs":
    time.sleep(600)
if what == "disk":
    with open("filler", "wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * (1 << 20))
            time.sleep(0.005)
if what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
try:
    open("result.json", "w").write("changed")  # Its own copy: nobody else's bytes.
except OSError:
    pass
"""


def selling(check: str, verifier: dict[str, Any]) -> str:
    """Return what lets a supplier sell tasks that this command of the customer's checks; its windows are short."""
    return f"""
from django.utils import timezone
from marketplace import demo_products
from marketplace.access import person
from marketplace.contracts import offering
from marketplace.models import Membership, Organization, User
at = timezone.now()
merchant = person(User.objects.get(email="supplier@example.com"))
owner = User.objects.get(email="owner@example.com")
terms = demo_products.COMMON | demo_products.PRODUCTS["Checked tasks"]
terms["acceptance"] = {{"window_s": 5, "on_silence": "accept"}}
terms["disputes"] = terms["disputes"] | {{"window_s": 40}}
terms["retries"] = 0
terms["verifier"] |= {verifier!r}
seller = Organization.objects.get(memberships__user=merchant.user, is_supplier=True)
version = offering.draft(actor=merchant, seller=seller, title="Traces", terms=terms, at=at)
offering.offer(actor=merchant, version=version, at=at)
offering.approve(actor=person(User.objects.get(email="manager@example.com")), version=version, at=at)
offering.accept(
    actor=person(owner), version=version, organization=owner.memberships.get().organization, sha256=version.sha256,
    at=at, check_command={[sys.executable, "-c", check]!r},
)
print(version.public_id)
"""


DECIDE = """
from django.utils import timezone
from marketplace.access import person
from marketplace.contracts import disputing
from marketplace.models import ClaimDispute, User
judge = User.objects.create_user("judge@example.com", is_staff=True, is_superuser=True)
dispute = ClaimDispute.objects.get(public_id={dispute!r})
disputing.resolve(actor=person(judge), dispute=dispute, due_bps=0, note="The customer is right.", at=timezone.now())
"""


def manage(market: Market, *words: str) -> str:
    """Run one of the project's own commands in the environment of the marketplace."""
    environ = plain_environment() | json.loads((market.home / "environment.json").read_text())
    environ["GPUMARKET_HOME"] = str(market.home)
    argv = [sys.executable, str(ROOT / "manage.py"), *words]
    done = subprocess.run(argv, env=environ, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def until(found: Callable[[], Any], what: str) -> Any:
    limit = time.monotonic() + WITHIN_S
    while not (answer := found()):
        assert time.monotonic() < limit, f"{what}: not within {WITHIN_S} s"
        time.sleep(0.5)
    return answer


def every(market: Market, path: str) -> list[dict[str, Any]]:
    """Return all rows of a list of the API."""
    rows, cursor = [], ""
    while True:
        page = market.get(f"{path}&limit=100{cursor}")
        rows += page["data"]
        if not page["next_cursor"]:
            return rows
        cursor = f"&cursor={page['next_cursor']}"


def kill_node(market: Market, job: str) -> str:
    """Kill the agent of a node that works for a job, and all that runs there; return the node's name."""
    name = until(
        lambda: market.query(
            """
            SELECT node.name FROM provisioning_node node JOIN provisioning_assignment assignment ON node_id = node.id
            JOIN marketplace_attempt attempt USING (instance_id) JOIN marketplace_job job ON job.id = attempt.job_id
            WHERE job.public_id = %s AND observed = 'running' LIMIT 1
            """,
            [job],
        ),
        "a task that runs",
    )[0][0]
    # Stopped first: a node that loses its power has nobody left who notes that a command was killed. Twice, because
    # what began while the first were stopped would note it.
    for number in (signal.SIGSTOP, signal.SIGSTOP, signal.SIGKILL):
        for process in _processes_of(market, name):
            with suppress(psutil.Error):
                process.send_signal(number)
    return str(name)


def _processes_of(market: Market, name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = " ".join([*process.cmdline(), process.cwd()])
            if str(market.home) in line and name in line:
                found.append(process)
    return found


def test_what_is_right_is_paid_and_what_is_wrong_lost_or_disputed_is_not(market: Market, tmp_path: Path) -> None:
    version = manage(market, "shell", "--verbosity", "0", "-c", selling(CHECK, {})).split()[-1]
    order = {
        "name": "traces", "offer": "h200-teesside", "command": [sys.executable, "-c", TASK], "array": TASKS,
        "outputs": ["result.json"], "contract": version, "time_limit": "20m",
    }  # fmt: skip
    answer = market.post("/jobs", {"jobs": [order]})
    assert answer.status_code in {201, 202}, answer.text
    job = str(answer.json()["data"][0]["id"])
    kill_node(market, job)

    claims = f"/claims?job={job}"
    disputed = until(
        lambda: [
            row
            for row in every(market, claims)
            if row["task"] == DISPUTED and (row["state"] in CONTESTABLE or row["closed_at"])
        ],
        "the claim that is disputed",
    )[0]
    assert disputed["state"] in CONTESTABLE
    answer = market.post(f"/claims/{disputed['id']}/disputes", {"reason": "wrong_result", "text": "Not what I asked"})
    assert answer.status_code == 200, answer.text
    (dispute,) = answer.json()["disputes"]
    manage(market, "shell", "--verbosity", "0", "-c", DECIDE.format(dispute=dispute["id"]))

    ended = until(lambda: market.get(f"/jobs/{job}")["state"] in {"succeeded", "failed"}, "the job")
    assert ended
    rows = until(
        lambda: (found := every(market, claims)) and all(row["closed_at"] for row in found) and found, "every claim"
    )
    without_claim = market.query(
        """
        SELECT task.index, attempt.state, attempt.reason, attempt.message FROM marketplace_attempt attempt
        JOIN marketplace_task task ON task.id = task_id JOIN marketplace_job job ON job.id = task.job_id
        WHERE job.public_id = %s AND NOT EXISTS (SELECT FROM marketplace_claim claim WHERE claim.task_id = task.id)
        """,
        [job],
    )
    assert without_claim == []
    by_task = {row["task"]: row for row in rows}
    assert sorted(by_task) == list(range(TASKS))
    states = Counter(row["state"] for row in rows)
    assert states == {"settled": TASKS - 3, "failed": 2, "rejected": 1}
    assert {task for task, row in by_task.items() if row["state"] == "failed"} == set(WRONG)
    assert sum(Decimal(row["paid"]["amount"]) for row in rows) * 1_000_000 == (TASKS - 3) * PRICE_MICROS

    faults = market.query(
        """
        SELECT count(*) FROM marketplace_attempt attempt JOIN marketplace_job job ON job.id = job_id
        WHERE job.public_id = %s AND attempt.state = 'faulted'
        """,
        [job],
    )
    assert faults[0][0] > 0, "the killed node cost attempts"
    escrow = market.query(
        "SELECT amount_micros, posted_micros, voided_micros, state FROM billing_escrow WHERE resource_id = %s", [job]
    )
    whole, due = TASKS * PRICE_MICROS, (TASKS - 3) * PRICE_MICROS
    assert escrow == [(whole, due, whole - due, "closed")]
    taken = market.query("SELECT sum(amount_micros), count(*) FROM billing_outcome WHERE kind = 'outcome'")
    assert taken == [(due, TASKS - 3)]
    assert "The books balance" in manage(market, "check_books", "--recompute")

    _verify_offline(market, tmp_path)


def test_a_verifier_that_hangs_fills_its_disk_is_killed_or_reaches_out_pays_nothing(market: Market) -> None:
    """Real commands on real agents: what gives no answer has the rule of silence, which here pays nothing."""
    port = market.client.base_url.port
    check = MISBEHAVES.replace("PORT", str(port))
    sold = selling(check, {"timeout_s": 6, "runs": 1, "on_silence": "fail"})
    version = manage(market, "shell", "--verbosity", "0", "-c", sold).split()[-1]
    write = "import json, os; json.dump({'what': os.environ['WHAT']}, open('result.json', 'w'))"
    order = {
        "name": "misbehaving", "offer": "h200-teesside", "command": [sys.executable, "-c", write],
        "parameters": [{"WHAT": what} for what in MISBEHAVING], "outputs": ["result.json"], "contract": version,
        "time_limit": "10m", "disk": "64M",
    }  # fmt: skip
    answer = market.post("/jobs", {"jobs": [order]})
    assert answer.status_code in {201, 202}, answer.text
    job = str(answer.json()["data"][0]["id"])

    def closed() -> list[dict[str, Any]]:
        rows = every(market, f"/claims?job={job}")
        return rows if len(rows) == len(MISBEHAVING) and all(row["closed_at"] for row in rows) else []

    rows = {MISBEHAVING[row["task"]]: row for row in until(closed, "every claim")}
    assert {what: row["state"] for what, row in rows.items()} == {
        "passes": "settled", **dict.fromkeys(MISBEHAVING[1:], "failed"),
    }  # fmt: skip
    tried = market.query(
        """
        SELECT task.index, run.result, instance.exit_code, verdict.verifier, shared.node_id IS NOT NULL,
            (SELECT string_agg(message, ' ') FROM provisioning_instanceevent WHERE instance_id = instance.id)
        FROM marketplace_verifierrun run JOIN marketplace_claim claim ON claim.id = run.claim_id
        JOIN marketplace_task task ON task.id = claim.task_id JOIN marketplace_job job ON job.id = task.job_id
        JOIN provisioning_instance instance ON instance.id = run.instance_id
        JOIN marketplace_attempt attempt ON attempt.task_id = task.id AND attempt.state <> 'faulted'
        JOIN provisioning_instance attempted ON attempted.id = attempt.instance_id
        JOIN marketplace_verdict verdict ON verdict.claim_id = claim.id
        LEFT JOIN provisioning_assignment own ON own.instance_id = run.instance_id
        LEFT JOIN provisioning_assignment shared ON shared.instance_id = attempted.id AND shared.node_id = own.node_id
        WHERE job.public_id = %s AND run.result <> 'lost' ORDER BY task.index
        """,
        [job],
    )
    assert [row[:4] for row in tried] == [
        (0, "pass", 0, "command"), (1, "crashed", 7, "silence"), (2, "timed_out", tried[2][2], "silence"),
        (3, "crashed", tried[3][2], "silence"), (4, "crashed", 137, "silence"),
    ]  # fmt: skip
    assert tried[3][2] in {137, 143}, "it may hear SIGTERM in the moment before it is killed"
    filled = [row[0] for row in tried if re.search(r"filled its disk share: [0-9.]+ of 64.0 MiB", row[5])]
    assert filled == [MISBEHAVING.index("disk")]
    assert not any(row[4] for row in tried), "each on another host than its task"


def _verify_offline(market: Market, folder: Path) -> None:
    """Download all receipts and verify them without the database; a changed byte is refused."""
    environ = plain_environment() | {"GPUMARKET_HOME": str(market.home)}
    program = [str(Path(sys.executable).with_name("gpumarket"))]
    issued = "SELECT count(*) FROM marketplace_receipt"
    until(lambda: market.query(issued)[0][0] >= TASKS, "a receipt of each claim")
    subprocess.run(
        [*program, "receipts", "download", "-o", str(folder)], env=environ, cwd=ROOT, check=True, capture_output=True
    )
    alone = plain_environment() | {"GPUMARKET_HOME": str(folder / "nothing")}
    verify = [*program, "verify", str(folder), "--json"]
    done = subprocess.run(verify, env=alone, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads(done.stdout)["documents"]) > TASKS, "each receipt, and the head of their chain"
    one = next(path for path in sorted(folder.iterdir()) if "30000" in path.read_text())
    one.write_text(one.read_text().replace("30000", "30001", 1))
    done = subprocess.run(verify, env=alone, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
