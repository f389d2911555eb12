"""The page of health, and what only a person may do."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace.models import AuditEntry
from provisioning import tasks
from provisioning.health import breaker
from provisioning.models import Breaker, Gpu, HealthEvent, Instance, Node, NodeInventory, Remediation
from tests.conftest import Fleet


def page_of(desk: Client, name: str = "console-health") -> str:
    answer = desk.get(reverse(name))
    assert answer.status_code == 200
    return answer.content.decode()


def send(desk: Client, name: str, thing: Any) -> Any:
    return desk.post(reverse(name, args=[thing.public_id]), {"reason": "I looked at it"}, follow=True)


def turn(fleet: Fleet, rounds: int = 4) -> None:
    for _ in range(rounds):
        fleet.sync()
        tasks.decide_health_events()
        tasks.repair()


def test_an_empty_page(desk: Client, fleet: Fleet) -> None:
    page = page_of(desk)
    assert "Nothing is being repaired." in page
    assert "None: every GPU may be placed." in page


def test_the_page_names_event_rule_repair_operation_and_wipe(desk: Client, fleet: Fleet) -> None:
    fleet.nodes["h200-1"].breaks(3, "xid:119", detail="Timeout waiting for RPC from GSP")
    fleet.nodes["h200-1"].operation_ends = {"reset_gpu": ("failed", "nvidia-smi is not on this node")}
    turn(fleet, rounds=3)
    page = page_of(desk)
    for words in ("xid:119", "Timeout waiting for RPC", "firmware", "reset_gpu", "nvidia-smi is not on this node"):
        assert words in page
    event = HealthEvent.objects.get()
    assert event.table_version in page
    turn(fleet, rounds=12)
    page = page_of(desk)
    assert "Back in service" in page
    assert "simulated" in page


def test_drivers_that_the_table_was_not_made_for_are_listed(desk: Client, fleet: Fleet) -> None:
    for name, driver in (("h200-1", "580.95.05"), ("h200-2", "450.80.02"), ("l40s-1", "simulated")):
        NodeInventory.objects.update_or_create(
            node=fleet.nodes[name].node, defaults={"driver": driver, "told_at": timezone.now()}
        )
    page = page_of(desk)
    assert "made for drivers 525 to 615; nodes also have 450.80.02." in page
    NodeInventory.objects.filter(driver="450.80.02").delete()
    assert "made for drivers" not in page_of(desk)


def test_the_page_asks_a_fixed_number_of_questions(
    desk: Client, fleet: Fleet, django_assert_max_num_queries: Any
) -> None:
    for played in fleet.nodes.values():
        for gpu in range(4):
            played.breaks(gpu, "row_remap_failed")
    turn(fleet, rounds=2)
    with django_assert_max_num_queries(12):
        page_of(desk)


def test_a_manager_quarantines_a_gpu_and_leads_it_back_through_the_gate(desk: Client, fleet: Fleet) -> None:
    gpu = Gpu.objects.get(uuid="GPU-h200-1-2")
    send(desk, "console-gpu-quarantine", gpu)
    gpu.refresh_from_db()
    assert (gpu.state, gpu.state_reason) == ("quarantined", "I looked at it")
    assert gpu.node.free_gpus == 8 - 1 or Node.objects.get(pk=gpu.node_id).free_gpus == 7
    turn(fleet)
    gpu.refresh_from_db()
    assert gpu.state == "quarantined", "nothing leads to the gate but a manager"
    again = send(desk, "console-gpu-quarantine", gpu)
    assert again.status_code == 422
    send(desk, "console-gpu-release", gpu)
    turn(fleet)
    gpu.refresh_from_db()
    assert gpu.state == "clean"
    assert set(AuditEntry.objects.values_list("verb", flat=True)) >= {"gpu.quarantine", "gpu.release"}


def test_a_gate_that_stays_shut_keeps_it_out(desk: Client, fleet: Fleet) -> None:
    gpu = Gpu.objects.get(uuid="GPU-h200-1-2")
    fleet.nodes["h200-1"].operation_ends = {"verify": ("failed", "it is too hot")}
    send(desk, "console-gpu-quarantine", gpu)
    send(desk, "console-gpu-release", gpu)
    turn(fleet)
    gpu.refresh_from_db()
    assert gpu.state == "quarantined"
    assert "it is too hot" in page_of(desk)


def test_what_still_runs_there_keeps_a_manager_from_releasing(desk: Client, fleet: Fleet, running: Instance) -> None:
    gpu = Gpu.objects.get(holds__released_at=None, holds__isnull=False)
    send(desk, "console-gpu-quarantine", gpu)
    assert send(desk, "console-gpu-release", gpu).status_code == 422
    assert Remediation.objects.get().state == "draining"


def test_a_condemned_gpu_is_named_first_until_it_is_replaced(desk: Client, fleet: Fleet) -> None:
    fleet.nodes["h200-1"].breaks(3, "row_remap_failed")
    turn(fleet, rounds=2)
    assert "To be replaced" in page_of(desk, "console")
    repair = Remediation.objects.get()
    send(desk, "console-repair-replaced", repair)
    repair.refresh_from_db()
    assert repair.state == "replaced"
    assert Gpu.objects.get(uuid="GPU-h200-1-3").state == "quarantined", "the new one has another UUID"
    assert AuditEntry.objects.get(verb="repair.replaced").after == {"reason": "I looked at it"}


def test_an_open_breaker_is_red_on_the_first_page_until_a_manager_closes_it(desk: Client, fleet: Fleet) -> None:
    first, second = (fleet.nodes[name].node for name in ("h200-1", "h200-2"))
    breaker.admit(node=first, at=timezone.now())
    breaker.admit(node=second, at=timezone.now())
    page = page_of(desk, "console")
    assert "Breaker open" in page
    assert "trouble-red" in page
    opened = Breaker.objects.get(opened_at__isnull=False)
    assert "1 of 2 nodes" in page_of(desk)
    send(desk, "console-breaker-close", opened)
    opened.refresh_from_db()
    assert opened.opened_at is None
    assert AuditEntry.objects.get(verb="breaker.close").subject_id == opened.public_id


@pytest.mark.parametrize("name", ["console-repair-release", "console-repair-replaced"])
def test_each_verb_asks_for_a_reason(name: str, desk: Client, fleet: Fleet) -> None:
    fleet.nodes["h200-1"].breaks(3, "row_remap_failed")
    turn(fleet, rounds=2)
    repair = Remediation.objects.get()
    assert desk.get(reverse(name, args=[repair.public_id])).status_code == 200
    assert desk.post(reverse(name, args=[repair.public_id]), {"reason": ""}).status_code == 422


def test_the_node_page_says_what_keeps_a_gpu_out(desk: Client, fleet: Fleet) -> None:
    fleet.nodes["h200-1"].breaks(3, "row_remap_failed")
    turn(fleet, rounds=2)
    page = desk.get(reverse("console-node", args=[fleet.nodes["h200-1"].node.public_id])).content.decode()
    assert "Quarantined" in page
    assert "no spare memory left" in page
