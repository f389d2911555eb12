"""Who is in the organization, in which role, and what each role may do."""

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from marketplace import access, tenants
from marketplace.errors import BadOrder, Conflict, Forbidden
from marketplace.models import Organization, Role
from marketplace.permissions import VERBS
from marketplace.portal import words
from marketplace.portal.doors import Visit, absolute, page


@page()
def listed(visit: Visit) -> HttpResponse:
    """Show the members, the open invitations and the table of roles."""
    return _page(visit, visit.organization(verb="member.view"), {"typed": {"role": Role.DEVELOPER}})


@page("POST")
def invite(visit: Visit) -> HttpResponse:
    """Invite an address; its link is in this one answer and nowhere else."""
    organization = visit.organization(verb="invitation.change")
    typed = {"email": visit.text("email"), "role": visit.text("role")}
    errors = {} if typed["role"] in Role.values else {"role": _("Choose one of the roles.")}
    if not errors:
        try:
            invitation, secret = tenants.invite(
                actor=visit.actor,
                organization=organization,
                email=typed["email"],
                role=Role(typed["role"]),
                at=visit.at,
            )
        except (BadOrder, Conflict) as error:
            errors["email"] = str(error)
        except Forbidden as error:
            errors["role"] = str(error)
    if errors:
        return _page(visit, organization, {"typed": typed, "errors": errors}, status=422)
    link = absolute(reverse("invitation", args=[secret]))
    response = _page(visit, organization, {"typed": {"role": Role.DEVELOPER}, "invited": invitation, "link": link})
    response["Cache-Control"] = "no-store"
    return response


@page("POST")
def revoke_invitation(visit: Visit, invitation_id: str) -> HttpResponse:
    """Make an invitation's link useless."""
    invitation = access.invitation_for(visit.actor, invitation_id, verb="invitation.change")
    tenants.revoke_invitation(actor=visit.actor, invitation=invitation, at=visit.at)
    messages.success(visit.request, _("The invitation of %(email)s was revoked.") % {"email": invitation.email})
    return redirect("members")


@page("POST")
def change_role(visit: Visit, member_id: str) -> HttpResponse:
    """Give a member another role."""
    member = access.member_for(visit.actor, member_id, verb="member.change")
    role = visit.text("role")
    if role not in Role.values:
        messages.error(visit.request, _("Choose one of the roles."))
        return redirect("members")
    tenants.change_role(actor=visit.actor, member=member, role=Role(role))
    said = {"email": member.user.email, "role": member.get_role_display()}
    messages.success(visit.request, _("%(email)s is now %(role)s.") % said)
    return redirect("members")


@page("GET", "HEAD", "POST")
def remove(visit: Visit, member_id: str) -> HttpResponse:
    """Ask before taking a person out; then do it."""
    member = access.member_for(visit.actor, member_id, verb="member.change")
    if visit.request.method == "POST":
        tenants.remove_member(actor=visit.actor, member=member)
        messages.success(visit.request, _("%(email)s was removed.") % {"email": member.user.email})
        return redirect("members")
    return visit.page("members/remove.html", {"member": member})


def _page(visit: Visit, organization: Organization, context: dict[str, Any], *, status: int = 200) -> HttpResponse:
    may_invite = access.may(visit.actor, organization, "invitation.change")
    opened = access.invitations(organization).filter(accepted_at=None, revoked_at=None, expires_at__gt=visit.at)
    found = {
        "organization": organization,
        "members": list(access.members(organization).order_by("pk")),
        "invitations": list(opened.order_by("-pk")) if may_invite else [],
        "may_invite": may_invite,
        "may_change": access.may(visit.actor, organization, "member.change"),
        "may_rename": access.may(visit.actor, organization, "organization.change"),
        "roles": Role.choices,
        "matrix": [
            (words.VERBS[verb], [role in roles for role in Role]) for verb, (roles, _scope) in VERBS.items() if roles
        ],
        "errors": {},
    }
    return visit.page("members/list.html", {**found, **context}, status=status)
