"""Volumes through the API: made once for a key, refused with the field, and the clock of those nobody can pay for."""

from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from billing import books, credits
from billing.models import Hold, Notice, Runway, UsageSpan
from marketplace import rentals, volumes
from marketplace.access import Actor
from marketplace.models import AuditEntry, Organization
from provisioning.models import Instance, Site, Volume
from tests.conftest import Fleet, Rent, Run, Storage, sell_storage
from tests.marketplace.api.program import Program, problem_of

DATA = {"site": "narvik", "name": "data", "size_gib": 100, "offer": "h200-narvik"}
DAY = timedelta(days=1)


def make(program: Program, key: str = "a key", **changes: Any) -> Any:
    return program.post("volumes", DATA | changes, key=key)


def stopped(instance: Instance, actor: Actor, run_until_idle: Run) -> Instance:
    rentals.stop(actor=actor, instance=instance, at=timezone.now())
    run_until_idle()
    instance.refresh_from_db()
    return instance


def test_a_volume_is_made_once_for_its_key_and_shown_with_its_price(program: Program, storage: Storage) -> None:
    made, again = make(program), make(program)
    assert (made.status_code, again.status_code) == (202, 202)
    assert again.headers["Idempotency-Replayed"] == "true"
    volume = made.json()
    assert volume == again.json()
    assert (volume["state"], volume["cost"]["billing"]) == ("creating", "not_started")
    assert volume["cost"] | {"billing": ""} == {
        "billing": "", "currency": "USD", "per_gib_hour": "0.000100", "per_hour": "0.010000", "per_month": "7.300000"
    }  # fmt: skip
    storage.settle(Volume.objects.get())
    volume = program.get(f"volumes/{volume['id']}").json()
    assert (volume["state"], volume["cost"]["billing"], volume["used_bytes"]) == ("available", "running", 0)
    assert (volume["offer"], volume["kind"]) == ("h200-narvik", "local")
    assert AuditEntry.objects.filter(verb="volume.create", subject_id=volume["id"]).count() == 1


def test_usage_names_the_unit_and_a_volume_has_no_gpus(program: Program, storage: Storage) -> None:
    with time_machine.travel(timezone.now() + timedelta(hours=1), tick=False) as clock:
        storage.make()
        clock.shift(timedelta(hours=1))
        (row,) = program.get("usage").json()["data"]
    assert (row["meter"], row["unit"], row["quantity"], row["unit_milliseconds"]) == ("volume", "gib", 100, 360_000_000)
    assert (row["gpus"], row["gpu_milliseconds"]) == (0, 0)
    assert row["price"] == {"amount": "0.000100", "currency": "USD", "unit": "gib_hour"}
    assert row["amount"]["amount"] == "0.010000"


def test_sites_say_what_storage_costs(program: Program, storage: Storage) -> None:
    (site,) = program.get("sites").json()["data"]
    price = {"amount": "0.000100", "currency": "USD", "unit": "gib_hour"}
    assert site["storage"] == price | {"model": "flat", "tiers": [], "minimum_per_month": None}


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"size_gib": 0}, "/size_gib"),
        ({"size_gib": -1}, "/size_gib"),
        ({"size_gib": 16_385}, "/size_gib"),
        ({"size_gib": "10"}, "/size_gib"),
        ({"size_gib": 1.5}, "/size_gib"),
        ({"name": "Data"}, "/name"),
        ({"name": ""}, "/name"),
        ({"name": "a/../b"}, "/name"),
        ({"colour": "red"}, "/colour"),
    ],
)
def test_a_volume_that_makes_no_sense_is_refused_by_its_field(
    program: Program, storage: Storage, changes: dict[str, Any], pointer: str
) -> None:
    problem_of(make(program, **changes), 422, "invalid_request", names=pointer)
    assert not Volume.objects.exists()
    assert not Hold.objects.exists()


@pytest.mark.parametrize(("field", "value"), [("site", "nowhere"), ("source", "nothing"), ("offer", "none")])
def test_what_does_not_exist_is_named(program: Program, storage: Storage, field: str, value: str) -> None:
    problem_of(make(program, **{field: value}), 404, "not_found", names=f"/{field}")


def test_a_name_is_taken_until_its_volume_is_gone(program: Program, storage: Storage) -> None:
    make(program)
    problem = problem_of(make(program, key="another"), 409, "conflict")
    assert "has a volume named data already" in problem["detail"]


def test_a_site_without_a_price_for_storage_sells_none(program: Program, fleet: Any) -> None:
    problem_of(make(program), 422, "invalid_request", names="/site")


def test_a_volume_needs_credit_for_its_first_hour(program: Program, storage: Storage) -> None:
    sell_storage(storage.site, price_micros=900_000_000)
    problem_of(make(program), 402, "insufficient_funds")
    assert not Volume.objects.exists()


def test_a_node_that_cannot_be_had_is_no_room(program: Program, storage: Storage) -> None:
    for node in storage.fleet.nodes.values():
        node.node.state = "cordoned"
        node.node.save()
    problem_of(make(program), 409, "no_room")


def test_an_order_names_volumes_by_name_or_id(program: Program, storage: Storage, run_until_idle: Run) -> None:
    one = storage.make("one")
    ordered = program.rent(volumes=[{"volume": "one", "path": "/data"}])
    assert ordered.status_code == 202, ordered.content
    attachment = program.get(f"volumes/{one.public_id}").json()["attachment"]
    assert (attachment["instance"]["id"], attachment["path"]) == (ordered.json()["id"], "/data")
    problem_of(program.rent(key="2", volumes=[{"volume": one.public_id, "path": "/data"}]), 409, "wrong_state")
    problem_of(program.ask("delete", f"volumes/{one.public_id}"), 409, "wrong_state")


@pytest.mark.parametrize("path", ["data", "/etc", "/usr/x", "/a/../b", "/", "/a:b"])
def test_a_path_that_no_volume_can_have_is_refused(program: Program, storage: Storage, path: str) -> None:
    storage.make("one")
    problem_of(program.rent(volumes=[{"volume": "one", "path": path}]), 422, "invalid_request", names="/volumes")
    assert not Instance.objects.exists()


@pytest.mark.parametrize(
    ("uses", "word"),
    [
        ([("one", "/a"), ("one", "/b")], "named twice"),
        ([("one", "/a"), ("two", "/a")], "inside"),
        ([("one", "/a/b"), ("two", "/a")], "inside"),
    ],
)
def test_volumes_that_stand_in_each_others_way_are_refused(
    program: Program, storage: Storage, uses: list[tuple[str, str]], word: str
) -> None:
    storage.make("one")
    storage.make("two")
    order = [{"volume": name, "path": path} for name, path in uses]
    problem = problem_of(program.rent(volumes=order), 422, "invalid_request", names="/volumes")
    assert word in problem["detail"]


def test_a_volume_in_another_site_cannot_be_mounted(program: Program, storage: Storage) -> None:
    volume = storage.make("one")
    elsewhere = Site.objects.get()
    elsewhere.pk, elsewhere.public_id, elsewhere.slug, elsewhere.name = None, "sit_elsewhere", "oslo", "Oslo"
    elsewhere.save()
    Volume.objects.filter(pk=volume.pk).update(site=elsewhere)
    problem = problem_of(
        program.rent(volumes=[{"volume": "one", "path": "/data"}]), 422, "invalid_request", names="/volumes"
    )
    assert "is in Oslo, the instance in Narvik" in problem["detail"]


def test_a_volume_of_another_project_does_not_exist(program: Program, storage: Storage, charlie: Any) -> None:
    storage.make("one")
    Volume.objects.update(project=charlie.memberships.get().organization.projects.get())
    answer = program.rent(volumes=[{"volume": "one", "path": "/data"}])
    problem_of(answer, 404, "not_found", names="/volumes")


def test_attach_detach_snapshot_resize_delete_and_restore(
    program: Program, storage: Storage, actor: Actor, running: Instance, run_until_idle: Run
) -> None:
    volume = storage.make()
    at = f"volumes/{volume.public_id}"
    body = {"instance": running.public_id, "path": "/data"}
    problem_of(program.post(f"{at}/attach", body), 409, "wrong_state")
    stopped(running, actor, run_until_idle)
    attached = program.post(f"{at}/attach", body)
    assert (attached.status_code, attached.json()["state"]) == (202, "attached")
    problem_of(program.post(f"{at}/attach", body), 422, "invalid_request", names="/volumes")
    assert program.post(f"{at}/detach").json()["state"] == "available"
    copy = program.post(f"{at}/snapshot", {"name": "monday"}, key="s").json()
    assert (copy["is_snapshot"], copy["source"]["name"]) == (True, "data")
    storage.settle(volume)
    assert program.ask("patch", at, {"size_gib": 200, "name": "big"}).json()["size_gib"] == 200
    problem_of(program.ask("patch", at, {"size_gib": 10}), 409, "wrong_state")
    deleted = program.ask("delete", at).json()
    assert (deleted["state"], deleted["cost"]["billing"]) == ("deleting", "ended")
    assert deleted["actions"]["restore"]["available"]
    assert program.post(f"{at}/restore").json()["state"] == "available"
    said = ["attach", "detach", "snapshot", "resize", "rename", "delete", "restore"]
    assert [row.verb for row in AuditEntry.objects.filter(verb__startswith="volume.").order_by("pk")][1:] == [
        f"volume.{verb}" for verb in said
    ]
    assert books.check(at=timezone.now() + DAY) == []


@pytest.mark.parametrize("count", [1, 9])
def test_a_list_of_volumes_takes_as_many_statements_however_long_it_is(
    program: Program, storage: Storage, rent: Rent, count: int
) -> None:
    for number in range(count):
        volume = storage.make(f"data-{number}")
        if number < 3:
            rent(uses=[volumes.volumes.Use(volume, "/data")])
    program.get("me")
    with CaptureQueriesContext(connection) as captured:
        assert len(program.get("volumes").json()["data"]) == count
    assert len(captured) <= 3, [query["sql"][:120] for query in captured.captured_queries]


def use_up(organization: Organization) -> None:
    Runway.objects.filter(organization=organization).update(exhausts_at=timezone.now() - timedelta(seconds=1))


def told(organization: Organization) -> list[str]:
    return list(Notice.objects.filter(organization=organization).order_by("pk").values_list("kind", flat=True))


def test_what_nobody_can_pay_for_is_kept_two_weeks_then_deleted_with_the_usual_grace(
    storage: Storage, acme: Organization
) -> None:
    with time_machine.travel(timezone.now() + timedelta(hours=1), tick=False) as clock:
        volume = storage.make()
        use_up(acme)
        assert volumes.mind_unpaid(at=timezone.now(), limit=10) == 0
        volume.refresh_from_db()
        assert volumes.deleted_when_unpaid(volume) == timezone.now() + 14 * DAY
        assert told(acme) == ["used_up", "volumes_kept"]
        clock.shift(14 * DAY - timedelta(seconds=1))
        assert volumes.mind_unpaid(at=timezone.now(), limit=10) == 0
        clock.shift(timedelta(seconds=1))
        assert volumes.mind_unpaid(at=timezone.now(), limit=10) == 1
        volume.refresh_from_db()
        assert (volume.state, volume.delete_after) == ("deleting", timezone.now() + 3 * DAY)
        assert "add credit and restore it" in volume.message
        assert told(acme) == ["used_up", "volumes_kept", "volumes_soon", "volumes_deleted"]
        assert volume.can_be_restored


def test_credit_that_comes_stops_the_clock(storage: Storage, acme: Organization) -> None:
    volume = storage.make()
    use_up(acme)
    volumes.mind_unpaid(at=timezone.now(), limit=10)
    credits.grant(organization=acme, amount_micros=10**9, key="more", reason="t", by="t", at=timezone.now())
    volumes.mind_unpaid(at=timezone.now(), limit=10)
    volume.refresh_from_db()
    assert volume.unpaid_since is None


def test_an_unpaid_volume_is_first_taken_from_its_stopped_instance_and_waits_for_a_running_one(
    storage: Storage, acme: Organization, actor: Actor, rent: Rent, run_until_idle: Run
) -> None:
    volume = storage.make()
    instance = rent(uses=[volumes.volumes.Use(volume, "/data")])
    run_until_idle()
    Volume.objects.filter(pk=volume.pk).update(unpaid_since=timezone.now() - 20 * DAY)
    use_up(acme)
    assert volumes.mind_unpaid(at=timezone.now(), limit=10) == 0
    instance.refresh_from_db()
    stopped(instance, actor, run_until_idle)
    use_up(acme)
    assert volumes.mind_unpaid(at=timezone.now(), limit=10) == 1


def test_a_volume_that_is_charged_opens_one_span(program: Program, storage: Storage) -> None:
    storage.settle(storage.make())
    assert UsageSpan.objects.filter(meter="volume", ended_at=None).count() == 1


def test_an_instance_names_its_volumes_and_a_process_has_none_read_only(
    program: Program, storage: Storage, fleet: Fleet
) -> None:
    one = storage.make("one")
    refused = program.rent(volumes=[{"volume": "one", "path": "/data", "read_only": True}])
    problem_of(refused, 422, "invalid_request", names="/volumes")
    type(fleet.h200).objects.filter(pk=fleet.h200.pk).update(runtime="podman")
    ordered = program.rent(
        image="registry.example.com/train:1", volumes=[{"volume": "one", "path": "/data", "read_only": True}]
    ).json()
    expected = [{"id": one.public_id, "name": "one", "path": "/data", "read_only": True}]
    assert ordered["volumes"] == expected
    assert program.get(f"instances/{ordered['id']}").json()["volumes"] == expected
    assert program.get(f"volumes/{one.public_id}").json()["attachment"]["read_only"] is True
