"""Quotas and requests for more."""

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from marketplace import access, limits, quota_requests
from marketplace.errors import BadOrder, Conflict
from marketplace.models import Organization
from marketplace.portal.doors import Visit, amount_or_none, page, whole_number
from provisioning.models import Instance, Quota

FIELDS = ("owner", "gpu_model", "market", "unit", "limit", "reason")
REQUESTS_MAX = 20
WHOLE = "organization"
PER_HOUR = "per_hour"


@page("GET", "HEAD", "POST")
def shown(visit: Visit) -> HttpResponse:
    """Show what may be held, held, used and free, and requests; ask for more."""
    if visit.request.method != "POST":
        return _page(visit, visit.organization(verb="quota.view"), {"typed": {"limit": visit.query("limit")}})
    organization = visit.organization(verb="quota_request.create")
    typed = {name: visit.text(name) for name in FIELDS}
    owner = typed["owner"]
    project = None if owner == WHOLE else access.project_for(visit.actor, owner or None, verb="quota_request.create")
    if project is not None:
        organization = project.organization
    try:
        made = quota_requests.request(
            actor=visit.actor, organization=organization, project=project, **_limit(typed),
            reason=typed["reason"], gpu_model=typed["gpu_model"], market=typed["market"], at=visit.at,
        )  # fmt: skip
    except BadOrder as error:
        return _page(visit, organization, {"typed": typed, "errors": {error.field: str(error)}}, status=422)
    except Conflict as error:
        return _page(visit, organization, {"typed": typed, "errors": {"limit": str(error)}}, status=409)
    if made.state == made.State.APPROVED:
        messages.success(visit.request, _("Approved at once, by a rule: the new limit is there."))
    else:
        messages.success(visit.request, _("Your request is with the operator; its answer will stand here."))
    return redirect("quotas")


def _limit(typed: dict[str, str]) -> dict[str, Any]:
    """Return the limit that was typed, and what it is of."""
    if typed["unit"] != PER_HOUR:
        return {"limit": whole_number(typed["limit"]), "unit": Quota.Unit.GPUS}
    return {"limit": amount_or_none("limit", typed["limit"]) or 0, "unit": Quota.Unit.MICROS_PER_HOUR}


def _page(visit: Visit, organization: Organization, context: dict[str, Any], *, status: int = 200) -> HttpResponse:
    found = access.quotas(visit.actor).filter(organization=organization).order_by("project__name", "pk")
    asked = access.quota_requests(visit.actor).filter(organization=organization).order_by("-pk")[:REQUESTS_MAX]
    shown = {
        "organization": organization,
        "limits": limits.listed(found),
        "requests": [(one, quota_requests.asked(one)) for one in asked],
        "projects": visit.projects(organization),
        "models": limits.models(),
        "markets": Instance.Market.choices,
        "may_ask": access.may(visit.actor, organization, "quota_request.create"),
    }
    return visit.page("quotas/show.html", {**shown, **context}, status=status)


@page("POST")
def withdraw(visit: Visit, request_id: str) -> HttpResponse:
    """Take a request back."""
    found = access.quota_request_for(visit.actor, request_id, verb="quota_request.create")
    quota_requests.withdraw(actor=visit.actor, found=found, at=visit.at)
    messages.success(visit.request, _("The request is withdrawn."))
    return redirect("quotas")
