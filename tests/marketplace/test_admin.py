"""The back office: every model is there, nothing can be changed, and secrets stay out of sight."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.apps import apps
from django.contrib.admin import ModelAdmin
from django.db import models
from django.test import Client, RequestFactory
from django.urls import reverse

from marketplace.admin import ROOMS, back_office
from marketplace.models import User
from provisioning.models import Instance
from tests.conftest import Rent, make_person, make_token

MODELS = [model for room in ROOMS for model in apps.get_app_config(room).get_models()]


@pytest.fixture
def office(client: Client, db: None) -> Client:
    """The browser of somebody who may look at everything."""
    client.force_login(make_person("root@operator.example", is_staff=True, is_superuser=True))
    return client


def path_of(model: type[models.Model], page: str, *ids: object) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=ids)


def desks() -> Iterator[tuple[type[models.Model], ModelAdmin]]:
    yield from back_office._registry.items()


def test_every_model_of_the_three_rooms_is_there_and_no_other() -> None:
    assert {model for model, _ in desks()} == set(MODELS)
    assert len(MODELS) > 25


@pytest.mark.parametrize("model", MODELS)
def test_nothing_can_be_changed_even_by_a_superuser(model: type[models.Model], rf: RequestFactory) -> None:
    request = rf.get("/")
    request.user = User(is_superuser=True, is_staff=True, is_active=True)
    desk = back_office._registry[model]
    assert desk.has_view_permission(request)
    assert not desk.has_add_permission(request)
    assert not desk.has_change_permission(request)
    assert not desk.has_delete_permission(request)
    assert desk.get_actions(request) == {}


@pytest.mark.parametrize("model", MODELS)
def test_no_secret_has_a_column(model: type[models.Model], rf: RequestFactory) -> None:
    desk, request = back_office._registry[model], rf.get("/")
    shown = {*desk.get_fields(request), *desk.get_list_display(request), *desk.get_search_fields(request)}
    secret = {"password", "sealed_password", "env", "body", "data"}
    assert not {name for name in shown if "hash" in str(name) or name in secret}


def test_every_list_opens(office: Client, running: Instance, subtests: pytest.Subtests) -> None:
    for model in MODELS:
        with subtests.test(model=model):
            assert office.get(path_of(model, "changelist"), {"q": "x"}).status_code == 200
            assert office.get(path_of(model, "changelist")).status_code == 200
            row = model._default_manager.first()
            if row is not None:
                assert office.get(path_of(model, "change", row.pk)).status_code == 200
                assert office.post(path_of(model, "change", row.pk), {}).status_code == 403
                assert office.post(path_of(model, "delete", row.pk), {"post": "yes"}).status_code == 403
            assert office.post(path_of(model, "add"), {}).status_code == 403


def test_lists_ask_a_fixed_number_of_questions(
    office: Client, running: Instance, rent: Rent, django_assert_num_queries: Callable[[int], Any]
) -> None:
    rent()
    office.get(reverse("admin:index"))
    for model in MODELS:
        with django_assert_num_queries(4):  # session, person, count, rows
            office.get(path_of(model, "changelist"))


def test_a_customers_secrets_are_on_no_page(office: Client, running: Instance, alice: User) -> None:
    Instance.objects.filter(pk=running.pk).update(env={"TOKEN": "hunter2hunter2"})
    make_token(alice, running.project.organization)
    token = alice.memberships.get().tokens.get()
    for model, key in ((Instance, running.pk), (type(token), token.pk), (User, alice.pk)):
        page = office.get(path_of(model, "change", key)).content.decode()
        for secret in ("hunter2hunter2", token.secret_hash, alice.password):
            assert secret not in page


@pytest.mark.parametrize("path", ["", "marketplace/user/", "billing/transfer/", "login/", "password_change/"])
def test_only_superusers_find_it(client: Client, carol: User, path: str) -> None:
    assert client.get(f"/back-office/{path}").status_code == 302
    client.force_login(carol)
    assert client.get(f"/back-office/{path}").status_code in {302, 404}
    assert client.get("/back-office/").status_code == 404


def test_strangers_are_sent_to_the_one_sign_in_page(client: Client, db: None) -> None:
    answer = client.get("/back-office/", follow=True)
    assert answer.redirect_chain[-1][0].startswith(reverse("account_login"))
