"""How clean GPUs are between tenants: only a good record makes one clean."""

from typing import Any

import pytest
from django.utils import timezone

from marketplace import rentals
from provisioning.models import (
    Gpu,
    Instance,
    Node,
    Operation,
    WipeRecord,
)
from tests.provisioning.health.cast import Heal, gpu_of


def stop(actor: Any, instance: Instance) -> None:
    rentals.stop(actor=actor, instance=instance, at=timezone.now())


def test_a_released_gpu_is_clean_by_its_record(played: Any, running: Instance, actor: Any, heal: Heal) -> None:
    stop(actor, running)
    heal(rounds=3)
    record = WipeRecord.objects.get()
    assert (record.assignment.instance, record.gpu, record.result) == (running, gpu_of(played), "ok")
    assert gpu_of(played).state == Gpu.State.CLEAN
    assert not Operation.objects.exists()


def test_a_gpu_without_a_record_is_dirty_and_is_wiped_before_anybody_gets_it(
    played: Any, running: Instance, actor: Any, heal: Heal, run_until_idle: Any
) -> None:
    played.wipe_result = None
    stop(actor, running)
    run_until_idle()
    assert gpu_of(played).state == Gpu.State.DIRTY
    assert Node.objects.get(pk=played.node.pk).free_gpus == 7
    heal(rounds=2)
    assert gpu_of(played).state == Gpu.State.DIRTY, "an operation that succeeded is no record of a wipe"
    played.wipe_result = "ok"
    heal(rounds=3)
    assert gpu_of(played).state == Gpu.State.CLEAN


def test_a_failed_wipe_keeps_a_gpu_out(played: Any, running: Instance, actor: Any, heal: Heal) -> None:
    played.wipe_result = "failed"
    stop(actor, running)
    heal(rounds=4)
    assert gpu_of(played).state == Gpu.State.QUARANTINED
    assert "wipe failed" in gpu_of(played).state_reason
    assert Node.objects.get(pk=played.node.pk).free_gpus == 7


def test_where_the_operator_asks_for_a_scrub_a_wipe_without_one_is_not_enough(
    played: Any, running: Instance, actor: Any, heal: Heal, settings: Any
) -> None:
    settings.GPU_WIPE_NEEDS_SCRUB = True
    played.wipe_result = None
    assignment = running.assignments.get()
    played.tell(
        "wipe", gpu=gpu_of(played).uuid, assignment=assignment.public_id, fence=assignment.fence,
        method="none available", result="ok", covered_bytes=0, duration_ms=5, message="no tool",
    )  # fmt: skip
    stop(actor, running)
    heal(rounds=3)
    assert gpu_of(played).state == Gpu.State.QUARANTINED


@pytest.mark.parametrize("wrong", ["fence", "gpu", "another tenant"])
def test_a_record_that_is_not_of_this_tenant_cleans_nothing(
    wrong: str, played: Any, running: Instance, actor: Any, run_until_idle: Any
) -> None:
    played.wipe_result = None
    assignment = running.assignments.get()
    body = {"gpu": gpu_of(played).uuid, "assignment": assignment.public_id, "fence": assignment.fence}
    body |= {"fence": {"fence": 99}, "gpu": {"gpu": "GPU-x"}, "another tenant": {"assignment": "asg_other"}}[wrong]
    stop(actor, running)
    run_until_idle()
    played.tell("wipe", method="simulated", result="ok", covered_bytes=0, duration_ms=1, message="", **body)
    played.sync()
    assert gpu_of(played).state == Gpu.State.DIRTY


@pytest.mark.parametrize("earlier", ["failed", None])
def test_an_agent_that_lost_its_memory_cannot_call_a_used_gpu_unused(
    earlier: str | None, played: Any, running: Instance, actor: Any, run_until_idle: Any
) -> None:
    played.wipe_result = earlier
    assignment = running.assignments.get()
    stop(actor, running)
    run_until_idle()
    played.tell(
        "wipe", gpu=gpu_of(played).uuid, assignment=assignment.public_id, fence=assignment.fence,
        method="never used", result="ok", covered_bytes=None, duration_ms=0, message="",
    )  # fmt: skip
    played.sync()
    assert gpu_of(played).state == (Gpu.State.QUARANTINED if earlier else Gpu.State.DIRTY)


def test_a_record_that_comes_after_the_release_counts(
    played: Any, running: Instance, actor: Any, run_until_idle: Any
) -> None:
    played.wipe_result = None
    assignment = running.assignments.get()
    stop(actor, running)
    run_until_idle()
    assert gpu_of(played).state == Gpu.State.DIRTY
    played.tell(
        "wipe", gpu=gpu_of(played).uuid, assignment=assignment.public_id, fence=assignment.fence,
        method="simulated", result="ok", covered_bytes=0, duration_ms=1, message="",
    )  # fmt: skip
    played.sync()
    assert gpu_of(played).state == Gpu.State.CLEAN
    assert Node.objects.get(pk=played.node.pk).free_gpus == 8
