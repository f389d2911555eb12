"""The workflow engine: whose outcome counts, what is tried again and when, and what a lost message costs."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from django.utils import timezone

from marketplace.celery import app
from provisioning import engine, tasks
from provisioning.engine import Deadline, Failed, Next, NotYet, Outcome, Plan, Wait
from provisioning.models import Instance, Reason, Workflow
from provisioning.steps import PLAN
from tests.conftest import Rent

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
CLOSED_PORT = "redis://127.0.0.1:9/0"

pytestmark = pytest.mark.django_db


@pytest.fixture
def instance(rent: Rent) -> Instance:
    """An instance whose workflow stands at a step that each test writes itself."""
    instance = rent()
    Workflow.objects.filter(pk=instance.pk).update(step="work", step_since=timezone.now())
    return instance


def plan(work: Callable[[Instance], Outcome], **overrides: Any) -> Plan:
    return Plan(
        **{"steps": {"work": work}, "deadlines": {}, "on_failure": "clean", "fail": lambda instance, failure: None}
        | overrides
    )


def row(instance: Instance) -> Workflow:
    return Workflow.objects.get(pk=instance.pk)


def rename_to(name: str) -> Callable[[Instance], None]:
    """Return a commit that leaves a trace."""
    return lambda instance: engine_writes(instance, name)


def engine_writes(instance: Instance, name: str) -> None:
    Instance.objects.filter(pk=instance.pk).update(name=name)


def name_of(instance: Instance) -> str:
    return Instance.objects.values_list("name", flat=True).get(pk=instance.pk)


def test_an_outcome_moves_the_step_and_commits_together(instance: Instance) -> None:
    assert engine.run_one(instance.pk, plan(lambda instance: Next("more", commit=rename_to("done"))))
    assert (row(instance).step, row(instance).lease_token, name_of(instance)) == ("more", None, "done")


def test_a_leased_row_is_left_alone_until_its_lease_runs_out(instance: Instance) -> None:
    ran: list[str] = []

    def killed(instance: Instance) -> Outcome:
        raise SystemExit

    def work(instance: Instance) -> Outcome:
        ran.append("again")
        return Next("more")

    with time_machine.travel(timezone.now(), tick=False) as clock:
        with pytest.raises(SystemExit):
            engine.run_one(instance.pk, plan(killed))
        assert engine.due(limit=10) == []
        clock.shift(engine.LEASE)
        assert not engine.run_one(instance.pk, plan(work))
        clock.shift(timedelta(milliseconds=1))
        assert engine.due(limit=10) == [instance.pk]
        assert engine.run_one(instance.pk, plan(work))
    assert ran == ["again"]


def test_a_worker_whose_lease_ran_out_changes_nothing(instance: Instance) -> None:
    def slow(instance: Instance) -> Outcome:
        Workflow.objects.filter(pk=instance.pk).update(lease_token=uuid4())
        return Next("more", commit=rename_to("late"))

    before = name_of(instance)
    engine.run_one(instance.pk, plan(slow))
    assert (row(instance).step, name_of(instance)) == ("work", before)
    # Whoever leased it since keeps the lease.
    assert row(instance).lease_token is not None


def test_a_worker_whose_step_was_changed_changes_nothing_and_lets_go(instance: Instance) -> None:
    def overtaken(instance: Instance) -> Outcome:
        engine.wake(instance.pk, step="other")
        return Next("more", commit=rename_to("late"))

    before = name_of(instance)
    assert engine.run_one(instance.pk, plan(overtaken))
    assert (row(instance).step, row(instance).lease_token, name_of(instance)) == ("other", None, before)


def test_a_late_failure_is_dropped_too(instance: Instance) -> None:
    failed: list[Failed] = []

    def overtaken(instance: Instance) -> Outcome:
        engine.wake(instance.pk, step="other")
        return Failed(Reason.INTERNAL, "too late")

    engine.run_one(instance.pk, plan(overtaken, fail=lambda instance, failure: failed.append(failure)))
    assert failed == []
    assert row(instance).step == "other"


def test_not_yet_rolls_everything_back_and_waits(instance: Instance) -> None:
    def commit(instance: Instance) -> None:
        engine_writes(instance, "half done")
        raise NotYet(seconds=7)

    before = name_of(instance)
    with time_machine.travel(timezone.now(), tick=False):
        assert not engine.run_one(instance.pk, plan(lambda instance: Next("more", commit=commit)))
        assert name_of(instance) == before
        assert (row(instance).step, row(instance).due_at) == ("work", timezone.now() + timedelta(seconds=7))
        assert (row(instance).failures, row(instance).lease_until) == (0, None)


def test_a_step_past_its_deadline_fails_without_running(instance: Instance) -> None:
    failed: list[Failed] = []

    def work(instance: Instance) -> Outcome:
        raise AssertionError("it must not run")

    hurried = plan(
        work,
        deadlines={"work": Deadline(timedelta(seconds=30), "It took too long.")},
        fail=lambda instance, failure: failed.append(failure),
    )
    with time_machine.travel(row(instance).step_since + timedelta(seconds=30, milliseconds=1), tick=False):
        assert engine.run_one(instance.pk, hurried)
    assert [failure.reason for failure in failed] == [Reason.TIMED_OUT]
    assert row(instance).step == "clean"


def test_a_step_within_its_deadline_runs(instance: Instance) -> None:
    patient = plan(
        lambda instance: Next("more"), deadlines={"work": Deadline(timedelta(seconds=30), "It took too long.")}
    )
    with time_machine.travel(row(instance).step_since + timedelta(seconds=30), tick=False):
        assert engine.run_one(instance.pk, patient)
    assert row(instance).step == "more"


def test_waiting_does_not_move_the_deadline(instance: Instance) -> None:
    since = row(instance).step_since
    engine.run_one(instance.pk, plan(lambda instance: Wait(1)))
    assert row(instance).step_since == since


def test_exceptions_back_off_further_and_further_and_are_told(instance: Instance) -> None:
    def broken(instance: Instance) -> Outcome:
        raise ConnectionError("the switch is on fire")

    waits = []
    with time_machine.travel(timezone.now(), tick=False) as clock:
        for _ in range(8):
            assert not engine.run_one(instance.pk, plan(broken))
            due_at = row(instance).due_at
            assert due_at is not None
            waits.append((due_at - timezone.now()).total_seconds())
            assert not engine.run_one(instance.pk, plan(broken))  # not due yet
            clock.move_to(due_at)
        assert waits == [1, 2, 4, 8, 15, 30, 30, 30]
        assert row(instance).last_error == "ConnectionError: the switch is on fire"
        assert row(instance).failures == 8
        engine.run_one(instance.pk, plan(lambda instance: Wait(5)))
        assert (row(instance).failures, row(instance).last_error) == (0, "")


def test_an_exception_in_a_commit_rolls_the_move_back(instance: Instance) -> None:
    def commit(instance: Instance) -> None:
        engine_writes(instance, "half done")
        raise ZeroDivisionError

    before = name_of(instance)
    engine.run_one(instance.pk, plan(lambda instance: Next("more", commit=commit)))
    assert (row(instance).step, name_of(instance)) == ("work", before)
    assert row(instance).last_error.startswith("ZeroDivisionError")


@pytest.mark.parametrize("seconds", [300, None])
def test_a_wake_up_during_a_step_is_not_slept_through(instance: Instance, seconds: int | None) -> None:
    def woken(instance: Instance) -> Outcome:
        engine.wake(instance.pk)
        return Wait(seconds)

    assert engine.run_one(instance.pk, plan(woken))
    assert engine.due(limit=10) == [instance.pk]


@pytest.mark.parametrize("step", [None, "other"])
def test_a_wake_up_during_a_step_that_breaks_is_not_slept_through(instance: Instance, step: str | None) -> None:
    def woken(instance: Instance) -> Outcome:
        engine.wake(instance.pk, step=step)
        raise ConnectionError

    Workflow.objects.filter(pk=instance.pk).update(failures=5)
    engine.run_one(instance.pk, plan(woken))
    assert engine.due(limit=10) == [instance.pk]


def test_a_row_that_waits_for_ever_is_found_only_when_woken(instance: Instance) -> None:
    engine.run_one(instance.pk, plan(lambda instance: Wait(None)))
    with time_machine.travel(NOON, tick=False):
        assert engine.due(limit=10) == []
        engine.wake(instance.pk)
        assert engine.due(limit=10) == [instance.pk]


def test_the_sweep_finds_what_is_due_and_in_nobodys_hands_first_come_first(instance: Instance, rent: Rent) -> None:
    early, leased, later = rent(), rent(), rent()
    now = timezone.now()
    Workflow.objects.filter(pk=early.pk).update(due_at=now - timedelta(minutes=1))
    Workflow.objects.filter(pk=leased.pk).update(lease_until=now + timedelta(seconds=10), lease_token=uuid4())
    Workflow.objects.filter(pk=later.pk).update(due_at=now + timedelta(minutes=1))
    assert engine.due(limit=10) == [early.pk, instance.pk]
    assert engine.due(limit=1) == [early.pk]


def test_the_sweep_nudges_what_is_due(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(tasks.run_workflow, "apply_async", lambda arguments, **options: sent.append(arguments))
    tasks.run_due_workflows()
    assert sent == [(instance.pk,)]


def test_a_nudge_runs_step_after_step_until_one_waits(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def step(name: str, outcome: Outcome) -> Callable[[Instance], Outcome]:
        return lambda instance: (ran.append(name), outcome)[1]

    steps = {"work": step("work", Next("more")), "more": step("more", Wait(5))}
    monkeypatch.setattr(tasks, "PLAN", plan(steps["work"], steps=steps))
    tasks.run_workflow(instance.pk)
    tasks.run_workflow(instance.pk)  # the same message twice
    assert ran == ["work", "more"]


def test_steps_that_follow_each_other_need_one_lease_and_let_go_of_it(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = engine.ask
    monkeypatch.setattr(engine, "ask", lambda statement, wanted: (asked.append(statement), real(statement, wanted))[1])
    steps = {"work": lambda _: Next("more"), "more": lambda _: Next("most"), "most": lambda _: Next("work")}
    assert engine.run(instance.pk, plan(steps["work"], steps=steps), turns=3)
    assert asked == [engine.LEASE_IT, *[engine.APPLY] * 3]
    assert (row(instance).step, row(instance).lease_until, row(instance).lease_token) == ("work", None, None)


def test_what_is_asked_for_between_two_steps_is_done_next(instance: Instance) -> None:
    ran: list[str] = []

    def more(_: Instance) -> Outcome:
        ran.append("more")
        engine.wake(instance.pk, step="clean")
        return Next("most")

    steps = {"work": lambda _: Next("more"), "more": more, "clean": lambda _: (ran.append("clean"), Wait(None))[1]}
    assert not engine.run(instance.pk, plan(steps["work"], steps=steps), turns=9)
    assert ran == ["more", "clean"]
    assert (row(instance).step, row(instance).lease_until) == ("clean", None)


def test_a_step_that_somebody_else_has_leased_meanwhile_is_not_run(instance: Instance) -> None:
    def slept(_: Instance) -> None:
        Workflow.objects.filter(pk=instance.pk).update(lease_token=uuid4())

    steps = {"work": lambda _: Next("more", commit=slept)}  # no step "more" to be run
    assert not engine.run(instance.pk, plan(steps["work"], steps=steps), turns=9)


def test_a_nudge_for_a_row_that_is_gone_is_nothing(db: None) -> None:
    tasks.run_workflow(2**40)


def test_without_redis_a_launch_neither_fails_nor_waits(
    rent: Rent,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    django_capture_on_commit_callbacks: Any,
) -> None:
    send = tasks.run_workflow.apply_async
    with app.connection_for_write(CLOSED_PORT) as nowhere:
        monkeypatch.setattr(tasks.run_workflow, "apply_async", partial(send, connection=nowhere))
        began = monotonic()
        with django_capture_on_commit_callbacks(execute=True):
            instance = rent()
        assert monotonic() - began < 3
    assert "Connection refused" in caplog.text
    assert engine.due(limit=10) == [instance.pk]


def test_a_worker_that_slept_past_its_lease_does_not_borrow_the_next_one_s_token(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, real = uuid4(), engine.ask

    def lease_then_sleep(statement: str, wanted: Any) -> Any:
        rows = real(statement, wanted)
        if statement == engine.LEASE_IT:
            Workflow.objects.filter(pk=instance.pk).update(lease_token=theirs)
        return rows

    monkeypatch.setattr(engine, "ask", lease_then_sleep)
    assert engine.run_one(instance.pk, plan(lambda instance: Next("more"))) is False
    workflow = Workflow.objects.get(pk=instance.pk)
    assert (workflow.step, workflow.lease_token) == ("work", theirs)


@pytest.mark.parametrize("step", PLAN.deadlines)
def test_a_killed_worker_does_not_cost_a_step_its_time(step: str, instance: Instance) -> None:
    deadline = PLAN.deadlines[step]
    limit = (deadline(instance) if callable(deadline) else deadline).limit
    assert limit >= engine.LEASE + timedelta(seconds=10)
