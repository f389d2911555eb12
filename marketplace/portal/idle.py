"""What a project wants done about instances that do nothing."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from marketplace import access, idle
from marketplace.errors import BadOrder
from marketplace.models import IdleAction
from marketplace.portal.doors import Visit, page, whole_number


@page("GET", "HEAD", "POST")
def change(visit: Visit, project_id: str) -> HttpResponse:
    """Show and change a project's setting about what is idle."""
    project = access.project_for(visit.actor, project_id, verb="project.change")
    typed = {"action": project.idle_action, "stop_minutes": str(project.idle_stop_minutes)}
    context = {
        "project": project, "actions": IdleAction.choices, "least": idle.STOP_MINUTES_MIN,
        "most": idle.STOP_MINUTES_MAX, "typed": typed,
    }  # fmt: skip
    if visit.request.method != "POST":
        return visit.page("projects/idle.html", context)
    typed = {name: visit.text(name) for name in typed}
    try:
        idle.change(
            actor=visit.actor, project=project, action=typed["action"], stop_minutes=whole_number(typed["stop_minutes"])
        )
    except BadOrder as error:
        errors = {error.field: str(error)}
        return visit.page("projects/idle.html", {**context, "typed": typed, "errors": errors}, status=422)
    messages.success(visit.request, _("The setting is saved."))
    return redirect("projects")
