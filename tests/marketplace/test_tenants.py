"""Organizations, people and their roles: what each change does, who may make it, and what is written down."""

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.db.models import QuerySet
from django.utils import timezone

from billing.models import Account
from marketplace import tenants, tokens
from marketplace.access import Actor, person
from marketplace.errors import BadOrder, Conflict, Forbidden, LastOwner, NotFound
from marketplace.models import ApiToken, AuditEntry, Invitation, Membership, Organization, Project, Role, User
from provisioning.models import Quota
from tests.billing.makers import at_the_same_moment
from tests.conftest import make_member, make_organization, make_person, make_token
from tests.marketplace.api.tenant import ssh_key

pytestmark = pytest.mark.django_db


def membership(user: User) -> Membership:
    return Membership.objects.select_related("organization", "user").get(user=user)


def test_whoever_founds_an_organization_owns_it_with_accounts_a_project_and_a_quota(charlie: User) -> None:
    organization = Organization.objects.get(name="Other")
    assert membership(charlie).role == Role.OWNER
    assert set(Account.objects.filter(organization=organization).values_list("kind", flat=True)) >= {"promo", "cash"}
    project = Project.objects.get(organization=organization)
    assert (project.name, Quota.objects.get(project=project).limit) == ("default", 16)


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "two\nlines", "nul\x00", "\ud800", "bell\x07"])
def test_a_name_is_something_that_can_be_printed(acme: Organization, actor: Actor, name: str) -> None:
    for change in (
        lambda: tenants.rename_organization(actor=actor, organization=acme, name=name),
        lambda: tenants.create_project(actor=actor, organization=acme, name=name),
        lambda: tokens.create_token(actor=actor, organization=acme, name=name, scopes=["read"], at=timezone.now()),
    ):
        with pytest.raises(BadOrder) as refusal:
            change()
        assert refusal.value.field == "name"


def test_names_of_projects_are_taken_once_per_organization(acme: Organization, actor: Actor, project: Project) -> None:
    other = tenants.create_project(actor=actor, organization=acme, name=" second ")
    assert other.name == "second"
    for change in (
        lambda: tenants.create_project(actor=actor, organization=acme, name="default"),
        lambda: tenants.rename_project(actor=actor, project=other, name="default"),
    ):
        with pytest.raises(Conflict):
            change()


# Invitations.


@pytest.fixture
def invited(acme: Organization, actor: Actor) -> str:
    _, secret = tenants.invite(
        actor=actor, organization=acme, email=" Dora@Example.org ", role=Role.DEVELOPER, at=timezone.now()
    )
    return secret


def test_an_invitation_makes_the_invited_person_a_member_once(acme: Organization, invited: str) -> None:
    dora = make_person("dora@example.org")
    tenants.accept_invitation(user=dora, secret=invited, at=timezone.now())
    assert (membership(dora).organization, membership(dora).role) == (acme, Role.DEVELOPER)
    with pytest.raises(NotFound):
        tenants.accept_invitation(user=dora, secret=invited, at=timezone.now())


def test_an_invitation_is_for_the_address_it_was_sent_to(charlie: User, invited: str) -> None:
    with pytest.raises(Forbidden, match=r"dora@example\.org"):
        tenants.accept_invitation(user=charlie, secret=invited, at=timezone.now())
    assert Membership.objects.filter(user=charlie).count() == 1


def test_an_invitation_runs_out_can_be_revoked_and_is_replaced_by_a_newer_one(
    acme: Organization, actor: Actor, invited: str
) -> None:
    at = timezone.now()
    with pytest.raises(NotFound):
        tenants.open_invitation(secret=invited, at=at + tenants.INVITATION_LIFE + timedelta(seconds=1))
    second, newer = tenants.invite(actor=actor, organization=acme, email="dora@example.org", role=Role.VIEWER, at=at)
    with pytest.raises(NotFound):
        tenants.open_invitation(secret=invited, at=at)
    assert tenants.open_invitation(secret=newer, at=at).role == Role.VIEWER
    tenants.revoke_invitation(actor=actor, invitation=second, at=at)
    tenants.revoke_invitation(actor=actor, invitation=second, at=at)
    with pytest.raises(NotFound):
        tenants.open_invitation(secret=newer, at=at)
    assert AuditEntry.objects.filter(verb="invitation.revoke").count() == 1


def test_the_link_s_secret_is_kept_as_a_hash_only(invited: str) -> None:
    kept = Invitation.objects.values_list("secret_hash", flat=True).get()
    assert invited not in kept
    assert len(kept) == 64


@pytest.mark.parametrize(
    "email",
    [
        "",
        "nobody",
        "a@b",
        "a b@c.example",
        f"{'x' * 64}@{'y' * 60}.{'z' * 60}.{'w' * 60}.{'v' * 60}.example",
        "a@b.example\nc",
    ],
)
def test_only_an_address_can_be_invited(acme: Organization, actor: Actor, email: str) -> None:
    with pytest.raises(BadOrder) as refusal:
        tenants.invite(actor=actor, organization=acme, email=email, role=Role.VIEWER, at=timezone.now())
    assert refusal.value.field == "email"


def test_a_member_cannot_be_invited_again(acme: Organization, actor: Actor, bob: User) -> None:
    with pytest.raises(Conflict):
        tenants.invite(actor=actor, organization=acme, email="BOB@acme.example", role=Role.OWNER, at=timezone.now())


# Roles.


def test_only_an_owner_makes_and_unmakes_owners(acme: Organization, alice: User, bob: User) -> None:
    admin = person(make_member(acme, "admin@acme.example", Role.ADMIN))
    for change in (
        lambda: tenants.change_role(actor=admin, member=membership(bob), role=Role.OWNER),
        lambda: tenants.change_role(actor=admin, member=membership(alice), role=Role.VIEWER),
        lambda: tenants.remove_member(actor=admin, member=membership(alice)),
        lambda: tenants.invite(actor=admin, organization=acme, email="x@y.example", role=Role.OWNER, at=timezone.now()),
    ):
        with pytest.raises(Forbidden):
            change()
    tenants.change_role(actor=admin, member=membership(bob), role=Role.ADMIN)
    tenants.change_role(actor=person(alice), member=membership(bob), role=Role.OWNER)
    assert membership(bob).role == Role.OWNER


def test_the_last_owner_stays_one(actor: Actor, alice: User) -> None:
    for change in (
        lambda: tenants.change_role(actor=actor, member=membership(alice), role=Role.ADMIN),
        lambda: tenants.remove_member(actor=actor, member=membership(alice)),
    ):
        with pytest.raises(LastOwner):
            change()
    assert membership(alice).role == Role.OWNER


def test_a_person_s_tokens_end_with_their_membership(acme: Organization, actor: Actor, bob: User) -> None:
    make_token(bob, acme)
    tenants.remove_member(actor=actor, member=membership(bob))
    assert not ApiToken.objects.filter(membership__user=bob).exists()


def test_a_role_that_was_changed_meanwhile_is_not_changed_blindly(actor: Actor, bob: User) -> None:
    seen = membership(bob)
    tenants.change_role(actor=actor, member=membership(bob), role=Role.BILLING)
    with pytest.raises(Conflict):
        tenants.change_role(actor=actor, member=seen, role=Role.ADMIN)
    assert membership(bob).role == Role.BILLING


def leave_at_the_same_moment(monkeypatch: pytest.MonkeyPatch, *, patience_s: float) -> list[str]:
    """Two owners, each of whom takes the other's word that they stay."""
    one, two = make_person("one@acme.example"), make_person("two@acme.example")
    organization = make_organization("Acme", one, credit_micros=0)
    Membership.objects.create(organization=organization, user=two, role=Role.OWNER)
    barrier, checked = threading.Barrier(2), tenants._check_not_last_owner

    def check_then_meet(member: Membership) -> None:
        checked(member)
        with suppress(threading.BrokenBarrierError):
            barrier.wait(timeout=patience_s)

    monkeypatch.setattr(tenants, "_check_not_last_owner", check_then_meet)

    def leave(user: User) -> Callable[[], None]:
        return lambda: tenants.remove_member(actor=person(user), member=membership(user))

    return at_the_same_moment(leave(one), leave(two))


@pytest.mark.django_db(transaction=True)
def test_without_the_lock_both_owners_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QuerySet, "select_for_update", lambda self, **options: self)
    assert leave_at_the_same_moment(monkeypatch, patience_s=20) == ["done", "done"]
    assert not Membership.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_of_two_owners_who_leave_at_the_same_moment_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert leave_at_the_same_moment(monkeypatch, patience_s=0.3) == ["LastOwner", "done"]
    assert Membership.objects.get().role == Role.OWNER


@pytest.mark.django_db(transaction=True)
def test_two_who_invite_the_same_address_at_the_same_moment_leave_one_open_invitation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner = make_person("one@acme.example")
    organization = make_organization("Acme", owner, credit_micros=0)
    barrier, hashed = threading.Barrier(2), tenants.secret_hash

    def hash_then_meet(secret: str) -> str:
        with suppress(threading.BrokenBarrierError):
            barrier.wait(timeout=2)
        return hashed(secret)

    monkeypatch.setattr(tenants, "secret_hash", hash_then_meet)

    def invite() -> None:
        tenants.invite(
            actor=person(owner), organization=organization, email="d@e.example", role=Role.VIEWER, at=timezone.now()
        )

    assert at_the_same_moment(invite, invite) == ["Conflict", "done"]
    assert Invitation.objects.filter(revoked_at=None).count() == 1


# What is written down.


def changes(acme: Organization, actor: Actor, bob: User, project: Project) -> dict[str, Callable[[], Any]]:
    """Every change to a tenant, in an order in which each can be made."""
    at, made = timezone.now(), {}

    def invite() -> None:
        made["invitation"], _ = tenants.invite(
            actor=actor, organization=acme, email="dora@example.org", role=Role.VIEWER, at=at
        )

    def make_a_token() -> None:
        made["token"], _ = tokens.create_token(actor=actor, organization=acme, name="t", scopes=["read"], at=at)

    def add_a_key() -> None:
        made["key"] = tokens.add_ssh_key(actor=actor, project=project, name="k", public_key=ssh_key(b"k"))

    return {
        "organization.change": lambda: tenants.rename_organization(actor=actor, organization=acme, name="Acme Ltd"),
        "project.create": lambda: tenants.create_project(actor=actor, organization=acme, name="second"),
        "project.change": lambda: tenants.rename_project(actor=actor, project=project, name="first"),
        "invitation.create": invite,
        "invitation.revoke": lambda: tenants.revoke_invitation(actor=actor, invitation=made["invitation"], at=at),
        "member.change": lambda: tenants.change_role(actor=actor, member=membership(bob), role=Role.BILLING),
        "member.remove": lambda: tenants.remove_member(actor=actor, member=membership(bob)),
        "token.create": make_a_token,
        "token.revoke": lambda: tokens.revoke_token(actor=actor, token=made["token"], at=at),
        "ssh_key.add": add_a_key,
        "ssh_key.remove": lambda: tokens.remove_ssh_key(actor=actor, key=made["key"]),
    }


def test_every_change_leaves_one_entry_with_who_what_and_which_request(
    acme: Organization, actor: Actor, bob: User, project: Project
) -> None:
    for verb, change in changes(acme, actor, bob, project).items():
        newest = AuditEntry.objects.order_by("-pk").first()
        change()
        (entry,) = AuditEntry.objects.filter(pk__gt=newest.pk if newest else 0)
        assert (entry.verb, entry.organization, entry.actor_name) == (verb, acme, "alice@acme.example")
        assert (entry.request_id, entry.subject_id[3]) == ("req_test", "_")


def test_entries_say_what_was_before_and_after(acme: Organization, actor: Actor, bob: User, project: Project) -> None:
    for change in changes(acme, actor, bob, project).values():
        change()
    told = {entry.verb: (entry.before, entry.after) for entry in AuditEntry.objects.filter(request_id="req_test")}
    assert told["organization.change"] == ({"name": "Acme"}, {"name": "Acme Ltd"})
    assert told["project.change"] == ({"name": "default"}, {"name": "first"})
    assert told["member.change"] == ({"role": "viewer"}, {"role": "billing"})
    assert told["member.remove"] == ({"email": "bob@acme.example", "role": "billing"}, None)
    assert told["token.create"][1]["scopes"] == ["read"]
    assert told["ssh_key.add"][1] == told["ssh_key.remove"][0]


def test_a_change_that_fails_leaves_no_entry(acme: Organization, actor: Actor) -> None:
    count = AuditEntry.objects.count()
    with pytest.raises(Conflict):
        tenants.create_project(actor=actor, organization=acme, name="default")
    assert AuditEntry.objects.count() == count


@pytest.mark.parametrize(
    "statement",
    ["UPDATE marketplace_auditentry SET actor_name = 'somebody else'", "DELETE FROM marketplace_auditentry"],
)
def test_what_is_written_down_stays(acme: Organization, statement: str) -> None:
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)
    assert AuditEntry.objects.exists()


def test_the_longest_names_fit_into_an_entry(acme: Organization) -> None:
    user = make_member(acme, f"{'x' * 64}@{'y' * 60}.{'z' * 60}.{'w' * 40}.example", Role.OWNER)
    _, secret = tokens.create_token(
        actor=person(user), organization=acme, name="n" * 100, scopes=["manage"], at=timezone.now()
    )
    actor = Actor(user=user, token=ApiToken.objects.select_related("membership").get(name="n" * 100))
    assert len(f"{user.email} ({'n' * 100})") > 254
    tenants.create_project(actor=actor, organization=acme, name="second")
    assert secret not in str(AuditEntry.objects.values_list("actor_name", "after"))
