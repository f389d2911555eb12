"""The page behind an invitation's link; it works for people with and without an account."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache

from marketplace import tenants
from marketplace.errors import Forbidden, NotFound
from marketplace.portal import errors
from marketplace.portal.shell import ORGANIZATION_KEY

# Who signs up while this is in their session gets no organization of their own: see `people.AccountAdapter`.
SESSION_KEY = "invitation"


@never_cache
def invitation(request: HttpRequest, secret: str) -> HttpResponse:
    """Show who invites whom to what; a signed-in person of that address may accept."""
    at = timezone.now()
    try:
        opened = tenants.open_invitation(secret=secret, at=at)
    except NotFound:
        request.session.pop(SESSION_KEY, None)
        return render(request, "invitation.html", {"invitation": None}, status=404)
    if not request.user.is_authenticated:
        request.session[SESSION_KEY] = secret
        return render(request, "invitation.html", {"invitation": opened})
    if request.method != "POST":
        is_theirs = request.user.email.lower() == opened.email
        return render(request, "invitation.html", {"invitation": opened, "is_theirs": is_theirs})
    try:
        member = tenants.accept_invitation(
            user=request.user, secret=secret, at=at, request_id=getattr(request, "id", "")
        )
    except (Forbidden, NotFound) as error:
        return errors.refused(request, error)
    request.session.pop(SESSION_KEY, None)
    request.session[ORGANIZATION_KEY] = opened.organization.public_id
    said = {"organization": opened.organization.name, "role": member.get_role_display()}
    messages.success(request, _("Welcome to %(organization)s. You are %(role)s there.") % said)
    return redirect("home")


def waiting(request: HttpRequest) -> str:
    """Return the secret of the invitation that brought this person and that they have not answered yet."""
    return str(request.session.get(SESSION_KEY, ""))
