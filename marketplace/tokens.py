"""Tokens and SSH keys: what lets programs and shells in."""

import base64
import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db import IntegrityError, transaction
from django.utils.translation import gettext

from marketplace import audit
from marketplace.access import Actor, secret_hash
from marketplace.errors import BadOrder, Conflict, NotFound
from marketplace.models import ApiToken, Membership, Organization, Project, SshKey
from marketplace.permissions import SCOPES
from marketplace.tenants import checked_name
from provisioning import sessions

LIFE_DAYS_DEFAULT, LIFE_DAYS_MAX = 90, 365
PREFIX = "gm_"
KEY_KINDS = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
             "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com")  # fmt: skip
KEY_LENGTH_MAX = 16_384
LENGTH_BYTES = 4


@transaction.atomic
def create_token(
    *,
    actor: Actor,
    organization: Organization,
    name: str,
    scopes: Sequence[str],
    at: datetime,
    days: int = LIFE_DAYS_DEFAULT,
    project: Project | None = None,
) -> tuple[ApiToken, str]:
    """Make a token of the actor's own membership; return it and its secret, which is shown only now.

    A token cannot give what it does not have: made by a token, it has no more
    scopes than that one, lives no longer, and is revoked with it.
    """
    membership = Membership.objects.filter(organization=organization, user=actor.user).first()
    if membership is None:
        raise NotFound
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise BadOrder("scopes", gettext("Choose one or more of %(scopes)s.") % {"scopes": ", ".join(SCOPES)})
    if actor.token is not None and not set(scopes) <= set(actor.token.scopes):
        raise BadOrder("scopes", gettext("A token cannot make one with more scopes than its own."))
    if project is not None and project.organization_id != organization.pk:
        raise BadOrder("project", gettext("The project belongs to another organization than the token."))
    if not 1 <= days <= LIFE_DAYS_MAX:
        raise BadOrder("days", gettext("A token lives 1 to %(most)s days.") % {"most": LIFE_DAYS_MAX})
    ends_at = at + timedelta(days=days)
    secret = PREFIX + secrets.token_urlsafe(32)
    token = ApiToken.objects.create(
        membership=membership,
        project=project or (actor.token.project if actor.token else None),
        name=checked_name(name),
        prefix=secret[:10],
        secret_hash=secret_hash(secret),
        scopes=sorted(set(scopes)),
        created_at=at,
        made_by=actor.token,
        expires_at=min(ends_at, actor.token.expires_at) if actor.token else ends_at,
    )
    after = {"name": token.name, "scopes": token.scopes, "expires_at": token.expires_at.isoformat()}
    audit.record(actor=actor, organization=organization, verb="token.create", subject_id=token.public_id, after=after)
    return token, secret


@transaction.atomic
def revoke_token(*, actor: Actor, token: ApiToken, at: datetime) -> None:
    """Make a token, and every token that was made by it, useless at once. Revoking twice changes nothing."""
    doomed = [token]
    while doomed:
        one = doomed.pop()
        doomed += ApiToken.objects.filter(made_by=one)
        if ApiToken.objects.filter(pk=one.pk, revoked_at=None).update(revoked_at=at):
            audit.record(
                actor=actor,
                organization=token.membership.organization,
                verb="token.revoke",
                subject_id=one.public_id,
                before={"name": one.name, "scopes": one.scopes, "expires_at": one.expires_at.isoformat()},
            )


@transaction.atomic
def add_ssh_key(*, actor: Actor, project: Project, name: str, public_key: str) -> SshKey:
    """Let a public key into a project's instances, or raise BadOrder for what is no public key."""
    kind, blob = _parsed(public_key)
    fingerprint = "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    normal = f"{kind} {base64.b64encode(blob).decode()}"
    try:
        with transaction.atomic():
            key = SshKey.objects.create(
                project=project,
                name=checked_name(name),
                public_key=normal,
                fingerprint=fingerprint,
                added_by=actor.user,
            )
    except IntegrityError as error:
        raise Conflict(gettext("The project has this key already.")) from error
    after = {"name": key.name, "fingerprint": fingerprint}
    sessions.keys_changed(project_id=project.pk)
    audit.record(
        actor=actor, organization=project.organization, verb="ssh_key.add", subject_id=key.public_id, after=after
    )
    return key


@transaction.atomic
def remove_ssh_key(*, actor: Actor, key: SshKey) -> None:
    """Shut a public key out; what it has open is closed within a poll of the nodes."""
    organization = key.project.organization
    before = {"name": key.name, "fingerprint": key.fingerprint}
    audit.record(actor=actor, organization=organization, verb="ssh_key.remove", subject_id=key.public_id, before=before)
    key.delete()
    sessions.keys_changed(project_id=key.project_id)


def _parsed(public_key: str) -> tuple[str, bytes]:
    """Return kind and blob of an OpenSSH public key; the blob names its own kind first (RFC 4253, section 6.6)."""
    if "PRIVATE KEY" in public_key:
        raise BadOrder("public_key", gettext("This is a private key. Keep it secret, and give the .pub file instead."))
    lines, parts = public_key.strip().splitlines(), public_key.split()
    if len(public_key) > KEY_LENGTH_MAX or len(lines) != 1 or len(parts) < 2 or parts[0] not in KEY_KINDS:
        raise BadOrder(
            "public_key", gettext("Give one OpenSSH public key, as in a .pub file: ssh-ed25519 AAAA... name")
        )
    try:
        blob = base64.b64decode(parts[1], validate=True)
    except ValueError as error:
        raise BadOrder("public_key", gettext("The key's second part is not base64; copy the whole line.")) from error
    fields = _fields(blob)
    if len(fields) < 2 or fields[0] != parts[0].encode():
        raise BadOrder("public_key", gettext("The key is damaged or does not match its kind; copy the whole line."))
    return parts[0], blob


def _fields(blob: bytes) -> list[bytes]:
    """Return the length-prefixed fields of a blob, none if they do not fill it exactly."""
    fields = []
    while blob:
        end = LENGTH_BYTES + int.from_bytes(blob[:LENGTH_BYTES], "big")
        if len(blob) < end:
            return []
        fields.append(blob[LENGTH_BYTES:end])
        blob = blob[end:]
    return fields
