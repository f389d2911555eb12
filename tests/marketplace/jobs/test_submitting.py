"""Submitting: what is refused is told by line and leaves nothing; a thousand tasks are one call."""

from functools import partial

import pytest
from django.db import transaction
from django.utils import timezone

from billing.models import Escrow
from marketplace import rentals, spot_terms
from marketplace.access import Actor
from marketplace.errors import Conflict, ProjectSuspended
from marketplace.jobs import spec, submitting
from marketplace.jobs.spec import BadSpec
from marketplace.models import AuditEntry, Job, JobDependency, Offer, Project, Task
from provisioning import artifacts
from provisioning.agent import manifest
from provisioning.models import Instance
from tests.conftest import Fleet, Storage
from tests.marketplace.jobs.conftest import Works
from tests.outcomes import make_deal

pytestmark = pytest.mark.django_db

BASE = "offer: h200-narvik\ncommand: [a]\n"


def refused(works: Works, text: str) -> str:
    with pytest.raises(BadSpec) as refusal:
        works.submit(text)
    assert (Job.objects.count(), Task.objects.count(), AuditEntry.objects.filter(verb="job.submit").count()) == (
        0,
        0,
        0,
    )
    return str(refusal.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("offer: nowhere\ncommand: [a]\n", "line 1: There is no such offer."),
        ("offer: h200-narvik\n", "line 1: Say what to run, as a list of the program and its arguments."),
        (f"{BASE}gpus: 9\n",
         "line 3: A replica runs on one node, and a node of H200 in Narvik has 8 GPUs; ask for replicas."),
        (f"{BASE}gpus: 5\nreplicas: 3\n",
         "line 4: 3 × 5 GPUs are larger than the whole site of H200 in Narvik: even if all of its nodes "
         "were empty, there would be room for 2 × 5. 2 replicas would fit now."),
        (f"{BASE}image: a.example/b:1\n", "line 3: H200 in Narvik runs commands without an image; leave it out."),
        (f"{BASE}market: cheapest\ntime_limit: 1h\n",
         "line 1: To wait for a lower price it has to know its deadline and its time limit."),
        (f"{BASE}market: spot\n", "line 1: H200 in Narvik is not sold by auction."),
        (f"{BASE}max_cost: 5\n", "line 3: A limit of cost needs a time limit, or one attempt could pass it."),
        (f"{BASE}max_cost: 1\ntime_limit: 1h\n",
         "line 3: One attempt may cost more than that: its time limit at its price."),
        (f"{BASE}reservation: rsv_aaaaaaaaaaaaaaaaaaaa\nmarket: reserved\n",
         "line 3: The project has no such reservation."),
        (f"{BASE}volumes:\n- {{volume: data, path: /data}}\n", "line 3: The project has no volume data."),
        (f"{BASE}inputs: data\n", "line 3: The folder data was not uploaded: gpumarket job submit does that."),
        (f"{BASE}inputs: '{'0' * 64}'\n", f"line 3: The project has no manifest {'0' * 64}; upload the folder first."),
        (f"{BASE}needs: [other]\n", "line 3: There is no job other."),
        (f"{BASE}contract: ctv_aaaaaaaaaaaaaaaaaaaa\n", "line 3: There is no such version of a contract."),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_by_its_line(works: Works, text: str, told: str) -> None:
    assert refused(works, text) == told


def test_inputs_that_are_larger_than_the_disk_are_refused_before_anything_starts(works: Works) -> None:
    at, data = timezone.now(), b"x" * ((1 << 20) + 1)
    keep = partial(artifacts.keep, project_id=works.project.pk, at=at)
    folder = keep(data=manifest.written([manifest.Entry("a", keep(data=data), len(data), 0o644)]))
    told = "line 4: Its inputs alone are more than that; give it a larger disk."
    assert refused(works, f"{BASE}inputs: '{folder}'\ndisk: 1M\n") == told
    (job,) = works.submit(f"{BASE}inputs: '{folder}'\ndisk: 2M\n")
    works.look()
    assert works.running(job)[0].instance.disk_bytes == 2 << 20


def test_work_that_is_paid_by_its_result_needs_a_time_limit_and_keeps_to_the_retries_of_its_terms(works: Works) -> None:
    contract = make_deal(works.project.organization, retries=1).version.public_id
    text = f"{BASE}contract: {contract}\n"
    assert refused(works, text) == "line 1: Work that is paid by its result needs a time limit."
    told = "line 5: Its contract lets it be tried again 1 times at most."
    assert refused(works, f"{text}time_limit: 1h\nretries: 2\n") == told
    (job,) = works.submit(f"{text}time_limit: 1h\nretries: 1\n")
    assert (job.time_limit_s, job.retries) == (3600, 1)


def test_a_job_names_the_counter_by_which_its_contract_pays(works: Works) -> None:
    unit = {"name": "token", "per": 1000, "price_micros": 10, "most": 1_000_000}
    measured = {"kind": "counter", "name": "tokens_total", "most_per_s": 1000}
    deal = make_deal(works.project.organization, kind="per_unit", unit=unit, measured=measured)
    text = f"{BASE}time_limit: 1h\ncontract: {deal.version.public_id}\n"
    other = f"{text}counters: {{port: 8000, names: [requests_total]}}\n"
    for unread in (text, other):
        assert "pays by the counter tokens_total: name it under “counters”." in refused(works, unread)
    assert "line 5: There is no field “most_per_s”." in refused(
        works, f"{text}counters: {{port: 8000, names: [a], most_per_s: 1}}\n"
    )
    works.submit(f"{text}counters: {{port: 8000, names: [tokens_total]}}\n")
    works.look()
    read = Instance.objects.get().counters
    assert read == {"port": 8000, "path": "/metrics", "names": ["tokens_total"], "most_per_s": 0}


def test_what_nobody_could_verify_is_refused_before_anything_is_set_aside(works: Works, storage: Storage) -> None:
    again = {"kind": "rerun", "rate_bps": 1000, "timeout_s": 60, "runs": 1, "on_silence": "fail"}
    deal = make_deal(works.project.organization, verifier=again)
    text = f"{BASE}time_limit: 1h\ncontract: {deal.version.public_id}\n"
    storage.make("data")
    assert "no volumes of yours" in refused(works, f"{text}volumes:\n- {{volume: data, path: /data}}\n")
    Offer.objects.update(supplier=deal.seller)
    assert "belong to you, or to somebody who earns by this contract" in refused(works, text)
    counted = make_deal(works.project.organization, evidence=["counter"])
    assert "wants readings of counters" in refused(
        works, f"{BASE}time_limit: 1h\ncontract: {counted.version.public_id}\n"
    )
    assert not Escrow.objects.exists()


def test_a_circle_of_needs_is_named(works: Works) -> None:
    job = "- {{name: {0}, offer: h200-narvik, command: [a], needs: [{1}]}}\n"
    text = "jobs:\n" + job.format("a", "b") + job.format("b", "c") + job.format("c", "a")
    told = refused(works, text)
    assert "These jobs wait for each other: " in told
    assert (told[:5], told.count("→")) == ("line ", 3)


def test_a_job_that_needs_itself_or_what_failed_is_refused(works: Works) -> None:
    assert "wait for each other: a → a" in refused(
        works, "jobs:\n- {name: a, offer: h200-narvik, command: [a], needs: [a]}"
    )
    twice = "jobs:\n" + "- {name: a, offer: h200-narvik, command: [a]}\n" * 2
    assert "Several jobs are named a." in refused(
        works, twice + "- {name: b, offer: h200-narvik, command: [a], needs: [a]}"
    )


def test_an_earlier_job_is_needed_by_its_id(works: Works) -> None:
    first = works.one()
    second = works.one(needs=[first.public_id])
    assert JobDependency.objects.get(job=second).needs == first
    assert (second.state, first.state) == ("waiting", "active")


def test_a_thousand_tasks_are_one_call_and_few_statements(works: Works, django_assert_max_num_queries) -> None:  # type: ignore[no-untyped-def]
    at = timezone.now()
    specs = spec.from_values([{"offer": "h200-narvik", "command": ["a"], "array": 1000}], at=at)
    with django_assert_max_num_queries(25):
        submitting.submit(actor=works.actor, project=works.project, specs=specs, folders={}, at=at)
    assert Task.objects.count() == 1000
    assert list(Task.objects.order_by("index").values_list("index", flat=True)[998:]) == [998, 999]


def test_rehearsing_tells_the_most_that_it_can_cost_and_leaves_nothing(works: Works) -> None:
    at = timezone.now()
    specs = spec.from_file(f"{BASE}array: 10\ntime_limit: 30m\nretries: 1\ngpus: 2\ninputs: data\n", at=at)
    (job,) = submitting.rehearse(actor=works.actor, project=works.project, specs=specs, at=at)
    assert job.most_micros == 10 * 2 * 2_490_000
    assert submitting.folders_of(specs) == ["data"]
    assert not Job.objects.exists()


def test_nothing_starts_in_a_suspended_project_and_not_more_than_too_much(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "OPEN_TASKS_MAX", 10)
    works.one(array=8)
    with pytest.raises(Conflict), transaction.atomic():
        works.one(array=3)
    Project.objects.filter(pk=works.project.pk).update(suspended_at=timezone.now())
    works.project.refresh_from_db()
    with pytest.raises(ProjectSuspended), transaction.atomic():
        works.one()


def test_the_market_decides_how_a_task_starts(works: Works, fleet: Fleet, actor: Actor) -> None:
    spot_terms.set_terms(offer=fleet.h200, by="test", at=timezone.now(), currency="USD", reserve_micros=500_000,
                         grid_micros=10_000, is_enabled=True)  # fmt: skip
    bidding = works.one(market="spot", max_price="1.00")
    cheap = works.one(market="cheapest", deadline="+24h", time_limit="1h")
    urgent = works.one(market="cheapest", deadline="+1h", time_limit="1h")
    works.look()
    found = {row.job_id: row.instance for row in bidding.attempts.model.objects.select_related("instance__bid")}
    assert (found[bidding.pk].market, found[bidding.pk].bid.price_micros) == ("spot", 1_000_000)
    # Half-way between the reserve and the price on demand, in whole steps.
    assert (found[cheap.pk].market, found[cheap.pk].bid.price_micros) == ("spot", 1_490_000)
    assert found[urgent.pk].market == "on_demand"
    assert rentals.Order(offer=fleet.h200, command=[]).work.paid_by == ""
    assert Instance.objects.count() == 3
