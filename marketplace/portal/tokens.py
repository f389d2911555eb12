"""API tokens: made and shown once, listed, revoked."""

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from marketplace import access, tokens
from marketplace.errors import BadOrder
from marketplace.models import ApiToken, Organization
from marketplace.permissions import SCOPES
from marketplace.portal import words
from marketplace.portal.doors import Visit, page, whole_number

LIVES = (7, 30, 90, 180, 365)


@page("GET", "HEAD", "POST")
def listed(visit: Visit) -> HttpResponse:
    """Show the tokens; make one, whose secret is in this one answer and nowhere else."""
    if visit.request.method != "POST":
        organization = visit.organization(verb="token.view")
        typed: dict[str, Any] = {"name": "", "scopes": ["read", "rent"], "days": tokens.LIFE_DAYS_DEFAULT}
        return _page(visit, organization, {"typed": typed})
    organization = visit.organization(verb="token.change")
    typed = {
        "name": visit.text("name"),
        "scopes": visit.request.POST.getlist("scopes"),
        "days": whole_number(visit.text("days")),
        "project": visit.text("project"),
    }
    project = access.project_for(visit.actor, typed["project"], verb="project.view") if typed["project"] else None
    try:
        token, secret = tokens.create_token(
            actor=visit.actor,
            organization=organization,
            name=typed["name"],
            scopes=typed["scopes"],
            days=typed["days"],
            project=project,
            at=visit.at,
        )
    except BadOrder as error:
        return _page(visit, organization, {"typed": typed, "errors": {error.field: str(error)}}, status=422)
    fresh: dict[str, Any] = {"name": "", "scopes": ["read", "rent"], "days": tokens.LIFE_DAYS_DEFAULT}
    response = _page(visit, organization, {"typed": fresh, "made": token, "secret": secret})
    response["Cache-Control"] = "no-store"
    return response


@page("GET", "HEAD", "POST")
def revoke(visit: Visit, token_id: str) -> HttpResponse:
    """Ask before making a token useless; then do it."""
    token: ApiToken = access.token_for(visit.actor, token_id, verb="token.change")
    if visit.request.method == "POST":
        tokens.revoke_token(actor=visit.actor, token=token, at=visit.at)
        messages.success(visit.request, _("The token %(name)s does not work any more.") % {"name": token.name})
        return redirect("tokens")
    return visit.page("tokens/revoke.html", {"token": token})


def _page(visit: Visit, organization: Organization, context: dict[str, Any], *, status: int = 200) -> HttpResponse:
    found = {
        "organization": organization,
        "tokens": list(access.tokens(visit.actor, organization).order_by("-pk")),
        "projects": visit.projects(organization),
        "scopes": [(scope, words.SCOPES[scope]) for scope in SCOPES],
        "lives": LIVES,
        "errors": {},
    }
    return visit.page("tokens/list.html", {**found, **context}, status=status)
