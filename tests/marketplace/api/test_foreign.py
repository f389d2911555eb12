"""What belongs to somebody else does not exist: every route with another tenant's ids, bodies and filters included."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from django.apps import apps
from django.db import models

from billing.public_ids import new_public_id
from marketplace.models import Membership, Organization, Role
from tests.conftest import Fleet, run_fleet
from tests.marketplace.api.program import Program, problem_of
from tests.marketplace.api.tables import every_row
from tests.marketplace.api.tenant import MOMENTS, Tenant, make_tenant
from tests.marketplace.api.test_permissions import RULES, filled
from tests.standing import standing

PREFIXES = {
    "organization": "org", "project": "prj", "instance": "ins", "stopped": "ins",
    "member": "mbr", "invitation": "inv", "token": "tok", "key": "key", "registry": "reg",
    "volume": "vol", "deleted": "vol", "job": "job", "request": "qrq", "wait": "wtg", "bid": "bid",
    "reservation": "rsv", "quote": "qte", "extension": "qte",
    "statement": "sts",
    "cancellation": "qte", "listing": "lst", "trade": "trd", "invoice": "ivc", "dispute": "idp",
    "contract": "ctr", "draft": "ctv", "negotiated": "ctv", "agreed": "ctv", "claim": "clm", "verified": "clm",
    "sold": "clm",
    "claimdispute": "cdp",
    "webhook": "whk", "delivery": "whd", "card": "crd", "payment": "pay", "receipt": "rcp",
    "period": "rvp", "shared": "ctv", "guarantee": "ctv", "guarded": "ins",
}  # fmt: skip


@standing
def acme_whole(fleet: Fleet) -> Tenant:
    return make_tenant("acme", fleet, partial(run_fleet, fleet))


@standing
def canary(fleet: Fleet) -> Tenant:
    return make_tenant("canary", fleet, partial(run_fleet, fleet))


def requests(ids: dict[str, str]) -> Iterator[tuple[str, str, Any]]:
    """Yield every request of the table of routes that names a tenant's row, with these ids in it."""
    for method, path, body, *_ in RULES:
        if any(f"{{{word}}}" in path + json.dumps(body) for word in PREFIXES):
            yield method, filled(path, {"task": "0", **ids}), filled(body, ids)


def shape(document: dict[str, Any]) -> dict[str, Any]:
    """Return a problem without what differs between any two requests."""
    return {name: value for name, value in document.items() if name not in {"request_id", "instance"}}


def test_every_route_answers_for_a_foreign_id_as_for_one_that_does_not_exist(
    acme_whole: Tenant, canary: Tenant
) -> None:
    random = canary.ids | {word: new_public_id(prefix) for word, prefix in PREFIXES.items()}
    owner = acme_whole.programs["owner"]
    before = every_row()
    asked = list(zip(requests(canary.ids), requests(random), strict=True))
    assert len(asked) > 20
    for (method, path, body), (_, random_path, random_body) in asked:
        foreign = problem_of(owner.ask(method, path, body, key="k"), 404, "not_found")
        unknown = problem_of(owner.ask(method, random_path, random_body, key="k"), 404, "not_found")
        assert shape(foreign) == shape(unknown), path
        assert all(value not in json.dumps(shape(foreign)) for value in canary.ids.values()), path
    assert every_row() == before


def test_without_the_door_a_foreign_id_would_be_found(
    acme_whole: Tenant, canary: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marketplace.access._membership", lambda actor, organization_id: actor.token.membership)
    owner = acme_whole.programs["owner"]
    assert owner.get(f"organizations/{canary.ids['organization']}").status_code == 200


def test_lists_never_show_anything_of_another_tenant(acme_whole: Tenant, canary: Tenant) -> None:
    lists = [path for method, path, _, _, seen, *_ in RULES if method == "get" and "{" not in path and seen == 200]
    assert len(lists) > 12
    secrets = ["canary", *(value for name, value in canary.ids.items() if name not in MOMENTS)]
    for path in lists:
        answer = acme_whole.programs["owner"].get(path)
        assert answer.status_code == 200
        for secret in secrets:
            assert secret not in answer.getvalue().decode(), (path, secret)


def test_filters_do_not_reach_another_tenant(acme_whole: Tenant, canary: Tenant) -> None:
    owner = acme_whole.programs["owner"]
    assert owner.get(f"usage?instance={canary.ids['stopped']}").json()["data"] == []
    assert owner.get("instances?name=canary-alive").json()["data"] == []
    problem_of(owner.get(f"instances?project={canary.ids['project']}"), 404, "not_found", names="/project")
    problem_of(owner.get(f"ssh-keys?project={canary.ids['project']}"), 404, "not_found", names="/project")
    problem_of(owner.get(f"registries?project={canary.ids['project']}"), 404, "not_found", names="/project")
    problem_of(owner.get(f"audit?organization={canary.ids['organization']}"), 404, "not_found", names="/organization")


def test_a_cursor_of_another_tenant_only_leads_to_ones_own_rows(acme_whole: Tenant, canary: Tenant) -> None:
    cursor = canary.programs["owner"].get("memberships?limit=1").json()["next_cursor"]
    answer = acme_whole.programs["owner"].get(f"memberships?cursor={cursor}")
    assert answer.status_code == 200
    assert "canary" not in answer.content.decode()


def test_a_stranger_cannot_use_a_log_cursor(acme_whole: Tenant, canary: Tenant) -> None:
    cursor = canary.programs["owner"].get(f"instances/{canary.ids['stopped']}/logs").json()["next_cursor"]
    path = f"instances/{acme_whole.ids['stopped']}/logs?cursor="
    texts = [piece["text"] for piece in acme_whole.programs["owner"].get(path).json()["data"]]
    assert texts == ["printed by acme\n"]
    assert acme_whole.programs["owner"].get(path + cursor).json()["data"] == []


def test_somebody_in_two_organizations_is_one_of_them_per_token(acme_whole: Tenant, canary: Tenant) -> None:
    """A token speaks for one membership, whatever else its owner belongs to."""
    Membership.objects.create(user=acme_whole.people["owner"], organization=canary.organization, role=Role.OWNER)
    owner: Program = acme_whole.programs["owner"]
    problem_of(owner.get(f"organizations/{canary.ids['organization']}"), 404, "not_found")
    problem_of(owner.get(f"instances/{canary.ids['instance']}"), 404, "not_found")
    problem_of(owner.rent(project=canary.ids["project"]), 404, "not_found", names="/project")
    assert [row["id"] for row in owner.get("organizations").json()["data"]] == [acme_whole.ids["organization"]]


def reaches_an_organization(model: type[models.Model], seen: frozenset[type[models.Model]] = frozenset()) -> bool:
    """Whether a row of this model belongs to one tenant, through however many others."""
    if model is Organization:
        return True
    parents = [field.related_model for field in model._meta.fields if isinstance(field, models.ForeignKey)]
    return any(
        isinstance(parent, type) and parent not in seen and reaches_an_organization(parent, seen | {model})
        for parent in parents
    )


def test_every_kind_of_row_of_a_tenant_is_in_the_world_of_these_tests(acme_whole: Tenant) -> None:
    """Rows that these tests could not find foreign because there were none."""
    empty = [
        model.__name__
        for model in apps.get_app_config("marketplace").get_models()
        if reaches_an_organization(model) and not model._default_manager.exists()
    ]
    assert empty == ["IdempotencyRecord"]
