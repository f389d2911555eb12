"""The door: what a person and a token find behind it, and what neither may know."""

from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

from marketplace import access, permissions, tenants
from marketplace.access import Actor, person
from marketplace.errors import BadOrder, Forbidden, NotFound
from marketplace.models import ApiToken, Organization, Project, Role, User
from provisioning.models import Instance
from tests.conftest import Rent, make_member, make_organization, make_token

pytestmark = pytest.mark.django_db


def token_of(user: User, organization: Organization, **options: Any) -> Actor:
    actor = access.actor_of_token(make_token(user, organization, **options), request_id="", at=timezone.now())
    assert actor is not None
    return actor


@pytest.fixture
def second(alice: User, acme: Organization) -> Organization:
    """Another organization of Alice's."""
    return make_organization("Second", alice, credit_micros=0)


def test_a_person_finds_what_is_in_each_of_their_organizations_a_token_in_its_own(
    alice: User, acme: Organization, second: Organization
) -> None:
    token = token_of(alice, acme)
    assert set(access.organizations(person(alice))) == {acme, second}
    assert set(access.organizations(token)) == {acme}
    assert {project.organization for project in access.projects(person(alice))} == {acme, second}
    assert {project.organization for project in access.projects(token)} == {acme}
    with pytest.raises(NotFound):
        access.organization_for(token, second.public_id, verb="organization.view")


def test_what_a_stranger_may_not_know_of_is_not_found_and_what_a_member_may_not_do_is_forbidden(
    acme: Organization, bob: User, charlie: User, rent: Rent
) -> None:
    instance = rent()
    doors: list[Callable[[Actor], Any]] = [
        lambda actor: access.organization_for(actor, acme.public_id, verb="organization.change"),
        lambda actor: access.project_for(actor, instance.project.public_id, verb="project.change"),
        lambda actor: access.instance_for(actor, instance.public_id, verb="instance.change"),
        lambda actor: access.member_for(actor, acme.memberships.first().public_id, verb="member.change"),
    ]
    for door in doors:
        with pytest.raises(NotFound):
            door(person(charlie))
        with pytest.raises(Forbidden):
            door(person(bob))


def test_without_an_organization_there_is_nothing_to_find(carol: User) -> None:
    for door in (access.organization_for, access.project_for):
        with pytest.raises(NotFound):
            door(person(carol), None, verb="project.view")
    assert not access.instances(person(carol)).exists()


@pytest.mark.parametrize("verb", sorted(permissions.VERBS))
def test_may_and_the_doors_agree_with_the_table(acme: Organization, verb: str) -> None:
    roles, scope = permissions.VERBS[verb]
    for role in Role:
        member = make_member(acme, f"{role}@acme.example", role)
        assert access.may(person(member), acme, verb) == (role in roles)
        with_it, without = (
            token_of(member, acme, scopes=scopes)
            for scopes in ((scope,), tuple(other for other in permissions.SCOPES if other != scope))
        )
        assert access.may(with_it, acme, verb) == (role in roles)
        assert not access.may(without, acme, verb)


def test_lists_follow_the_table_too(
    acme: Organization, bob: User, running: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists: list[tuple[str, Callable[[Actor], Any]]] = [
        ("instance.view", access.instances),
        ("project.view", access.projects),
        ("quota.view", access.quotas),
        ("organization.view", access.organizations),
    ]
    for verb, rows in lists:
        # The organization has a quota beside that of its project.
        assert rows(person(bob)).count() == (2 if verb == "quota.view" else 1)
        with monkeypatch.context() as stricter:
            stricter.setitem(permissions.VERBS, verb, (frozenset({Role.OWNER}), "read"))
            assert rows(person(bob)).count() == 0
        with pytest.raises(Forbidden):
            rows(token_of(bob, acme, scopes=("rent",)))


def test_a_token_of_one_project_finds_that_one_only(alice: User, acme: Organization, actor: Actor, rent: Rent) -> None:
    other = tenants.create_project(actor=actor, organization=acme, name="other")
    instance = rent()
    narrow = token_of(alice, acme)
    ApiToken.objects.update(project=other)
    narrow = Actor(user=alice, token=ApiToken.objects.select_related("membership", "project").get())
    assert list(access.projects(narrow)) == [other]
    assert access.project_for(narrow, None, verb="instance.change") == other
    with pytest.raises(NotFound):
        access.instance_for(narrow, instance.public_id, verb="instance.view")
    for verb in permissions.ORGANIZATION_WIDE:
        assert not access.may(narrow, acme, verb)
        assert access.may(actor, acme, verb)


def test_a_token_that_is_renewed_is_as_things_stand_now(alice: User, acme: Organization) -> None:
    actor, at = token_of(alice, acme), timezone.now()
    make_member(acme, "other@acme.example", Role.OWNER)
    acme.memberships.filter(user=alice).update(role=Role.VIEWER)
    renewed = access.renewed(actor, at=at)
    assert renewed is not None
    assert not access.may(renewed, acme, "instance.change")
    ApiToken.objects.update(revoked_at=at)
    assert access.renewed(actor, at=at) is None


def test_a_project_without_an_id_is_the_only_one(actor: Actor, acme: Organization, project: Project) -> None:
    assert access.project_for(actor, None, verb="project.view") == project
    tenants.create_project(actor=actor, organization=acme, name="later")
    with pytest.raises(BadOrder):
        access.project_for(actor, None, verb="project.view")
