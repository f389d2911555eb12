"""Tokens, keys, members, invitations, projects and organizations in the portal."""

import re

import pytest
from django.test import Client
from django.urls import reverse

from marketplace.models import ApiToken, Invitation, Membership, Organization, Project, Role, User
from tests.conftest import make_organization, make_person, make_token
from tests.marketplace.portal.conftest import browser
from tests.marketplace.portal.reading import Page, faults, read

KEY = f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{'A' * 43} laptop"


def opened(client: Client, name: str, *ids: str) -> Page:
    answer = client.get(reverse(name, args=ids))
    assert answer.status_code == 200
    page = read(answer)
    assert faults(page) == []
    return page


def test_a_token_is_shown_once_and_works(owner: Client, client: Client) -> None:
    answer = owner.post(reverse("tokens"), {"name": "laptop", "scopes": ["read"], "days": "30"})
    page = read(answer)
    assert faults(page) == []
    secret = page.all("input", id="secret")[0].attributes["value"]
    assert answer.headers["Cache-Control"] == "no-store"
    me = client.get("/api/v1/me", headers={"Authorization": f"Bearer {secret}"})
    assert me.status_code == 200
    assert secret not in owner.get(reverse("tokens")).content.decode()
    assert "laptop" in opened(owner, "tokens").text


def test_a_revoked_token_is_gone_and_refused(owner: Client, client: Client, alice: User, acme: Organization) -> None:
    secret = make_token(alice, acme)
    token = ApiToken.objects.get()
    assert "refused at once" in opened(owner, "token-revoke", token.public_id).text
    assert owner.post(reverse("token-revoke", args=[token.public_id])).status_code == 302
    assert client.get("/api/v1/me", headers={"Authorization": f"Bearer {secret}"}).status_code == 401


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"name": "", "scopes": ["read"], "days": "30"}, "printable characters"),
        ({"name": "x" * 101, "scopes": ["read"], "days": "30"}, "printable characters"),
        ({"name": "laptop", "days": "30"}, "Choose one or more"),
        ({"name": "laptop", "scopes": ["everything"], "days": "30"}, "Choose one or more"),
        ({"name": "laptop", "scopes": ["read"], "days": "9999"}, "1 to 365 days"),
        ({"name": "laptop", "scopes": ["read"], "days": "soon"}, "1 to 365 days"),
    ],
)
def test_a_bad_token_form_keeps_what_was_typed(owner: Client, form: dict[str, str], words: str) -> None:
    answer = owner.post(reverse("tokens"), form)
    page = read(answer)
    assert answer.status_code == 422
    assert words in page.text
    assert page.value("name") == form["name"]
    assert not ApiToken.objects.exists()


def test_a_member_sees_only_their_own_tokens(
    viewer: Client, owner: Client, alice: User, bob: User, acme: Organization
) -> None:
    make_token(alice, acme)
    make_token(bob, acme)
    assert "alice@acme.example" not in opened(viewer, "tokens").text.replace(bob.email, "")
    assert "bob@acme.example" in opened(owner, "tokens").text


def test_a_key_is_added_and_removed(owner: Client, project: Project) -> None:
    assert "No keys yet" in opened(owner, "ssh-keys").text
    owner.post(reverse("ssh-keys"), {"name": "laptop", "public_key": KEY, "project": project.public_id})
    assert "SHA256:" in opened(owner, "ssh-keys").text
    owner.post(reverse("ssh-key-remove", args=[project.ssh_keys.get().public_id]))
    assert not project.ssh_keys.exists()


@pytest.mark.parametrize(
    ("key", "words"),
    [("-----BEGIN OPENSSH PRIVATE KEY-----", "This is a private key"), ("nonsense", "Give one OpenSSH public key")],
)
def test_a_bad_key_is_told_and_kept(owner: Client, key: str, words: str) -> None:
    page = read(owner.post(reverse("ssh-keys"), {"name": "laptop", "public_key": key}))
    assert words in page.text
    assert page.value("public_key") == key


def test_the_same_key_twice_is_told(owner: Client, project: Project) -> None:
    for _ in range(2):
        answer = owner.post(reverse("ssh-keys"), {"name": "laptop", "public_key": KEY})
    assert "has this key already" in read(answer).text


def test_members_are_listed_with_the_table_of_roles(viewer: Client, owner: Client) -> None:
    page = opened(viewer, "members")
    for words in ("alice@acme.example", "bob@acme.example", "Who may do what", "Rent, start, stop and terminate"):
        assert words in page.text
    assert not page.all("input", name="email")
    assert opened(owner, "members").all("input", name="email")


def invited(owner: Client, email: str, role: str = "developer") -> str:
    """Invite and return the path of the link."""
    page = read(owner.post(reverse("member-invite"), {"email": email, "role": role}))
    return re.sub(r"^https?://[^/]+", "", page.all("input", id="link")[0].attributes["value"])


def test_an_invited_person_signs_up_and_joins(owner: Client, acme: Organization) -> None:
    link = invited(owner, "new@acme.example")
    client = Client()
    page = read(client.get(link))
    assert "Join Acme" in page.text
    assert faults(page) == []
    form = {"email": "new@acme.example", "password1": "a quiet long river", "next": link}
    assert client.post(reverse("account_signup"), form).headers["Location"] == link
    assert "Accept the invitation" in read(client.get(link)).text
    assert client.post(link).headers["Location"] == reverse("home")
    assert Membership.objects.get(user__email="new@acme.example").organization == acme
    assert "Welcome to Acme. You are Developer there." in read(client.get(reverse("home"))).text


def test_a_person_who_lost_the_link_while_signing_up_is_led_back_to_it(owner: Client) -> None:
    link = invited(owner, "new@acme.example")
    client = Client()
    client.get(link)
    client.post(reverse("account_signup"), {"email": "new@acme.example", "password1": "a quiet long river"})
    assert client.get(reverse("home")).headers["Location"] == link


def test_an_invited_person_with_an_account_joins_and_may_switch(owner: Client, charlie: User) -> None:
    link = invited(owner, charlie.email)
    client = browser(charlie)
    client.post(link)
    assert "Acme" in opened(client, "home").text
    other = Organization.objects.get(name="Other")
    client.post(reverse("organization-choose"), {"organization": other.public_id})
    assert opened(client, "members").text.count("Members of Other") == 1


def test_an_invitation_is_for_its_address_only_and_works_once(owner: Client, charlie: User) -> None:
    link = invited(owner, "new@acme.example")
    client = browser(charlie)
    assert "You are signed in as charlie@other.example" in read(client.get(link)).text
    assert client.post(link).status_code == 403
    assert not Membership.objects.filter(user=charlie, organization__name="Acme").exists()


def test_a_revoked_invitation_says_so(owner: Client, client: Client) -> None:
    link = invited(owner, "new@acme.example")
    owner.post(reverse("member-invitation-revoke", args=[Invitation.objects.get().public_id]))
    answer = client.get(link)
    assert answer.status_code == 404
    assert "This invitation does not work any more" in read(answer).text


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"email": "not an address", "role": "viewer"}, "not an e-mail address"),
        ({"email": "bob@acme.example", "role": "viewer"}, "is a member already"),
        ({"email": "new@acme.example", "role": "king"}, "Choose one of the roles"),
    ],
)
def test_a_bad_invitation_keeps_what_was_typed(owner: Client, bob: User, form: dict[str, str], words: str) -> None:
    page = read(owner.post(reverse("member-invite"), form))
    assert words in page.text
    assert page.value("email") == form["email"]
    assert not Invitation.objects.exists()


def test_a_role_is_changed_and_the_last_owner_stays(owner: Client, alice: User, bob: User) -> None:
    member = Membership.objects.get(user=bob)
    owner.post(reverse("member-role", args=[member.public_id]), {"role": "developer"})
    member.refresh_from_db()
    assert member.role == Role.DEVELOPER
    own = alice.memberships.get()
    answer = owner.post(reverse("member-role", args=[own.public_id]), {"role": "viewer"})
    assert answer.status_code == 409
    assert "An organization needs an owner" in read(answer).text


def test_a_removed_member_sees_nothing_any_more(owner: Client, viewer: Client, bob: User) -> None:
    member = Membership.objects.get(user=bob)
    assert "lose access at once" in opened(owner, "member-remove", member.public_id).text
    owner.post(reverse("member-remove", args=[member.public_id]))
    assert "You are in no organization yet" in read(viewer.get(reverse("home"))).text


def test_projects_are_made_and_renamed(owner: Client, project: Project) -> None:
    owner.post(reverse("projects"), {"name": "research"})
    page = opened(owner, "projects")
    assert "research" in page.text
    assert "0 of 16 held" in page.text
    made = Project.objects.get(name="research")
    assert "named default already" in read(owner.post(reverse("projects"), {"name": "default"})).text
    path = reverse("project-rename", args=[made.public_id])
    assert "named default already" in read(owner.post(path, {"name": "default"})).text
    owner.post(path, {"name": "studies"})
    assert "studies" in opened(owner, "projects").text


def test_the_organization_is_renamed_and_the_audit_log_tells(owner: Client, acme: Organization) -> None:
    assert "printable characters" in read(owner.post(reverse("organization-rename"), {"name": " "})).text
    owner.post(reverse("organization-rename"), {"name": "Acme Research"})
    page = opened(owner, "audit")
    assert "Renamed the organization" in page.text
    assert "Founded the organization" in page.text
    assert "name: Acme Research" in page.text


def test_the_audit_log_goes_on_where_it_stopped(owner: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marketplace.portal.organizations.PAGE", 1)
    first = opened(owner, "audit")
    older = next(link.attributes["href"] for link in first.all("a") if link.text == "Older entries")
    assert "Founded the organization" in read(owner.get(reverse("audit") + older)).text


def test_nobody_looks_at_an_organization_that_is_not_theirs(stranger: Client, acme: Organization) -> None:
    answer = stranger.post(reverse("organization-choose"), {"organization": acme.public_id})
    assert answer.status_code == 404


def test_what_is_chosen_is_forgotten_when_membership_ends(owner: Client, alice: User) -> None:
    second = make_organization("Second", make_person("eve@second.example"))
    Membership.objects.create(organization=second, user=alice, role=Role.VIEWER)
    owner.post(reverse("organization-choose"), {"organization": second.public_id})
    assert "Members of Second" in opened(owner, "members").text
    Membership.objects.filter(organization=second, user=alice).delete()
    assert "Members of Acme" in opened(owner, "members").text
