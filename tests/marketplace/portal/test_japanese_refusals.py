"""Who reads Japanese is refused in Japanese: files of jobs, what these need, quotas, budgets, periods of revenue."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.test import Client
from django.urls import reverse
from django.utils import translation

from marketplace import budgets
from marketplace.access import Actor
from marketplace.jobs import running, timeline
from marketplace.models import Job, Organization, Project, RevenuePeriod, User
from marketplace.revenue_share import closing, periods
from provisioning import told
from provisioning.models import Quota
from tests.agreed import share_revenue
from tests.conftest import Fleet
from tests.marketplace.jobs.conftest import Works, works
from tests.marketplace.portal.conftest import browser
from tests.marketplace.portal.reading import Page, faults, read

pytestmark = pytest.mark.django_db
__all__ = ["works"]

ENGLISH = re.compile(r"[A-Za-z]{3,}(?: [a-z]{2,}){2,}")
JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")
MARCH = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
JOB = "offer: h200-narvik\ncommand: [work]\n"
TWO = "jobs:\n- {name: a, offer: h200-narvik, command: [a], needs: [b]}\n"
FILES = {
    "unknown field": JOB + "retriess: 2\n",
    "no YAML": "offer: [h200-narvik\n",
    "empty": "# nothing\n",
    "an alias": JOB + "env: &a {A: 1}\n",
    "twice": JOB + "offer: x\n",
    "of the wrong kind": JOB + "gpus: two\nretries: -1\ntime_limit: soon\n",
    "missing": "command: [work]\n",
    "two kinds": JOB + "array: 2\nmatrix: {A: [1]}\n",
    "no such offer": "offer: nowhere\ncommand: [work]\n",
    "too many GPUs": JOB + "gpus: 99\n",
    "a past deadline": JOB + "deadline: 2020-01-01T00:00Z\n",
    "cost without a limit": JOB + "max_cost: 5\n",
    "cheapest without a deadline": JOB + "market: cheapest\n",
    "inputs not uploaded": JOB + "inputs: data\n",
    "inputs that are missing": JOB + f"inputs: {'a' * 64}\n",
    "a circle": TWO + "- {name: b, offer: h200-narvik, command: [b], needs: [a]}\n",
    "an unknown need": TWO,
    "a contract of nobody": JOB + "time_limit: 1h\ncontract: ctv_" + "a" * 20 + "\n",
    "no such reservation": JOB + "market: reserved\nreservation: rsv_x\n",
    "no such volume": JOB + "volumes: [{volume: mine, path: /data}]\n",
}


@pytest.fixture
def japanese(alice: User, acme: Organization) -> Client:
    """Alice's browser, which asks for Japanese."""
    return browser(alice, language="ja")


def assert_japanese(page: Page, *, place: str) -> None:
    """What the page says at this place is Japanese; YAML's own words are its own."""
    found = [one.text for one in page.elements if place in (one.attributes.get("class") or "").split()]
    assert found
    for text in found:
        assert JAPANESE.search(text), text
        assert not ENGLISH.search(text.replace("gpumarket job submit", "")), text


@pytest.mark.parametrize("name", FILES)
def test_a_job_file_is_refused_in_japanese(japanese: Client, fleet: Fleet, name: str) -> None:
    answer = japanese.post(reverse("job-new"), {"as": "file", "file": FILES[name], "key": "k"})
    assert answer.status_code == 422
    if name != "no YAML":
        assert_japanese(read(answer), place="notice-error")
    assert not Job.objects.exists()


def test_the_fields_of_the_form_are_refused_in_japanese(japanese: Client, fleet: Fleet) -> None:
    typed = {"offer": "h200-narvik", "command": "work", "gpus": "two", "time_limit": "soon", "key": "k"}
    page = read(japanese.post(reverse("job-new"), typed))
    assert faults(page) == []
    assert_japanese(page, place="field-error")


def test_what_a_sweep_was_refused_is_read_in_japanese_with_its_numbers(
    japanese: Client, works: Works, acme: Organization, project: Project, actor: Actor
) -> None:
    Quota.objects.filter(organization=acme).update(limit=0)
    job = works.one(name="later")
    running.work_on(job.pk)
    job.refresh_from_db()
    assert (job.why, "You asked for 1 more GPUs" in job.hindrance) == ("quota", True)
    where = reverse("job", args=[job.public_id])
    page = read(japanese.get(where))
    assert faults(page) == []
    assert_japanese(page, place="notice")
    Quota.objects.filter(organization=acme).update(limit=100)
    budgets.change(actor=actor, owner=project, organization=acme, amount=1_000_000, hourly_micros=None)
    with translation.override("en"):  # As a worker does, which no request has left its language to.
        running.work_on(job.pk)
    job.refresh_from_db()
    assert (job.why, "monthly budget of the project" in job.hindrance) == ("budget", True)
    page = read(japanese.get(where))
    assert_japanese(page, place="notice")
    assert project.name in page.text
    assert "$1.00" in page.text


@pytest.mark.parametrize("message", ["The order is odd.", "Running", "All GPUs of nobody.", ""])
def test_what_is_no_text_of_ours_stays_as_it_is(message: str) -> None:
    with translation.override("ja"):
        if message != "Running":
            assert told.refused(message) == message
        project = told.refused("A monthly budget of the project Running is used up.")
    assert "Running" in project
    assert JAPANESE.search(project)


@pytest.mark.parametrize("name", ["Dr. Rossi", "Running", "A. B. Is used up."])
def test_the_name_of_somebody_s_own_is_in_the_japanese_as_they_wrote_it(name: str) -> None:
    with translation.override("ja"):
        budget = told.refused(f"A monthly budget of the project {name} is used up.")
        cancelled = told.shown(timeline.CANCELLED(who=name))
    assert name in budget
    assert name in cancelled
    assert not ENGLISH.search(budget.replace(name, ""))
    assert not ENGLISH.search(cancelled.replace(name, ""))


def test_two_refusals_one_after_the_other_are_both_read_in_japanese() -> None:
    both = "It has no place in service now, even if all GPUs there were free. There is no such offer."
    with translation.override("ja"):
        assert not ENGLISH.search(told.refused(both))
    assert told.refused(both) == both


@pytest.fixture
def period(alice: User, acme: Organization, charlie: User) -> Iterator[RevenuePeriod]:
    with time_machine.travel(MARCH, tick=False):
        seller = Organization.objects.get(name="Other")
        Organization.objects.filter(pk=seller.pk).update(is_supplier=True)
        seller.refresh_from_db()
        share_revenue(seller, acme, alice, MARCH)
        periods.open_due(at=MARCH, limit=9)
        yield RevenuePeriod.objects.get()


@pytest.mark.parametrize(
    "typed",
    [
        {"revenue": ""},
        {"revenue": "-1"},
        {"revenue": "much"},
        {"csv": "name,amount\na,1"},
        {"csv": "label,amount\na,1,2"},
        {"csv": "label,amount\na,much"},
        {"csv": "label,amount\n,1"},
    ],
)
def test_a_statement_is_refused_in_japanese(japanese: Client, period: RevenuePeriod, typed: dict[str, str]) -> None:
    answer = japanese.post(reverse("revenue-period", args=[period.public_id]), typed)
    assert answer.status_code == 422
    assert_japanese(read(answer), place="notice-error")


def test_a_closed_period_says_so_in_japanese(japanese: Client, period: RevenuePeriod) -> None:
    assert closing.close_due(at=period.due_at, limit=1) == 1
    assert closing.close_due(at=period.final_at + timedelta(days=1), limit=1) == 1
    answer = japanese.post(reverse("revenue-period", args=[period.public_id]), {"revenue": "5"})
    assert answer.status_code == 409
    page = read(answer)
    assert "2026-03" in page.text
    assert_japanese(page, place="notice-error")
