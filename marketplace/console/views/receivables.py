"""What customers owe: the list, and limits of credit with a second person."""

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from billing import credit_lines
from billing.models import CreditLine
from marketplace import money
from marketplace.console import organizations, receivables
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.console.forms import NoForm
from marketplace.console.receivable_forms import CreditLineForm
from marketplace.portal.doors import Visit

PER_PAGE = 50


@managers_only()
def listed(visit: Visit) -> HttpResponse:
    """List who owes what, and what waits for a second person."""
    page = Paginator(receivables.owing(), PER_PAGE).get_page(visit.request.GET.get("page"))
    return visit.page("console/receivables.html", {"page": page, "lines": receivables.lines()})


@managers_only("GET", "HEAD", "POST")
def limit(visit: Visit, organization_id: str) -> HttpResponse:
    """Propose how much a customer may owe."""
    organization = organizations.organization_for(organization_id)
    current = credit_lines.current(organization)
    known = {"limit_micros": money.plain(current.limit_micros), "net_days": current.net_days} if current else None
    form = CreditLineForm(sent(visit), initial=known)
    if carried_out(visit, form, receivables.propose_line, organization=organization, at=visit.at):
        messages.success(visit.request, _("The limit is proposed. Another capacity manager has to approve it."))
        return redirect("console-organization", organization_id)
    return form_page(
        visit,
        form,
        title=_("Credit limit of %(organization)s") % {"organization": organization},
        text=_("In %(currency)s. Up to it the customer uses first and pays its invoices afterwards; nothing new starts"
               " beyond it. Nothing changes until somebody else approves.") % {"currency": organization.currency},
        send=_("Propose"),
        back=reverse("console-organization", args=[organization_id]),
    )  # fmt: skip


@managers_only("GET", "HEAD", "POST")
def approve_limit(visit: Visit, line_id: str) -> HttpResponse:
    """Let a proposed limit hold."""
    line = receivables.line_for(line_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, receivables.approve_line, line=line, at=visit.at):
        messages.success(visit.request, _("The limit holds from now on."))
        return redirect("console-organization", line.organization.public_id)
    return form_page(
        visit,
        form,
        title=_("Approve the limit of %(organization)s") % {"organization": line.organization},
        text=_("%(amount)s, invoices paid within %(days)s days; proposed by %(person)s: %(reason)s") % _about(line),
        send=_("Approve"),
        back=reverse("console-receivables"),
    )


@managers_only("GET", "HEAD", "POST")
def decline_limit(visit: Visit, line_id: str) -> HttpResponse:
    """Leave a limit as it is."""
    line = receivables.line_for(line_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, receivables.decline_line, line=line, at=visit.at):
        messages.success(visit.request, _("The proposal is declined."))
        return redirect("console-organization", line.organization.public_id)
    return form_page(
        visit,
        form,
        title=_("Decline the limit of %(organization)s") % {"organization": line.organization},
        text=_("%(amount)s, invoices paid within %(days)s days; proposed by %(person)s: %(reason)s") % _about(line),
        send=_("Decline"),
        back=reverse("console-receivables"),
        is_dangerous=True,
    )


def _about(line: CreditLine) -> dict[str, str]:
    return {
        "amount": money.shown(line.limit_micros, line.organization.currency),
        "days": str(line.net_days),
        "person": str(line.proposed_by),
        "reason": line.reason,
    }
