"""Balance and usage: what there is, how long it lasts, and every interval that was charged."""

from dataclasses import dataclass
from typing import Any

from django.http import HttpResponse

from billing import accounts, usage
from billing.models import UsageSpan
from marketplace import access
from marketplace.models import Organization
from marketplace.portal import charts, spending
from marketplace.portal.doors import Visit, page

PAGE = 50
CHART_DAYS = 30
# What a resource's id begins with, and the route of its page.
PAGES = {"ins_": "instance", "vol_": "volume"}


@dataclass(frozen=True)
class Line:
    """One span with what it measured and costs until now."""

    span: UsageSpan
    unit_milliseconds: int
    amount_micros: int
    page: str


@page()
def balance(visit: Visit) -> HttpResponse:
    """Show wallet, burn rate, runway, cost by day and the spans behind them."""
    organization = visit.organization(verb="balance.view")
    context = {**_money(visit, organization), **_usage(visit, organization)}
    return visit.live_page("balance.html", "live", context)


def _money(visit: Visit, organization: Organization) -> dict[str, Any]:
    days = spending.by_day(organization, days=CHART_DAYS, at=visit.at)
    return {
        "organization": organization,
        "wallet": accounts.wallet(organization=organization),
        "runway": access.runway_of(organization),
        "spending": spending.of(organization, at=visit.at),
        "chart": charts.bars(days, currency=organization.currency),
    }


def _usage(visit: Visit, organization: Organization) -> dict[str, Any]:
    spans = access.usage_spans(visit.actor, organization).order_by("-pk")
    before = visit.query("before")
    if before:
        spans = spans.filter(pk__lt=access.usage_spans(visit.actor, organization).filter(public_id=before).values("pk"))
    rows = list(spans[: PAGE + 1])
    more, rows = len(rows) > PAGE, rows[:PAGE]
    return {
        "lines": [
            Line(
                span=span,
                unit_milliseconds=usage.unit_milliseconds(span=span, at=visit.at),
                amount_micros=usage.amount_micros(span=span, at=visit.at),
                page=PAGES.get(span.resource_id[:4], ""),
            )
            for span in rows
        ],
        "older": rows[-1].public_id if more else "",
        "before": before,
    }
