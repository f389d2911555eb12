"""What no program should send: each is refused by a problem that names the field, and nothing is made or charged."""

import json
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.db import OperationalError, transaction
from django.test import Client
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marketplace.models import ApiToken, Membership, Organization, Project, User
from provisioning.models import Instance
from tests.conftest import Fleet
from tests.marketplace.api.program import PROBLEM, Program, problem_of
from tests.marketplace.api.tables import every_row

NUL = "a\x00b"
HALF = "\ud800"
LONG = "x" * 10_000

# What is changed in an ordinary order, and the field that the refusal names.
BAD_ORDERS: list[tuple[dict[str, Any], str]] = [
    ({"gpus": 0}, "/gpus"),
    ({"gpus": -1}, "/gpus"),
    ({"gpus": 9}, "/gpus"),
    ({"gpus": 10**30}, "/gpus"),
    ({"gpus": 1.5}, "/gpus"),
    ({"gpus": 1.0}, "/gpus"),
    ({"gpus": "2"}, "/gpus"),
    ({"gpus": True}, "/gpus"),
    ({"gpus": [1]}, "/gpus"),
    ({"replicas": 0}, "/replicas"),
    ({"replicas": -3}, "/replicas"),
    ({"replicas": 17}, "/gpus"),
    ({"replicas": 10**30}, "/replicas"),
    ({"replicas": "1"}, "/replicas"),
    ({"name": LONG}, "/name"),
    ({"name": "Upper Case"}, "/name"),
    ({"name": "-begins-with-a-hyphen"}, "/name"),
    ({"name": "two\nlines"}, "/name"),
    ({"name": NUL}, "/name"),
    ({"name": HALF}, "/name"),
    ({"name": ""}, "/name"),
    ({"name": 5}, "/name"),
    ({"offer": LONG}, "/offer"),
    ({"offer": NUL}, "/offer"),
    ({"offer": HALF}, "/offer"),
    ({"offer": {}}, "/offer"),
    ({"offer": None}, "/offer"),
    ({"project": NUL}, "/project"),
    ({"project": LONG}, "/project"),
    ({"command": "sleep 1"}, "/command"),
    ({"command": []}, "/command"),
    ({"command": [""]}, "/command"),
    ({"command": [1]}, "/command/0"),
    ({"command": ["echo", NUL]}, "/command/1"),
    ({"command": ["echo", HALF]}, "/command/1"),
    ({"command": ["echo", None]}, "/command/1"),
    ({"command": [["nested"]]}, "/command/0"),
    ({"command": ["x"] * 1001}, "/command"),
    ({"command": ["x" * 40_000, "x" * 40_000]}, "/command"),
    ({"env": []}, "/env"),
    ({"env": {"A": 1}}, "/env/A"),
    ({"env": {"A": NUL}}, "/env/A"),
    ({"env": {"A": HALF}}, "/env/A"),
    ({"env": {"1A": "x"}}, "/env"),
    ({"env": {"A\n": "x"}}, "/env"),
    ({"env": {"": "x"}}, "/env"),
    ({"env": {NUL: "x"}}, "/env"),
    ({"env": {HALF: "x"}}, "/env"),
    ({"env": {"A": "x" * 65_000, "B": "x" * 65_000}}, "/env"),
    ({"gpu": 1}, "/gpu"),
    ({"a/b~c": 1}, "/a~1b~0c"),
    ({HALF: 1}, "/\\ud800"),
    ({LONG: 1}, f"/{LONG[:500]}…"),
    ({"price": "0.01"}, "/price"),
    ({"organization": "org_x"}, "/organization"),
]


@pytest.fixture
def unchanged(program: Program) -> Callable[[], None]:
    """Return a check that nothing was made or charged since now."""
    before = every_row()

    def check() -> None:
        assert every_row() == before

    return check


def test_each_bad_order_is_refused_by_the_name_of_its_field(program: Program, unchanged: Callable[[], None]) -> None:
    for number, (change, field) in enumerate(BAD_ORDERS):
        body = {"offer": "h200-narvik", "command": ["true"]} | change
        answer = program.post("instances", body, key=f"bad-{number}")
        problem_of(answer, 422, "invalid_request", names=field)
        assert len(answer.content) < 20_000
        problem_of(program.post("instances?dry_run=true", body), 422, "invalid_request", names=field)
    unchanged()


def test_unknown_offers_and_projects_are_named(program: Program, unchanged: Callable[[], None]) -> None:
    for offer in ("nothing-like-it", "ofr_aaaaaaaaaaaaaaaaaaaa", "../etc", "'; --", "%00"):
        problem_of(program.rent(offer=offer), 404, "not_found", names="/offer")
    for project in ("prj_aaaaaaaaaaaaaaaaaaaa", "default", "1"):
        problem_of(program.rent(project=project), 404, "not_found", names="/project")
    unchanged()


def test_an_offer_that_is_not_listed_does_not_exist(
    program: Program, fleet: Fleet, unchanged: Callable[[], None]
) -> None:
    type(fleet.h200).objects.filter(pk=fleet.h200.pk).update(is_listed=False)
    problem_of(program.rent(), 404, "not_found", names="/offer")
    problem_of(program.get("offers/h200-narvik"), 404, "not_found")
    assert [row["slug"] for row in program.get("offers").json()["data"]] == ["l40s-narvik"]


def test_an_offer_without_a_price_in_the_organization_s_currency_is_not_for_sale(
    program: Program, acme: Organization
) -> None:
    Organization.objects.filter(pk=acme.pk).update(currency="JPY")
    problem_of(program.rent(), 422, "invalid_request", names="/offer")
    assert program.get("offers").json()["data"] == []
    problem_of(program.get("offers/h200-narvik"), 404, "not_found")
    assert not Instance.objects.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "JSON"),
        (b"", "offer"),
        (b"\xff\xfe", "JSON"),
        (b'{"gpus": NaN}', "NaN"),
        (b'{"gpus": 1, "gpus": 8}', "twice"),
        (b"[" * 100_000, "deeply"),
        (b'{"a":' * 50_000, "deeply"),
        (b'{"name": "a\x00b"}', "JSON"),
        (b'{"gpus": ' + b"9" * 5000 + b"}", "JSON"),
    ],
)
def test_what_is_not_json_is_refused(program: Program, content: bytes, says: str) -> None:
    answer = program.post("instances", content=content, key="k")
    status, code = (422, "invalid_request") if not content else (400, "malformed_json")
    assert says in problem_of(answer, status, code)["detail"]


@pytest.mark.parametrize("content", [b"[]", b'"text"', b"1", b"null", b"true", b'[{"offer": "h200-narvik"}]'])
def test_json_that_is_no_object_is_refused(program: Program, content: bytes) -> None:
    problem_of(program.post("instances", content=content, key="k"), 422, "invalid_request")


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "nonsense", ""]
)
def test_a_body_that_is_not_said_to_be_json_is_refused(program: Program, kind: str) -> None:
    body = json.dumps({"offer": "h200-narvik", "command": ["true"]}).encode()
    problem_of(program.post("instances", content=body, content_type=kind, key="k"), 415, "unsupported_media_type")


def test_a_large_body_is_refused_unread(program: Program, unchanged: Callable[[], None]) -> None:
    body = {"offer": "h200-narvik", "command": ["x" * 5_000_000]}
    problem_of(program.post("instances", body, key="k"), 413, "body_too_large")
    unchanged()


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "image/*"])
def test_whoever_does_not_take_json_is_told_so_in_json(program: Program, accept: str) -> None:
    problem_of(program.get("instances", Accept=accept), 406, "not_acceptable")


def test_a_key_is_required_and_has_a_shape(program: Program, unchanged: Callable[[], None]) -> None:
    for key in ("", "x" * 256, "tab\there", "caf\x80"):
        problem_of(program.rent(key=key), 400, "idempotency_key_required")
    unchanged()


BAD_QUERIES = [
    ("instances?limit=0", "/limit"),
    ("instances?limit=201", "/limit"),
    ("instances?limit=-1", "/limit"),
    ("instances?limit=many", "/limit"),
    ("instances?limit=", "/limit"),
    ("instances?limit=1e999", "/limit"),
    ("instances?cursor=garbage", "/cursor"),
    ("instances?cursor=1:abc:def", "/cursor"),
    ("instances?cursor=%00", "/cursor"),
    ("instances?cursor=" + "x" * 501, "/cursor"),
    ("instances?phase=asleep", "/phase"),
    ("instances?phase=%ED%A0%80", "/phase"),
    ("instances?name=%00", "/name"),
    ("instances?project=", "/project"),
    ("instances?project=%00", "/project"),
    ("instances?nonsense=1", "/nonsense"),
    ("instances?format=xml", "/format"),
    ("offers?min_gpus=0", "/min_gpus"),
    ("offers?country=NOR", "/country"),
    ("offers?available=perhaps", "/available"),
    ("offers?cursor=x", "/cursor"),
    ("usage?since=yesterday", "/since"),
    ("usage?until=2026-13-01", "/until"),
    ("balance?organisation=org_x", "/organisation"),
    ("me?verbose=1", "/verbose"),
]


def test_each_bad_query_is_refused_by_the_name_of_its_field(program: Program) -> None:
    for path, field in BAD_QUERIES:
        problem_of(program.get(path), 422, "invalid_request", names=field)


@pytest.mark.parametrize("flag", ["dryrun=true", "dry-run=1", "dry_run", "dry_run=perhaps", "Dry_Run=true"])
def test_a_misspelt_dry_run_does_not_rent(program: Program, unchanged: Callable[[], None], flag: str) -> None:
    order = {"offer": "h200-narvik", "command": ["true"]}
    problem_of(program.post(f"instances?{flag}", order, key="k"), 422, "invalid_request")
    unchanged()


@pytest.mark.parametrize(
    "since", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00%2B14:00", "9999-12-31T23:59:59-14:00", "1969-07-20"]
)
def test_the_ends_of_time_are_no_errors_of_ours(program: Program, since: str) -> None:
    assert program.get(f"usage?since={since}").status_code in {200, 422}
    assert program.get(f"usage?until={since}").status_code in {200, 422}


@pytest.mark.parametrize(
    "path", ["costs?until=0001-01-01", "costs.csv?until=0001-01-01", "instances/{}/telemetry?until=0001-01-01"]
)
def test_what_ends_before_anything_began_is_refused(program: Program, running: Instance, path: str) -> None:
    problem_of(program.get(path.format(running.public_id)), 422, "invalid_request")


BAD_PATHS = [
    "instances/1", "instances/ins_short", "instances/INS_AAAAAAAAAAAAAAAAAAAA", "instances/%00",
    "instances/ins_aaaaaaaaaaaaaaaaaaa%00", "instances/..%2f..%2fetc", "offers/%00", "nothing", "instances/",
    "instances//logs", "/api/v2/instances", "/api", "/api/", "/api/v1", "instances/" + "x" * 5000,
]  # fmt: skip


def test_a_path_that_is_no_route_is_a_problem_too(program: Program) -> None:
    for path in BAD_PATHS:
        for method in ("get", "post", "delete"):
            problem_of(program.ask(method, path, {}), 404, "not_found")


def test_a_strange_log_cursor_is_refused(program: Program, running: Instance) -> None:
    deep = urlsafe_b64encode(b"[" * 60_000).decode().rstrip("=")
    for cursor in ("garbage", "!!!", "W10", "WzFlOTk5LFtdXQ", "eyJhIjoxfQ", "W" * 50_000, "%00", "é", deep):
        for path in ("logs", "logs/stream"):
            answer = program.get(f"instances/{running.public_id}/{path}?cursor={cursor}")
            problem_of(answer, 422, "invalid_request", names="/cursor")


# Who asks.


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer gm_unknown",
        "Basic Z206eA==",
        "gm_x",
        "Bearer \x00",
        "Bearer gm_é",
        "Bearer " + LONG,
    ],
)
def test_a_malformed_or_unknown_token_is_nobody(nobody: Program, fleet: Fleet, header: str) -> None:
    for method in ("get", "post"):
        answer = nobody.ask(method, "instances", {}, key="k", Authorization=header)
        problem_of(answer, 401, "not_authenticated")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_an_expired_token_says_so(program: Program, unchanged: Callable[[], None]) -> None:
    with time_machine.travel(timezone.now() + timedelta(days=91)):
        problem_of(program.rent(), 401, "token_expired")
    unchanged()


def test_a_revoked_token_is_nobody_at_once(program: Program) -> None:
    assert program.get("me").status_code == 200
    ApiToken.objects.update(revoked_at=timezone.now())
    problem_of(program.get("me"), 401, "not_authenticated")


def test_a_person_who_may_not_sign_in_has_no_token(program: Program, alice: User) -> None:
    User.objects.filter(pk=alice.pk).update(is_active=False)
    problem_of(program.rent(), 401, "not_authenticated")
    assert not Instance.objects.exists()


def test_whoever_left_has_no_token(program: Program, acme: Organization) -> None:
    Membership.objects.all().delete()
    problem_of(program.get("me"), 401, "not_authenticated")


@pytest.mark.parametrize("what", [Project, Organization])
def test_in_a_suspended_project_or_organization_nothing_starts(
    program: Program, rent: Any, run_until_idle: Any, project: Project, acme: Organization, what: Any
) -> None:
    stopped = rent()
    run_until_idle()
    assert program.post(f"instances/{stopped.public_id}/stop").status_code == 202
    run_until_idle()
    what.objects.update(suspended_at=timezone.now())
    before = every_row()
    problem_of(program.rent(), 403, "project_suspended")
    problem_of(program.post("instances?dry_run=true", {"offer": "h200-narvik", "command": ["true"]}), 403,
               "project_suspended")  # fmt: skip
    problem_of(program.post(f"instances/{stopped.public_id}/start", key="k"), 403, "project_suspended")
    assert every_row() == before
    assert program.get("me").json()["projects"][0]["suspended"] is True
    assert program.post(f"instances/{stopped.public_id}/terminate").status_code == 202


# Tenants.


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("projects", {"name": LONG}, "/name"),
        ("projects", {"name": " \t"}, "/name"),
        ("projects", {"name": "two\nlines"}, "/name"),
        ("projects", {"name": NUL}, "/name"),
        ("projects", {"name": HALF}, "/name"),
        ("projects", {}, "/name"),
        ("projects", {"name": "n", "suspended_at": None}, "/suspended_at"),
        ("invitations", {"email": "nobody", "role": "viewer"}, "/email"),
        ("invitations", {"email": f"{'x' * 60}@{'y' * 60}.{'z' * 60}.{'w' * 60}.{'v' * 60}.example", "role": "viewer"},
         "/email"),
        ("invitations", {"email": "a@b.example", "role": "king"}, "/role"),
        ("invitations", {"email": "a@b.example", "role": HALF}, "/role"),
        ("tokens", {"name": "t", "scopes": []}, "/scopes"),
        ("tokens", {"name": "t", "scopes": ["everything"]}, "/scopes/0"),
        ("tokens", {"name": "t", "scopes": "read"}, "/scopes"),
        ("tokens", {"name": "t", "scopes": ["read"], "days": 0}, "/days"),
        ("tokens", {"name": "t", "scopes": ["read"], "days": 366}, "/days"),
        ("tokens", {"name": LONG, "scopes": ["read"]}, "/name"),
        ("tokens", {"name": "t", "scopes": ["read"], "secret_hash": "x"}, "/secret_hash"),
        ("ssh-keys", {"name": "k", "public_key": "not a key"}, "/public_key"),
        ("ssh-keys", {"name": "k", "public_key": "ssh-ed25519 " + "A" * 20_000}, "/public_key"),
        ("ssh-keys", {"name": "k", "public_key": "ssh-ed25519 é"}, "/public_key"),
        ("ssh-keys", {"name": "k", "public_key": NUL}, "/public_key"),
    ],
)  # fmt: skip
def test_bad_tenants_are_refused_by_the_name_of_the_field(
    program: Program, unchanged: Callable[[], None], path: str, body: dict[str, Any], field: str
) -> None:
    problem_of(program.post(path, body), 422, "invalid_request", names=field)
    unchanged()


def test_what_can_only_be_read_cannot_be_written(program: Program, rent: Any) -> None:
    instance = rent(name="mine")
    for field in program.get(f"instances/{instance.public_id}").json():
        if field != "name":
            answer = program.ask("patch", f"instances/{instance.public_id}", {"name": "other", field: None})
            problem_of(answer, 422, "invalid_request", names=f"/{field}")
    instance.refresh_from_db()
    assert instance.name == "mine"


def test_a_name_that_is_taken_is_a_conflict(program: Program) -> None:
    assert program.rent(key="1", name="mine").status_code == 202
    before = every_row()
    problem_of(program.rent(key="2", name="mine"), 409, "conflict")
    problem_of(program.post("projects", {"name": "default"}), 409, "conflict")
    assert every_row() == before


# Outside of any view.


def test_a_host_that_is_not_ours_is_refused_in_json(program: Program) -> None:
    problem_of(program.get("me", Host="evil.example"), 400, "bad_request")


def test_an_error_of_ours_is_a_problem_and_says_nothing_of_its_cause(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marketplace.rentals.rent", lambda **order: 1 / 0)
    answer = program.rent()
    document = problem_of(answer, 500, "internal_error")
    assert document["retry"] == "same_request"
    assert "division" not in answer.content.decode()


def test_an_error_while_an_answer_is_written_is_a_problem_too(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rest_framework.renderers.JSONRenderer.render", lambda *args: 1 / 0)
    program.client = Client(raise_request_exception=False)
    problem_of(program.get("me"), 500, "internal_error")


def test_a_database_that_does_not_answer_is_told_as_such(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(**order: Any) -> None:
        raise OperationalError("the connection is lost")

    monkeypatch.setattr("marketplace.rentals.rent", away)
    answer = program.rent()
    assert "connection" not in json.dumps({**problem_of(answer, 503, "unavailable"), "detail": ""})
    assert answer.headers["Retry-After"] == "5"


# Everything else.

SCRAPS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec=None)), inner, max_size=3),
    max_leaves=8,
)
ORDERS = st.fixed_dictionaries(
    {},
    optional={
        "offer": st.just("h200-narvik") | SCRAPS,
        "command": st.just(["true"]) | st.lists(st.text(st.characters(codec=None)), max_size=3) | SCRAPS,
        "gpus": st.integers(-2, 20) | SCRAPS,
        "replicas": st.integers(-2, 20) | SCRAPS,
        "name": st.from_regex(r"[a-z0-9-]{0,70}", fullmatch=True) | SCRAPS,
        "env": st.dictionaries(st.text(st.characters(codec=None), max_size=5), st.text(max_size=5)) | SCRAPS,
        "project": SCRAPS,
        "anything": SCRAPS,
    },
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(body=ORDERS | SCRAPS)
def test_whatever_is_ordered_is_rented_or_refused_without_a_trace(program: Program, body: Any) -> None:
    with transaction.atomic():
        before = every_row()
        answer = program.post("instances", content=json.dumps(body).encode(), key="fuzz")
        if answer.status_code == 202:
            assert Instance.objects.get().public_id == answer.json()["id"]
        else:
            assert answer.status_code in {400, 402, 404, 409, 422}, answer.content
            assert answer.headers["Content-Type"] == PROBLEM
            assert every_row() == before
        transaction.set_rollback(True)


def test_an_unknown_field_hides_no_other_fault(program: Program, unchanged: Callable[[], None]) -> None:
    order = {
        "offer": "h200-narvik",
        "gpu": 2,
        "gpus": 0,
        "command": "true",
        "volumes": [{"volume": "data", "at": "/d"}],
    }
    document = problem_of(program.post("instances", order, key="k"), 422, "invalid_request")
    assert {error["pointer"] for error in document["errors"]} == {
        "/gpu", "/gpus", "/command", "/volumes/0/at", "/volumes/0/path",
    }  # fmt: skip
    unchanged()
