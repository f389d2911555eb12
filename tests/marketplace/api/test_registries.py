"""Registries over the API: what goes in, what never comes out, and done once for a key."""

import json

import pytest

from marketplace.models import AuditEntry, IdempotencyRecord
from provisioning.models import RegistryCredential
from provisioning.secrets import unseal
from tests.marketplace.api.program import Program, problem_of

BODY = {"host": "registry.example.com:5000", "username": "bot", "password": "opens it"}


def test_a_password_goes_in_and_never_comes_out(program: Program) -> None:
    answer = program.post("registries", BODY)
    assert answer.status_code == 201
    row = RegistryCredential.objects.get()
    assert unseal(row.sealed_password) == "opens it"
    listed = program.get("registries").json()["data"]
    assert listed == [answer.json()]
    assert listed[0]["host"] == "registry.example.com:5000"
    assert listed[0]["handed_out_at"] is None
    assert "opens it" not in json.dumps(listed)
    assert program.ask("delete", f"registries/{row.public_id}").status_code == 204
    assert program.get("registries").json()["data"] == []


def test_each_change_is_in_the_audit_without_the_password(program: Program) -> None:
    program.post("registries", BODY)
    row = RegistryCredential.objects.get()
    program.ask("delete", f"registries/{row.public_id}")
    said = {"host": "registry.example.com:5000", "username": "bot"}
    entries = AuditEntry.objects.filter(verb__startswith="registry.").order_by("pk")
    assert [(entry.verb, entry.subject_id, entry.before, entry.after) for entry in entries] == [
        ("registry.add", row.public_id, None, said),
        ("registry.remove", row.public_id, said, None),
    ]


def test_the_same_request_with_its_key_adds_once(program: Program) -> None:
    first, second = (program.post("registries", BODY, key="once") for _ in range(2))
    assert first.json() == second.json()
    assert second.headers["Idempotency-Replayed"] == "true"
    assert RegistryCredential.objects.count() == 1
    problem_of(program.post("registries", {**BODY, "password": "other"}, key="once"), 422, "idempotency_key_reused")


def test_the_remembered_order_cannot_be_used_to_try_passwords(program: Program) -> None:
    """With a plain hash of the order, whoever reads the database could guess short passwords."""
    program.post("registries", BODY, key="once")
    (with_one_key,) = IdempotencyRecord.objects.values_list("fingerprint", flat=True)
    IdempotencyRecord.objects.all().delete()
    RegistryCredential.objects.all().delete()
    from django.test import override_settings

    with override_settings(SECRET_KEY="another key of this marketplace" * 2):
        program.post("registries", BODY, key="once")
    assert IdempotencyRecord.objects.get().fingerprint != with_one_key


def test_a_second_user_for_a_registry_is_refused(program: Program) -> None:
    program.post("registries", BODY)
    problem = problem_of(program.post("registries", {**BODY, "username": "b"}), 409, "conflict")
    assert "remove that one first" in problem["detail"]


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"host": "https://registry.example.com"}, "/host"),
        ({"host": "a b"}, "/host"),
        ({"username": "a:b"}, "/username"),
        ({"password": ""}, "/password"),
        ({"password": "a\nb"}, "/password"),
        ({"password": 5}, "/password"),
        ({"secret": "x"}, "/secret"),
        ({"project": "prj_aaaaaaaaaaaaaaaaaaaa"}, "/project"),
    ],
)
def test_what_is_wrong_is_named_and_not_repeated(program: Program, changes: dict[str, object], pointer: str) -> None:
    answer = program.post("registries", {**BODY, **changes})
    assert answer.status_code in {404, 422}
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]
    assert "opens it" not in answer.content.decode()
    assert not RegistryCredential.objects.exists()
