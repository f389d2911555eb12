"""A node is told a registry's password just before it pulls, and nobody else is ever."""

import json
import logging
from typing import Any

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.test import Client, override_settings
from django.utils import timezone

from marketplace import registries, rentals
from marketplace.access import Actor
from marketplace.management.commands import reseal
from marketplace.models import Offer, Project
from provisioning import resealing
from provisioning.models import Assignment, Instance, RegistryCredential
from provisioning.registries import Login
from tests.conftest import Fleet, order

IMAGE = "registry.example.com/team/train:1.0"


@pytest.fixture
def credential(actor: Actor, project: Project) -> RegistryCredential:
    return registries.add(
        actor=actor, project=project, host="registry.example.com", username="bot", password="opens it",
        at=timezone.now(),
    )  # fmt: skip


@pytest.fixture
def pulling(actor: Actor, project: Project, fleet: Fleet, credential: RegistryCredential) -> Assignment:
    """An instance of a private image that was just placed."""
    Offer.objects.filter(pk=fleet.h200.pk).update(runtime="podman")
    fleet.h200.refresh_from_db()
    rented = rentals.rent(
        actor=actor, project=project, order=order(fleet.h200, image=IMAGE, command=[]), at=timezone.now()
    )
    return Assignment.objects.select_related("node", "instance").get(instance=rented)


def ask(held: Assignment, fleet: Fleet, **changes: Any) -> Any:
    body = {
        "node": held.node.public_id,
        "key": fleet.nodes[held.node.name].key,
        "assignment": held.public_id,
        "fence": held.fence,
    } | changes
    return Client().post("/agent/v1/secrets", json.dumps(body), content_type="application/json")


def test_the_node_that_pulls_is_told(pulling: Assignment, fleet: Fleet, credential: RegistryCredential) -> None:
    answer = ask(pulling, fleet)
    assert answer.status_code == 200
    assert answer.json() == {"registry": {"host": "registry.example.com", "username": "bot", "password": "opens it"}}
    assert answer.headers["Cache-Control"] == "no-store"
    credential.refresh_from_db()
    assert credential.handed_out_at is not None


def test_no_other_node_is_told(pulling: Assignment, fleet: Fleet) -> None:
    other = next(node for node in fleet.nodes.values() if node.node.pk != pulling.node_id)
    answer = ask(pulling, fleet, node=other.node.public_id, key=other.key)
    assert answer.status_code == 409
    assert "opens it" not in answer.content.decode()


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"key": "another key"}, 401),
        ({"node": "nod_aaaaaaaaaaaaaaaaaaaa"}, 401),
        ({"assignment": "asg_aaaaaaaaaaaaaaaaaaaa"}, 409),
        ({"fence": 2}, 409),
        ({"fence": 0}, 409),
        ({"fence": "1"}, 422),
        ({"fence": None}, 422),
        ({"key": None}, 422),
        ({"node": "\x00"}, 422),
    ],
)
def test_whoever_does_not_hold_the_assignment_is_refused(
    pulling: Assignment, fleet: Fleet, credential: RegistryCredential, changes: dict[str, Any], status: int
) -> None:
    answer = ask(pulling, fleet, **changes)
    assert answer.status_code == status
    assert "opens it" not in answer.content.decode()
    credential.refresh_from_db()
    assert credential.handed_out_at is None


@pytest.mark.parametrize(
    "over", [{"desired": "gone"}, {"observed": "running"}, {"observed": "exited"}, {"observed": "gone"}]
)
def test_an_assignment_that_pulls_no_more_is_refused(pulling: Assignment, fleet: Fleet, over: dict[str, str]) -> None:
    Assignment.objects.filter(pk=pulling.pk).update(**over)
    assert ask(pulling, fleet).status_code == 409


def test_the_assignment_of_an_earlier_run_is_refused(pulling: Assignment, fleet: Fleet) -> None:
    Instance.objects.filter(pk=pulling.instance_id).update(run=2)
    assert ask(pulling, fleet).status_code == 409


def test_another_registry_s_password_is_not_told(pulling: Assignment, fleet: Fleet) -> None:
    RegistryCredential.objects.update(host="other.example.com")
    assert ask(pulling, fleet).json() == {"registry": None}


def test_another_project_s_password_is_not_told(pulling: Assignment, fleet: Fleet, charlie: Any) -> None:
    foreign = Project.objects.get(organization__name="Other")
    RegistryCredential.objects.update(project=foreign)
    assert ask(pulling, fleet).json() == {"registry": None}


def test_a_process_has_nothing_to_pull(pulling: Assignment, fleet: Fleet) -> None:
    Instance.objects.filter(pk=pulling.instance_id).update(image="")
    assert ask(pulling, fleet).status_code == 409


def test_every_hand_out_is_logged_and_never_the_password(
    pulling: Assignment, fleet: Fleet, credential: RegistryCredential,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    ask(pulling, fleet)
    logged = caplog.text + "".join(capfd.readouterr())
    assert "registry credential handed out" in logged
    assert credential.public_id in logged
    assert "opens it" not in logged
    assert "opens it" not in repr(Login(host="h", username="u", password="opens it"))


def test_a_password_under_a_forgotten_key_is_reported_to_the_operator(
    pulling: Assignment, fleet: Fleet, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with override_settings(SECRET_KEY="another key of this marketplace" * 2):
        assert ask(pulling, fleet).json() == {"registry": None}
    assert "registry credential cannot be read" in caplog.text + "".join(capfd.readouterr())


def test_after_a_new_secret_key_all_is_sealed_anew_and_the_former_one_forgotten(
    pulling: Assignment, fleet: Fleet, capsys: pytest.CaptureFixture[str], settings: Any
) -> None:
    former, settings.SECRET_KEY = settings.SECRET_KEY, "another key of this marketplace" * 2
    with pytest.raises(CommandError, match="no more a fallback: reg_"):
        call_command("reseal")
    settings.SECRET_KEY_FALLBACKS = [former]
    call_command("reseal")
    assert "1 sealed anew" in capsys.readouterr().out
    settings.SECRET_KEY_FALLBACKS = []
    assert ask(pulling, fleet).json()["registry"]["password"] == "opens it"


def test_every_column_that_rests_sealed_is_known_to_the_command() -> None:
    named = {
        (model, field.name)
        for model in apps.get_models()
        for field in model._meta.concrete_fields
        if "sealed" in field.name
    }
    assert named == {*resealing.SEALED, *reseal.SEALED}
