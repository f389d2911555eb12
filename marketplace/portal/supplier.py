"""For those who sell capacity: applying, earnings, nodes, statements, payouts, and the account that is paid."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from billing.errors import NoDetails, NoProcessor, PaymentError
from billing.models import PayoutAccount
from billing.payments import gateway
from billing.suppliers import connecting, schedule, statements
from marketplace import access, access_till
from marketplace.errors import BadOrder, Conflict
from marketplace.models import Organization
from marketplace.portal.doors import Visit, absolute, page, whole_number
from marketplace.portal.stacks import StackedChart, stacked
from marketplace.suppliers import applying, earnings, files

log = structlog.get_logger(__name__)

PAGE = 50
NOW, LATER, FEE = "now", "later", "fee"


@dataclass(frozen=True)
class Part:
    """What of one day's charges is whose."""

    day: datetime
    whose: str
    micros: int


@dataclass(frozen=True)
class Drawn:
    """Thirty days of one currency: the bars, and the same figures for the table beneath."""

    currency: str
    chart: StackedChart
    days: list[earnings.Day]


@page("GET", "HEAD", "POST")
def overview(visit: Visit) -> HttpResponse:
    """Show what was earned; an organization that sells nothing yet finds the application here."""
    organization = visit.organization(verb="supplier.view")
    if not organization.is_supplier:
        return _application(visit, organization)
    balances = earnings.balances(organization)
    context = {
        "organization": organization,
        "balances": balances,
        "drawn": [_drawn(visit, organization, one.currency) for one in balances],
        "uses": earnings.utilization(organization, at=visit.at),
        "account": connecting.of(organization),
        "payday": schedule.following(visit.at),
        "next_statement": earnings.next_statements_at(visit.at),
        "has_cards": gateway.is_there(),
        "may_change": access.may(visit.actor, organization, "supplier.change"),
    }
    return visit.page("supplier/overview.html", context)


def _drawn(visit: Visit, organization: Organization, currency: str) -> Drawn:
    days = earnings.days(organization, currency=currency, at=visit.at)
    names = {NOW: _("Yours"), LATER: _("Held back"), FEE: _("Fee of the marketplace")}
    parts = [
        Part(day=one.day, whose=whose, micros=micros)
        for one in days
        for whose, micros in ((NOW, one.payout_micros), (LATER, one.reserve_micros), (FEE, one.fee_micros))
        if micros
    ]
    chart = stacked(parts, [one.day for one in days], by="whose", names=names, currency=currency)
    return Drawn(currency=currency, chart=chart, days=days[::-1])


def _application(visit: Visit, organization: Organization) -> HttpResponse:
    context: dict[str, Any] = {
        "organization": organization,
        "application": applying.latest(organization),
        "details": access.billing_details(organization),
        "may_change": access.may(visit.actor, organization, "supplier.change"),
        "typed": {},
        "errors": {},
    }
    if visit.request.method != "POST":
        return visit.page("supplier/apply.html", context)
    organization = visit.organization(verb="supplier.change")
    typed = {"gpus": visit.text("gpus"), "about": visit.raw("about")}
    try:
        applying.apply(
            actor=visit.actor,
            organization=organization,
            gpus=whole_number(typed["gpus"]),
            about=typed["about"],
            at=visit.at,
        )
    except BadOrder as error:
        context |= {"typed": typed, "errors": {error.field: str(error)}}
        return visit.page("supplier/apply.html", context, status=422)
    messages.success(visit.request, _("You have asked to sell capacity. The answer comes here."))
    return redirect("supplier")


@page()
def nodes(visit: Visit) -> HttpResponse:
    """List a supplier's nodes, and how they are."""
    supplier = _supplier(visit)
    after = visit.query("after")
    rows = list(earnings.nodes_of(supplier).filter(name__gt=after)[: PAGE + 1])
    context = {"organization": supplier, "nodes": rows[:PAGE], "next": rows[PAGE - 1].name if len(rows) > PAGE else ""}
    return visit.page("supplier/nodes.html", context)


@page()
def listed(visit: Visit) -> HttpResponse:
    """List statements, the newest first."""
    supplier = _supplier(visit)
    before = visit.query("before")
    rows = access_till.statements(supplier).order_by("-pk")
    if before:
        rows = rows.filter(pk__lt=access_till.statements(supplier).filter(public_id=before).values("pk"))
    found = list(rows[: PAGE + 1])
    context = {
        "organization": supplier,
        "statements": found[:PAGE],
        "older": found[PAGE - 1].public_id if len(found) > PAGE else "",
        "next_statement": earnings.next_statements_at(visit.at),
    }
    return visit.page("supplier/statements.html", context)


@page()
def shown(visit: Visit, statement_id: str) -> HttpResponse:
    """Show a statement, line by line, and how each comes about."""
    statement = access_till.statement_for(visit.actor, statement_id, verb="supplier.view")
    after = visit.query("after")
    lines = access_till.statement_lines(statement).order_by("pk")
    if after:
        lines = lines.filter(pk__gt=int(after) if after.isdecimal() and len(after) < 19 else 0)
    found = list(lines.select_related("adjustment__verdict")[: PAGE + 1])
    context = {
        "statement": statement,
        "lines": [(line, statements.proof(line)[:PAGE]) for line in found[:PAGE]],
        "next": found[PAGE - 1].pk if len(found) > PAGE else "",
        "payouts": access_till.payouts(statement.supplier).filter(statement=statement).order_by("pk"),
    }
    return visit.page("supplier/statement.html", context)


@page()
def pdf_file(visit: Visit, statement_id: str) -> HttpResponse:
    """Download a statement as PDF."""
    statement = access_till.statement_for(visit.actor, statement_id, verb="supplier.view")
    drawn = files.pdf_of(statement, access_till.statement_lines(statement).order_by("pk"))
    answer = HttpResponse(drawn, content_type="application/pdf")
    answer["Content-Disposition"] = f'attachment; filename="{statement.number}.pdf"'
    return answer


@page()
def csv_file(visit: Visit, statement_id: str) -> HttpResponse:
    """Download a statement's lines as CSV."""
    statement = access_till.statement_for(visit.actor, statement_id, verb="supplier.view")
    rows = files.csv_of(statement, access_till.statement_lines(statement).order_by("pk"))
    answer = HttpResponse("".join(rows), content_type="text/csv; charset=utf-8")
    answer["Content-Disposition"] = f'attachment; filename="{statement.number}.csv"'
    return answer


@page()
def payouts(visit: Visit) -> HttpResponse:
    """List payouts, the newest first, and how far the account is that they go to."""
    supplier = _supplier(visit)
    context = {
        "organization": supplier,
        "payouts": list(access_till.payouts(supplier).order_by("-pk")[:PAGE]),
        "balances": earnings.balances(supplier),
        "minimums": [(one.currency, schedule.minimum_micros(one.currency)) for one in earnings.balances(supplier)],
        "account": _looked_at_account(visit, supplier) if visit.query("returned") else connecting.of(supplier),
        "payday": schedule.following(visit.at),
        "has_cards": gateway.is_there(),
        "may_change": access.may(visit.actor, supplier, "supplier.change"),
    }
    return visit.page("supplier/payouts.html", context)


@page("POST")
def connect(visit: Visit) -> HttpResponse:
    """Send a supplier to the processor's own page, where it says who it is and to which bank account it is paid."""
    supplier = access_till.supplier_for(
        visit.actor, visit.organization(verb="supplier.change").public_id, verb="supplier.change"
    )
    back = absolute(reverse("supplier-payouts")) + "?returned=yes"
    try:
        address = connecting.onboarding_url(
            supplier=supplier, email=visit.actor.user.email, refresh_url=back, return_url=back, at=visit.at
        )
    except NoDetails as error:
        raise Conflict(_("Say first who you are on paper: billing details with your tax id.")) from error
    except NoProcessor as error:
        raise Conflict(_("This marketplace has no payment processor yet, so nothing is paid out here.")) from error
    except PaymentError as error:
        raise Conflict(_("The payment processor did not answer as it should. Try again in a minute.")) from error
    return redirect(address)


def _looked_at_account(visit: Visit, supplier: Organization) -> PayoutAccount | None:
    """Return the account of a supplier who comes from the processor, with what that knows of it by now; if it does not
    answer, a sweep does it.
    """
    account = connecting.of(supplier)
    try:
        if account is not None:
            connecting.look(account=account, at=visit.at)
    except PaymentError as error:
        log.warning("an account was not looked at", organization=supplier.public_id, why=str(error))
    return account


def _supplier(visit: Visit) -> Organization:
    organization = visit.organization(verb="supplier.view")
    return access_till.supplier_for(visit.actor, organization.public_id, verb="supplier.view")
