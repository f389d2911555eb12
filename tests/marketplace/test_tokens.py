"""What lets programs and shells in."""

from base64 import b64encode
from collections.abc import Sequence
from datetime import timedelta

import pytest
from django.utils import timezone

from marketplace import access, tokens
from marketplace.access import Actor, TokenExpired, person
from marketplace.errors import BadOrder, Conflict, NotFound
from marketplace.models import ApiToken, Organization, Project, SshKey, User
from tests.conftest import make_organization, make_token
from tests.marketplace.api.tenant import ssh_key

pytestmark = pytest.mark.django_db


def blob(*fields: bytes) -> str:
    return b64encode(b"".join(len(field).to_bytes(4, "big") + field for field in fields)).decode()


def test_a_token_is_shown_once_and_kept_as_a_hash(alice: User, acme: Organization) -> None:
    secret = make_token(alice, acme)
    token = ApiToken.objects.get()
    assert secret.startswith("gm_")
    assert len(secret) >= 43
    assert secret[:10] == token.prefix
    assert secret not in str(vars(token))
    assert token.secret_hash == access.secret_hash(secret)


def test_a_token_speaks_for_its_owner_until_it_expires(alice: User, acme: Organization) -> None:
    secret, at = make_token(alice, acme), timezone.now()
    found = access.actor_of_token(secret, request_id="r", at=at)
    assert found is not None
    assert (found.user, found.request_id) == (alice, "r")
    assert access.actor_of_token(secret + "x", request_id="", at=at) is None
    with pytest.raises(TokenExpired):
        access.actor_of_token(secret, request_id="", at=at + timedelta(days=90, seconds=1))


def test_the_last_use_is_written_down_once_a_minute(alice: User, acme: Organization) -> None:
    secret, at = make_token(alice, acme), timezone.now()
    uses = []
    for seconds in (0, 30, 61):
        access.actor_of_token(secret, request_id="", at=at + timedelta(seconds=seconds))
        uses.append(ApiToken.objects.get().last_used_at)
    assert uses == [at, at, at + timedelta(seconds=61)]


def test_a_revoked_token_is_not_found_and_stays_revoked(actor: Actor, acme: Organization) -> None:
    secret, at = make_token(actor.user, acme), timezone.now()
    token = ApiToken.objects.get()
    tokens.revoke_token(actor=actor, token=token, at=at)
    tokens.revoke_token(actor=actor, token=token, at=at + timedelta(days=1))
    assert access.actor_of_token(secret, request_id="", at=at) is None
    assert ApiToken.objects.get().revoked_at == at


@pytest.mark.parametrize(
    ("scopes", "days", "field"),
    [([], 1, "scopes"), (["all"], 1, "scopes"), (["read"], 0, "days"), (["read"], 366, "days")],
)
def test_a_token_has_known_scopes_and_an_end(
    actor: Actor, acme: Organization, scopes: Sequence[str], days: int, field: str
) -> None:
    with pytest.raises(BadOrder) as refusal:
        tokens.create_token(actor=actor, organization=acme, name="t", scopes=scopes, days=days, at=timezone.now())
    assert refusal.value.field == field


def test_a_token_is_made_for_one_s_own_organization_and_its_project(
    actor: Actor, acme: Organization, alice: User, charlie: User
) -> None:
    foreign = Organization.objects.get(name="Other")
    with pytest.raises(NotFound):
        tokens.create_token(actor=actor, organization=foreign, name="t", scopes=["read"], at=timezone.now())
    second = make_organization("Second", alice, credit_micros=0)
    with pytest.raises(BadOrder) as refusal:
        tokens.create_token(
            actor=actor, organization=acme, name="t", scopes=["read"], at=timezone.now(),
            project=Project.objects.get(organization=second),
        )  # fmt: skip
    assert refusal.value.field == "project"


def test_members_manage_their_own_tokens_and_admins_everybody_s(acme: Organization, alice: User, bob: User) -> None:
    make_token(alice, acme)
    make_token(bob, acme)
    theirs = ApiToken.objects.get(membership__user=alice)
    assert [row.membership.user for row in access.tokens(person(bob), acme)] == [bob]
    assert access.tokens(person(alice), acme).count() == 2
    with pytest.raises(NotFound):
        access.token_for(person(bob), theirs.public_id, verb="token.change")


# SSH keys.


def test_a_key_is_kept_without_its_comment_and_known_by_its_fingerprint(actor: Actor, project: Project) -> None:
    line = ssh_key(b"one", "alice@laptop")
    key = tokens.add_ssh_key(actor=actor, project=project, name="laptop", public_key=f"  {line}\n")
    assert key.public_key == ssh_key(b"one")
    assert key.fingerprint.startswith("SHA256:")
    assert "=" not in key.fingerprint
    with pytest.raises(Conflict):
        tokens.add_ssh_key(actor=actor, project=project, name="again", public_key=ssh_key(b"one", "other"))


def test_the_fingerprint_is_the_one_that_ssh_keygen_prints(actor: Actor, project: Project) -> None:
    """From a key that OpenSSH made."""
    line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl github"
    key = tokens.add_ssh_key(actor=actor, project=project, name="k", public_key=line)
    assert key.fingerprint == "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"


@pytest.mark.parametrize(
    "kind",
    ["ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp521", "sk-ssh-ed25519@openssh.com"],
)
def test_every_kind_of_key_that_openssh_makes_is_taken(actor: Actor, project: Project, kind: str) -> None:
    line = f"{kind} {blob(kind.encode(), b'first part', b'second part')} me"
    assert tokens.add_ssh_key(actor=actor, project=project, name=kind, public_key=line).public_key.startswith(kind)


PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "OpenSSH public key"),
        ("ssh-ed25519", "OpenSSH public key"),
        ("ssh-dss " + blob(b"ssh-dss", b"x"), "OpenSSH public key"),
        ('command="rm" ' + ssh_key(b"one"), "OpenSSH public key"),
        (ssh_key(b"one") + "\n" + ssh_key(b"two"), "one OpenSSH public key"),
        ("ssh-ed25519 not*base64", "base64"),
        ("ssh-ed25519 AAAA=AAAA", "base64"),
        ("ssh-ed25519 é", "base64"),
        ("ssh-ed25519 AAAA", "damaged"),
        ("ssh-rsa " + blob(b"ssh-ed25519", b"x" * 32), "kind"),
        (ssh_key(b"one")[:-8], "damaged"),
        ("ssh-ed25519 " + blob(b"ssh-ed25519"), "damaged"),
        ("ssh-ed25519 " + "A" * 20_000, "OpenSSH public key"),
        (PRIVATE, "private key"),
    ],
)
def test_what_is_no_public_key_is_refused_and_said_why(actor: Actor, project: Project, line: str, says: str) -> None:
    with pytest.raises(BadOrder, match=says) as refusal:
        tokens.add_ssh_key(actor=actor, project=project, name="k", public_key=line)
    assert refusal.value.field == "public_key"
    assert not SshKey.objects.exists()
    assert "b3BlbnNz" not in str(refusal.value)


def test_a_token_that_a_token_made_lives_no_longer_and_ends_with_it(alice: User, acme: Organization) -> None:
    now = timezone.now()
    first, _ = tokens.create_token(
        actor=person(alice), organization=acme, name="first", scopes=["manage", "read"], days=1, at=now
    )
    made_by_first = Actor(user=alice, token=first)
    second, secret = tokens.create_token(
        actor=made_by_first, organization=acme, name="second", scopes=["read"], days=300, at=now
    )
    assert second.expires_at == first.expires_at
    tokens.revoke_token(actor=person(alice), token=first, at=now)
    assert access.actor_of_token(secret, request_id="", at=now) is None
