"""Organizations and who is in them. Every change leaves an audit entry in the same transaction."""

import secrets
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils.translation import gettext

from billing import accounts
from marketplace import audit
from marketplace.access import Actor, person, secret_hash
from marketplace.errors import BadOrder, Conflict, Forbidden, LastOwner, NotFound
from marketplace.models import Invitation, Membership, Organization, Project, Role, User
from provisioning import quotas

INVITATION_LIFE = timedelta(days=7)
NAME_LENGTH_MAX = 100
EMAIL_LENGTH_MAX = 254


@transaction.atomic
def found_organization(
    *, owner: User, name: str, currency: str = "USD", is_supplier: bool = False, request_id: str = ""
) -> Organization:
    """Make an organization with its accounts, a first project and its owner."""
    organization = Organization.objects.create(name=checked_name(name), currency=currency, is_supplier=is_supplier)
    accounts.open_for(organization=organization)
    Membership.objects.create(organization=organization, user=owner, role=Role.OWNER)
    actor = person(owner, request_id)
    _record(actor, organization, "organization.found", organization.public_id, after={"name": organization.name})
    create_project(actor=actor, organization=organization, name="default")
    return organization


@transaction.atomic
def rename_organization(*, actor: Actor, organization: Organization, name: str) -> None:
    """Give an organization another name."""
    before, organization.name = organization.name, checked_name(name)
    organization.save(update_fields=["name"])
    _record(
        actor,
        organization,
        "organization.change",
        organization.public_id,
        before={"name": before},
        after={"name": organization.name},
    )


@transaction.atomic
def create_project(*, actor: Actor, organization: Organization, name: str) -> Project:
    """Make a project with the default quota, or raise Conflict when the name is taken."""
    name = checked_name(name)
    try:
        with transaction.atomic():
            project = Project.objects.create(organization=organization, name=name)
    except IntegrityError as error:
        raise Conflict(gettext("The organization has a project named %(name)s already.") % {"name": name}) from error
    quotas.open_for(project_id=project.pk)
    _record(actor, organization, "project.create", project.public_id, after={"name": name})
    return project


@transaction.atomic
def rename_project(*, actor: Actor, project: Project, name: str) -> None:
    """Give a project another name, or raise Conflict when it is taken."""
    before, project.name = project.name, checked_name(name)
    try:
        with transaction.atomic():
            project.save(update_fields=["name"])
    except IntegrityError as error:
        raise Conflict(
            gettext("The organization has a project named %(name)s already.") % {"name": project.name}
        ) from error
    _record(
        actor,
        project.organization,
        "project.change",
        project.public_id,
        before={"name": before},
        after={"name": project.name},
    )


@transaction.atomic
def invite(*, actor: Actor, organization: Organization, email: str, role: Role, at: datetime) -> tuple[Invitation, str]:
    """Ask an e-mail address to join; return the invitation and the link's secret, which is shown only now.

    An open invitation of the same address is replaced. Raises Conflict for
    somebody who is a member already, Forbidden for a role above one's own.
    """
    email = _checked_email(email)
    if Membership.objects.filter(organization=organization, user__email=email).exists():
        raise Conflict(gettext("%(email)s is a member already.") % {"email": email})
    _check_may_give(actor, organization, role)
    Invitation.objects.filter(organization=organization, email=email, accepted_at=None, revoked_at=None).update(
        revoked_at=at
    )
    secret = secrets.token_urlsafe(32)
    try:
        with transaction.atomic():
            invitation = Invitation.objects.create(
                organization=organization,
                email=email,
                role=role,
                secret_hash=secret_hash(secret),
                invited_by=actor.user,
                created_at=at,
                expires_at=at + INVITATION_LIFE,
            )
    except IntegrityError as error:
        raise Conflict(gettext("Somebody else invited %(email)s at the same moment.") % {"email": email}) from error
    _record(actor, organization, "invitation.create", invitation.public_id, after={"email": email, "role": role})
    return invitation, secret


@transaction.atomic
def revoke_invitation(*, actor: Actor, invitation: Invitation, at: datetime) -> None:
    """Make an invitation's link useless. Revoking twice changes nothing."""
    if Invitation.objects.filter(pk=invitation.pk, accepted_at=None, revoked_at=None).update(revoked_at=at):
        _record(actor, invitation.organization, "invitation.revoke", invitation.public_id)


def open_invitation(*, secret: str, at: datetime) -> Invitation:
    """Return the invitation of a link, or raise NotFound when it is unknown, used, revoked or too old."""
    found = Invitation.objects.select_related("organization").filter(secret_hash=secret_hash(secret)).first()
    if found is None or not found.is_open(at):
        raise NotFound
    return found


@transaction.atomic
def accept_invitation(*, user: User, secret: str, at: datetime, request_id: str = "") -> Membership:
    """Make the invited person a member. The link works once, and only for the address it was sent to."""
    invitation = open_invitation(secret=secret, at=at)
    if user.email.lower() != invitation.email:
        raise Forbidden(
            gettext("This invitation is for %(email)s; you are signed in as %(own)s.")
            % {"email": invitation.email, "own": user.email}
        )
    if not Invitation.objects.filter(pk=invitation.pk, accepted_at=None, revoked_at=None).update(accepted_at=at):
        raise NotFound
    membership, _ = Membership.objects.get_or_create(
        organization=invitation.organization, user=user, defaults={"role": invitation.role}
    )
    _record(
        person(user, request_id),
        invitation.organization,
        "invitation.accept",
        membership.public_id,
        after={"role": membership.role},
    )
    return membership


@transaction.atomic
def change_role(*, actor: Actor, member: Membership, role: Role) -> None:
    """Give a member another role. Only an owner makes or unmakes owners; the last owner stays one."""
    before = _locked_role(member)
    if before != member.role:
        raise Conflict(gettext("Somebody else changed this member at the same moment; look again."))
    if before == role:
        return
    _check_may_give(actor, member.organization, Role(before))
    _check_may_give(actor, member.organization, role)
    if before == Role.OWNER:
        _check_not_last_owner(member)
    Membership.objects.filter(pk=member.pk).update(role=role)
    member.role = role
    _record(
        actor, member.organization, "member.change", member.public_id, before={"role": before}, after={"role": role}
    )


@transaction.atomic
def remove_member(*, actor: Actor, member: Membership) -> None:
    """Take a person out of an organization; their tokens end with it."""
    member.role = _locked_role(member)
    _check_may_give(actor, member.organization, Role(member.role))
    if member.role == Role.OWNER:
        _check_not_last_owner(member)
    before = {"email": member.user.email, "role": member.role}
    _record(actor, member.organization, "member.remove", member.public_id, before=before)
    member.delete()


def checked_name(name: str) -> str:
    """Return a name without outer blanks, or raise BadOrder."""
    name = name.strip()
    if not name or len(name) > NAME_LENGTH_MAX or not name.isprintable():
        raise BadOrder("name", gettext("Use 1 to %(most)s printable characters.") % {"most": NAME_LENGTH_MAX})
    return name


def _checked_email(email: str) -> str:
    email = email.strip().lower()
    try:
        validate_email(email)
    except ValidationError as error:
        raise BadOrder("email", gettext("This is not an e-mail address.")) from error
    if len(email) > EMAIL_LENGTH_MAX:
        raise BadOrder(
            "email", gettext("An e-mail address has at most %(most)s characters.") % {"most": EMAIL_LENGTH_MAX}
        )
    return email


def _check_may_give(actor: Actor, organization: Organization, role: Role) -> None:
    own = Membership.objects.filter(organization=organization, user=actor.user).first()
    if own is None or (role == Role.OWNER and own.role != Role.OWNER):
        raise Forbidden(gettext("Only an owner may give or take the role of an owner."))


def _locked_role(member: Membership) -> Role:
    """Return the role of now: somebody may just have been made an owner.

    The owners are locked with the member, in id order: two who leave each other would wait for each other.
    """
    rows = Membership.objects.select_for_update().filter(
        Q(role=Role.OWNER) | Q(pk=member.pk), organization=member.organization
    )
    roles = dict(rows.order_by("pk").values_list("pk", "role"))
    if member.pk not in roles:
        raise NotFound
    return Role(roles[member.pk])


def _check_not_last_owner(member: Membership) -> None:
    """Raise LastOwner for the only one. The caller has locked the owners, so of two who leave the second sees that."""
    owners = Membership.objects.filter(organization=member.organization, role=Role.OWNER)
    if not owners.exclude(pk=member.pk).exists():
        raise LastOwner(gettext("An organization needs an owner; make somebody else an owner first."))


def _record(actor: Actor, organization: Organization, verb: str, subject_id: str, **change: dict[str, Any]) -> None:
    audit.record(actor=actor, organization=organization, verb=verb, subject_id=subject_id, **change)
