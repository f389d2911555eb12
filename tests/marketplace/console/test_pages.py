"""What the pages show, and how many questions they ask."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace.console import maps
from marketplace.models import Organization
from provisioning.models import Gpu, Instance, Node, Workflow
from tests.conftest import Fleet, Rent, make_organization, make_person
from tests.marketplace.console.conftest import make_nodes

Queries = Callable[[int], Any]


def text_of(desk: Client, name: str, *ids: str, **asked: str) -> str:
    answer = desk.get(reverse(name, args=ids), asked)
    assert answer.status_code == 200
    return answer.content.decode()


def test_the_first_page_has_the_figures(desk: Client, fleet: Fleet, running: Instance) -> None:
    page = text_of(desk, "console")
    assert "23 free · 1 held" in page
    assert "4.2 %" in page
    assert "$2.49" in page
    assert "Nothing: every node answers" in page


def test_an_empty_marketplace_has_a_first_page_too(desk: Client) -> None:
    page = text_of(desk, "console")
    assert "No nodes here yet." in page


def test_what_needs_somebody_comes_first_and_red_before_amber(desk: Client, fleet: Fleet, running: Instance) -> None:
    Node.objects.filter(name="h200-1").update(reachability="suspect")
    Node.objects.filter(name="h200-2").update(reachability="lost")
    Gpu.objects.filter(uuid="GPU-l40s-1-3").update(healthy=False)
    Workflow.objects.filter(instance=running).update(failures=2, last_error="Refused: no")
    page = text_of(desk, "console")
    found = [page.index(words) for words in ("h200-2", "l40s-1 · GPU 3", "Refused: no", ">h200-1<")]
    assert found == sorted(found)
    assert found[-1] < page.index("Fill rate")


def test_a_customer_about_to_run_dry_is_named(
    desk: Client, fleet: Fleet, running: Instance, acme: Organization
) -> None:
    acme.runway.exhausts_at = timezone.now() + timedelta(minutes=30, seconds=5)
    acme.runway.save()
    page = text_of(desk, "console")
    assert "Runs out of money" in page
    assert "in 30 minutes" in page
    assert "trouble-amber" in page


def test_the_live_part_comes_alone(desk: Client, fleet: Fleet) -> None:
    answer = desk.get(reverse("console"), headers={"HX-Request": "true"})
    assert "Fill rate" in answer.content.decode()
    assert "<html" not in answer.content.decode()


def test_every_gpu_has_a_tile_with_its_letter(desk: Client, fleet: Fleet, running: Instance) -> None:
    Gpu.objects.filter(uuid="GPU-l40s-1-3").update(healthy=False)
    Node.objects.filter(name="h200-2").update(state="cordoned")
    Node.objects.filter(name="l40s-1").update(reachability="suspect")
    page = text_of(desk, "console-map", site="narvik")
    for letter in ("H0", "F1", "C7", "X3", "S4"):
        assert f">{letter}</text>" in page
    assert page.count('<g class="tile') == 24 + len(maps.Kind)


def test_the_map_is_a_table_too(desk: Client, fleet: Fleet, running: Instance) -> None:
    assert "1 held" in text_of(desk, "console-map", view="table")


def test_a_big_fleet_is_drawn_by_rack(desk: Client, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "NODES_MAX", 20)
    make_nodes(fleet.nodes["h200-1"].node, 40)
    Node.objects.filter(name="more-0").update(reachability="lost", free_mask=0)
    page = text_of(desk, "console-map")
    assert "Each tile sums up a rack" in page
    assert "12 % / 16 · S1" in page
    assert "more-8" in text_of(desk, "console-map", site="narvik", rack="r3")


def test_a_huge_fleet_is_drawn_by_site_and_a_huge_site_asks_for_a_rack(
    desk: Client, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "NODES_MAX", 5)
    monkeypatch.setattr(maps, "RACKS_MAX", 3)
    make_nodes(fleet.nodes["h200-1"].node, 40)
    for view in ("map", "table"):
        page = text_of(desk, "console-map", view=view)
        assert "?site=narvik" in page
        assert "rack=r3" not in page
    assert "There are more racks than fit" in text_of(desk, "console-map", site="narvik")


def test_filters_stand_in_the_address(desk: Client, fleet: Fleet) -> None:
    Node.objects.filter(name="h200-2").update(state="cordoned")
    page = text_of(desk, "console-nodes", offer="h200-narvik", state="cordoned")
    assert "h200-2" in page
    assert "h200-1" not in page
    assert "l40s-1" not in page


def test_an_unknown_filter_is_told_and_lists_nothing(desk: Client, fleet: Fleet) -> None:
    page = text_of(desk, "console-nodes", state="broken")
    assert "Select a valid choice" in page
    assert "h200-1" not in page


def test_a_node_page_labels_simulated_readings_and_shows_what_is_unknown(
    desk: Client, fleet: Fleet, running: Instance
) -> None:
    node = Node.objects.get(assignments__instance=running)
    node.heartbeat.telemetry = [{"uuid": f"GPU-{node.name}-0", "utilization_percent": 0, "power_mw": None}]
    node.heartbeat.energy = [{"uuid": f"GPU-{node.name}-0", "millijoules": 7_200_000_000}]
    node.heartbeat.save()
    page = text_of(desk, "console-node", node.public_id)
    assert "simulated" in page
    assert "2.000 kWh" in page
    assert "0 %" in page
    assert "0 W" not in page
    assert running.name in page
    assert "Acme" in page


def test_readings_stay_until_there_are_newer_ones(desk: Client, fleet: Fleet) -> None:
    node = Node.objects.get(name="h200-1")
    node.heartbeat.telemetry = [{"uuid": "GPU-h200-1-0", "temperature_c": 61}]
    node.heartbeat.save()
    fleet.sync()
    assert "61 °C" in text_of(desk, "console-node", node.public_id)


def test_a_liars_readings_break_no_page(desk: Client, fleet: Fleet) -> None:
    node = Node.objects.get(name="h200-1")
    node.heartbeat.telemetry = [{"uuid": "GPU-h200-1-0", "power_mw": "much", "temperature_c": True}, {}]
    node.heartbeat.save()
    page = text_of(desk, "console-node", node.public_id)
    assert "much" not in page
    assert "1 °C" not in page


def test_instances_in_trouble_tell_step_age_and_error(desk: Client, fleet: Fleet, rent: Rent) -> None:
    instance = rent()
    since = timezone.now() - timedelta(minutes=7)
    Workflow.objects.filter(instance=instance).update(step="prepare", step_since=since, last_error="Timeout: slow")
    page = text_of(desk, "console-instances", kind="stuck")
    assert instance.name in page
    assert "prepare" in page
    assert "7 min" in page
    assert "Timeout: slow" in page
    assert instance.name not in text_of(desk, "console-instances", kind="unreachable")
    type(fleet.h200).objects.filter(pk=fleet.h200.pk).update(runtime="podman")
    assert instance.name not in text_of(desk, "console-instances", kind="stuck")


def test_each_kind_of_trouble_is_found(desk: Client, fleet: Fleet, rent: Rent) -> None:
    instance = rent()
    old = timezone.now() - timedelta(minutes=10)
    row, work = Instance.objects.filter(pk=instance.pk), Workflow.objects.filter(instance=instance)
    calm = {"step": "watch", "step_since": old, "due_at": timezone.now() + timedelta(hours=1), "failures": 0}
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "unreachable": ({"phase": "running", "health": "unreachable"}, calm),
        "failing": ({"phase": "running"}, calm | {"failures": 3}),
        "overdue": ({"phase": "running"}, calm | {"due_at": old}),
        "stuck": ({"phase": "terminating"}, calm | {"step": "tear_down"}),
        "failed": ({"phase": "failed", "phase_since": old}, calm),
    }
    for kind, (columns, workflow) in cases.items():
        row.update(**{"health": "healthy"} | columns)
        work.update(**workflow)
        kinds = [other for other in cases if instance.name in text_of(desk, "console-instances", kind=other)]
        assert kinds == [kind]
    row.update(phase="running", health="healthy")
    work.update(**calm)
    assert instance.name not in text_of(desk, "console-instances")


def test_an_instance_page_tells_where_it_is_and_what_it_costs(desk: Client, fleet: Fleet, running: Instance) -> None:
    page = text_of(desk, "console-instance", running.public_id)
    assert "watch" in page
    assert "$2.49" in page
    assert "Verifying → Running" in page


def test_the_books_are_checked_on_demand(desk: Client, fleet: Fleet, running: Instance, acme: Organization) -> None:
    assert "The books balance." not in text_of(desk, "console-books")
    assert "The books balance." in text_of(desk, "console-books", check="")
    acme.accounts.filter(kind="promo").update(balance_micros=1_234_567_890)
    assert "balance_is_the_sum_of_transfers" in text_of(desk, "console-books", check="")


def test_no_text_of_a_customer_becomes_markup(desk: Client, fleet: Fleet, acme: Organization) -> None:
    Organization.objects.filter(pk=acme.pk).update(name="<script>alert(1)</script>")
    page = text_of(desk, "console-organizations")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_nul_bytes_in_addresses_are_harmless(desk: Client, fleet: Fleet) -> None:
    for name in ("console-map", "console-organizations", "console-instances", "console-nodes"):
        for field in ("site", "rack", "search", "kind"):
            assert desk.get(reverse(name), {field: "a\x00b"}).status_code in {200, 404}
    assert desk.get("/console/nodes/nod_%00").status_code == 404


PAGES = {
    "console": 20,
    "console-map": 9,
    "console-nodes": 10,
    "console-instances": 7,
    "console-offers": 10,
    "console-sites": 7,
    "console-organizations": 10,
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_ask_a_fixed_number_of_questions(
    desk: Client,
    fleet: Fleet,
    rent: Rent,
    name: str,
    django_assert_num_queries: Queries,
) -> None:
    make_nodes(fleet.nodes["h200-1"].node, 40, reachability="lost")
    for _ in range(3):
        Workflow.objects.filter(instance=rent()).update(failures=1)
    for number in range(5):
        make_organization(f"Customer {number}", make_person(f"owner{number}@example.com"))
    with django_assert_num_queries(PAGES[name]):
        desk.get(reverse(name))


def test_the_room_for_gangs_says_what_is_in_the_way(desk: Client, fleet: Fleet, rent: Rent) -> None:
    rent(gpus=3)
    Node.objects.filter(name="l40s-1").update(is_held=True)
    page = text_of(desk, "console-placement")
    assert "1 partly used node" in page
    assert "3 GPUs in use" in page
    assert "1 held back for a check or a repair" in page
    assert reverse("console-offer", args=[fleet.h200.public_id]) in page
