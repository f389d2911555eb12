"""Projects: the boundary of cost and access inside an organization."""

from typing import Any

from django.contrib import messages
from django.db.models import Count, Q
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from marketplace import access, limits, tenants
from marketplace.errors import BadOrder, Conflict
from marketplace.models import Organization
from marketplace.portal.doors import Visit, page
from provisioning.models import Phase


@page("GET", "HEAD", "POST")
def listed(visit: Visit) -> HttpResponse:
    """Show the projects with their quotas; make one."""
    if visit.request.method != "POST":
        return _page(visit, visit.organization(verb="project.view"), {})
    organization = visit.organization(verb="project.create")
    name = visit.text("name")
    try:
        project = tenants.create_project(actor=visit.actor, organization=organization, name=name)
    except (BadOrder, Conflict) as error:
        return _page(visit, organization, {"typed": name, "error": str(error)}, status=422)
    messages.success(visit.request, _("The project %(name)s was made.") % {"name": project.name})
    return redirect("projects")


@page("GET", "HEAD", "POST")
def rename(visit: Visit, project_id: str) -> HttpResponse:
    """Give a project another name."""
    project = access.project_for(visit.actor, project_id, verb="project.change")
    if visit.request.method != "POST":
        return visit.page("projects/rename.html", {"project": project, "typed": project.name})
    typed, kept = visit.text("name"), project.name
    try:
        tenants.rename_project(actor=visit.actor, project=project, name=typed)
    except (BadOrder, Conflict) as error:
        project.name = kept
        context = {"project": project, "typed": typed, "error": str(error)}
        return visit.page("projects/rename.html", context, status=422)
    messages.success(visit.request, _("The project is now named %(name)s.") % {"name": project.name})
    return redirect("projects")


def _page(visit: Visit, organization: Organization, context: dict[str, Any], *, status: int = 200) -> HttpResponse:
    projects = access.projects(visit.actor).filter(organization=organization)
    alive = Count("instances", filter=~Q(instances__phase=Phase.TERMINATED))
    found = {
        "organization": organization,
        "projects": limits.with_first(projects.annotate(alive=alive).order_by("pk")),
        "may_create": access.may(visit.actor, organization, "project.create"),
        "may_change": access.may(visit.actor, organization, "project.change"),
    }
    return visit.page("projects/list.html", {**found, **context}, status=status)
