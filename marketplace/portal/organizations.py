"""Organizations: choosing one, founding one, renaming one, and its audit log."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from marketplace import access, tenants
from marketplace.errors import BadOrder
from marketplace.portal import words
from marketplace.portal.doors import Visit, page
from marketplace.portal.shell import ORGANIZATION_KEY

PAGE = 50


@page("POST")
def choose(visit: Visit) -> HttpResponse:
    """Look at another organization from now on."""
    organization = access.organization_for(visit.actor, visit.text("organization"), verb="organization.view")
    visit.request.session[ORGANIZATION_KEY] = organization.public_id
    return redirect("home")


@page("GET", "HEAD", "POST")
def new(visit: Visit) -> HttpResponse:
    """Found an organization and go there."""
    if visit.request.method != "POST":
        return visit.page("organizations/new.html", {})
    typed = visit.text("name")
    try:
        organization = tenants.found_organization(owner=visit.actor.user, name=typed, request_id=visit.actor.request_id)
    except BadOrder as error:
        return visit.page("organizations/new.html", {"typed": typed, "error": str(error)}, status=422)
    visit.request.session[ORGANIZATION_KEY] = organization.public_id
    messages.success(visit.request, _("%(name)s was founded. You are its owner.") % {"name": organization.name})
    return redirect("home")


@page("GET", "HEAD", "POST")
def rename(visit: Visit) -> HttpResponse:
    """Give the organization another name."""
    organization = visit.organization(verb="organization.change")
    if visit.request.method != "POST":
        return visit.page("organizations/rename.html", {"organization": organization, "typed": organization.name})
    typed = visit.text("name")
    try:
        tenants.rename_organization(actor=visit.actor, organization=organization, name=typed)
    except BadOrder as error:
        context = {"organization": organization, "typed": typed, "error": str(error)}
        return visit.page("organizations/rename.html", context, status=422)
    messages.success(visit.request, _("The organization is now named %(name)s.") % {"name": organization.name})
    return redirect("members")


@page()
def audit_log(visit: Visit) -> HttpResponse:
    """Show who changed what, newest first."""
    organization = visit.organization(verb="audit.view")
    entries = access.audit_entries(organization).order_by("-pk")
    before = visit.query("before")
    if before:
        entries = entries.filter(pk__lt=access.audit_entries(organization).filter(public_id=before).values("pk"))
    rows = list(entries[: PAGE + 1])
    more, rows = len(rows) > PAGE, rows[:PAGE]
    context = {
        "organization": organization,
        "entries": [(entry, words.AUDITED.get(entry.verb, entry.verb)) for entry in rows],
        "older": rows[-1].public_id if more else "",
        "before": before,
    }
    return visit.page("audit.html", context)
