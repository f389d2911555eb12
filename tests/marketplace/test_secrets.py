"""What is secret is in no log, no record of changes and no stored answer, whatever happens to it."""

import logging

import pytest
from django.test import Client
from django.utils import timezone

from marketplace import tenants
from marketplace.access import Actor
from marketplace.models import Organization, Role, User
from tests.conftest import PASSWORD, Fleet, Run, make_token
from tests.marketplace.api.program import Program
from tests.marketplace.api.tables import every_row

pytestmark = pytest.mark.django_db


def test_no_secret_is_written_down(
    alice: User, acme: Organization, actor: Actor, fleet: Fleet, run_until_idle: Run,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    token = make_token(alice, acme)
    program = Program(token)
    made = program.post("tokens", {"name": "made", "scopes": ["read"]}).json()["secret"]
    _, link = tenants.invite(actor=actor, organization=acme, email="d@e.example", role=Role.VIEWER, at=timezone.now())
    posted = program.post("invitations", {"email": "f@g.example", "role": "viewer"}).json()["link"].rsplit("/", 1)[1]
    program.post("registries", {"host": "a.example", "username": "bot", "password": "opens-the-registry"}, key="reg")
    program.post("registries", {"host": "a.example", "username": "bot", "password": "opens-the-registry"}, key="again")
    program.post("registries", {"host": "a b", "username": "bot", "password": "opens-the-registry"}, key="bad-reg")
    program.rent(env={"API_KEY": "value-of-env"}, command=["sh", "-c", "true"])
    run_until_idle()
    Program(made + "x").get("me")
    program.post("instances", {"env": {"API_KEY": "value-of-env"}}, key="bad")
    with monkeypatch.context() as broken:
        broken.setattr("marketplace.rentals.rent", lambda **order: 1 / 0)
        program.rent(key="crash", env={"API_KEY": "value-of-env"})
    Client().get(f"/invitations/{link}")
    Client().post("/accounts/login/", {"login": alice.email, "password": PASSWORD})

    logged = caplog.text + "".join(capfd.readouterr())
    assert "crash" not in logged
    assert "unexpected error" in logged
    assert "/invitations/***" in logged
    for secret in (token, made, link, posted, PASSWORD):
        assert secret not in logged
    assert "value-of-env" not in logged
    assert "opens-the-registry" not in logged

    rows = every_row()
    kept = {table for table, texts in rows.items() if any("value-of-env" in text for text in texts)}
    assert kept == {"provisioning_instance"}
    for secret in (token, made, link, posted, PASSWORD, "opens-the-registry"):
        assert [table for table, texts in rows.items() if any(secret in text for text in texts)] == []
