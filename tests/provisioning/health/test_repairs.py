"""From an event to the gate: what leaves placement, who is told and not charged, and what comes back."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from structlog.testing import capture_logs

from billing.models import UsageSpan
from marketplace import rentals
from provisioning import tasks
from provisioning.errors import ProvisioningError
from provisioning.health import breaker, faults, operations, remedies
from provisioning.models import (
    Breaker,
    Gpu,
    HealthEvent,
    Instance,
    InstanceEvent,
    Node,
    NodeHold,
    NodeInventory,
    Operation,
    Remediation,
)
from tests.provisioning.health.cast import Heal, gpu_of, repair_of


def test_xid_79_takes_the_node_out_ends_the_run_at_the_fault_and_only_the_gate_lets_it_back(
    played: Any, running: Instance, heal: Heal, clock: Any, fleet: Any
) -> None:
    clock.shift(timedelta(minutes=5))
    began = timezone.now()
    played.breaks(0, "xid:79", ago_ms=800, detail="GPU has fallen off the bus.")
    played.ignores_operations = True
    played.sync()
    tasks.decide_health_events()

    event = HealthEvent.objects.get()
    assert (event.rule, event.action, event.scope) == ("lost", "reboot_node", "node")
    assert event.table_version
    running.refresh_from_db()
    assert (running.phase, running.reason, running.retryable) == ("failed", "gpu_fault", True)
    assert "fallen off the bus" in running.message
    assert "12:04:59 UTC (xid:79)" in running.message
    assert "not charged since 12:04:59 UTC" in running.message
    assert UsageSpan.objects.get().ended_at == began - timedelta(milliseconds=800)
    node = Node.objects.get(pk=played.node.pk)
    assert node.is_held
    assert gpu_of(played).state == Gpu.State.QUARANTINED
    assert NodeHold.objects.get(released_at=None).kind == NodeHold.Kind.HEALTH

    heal(rounds=3)
    assert repair_of(played).state == Remediation.State.ACTING
    asked = Operation.objects.get()
    assert (asked.kind, asked.attempt, asked.outcome) == ("reboot_node", 1, "pending")
    played.boot_id, played.ignores_operations = "another boot", False
    heal(rounds=1)
    assert Operation.objects.filter(kind="reboot_node", outcome="succeeded").count() == 1
    assert Node.objects.get(pk=played.node.pk).is_held, "not before the gate"
    heal()
    kinds = list(Operation.objects.order_by("pk").values_list("kind", "outcome"))
    assert kinds == [("reboot_node", "succeeded"), *[("wipe", "succeeded")] * 8, ("verify", "succeeded")]
    assert repair_of(played).state == Remediation.State.RETURNED
    node.refresh_from_db()
    assert (node.is_held, node.free_gpus) == (False, 8)
    assert set(Gpu.objects.filter(node=node).values_list("state", flat=True)) == {"clean"}


def test_a_gpu_fault_takes_one_gpu_and_leaves_the_others(
    played: Any, running: Instance, rent: Any, run_until_idle: Any, heal: Heal
) -> None:
    played.ignores_operations = True
    other = rent(name="other")
    run_until_idle()
    played.breaks(0, "xid:119")
    played.sync()
    tasks.decide_health_events()
    other.refresh_from_db()
    running.refresh_from_db()
    assert (running.phase, other.phase) == ("failed", "running")
    node = Node.objects.get(pk=played.node.pk)
    assert (node.is_held, node.free_gpus) == (False, 6)
    played.ignores_operations = False
    heal()
    assert repair_of(played).state == Remediation.State.RETURNED
    assert gpu_of(played).state == Gpu.State.CLEAN
    other.refresh_from_db()
    assert other.phase == "running"


def test_what_never_ran_costs_nothing_and_a_fault_before_the_run_is_charged_from_its_start(
    played: Any, running: Instance, clock: Any
) -> None:
    clock.shift(timedelta(minutes=1))
    played.breaks(0, "xid:79", ago_ms=3_600_000)
    played.sync()
    tasks.decide_health_events()
    span = UsageSpan.objects.get()
    assert span.ended_at == span.started_at


def test_a_gang_ends_as_a_whole(rent: Any, clock: Any, fleet: Any, run_until_idle: Any) -> None:
    gang = rent(replicas=2, gpus=8)
    run_until_idle()
    fleet.nodes["h200-1"].breaks(3, "xid:79")
    fleet.sync()
    tasks.decide_health_events()
    gang.refresh_from_db()
    assert (gang.phase, gang.reason) == ("failed", "gpu_fault")
    assert "All 2 replicas end together" in gang.message


def test_the_message_says_that_it_moves_where_the_customer_asked_for_it(played: Any, running: Instance) -> None:
    Instance.objects.filter(pk=running.pk).update(on_failure="restart")
    played.breaks(0, "lost")
    played.sync()
    tasks.decide_health_events()
    running.refresh_from_db()
    assert "starts again by itself, on GPUs that are in order" in running.message


def test_a_fault_of_the_program_is_told_and_nothing_else_happens(played: Any, running: Instance, heal: Heal) -> None:
    played.breaks(0, "xid:13", detail="Graphics SM Warp Exception")
    played.sync()
    tasks.decide_health_events()
    running.refresh_from_db()
    assert (running.phase, running.health) == ("running", "degraded")
    assert "xid:13" in InstanceEvent.objects.get(instance=running, kind="health").message
    assert not Remediation.objects.exists()
    assert gpu_of(played).state == Gpu.State.CLEAN
    heal(rounds=3)
    running.refresh_from_db()
    assert running.health == "degraded"


def test_it_is_healthy_again_when_nothing_was_told_for_ten_minutes(
    played: Any, running: Instance, heal: Heal, clock: Any
) -> None:
    played.breaks(0, "xid:31")
    heal(rounds=1)
    clock.shift(faults.DEGRADED_FOR)
    heal(rounds=1)
    running.refresh_from_db()
    assert running.health == "healthy"


def test_a_pending_row_remap_lets_what_runs_finish_and_resets_then(
    played: Any, running: Instance, heal: Heal, actor: Any
) -> None:
    played.breaks(0, "row_remap_pending")
    heal(rounds=3)
    running.refresh_from_db()
    assert (running.phase, running.health) == ("running", "degraded")
    assert Node.objects.get(pk=played.node.pk).free_gpus == 7
    assert not Operation.objects.exists()
    rentals.stop(actor=actor, instance=running, at=timezone.now())
    heal()
    assert list(Operation.objects.order_by("pk").values_list("kind", flat=True)) == ["reset_gpu", "wipe", "verify"]
    assert gpu_of(played).state == Gpu.State.CLEAN


def test_heat_clears_by_itself_after_ten_minutes_without_news(
    played: Any, running: Instance, actor: Any, heal: Heal, clock: Any
) -> None:
    played.breaks(5, "thermal")
    heal(rounds=3)
    assert gpu_of(played, 5).state == Gpu.State.QUARANTINED
    clock.shift(timedelta(minutes=10))
    heal(rounds=5)
    assert gpu_of(played, 5).state == Gpu.State.CLEAN


def test_what_cannot_be_repaired_waits_for_a_person(played: Any, running: Instance, heal: Heal) -> None:
    played.breaks(0, "row_remap_failed")
    heal()
    assert repair_of(played).state == Remediation.State.CONDEMNED
    assert gpu_of(played).state == Gpu.State.QUARANTINED
    assert not Operation.objects.exists()


def test_when_its_attempts_are_used_up_it_is_condemned(played: Any, running: Instance, heal: Heal) -> None:
    played.operation_ends = {"reset_gpu": ("failed", "nvidia-smi is not on this node"), "reboot_node": ("failed", "no")}
    played.breaks(0, "xid:119")
    heal()
    repair = repair_of(played)
    assert (repair.state, repair.attempts, repair.attempts_max) == (Remediation.State.CONDEMNED, 2, 2)
    assert list(Operation.objects.order_by("pk").values_list("kind", "outcome")) == [
        ("reset_gpu", "failed"), ("reboot_node", "failed"),
    ]  # fmt: skip


def test_attempts_of_earlier_repairs_count_within_the_window(
    played: Any, running: Instance, heal: Heal, clock: Any
) -> None:
    played.breaks(5, "xid:95")
    heal()
    assert repair_of(played).state == Remediation.State.RETURNED
    clock.shift(timedelta(hours=20))
    played.breaks(5, "xid:95")
    heal()
    assert repair_of(played).state == Remediation.State.CONDEMNED, "a second time within a day"


def test_a_gate_that_does_not_open_leads_to_the_next_attempt(played: Any, running: Instance, heal: Heal) -> None:
    played.operation_ends = {"verify": ("failed", "2 memory errors are uncorrected")}
    played.breaks(5, "xid:109")
    heal(rounds=20)
    repair = repair_of(played)
    assert repair.state == Remediation.State.CONDEMNED
    assert "2 memory errors" in repair.message
    assert Operation.objects.filter(kind="reset_gpu").count() == 2
    assert gpu_of(played, 5).state == Gpu.State.QUARANTINED


@pytest.mark.parametrize("how", ["not healthy", "another fault"])
def test_the_gate_looks_at_what_we_know_ourselves(how: str, played: Any, running: Instance, heal: Heal) -> None:
    played.ignores_operations = True
    played.breaks(5, "xid:109")
    heal(rounds=3)
    played.ignores_operations = False
    if how == "not healthy":
        Gpu.objects.filter(pk=gpu_of(played, 5).pk).update(healthy=False)
    else:
        played.operation_ends = {"verify": ("succeeded", "")}
        heal(rounds=1)
        played.breaks(5, "ecc_dbe")
    heal(rounds=4)
    assert gpu_of(played, 5).state != Gpu.State.CLEAN


def test_a_repair_whose_end_nobody_knows_is_not_tried_again_until_something_is_observed(
    played: Any, running: Instance, heal: Heal, clock: Any
) -> None:
    played.ignores_operations = True
    played.breaks(0, "xid:79")
    heal(rounds=3)
    clock.shift(operations.LIMITS[Operation.Kind.REBOOT_NODE])
    heal()
    assert (repair_of(played).state, Operation.objects.get().outcome) == (Remediation.State.STUCK, "unknown")
    clock.shift(timedelta(days=1))
    heal()
    assert Operation.objects.count() == 1
    played.boot_id, played.ignores_operations = "a new boot", False
    heal()
    assert Operation.objects.get(kind="reboot_node").outcome == "succeeded"
    assert repair_of(played).state == Remediation.State.RETURNED


def test_a_late_word_of_the_node_clears_up_what_was_unknown(
    played: Any, running: Instance, heal: Heal, clock: Any
) -> None:
    played.ignores_operations = True
    played.breaks(5, "xid:109")
    heal(rounds=3)
    clock.shift(operations.LIMITS[Operation.Kind.RESET_GPU])
    heal(rounds=3)
    assert repair_of(played).state == Remediation.State.STUCK
    played.ignores_operations = False
    played.tell("operation", operation=Operation.objects.get().public_id, result="succeeded", message="")
    heal()
    assert repair_of(played).state == Remediation.State.RETURNED


def test_an_end_counts_once(played: Any, running: Instance, heal: Heal) -> None:
    played.operation_ends = {"reset_gpu": ("failed", "no")}
    played.ignores_operations = True
    played.breaks(5, "xid:95")
    heal(rounds=3)
    made = Operation.objects.get()
    for result in ("failed", "succeeded"):
        played.tell("operation", operation=made.public_id, result=result, message="")
    played.tell("operation", operation=made.public_id, result="nonsense", message="")
    played.sync()
    made.refresh_from_db()
    assert made.outcome == "failed"


def test_an_open_breaker_records_and_does_nothing(
    fleet: Any, played: Any, running: Instance, heal: Heal, clock: Any
) -> None:
    other = next(node for name, node in fleet.nodes.items() if node is not played and name.startswith("h200"))
    other.breaks(1, "xid:119")
    heal()
    played.breaks(0, "xid:79")
    heal()
    assert repair_of(played).state == Remediation.State.WAITING
    running.refresh_from_db()
    assert running.phase == "running"
    assert not Node.objects.get(pk=played.node.pk).is_held
    fault_at = HealthEvent.objects.get(code="xid:79").at
    breaker.close(breaker=Breaker.objects.get(offer=fleet.h200), at=timezone.now())
    heal()
    running.refresh_from_db()
    assert running.phase == "failed"
    assert UsageSpan.objects.get().ended_at == fault_at, "what was charged after the fault is given back"
    assert repair_of(played).state == Remediation.State.RETURNED


def test_others_on_the_node_may_finish_until_the_drain_is_over(
    played: Any, running: Instance, rent: Any, run_until_idle: Any, heal: Heal, clock: Any
) -> None:
    other = rent(name="other")
    run_until_idle()
    assert other.assignments.get().node == played.node
    played.breaks(0, "xid:79")
    heal(rounds=3)
    other.refresh_from_db()
    assert (other.phase, other.health) == ("running", "degraded")
    assert "until 13:00 UTC" in other.events.get(kind="health").message
    clock.shift(timedelta(minutes=60))
    heal()
    other.refresh_from_db()
    assert (other.phase, other.reason) == ("failed", "gpu_fault")
    assert repair_of(played).state == Remediation.State.RETURNED


def test_a_graver_event_makes_the_repair_larger_and_a_lesser_one_joins_it(
    played: Any, running: Instance, heal: Heal
) -> None:
    played.ignores_operations = True
    played.breaks(0, "row_remap_pending")
    heal(rounds=2)
    played.breaks(0, "xid:95")
    heal(rounds=1)
    running.refresh_from_db()
    assert running.phase == "failed"
    assert Remediation.objects.count() == 1
    played.breaks(0, "xid:79")
    heal(rounds=2)
    states = list(Remediation.objects.order_by("pk").values_list("gpu", "state"))
    assert states == [(gpu_of(played).pk, "cancelled"), (None, "acting")]
    played.breaks(1, "xid:119")
    heal(rounds=2)
    assert Remediation.objects.count() == 2


def test_a_second_gpu_that_breaks_on_a_node_in_repair_is_quarantined_with_it(
    played: Any, running: Instance, heal: Heal
) -> None:
    played.ignores_operations = True
    played.breaks(None, "xid:79")
    heal(rounds=1)
    played.breaks(0, "lost")
    heal(rounds=1)
    assert gpu_of(played).state == Gpu.State.QUARANTINED
    running.refresh_from_db()
    assert running.phase == "failed"


def test_a_node_that_is_repaired_again_and_again_is_condemned(played: Any, running: Instance, heal: Heal) -> None:
    for index in range(1, 6):
        played.breaks(index, "xid:109")
        heal()
    assert Remediation.objects.filter(state="returned").count() == 5
    played.breaks(6, "xid:109")
    heal()
    assert (repair_of(played).rule, repair_of(played).state) == ("lemon", "condemned")
    assert Node.objects.get(pk=played.node.pk).is_held


@pytest.mark.parametrize(
    "body",
    [{}, {"code": 7}, {"code": "xid:79", "source": "me"}, {"code": "'; --", "source": "nvml"}, {"code": "x" * 99}],
)
def test_an_event_of_no_known_form_is_left_out(body: dict[str, Any], played: Any) -> None:
    played.tell("health", **body)
    played.sync()
    assert not HealthEvent.objects.exists()
    assert not played.journal, "it is not told again for ever"


def test_an_event_of_an_unknown_gpu_concerns_the_node(played: Any) -> None:
    played.tell("health", gpu="GPU-of-another", source="kmsg", code="xid:45", detail="a\x00b")
    played.sync()
    event = HealthEvent.objects.get()
    assert (event.gpu, event.detail) == (None, "unknown GPU GPU-of-another; ab")


def test_a_check_is_asked_with_the_links_that_its_gpus_were_accepted_with(
    played: Any, running: Instance, heal: Heal
) -> None:
    Gpu.objects.filter(node=played.node, index__in=[5, 6]).update(nvlinks=[0, 1])
    Gpu.objects.filter(node=played.node, index=7).update(removed_at=timezone.now(), healthy=False, nvlinks=[0])
    for gpu, with_links in ((5, [5]), (None, [5, 6])):
        part = gpu_of(played, gpu) if gpu is not None else None
        operations.order(kind=Operation.Kind.VERIFY, node=played.node, gpu=part, at=timezone.now())
        assert operations.document(played.node)[-1]["links"] == {
            gpu_of(played, index).uuid: [0, 1] for index in with_links
        }
    operations.order(kind=Operation.Kind.REBOOT_NODE, node=played.node, gpu=None, at=timezone.now())
    assert "links" not in operations.document(played.node)[-1]


def remove(gpu: Gpu) -> Gpu:
    """Take a GPU out of its node, as a manager accepted."""
    Gpu.objects.filter(pk=gpu.pk).update(removed_at=timezone.now(), healthy=False)
    gpu.refresh_from_db()
    return gpu


def test_what_a_removed_gpu_still_holds_keeps_no_node_from_its_repair(
    played: Any, running: Instance, heal: Heal
) -> None:
    played.ignores_operations = True
    remove(gpu_of(played))
    assert gpu_of(played).holds.filter(released_at=None).exists()
    played.breaks(None, "driver")
    heal(rounds=1)
    repair = repair_of(played)
    Remediation.objects.filter(pk=repair.pk).update(state=Remediation.State.CONDEMNED)
    remedies.release(remediation=repair, at=timezone.now())
    repair.refresh_from_db()
    assert repair.state == Remediation.State.VERIFYING


def test_what_a_gpu_that_is_there_holds_keeps_its_node_from_the_gate(
    played: Any, running: Instance, heal: Heal
) -> None:
    played.breaks(None, "driver")
    heal(rounds=1)
    repair = repair_of(played)
    Remediation.objects.filter(pk=repair.pk).update(state=Remediation.State.CONDEMNED)
    with pytest.raises(ProvisioningError, match="still runs"):
        remedies.release(remediation=repair, at=timezone.now())


def test_a_removed_gpu_is_neither_taken_out_nor_led_to_the_gate(played: Any, running: Instance) -> None:
    gone = remove(gpu_of(played, 5))
    for verb in (
        lambda: remedies.release_gpu(gpu=gone, at=timezone.now()),
        lambda: remedies.take_out(gpu=gone, reason="test", at=timezone.now()),
    ):
        with pytest.raises(ProvisioningError, match="was taken out of h200-"):
            verb()
    assert not Remediation.objects.exists()


def test_the_repair_of_a_gpu_that_was_taken_out_ends_with_it(played: Any, running: Instance, heal: Heal) -> None:
    played.breaks(5, "row_remap_pending")
    played.ignores_operations = True
    heal(rounds=3)
    remove(gpu_of(played, 5))
    heal(rounds=1)
    assert repair_of(played).state == Remediation.State.REPLACED
    assert set(Operation.objects.values_list("kind", "outcome")) == {("reset_gpu", "cancelled")}
    with pytest.raises(ProvisioningError):
        remedies.release(remediation=repair_of(played), at=timezone.now())


def test_a_driver_that_the_table_was_not_made_for_is_named_in_the_log(played: Any, running: Instance) -> None:
    NodeInventory.objects.update_or_create(
        node=played.node, defaults={"driver": "450.80.02", "told_at": timezone.now()}
    )
    for driver in ("450.80.02", "580.95.05"):
        NodeInventory.objects.filter(node=played.node).update(driver=driver)
        played.breaks(5, "xid:63")
        played.sync()
        with capture_logs() as said:
            tasks.decide_health_events()
        decided = [entry for entry in said if entry["event"] == "health event decided"]
        assert [entry.get("driver_outside_table") for entry in decided] == [driver if driver < "5" else None]
