"""Jobs under a contract: what their terms let them cost the platform, what stays set aside, and what is shown of it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from billing import books
from billing.models import Escrow, OutcomeCost
from billing.outcomes import costs
from marketplace import access_jobs
from marketplace.access import Actor, person
from marketplace.contracts import answering, bounds, disputing, settling, sweeping
from marketplace.contracts import terms as written
from marketplace.jobs import cancelling, progress, running, verifying
from marketplace.jobs.spec import BadSpec
from marketplace.models import Claim, Job, Membership, Offer, Side, Task, User
from provisioning import quotas
from tests.marketplace.jobs.conftest import Works, latest, states, tries
from tests.outcomes import BY_CUSTOMER, PRICE, TERMS, Deal, make_deal, make_work
from tests.standing import frozen

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR_MICROS = 2_490_000
CENT = 10_000

pytestmark = pytest.mark.django_db


clock = frozen(NOON)


def bounded(works: Works, *, differs: dict[str, Any] | None = None, **work: Any) -> Deal:
    """A deal whose terms bound its work as little as can be but for what is named."""
    return make_deal(works.project.organization, work={**TERMS["work"], **work}, **(differs or {}))


def under(deal: Deal, works: Works, **fields: Any) -> Job:
    return works.one(contract=deal.version.public_id, **fields)


def left(job: Job) -> int:
    return Escrow.objects.get(resource_id=job.public_id).left_micros


@pytest.mark.parametrize(
    ("work", "fields", "told"),
    [
        ({"offers": ["l40s-narvik"]}, {}, "By its contract (work/offers) it runs on l40s-narvik alone."),
        ({"gpus": 1}, {"gpus": 2}, "By its contract (work/gpus) a task has no more GPUs than 1."),
        ({"gpus": 3}, {"gpus": 2, "replicas": 2}, "By its contract (work/gpus) a task has no more GPUs than 3."),
        ({"seconds": 3600}, {"time_limit": "61m"}, "By its contract (work/seconds) an attempt takes 1 hour at most."),
        (
            {"attempt_micros": HOUR_MICROS - 1}, {},
            "An attempt may cost $2.49 by the list; its contract (work/attempt_micros) allows $2.489999.",
        ),
    ],
)  # fmt: skip
def test_an_order_beyond_what_its_terms_allow_is_refused_with_the_name_of_the_term(
    works: Works, work: dict[str, Any], fields: dict[str, Any], told: str
) -> None:
    deal = bounded(works, **work)
    with pytest.raises(BadSpec) as refused, transaction.atomic():
        under(deal, works, **fields)
    assert told in str(refused.value)
    assert not Job.objects.exists()
    assert not Escrow.objects.exists()


def test_the_output_in_which_units_are_counted_has_to_be_kept(works: Works) -> None:
    unit = {"name": "images", "per": 1000, "price_micros": PRICE, "most": 5000}
    counted = {"kind": "per_unit", "unit": unit, "measured": {"kind": "output", "path": "out/units.json"}}
    deal = make_deal(works.project.organization, **counted)
    said = "counts units in the output out/units.json: name it under “outputs”"
    for outputs in ([], ["images/"], ["out/*.png"]):
        with pytest.raises(BadSpec, match=said), transaction.atomic():
            under(deal, works, outputs=outputs)
    assert not Escrow.objects.exists()
    assert under(deal, works, outputs=["images/", "out/"]).pk
    assert under(deal, works, outputs=["**/*.json"]).pk


def test_a_month_of_gpus_cannot_be_bought_for_three_cents(works: Works) -> None:
    deal = bounded(works, seconds=1800, attempt_micros=500 * CENT)
    with pytest.raises(BadSpec, match="work/seconds"), transaction.atomic():
        under(deal, works, command="sleep 2592000", time_limit="30d", gpus=8)
    with pytest.raises(BadSpec, match="work/attempt_micros"), transaction.atomic():
        under(deal, works, time_limit="30m", gpus=8)


def test_versions_that_say_nothing_of_it_are_held_to_a_bound_that_is_safe() -> None:
    first = {**{name: value for name, value in TERMS.items() if name != "work"}, "schema": written.FIRST_SCHEMA}
    assert written.of(first).work == written.FIRST_WORK
    renewed = written.renewed(first)
    assert (renewed["schema"], renewed["work"]) == (written.SCHEMA, dict(written.FIRST_WORK))
    assert written.checked(renewed, seller="org_" + "a" * 20).work == written.FIRST_WORK


def test_work_that_nobody_pays_for_costs_the_platform_no_more_than_its_terms_say(
    works: Works, clock: time_machine.Traveller
) -> None:
    most = 2 * HOUR_MICROS + 100
    deal = bounded(works, attempt_micros=HOUR_MICROS, unpaid_micros=most)
    job = under(deal, works, array=16, retries=0)
    works.go()
    assert (latest(job).running, latest(job).why) == (2, Job.Why.COST)
    assert "work/unpaid_micros" in latest(job).hindrance
    clock.shift(timedelta(hours=1))
    works.exit_all(job, 1)
    works.settle()
    costs.book_costs(at=timezone.now())
    works.go()
    done = latest(job)
    assert (done.state, done.reason, done.failed) == ("failed", "cost", 16)
    assert sum(OutcomeCost.objects.values_list("amount_micros", flat=True)) == 2 * HOUR_MICROS <= most
    assert Escrow.objects.get(resource_id=job.public_id).state == "closed"
    with pytest.raises(BadSpec, match="work/unpaid_micros"), transaction.atomic():
        under(deal, works)


def test_what_results_bring_the_platform_makes_room_for_more_work(works: Works, clock: time_machine.Traveller) -> None:
    deal = bounded(
        works, attempt_micros=HOUR_MICROS, unpaid_micros=HOUR_MICROS,
        differs={"shares": [{"to": "platform", "bps": 10_000}], "unit": {"price_micros": 3 * HOUR_MICROS},
                 "acceptance": {"window_s": 0}, "disputes": {"window_s": 0}},
    )  # fmt: skip
    job = under(deal, works, array=3)
    works.go()
    assert latest(job).running == 1
    clock.shift(timedelta(minutes=30))
    works.exit_all(job)
    works.go()
    costs.book_costs(at=timezone.now())
    for _ in range(3):
        sweeping.advance(at=timezone.now(), limit=10)
    clock.shift(timedelta(seconds=20))
    works.go()
    assert (latest(job).succeeded, latest(job).running) == (1, 2)


def test_hours_that_a_fault_of_ours_cost_do_not_count_against_the_customer(
    works: Works, clock: time_machine.Traveller
) -> None:
    deal = bounded(works, attempt_micros=HOUR_MICROS, unpaid_micros=HOUR_MICROS)
    job = under(deal, works)
    works.go()
    clock.shift(timedelta(minutes=30))
    works.lose(works.running(job)[0])
    works.go()
    clock.shift(timedelta(seconds=30))
    costs.book_costs(at=timezone.now())
    works.go()
    assert OutcomeCost.objects.get().amount_micros == HOUR_MICROS // 2
    assert bounds.unpaid_left(deal.version, works.project.organization) == HOUR_MICROS
    assert tries(job) == [(1, "faulted", "fault"), (2, "running", "")]


def test_a_task_is_tried_no_more_often_than_its_terms_say_whatever_ends_it(
    works: Works, clock: time_machine.Traveller
) -> None:
    deal = bounded(works, attempts=2, differs={"retries": 1})
    job = under(deal, works)
    for _ in range(2):
        works.go()
        (attempt,) = works.running(job)
        works.takes_back(attempt)
    works.go()
    assert tries(job) == [(1, "cancelled", "interrupted"), (2, "cancelled", "interrupted")]
    assert (latest(job).state, latest(job).failed) == ("failed", 1)
    assert Escrow.objects.get(resource_id=job.public_id).state == "closed"


def test_attempts_that_never_had_their_gpus_count_nothing(works: Works, clock: time_machine.Traveller) -> None:
    job = under(bounded(works, attempts=2, differs={"retries": 1}), works)
    for _ in range(3):
        works.look()
        (attempt,) = works.running(job)
        works.takes_back(attempt)
        running.work_on(job.pk)
    works.go()
    assert [state for _, state, _ in tries(job)] == ["cancelled"] * 3 + ["running"]


def test_a_most_cost_below_what_its_results_may_cost_is_refused_with_both(works: Works) -> None:
    deal = bounded(works)
    with pytest.raises(BadSpec) as refused, transaction.atomic():
        under(deal, works, array=4, max_cost="1.99")
    assert "Its results may cost $2.00 under this contract, and it may cost $1.99" in str(refused.value)
    assert under(deal, works, array=4, max_cost="2.00").most_micros == 4 * PRICE


def test_cancelling_gives_back_what_no_claim_needs_while_one_still_waits(
    works: Works, actor: Actor, clock: time_machine.Traveller
) -> None:
    deal = bounded(works, differs=BY_CUSTOMER)
    job = under(deal, works, array=100)
    works.go()
    works.exits(works.running(job)[0])
    works.go()
    assert (left(job), Claim.objects.count()) == (100 * PRICE, 1)
    cancelling.cancel(actor=actor, job=job, at=timezone.now())
    assert left(job) == 17 * PRICE, "what waited never starts; what runs may have succeeded"
    works.go()
    assert (latest(job).state, latest(job).verifying, left(job)) == ("ending", 1, PRICE)
    answering.accept(actor=actor, claim=Claim.objects.get(), at=timezone.now())
    sweeping.advance(at=timezone.now(), limit=10)
    works.go()
    escrow = Escrow.objects.get(resource_id=job.public_id)
    assert (escrow.state, escrow.posted_micros, escrow.voided_micros) == ("closed", PRICE, 99 * PRICE)
    assert books.check(at=timezone.now()) == []


def test_a_task_that_fails_for_good_gives_its_price_back_at_once(works: Works, clock: time_machine.Traveller) -> None:
    job = under(bounded(works), works, array=3, retries=0)
    works.go()
    works.exits(works.running(job)[1], 3)
    works.go()
    assert (states(job), left(job)) == (["running", "failed", "running"], 2 * PRICE)


def test_what_is_spent_is_what_results_were_paid(works: Works, actor: Actor, clock: time_machine.Traveller) -> None:
    job = under(bounded(works, differs=BY_CUSTOMER), works, array=2)
    works.go()
    clock.shift(timedelta(minutes=10))
    works.exits(works.running(job)[0])
    works.go()
    answering.accept(actor=actor, claim=Claim.objects.get(), at=timezone.now())
    sweeping.advance(at=timezone.now(), limit=10)
    far = progress.of([latest(job)], at=timezone.now())[job.pk]
    assert (far.spent_micros, latest(job).most_micros) == (PRICE, 2 * PRICE)


def test_results_are_claimed_and_decided_in_sets(works: Works, actor: Actor) -> None:
    """Fifty take the statements of five."""
    deal, offer = bounded(works), Offer.objects.get(slug="h200-narvik")
    counts = []
    for size in (5, 50):
        work = make_work(deal, works.project, offer, actor, tasks=size, at=timezone.now())
        for index in range(size):
            work.succeeds(index)
        taken = []
        for state in ("verifying", "succeeded"):
            job = Job.objects.select_related("project__organization").get(pk=work.job.pk)
            with CaptureQueriesContext(connection) as queries, transaction.atomic():
                assert verifying.look(job, at=timezone.now()) == size
            taken.append(len(queries))
            assert {task.state for task in Task.objects.filter(job=work.job)} == {state}
            assert Claim.objects.filter(task__job=work.job).count() == size
            Claim.objects.filter(task__job=work.job).update(state="verified")
        assert verifying.look(job, at=timezone.now()) == 0
        counts.append(taken)
    assert counts[0] == counts[1]


def test_what_fails_to_pass_is_refused_in_one_set(works: Works, actor: Actor) -> None:
    deal, offer = bounded(works, differs={"retries": 1}), Offer.objects.get(slug="h200-narvik")
    work = make_work(deal, works.project, offer, actor, tasks=3, at=timezone.now())
    for index in range(3):
        work.succeeds(index)
    for _ in range(2):
        job = Job.objects.select_related("project__organization").get(pk=work.job.pk)
        verifying.look(job, at=timezone.now())
        Claim.objects.update(state="failed", message="no")
    job = Job.objects.get(pk=work.job.pk)
    assert (job.pending, job.verifying) == (3, 0)
    assert set(Task.objects.values_list("reason", "message")) == {("not_verified", "no")}
    assert [row[1] for index in range(3) for row in tries(job, index)] == ["refused"] * 3


def test_claims_of_one_escrow_are_paid_together(works: Works, actor: Actor) -> None:
    deal, offer = bounded(works), Offer.objects.get(slug="h200-narvik")
    at, counts = timezone.now(), []
    for size in (1, 11):
        work = make_work(deal, works.project, offer, actor, tasks=size, at=at)
        for index in range(size):
            work.succeeds(index)
        running.work_on(work.job.pk)
        Claim.objects.filter(task__job=work.job).update(state="accepted", due_at=at)
        with CaptureQueriesContext(connection) as queries:
            assert sweeping.advance(at=at, limit=50) == size
        counts.append(len(queries))
        assert Escrow.objects.get(resource_id=work.job.public_id).posted_micros == size * PRICE
    each = (counts[1] - counts[0]) // 10
    assert each <= 4, "statements of one more claim in a set"
    assert counts[1] < 11 * counts[0] // 2, "which share what one alone cannot"
    assert books.check(at=at) == []


def test_one_claim_that_cannot_be_paid_keeps_none_of_the_others_of_its_escrow(
    works: Works, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    deal, offer, at = bounded(works), Offer.objects.get(slug="h200-narvik"), timezone.now()
    work = make_work(deal, works.project, offer, actor, tasks=3, at=at)
    for index in range(3):
        work.succeeds(index)
    running.work_on(work.job.pk)
    Claim.objects.update(state="accepted", due_at=at)
    broken, due_of = Claim.objects.order_by("pk")[1], settling._due_of

    def breaks(claim: Claim, *args: Any, **kwargs: Any) -> Any:
        if claim.pk == broken.pk:
            raise ZeroDivisionError
        return due_of(claim, *args, **kwargs)

    monkeypatch.setattr(settling, "_due_of", breaks)
    assert sweeping.advance(at=at, limit=50) == 2
    assert sorted(Claim.objects.values_list("state", flat=True)) == ["accepted", "settled", "settled"]
    assert Claim.objects.get(pk=broken.pk).due_at == at + sweeping.TROUBLE_PAUSE
    assert Escrow.objects.get(resource_id=work.job.public_id).left_micros == PRICE


LATE = {"deadline": {"within_s": 3600, "late": [{"after_s": 0, "price_bps": 5000}, {"after_s": 3600, "price_bps": 0}]}}


def prices(job: Job) -> list[int]:
    """What being late leaves of the price of each result."""
    return list(Claim.objects.filter(task__job=job).order_by("task__index").values_list("price_bps", flat=True))


def works_through(works: Works, job: Job, clock: time_machine.Traveller, minutes: int) -> None:
    """Let tasks take so long each until all have ended."""
    for _ in range(job.size):
        works.go()
        clock.shift(timedelta(minutes=minutes))
        works.exit_all(job)
    works.go()
    sweeping.advance(at=timezone.now(), limit=99)
    works.go()


def test_a_customer_who_runs_tasks_one_after_the_other_makes_none_of_them_late(
    works: Works, clock: time_machine.Traveller
) -> None:
    deal = make_deal(works.project.organization, **LATE)
    job = under(deal, works, array=4, parallel=1, time_limit="3h")
    works_through(works, job, clock, 50)
    assert prices(job) == [10_000] * 4
    since = Claim.objects.get(task__index=2).evidence["since"]
    assert datetime.fromisoformat(since) == NOON + timedelta(minutes=100)
    slow = under(deal, works, time_limit="3h", array=2, parallel=1)
    works_through(works, slow, clock, 70)
    assert prices(slow) == [5000, 5000], "each by itself took too long"


def test_what_an_attempt_took_that_a_fault_of_ours_ended_is_no_time_that_its_customer_held_back(
    works: Works, clock: time_machine.Traveller
) -> None:
    deal = make_deal(works.project.organization, **LATE)
    job = under(deal, works, array=2, parallel=1, time_limit="3h")
    works.go()
    clock.shift(timedelta(minutes=50))
    works.go()
    works.lose(works.running(job)[0])
    works_through(works, job, clock, 50)
    assert tries(job) == [(1, "faulted", "fault"), (2, "succeeded", "")]
    assert prices(job) == [5000, 10_000]


def test_a_quota_and_what_a_job_needs_hold_it_back_and_a_lack_of_gpus_does_not(
    works: Works, clock: time_machine.Traveller
) -> None:
    deal = make_deal(works.project.organization, **LATE)
    first = under(deal, works, time_limit="3h")
    second = under(deal, works, time_limit="3h", needs=[first.public_id])
    works_through(works, first, clock, 50)
    works_through(works, second, clock, 50)
    assert (prices(first), prices(second)) == ([10_000], [10_000])
    many = under(deal, works, array=17, time_limit="3h")
    works_through(works, many, clock, 50)
    assert prices(many) == [10_000] * 16 + [5000], "there are sixteen GPUs"
    quotas.set_limit(project_id=works.project.pk, limit=1)
    few = under(deal, works, array=2, time_limit="3h")
    works_through(works, few, clock, 50)
    assert prices(few) == [10_000, 10_000]


def test_what_nobody_may_start_any_more_is_cancelled_after_a_week_and_gives_back_what_was_set_aside(
    works: Works, clock: time_machine.Traveller
) -> None:
    deal = make_deal(works.project.organization)
    job = under(deal, works, array=3, parallel=1)
    works.go()
    Membership.objects.filter(user=works.actor.user).update(role="viewer")
    clock.shift(timedelta(minutes=1))
    works.exit_all(job)
    works.go()
    assert (latest(job).state, latest(job).why, latest(job).verifying) == ("active", "refused", 1)
    for days in (1, 1, 4):
        clock.shift(timedelta(days=days))
        sweeping.advance(at=timezone.now(), limit=10)
        works.go()
    assert (latest(job).state, left(job)) == ("active", 2 * PRICE)
    clock.shift(timedelta(days=1))
    works.go()
    done = latest(job)
    assert (done.state, states(job), left(job)) == ("cancelled", ["succeeded", "cancelled", "cancelled"], 0)
    assert "may not rent" in done.message
    assert books.check(at=timezone.now()) == []


def test_who_may_rent_again_within_a_week_has_all_of_it_the_next_time(
    works: Works, clock: time_machine.Traveller
) -> None:
    job = under(make_deal(works.project.organization), works, array=20)
    mine = Membership.objects.filter(user=works.actor.user)
    mine.update(role="viewer")
    works.go()
    for role, days in (("owner", 6), ("viewer", 2), ("viewer", 6)):
        clock.shift(timedelta(days=days))
        mine.update(role=role)
        works.go()
    assert latest(job).state == "active"


def test_what_is_paid_for_after_a_dispute_can_be_fetched_as_every_result(
    works: Works, clock: time_machine.Traveller, carol: User
) -> None:
    deal = make_deal(works.project.organization, retries=0)
    job = under(deal, works, array=2)
    works.go()
    works.exit_all(job)
    works.go()
    sweeping.advance(at=timezone.now(), limit=9)
    claims = list(Claim.objects.order_by("task__index"))
    for claim in claims:
        answering.reject(actor=works.actor, claim=claim, reason="It is grey.", at=timezone.now())
    works.go()
    assert (states(job), list(access_jobs.results(job))) == (["failed", "failed"], [])
    disputes = [
        disputing.open(
            actor=deal.merchant, claim=claim, side=Side.SELLER, reason="other", text="As ordered.", at=timezone.now()
        )
        for claim in claims
    ]
    for dispute, due_bps in zip(disputes, (10_000, 0), strict=True):
        disputing.resolve(actor=person(carol), dispute=dispute, due_bps=due_bps, note="x", at=timezone.now())
    sweeping.advance(at=timezone.now(), limit=9)
    assert [claim.paid_micros for claim in Claim.objects.order_by("task__index")] == [PRICE, 0]
    assert [row.task.index for row in access_jobs.results(job)] == [0]
