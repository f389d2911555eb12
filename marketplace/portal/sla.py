"""Service levels: how available instances were, and what was given back."""

from typing import Any

from django.http import HttpResponse

from billing.models import SlaVerdict
from billing.sla import availability
from billing.sla import terms as promised
from billing.sla.availability import Seen, Stretch
from billing.sla.terms import VERSIONS
from marketplace import access, access_till
from marketplace.portal.doors import Visit, page
from marketplace.sla import closing

PAGE = 50
INCIDENTS_MAX = 50


@page()
def listed(visit: Visit) -> HttpResponse:
    """List the months that are over, the newest first."""
    organization = visit.organization(verb="usage.view")
    rows = access_till.sla_verdicts(visit.actor, organization).order_by("-month", "resource_name", "pk")
    before = visit.query("page")
    number = int(before) if before.isdecimal() and len(before) < 6 else 1
    found = list(rows[(number - 1) * PAGE : number * PAGE + 1]) if number else []
    context = {
        "organization": organization,
        "verdicts": found[:PAGE],
        "next": number + 1 if len(found) > PAGE else 0,
        "terms": promised.in_force(visit.at),
    }
    return visit.page("sla/list.html", context)


@page()
def of_instance(visit: Visit, instance_id: str) -> HttpResponse:
    """Show an instance's service level: this month so far, and those that are over, with their incidents."""
    instance = access.instance_for(visit.actor, instance_id, verb="instance.view")
    found = closing.so_far([instance], at=visit.at).get(instance.public_id)
    months = []
    if found is not None and (found[1].seen.measured or found[1].seen.down):
        verdict, case, _terms = found
        months.append(_month(verdict, case.seen.begins, verdict.incidents, case.seen.paid_micros, is_final=False))
    months += [
        _month(row, row.month, _incidents(row), row.paid_micros, is_final=True)
        for row in access_till.months_of(instance)
    ]
    context = {"instance": instance, "months": months, "currency": instance.project.organization.currency}
    return visit.page("sla/instance.html", context | {"terms": promised.in_force(visit.at)})


def _month(verdict: Any, month: Any, incidents: tuple[Stretch, ...], paid_micros: int, *, is_final: bool) -> Any:
    return {
        "verdict": verdict,
        "month": month,
        "incidents": incidents[:INCIDENTS_MAX],
        "paid_micros": paid_micros,
        "is_final": is_final,
    }


def _incidents(row: SlaVerdict) -> tuple[Stretch, ...]:
    terms = VERSIONS.get(row.terms_version)
    return availability.judge(Seen.read(row.evidence), terms).incidents if terms else ()
