"""Why something was placed where it is, or nowhere; and the policies that say where it may be."""

import json
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from marketplace import access, policies
from marketplace.errors import BadOrder
from marketplace.models import Organization, Project
from marketplace.portal.doors import Visit, page
from provisioning import decisions
from provisioning.models.placement import LEVELS

DOCUMENT_LENGTH_MAX = 20_000


@page()
def shown(visit: Visit, placement_id: str) -> HttpResponse:
    """Show one decision of placement: what was asked, looked at, rejected, and what would have fit."""
    decision = access.placement_for(visit.actor, placement_id, verb="instance.view")
    context = {
        "decision": decision,
        "reasons": decisions.reasons(decision.rejected),
        "advice": decisions.advice(decision.relaxation),
        "most": [(LEVELS[level], count) for level, count in decision.most.items()],
    }
    return visit.page("placements/show.html", context)


@page("GET", "HEAD", "POST")
def policies_page(visit: Visit) -> HttpResponse:
    """Show the policies of the organization and its projects; replace one."""
    if visit.request.method != "POST":
        return _policies(visit, visit.organization(verb="policy.view"))
    chosen = visit.text("scope")
    scope: Organization | Project
    if chosen.startswith("org_"):
        scope = organization = access.organization_for(visit.actor, chosen, verb="organization_policy.change")
    else:
        scope = access.project_for(visit.actor, chosen, verb="policy.change")
        organization = scope.organization
    typed = visit.raw("document")
    try:
        document = _document(typed)
        version = visit.text("version")
        policies.replace(
            actor=visit.actor, scope=scope, document=document, at=visit.at,
            version=int(version) if version.isdecimal() and len(version) < 10 else None,
        )  # fmt: skip
    except BadOrder as error:
        where = f"{error.field}: " if error.field != "document" else ""
        wrong = {"scope": scope.public_id, "typed": typed, "error": f"{where}{error}"}
        return _policies(visit, organization, wrong, status=422)
    messages.success(visit.request, _("The policy holds for every start from now on. What runs is not moved."))
    return redirect("policies")


def _document(typed: str) -> Any:
    if len(typed) > DOCUMENT_LENGTH_MAX:
        raise BadOrder("document", _("A policy has at most %(most)s characters.") % {"most": DOCUMENT_LENGTH_MAX})
    try:
        return json.loads(typed or "{}")
    except ValueError as error:
        raise BadOrder("document", _("This is not valid JSON: %(why)s.") % {"why": error}) from error


def _policies(
    visit: Visit, organization: Organization, wrong: dict[str, Any] | None = None, *, status: int = 200
) -> HttpResponse:
    wrong = wrong or {}
    may = {
        Organization: access.may(visit.actor, organization, "organization_policy.change"),
        Project: access.may(visit.actor, organization, "policy.change"),
    }
    scopes = []
    every: list[Organization | Project] = [organization, *visit.projects(organization)]
    for scope in every:
        row = policies.of(scope)
        document = json.dumps(row.document if row else {}, indent=2, ensure_ascii=False)
        is_wrong = wrong.get("scope") == scope.public_id
        scopes.append(
            {
                "scope": scope,
                "is_organization": scope is organization,
                "version": row.version if row else 0,
                "document": wrong["typed"] if is_wrong else document,
                "error": wrong["error"] if is_wrong else "",
                "may_change": may[type(scope)],
            }
        )
    return visit.page("placements/policies.html", {"scopes": scopes, "organization": organization}, status=status)
