"""Silent nodes: what is given up and when, on which proof, and what a late report of it still counts."""

from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.db import transaction
from django.utils import timezone

from billing.models import UsageSpan
from provisioning import engine, leases, nodes
from provisioning.errors import ProvisioningError
from provisioning.models import Assignment, GpuHold, Heartbeat, Instance, LogChunk, Node
from provisioning.protocol import LogPiece, Report, Said
from provisioning.reports import take
from provisioning.steps import PLAN
from tests.conftest import Fleet, Rent, Run
from tests.nodes import PlayedNode
from tests.standing import frozen

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)

pytestmark = pytest.mark.django_db


clock = frozen(NOON)


@pytest.fixture
def pair(clock: time_machine.Traveller, rent: Rent, run_until_idle: Run, fleet: Fleet) -> tuple[Instance, Instance]:
    """A strict and a sticky instance that run on one node, whose last call was at noon."""
    made = []
    for lease in ("strict", "sticky"):
        with transaction.atomic():
            made.append(rent(name=lease))
            Instance.objects.filter(pk=made[-1].pk).update(lease=lease)
    run_until_idle()
    fleet.sync()
    assert {row.node.name for row in Assignment.objects.all()} == {"h200-1"}
    return made[0], made[1]


def look(clock: time_machine.Traveller, silence: timedelta) -> None:
    clock.move_to(NOON + silence)
    nodes.notice_silence(at=timezone.now(), limit=100)
    for _ in range(5):
        for workflow_id in engine.due(limit=10):
            engine.run_one(workflow_id, PLAN)


def phases(*instances: Instance) -> list[str]:
    return [Instance.objects.get(pk=instance.pk).phase for instance in instances]


def report(
    played: PlayedNode, *said: Said, boot_id: str = "boot", logs: tuple[LogPiece, ...] = ()
) -> dict[str, object]:
    played.seq += 1
    made = Report(
        node=played.node.public_id, key=played.key, boot_id=boot_id, agent_epoch=played.epoch, seq=played.seq,
        desired_seen=0, assignments=list(said), logs=list(logs),
    )  # fmt: skip
    return take(made, at=timezone.now())


def of(row: Assignment, state: str, **more: int) -> Said:
    return Said(id=row.public_id, fence=more.pop("fence", row.fence), state=state, **more)  # type: ignore[arg-type]


def test_the_times_are_those_that_are_promised() -> None:
    assert leases.over_after("strict") == timedelta(seconds=160)
    assert leases.over_after("sticky") == leases.lost_after() == timedelta(seconds=940)


def test_each_instance_is_given_up_when_its_own_lease_is_over_and_not_before(
    pair: tuple[Instance, Instance], clock: time_machine.Traveller
) -> None:
    look(clock, timedelta(seconds=41))
    look(clock, timedelta(seconds=160))
    assert phases(*pair) == ["running", "running"]
    look(clock, timedelta(seconds=160) + MILLISECOND)
    assert phases(*pair) == ["failed", "running"]
    strict = Instance.objects.get(pk=pair[0].pk)
    assert (strict.reason, strict.retryable) == ("node_lost", True)
    assert strict.message == (
        "Node h200-1 has not answered since 2030-01-01 12:00:00 UTC; "
        "it ends by itself what it runs when it has not heard from us for 120 s."
    )
    assert Node.objects.get(name="h200-1").reachability == "unreachable"
    assert GpuHold.objects.filter(released_at=None).count() == 1
    look(clock, timedelta(seconds=940))
    assert phases(*pair) == ["failed", "running"]
    look(clock, timedelta(seconds=940) + MILLISECOND)
    assert phases(*pair) == ["failed", "failed"]
    assert Node.objects.get(name="h200-1").reachability == "lost"


def test_a_silence_that_nobody_watched_gives_up_at_once_what_is_over(
    pair: tuple[Instance, Instance], clock: time_machine.Traveller
) -> None:
    look(clock, timedelta(seconds=161))
    assert phases(*pair) == ["failed", "running"]


def test_nothing_is_charged_beyond_the_last_proof_of_life(
    pair: tuple[Instance, Instance], clock: time_machine.Traveller, fleet: Fleet
) -> None:
    look(clock, timedelta(seconds=41))
    look(clock, timedelta(seconds=161))
    assert set(UsageSpan.objects.values_list("ended_at", flat=True)) == {NOON}
    clock.shift(timedelta(seconds=10))
    fleet.sync()
    (again,) = UsageSpan.objects.filter(ended_at=None)
    assert (again.resource_id, again.started_at) == (pair[1].public_id, timezone.now())


def test_what_is_given_up_is_ended_when_its_node_comes_back_and_counts_no_more(
    pair: tuple[Instance, Instance], clock: time_machine.Traveller, fleet: Fleet
) -> None:
    played = fleet.nodes["h200-1"]
    look(clock, timedelta(seconds=161))
    row = Assignment.objects.get(instance=pair[0])
    piece = LogPiece(assignment=row.public_id, offset=0, data=b"a ghost")
    for state in ("preparing", "prepared", "running", "exited", "failed", "wiping", "gone"):
        answer = report(played, of(row, state), logs=(piece,))
        assert row.public_id not in [one["id"] for one in answer["desired"]["assignments"]]  # type: ignore[index]
    row.refresh_from_db()
    assert (row.observed, row.exit_code) == ("gone", None)
    assert not LogChunk.objects.exists()
    assert phases(*pair) == ["failed", "running"]


@pytest.mark.parametrize("fence", [0, 2, 2**31])
@pytest.mark.parametrize("state", ["preparing", "prepared", "exited", "failed", "wiping", "gone"])
def test_no_report_under_another_fence_counts(running: Instance, fleet: Fleet, fence: int, state: str) -> None:
    row = Assignment.objects.get()
    before = Assignment.objects.values().get()
    report(fleet.nodes["h200-1"], of(row, state, fence=fence, exit_code=0, exited_ago_ms=0))
    assert Assignment.objects.values().get() == before


def test_a_workload_that_its_lease_ended_is_lost_and_not_an_exit(
    pair: tuple[Instance, Instance], clock: time_machine.Traveller, fleet: Fleet
) -> None:
    played = fleet.nodes["h200-1"]
    strict, sticky = (Assignment.objects.get(instance=one) for one in pair)
    look(clock, timedelta(seconds=41))
    clock.move_to(NOON + timedelta(seconds=140))
    report(played, of(strict, "failed", exit_code=143, exited_ago_ms=20_000), of(sticky, "running"))
    nodes.resume_meters(at=timezone.now(), limit=10)
    assert {span.resource_id for span in UsageSpan.objects.filter(ended_at=None)} == {pair[1].public_id}
    look(clock, timedelta(seconds=140))
    assert phases(*pair) == ["failed", "running"]
    assert UsageSpan.objects.get(resource_id=pair[0].public_id).ended_at == NOON
    assert Instance.objects.get(pk=pair[0].pk).reason == "node_lost"


def test_after_an_outage_of_ours_what_a_lease_ended_is_charged_until_its_end(
    pair: tuple[Instance, Instance], clock: time_machine.Traveller, fleet: Fleet
) -> None:
    strict, sticky = (Assignment.objects.get(instance=one) for one in pair)
    clock.move_to(NOON + timedelta(seconds=200))  # Nobody has looked for silent nodes meanwhile.
    report(fleet.nodes["h200-1"], of(strict, "failed", exit_code=143, exited_ago_ms=80_000), of(sticky, "running"))
    look(clock, timedelta(seconds=200))
    span = UsageSpan.objects.get(resource_id=pair[0].public_id)
    assert span.ended_at == NOON + timedelta(seconds=120)
    assert UsageSpan.objects.get(resource_id=pair[1].public_id).ended_at is None


# A new boot


def test_a_node_that_restarted_has_lost_all_that_ran_there_at_once(
    pair: tuple[Instance, Instance], clock: time_machine.Traveller, fleet: Fleet
) -> None:
    played = fleet.nodes["h200-1"]
    strict, sticky = (Assignment.objects.get(instance=one) for one in pair)
    clock.shift(timedelta(seconds=20))
    report(played, of(strict, "running"), of(sticky, "failed"), boot_id="next")
    look(clock, timedelta(seconds=20))
    assert phases(*pair) == ["failed", "failed"]
    assert Instance.objects.get(pk=pair[0].pk).message == "Node h200-1 restarted, which ended all that ran there."
    assert set(UsageSpan.objects.values_list("ended_at", flat=True)) == {NOON}
    assert Heartbeat.objects.get(node=played.node).boot_id == "next"


def test_a_command_that_ended_before_its_node_restarted_keeps_its_exit_code(
    running: Instance, fleet: Fleet, run_until_idle: Run
) -> None:
    row = Assignment.objects.get()
    report(fleet.nodes["h200-1"], of(row, "exited", exit_code=4), boot_id="next")
    for _ in range(3):
        engine.run_one(running.pk, PLAN)
    running.refresh_from_db()
    assert (running.phase, running.exit_code) == ("stopping", 4)


def test_what_a_restarted_node_had_not_answered_for_is_still_to_come(
    running: Instance, rent: Rent, fleet: Fleet
) -> None:
    waiting = rent(name="waiting")
    report(fleet.nodes["h200-1"], boot_id="next")
    assert Assignment.objects.get(instance=waiting).observed == "pending"
    assert Assignment.objects.get(instance=running).observed == "gone"


# A person's word


def test_a_node_that_is_confirmed_off_is_given_up_before_any_lease(
    pair: tuple[Instance, Instance], clock: time_machine.Traveller
) -> None:
    node = Node.objects.get(name="h200-1")
    with pytest.raises(ProvisioningError):
        nodes.confirm_off(node=node, at=timezone.now())
    look(clock, timedelta(seconds=41))
    assert nodes.confirm_off(node=node, at=timezone.now()) == 2
    assert nodes.confirm_off(node=node, at=timezone.now()) == 0
    look(clock, timedelta(seconds=42))
    assert phases(*pair) == ["failed", "failed"]


# Our own fault


def test_when_so_many_fall_silent_that_it_must_be_us_meters_close_and_nobody_is_given_up(
    pair: tuple[Instance, Instance], clock: time_machine.Traveller, monkeypatch: pytest.MonkeyPatch
) -> None:
    noticed: list[int] = []

    def is_us(node_ids: list[int], at: datetime) -> bool:
        noticed.extend(node_ids)
        return True

    monkeypatch.setattr(nodes, "is_our_fault", is_us)
    look(clock, timedelta(seconds=41))
    assert sorted(noticed) == sorted(Node.objects.values_list("pk", flat=True))
    look(clock, timedelta(hours=2))
    assert nodes.notice_silence(at=timezone.now(), limit=100) == 0, "they would keep others from being looked at"
    assert len(noticed) == 3, "each is counted when it falls silent, once"
    assert phases(*pair) == ["running", "running"]
    assert set(UsageSpan.objects.values_list("ended_at", flat=True)) == {NOON}
    assert {node.reachability for node in Node.objects.all()} == {"unreachable"}
