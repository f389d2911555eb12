"""What a job does: start tasks where there is room, judge each attempt by its end, try again, and end itself."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from billing import accounts, books, charging, prices
from billing.models import Hold
from marketplace import spot, spot_market, spot_terms
from marketplace.access import Actor, person
from marketplace.errors import IllegalState
from marketplace.jobs import cancelling, dispatching, judging, progress, running
from marketplace.models import Attempt, AuditEntry, Bid, Job, JobEvent, Project, Task
from provisioning import instances
from provisioning.models import Assignment, GpuHold, Instance, Node, Phase, Quota
from tests.conftest import Fleet, make_organization, make_person
from tests.marketplace.jobs.conftest import Works, latest, states, tries
from tests.outcomes import make_deal
from tests.standing import frozen

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)

pytestmark = pytest.mark.django_db


clock = frozen(NOON)


def test_a_job_runs_each_task_once_and_leaves_nothing_behind(works: Works, clock: time_machine.Traveller) -> None:
    job = works.one(array=20, outputs=None)
    works.go()
    assert (latest(job).running, latest(job).pending, latest(job).why) == (16, 4, Job.Why.CAPACITY)
    env = works.running(job)[3].instance.env
    assert (env["GPUMARKET_JOB"], env["GPUMARKET_TASK"], env["GPUMARKET_ATTEMPT"]) == (job.public_id, "3", "1")
    clock.shift(timedelta(minutes=6))
    works.exit_all(job)
    works.go()
    works.exit_all(job)
    works.go()
    done = latest(job)
    assert (done.state, done.succeeded, done.why, done.look_at) == ("succeeded", 20, "", None)
    assert Attempt.objects.filter(state="succeeded", number=1, exit_code=0).count() == 20
    assert set(Instance.objects.values_list("phase", flat=True)) == {Phase.TERMINATED}
    assert not GpuHold.objects.filter(released_at=None).exists()
    assert Quota.objects.get(project=works.project).held == 0
    # Sixteen ran for six minutes at 2.49 an hour, four for no time at all.
    assert done.spent_micros == 16 * 249_000
    assert [event.new_state for event in JobEvent.objects.filter(job=job, task=None).order_by("pk")] == [
        "active", "succeeded",
    ]  # fmt: skip
    assert JobEvent.objects.filter(job=job, task__index=7).count() == 2
    assert books.check(at=timezone.now()) == []
    assert AuditEntry.objects.filter(verb="job.submit", subject_id=job.public_id).count() == 1


def test_failures_of_the_command_count_and_faults_of_ours_do_not(works: Works, clock: time_machine.Traveller) -> None:
    job = works.one(array=2, retries=1)
    works.go()
    first, second = works.running(job)
    works.lose(first)
    works.exits(second, 3)
    works.go()
    clock.shift(timedelta(minutes=1))
    works.go()
    again = works.running(job)
    assert [attempt.number for attempt in again] == [2, 2]
    node = Assignment.objects.get(instance=first.instance).node.public_id
    assert again[0].instance.avoid_nodes == [node]
    assert again[1].instance.avoid_nodes == []
    works.exits(again[0], 3)
    works.exits(again[1], 3)
    works.go()
    clock.shift(timedelta(minutes=1))
    works.go()
    assert states(job) == ["running", "failed"]
    works.exit_all(job)
    works.go()
    assert tries(job, 0) == [(1, "faulted", "fault"), (2, "failed", "exit_code"), (3, "succeeded", "")]
    assert tries(job, 1) == [(1, "failed", "exit_code"), (2, "failed", "exit_code")]
    done = latest(job)
    assert (done.state, done.reason, done.message) == ("failed", "tasks", "1 of 2 tasks failed.")


def test_what_no_node_can_prepare_is_given_up_and_costs_nothing(works: Works, clock: time_machine.Traveller) -> None:
    for node in works.fleet.nodes.values():
        node.fails_to_prepare = "There is no such image."
    job = works.one()
    for _ in range(6):
        works.go()
        clock.shift(timedelta(minutes=2))
    assert tries(job) == [(number, "faulted", "fault") for number in (1, 2, 3)]
    assert (latest(job).state, latest(job).spent_micros) == ("failed", 0)
    assert Task.objects.get(job=job).message == "There is no such image."


def test_a_time_limit_ends_an_attempt_and_its_cost_to_the_millisecond(
    works: Works, clock: time_machine.Traveller
) -> None:
    job = works.one(time_limit="90s")
    works.go()
    clock.shift(timedelta(seconds=100))
    works.go()
    done = latest(job)
    assert tries(job) == [(1, "failed", "time_limit")]
    assert done.spent_micros == done.most_micros == 62_250  # 90 s of 2.49 an hour
    assert latest(job).state == "failed"


def test_what_ends_by_itself_past_its_time_limit_is_charged_to_the_limit(
    works: Works, clock: time_machine.Traveller
) -> None:
    job = works.one(time_limit="90s")
    works.go()
    clock.shift(timedelta(seconds=100))
    works.exits(works.running(job)[0])
    works.settle()  # Nobody looked at the job meanwhile.
    works.go()
    done = latest(job)
    assert tries(job) == [(1, "succeeded", "")]
    assert done.spent_micros == done.most_micros == 62_250


def test_a_job_never_costs_more_than_its_most(works: Works, clock: time_machine.Traveller) -> None:
    job = works.one(array=8, time_limit="1h", retries=5, max_cost="10.00")
    works.go()
    # Each may cost 2.49: four at once are paid for, whatever is free.
    assert (latest(job).running, latest(job).why) == (4, Job.Why.COST)
    clock.shift(timedelta(hours=2))
    works.go()
    for _ in range(8):
        clock.shift(timedelta(minutes=2))
        works.go()
    done = latest(job)
    assert (done.state, done.reason, done.spent_micros) == ("failed", "cost", 4 * 2_490_000)
    assert done.spent_micros <= (done.most_micros or 0)


def test_what_runs_counts_at_its_own_price_when_prices_fall(
    works: Works, fleet: Fleet, clock: time_machine.Traveller
) -> None:
    job = works.one(array=8, time_limit="1h", max_cost="5.00")
    works.go()
    assert (latest(job).running, latest(job).why) == (2, Job.Why.COST)
    clock.shift(timedelta(minutes=1))
    at = timezone.now()
    prices.publish(
        sku=fleet.h200.sku, currency="USD", micros_per_unit_hour=500_000, effective_from=at, by="test", at=at
    )  # fmt: skip
    clock.shift(timedelta(minutes=1))
    works.go()
    # Two at 2.49 use up 4.98: what is left pays for no third, however cheap it is now.
    assert (latest(job).running, latest(job).why) == (2, Job.Why.COST)
    works.exits(works.running(job)[0])
    works.go()
    assert latest(job).running == 1 + 4


def test_gpus_that_are_taken_back_and_users_who_end_instances(works: Works, clock: time_machine.Traveller) -> None:
    job = works.one(array=3)
    works.go()
    interrupted, ended, unpaid = works.running(job)
    instances.terminate(instance=ended.instance, at=timezone.now())
    instances.stop(instance=unpaid.instance, at=timezone.now(), reason=instances.Reason.NO_FUNDS)
    works.takes_back(interrupted)
    works.go()
    assert tries(job, 0) == [(1, "cancelled", "interrupted"), (2, "running", "")]
    assert tries(job, 1) == [(1, "failed", "stopped")]
    assert tries(job, 2) == [(1, "cancelled", "funds"), (2, "running", "")]


def test_a_fault_of_ours_is_tried_again_without_retries_and_its_cost_given_back(
    works: Works, clock: time_machine.Traveller
) -> None:
    before = accounts.wallet(organization=works.project.organization)
    job = works.one(time_limit="1h")
    works.go()
    clock.shift(timedelta(minutes=20))
    charging.charge_due(at=timezone.now())
    works.lose(works.running(job)[0])
    works.go()
    assert tries(job) == [(1, "faulted", "fault"), (2, "running", "")]
    assert latest(job).spent_micros == 0
    clock.shift(timedelta(hours=2))
    works.go()
    done = latest(job)
    assert (tries(job)[1], done.state) == ((2, "failed", "time_limit"), "failed")
    assert done.spent_micros == done.most_micros == 2_490_000
    now = accounts.wallet(organization=works.project.organization)
    funds = before.cash_micros + before.promo_micros - now.cash_micros - now.promo_micros + now.owed_micros
    assert funds == done.most_micros, "what was charged and not given back is the most, to the micro"
    assert books.check(at=timezone.now()) == []


def test_what_is_interrupted_goes_on_for_the_time_that_is_still_paid(
    works: Works, clock: time_machine.Traveller
) -> None:
    job = works.one(time_limit="1h", checkpoint="state")
    works.go()
    clock.shift(timedelta(minutes=20))
    works.takes_back(works.running(job)[0])
    works.go()
    assert tries(job) == [(1, "cancelled", "interrupted"), (2, "running", "")]
    assert works.running(job)[0].instance.time_limit_s == 2400
    clock.shift(timedelta(minutes=39))
    works.exit_all(job)
    works.go()
    done = latest(job)
    assert (done.state, done.spent_micros) == ("succeeded", 20 * 41_500 + 39 * 41_500)


def test_what_is_interrupted_and_needs_more_than_is_paid_ends_at_the_most_to_the_micro(
    works: Works, clock: time_machine.Traveller
) -> None:
    job = works.one(time_limit="1h", checkpoint="state")
    works.go()
    clock.shift(timedelta(minutes=20))
    works.takes_back(works.running(job)[0])
    works.go()
    clock.shift(timedelta(minutes=41))
    works.go()
    done = latest(job)
    assert tries(job)[1] == (2, "cancelled", "cost")
    assert (done.state, done.reason, done.spent_micros) == ("failed", "cost", done.most_micros)


def test_what_others_left_of_their_time_is_there_for_what_was_interrupted(
    works: Works, clock: time_machine.Traveller
) -> None:
    job = works.one(array=2, time_limit="1h")
    works.go()
    first, second = works.running(job)
    clock.shift(timedelta(minutes=20))
    works.takes_back(first)
    works.go()
    assert (states(job), latest(job).why) == (["pending", "running"], Job.Why.COST)
    works.exits(second)
    works.go()
    assert works.running(job)[0].instance.time_limit_s == 3600


def test_cancelling_keeps_what_succeeded(works: Works, actor: Actor, clock: time_machine.Traveller) -> None:
    job = works.one(array=20)
    works.go()
    works.exits(works.running(job)[0])
    works.settle()
    clock.shift(timedelta(minutes=1))
    cancelling.cancel(actor=actor, job=job, at=timezone.now())
    assert latest(job).state == "ending"
    works.go()
    done = latest(job)
    assert (done.state, done.succeeded, done.cancelled) == ("cancelled", 1, 19)
    assert cancelling.cancel(actor=actor, job=job, at=timezone.now()).state == "cancelled"
    assert set(Instance.objects.values_list("phase", flat=True)) == {Phase.TERMINATED}
    finished = works.one()
    works.go()
    works.exit_all(finished)
    works.go()
    with pytest.raises(IllegalState):
        cancelling.cancel(actor=actor, job=finished, at=timezone.now())


def test_a_deadline_fails_what_is_not_done(works: Works, clock: time_machine.Traveller) -> None:
    job = works.one(array=20, deadline="+1h")
    works.go()
    works.exits(works.running(job)[0])
    works.go()
    clock.shift(timedelta(hours=1))
    works.go()
    done = latest(job)
    assert (done.state, done.reason, done.succeeded, done.failed) == ("failed", "deadline", 1, 19)


def test_jobs_wait_for_those_that_they_need(works: Works) -> None:
    first, second, third = works.submit(
        "jobs:\n"
        "- {name: first, offer: h200-narvik, command: [a]}\n"
        "- {name: second, offer: h200-narvik, command: [b], needs: [first]}\n"
        "- {name: third, offer: h200-narvik, command: [c], needs: [second]}\n"
    )
    works.go()
    assert [latest(job).state for job in (first, second, third)] == ["active", "waiting", "waiting"]
    works.exit_all(first)
    works.go()
    assert [latest(job).state for job in (first, second, third)] == ["succeeded", "active", "waiting"]
    works.exit_all(second, 1)
    works.go()
    assert [latest(job).state for job in (second, third)] == ["failed", "failed"]
    assert (latest(third).reason, states(third)) == ("dependency", ["failed"])


def test_the_highest_priority_has_the_next_gpus(works: Works) -> None:
    low = works.one(array=16)
    works.go()
    other, high = works.one(array=1), works.one(array=2, priority=5)
    for attempt in works.running(low)[:2]:
        works.exits(attempt)
    works.go()
    assert [latest(job).running for job in (low, high, other)] == [14, 2, 0]


def test_an_organization_has_no_more_than_its_share_while_another_waits(works: Works) -> None:
    mine = works.one(array=40)
    works.go()
    charlie = make_person("dora@other.example")
    other = make_organization("Dora", charlie)
    theirs = Works(person(charlie, "req"), Project.objects.get(organization=other), works.fleet, works.settle)
    job = theirs.one(array=40)
    works.exit_all(mine)
    works.go()
    assert (latest(mine).running, latest(job).running) == (8, 8)
    works.exit_all(mine)
    works.look()
    works.settle()
    works.look()
    assert (latest(mine).running, latest(job).running) == (8, 8)


def test_what_is_free_where_a_tenant_is_alone_starts_no_task_of_others(works: Works) -> None:
    alone = make_organization("Dora", make_person("dora@other.example"))
    Node.objects.filter(name="h200-1").update(exclusive_to=alone)
    job = works.one(array=20)
    works.look()
    found = latest(job)
    # None was tried in vain: a refusal would have left its words.
    assert (found.running, found.why, found.hindrance) == (8, Job.Why.CAPACITY, "")


def test_no_more_run_at_once_than_a_job_allows(works: Works) -> None:
    job = works.one(array=5, parallel=2)
    works.go()
    assert (latest(job).running, latest(job).why) == (2, Job.Why.PARALLEL)
    works.exits(works.running(job)[0])
    works.go()
    assert (latest(job).running, latest(job).succeeded) == (2, 1)


def test_jobs_that_something_of_their_own_holds_up_hide_nobody_behind_them(
    works: Works, clock: time_machine.Traveller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "LANE_MAX", 3)
    held = [works.one(array=2, parallel=1) for _ in range(4)]
    works.go()
    assert [latest(job).why for job in held] == [Job.Why.PARALLEL] * 4
    behind = works.one()
    works.go()
    assert latest(behind).running == 1


def test_a_refusal_is_told_and_tried_again(works: Works, clock: time_machine.Traveller) -> None:
    Quota.objects.filter(project=works.project).update(limit=3)
    job = works.one(array=5)
    works.go()
    assert (latest(job).running, latest(job).why) == (3, Job.Why.QUOTA)
    assert "3" in latest(job).hindrance
    Quota.objects.filter(project=works.project).update(limit=100)
    clock.shift(timedelta(minutes=1))
    assert running.due(at=timezone.now(), limit=10) == [job.pk]
    works.go()
    assert latest(job).running == 5


def test_progress_says_how_fast_and_how_long(works: Works, clock: time_machine.Traveller) -> None:
    job = works.one(array=24)
    works.go()
    clock.shift(timedelta(minutes=4))
    works.exit_all(job)
    works.go()
    far = progress.of([latest(job)], at=timezone.now())[job.pk]
    assert (far.done, far.left, far.percent) == (16, 8, 66)
    assert (far.per_hour, far.left_s) == (240, 120)
    assert far.spent_micros == latest(job).spent_micros == 16 * 166_000


def test_looking_at_a_large_job_costs_the_same_as_at_a_small_one(works: Works) -> None:
    small, large = works.one(array=1), works.one(array=2000)
    counts = []
    for job in (small, large):
        with CaptureQueriesContext(
            connection,
        ) as queries:
            progress.of([latest(job)], at=timezone.now())
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 3


class Killed(Exception):
    """A worker is gone."""


@pytest.mark.parametrize("statements", [1, 4, 9, 14, 20, 27, 35, 45, 60, 80])
def test_a_worker_that_is_killed_anywhere_leaves_a_job_that_can_finish(works: Works, statements: int) -> None:
    """While it starts tasks, and while it judges them: the next look goes on where it was."""
    job = works.one(array=2)
    dies(job, statements)
    works.go()
    works.exit_all(job)
    works.settle()
    dies(job, statements)
    works.go()
    assert latest(job).state == "succeeded"
    assert (Attempt.objects.filter(job=job).count(), Instance.objects.count()) == (2, 2)
    assert books.check(at=timezone.now()) == []


def dies(job: Job, statements: int) -> None:
    """Work on a job until so many statements are done; then whatever does is gone."""
    done = 0

    def kill(execute, sql, params, many, context):  # type: ignore[no-untyped-def]
        nonlocal done
        done += 1
        if done == statements:  # What follows is the rollback, as the database does it for whoever is gone.
            raise Killed
        return execute(sql, params, many, context)

    with suppress(Killed), connection.execute_wrapper(kill):
        running.work_on(job.pk)


@pytest.mark.parametrize(
    ("left", "state"),
    [({"out/a": b"1", "b.json": b"2"}, "succeeded"), ({"out/a": b"1"}, "failed"), ({"a": b"1"}, "failed")],
)
def test_a_task_succeeds_with_all_that_it_named_as_outputs_in_the_store_whatever_its_node_says(
    works: Works, left: dict[str, bytes], state: str
) -> None:
    job = works.one(outputs=["out", "*.json"], retries=0)
    works.go()
    (attempt,) = works.running(job)
    for node in works.fleet.nodes.values():
        node.leaves[attempt.instance.public_id] = left
    works.exits(attempt)
    works.go()
    assert states(job) == [state]
    ended = Instance.objects.get(pk=attempt.instance_id)
    said = judging.verdict_of(ended, latest(job), "The disk was slow.", at=timezone.now())
    assert said is not None
    assert (said.state, said.message) == (state, "" if state == "succeeded" else "The disk was slow.")


def test_what_a_contract_pays_for_takes_part_in_auctions_without_funds_of_its_own(
    works: Works, clock: time_machine.Traveller
) -> None:
    offer = works.fleet.h200
    spot_terms.set_terms(
        offer=offer, by="test", at=timezone.now(), reserve_micros=500_000, grid_micros=10_000, interval_s=60,
        min_notice_s=30, hysteresis_bp=1000, rise_bp=10_000,
    )  # fmt: skip
    deal = make_deal(works.project.organization)
    job = works.one(contract=deal.version.public_id, market="spot", outputs=["out"], retries=1)
    works.go()
    (attempt,) = works.running(job)
    assert not Hold.objects.filter(resource_id=attempt.instance.public_id).exists()
    (standing,) = spot_market.standings(Bid.objects.select_related("instance"))
    assert (standing.state, works.phase(attempt)) == ("waiting", "queued")
    clock.shift(timedelta(minutes=1))
    assert spot_market.published(spot.clear(offer_id=offer.pk, at=timezone.now()))["winners"] == 1
    works.go()
    assert works.phase(attempt) == "running"


def test_an_attempt_that_filled_its_disk_has_failed_by_itself_and_says_how_much_it_kept(works: Works) -> None:
    job = works.one()
    works.go()
    (attempt,) = works.running(job)
    for node in works.fleet.nodes.values():
        node.exit_messages[attempt.instance.public_id] = "the workload filled its disk share: 20.5 of 20.0 GiB"
    works.exits(attempt, 137)
    works.go()
    assert tries(job) == [(1, "failed", "exit_code")]
    told = "It filled its share of the disk (“disk” in the job): 20.5 of 20.0 GiB."
    assert (Attempt.objects.get().message, Task.objects.get().message) == (told, told)
    assert latest(job).state == "failed"
