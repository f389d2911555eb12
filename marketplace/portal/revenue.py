"""Shares of revenue: what to report and by when, what was reported, and what was charged for it."""

from collections.abc import Mapping
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.dateparse import parse_datetime
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from marketplace import access, access_till
from marketplace.contracts import terms as written
from marketplace.errors import BadOrder, IllegalState
from marketplace.models import RevenuePeriod, RevenueStatement
from marketplace.money import shown as money_shown
from marketplace.portal import errors
from marketplace.portal.doors import Visit, page
from marketplace.revenue_share import closing, statements

PAGE = 50
STATEMENTS_MAX = 50
LINES_SHOWN = 200
STEPS: Mapping[str, Promise] = {
    "revenue": gettext_lazy("Revenue"),
    "share": gettext_lazy("Share of it"),
    "minimum": gettext_lazy("Minimum"),
    "metered_cost": gettext_lazy("Metered cost: what its hours cost by the list"),
    "cap": gettext_lazy("Never more than"),
    "true_up": gettext_lazy("True-up: what is missing beside the share"),
    "total": gettext_lazy("Total: the greatest of share, minimum and metered cost, up to the cap"),
}


@page()
def listed(visit: Visit) -> HttpResponse:
    """List the periods for which an organization reports revenue, the newest first."""
    organization = visit.organization(verb="revenue.view")
    rows = access_till.revenue_periods(organization).order_by("-pk")
    before = visit.query("before")
    if before:
        rows = rows.filter(pk__lt=access_till.revenue_periods(organization).filter(public_id=before).values("pk"))
    found = list(rows[: PAGE + 1])
    context = {
        "organization": organization,
        "periods": found[:PAGE],
        "older": found[PAGE - 1].public_id if len(found) > PAGE else "",
    }
    return visit.page("revenue/list.html", context)


@page("GET", "HEAD", "POST")
def shown(visit: Visit, period_id: str) -> HttpResponse:
    """Show a period with its statements, and take another one."""
    verb = "revenue.change" if visit.request.method == "POST" else "revenue.view"
    period = access_till.revenue_period_for(visit.actor, period_id, verb=verb)
    if visit.request.method != "POST":
        return _show(visit, period)
    try:
        made = _state(visit, period)
    except (BadOrder, IllegalState) as error:
        refusal = errors.refusal_of(error, reference=visit.actor.request_id)
        return _show(visit, period, refusal=refusal, status=refusal.status)
    messages.success(
        visit.request,
        _("Statement %(number)s says %(amount)s. Nothing is charged before the period is due.")
        % {"number": made.number, "amount": money_shown(made.revenue_micros, period.currency)},
    )
    return redirect("revenue-period", period.public_id)


def _state(visit: Visit, period: RevenuePeriod) -> RevenueStatement:
    typed, table = visit.text("revenue").replace(",", ""), visit.raw("csv").strip()
    if bool(typed) == bool(table):
        raise BadOrder("revenue", _("Write either an amount or the lines of a CSV file."))
    lines = statements.lines_of(table) if table else []
    micros = sum(each for _label, each in lines) if table else statements.amount_of(typed, "revenue")
    return statements.submit(
        actor=visit.actor, period=period, revenue_micros=micros, lines=lines,
        source=RevenueStatement.Source.PORTAL, at=visit.at,
    )  # fmt: skip


def _show(visit: Visit, period: RevenuePeriod, *, refusal: Any = None, status: int = 200) -> HttpResponse:
    is_open, found = period.state == RevenuePeriod.State.OPEN, closing.reckoned(period, at=visit.at)
    said = list(period.statements.order_by("-number")[:STATEMENTS_MAX])
    context = {
        "period": period,
        "terms": written.of(period.version.terms)["revenue"],
        "statements": said,
        "latest": said[0].lines[:LINES_SHOWN] if said else [],
        "so_far": found.due if is_open else None,
        "steps": [(STEPS[step.name], step) for step in found.steps],
        "metered": [
            line | {"since": parse_datetime(line["since"]), "until": parse_datetime(line["until"])}
            for line in found.metered[:LINES_SHOWN]
        ],
        "more_metered": max(0, len(found.metered) - LINES_SHOWN),
        "events": period.events.order_by("-pk"),
        "takes": period.state != RevenuePeriod.State.CLOSED
        and access.may(visit.actor, period.organization, "revenue.change"),
        "typed": {name: visit.raw(name) for name in ("revenue", "csv")},
        "refusal": refusal,
    }
    return visit.page("revenue/show.html", context, status=status)
