"""Nodes: which GPUs are sold, who is placed where, and what silence costs whom."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from msgspec import structs

from billing import books
from billing.models import UsageSpan
from marketplace.access import Actor
from marketplace.console import nodes as console
from provisioning import engine, inventory, leases, nodes, placement
from provisioning.errors import NoCapacity, ProvisioningError
from provisioning.models import Assignment, Gpu, GpuHold, Heartbeat, Instance, Node
from provisioning.protocol import GpuFact, Inventory
from provisioning.steps import PLAN
from tests.conftest import Fleet, Rent, Run
from tests.nodes import PlayedNode, facts, join, wiped
from tests.standing import frozen

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)

pytestmark = pytest.mark.django_db


@pytest.fixture
def node(fleet: Fleet) -> Node:
    return Node.objects.get(name="h200-1")


clock = frozen(NOON)


def free(node: Node) -> int:
    return Node.objects.values_list("free_gpus", flat=True).get(pk=node.pk)


def reachability(node: Node) -> str:
    return Node.objects.values_list("reachability", flat=True).get(pk=node.pk)


def take(node: Node, gpus: list[GpuFact]) -> None:
    inventory.take(node=node, said=Inventory(generation=1, gpus=gpus), at=timezone.now())


# Inventory


def test_a_gpu_that_is_unhealthy_or_missing_is_not_sold_until_it_is_well_again(node: Node) -> None:
    well = facts(node)
    take(node, [structs.replace(well[0], healthy=False), *well[1:]])
    assert free(node) == 7
    take(node, well[1:])
    assert free(node) == 7
    take(node, well[2:])
    assert free(node) == 6
    take(node, well)
    assert free(node) == 8


def test_a_stranger_is_not_sold(node: Node) -> None:
    well = facts(node)
    take(node, [*well[1:], structs.replace(well[0], uuid="GPU-stranger")])
    assert free(node) == 7
    assert not Gpu.objects.filter(uuid="GPU-stranger").exists()


def test_a_held_gpu_that_breaks_and_heals_is_counted_once(running: Instance, node: Node) -> None:
    held = GpuHold.objects.get().gpu.uuid
    well = facts(node)
    sick = [structs.replace(gpu, healthy=gpu.uuid != held) for gpu in well]
    assert free(node) == 7
    take(node, sick)
    assert free(node) == 7
    wiped(running)
    placement.release(instance=running, at=timezone.now())
    assert free(node) == 7
    take(node, well)
    assert free(node) == 8


def test_an_inventory_touches_no_other_node(node: Node, fleet: Fleet) -> None:
    take(node, [])
    assert free(node) == 0
    assert {other.free_gpus for other in Node.objects.exclude(pk=node.pk)} == {8}


# What an operator may ask


Verb = Callable[[Node], object]
VERBS: dict[str, Verb] = {
    "cordon": lambda node: nodes.cordon(node=node, reason="a fan is loud", at=timezone.now()),
    "uncordon": lambda node: nodes.uncordon(node=node),
    "drain": lambda node: nodes.drain(node=node, reason="a new power supply", at=timezone.now()),
}


@pytest.mark.parametrize("state", Node.State.values)
@pytest.mark.parametrize("verb", VERBS)
def test_what_may_be_asked_of_a_node_in_each_state(node: Node, state: str, verb: str) -> None:
    table = {
        "cordon": {"available": "cordoned", "cordoned": "cordoned", "draining": "cordoned"},
        "uncordon": {"available": "available", "cordoned": "available", "draining": "available"},
        "drain": {"available": "draining", "cordoned": "draining", "draining": "draining"},
    }
    Node.objects.filter(pk=node.pk).update(state=state)
    node.refresh_from_db()
    if state in table[verb]:
        VERBS[verb](node)
    else:
        with pytest.raises(ProvisioningError):
            VERBS[verb](node)
    assert Node.objects.get(pk=node.pk).state == table[verb].get(state, state)


@pytest.mark.parametrize("verb", ["cordon", "drain"])
def test_nothing_new_is_placed_on_a_node_that_is_closed(fleet: Fleet, rent: Rent, verb: str) -> None:
    for node in Node.objects.filter(name__startswith="h200"):
        VERBS[verb](node)
    with pytest.raises(NoCapacity):
        rent()
    VERBS["uncordon"](Node.objects.get(name="h200-2"))
    assert Assignment.objects.get(instance=rent()).node.name == "h200-2"


def test_a_cordon_leaves_running_what_runs(running: Instance, node: Node, run_until_idle: Run) -> None:
    VERBS["cordon"](node)
    run_until_idle()
    running.refresh_from_db()
    assert running.phase == "running"


def test_a_drain_stops_gangs_and_starts_but_nothing_elsewhere(
    rent: Rent, run_until_idle: Run, fleet: Fleet, actor: Actor
) -> None:
    gang = rent(gpus=5, replicas=2)
    run_until_idle()
    starting, elsewhere = rent(gpus=3), rent(offer=fleet.l40s)
    there = Assignment.objects.get(instance=starting).node
    assert console.drain(actor=actor, node=there, reason="test", at=timezone.now()) == 2
    run_until_idle()
    for instance, phase in [(gang, "stopped"), (starting, "stopped"), (elsewhere, "running")]:
        instance.refresh_from_db()
        assert instance.phase == phase
    assert console.drain(actor=actor, node=there, reason="test", at=timezone.now()) == 0


# Silence


def test_silence_is_noticed_exactly_at_its_times(node: Node, clock: time_machine.Traveller, fleet: Fleet) -> None:
    fleet.sync()
    for silence, before, after in [
        (nodes.SUSPECT_AFTER, "online", "suspect"),
        (nodes.UNREACHABLE_AFTER, "suspect", "unreachable"),
        (leases.lost_after(), "unreachable", "lost"),
    ]:
        clock.move_to(NOON + silence)
        assert nodes.notice_silence(at=timezone.now(), limit=100) == 0
        assert reachability(node) == before
        clock.shift(MILLISECOND)
        assert nodes.notice_silence(at=timezone.now(), limit=100) == 3
        assert reachability(node) == after
        assert nodes.notice_silence(at=timezone.now(), limit=100) == 0
    assert (nodes.SUSPECT_AFTER.total_seconds(), nodes.UNREACHABLE_AFTER.total_seconds()) == (25, 40)
    assert leases.lost_after() == timedelta(seconds=940)


def test_many_silent_nodes_are_all_noticed_in_the_end(clock: time_machine.Traveller, fleet: Fleet) -> None:
    fleet.sync()
    clock.shift(timedelta(minutes=1))
    assert [nodes.notice_silence(at=timezone.now(), limit=1) for _ in range(4)] == [1, 1, 1, 0]
    assert {node.reachability for node in Node.objects.all()} == {"unreachable"}


def test_a_node_that_calls_keeps_its_place(node: Node, clock: time_machine.Traveller, fleet: Fleet) -> None:
    for _ in range(5):
        fleet.nodes["h200-1"].sync()
        clock.shift(timedelta(seconds=20))
        nodes.notice_silence(at=timezone.now(), limit=100)
        assert reachability(node) == "online"


@pytest.mark.parametrize("silence", [timedelta(seconds=30), timedelta(minutes=1), timedelta(hours=1)])
def test_nothing_is_placed_on_a_silent_node_until_it_calls(
    fleet: Fleet, rent: Rent, clock: time_machine.Traveller, silence: timedelta
) -> None:
    fleet.sync()
    clock.shift(silence)
    nodes.notice_silence(at=timezone.now(), limit=100)
    with pytest.raises(NoCapacity):
        rent()
    fleet.nodes["h200-2"].sync()
    assert Assignment.objects.get(instance=rent()).node.name == "h200-2"


def test_a_suspect_node_costs_nobody_anything(clock: time_machine.Traveller, running: Instance, fleet: Fleet) -> None:
    fleet.sync()
    clock.shift(timedelta(seconds=30))
    nodes.notice_silence(at=timezone.now(), limit=100)
    assert UsageSpan.objects.get().ended_at is None
    fleet.sync()
    running.refresh_from_db()
    assert running.health == "healthy"
    assert UsageSpan.objects.count() == 1


def open_meters() -> int:
    return UsageSpan.objects.filter(ended_at=None).count()


def test_a_gangs_meter_opens_when_all_of_its_nodes_are_back(
    rent: Rent, run_until_idle: Run, clock: time_machine.Traveller, fleet: Fleet
) -> None:
    gang = rent(gpus=5, replicas=2)
    run_until_idle()
    fleet.sync()
    last = timezone.now()
    clock.shift(timedelta(minutes=1))
    nodes.notice_silence(at=timezone.now(), limit=100)
    assert UsageSpan.objects.get().ended_at == last
    clock.shift(timedelta(minutes=1))
    fleet.nodes["h200-1"].sync()
    gang.refresh_from_db()
    assert (open_meters(), gang.health) == (0, "unreachable")
    fleet.nodes["h200-2"].sync()
    gang.refresh_from_db()
    assert (open_meters(), gang.health) == (1, "healthy")
    assert UsageSpan.objects.get(ended_at=None).started_at == timezone.now()
    fleet.sync()
    assert open_meters() == 1


def test_the_meter_closes_when_one_node_of_a_gang_falls_silent(
    rent: Rent, run_until_idle: Run, clock: time_machine.Traveller, fleet: Fleet
) -> None:
    rent(gpus=5, replicas=2)
    run_until_idle()
    fleet.sync()
    clock.shift(timedelta(minutes=1))
    fleet.nodes["h200-2"].sync()
    nodes.notice_silence(at=timezone.now(), limit=100)
    assert open_meters() == 0
    fleet.nodes["h200-2"].sync()
    assert open_meters() == 0
    fleet.nodes["h200-1"].sync()
    assert open_meters() == 1


def test_a_node_that_was_lost_before_anybody_looked_is_charged_until_its_last_call_only(
    clock: time_machine.Traveller, running: Instance, fleet: Fleet
) -> None:
    fleet.sync()
    clock.shift(timedelta(hours=5))
    nodes.notice_silence(at=timezone.now(), limit=100)
    for _ in range(3):
        engine.run_one(running.pk, PLAN)
    running.refresh_from_db()
    assert running.phase == "failed"
    assert UsageSpan.objects.get().ended_at == NOON
    assert books.check(at=timezone.now()) == []


def test_a_lost_node_that_comes_back_is_told_to_remove_what_it_still_has(
    clock: time_machine.Traveller, running: Instance, run_until_idle: Run, fleet: Fleet
) -> None:
    played = fleet.nodes["h200-1"]
    fleet.sync()
    assert len(played.desired) == 1
    clock.shift(leases.lost_after() + MILLISECOND)
    nodes.notice_silence(at=timezone.now(), limit=100)
    # Even if it calls before the workflow has looked.
    assert played.sync()["desired"]["assignments"] == []
    for _ in range(3):
        engine.run_one(running.pk, PLAN)
    assert not GpuHold.objects.filter(released_at=None).exists()
    played.sync()
    assert played.states == {}
    assert reachability(played.node) == "online"
    running.refresh_from_db()
    assert running.phase == "failed"
    assert open_meters() == 0


def test_what_was_stopped_while_its_node_was_silent_is_not_charged_when_it_comes_back(
    clock: time_machine.Traveller, running: Instance, fleet: Fleet, run_until_idle: Run, actor: Actor
) -> None:
    fleet.sync()
    clock.shift(timedelta(minutes=1))
    nodes.notice_silence(at=timezone.now(), limit=100)
    console.drain(actor=actor, node=Node.objects.get(name="h200-1"), reason="test", at=timezone.now())
    clock.shift(timedelta(minutes=1))
    fleet.sync()
    assert open_meters() == 0
    run_until_idle()
    running.refresh_from_db()
    assert running.phase == "stopped"


def test_a_silent_node_that_joins_anew_opens_the_meters_of_what_still_runs_there(
    clock: time_machine.Traveller, running: Instance, fleet: Fleet
) -> None:
    fleet.sync()
    clock.shift(timedelta(minutes=1))
    nodes.notice_silence(at=timezone.now(), limit=100)
    assert open_meters() == 0
    before = fleet.nodes["h200-1"]
    rejoined = join(Node.objects.get(name="h200-1"), at=timezone.now())
    PlayedNode(rejoined.node, rejoined.key, states=before.states, desired=before.desired).sync()
    running.refresh_from_db()
    assert (open_meters(), running.health) == (1, "healthy")


def test_joining_anew_starts_counting_reports_anew(node: Node, fleet: Fleet) -> None:
    fleet.nodes["h200-1"].epoch = 50
    fleet.sync()
    join(node)
    heartbeat = Heartbeat.objects.get(node=node)
    assert (heartbeat.agent_epoch, heartbeat.seq) == (0, 0)


LOCKED = ("workflow", "instance", "account", "heartbeat", "capacity", "node")


def test_what_a_silent_node_runs_is_locked_before_any_account(rent: Rent, run_until_idle: Run, fleet: Fleet) -> None:
    for _ in range(2):
        rent()
    run_until_idle()
    at = timezone.now() + nodes.leases.lost_after() + timedelta(minutes=1)
    with CaptureQueriesContext(
        connection,
    ) as captured:
        nodes.notice_silence(at=at, limit=10)
    locks = [query["sql"] for query in captured.captured_queries if "FOR " in query["sql"] and "UPDATE" in query["sql"]]
    tables = [next(name for name in LOCKED if re.search(rf"_{name}\b", sql)) for sql in locks]
    # A node that is lost is counted out of what is sold last of all; then comes the next one, in its own transaction.
    after = locks[tables.index("capacity") :]
    assert all("provisioning_capacity" in sql or sql.endswith('OF "provisioning_heartbeat"') for sql in after)
    first_account = tables.index("account")
    assert "workflow" in tables[:first_account]
    assert "instance" in tables[:first_account]
    assert tables.count("workflow") == tables[:first_account].count("workflow")
