"""XID 79 on a real agent of a real gateway: out of placement, the reason, the bill, and the gate."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from billing.models import UsageSpan
from provisioning import engine, nodes, tasks
from provisioning.models import Gpu, HealthEvent, Instance, Node, Operation, Remediation, WipeRecord
from provisioning.steps import PLAN
from tests.conftest import Fleet, Rent
from tests.nodes import announce

WITHIN_S = 5.0


@pytest.fixture
def real(transactional_db: None, fleet: Fleet, live_server: Any, tmp_path: Path) -> Iterator[tuple[Node, Path]]:
    """A node with a real agent, whose eight GPUs are simulated; the played nodes are out of the way."""
    Node.objects.update(state=Node.State.CORDONED)
    node = announce(fleet.h200, fleet.nodes["h200-1"].node.fabric, name="real-1", gpus=8)
    home = tmp_path / "home"
    token = nodes.issue_join_token(node=node, at=timezone.now())
    options = ["--url", live_server.url, "--home", str(home), "--gpus", "simulated:H200:8:1000"]
    with (tmp_path / "agent.log").open("wb") as log:
        agent = subprocess.Popen(
            [sys.executable, "-m", "provisioning.agent.main", *options, "--reboot-command", "simulated",
             "--end-workloads-on-exit"],
            env=os.environ | {"GPUMARKET_JOIN_TOKEN": token}, stderr=log,
        )  # fmt: skip
    try:
        until(lambda: Node.objects.get(pk=node.pk).state == Node.State.AVAILABLE, seconds=30)
        yield node, home
    finally:
        agent.terminate()
        agent.wait(timeout=15)


def until(ask: Callable[[], Any], *, seconds: float) -> float:
    """Let workers and sweeps work until the answer is true; return how many seconds that took."""
    began = time.monotonic()
    while not ask():
        assert time.monotonic() - began < seconds, "not in time"
        for workflow_id in engine.due(limit=100):
            while engine.run_one(workflow_id, PLAN):
                pass
        tasks.decide_health_events()
        tasks.repair()
        time.sleep(0.05)
    return time.monotonic() - began


def phase(instance: Instance) -> str:
    return str(Instance.objects.values_list("phase", flat=True).get(pk=instance.pk))


def test_a_gpu_that_falls_off_the_bus(real: tuple[Node, Path], rent: Rent) -> None:
    node, home = real
    instance = rent(gpus=2)
    until(lambda: Instance.objects.get(pk=instance.pk).health == "healthy", seconds=30)
    time.sleep(0.5)

    raised_at = timezone.now()
    (home / "new").write_text("0 xid:79 GPU has fallen off the bus.\n")
    (home / "new").rename(home / "simulated-events")
    took_s = until(lambda: Node.objects.get(pk=node.pk).is_held and phase(instance) == "failed", seconds=WITHIN_S)
    assert took_s < WITHIN_S
    instance.refresh_from_db()
    assert (instance.reason, instance.retryable) == ("gpu_fault", True)
    assert "fallen off the bus" in instance.message
    span = UsageSpan.objects.get(resource_id=instance.public_id)
    assert span.ended_at is not None
    assert abs((span.ended_at - raised_at).total_seconds()) < 2
    assert HealthEvent.objects.get().rule == "lost"
    assert Gpu.objects.filter(node=node, state="quarantined").count() == 1

    until(lambda: not Node.objects.get(pk=node.pk).is_held, seconds=40)
    done = list(Operation.objects.order_by("pk").values_list("kind", "outcome"))
    assert done == [("reboot_node", "succeeded"), *[("wipe", "succeeded")] * 8, ("verify", "succeeded")]
    assert Remediation.objects.get().state == "returned"
    assert WipeRecord.objects.filter(assignment__instance=instance, result="ok").count() == 2
    node.refresh_from_db()
    assert node.free_gpus == 8
