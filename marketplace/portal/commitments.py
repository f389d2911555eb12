"""Commitments: what an organization promised, is offered, and asks for."""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from billing.months import month_of, next_month
from marketplace import access, access_till, commitments
from marketplace.errors import BadOrder
from marketplace.models import Organization
from marketplace.portal.doors import NUL, Visit, page, whole_number

MONTHS_AHEAD, SHOWN = 12, 50


@page("GET", "HEAD", "POST")
def listed(visit: Visit) -> HttpResponse:
    """Show commitments and requests, and ask for another one."""
    organization = visit.organization(verb="commitment.view")
    if visit.request.method != "POST":
        return _page(visit, organization, {"kind": "hours", "months": "12"}, {})
    organization = visit.organization(verb="commitment.change")
    typed: dict[str, Any] = {
        name: visit.text(name) for name in ("kind", "amount", "starts_at", "months", "note", "key")
    }
    typed["skus"] = [sku for sku in visit.request.POST.getlist("skus") if NUL not in sku]
    try:
        _ask(visit, organization, typed)
    except BadOrder as error:
        return _page(visit, organization, typed, {error.field: str(error)}, status=422)
    messages.success(visit.request, _("You have asked for a commitment. The answer comes here."))
    return redirect("commitments")


@page("POST")
def accept(visit: Visit, commitment_id: str) -> HttpResponse:
    """Accept what is offered."""
    return _answered(visit, commitment_id, commitments.accept, _("The commitment is agreed."))


@page("POST")
def refuse(visit: Visit, commitment_id: str) -> HttpResponse:
    """Refuse what is offered."""
    return _answered(visit, commitment_id, commitments.refuse, _("You have refused the offer."))


@page("POST")
def withdraw(visit: Visit, request_id: str) -> HttpResponse:
    """Take a request back."""
    made = access_till.commitment_request_for(visit.actor, request_id, verb="commitment.change")
    commitments.withdraw(actor=visit.actor, request=made, at=visit.at)
    messages.success(visit.request, _("The request is taken back."))
    return redirect("commitments")


def _answered(visit: Visit, commitment_id: str, verb: Callable[..., None], done: str) -> HttpResponse:
    row = access_till.commitment_for(visit.actor, commitment_id, verb="commitment.change")
    verb(actor=visit.actor, commitment=row, at=visit.at)
    messages.success(visit.request, done)
    return redirect("commitments")


def _ask(visit: Visit, organization: Organization, typed: dict[str, Any]) -> None:
    is_spend = typed["kind"] == "spend"
    try:
        starts_at, key = datetime.fromisoformat(typed["starts_at"]), UUID(typed["key"])
    except ValueError as error:
        raise BadOrder("starts_at", _("Choose the first month.")) from error
    commitments.ask(
        actor=visit.actor,
        organization=organization,
        kind=typed["kind"],
        skus=typed["skus"],
        amount=visit.money("amount") if is_spend else whole_number(typed["amount"].replace(",", "")),
        starts_at=starts_at,
        months=whole_number(typed["months"]),
        note=typed["note"],
        key=key,
        at=visit.at,
    )


def _page(
    visit: Visit, organization: Organization, typed: dict[str, Any], errors: dict[str, str], *, status: int = 200
) -> HttpResponse:
    month, months = next_month(month_of(visit.at)), []
    for _number in range(MONTHS_AHEAD):
        months.append((month.isoformat(), f"{month:%Y-%m}"))
        month = next_month(month)
    context = {
        "organization": organization,
        "commitments": list(access_till.commitments(organization).order_by("-starts_at", "-pk")[:SHOWN]),
        "requests": list(access_till.commitment_requests(organization).order_by("-pk")[:SHOWN]),
        "wares": commitments.promised_of(organization, at=visit.at),
        "months": months,
        "typed": {"key": str(uuid4()), **typed},
        "errors": errors,
        "may_change": access.may(visit.actor, organization, "commitment.change"),
    }
    return visit.page("commitments/list.html", context, status=status)
