"""Registries on their page: added, told what is wrong, removed, and the password never sent back."""

import pytest
from django.test import Client
from django.urls import reverse

from marketplace.models import Project
from provisioning.models import RegistryCredential
from provisioning.secrets import unseal
from tests.marketplace.portal.reading import faults, read

FORM = {"host": "registry.example.com", "username": "bot", "password": "opens it"}


def test_a_registry_is_added_and_removed(owner: Client, project: Project) -> None:
    assert "No registries yet" in read(owner.get(reverse("registries"))).text
    answer = owner.post(reverse("registries"), {**FORM, "project": project.public_id}, follow=True)
    assert "Images from registry.example.com can be pulled now." in read(answer).text
    row = RegistryCredential.objects.get()
    assert unseal(row.sealed_password) == "opens it"
    page = owner.get(reverse("registry-remove", args=[row.public_id]))
    assert "What runs goes on" in read(page).text
    owner.post(reverse("registry-remove", args=[row.public_id]))
    assert not RegistryCredential.objects.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": "not a host"}, "A registry is a host"),
        ({"username": "a:b"}, "without a colon"),
        ({"username": ""}, "1 to 255 printable"),
        ({"password": ""}, "1 to 8192 printable"),
        ({"password": "two\nlines"}, "without a line break"),
    ],
)
def test_what_is_wrong_is_told_and_the_password_is_not_sent_back(
    owner: Client, project: Project, changes: dict[str, str], words: str
) -> None:
    answer = owner.post(reverse("registries"), {**FORM, **changes})
    page = read(answer)
    assert answer.status_code == 422
    assert words in page.text
    assert faults(page) == []
    assert page.value("host") == {**FORM, **changes}["host"]
    assert page.value("password") == ""
    assert not RegistryCredential.objects.exists()


def test_a_registry_has_one_user_in_a_project(owner: Client, project: Project) -> None:
    owner.post(reverse("registries"), FORM)
    answer = owner.post(reverse("registries"), {**FORM, "host": "REGISTRY.example.com", "username": "other"})
    assert "remove that one first" in read(answer).text
    assert RegistryCredential.objects.get().username == "bot"
    assert "opens it" not in answer.content.decode()
