"""The API's description: committed, complete, and true of what the API really answers."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import call_command
from drf_spectacular.generators import SchemaGenerator
from jsonschema import Draft202012Validator, FormatChecker

from tests.marketplace.api.program import PROBLEM
from tests.marketplace.api.routes import api_routes
from tests.marketplace.api.tenant import Tenant
from tests.marketplace.api.test_permissions import RULES, filled, plain

COMMITTED = Path(__file__).resolve().parents[3] / "docs" / "openapi.yaml"


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    """What the code describes, its shared schemas already strict: each answer is held against them."""
    described = dict(SchemaGenerator().get_schema(public=True))
    return described | {"components": strict(described["components"])}


def test_the_committed_description_is_the_one_that_the_code_gives(tmp_path: Path) -> None:
    """After a change: `uv run manage.py spectacular --file docs/openapi.yaml`."""
    call_command("spectacular", "--validate", "--fail-on-warn", "--file", str(tmp_path / "openapi.yaml"))
    assert COMMITTED.read_text() == (tmp_path / "openapi.yaml").read_text()


def test_every_route_is_described_and_every_description_is_of_a_route(description: dict[str, Any]) -> None:
    described = {
        (method, plain(path.removeprefix("/api/v1/")))
        for path, methods in description["paths"].items()
        for method in methods
    }
    assert described == {(method, plain(path)) for method, path in api_routes()}
    assert description["openapi"] == "3.1.0"
    assert yaml.safe_load(COMMITTED.read_text())["info"]["title"] == "gpumarket"


def strict(schema: Any) -> Any:
    """Return a schema that refuses every field it does not name, so that no answer says more than its description."""
    if isinstance(schema, list):
        return [strict(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(inner) for name, inner in schema.items()}
    return made | {"additionalProperties": False} if isinstance(made.get("properties"), dict) else made


def faults(description: dict[str, Any], path: str, method: str, answer: Any) -> list[str]:
    """Return where an answer differs from what is described for its route, method and status."""
    described = description["paths"][f"/api/v1/{path}"][method]["responses"]
    response = described.get(str(answer.status_code)) or described["default"]
    if "content" not in response:
        return [] if not answer.content else [f"{path}: an answer where none is described"]
    kind = answer.headers["Content-Type"].partition(";")[0]
    if kind not in response["content"]:
        return [f"{path}: {kind} instead of {list(response['content'])}"]
    if not kind.endswith("json"):  # Lines of JSON are text: their documents say of themselves what they are.
        return []
    schema = strict(response["content"][kind]["schema"]) | {"components": description["components"]}
    validator = Draft202012Validator(schema, format_checker=FormatChecker())
    return [f"{path} {error.json_path}: {error.message}" for error in validator.iter_errors(answer.json())]


def route_of(path: str) -> str:
    """Return a row's path as the description writes it."""
    words = {"member": "membership", "stopped": "instance", "deleted": "volume"}
    words |= {"extension": "quote", "cancellation": "quote", "wait": "entry"}
    words |= {"negotiated": "contract", "agreed": "contract", "draft": "contract", "verified": "claim", "sold": "claim"}
    words |= {"claimdispute": "dispute", "commitment_request": "request", "guarded": "instance"}
    path = re.sub(r"^budgets/\{\w+\}", "budgets/{owner}", path)  # of an organization, a project or a token
    path = re.sub(r"\{(\w+)\}", lambda found: f"{{{words.get(found[1], found[1])}_id}}", path)
    path = path.replace("{task_id}", "{index}")  # a number within its job, and no id
    return path.partition("?")[0]


def test_every_answer_is_as_described(description: dict[str, Any], whole: Tenant) -> None:
    """All routes of the table, as their owner and as nobody; what changes something is asked last."""
    found = []
    for method, path, body, *_ in sorted(
        RULES, key=lambda rule: ("get", "post", "put", "patch", "delete").index(rule[0])
    ):
        owner = whole.programs["owner"]
        answer = owner.ask(method, filled(path, whole.ids), filled(body, whole.ids), key=path)
        assert answer.status_code < 500
        found += faults(description, route_of(path), method, answer)
        owner_less = type(owner)().ask(method, filled(path, whole.ids), filled(body, whole.ids), key=path)
        assert (owner_less.headers["Content-Type"] == PROBLEM) == (owner_less.status_code >= 400), path
        found += faults(description, route_of(path), method, owner_less)
    assert found == []


def test_the_lists_of_that_test_are_not_empty(whole: Tenant) -> None:
    for path in ("offers", "sites", "instances", "usage", "projects", "quotas", "memberships", "invitations", "tokens",
                 "ssh-keys", "registries", "events", "webhooks", "audit",
                 f"instances/{whole.ids['stopped']}/events"):  # fmt: skip
        assert whole.programs["owner"].get(path).json()["data"], path
    assert whole.programs["owner"].get(f"instances/{whole.ids['stopped']}/logs").json()["data"]


def test_no_route_takes_a_parameter_that_is_not_described(description: dict[str, Any], whole: Tenant) -> None:
    taken = []
    for method, path, body, *_ in RULES:
        bare = path.partition("?")[0]
        answer = whole.programs["owner"].ask(
            method, filled(bare, whole.ids) + "?nonsense=1", filled(body, whole.ids), key=path
        )
        if (answer.status_code, answer.json().get("errors", [{}])[0].get("pointer")) != (422, "/nonsense"):
            taken.append(f"{method} {bare}: {answer.status_code}")
    assert taken == []


def test_every_parameter_that_is_described_is_taken(description: dict[str, Any], whole: Tenant) -> None:
    for method, path, body, *_ in RULES:
        if method != "get":
            continue
        described = description["paths"][f"/api/v1/{route_of(path)}"][method].get("parameters", [])
        names = [parameter["name"] for parameter in described if parameter["in"] == "query"]
        query = "&".join(f"{name}=" for name in names)
        answer = whole.programs["owner"].get(f"{filled(path.partition('?')[0], whole.ids)}?{query}")
        unknown = (
            [error for error in answer.json()["errors"] if "no such parameter" in error["detail"]]
            if answer.headers["Content-Type"] == PROBLEM
            else []
        )
        assert unknown == [], path
        assert body is None
