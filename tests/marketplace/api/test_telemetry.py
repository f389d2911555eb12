"""What the GPUs of an instance read: theirs alone, for the time they had them, and nothing that nobody told."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from marketplace.models import Organization, User
from marketplace.portal import lines
from provisioning import telemetry
from provisioning.models import GpuHold, Instance, Node
from provisioning.protocol import Report
from tests.conftest import make_token
from tests.marketplace.api.program import Program

MINUTE = timedelta(minutes=1)
SLOT = telemetry.SLOT


@pytest.fixture
def program(alice: User, acme: Organization) -> Program:
    return Program(make_token(alice, acme))


def say(node: Node, at: Any, **meters: Any) -> None:
    """Let every GPU of a node say this."""
    uuids = [gpu.uuid for gpu in node.gpus.all()]
    energy = meters.pop("millijoules", None)
    said = Report(
        node=node.public_id, key="", boot_id="", agent_epoch=1, seq=1, desired_seen=0,
        telemetry=[{"uuid": uuid, **meters} for uuid in uuids],
        energy=[{"uuid": uuid, "millijoules": energy, "driver_epoch": 1} for uuid in uuids],
    )  # fmt: skip
    telemetry._prepared.clear()
    telemetry.record([(node.pk, said)], at=at)


@pytest.fixture
def held(running: Instance) -> GpuHold:
    """An hour in which a GPU was the customer's, with others before and after."""
    hold = GpuHold.objects.select_related("gpu__node").get(assignment__instance=running)
    now = telemetry.slot_of(timezone.now())
    hold.taken_at, hold.released_at = now - 30 * MINUTE + timedelta(seconds=4), now - 10 * MINUTE + timedelta(seconds=4)
    hold.save()
    for n in range(41):
        say(
            hold.gpu.node, now - 40 * MINUTE + n * MINUTE, power_mw=1000 * n, millijoules=60_000 * n, temperature_c=None
        )
    return hold


def test_points_lie_wholly_inside_the_time_it_held_the_gpus(program: Program, held: GpuHold) -> None:
    answer = program.get(f"instances/{held.assignment.instance.public_id}/telemetry").json()
    (gpu,) = answer["gpus"]
    assert gpu["uuid"] == held.gpu.uuid
    assert answer["resolution"] == "10s"
    # The slots of minute 10 and 30 began before the GPU was theirs, or ended after.
    assert [point["power_watts"] for point in gpu["points"]] == [float(n) for n in range(11, 30)]
    # The first point's energy began before it.
    assert gpu["points"][0]["energy_joules"] is None
    assert gpu["energy_joules"] == 18 * 60
    assert {point["temperature_c"] for point in gpu["points"]} == {None}
    assert {point["utilization_percent"] for point in gpu["points"]} == {None}


def test_a_bad_time_or_resolution_is_refused(program: Program, running: Instance) -> None:
    path = f"instances/{running.public_id}/telemetry"
    for query in ("since=2030-01-02T00:00:00Z&until=2030-01-01T00:00:00Z", "resolution=5s", "since=yesterday",
                  "since=2020-01-01T00:00:00Z&resolution=10s", "made_up=1"):  # fmt: skip
        assert program.get(f"{path}?{query}").status_code in (400, 422), query


def test_the_page_shows_charts_and_a_dash_for_what_nobody_told(
    client: Client, alice: User, bob: User, held: GpuHold
) -> None:
    client.force_login(bob)
    page = client.get(reverse("instance-telemetry", args=[held.assignment.instance.public_id])).content.decode()
    assert page.count('<polyline class="line tone-1 dash-0"') == 19  # A minute between points is a gap at ten seconds.
    assert "now 29 W" in page
    assert "11–29" in page
    assert 'Temperature</strong> <span class="quiet">—' in page


def test_only_the_gpus_of_the_current_run_are_counted_now(
    client: Client, program: Program, bob: User, held: GpuHold
) -> None:
    instance = held.assignment.instance
    Instance.objects.filter(pk=instance.pk).update(run=instance.run + 1)
    (gpu,) = program.get(f"instances/{instance.public_id}/telemetry").json()["gpus"]
    assert (gpu["current"], len(gpu["points"])) == (False, 19)
    client.force_login(bob)
    page = client.get(reverse("instance-telemetry", args=[instance.public_id])).content.decode()
    assert "Nothing was read in the last hour." in page


def test_each_gpu_has_a_look_of_its_own_and_both_ends_of_the_time_are_named() -> None:
    now = telemetry.slot_of(timezone.now())
    point = telemetry.Point(now - MINUTE, 50.0, None, None, None, None)
    found = [telemetry.Series(f"GPU-{n}", SLOT, [point]) for n in range(32)]
    shown = lines.readings(found, since=now - lines.SPAN, until=now)
    assert len({key.look for key in shown.keys}) == 32
    chart = shown.charts[0]
    assert [(label.at, label.anchor) for label in (chart.labels[0], chart.labels[-1])] == [
        (now - lines.SPAN, "start"), (now, "end"),
    ]  # fmt: skip
    assert (chart.labels[-1].x, chart.now, shown.rows[0][1][0][1].most) == (lines.WIDTH - lines.RIGHT, (50, 50), 50)


def test_the_fragments_take_a_fixed_number_of_queries(client: Client, alice: User, held: GpuHold, carol: User) -> None:
    client.force_login(alice)
    with CaptureQueriesContext(connection) as captured:
        client.get(reverse("instance-telemetry", args=[held.assignment.instance.public_id]))
    assert len(captured) <= 8
    client.force_login(carol)
    with CaptureQueriesContext(connection) as captured:
        page = client.get(reverse("console-node-charts", args=[held.gpu.node.public_id])).content.decode()
    assert len(captured) <= 6
    assert "40 W" in page
