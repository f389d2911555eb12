"""Budgets: how far each is used, what is forecast, which alerts were sent, and what follows."""

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from marketplace import access, budget_watch, budgets
from marketplace.budget_counters import COUNTERS
from marketplace.budgets import Settings, Standing
from marketplace.errors import BadOrder, NotFound
from marketplace.models import Budget
from marketplace.models.budgets import MONEY
from marketplace.money import plain
from marketplace.portal.doors import Visit, amount_or_none, page, whole_number

FIELDS = ("monthly", "hourly", "action", "grace_minutes", "used_shares", "forecast_shares")


@page()
def listed(visit: Visit) -> HttpResponse:
    """Show all budgets with bars, forecasts and the alerts of this month."""
    organization = visit.organization(verb="budget.view")
    standings = budgets.listed(visit.actor, organization, at=visit.at)
    alerts = [
        (alert, one, f"{one.shown(alert.reached)} / {one.shown(alert.amount)}")
        for one in standings
        for alert in one.alerts
    ]
    context = {
        "organization": organization,
        "standings": [one for one in standings if one.budget or one.owner.has_budget or one.kind != "token"],
        "unlimited": [one for one in standings if one.kind == "token" and not one.owner.has_budget],
        "alerts": sorted(alerts, key=lambda told: told[0].at, reverse=True),
        "stops": budget_watch.coming_stops(organization),
        "may_change": access.may(visit.actor, organization, "budget.change"),
    }
    return visit.page("budgets/list.html", context)


@page("GET", "HEAD", "POST")
def change(visit: Visit, owner_id: str) -> HttpResponse:
    """Set the budgets of the organization, a project or a token, and what follows; the address says what they count."""
    owner, organization = budgets.owner_for(visit.actor, owner_id, verb="budget.change")
    counts = visit.query("counts") or MONEY
    if counts not in COUNTERS:
        raise NotFound
    now = budgets.of(owner, organization, counts=counts, at=visit.at)
    context = {"standing": now, "organization": organization, "actions": Budget.Action.choices, "counters": COUNTERS}
    if visit.request.method != "POST":
        return visit.page("budgets/change.html", {**context, "typed": _as_typed(now)})
    typed = {name: visit.text(name) for name in FIELDS}
    try:
        budgets.change(
            actor=visit.actor, owner=owner, organization=organization, counts=counts,
            amount=budgets.read(now, typed["monthly"].replace(",", "")),
            hourly_micros=amount_or_none("hourly", typed["hourly"]), settings=_settings(typed),
        )  # fmt: skip
    except BadOrder as error:
        errors = {error.field: str(error)}
        return visit.page("budgets/change.html", {**context, "typed": typed, "errors": errors}, status=422)
    messages.success(visit.request, _("The budget is set."))
    return redirect("budgets")


def _as_typed(now: Standing) -> dict[str, Any]:
    settings, hourly = budgets.settings_of(now.budget), now.owner.hourly_budget_micros
    return {
        "monthly": now.counter.typed(now.budget.amount) if now.budget else "",
        "hourly": "" if hourly is None else plain(hourly),
        "action": settings.action,
        "grace_minutes": settings.grace_minutes,
        "used_shares": ", ".join(map(str, settings.used_shares)),
        "forecast_shares": ", ".join(map(str, settings.forecast_shares)),
    }


def _settings(typed: dict[str, str]) -> Settings:
    return Settings(
        action=typed["action"],
        grace_minutes=whole_number(typed["grace_minutes"]),
        used_shares=_shares("used_shares", typed["used_shares"]),
        forecast_shares=_shares("forecast_shares", typed["forecast_shares"]),
    )


def _shares(field: str, text: str) -> tuple[int, ...]:
    """Return percentages that were typed with commas; nothing typed is none of them."""
    parts = [part.strip().removesuffix("%").strip() for part in text.split(",")] if text else []
    shares = tuple(whole_number(part) for part in parts)
    if any(share < 0 for share in shares):
        raise BadOrder(field, _("Write whole percentages with commas, such as 50, 80, 100."))
    return shares
