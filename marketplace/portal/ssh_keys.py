"""SSH keys: the public keys that may enter a project's instances."""

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from marketplace import access, tokens
from marketplace.errors import BadOrder, Conflict
from marketplace.models import Organization
from marketplace.portal.doors import Visit, page


@page("GET", "HEAD", "POST")
def listed(visit: Visit) -> HttpResponse:
    """Show the keys by project; add one."""
    if visit.request.method != "POST":
        return _page(visit, visit.organization(verb="ssh_key.view"), {"typed": {}})
    project = access.project_for(visit.actor, visit.text("project") or None, verb="ssh_key.change")
    typed = {"name": visit.text("name"), "public_key": visit.raw("public_key"), "project": project.public_id}
    try:
        key = tokens.add_ssh_key(actor=visit.actor, project=project, name=typed["name"], public_key=typed["public_key"])
    except (BadOrder, Conflict) as error:
        errors = {error.field if isinstance(error, BadOrder) else "public_key": str(error)}
        return _page(visit, project.organization, {"typed": typed, "errors": errors}, status=422)
    messages.success(visit.request, _("The key %(name)s was added.") % {"name": key.name})
    return redirect("ssh-keys")


@page("GET", "HEAD", "POST")
def remove(visit: Visit, key_id: str) -> HttpResponse:
    """Ask before shutting a key out; then do it."""
    key = access.ssh_key_for(visit.actor, key_id, verb="ssh_key.change")
    if visit.request.method == "POST":
        tokens.remove_ssh_key(actor=visit.actor, key=key)
        messages.success(visit.request, _("The key %(name)s was removed.") % {"name": key.name})
        return redirect("ssh-keys")
    return visit.page("ssh_keys/remove.html", {"key": key})


def _page(visit: Visit, organization: Organization, context: dict[str, Any], *, status: int = 200) -> HttpResponse:
    projects = access.projects(visit.actor).filter(organization=organization)
    found = {
        "organization": organization,
        "projects": list(projects.prefetch_related("ssh_keys__added_by").order_by("pk")),
        "may_change": access.may(visit.actor, organization, "ssh_key.change"),
        "errors": {},
    }
    return visit.page("ssh_keys/list.html", {**found, **context}, status=status)
