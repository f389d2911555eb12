"""XID 79 on a real agent of a real gateway: out of placement, the reason, the bill, elsewhere, and the gate."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from billing.models import UsageSpan
from marketplace import restarts
from provisioning import engine, nodes, tasks
from provisioning.models import Gpu, HealthEvent, Instance, Node, Operation, Remediation, WipeRecord
from provisioning.steps import PLAN
from tests.conftest import Fleet, Rent
from tests.nodes import announce
from tests.nvml import FakeNvml

WITHIN_S = 20.0


@dataclass
class Machine:
    """A node with a real agent, and how a test breaks and mends its first GPU."""

    node: Node
    breaks: Callable[[], None]
    mends: Callable[[], None]
    loses_it: bool


def simulated(home: Path) -> tuple[Callable[[], None], Callable[[], None]]:
    def breaks() -> None:
        (home / "new").write_text("0 xid:79 GPU has fallen off the bus.\n")
        (home / "new").rename(home / "simulated-events")

    return breaks, lambda: None


@pytest.fixture(params=["simulated", "nvml"])
def machine(
    request: Any, transactional_db: None, fleet: Fleet, live_server: Any, tmp_path: Path, fake_nvml: FakeNvml
) -> Iterator[Machine]:
    """Eight GPUs that are simulated, or that the pretended driver plays; the played H200 nodes are out of the way."""
    Node.objects.filter(offer=fleet.h200).update(state=Node.State.CORDONED)
    node = announce(fleet.h200, fleet.nodes["h200-1"].node.fabric, name="real-1", gpus=8)
    home, environ = tmp_path / "home", {"GPUMARKET_JOIN_TOKEN": nodes.issue_join_token(node=node, at=timezone.now())}
    gpus, (breaks, mends) = "simulated:H200:8:143771", simulated(home)
    if request.param == "nvml":
        gpus, breaks, mends = "nvml", lambda: fake_nvml.lose(0), lambda: fake_nvml.heal(0)
        environ |= fake_nvml.environment(request.getfixturevalue("nvml_library"))
    options = ["--url", live_server.url, "--home", str(home), "--gpus", gpus, "--reboot-command", "simulated"]
    with (tmp_path / "agent.log").open("wb") as log:
        agent = subprocess.Popen(
            [sys.executable, "-m", "provisioning.agent.main", *options, "--end-workloads-on-exit"],
            env=os.environ | environ,
            stderr=log,
        )
    try:
        until(lambda: Node.objects.get(pk=node.pk).state == Node.State.AVAILABLE, fleet=fleet, seconds=30)
        yield Machine(node, breaks, mends, loses_it=request.param == "nvml")
    finally:
        agent.terminate()
        agent.wait(timeout=15)


def until(ask: Callable[[], Any], *, fleet: Fleet, seconds: float) -> float:
    """Let nodes report, and workers and sweeps work, until the answer is true; return how many seconds that took."""
    began = time.monotonic()
    while not ask():
        assert time.monotonic() - began < seconds, "not in time"
        fleet.sync()
        for workflow_id in engine.due(limit=100):
            while engine.run_one(workflow_id, PLAN):
                pass
        tasks.decide_health_events()
        tasks.repair()
        restarts.start_again(at=timezone.now(), limit=10)
        time.sleep(0.05)
    return time.monotonic() - began


def test_a_gpu_that_falls_off_the_bus(machine: Machine, fleet: Fleet, rent: Rent) -> None:
    node = machine.node
    instance = rent(gpus=2, on_failure="restart")
    until(lambda: Instance.objects.get(pk=instance.pk).health == "healthy", fleet=fleet, seconds=30)
    Node.objects.filter(name="h200-2").update(state=Node.State.AVAILABLE)
    time.sleep(0.5)

    raised_at = timezone.now()
    machine.breaks()
    failures = instance.events.filter(new_phase="failed")
    until(lambda: Node.objects.get(pk=node.pk).is_held and failures.exists(), fleet=fleet, seconds=WITHIN_S)
    failure = failures.get()
    assert failure.reason == "gpu_fault"
    assert "fallen off the bus" in failure.message
    span = UsageSpan.objects.filter(resource_id=instance.public_id).earliest("pk")
    assert span.ended_at is not None
    assert abs((span.ended_at - raised_at).total_seconds()) < WITHIN_S
    # Signs of the same loss may still come in; what was decided on was decided as that.
    told = HealthEvent.objects.order_by("pk").values_list("code", "rule", "decided_at")
    assert {rule for _, rule, decided_at in told if decided_at} == {"lost"}, list(told)
    assert Gpu.objects.filter(node=node, state="quarantined").count() == 1

    def runs_elsewhere() -> bool:
        instance.refresh_from_db()
        return instance.phase == "running" and instance.run == 2

    until(runs_elsewhere, fleet=fleet, seconds=60)
    assert instance.assignments.get(fence=2).node.name == "h200-2"
    wiped = WipeRecord.objects.filter(assignment__instance=instance, assignment__fence=1)
    # A GPU that is lost cannot be shown to be clean.
    assert sorted(wiped.values_list("result", flat=True)) == (["failed", "ok"] if machine.loses_it else ["ok", "ok"])

    machine.mends()
    until(lambda: not Node.objects.get(pk=node.pk).is_held, fleet=fleet, seconds=60)
    done = list(Operation.objects.exclude(outcome="failed").order_by("pk").values_list("kind", flat=True))
    assert done[-9:] == [*["wipe"] * 8, "verify"]
    assert "reboot_node" in done
    assert Remediation.objects.get().state == "returned"
    node.refresh_from_db()
    assert node.free_gpus == 8
