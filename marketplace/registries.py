"""Registries: what lets a project's nodes pull its private images. A password is never shown again."""

from datetime import datetime

from django.db import IntegrityError, transaction
from django.utils.translation import gettext

from marketplace import audit
from marketplace.access import Actor
from marketplace.errors import BadOrder, Conflict
from marketplace.models import Project
from provisioning import images
from provisioning.models import RegistryCredential
from provisioning.secrets import seal

USERNAME_LENGTH_MAX = 255
PASSWORD_LENGTH_MAX = 8192


@transaction.atomic
def add(*, actor: Actor, project: Project, host: str, username: str, password: str, at: datetime) -> RegistryCredential:
    """Let a project's nodes pull from a registry, or raise BadOrder, or Conflict when there is a way in already."""
    host = _checked_host(host)
    _check_login(username, password)
    try:
        with transaction.atomic():
            credential = RegistryCredential.objects.create(
                project=project,
                host=host,
                username=username,
                sealed_password=seal(password),
                added_by=actor.user,
                created_at=at,
            )
    except IntegrityError as error:
        message = gettext("The project has a user for %(host)s already; remove that one first.") % {"host": host}
        raise Conflict(message) from error
    audit.record_of(credential, "registry.add", actor=actor, after={"host": host, "username": username})
    return credential


@transaction.atomic
def remove(*, actor: Actor, credential: RegistryCredential) -> None:
    """Forget a way into a registry; what runs goes on, the next pull from there is without it."""
    audit.record_of(
        credential, "registry.remove", actor=actor, before={"host": credential.host, "username": credential.username}
    )
    credential.delete()


def _checked_host(host: str) -> str:
    try:
        return images.host_of_registry(host)
    except images.BadImage as error:
        raise BadOrder("host", str(error)) from error


def _check_login(username: str, password: str) -> None:
    """HTTP's basic authentication (RFC 7617) carries neither a colon in a name nor control characters."""
    if not 0 < len(username) <= USERNAME_LENGTH_MAX or ":" in username or not username.isprintable():
        raise BadOrder(
            "username",
            gettext("Use 1 to %(most)s printable characters without a colon.") % {"most": USERNAME_LENGTH_MAX},
        )
    if not 0 < len(password) <= PASSWORD_LENGTH_MAX or not password.isprintable():
        raise BadOrder(
            "password",
            gettext("Use 1 to %(most)s printable characters, without a line break.") % {"most": PASSWORD_LENGTH_MAX},
        )
