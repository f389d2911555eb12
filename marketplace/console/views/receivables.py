"""What customers owe: the list, and limits of credit with a second person."""

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from billing import credit_lines, disputes
from billing.models import BankTransfer, CreditLine, InvoiceDispute
from marketplace import money
from marketplace.console import bank, organizations, receivables
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.console.forms import NoForm
from marketplace.console.receivable_forms import AnswerForm, BankTransferForm, CreditLineForm
from marketplace.portal.doors import Visit

PER_PAGE = 50


@managers_only()
def listed(visit: Visit) -> HttpResponse:
    """List who owes what, and what waits for a second person."""
    page = Paginator(receivables.debtors(), PER_PAGE).get_page(visit.request.GET.get("page"))
    context = {
        "page": page,
        "aged": [receivables.aged(account, at=visit.at) for account in page],
        "lines": receivables.lines(),
        "transfers": bank.transfers().filter(state=BankTransfer.State.PROPOSED),
        "disputes": disputes.listed().filter(state=InvoiceDispute.State.OPEN),
        "steps": receivables.steps(),
    }
    return visit.page("console/receivables.html", context)


@managers_only()
def transfers(visit: Visit) -> HttpResponse:
    """List what came and went by bank."""
    page = Paginator(bank.transfers(), PER_PAGE).get_page(visit.request.GET.get("page"))
    return visit.page("console/bank.html", {"page": page, "transfers": page.object_list})


@managers_only("GET", "HEAD", "POST")
def record(visit: Visit, organization_id: str) -> HttpResponse:
    """Record a line of the bank's statement."""
    organization = organizations.organization_for(organization_id)
    known = {"value_on": timezone.localdate(visit.at), "direction": visit.query("direction") or "in"}
    form = BankTransferForm(sent(visit), organization=organization, initial=known)
    if carried_out(visit, form, bank.record, organization=organization, at=visit.at):
        messages.success(visit.request, _("The transfer is recorded. Another capacity manager has to approve it."))
        return redirect("console-organization", organization_id)
    return form_page(
        visit,
        form,
        title=_("Bank transfer of %(organization)s") % {"organization": organization},
        text=_("In %(currency)s, as it stands on the bank's statement. Nothing moves until somebody else approves.")
        % {"currency": organization.currency},
        send=_("Record"),
        back=reverse("console-organization", args=[organization_id]),
    )


@managers_only("GET", "HEAD", "POST")
def approve_transfer(visit: Visit, transfer_id: str) -> HttpResponse:
    """Let a recorded transfer count."""
    row = bank.transfer_for(transfer_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, bank.approve, row=row, at=visit.at):
        messages.success(visit.request, _("The money is booked."))
        return redirect("console-organization", row.organization.public_id)
    return form_page(
        visit,
        form,
        title=_("Approve the transfer %(reference)s") % {"reference": row.bank_reference},
        text=_("%(amount)s %(direction)s, %(customer)s, recorded by %(person)s. Compare it with the bank's statement.")
        % _told(row),
        send=_("Approve"),
        back=reverse("console-bank"),
    )


@managers_only("GET", "HEAD", "POST")
def decline_transfer(visit: Visit, transfer_id: str) -> HttpResponse:
    """Let a recorded transfer not count."""
    row = bank.transfer_for(transfer_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, bank.decline, row=row, at=visit.at):
        messages.success(visit.request, _("The record does not count."))
        return redirect("console-organization", row.organization.public_id)
    return form_page(
        visit,
        form,
        title=_("Decline the transfer %(reference)s") % {"reference": row.bank_reference},
        text=_("%(amount)s %(direction)s, %(customer)s, recorded by %(person)s. Compare it with the bank's statement.")
        % _told(row),
        send=_("Decline"),
        back=reverse("console-bank"),
        is_dangerous=True,
    )


def _told(row: BankTransfer) -> dict[str, str]:
    return {
        "amount": money.shown(row.amount_micros, row.currency),
        "direction": str(row.get_direction_display()),
        "customer": str(row.organization),
        "person": str(row.proposed_by),
    }


@managers_only("GET", "HEAD", "POST")
def uphold(visit: Visit, dispute_id: str) -> HttpResponse:
    """Agree with a customer."""
    return _decided(visit, dispute_id, bank.uphold, _("Agree"), _("The credit is proposed. Somebody else approves it."))


@managers_only("GET", "HEAD", "POST")
def reject(visit: Visit, dispute_id: str) -> HttpResponse:
    """Disagree with a customer."""
    return _decided(visit, dispute_id, bank.reject, _("Disagree"), _("The customer is told, and asked for it again."))


def _decided(visit: Visit, dispute_id: str, verb: Callable[..., Any], send: str, done: str) -> HttpResponse:
    row = bank.dispute_for(dispute_id)
    form = AnswerForm(sent(visit))
    if carried_out(visit, form, verb, dispute=row, at=visit.at):
        messages.success(visit.request, done)
        return redirect("console-invoice", row.invoice.public_id)
    about = {
        "amount": money.shown(row.net_micros, row.invoice.currency),
        "line": row.line.resource_name if row.line else row.invoice.number,
        "person": str(row.opened_by),
        "reason": row.reason,
    }
    return form_page(
        visit,
        form,
        title=_("Dispute about %(number)s") % {"number": row.invoice.number},
        text=_("%(amount)s before tax of %(line)s, by %(person)s: %(reason)s") % about,
        send=send,
        back=reverse("console-invoice", args=[row.invoice.public_id]),
    )


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
