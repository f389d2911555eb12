"""The door of the nodes: no body makes it fail, what does not fit is refused whole, and a token lets one key in."""

import base64
import copy
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provisioning import nodes, protocol
from provisioning.models import Assignment, Fabric, Gpu, Heartbeat, Instance, LogChunk, Node
from tests.conftest import Fleet
from tests.nodes import PlayedNode, announce

pytestmark = pytest.mark.django_db

KEY_HASH = nodes.digest("a key")


@pytest.fixture
def door() -> Client:
    return Client(raise_request_exception=False)


@pytest.fixture
def played(fleet: Fleet) -> PlayedNode:
    return fleet.nodes["h200-1"]


def post(door: Client, path: str, body: Any, **headers: str) -> Any:
    if isinstance(body, dict):
        body = {"protocol": protocol.VERSION} | body
    text = body if isinstance(body, str | bytes) else json.dumps(body)
    return door.post(f"/agent/v1/{path}", text, content_type="application/json", headers=headers)


def report(played: PlayedNode, **overrides: Any) -> dict[str, Any]:
    played.seq += 1
    return {
        "node": played.node.public_id,
        "key": played.key,
        "boot_id": "boot",
        "agent_epoch": played.epoch,
        "seq": played.seq,
        "desired_seen": 0,
        "assignments": [],
        "orphans": [],
        "logs": [],
        "energy": [],
        "telemetry": [],
    } | overrides


def gpu(index: int, **overrides: Any) -> dict[str, Any]:
    return {
        "uuid": f"GPU-new-{index}",
        "index": index,
        "model": "H200",
        "memory_mib": 1000,
        "healthy": True,
    } | overrides


def inventory(*gpus: dict[str, Any]) -> dict[str, Any]:
    return {"generation": 1, "source": "simulated", "gpus": list(gpus or (gpu(0), gpu(1)))}


def introduction(**overrides: Any) -> dict[str, Any]:
    return {
        "key_sha256": KEY_HASH,
        "hostname": "new-1",
        "boot_id": "boot",
        "agent_version": "1",
        "runtime": "process",
        "inventory": inventory(),
    } | overrides


@pytest.fixture
def newcomer(fleet: Fleet) -> Node:
    """A node that was announced with two H200 and has not joined yet."""
    return announce(fleet.h200, Fabric.objects.get(), name="new-1", gpus=2)


def knock(door: Client, secret: str, **overrides: Any) -> Any:
    return post(door, "join", introduction(**overrides), Authorization=f"Bearer {secret}")


def token_for(node: Node) -> str:
    return nodes.issue_join_token(node=node, at=timezone.now())


# Joining


def test_an_announced_node_joins_once_and_may_ask_again(door: Client, newcomer: Node) -> None:
    secret = token_for(newcomer)
    first = knock(door, secret)
    assert first.status_code == 201
    assert first.json() == {"node": newcomer.public_id, "name": "new-1", "poll_after_ms": 500}
    newcomer.refresh_from_db()
    assert (newcomer.state, newcomer.reachability, newcomer.free_gpus) == ("available", "online", 2)
    again = knock(door, secret)
    assert (again.status_code, again.json()) == (200, first.json())
    assert knock(door, secret, key_sha256=nodes.digest("another")).status_code == 409
    assert (
        post(door, "sync", {"reports": [report(PlayedNode(newcomer, "a key"))]}).json()["results"][0]["status"] == "ok"
    )


@pytest.mark.parametrize("authorization", ["", "Bearer ", "Bearer gmj_guessed", "Basic x", "Bearer café"])
def test_an_unknown_token_lets_nobody_in(door: Client, newcomer: Node, authorization: str) -> None:
    assert post(door, "join", introduction(), Authorization=authorization).status_code == 401


def test_an_expired_token_and_one_that_was_replaced_let_nobody_in(door: Client, newcomer: Node) -> None:
    replaced = token_for(newcomer)
    token_for(newcomer)
    assert knock(door, replaced).status_code == 401
    old = nodes.issue_join_token(node=newcomer, at=timezone.now() - nodes.JOIN_TOKEN_LIFE)
    assert knock(door, old).status_code == 401
    young = nodes.issue_join_token(node=newcomer, at=timezone.now() - nodes.JOIN_TOKEN_LIFE + timedelta(minutes=1))
    assert knock(door, young).status_code == 201


@pytest.mark.parametrize(
    "gpus",
    [
        [gpu(0)],
        [gpu(0), gpu(1), gpu(2)],
        [gpu(0), gpu(1, model="L40S")],
        [gpu(0, model="L40S"), gpu(1, model="L40S")],
        [gpu(0), gpu(1, uuid="GPU-h200-1-0")],
    ],
    ids=["too few", "too many", "mixed", "another model", "another node's GPU"],
)
def test_a_node_with_other_gpus_than_announced_is_told_and_may_come_again(
    door: Client, newcomer: Node, gpus: list[dict[str, Any]]
) -> None:
    secret = token_for(newcomer)
    refused = knock(door, secret, inventory=inventory(*gpus))
    assert refused.status_code == 422
    assert refused.json()["detail"]
    newcomer.refresh_from_db()
    assert (newcomer.state, newcomer.key_hash, newcomer.gpus.count()) == ("new", "", 0)
    assert knock(door, secret).status_code == 201


@pytest.mark.parametrize("key_sha256", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "é" * 64, "0" * 63 + "\n"])
def test_a_key_that_is_no_hash_is_refused_and_the_token_stays_good(
    door: Client, newcomer: Node, key_sha256: str
) -> None:
    secret = token_for(newcomer)
    assert knock(door, secret, key_sha256=key_sha256).status_code == 422
    assert knock(door, secret).status_code == 201
    assert knock(door, secret, key_sha256=key_sha256).status_code == 422


def test_a_cordoned_node_that_joins_anew_stays_cordoned_and_its_old_key_is_dead(door: Client, newcomer: Node) -> None:
    knock(door, token_for(newcomer))
    nodes.cordon(node=newcomer, reason="a fan is loud", at=timezone.now())
    assert knock(door, token_for(newcomer), key_sha256=nodes.digest("a new key")).status_code == 201
    newcomer.refresh_from_db()
    assert (newcomer.state, newcomer.state_reason) == ("cordoned", "a fan is loud")
    assert Gpu.objects.filter(node=newcomer).count() == 2
    old, new = PlayedNode(newcomer, "a key"), PlayedNode(newcomer, "a new key")
    results = post(door, "sync", {"reports": [report(old), report(new)]}).json()["results"]
    assert [result["status"] for result in results] == ["unauthorized", "ok"]


def test_a_retired_node_does_not_join(door: Client, newcomer: Node) -> None:
    secret = token_for(newcomer)
    Node.objects.filter(pk=newcomer.pk).update(state="retired")
    assert knock(door, secret).status_code == 401


# Reporting


@pytest.mark.parametrize("path", ["join", "sync"])
def test_the_door_is_opened_by_post_only(door: Client, path: str) -> None:
    assert door.get(f"/agent/v1/{path}").status_code == 405
    assert door.put(f"/agent/v1/{path}", "{}").status_code == 405


def test_one_bad_key_among_many_spoils_only_its_own_report(door: Client, fleet: Fleet) -> None:
    said = [report(played) for played in fleet.nodes.values()]
    said[1]["key"] = "guessed"
    results = post(door, "sync", {"reports": said}).json()["results"]
    assert [result["status"] for result in results] == ["ok", "unauthorized", "ok"]
    assert [result["node"] for result in results] == [entry["node"] for entry in said]


def test_the_same_report_twice_in_one_batch_counts_once(door: Client, running: Instance, played: PlayedNode) -> None:
    piece = {"assignment": Assignment.objects.get().public_id, "offset": 0, "data": base64.b64encode(b"hi").decode()}
    said = report(played, logs=[piece])
    results = post(door, "sync", {"reports": [said, said]}).json()["results"]
    assert [result["status"] for result in results] == ["ok", "stale"]
    assert LogChunk.objects.count() == 1


HUGE = 2**63
SAID = {"id": "asg_x", "fence": 1, "state": "running", "exit_code": None, "exited_ago_ms": None, "message": ""}


@pytest.mark.parametrize(
    "wrong",
    [
        {"node": None},
        {"key": 7},
        {"key": "x" * 201},
        {"boot_id": "a\x00b"},
        {"key": "\ud800"},
        {"agent_epoch": -1},
        {"agent_epoch": HUGE},
        {"seq": True},
        {"seq": 1.5},
        {"seq": "1"},
        {"desired_seen": None},
        {"assignments": {}},
        {"assignments": [7]},
        {"assignments": [SAID | {"state": "pending"}]},
        {"assignments": [SAID | {"state": "happy"}]},
        {"assignments": [SAID | {"exit_code": 2**31}]},
        {"assignments": [SAID | {"exit_code": -1}]},
        {"assignments": [SAID | {"exited_ago_ms": 2**53}]},
        {"assignments": [SAID | {"message": "x" * 2001}]},
        {"assignments": [SAID | {"message": "NUL \x00"}]},
        {"logs": [{"assignment": "asg_x", "offset": 0, "data": "not base64!"}]},
        {"logs": [{"assignment": "asg_x", "offset": 0, "data": "é"}]},
        {"logs": [{"assignment": "asg_x", "offset": -1, "data": ""}]},
        {"logs": [{"assignment": "asg_x", "offset": 0, "data": "x" * (512 * 1024 + 4)}]},
        {"inventory": "H200"},
        {"inventory": inventory(gpu(2**15))},
        {"inventory": inventory(gpu(0, memory_mib=2**31))},
        {"inventory": inventory(gpu(0), gpu(1, uuid="GPU-new-0"))},
        {"inventory": inventory(gpu(0), gpu(0, uuid="GPU-other"))},
        {"inventory": {"generation": 1} | {"gpus": [gpu(0, uuid="\x00")]}},
        {"telemetry": [[]]},
    ],
    ids=lambda wrong: json.dumps(wrong)[:60],
)
def test_a_report_that_does_not_fit_is_refused_whole_with_a_reason(
    door: Client, fleet: Fleet, wrong: dict[str, Any]
) -> None:
    before = list(Heartbeat.objects.order_by("pk").values())
    said = [report(played) for played in fleet.nodes.values()]
    said[1] |= wrong
    refused = post(door, "sync", {"reports": said})
    assert refused.status_code == 422
    assert refused.json()["detail"]
    assert list(Heartbeat.objects.order_by("pk").values()) == before


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "null", '"text"', "{}", '{"reports": {}}', '{"reports": [[]]}', "NaN", b"\xff\xfe", "[" * 100_000,
     '{"reports": ' + "[" * 50_000 + "]" * 50_000 + "}", '{"reports": [{"node": ' + "9" * 5000 + "}]}"],
    ids=lambda body: str(body[:20]),
)  # fmt: skip
@pytest.mark.parametrize("path", ["join", "sync"])
def test_what_is_no_report_at_all_is_refused_with_a_reason(door: Client, path: str, body: str | bytes) -> None:
    refused = post(door, path, body)
    assert refused.status_code == 422
    assert refused.json()["detail"]


def test_too_many_reports_are_refused(door: Client) -> None:
    assert post(door, "sync", {"reports": [{}] * 501}).status_code == 422


def test_a_body_of_four_mebibytes_is_read_and_a_bigger_one_refused(door: Client, played: PlayedNode) -> None:
    def body_of(size: int) -> str:
        text = json.dumps({"protocol": protocol.VERSION, "reports": [report(played)]})
        return text + " " * (size - len(text))

    assert post(door, "sync", body_of(4 * 1024 * 1024)).status_code == 200
    assert post(door, "sync", body_of(4 * 1024 * 1024 + 1)).status_code in {400, 413}


@pytest.mark.parametrize(
    "value",
    [str(2**70), '"\\u0000"', "{}", "[]", '"' + "x" * 65 + '"'],
)
def test_an_absurd_reading_is_left_out_and_spoils_nothing(door: Client, played: PlayedNode, value: str) -> None:
    said = report(played, telemetry=[{"uuid": "GPU-h200-1-0", "power_mw": "HERE", "temperature_c": 61, "nonsense": 1}])
    answer = post(door, "sync", json.dumps({"protocol": protocol.VERSION, "reports": [said]}).replace('"HERE"', value))
    assert answer.json()["results"][0]["status"] == "ok"
    heartbeat = Heartbeat.objects.get(node=played.node)
    assert heartbeat.telemetry == [{"uuid": "GPU-h200-1-0", "temperature_c": 61}]


# Fuzzing: any JSON in any place of a good body.

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 2**15, 2**31, 2**53, 2**53 + 1, 2**63, 2**64, 10**400])
    | st.floats()
    | st.text(st.characters(exclude_categories=[]), max_size=70)
    | st.sampled_from(["\x00", "\ud800", "running", "gone", "exited", "asg_x", "é" * 64])
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
)
READINGS = {"uuid": "GPU-h200-1-0", "millijoules": 1, "driver_epoch": "a", "power_mw": 1, "temperature_c": None}


def places_in(body: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to everything inside a JSON value."""
    inside = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    return [found for name, value in inside for found in [(*path, name), *places_in(value, (*path, name))]]


def with_change(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(body)
    target = changed
    for name in path[:-1]:
        target = target[name]
    target[path[-1]] = value
    return changed


fuzzed = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
Draw = Callable[..., Any]


@fuzzed
@given(data=st.data())
def test_no_report_makes_the_door_fail(door: Client, running: Instance, played: PlayedNode, data: Any) -> None:
    Heartbeat.objects.update(agent_epoch=0, seq=0)  # an example before may have told an epoch far ahead
    Assignment.objects.update(observed="preparing", log_bytes=0)
    LogChunk.objects.all().delete()
    row = Assignment.objects.get()
    said = SAID | {"id": row.public_id, "exit_code": 1, "exited_ago_ms": 5}
    piece = {"assignment": row.public_id, "offset": row.log_bytes, "data": "aGVsbG8="}
    good = {
        "reports": [
            report(
                played,
                inventory=inventory(gpu(0)),
                assignments=[said],
                logs=[piece],
                energy=[dict(READINGS)],
                telemetry=[dict(READINGS)],
            )
        ]
    }
    body = with_change(good, data.draw(st.sampled_from(places_in(good))), data.draw(anything))
    answer = post(door, "sync", body)
    assert answer.status_code in {200, 422}, body
    assert answer.json().get("detail") or answer.json()["results"] is not None


@fuzzed
@given(data=st.data())
def test_no_introduction_makes_the_door_fail(door: Client, newcomer: Node, data: Any) -> None:
    good = introduction()
    body = with_change(good, data.draw(st.sampled_from(places_in(good))), data.draw(anything))
    answer = post(door, "join", body, Authorization=f"Bearer {token_for(newcomer)}")
    assert answer.status_code in {200, 201, 422}, body


@fuzzed
@given(body=anything)
def test_no_json_at_all_makes_the_door_fail(door: Client, body: Any) -> None:
    for path in ("join", "sync"):
        assert post(door, path, json.dumps(body)).status_code in {200, 401, 422}


@pytest.mark.parametrize("spoken", [None, 1, 3, "2", []])
@pytest.mark.parametrize("path", ["join", "sync"])
def test_an_agent_of_another_protocol_is_told_which_one_is_spoken(door: Client, path: str, spoken: Any) -> None:
    refused = post(door, path, {"protocol": spoken, "reports": []})
    assert refused.status_code == 422
    if isinstance(spoken, int):
        assert refused.json()["detail"] == f"This control plane speaks protocol 2, and the node {spoken}."


def test_a_node_joins_only_an_offer_of_its_runtime(door: Client, newcomer: Node) -> None:
    refused = knock(door, token_for(newcomer), runtime="podman")
    assert (refused.status_code, "process" in refused.json()["detail"]) == (422, True)
