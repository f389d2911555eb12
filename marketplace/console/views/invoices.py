"""Invoices: who sells, what was issued, issuing now, and taking back with a second person."""

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from billing import disputes
from billing.invoicing import crediting, proof
from billing.models import CreditProposal
from marketplace import money
from marketplace.console import invoices, organizations, receivables
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.console.forms import NoForm
from marketplace.console.invoice_forms import CreditNoteForm, SellerForm
from marketplace.portal.doors import Visit

PER_PAGE = 50


@managers_only()
def listed(visit: Visit) -> HttpResponse:
    """List what was issued, and what waits for a second person."""
    search = visit.query("search")
    page = Paginator(invoices.listed(search=search), PER_PAGE).get_page(visit.request.GET.get("page"))
    context = {"page": page, "search": search, "seller": invoices.seller(), "proposals": invoices.proposals()}
    return visit.page("console/invoices.html", context)


@managers_only("GET", "HEAD", "POST")
def seller(visit: Visit) -> HttpResponse:
    """Name whose invoices these are."""
    current = invoices.seller()
    form = SellerForm(sent(visit), initial={"seller": current.organization.public_id} if current else None)
    if carried_out(visit, form, invoices.name_seller):
        messages.success(visit.request, _("Invoices are in its name from now on."))
        return redirect("console-invoices")
    return form_page(
        visit,
        form,
        title=_("Who sells"),
        text=_("Its billing details stand on every invoice from now on. Numbers go on without a gap."),
        send=_("Save"),
        back=reverse("console-invoices"),
    )


@managers_only()
def shown(visit: Visit, invoice_id: str) -> HttpResponse:
    """Show an invoice, how it comes about, and what was taken back of it."""
    invoice = invoices.invoice_for(invoice_id)
    page = Paginator(invoices.lines(invoice), PER_PAGE).get_page(visit.request.GET.get("page"))
    context = {
        "invoice": invoice,
        "page": page,
        "proofs": proof.of_lines(invoice, list(page)),
        "totals": proof.of_totals(invoice),
        "left": crediting.left_micros(invoice),
        "proposals": invoices.proposals(invoice),
        "disputes": disputes.listed().filter(invoice=invoice),
        "timelines": [
            one for one in receivables.timelines(invoice.organization, at=visit.at) if one.unpaid.invoice == invoice
        ],
    }
    return visit.page("console/invoice.html", context)


@managers_only("GET", "HEAD", "POST")
def issue(visit: Visit, organization_id: str) -> HttpResponse:
    """Invoice a tenant's use until now."""
    organization = organizations.organization_for(organization_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, invoices.issue_now, organization=organization, at=visit.at):
        messages.success(visit.request, _("%(number)s is issued.") % {"number": form.made.number})
        return redirect("console-invoice", form.made.public_id)
    return form_page(
        visit,
        form,
        title=_("Invoice %(organization)s now") % {"organization": organization},
        text=_(
            "Everything used until this moment goes on an invoice, which nobody can change afterwards. What is used"
            " later comes with the end of the month."
        ),
        send=_("Issue the invoice"),
        back=reverse("console-organization", args=[organization_id]),
    )


@managers_only("GET", "HEAD", "POST")
def credit(visit: Visit, invoice_id: str) -> HttpResponse:
    """Propose to take part of an invoice back."""
    invoice = invoices.invoice_for(invoice_id)
    left = crediting.left_micros(invoice)
    form = CreditNoteForm(sent(visit))
    if carried_out(visit, form, invoices.propose_credit, invoice=invoice, at=visit.at):
        messages.success(visit.request, _("The credit is proposed. Another capacity manager has to approve it."))
        return redirect("console-invoice", invoice_id)
    return form_page(
        visit,
        form,
        title=_("Credit for %(number)s") % {"number": invoice.number},
        text=_("At most %(left)s before tax; its tax goes back with it. Nothing moves until somebody else approves.")
        % {"left": money.shown(left, invoice.currency)},
        send=_("Propose"),
        back=reverse("console-invoice", args=[invoice_id]),
    )


@managers_only("GET", "HEAD", "POST")
def approve(visit: Visit, proposal_id: str) -> HttpResponse:
    """Issue a proposed credit note."""
    proposal = invoices.proposal_for(proposal_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, invoices.approve_credit, proposal=proposal, at=visit.at):
        messages.success(visit.request, _("%(number)s is issued.") % {"number": form.made.number})
        return redirect("console-invoice", form.made.public_id)
    return form_page(
        visit,
        form,
        title=_("Approve the credit for %(number)s") % {"number": proposal.invoice.number},
        text=_("%(amount)s before tax, proposed by %(person)s: %(reason)s") % _about(proposal),
        send=_("Issue the credit note"),
        back=reverse("console-invoice", args=[proposal.invoice.public_id]),
    )


@managers_only("GET", "HEAD", "POST")
def decline(visit: Visit, proposal_id: str) -> HttpResponse:
    """Leave an invoice as it is."""
    proposal = invoices.proposal_for(proposal_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, invoices.decline_credit, proposal=proposal, at=visit.at):
        messages.success(visit.request, _("The proposal is declined."))
        return redirect("console-invoice", proposal.invoice.public_id)
    return form_page(
        visit,
        form,
        title=_("Decline the credit for %(number)s") % {"number": proposal.invoice.number},
        text=_("%(amount)s before tax, proposed by %(person)s: %(reason)s") % _about(proposal),
        send=_("Decline"),
        back=reverse("console-invoice", args=[proposal.invoice.public_id]),
        is_dangerous=True,
    )


def _about(proposal: CreditProposal) -> dict[str, str]:
    return {
        "amount": money.shown(proposal.net_micros, proposal.invoice.currency),
        "person": str(proposal.proposed_by),
        "reason": proposal.reason,
    }
