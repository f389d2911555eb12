"""Usage, interval by interval, and how each amount was computed."""

from dataclasses import dataclass

from django.http import HttpResponse

from billing import usage
from billing.invoicing import proof
from billing.models import UsageSpan
from marketplace import access
from marketplace.portal.doors import Visit, page

PAGE = 50
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
def listed(visit: Visit) -> HttpResponse:
    """Show every interval that was measured, newest first."""
    organization = visit.organization(verb="usage.view")
    spans = access.usage_spans(visit.actor, organization).order_by("-pk")
    before = visit.query("before")
    if before:
        spans = spans.filter(pk__lt=access.usage_spans(visit.actor, organization).filter(public_id=before).values("pk"))
    rows = list(spans[: PAGE + 1])
    more, rows = len(rows) > PAGE, rows[:PAGE]
    amounts = usage.amounts_micros(rows, at=visit.at)
    context = {
        "organization": organization,
        "lines": [
            Line(
                span=span,
                unit_milliseconds=usage.unit_milliseconds(span=span, at=visit.at),
                amount_micros=micros,
                page=PAGES.get(span.resource_id[:4], ""),
            )
            for span, micros in zip(rows, amounts, strict=True)
        ],
        "older": rows[-1].public_id if more else "",
        "before": before,
    }
    return visit.page("usage/list.html", context)


@page()
def shown(visit: Visit, span_id: str) -> HttpResponse:
    """Show how an interval's amount was computed: its prices, the arithmetic, what was charged and invoiced of it."""
    span = access.usage_span_for(visit.actor, span_id, verb="usage.view")
    until = min(visit.at, span.ended_at or visit.at)
    amount = usage.amount_micros(span=span, at=visit.at)
    context = {
        "span": span,
        "page": PAGES.get(span.resource_id[:4], ""),
        "proof": proof.of_span(span, until=until, written_micros=amount),
        "amount_micros": amount,
        "charged": usage.charged(span=span),
    }
    return visit.page("usage/show.html", context)
