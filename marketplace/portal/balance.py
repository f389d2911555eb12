"""The billing overview: what there is, what it burns, what a month will cost, and cost by day."""

from collections.abc import Sequence
from typing import Any

from django.http import HttpResponse, JsonResponse

from billing import accounts, promotions, runway
from billing.models import Runway
from billing.payments import gateway
from marketplace import access, access_till, breakdown, budget_watch, cost_files, forecast, owing
from marketplace.breakdown import Cost
from marketplace.models import Organization
from marketplace.portal import cost_filters, spending, stacks
from marketplace.portal.cost_filters import GROUPS, LENGTHS, Filters
from marketplace.portal.doors import Visit, page
from marketplace.portal.spending import midnight, month_after
from marketplace.portal.words import MARKETS
from marketplace.revenue_share import expecting

ESCROWS_MAX = 20
RETURNED_MAX = 5


@page()
def balance(visit: Visit) -> HttpResponse:
    """Show wallet, burn rate, runway, month to date, forecast, and cost by day."""
    organization = visit.organization(verb="balance.view")
    filters = cost_filters.read(visit)
    context = {"organization": organization, "filters": filters, **_money(visit, organization)}
    return visit.live_page("balance.html", "live", context | _costs(visit, organization, filters))


@page()
def costs_file(visit: Visit, form: str) -> HttpResponse:
    """Download the figures of the overview for a spreadsheet or a program, one row for each day and each thing."""
    organization, filters = visit.organization(verb="usage.view"), cost_filters.read(visit)
    found = filters.chosen(breakdown.of(organization, filters.edges, at=visit.at))
    names = _names(visit, organization)["project"]
    if form == "json":
        return JsonResponse(cost_files.document(organization, found, ["day", "project", "model", "market"], names))
    rows = cost_files.csv_of(organization, found, breakdown.DIMENSIONS, names)
    answer = HttpResponse("".join(rows), content_type="text/csv; charset=utf-8")
    answer["Content-Disposition"] = f'attachment; filename="costs-{filters.period}.csv"'
    return answer


def _money(visit: Visit, organization: Organization) -> dict[str, Any]:
    now = spending.of(organization, at=visit.at)
    month = midnight(visit.at).replace(day=1)
    month_end = month_after(month)
    this_month = breakdown.of(organization, [month, month_end], at=visit.at)
    ahead = sum(cost.micros for cost in this_month if cost.market == breakdown.RESERVED)
    adjusted = sum(cost.micros for cost in this_month if cost.market == breakdown.ADJUSTMENT)
    results = sum(cost.micros for cost in this_month if cost.market == breakdown.OUTCOME)
    wallet = accounts.wallet(organization=organization)
    ordered, row = forecast.ordered_micros(organization), access.runway_of(organization)
    shares = expecting.in_month([organization.pk], at=visit.at).get(organization.pk, 0)
    return {
        "wallet": wallet,
        "runway": row,
        "stops": budget_watch.coming_stops(organization),
        "commitments": list(access.commitments(organization).order_by("-starts_at", "-pk")),
        "spending": now,
        "ahead_micros": ahead,
        "adjusted_micros": adjusted,
        "results_micros": results,
        "used_micros": now.month_micros - ahead - adjusted - results,
        "ordered_micros": ordered,
        "shares_micros": shares,
        "month_end": month_end,
        "forecast_micros": forecast.month_end_micros(
            used_micros=now.month_micros, burn_micros_per_hour=now.per_hour_micros,
            ordered_micros=ordered, shares_micros=shares, at=visit.at, until=month_end,
        ),
        "escrows": list(access_till.escrows(visit.actor, organization).order_by("-pk")[:ESCROWS_MAX]),
        "returned": list(access_till.returned(visit.actor, organization).order_by("-pk")[:RETURNED_MAX]),
        "credit": promotions.left(organization=organization),
        "has_cards": gateway.is_there(),
        **_owed(visit, organization, row, is_owing=wallet.owed_micros > 0),
    }  # fmt: skip


def _owed(visit: Visit, organization: Organization, row: Runway | None, *, is_owing: bool) -> dict[str, Any]:
    unpaid, taken = (owing.unpaid(organization), owing.taken_back(organization)) if is_owing else ([], [])
    return {
        "past_due": owing.past_due_micros(unpaid, taken, at=visit.at),
        "taken": taken,
        "written_off": owing.written_off_micros(organization),
        "coming": owing.coming(organization, unpaid, taken, row=row, at=visit.at),
        "currency": organization.currency,
        "lasts": runway.level_of(row, at=visit.at),
    }


def _costs(visit: Visit, organization: Organization, filters: Filters) -> dict[str, Any]:
    every = breakdown.of(organization, filters.edges, at=visit.at)
    names = _names(visit, organization)
    return {
        "chart": stacks.stacked(
            filters.chosen(every), filters.days, by=filters.by, names=names[filters.by], currency=organization.currency
        ),
        "has_costs": bool(every),
        "groups": GROUPS.items(),
        "lengths": LENGTHS.items(),
        "months": cost_filters.months(visit.at),
        "choices": [(name, GROUPS[name], _choices(every, name, names[name], filters)) for name in GROUPS],
    }


def _choices(costs: Sequence[Cost], name: str, names: dict[str, str], filters: Filters) -> list[tuple[str, str, bool]]:
    """Return what a filter can be set to: whatever cost something in these days, and what it is set to already."""
    now = getattr(filters, name)
    found = {getattr(cost, name) for cost in costs} | {now}
    return sorted(
        ((value, names.get(value) or value, value == now) for value in found if value), key=lambda one: one[1]
    )


def _names(visit: Visit, organization: Organization) -> dict[str, dict[str, str]]:
    projects = access.projects(visit.actor).filter(organization=organization)
    words = {name: str(text) for name, text in MARKETS.items()}
    return {"project": dict(projects.values_list("public_id", "name")), "model": words, "market": words}
