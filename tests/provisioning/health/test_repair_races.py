"""Two at once: attempts, breakers and decisions are counted once; each guard has its race."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from provisioning import inventory, tasks
from provisioning.health import breaker, events, operations, remedies
from provisioning.models import (
    Breaker,
    HealthEvent,
    Node,
    Operation,
    Remediation,
)
from provisioning.protocol import Inventory
from tests.nodes import facts
from tests.provisioning.health.cast import Heal, repair_of


def at_the_same_moment(count: int, work: Callable[[], Any]) -> list[Any]:
    barrier, answers = threading.Barrier(count), list[Any]()

    def go() -> None:
        try:
            barrier.wait(timeout=10)
            answers.append(work())
        finally:
            connection.close()

    threads = [threading.Thread(target=go) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return answers


def slowly(work: Callable[..., Any]) -> Callable[..., Any]:
    """Let others come between what was read and what is written."""

    def late(*given: Any, **named: Any) -> Any:
        time.sleep(0.3)
        return work(*given, **named)

    return late


def make_repair(node: Node, **overrides: Any) -> Remediation:
    at = timezone.now()
    ordinary = {
        "node": node, "action": "reboot_node", "severity": 4, "rule": "lost", "table_version": "1", "reason": "test",
        "state": "draining", "state_since": at, "opened_at": at, "ladder": ["reboot_node"], "attempts_max": 1,
    }  # fmt: skip
    return Remediation.objects.create(**ordinary | overrides)


@pytest.mark.django_db(transaction=True)
def test_the_last_attempt_is_reserved_once_however_many_try(fleet: Any) -> None:
    node = fleet.nodes["h200-1"].node
    repair = make_repair(node)

    def reserve() -> bool:
        mine = Remediation.objects.get(pk=repair.pk)
        return operations.reserve(remediation=mine, gpus=[], at=timezone.now())

    assert sorted(at_the_same_moment(4, reserve)) == [False, False, False, True]
    assert Operation.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_two_nodes_at_once_do_not_both_pass_the_breaker(fleet: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(breaker, "admits", slowly(breaker.admits))
    Breaker.objects.create(offer=fleet.h200)
    nodes = [fleet.nodes[name].node for name in ("h200-1", "h200-2")]
    turns = iter(nodes)
    assert sorted(at_the_same_moment(2, lambda: breaker.admit(node=next(turns), at=timezone.now()))) == [False, True]


@pytest.mark.django_db(transaction=True)
def test_two_workers_decide_on_an_event_once(fleet: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(events, "classify", slowly(events.classify))
    demanded: list[Any] = []
    real = remedies.demand
    monkeypatch.setattr(remedies, "demand", lambda **order: demanded.append(order) or real(**order))
    node = fleet.nodes["h200-1"].node
    HealthEvent.objects.create(node=node, gpu=node.gpus.first(), at=timezone.now(), source="nvml", code="xid:119")
    at_the_same_moment(3, tasks.decide_health_events)
    assert (len(demanded), Remediation.objects.count()) == (1, 1)


def test_what_is_used_up_cannot_be_reserved(fleet: Any) -> None:
    repair = make_repair(fleet.nodes["h200-1"].node, attempts=1)
    assert not operations.reserve(remediation=repair, gpus=[], at=timezone.now())
    assert not Operation.objects.exists()


def test_a_crash_between_the_count_and_the_operation_leaves_neither(fleet: Any, monkeypatch: Any) -> None:
    repair = make_repair(fleet.nodes["h200-1"].node)

    def crash(**_: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as broken:
        broken.setattr(operations, "order", crash)
        with pytest.raises(RuntimeError):
            remedies.advance(repair.pk, at=timezone.now())
    repair.refresh_from_db()
    assert (repair.attempts, repair.state, Operation.objects.count()) == (0, "draining", 0)
    remedies.advance(repair.pk, at=timezone.now())
    repair.refresh_from_db()
    assert (repair.attempts, repair.state, Operation.objects.count()) == (1, "acting", 1)


def test_a_node_that_lost_a_gpu_does_not_pass(fleet: Any, heal: Heal) -> None:
    played = fleet.nodes["h200-1"]
    played.breaks(2, "lost")
    report = facts(played.node)[:2] + facts(played.node)[3:]
    inventory.take(node=played.node, said=Inventory(generation=2, gpus=report), at=timezone.now())
    heal(rounds=20)
    assert repair_of(played).state == Remediation.State.CONDEMNED
    assert "GPU 2" in repair_of(played).message


def test_what_a_breaker_holds_back_does_not_keep_others_from_their_turn(fleet: Any, monkeypatch: Any) -> None:
    Breaker.objects.create(offer=fleet.h200, opened_at=timezone.now())
    held_back = make_repair(fleet.nodes["h200-1"].node, state="waiting")
    other = make_repair(fleet.nodes["l40s-1"].node, state="waiting")
    assert remedies.due(limit=1) == [other.pk]
    Breaker.objects.create(offer=None, opened_at=timezone.now())
    assert remedies.due(limit=9) == []
    Breaker.objects.update(opened_at=None)
    assert remedies.due(limit=9) == [held_back.pk, other.pk]


def test_no_repair_goes_on_while_the_breaker_of_its_pool_is_open(fleet: Any) -> None:
    repair = make_repair(fleet.nodes["h200-1"].node)
    Breaker.objects.create(offer=fleet.h200, opened_at=timezone.now())
    remedies.advance(repair.pk, at=timezone.now())
    repair.refresh_from_db()
    assert (repair.state, repair.attempts) == ("draining", 0)
