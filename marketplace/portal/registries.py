"""Registries: where a project's private images come from. A password is typed once and never shown."""

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from marketplace import access, registries
from marketplace.errors import BadOrder, Conflict
from marketplace.models import Organization
from marketplace.portal.doors import Visit, page


@page("GET", "HEAD", "POST")
def listed(visit: Visit) -> HttpResponse:
    """Show the registries by project; add one."""
    if visit.request.method != "POST":
        return _page(visit, visit.organization(verb="registry.view"), {"typed": {}})
    project = access.project_for(visit.actor, visit.text("project") or None, verb="registry.change")
    typed = {"host": visit.text("host"), "username": visit.text("username"), "project": project.public_id}
    try:
        added = registries.add(
            actor=visit.actor,
            project=project,
            host=typed["host"],
            username=typed["username"],
            password=visit.raw("password"),
            at=visit.at,
        )
    except (BadOrder, Conflict) as error:
        errors = {error.field if isinstance(error, BadOrder) else "host": str(error)}
        # What was typed as the password is not sent back.
        return _page(visit, project.organization, {"typed": typed, "errors": errors}, status=422)
    messages.success(visit.request, _("Images from %(host)s can be pulled now.") % {"host": added.host})
    return redirect("registries")


@page("GET", "HEAD", "POST")
def remove(visit: Visit, registry_id: str) -> HttpResponse:
    """Ask before forgetting a way into a registry; then do it."""
    credential = access.registry_for(visit.actor, registry_id, verb="registry.change")
    if visit.request.method == "POST":
        registries.remove(actor=visit.actor, credential=credential)
        messages.success(visit.request, _("The user for %(host)s was removed.") % {"host": credential.host})
        return redirect("registries")
    return visit.page("registries/remove.html", {"credential": credential})


def _page(visit: Visit, organization: Organization, context: dict[str, Any], *, status: int = 200) -> HttpResponse:
    projects = access.projects(visit.actor).filter(organization=organization)
    found = {
        "organization": organization,
        "projects": list(projects.prefetch_related("registries__added_by").order_by("pk")),
        "may_change": access.may(visit.actor, organization, "registry.change"),
        "errors": {},
    }
    return visit.page("registries/list.html", {**found, **context}, status=status)
