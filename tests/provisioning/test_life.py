"""An instance's life: every step, every ending, and what each costs."""

from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.db.models import QuerySet
from django.utils import timezone

from billing import books, usage
from billing.models import Hold, UsageSpan
from marketplace import rentals
from marketplace.access import Actor
from marketplace.console import nodes as console
from marketplace.models import Project
from provisioning import engine, instances, nodes, steps
from provisioning.errors import IllegalMove, StaleInstance
from provisioning.models import (
    AT_REST,
    CHARGED_PHASES,
    MOVES,
    Assignment,
    GpuHold,
    Instance,
    InstanceEvent,
    Node,
    Phase,
    Quota,
    Workflow,
)
from provisioning.steps import PLAN, STEPS
from tests.conftest import Fleet, Rent, Run

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)

pytestmark = pytest.mark.django_db


def assert_nothing_is_left_over(instance: Instance, fleet: Fleet) -> None:
    instance.refresh_from_db()
    assert instance.quota_held == 0
    assert not GpuHold.objects.filter(released_at=None).exists()
    assert not Assignment.objects.exclude(observed="gone").exists()
    assert not UsageSpan.objects.filter(ended_at=None).exists()
    assert not Hold.objects.filter(state="pending").exists()
    assert Quota.objects.get(project=instance.project_id).held == 0
    assert all(node.free_gpus == node.gpu_count for node in Node.objects.all())
    for played in fleet.nodes.values():
        played.sync()
        assert played.desired == {}
    assert books.check(at=timezone.now()) == []


def phases(instance: Instance) -> list[str]:
    return list(InstanceEvent.objects.filter(instance=instance).order_by("pk").values_list("new_phase", flat=True))


def test_a_rented_instance_walks_through_every_phase_to_running(running: Instance) -> None:
    assert phases(running) == ["queued", "placing", "provisioning", "verifying", "running"]
    assert running.health == "healthy"
    assert running.observed_generation == running.generation


def test_the_meter_runs_from_running_to_the_stop_request(
    rent: Rent, run_until_idle: Run, actor: Actor, fleet: Fleet
) -> None:
    with time_machine.travel(NOON, tick=False) as clock:
        instance = rent(gpus=2)
        clock.shift(timedelta(minutes=3))
        fleet.sync()
        run_until_idle()
        began = timezone.now()
        clock.shift(timedelta(hours=5))
        fleet.sync()
        instance.refresh_from_db()
        rentals.stop(actor=actor, instance=instance, at=timezone.now())
        clock.shift(timedelta(minutes=7))
        fleet.sync()
        run_until_idle()
        span = UsageSpan.objects.get(resource_id=instance.public_id)
        assert (span.started_at, span.ended_at) == (began, began + timedelta(hours=5))
        assert usage.unit_milliseconds(span=span, at=timezone.now()) == 2 * 5 * 3_600_000
        assert span.charged_micros == 2 * 5 * 2_490_000
        assert_nothing_is_left_over(instance, fleet)


def test_an_exited_command_stops_the_instance_and_the_charges(
    running: Instance, run_until_idle: Run, fleet: Fleet
) -> None:
    fleet.nodes["h200-1"].exit_codes[running.public_id] = 7
    fleet.sync()
    run_until_idle()
    running.refresh_from_db()
    assert (running.phase, running.reason, running.exit_code) == ("stopped", "exited", 7)
    assert_nothing_is_left_over(running, fleet)


def test_what_just_runs_costs_no_turns_and_an_end_that_nobody_heard_of_is_found_at_once(
    rent: Rent, run_until_idle: Run
) -> None:
    one, gang = rent(), rent(replicas=2)
    run_until_idle()
    assert set(Workflow.objects.values_list("step", "due_at")) == {("watch", None)}
    first, second = Assignment.objects.filter(instance=gang).order_by("replica")
    of_one = Assignment.objects.filter(instance=one)
    ends: list[tuple[QuerySet[Assignment], str, int | None, int]] = [
        (of_one, "running", None, 0),
        (Assignment.objects.filter(pk=first.pk), "exited", 0, 0),  # The other goes on, so the gang does.
        (of_one, "exited", 0, 1),
        (Assignment.objects.filter(pk=second.pk), "exited", 3, 1),
    ]
    for rows, observed, exit_code, woken in ends:
        rows.update(observed=observed, exit_code=exit_code, exited_at=timezone.now())
        assert steps.wake_what_ended(limit=10) == woken, observed
        assert len(engine.due(limit=10)) == woken
        for workflow_id in engine.due(limit=10):
            engine.run_one(workflow_id, PLAN)
            Workflow.objects.filter(pk=workflow_id).update(due_at=None)
    assert list(Instance.objects.order_by("pk").values_list("phase", "exit_code")) == [("stopping", 0), ("stopping", 3)]


def test_a_failed_start_costs_nothing_and_says_so(rent: Rent, run_until_idle: Run, fleet: Fleet) -> None:
    for played in fleet.nodes.values():
        played.fails_to_prepare = "no space left"
    instance = rent()
    run_until_idle()
    instance.refresh_from_db()
    assert (instance.phase, instance.reason, instance.message) == ("failed", "node_failed", "no space left")
    assert not UsageSpan.objects.exists()
    assert_nothing_is_left_over(instance, fleet)


def test_a_start_that_takes_too_long_fails(rent: Rent, run_until_idle: Run, fleet: Fleet) -> None:
    with time_machine.travel(NOON, tick=False) as clock:
        instance = rent()
        for played in fleet.nodes.values():
            played.is_silent = True
        run_until_idle()
        clock.shift(timedelta(seconds=50))
        run_until_idle()
        instance.refresh_from_db()
        assert (instance.phase, instance.reason) == ("failed", "timed_out")
        # The GPUs stay held until the node has confirmed that nothing is left.
        assert GpuHold.objects.filter(released_at=None).count() == 1
        for played in fleet.nodes.values():
            played.is_silent = False
        clock.shift(timedelta(seconds=20))
        fleet.sync()
        run_until_idle()
        assert_nothing_is_left_over(instance, fleet)


def test_a_command_that_cannot_be_started_costs_nothing(rent: Rent, run_until_idle: Run, fleet: Fleet) -> None:
    for played in fleet.nodes.values():
        played.fails_to_start = "the supervisor could not start"
    with time_machine.travel(NOON, tick=False) as clock:
        instance = rent()
        run_until_idle()
        clock.shift(timedelta(seconds=20))
        run_until_idle()
        instance.refresh_from_db()
        assert (instance.phase, instance.reason) == ("failed", "node_failed")
        assert sum(span.charged_micros for span in UsageSpan.objects.all()) == 0
        assert_nothing_is_left_over(instance, fleet)


def test_a_node_that_never_starts_the_command_is_not_paid(rent: Rent, run_until_idle: Run, fleet: Fleet) -> None:
    for played in fleet.nodes.values():
        played.never_starts = True
    with time_machine.travel(NOON, tick=False) as clock:
        instance = rent()
        for _ in range(5):
            run_until_idle()
            clock.shift(timedelta(seconds=10))
        run_until_idle()
        instance.refresh_from_db()
        assert (instance.phase, instance.reason) == ("failed", "timed_out")
        assert instance.message == "The nodes did not start the command within 30 s."
        assert sum(span.charged_micros for span in UsageSpan.objects.all()) == 0
        assert_nothing_is_left_over(instance, fleet)


def test_a_project_that_is_suspended_starts_nothing_that_is_queued(
    running: Instance, rent: Rent, run_until_idle: Run, actor: Actor
) -> None:
    rentals.stop(actor=actor, instance=running, at=timezone.now())
    run_until_idle()
    running.refresh_from_db()
    rentals.start(actor=actor, instance=running, at=timezone.now())
    Project.objects.update(suspended_at=timezone.now())
    run_until_idle()
    running.refresh_from_db()
    assert (running.phase, running.reason) == ("failed", "operator")


def test_a_gang_whose_nodes_come_back_at_once_is_metered_again(
    rent: Rent, run_until_idle: Run, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with time_machine.travel(NOON, tick=False) as clock:
        gang = rent(gpus=8, replicas=2)
        run_until_idle()
        fleet.sync()
        clock.shift(timedelta(seconds=45))
        nodes.notice_silence(at=timezone.now(), limit=100)
        with monkeypatch.context() as blind:
            # Each node reports before it can see that the other is back, too.
            blind.setattr(nodes, "_resume", lambda instance_id, at: False)
            fleet.sync()
        gang.refresh_from_db()
        assert gang.health == "unreachable"
        assert nodes.resume_meters(at=timezone.now(), limit=100) == 1
        gang.refresh_from_db()
        assert gang.health == "healthy"
        assert UsageSpan.objects.filter(ended_at=None).count() == 1


def test_a_stopped_instance_can_be_started_again_as_a_new_run(
    running: Instance, run_until_idle: Run, actor: Actor, fleet: Fleet
) -> None:
    rentals.stop(actor=actor, instance=running, at=timezone.now())
    run_until_idle()
    running.refresh_from_db()
    rentals.start(actor=actor, instance=running, at=timezone.now())
    run_until_idle()
    running.refresh_from_db()
    assert (running.phase, running.run) == ("running", 2)
    rentals.terminate(actor=actor, instance=running, at=timezone.now())
    run_until_idle()
    assert UsageSpan.objects.filter(resource_id=running.public_id).count() == 2
    assert_nothing_is_left_over(running, fleet)


def test_a_start_without_free_gpus_waits_in_the_queue(
    running: Instance, rent: Rent, run_until_idle: Run, actor: Actor
) -> None:
    rentals.stop(actor=actor, instance=running, at=timezone.now())
    run_until_idle()
    others = [rent(gpus=8, name=f"other-{number}") for number in range(1)] + [rent(gpus=7, name="seven")]
    rent(gpus=1, name="last")
    Quota.objects.update(limit=100)
    running.refresh_from_db()
    with time_machine.travel(NOON, tick=False) as clock:
        rentals.start(actor=actor, instance=running, at=timezone.now())
        run_until_idle()
        running.refresh_from_db()
        assert running.phase == "queued"
        others[0].refresh_from_db()
        rentals.terminate(actor=actor, instance=others[0], at=timezone.now())
        run_until_idle()
        clock.shift(timedelta(seconds=6))
        run_until_idle()
        running.refresh_from_db()
        assert running.phase == "running"


def test_a_start_that_waited_too_long_gives_up_and_may_be_tried_again(
    running: Instance, rent: Rent, run_until_idle: Run, actor: Actor
) -> None:
    rentals.stop(actor=actor, instance=running, at=timezone.now())
    run_until_idle()
    rent(gpus=8)
    rent(gpus=8)
    Quota.objects.update(limit=100)
    running.refresh_from_db()
    with time_machine.travel(NOON, tick=False) as clock:
        rentals.start(actor=actor, instance=running, at=timezone.now())
        run_until_idle()
        clock.shift(timedelta(minutes=31))
        run_until_idle()
        running.refresh_from_db()
        assert (running.phase, running.reason, running.retryable) == ("failed", "no_capacity", True)
        assert running.quota_held == 0


def test_stop_wins_over_a_start_in_flight(rent: Rent, run_until_idle: Run, actor: Actor, fleet: Fleet) -> None:
    instance = rent()
    workflow = Workflow.objects.get(instance=instance)
    # A worker has taken the row and is about to claim; the customer stops meanwhile.
    late = engine.Next("create", commit=STEPS["place"](instance).commit)
    Workflow.objects.filter(pk=workflow.pk).update(
        lease_token="00000000-0000-0000-0000-000000000001", lease_until=timezone.now() + engine.LEASE
    )
    workflow = Workflow.objects.select_related("instance").get(pk=workflow.pk)
    rentals.stop(actor=actor, instance=instance, at=timezone.now())
    engine._apply(workflow, late, PLAN, goes_on=False)
    run_until_idle()
    instance.refresh_from_db()
    assert instance.phase == "stopped"
    assert_nothing_is_left_over(instance, fleet)


@pytest.mark.parametrize("step", sorted(STEPS))
@pytest.mark.parametrize("when", ["before", "after"])
def test_any_step_may_crash_and_be_run_again(
    step: str,
    when: str,
    rent: Rent,
    run_until_idle: Run,
    actor: Actor,
    fleet: Fleet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crashes = []
    real = STEPS[step]

    def crashing(instance: Instance) -> engine.Outcome:
        outcome = None if when == "before" else real(instance)
        if not crashes:
            crashes.append(step)
            raise ConnectionError("the power went out")
        return outcome or real(instance)

    monkeypatch.setitem(STEPS, step, crashing)
    with time_machine.travel(NOON, tick=False) as clock:

        def settle() -> None:
            run_until_idle()
            clock.shift(timedelta(seconds=2))
            run_until_idle()

        instance = rent(gpus=2, replicas=2)
        settle()
        settle()
        instance.refresh_from_db()
        assert instance.phase == "running"
        rentals.terminate(actor=actor, instance=instance, at=timezone.now())
        settle()
        instance.refresh_from_db()
        assert instance.phase == "terminated"
        assert crashes == [step]
        assert_nothing_is_left_over(instance, fleet)


@pytest.mark.parametrize("phase", Phase)
def test_gpus_are_charged_in_these_phases_only(phase: Phase) -> None:
    """The billing table of docs/billing.md, row by row."""
    table = {
        "queued": False, "placing": False, "provisioning": False, "verifying": False, "running": True,
        "stopping": False, "stopped": False, "notified": True, "draining": True, "interrupted": False,
        "terminating": False, "terminated": False, "failed": False,
    }  # fmt: skip
    assert (phase in CHARGED_PHASES) is table[phase]


def test_every_phase_can_end_and_only_terminated_is_final() -> None:
    assert [phase for phase, moves in MOVES.items() if not moves] == [Phase.TERMINATED]
    reachable = {Phase.QUEUED}
    while more := {move for phase in reachable for move in MOVES[phase]} - reachable:
        reachable |= more
    assert reachable == set(Phase)
    assert AT_REST.isdisjoint(CHARGED_PHASES)


def test_a_move_that_the_map_forbids_changes_nothing(running: Instance) -> None:
    with pytest.raises(IllegalMove):
        running.move_to(Phase.STOPPED, at=timezone.now())
    running.refresh_from_db()
    assert running.phase == "running"


def test_two_people_cannot_both_make_the_same_move(running: Instance) -> None:
    same = Instance.objects.get(pk=running.pk)
    running.move_to(Phase.STOPPING, at=timezone.now())
    with pytest.raises(StaleInstance):
        same.move_to(Phase.STOPPING, at=timezone.now())


def test_an_unreachable_node_closes_the_meter_at_its_last_sign_of_life(
    running: Instance, fleet: Fleet, run_until_idle: Run
) -> None:
    node = fleet.nodes["h200-1"]
    with time_machine.travel(NOON, tick=False) as clock:
        fleet.sync()
        last = timezone.now()
        clock.shift(timedelta(seconds=45))
        nodes.notice_silence(at=timezone.now(), limit=100)
        running.refresh_from_db()
        assert running.health == "unreachable"
        assert UsageSpan.objects.get().ended_at == last
        clock.shift(timedelta(minutes=5))
        node.sync()
        running.refresh_from_db()
        assert running.health == "healthy"
        assert UsageSpan.objects.filter(ended_at=None).count() == 1


def test_a_lost_node_fails_its_instances_and_keeps_nobody_waiting(
    running: Instance, fleet: Fleet, run_until_idle: Run
) -> None:
    fleet.nodes["h200-1"].is_silent = True
    with time_machine.travel(timezone.now() + timedelta(minutes=17), tick=False):
        nodes.notice_silence(at=timezone.now(), limit=100)
        for _ in range(3):
            for workflow_id in engine.due(limit=10):
                engine.run_one(workflow_id, PLAN)
        running.refresh_from_db()
        assert (running.phase, running.reason) == ("failed", "node_lost")
        assert not GpuHold.objects.filter(released_at=None).exists()


def test_draining_a_node_stops_what_runs_there(
    running: Instance, actor: Actor, fleet: Fleet, run_until_idle: Run
) -> None:
    node = Node.objects.get(name="h200-1")
    assert console.drain(actor=actor, node=node, reason="new power supply", at=timezone.now()) == 1
    run_until_idle()
    running.refresh_from_db()
    assert (running.phase, running.reason) == ("stopped", "operator")
    node.refresh_from_db()
    assert node.state == "draining"


def test_what_cannot_be_started_says_why(running: Instance) -> None:
    with pytest.raises(IllegalMove):
        instances.start(instance=running, price_version=running.price_version, at=timezone.now())
    assert instances.actions(running)["start"] == "Only what is stopped or failed can be started; this is: Running."
    assert instances.actions(running)["stop"] == ""


@pytest.mark.parametrize(("runtime", "phase"), [("process", "failed"), ("podman", "provisioning")])
def test_an_image_may_take_longer_than_a_process_to_get_ready(
    runtime: str, phase: str, rent: Rent, fleet: Fleet
) -> None:
    instance = rent()
    type(fleet.h200).objects.filter(pk=fleet.h200.pk).update(runtime=runtime)
    Instance.objects.filter(pk=instance.pk).update(phase="provisioning")
    since = timezone.now() - timedelta(minutes=5)
    Workflow.objects.filter(pk=instance.pk).update(step="prepare", step_since=since, due_at=since)
    engine.run_one(instance.pk, PLAN)
    instance.refresh_from_db()
    assert instance.phase == phase
    late = timezone.now() - timedelta(minutes=30, seconds=1)
    Workflow.objects.filter(pk=instance.pk, step="prepare").update(step_since=late, due_at=late)
    engine.run_one(instance.pk, PLAN)
    instance.refresh_from_db()
    assert instance.phase == "failed"
    assert instance.message == f"The nodes did not get ready within {'40 s' if runtime == 'process' else '30 min'}."
