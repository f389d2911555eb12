"""Invoices: the list, one with the arithmetic of each line, its files, and the details that invoices carry."""

from uuid import NAMESPACE_URL, uuid4, uuid5

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from billing import invoice_payments
from billing.invoicing import proof
from billing.models import BillingDetails
from marketplace import access, access_till, owing
from marketplace.errors import BadOrder, Conflict
from marketplace.invoices import details, export, pdf
from marketplace.money import shown as shown_money
from marketplace.portal import words
from marketplace.portal.doors import Visit, amount_or_none, page

PAGE = 50
CHUNK = 1000


@page()
def listed(visit: Visit) -> HttpResponse:
    """List invoices and credit notes, newest first."""
    organization = visit.organization(verb="invoice.view")
    rows = access.invoices(organization).order_by("-pk")
    before = visit.query("before")
    if before:
        rows = rows.filter(pk__lt=access.invoices(organization).filter(public_id=before).values("pk"))
    found = list(rows[: PAGE + 1])
    more, found = len(found) > PAGE, found[:PAGE]
    left = invoice_payments.payable_micros_of(found, organization)
    context = {
        "organization": organization,
        "invoices": [(row, left[row.pk]) for row in found],
        "details": access.billing_details(organization),
        "older": found[-1].public_id if more else "",
        "before": before,
    }
    return visit.page("invoices/list.html", context)


@page()
def shown(visit: Visit, invoice_id: str) -> HttpResponse:
    """Show an invoice, and how each of its lines was computed."""
    invoice = access.invoice_for(visit.actor, invoice_id, verb="invoice.view")
    lines = access.invoice_lines(invoice).order_by("pk")
    after = visit.query("after")
    if after:
        lines = lines.filter(pk__gt=int(after) if after.isdecimal() and len(after) < 19 else 0)
    found = list(lines[: PAGE + 1])
    more, found = len(found) > PAGE, found[:PAGE]
    context = {
        "invoice": invoice,
        "left": invoice_payments.payable_micros_of([invoice], invoice.organization)[invoice.pk],
        "proofs": proof.of_lines(invoice, found),
        "totals": proof.of_totals(invoice),
        "credit_notes": access.invoices(invoice.organization).filter(credited=invoice).order_by("pk"),
        "next": found[-1].pk if more else "",
        "after": after,
        "disputes": access_till.invoice_disputes(invoice),
        "may_pay": access.may(visit.actor, invoice.organization, "payment.change"),
        "may_dispute": access.may(visit.actor, invoice.organization, "dispute.change"),
        "key": uuid4(),
    }
    return visit.page("invoices/show.html", context)


@page("POST")
def pay(visit: Visit, invoice_id: str) -> HttpResponse:
    """Charge the saved card for what is left of an invoice."""
    invoice = access.invoice_for(visit.actor, invoice_id, verb="payment.change")
    try:
        payment = owing.pay(actor=visit.actor, invoice=invoice, key=visit.text("key"), at=visit.at)
    except Conflict as refusal:
        messages.error(visit.request, str(refusal))
        return redirect("invoice", invoice_id)
    amount = shown_money(payment.amount_micros, payment.currency)
    messages.success(
        visit.request,
        _("%(amount)s is being charged to %(card)s.") % {"amount": amount, "card": payment.card},
    )
    return redirect("invoice", invoice_id)


@page("GET", "HEAD", "POST")
def dispute(visit: Visit, invoice_id: str) -> HttpResponse:
    """Say that an invoice, or a line of it, is wrong."""
    invoice = access.invoice_for(visit.actor, invoice_id, verb="dispute.change")
    lines = access.invoice_lines(invoice).order_by("pk")[:PAGE]
    typed = {name: visit.text(name) for name in ("line", "amount", "reason", "key")}
    context = {"invoice": invoice, "lines": lines, "typed": typed, "errors": {}, "key": uuid4()}
    if visit.request.method != "POST":
        context["typed"] = {"line": visit.query("line")}
        return visit.page("invoices/dispute.html", context)
    line = access.invoice_lines(invoice).filter(key=typed["line"]).first() if typed["line"] else None
    try:
        owing.dispute(
            actor=visit.actor, invoice=invoice, line=line, net_micros=amount_or_none("amount", typed["amount"]),
            reason=typed["reason"], key=uuid5(NAMESPACE_URL, f"{invoice.public_id}:{typed['key']}"), at=visit.at,
        )  # fmt: skip
    except BadOrder as error:
        return visit.page("invoices/dispute.html", context | {"errors": {error.field: str(error)}}, status=422)
    except Conflict as error:
        return visit.page("invoices/dispute.html", context | {"errors": {"reason": str(error)}}, status=422)
    messages.success(visit.request, _("Nobody asks for this amount until it is decided. You will hear from us."))
    return redirect("invoice", invoice_id)


@page("POST")
def withdraw(visit: Visit, dispute_id: str) -> HttpResponse:
    """Take a dispute back."""
    made = access_till.dispute_for(visit.actor, dispute_id, verb="dispute.change")
    try:
        owing.withdraw(actor=visit.actor, made=made, at=visit.at)
        messages.success(visit.request, _("The dispute is withdrawn."))
    except Conflict as refusal:
        messages.error(visit.request, str(refusal))
    return redirect("invoice", made.invoice.public_id)


@page()
def pdf_file(visit: Visit, invoice_id: str) -> HttpResponse:
    """Download an invoice as PDF."""
    invoice = access.invoice_for(visit.actor, invoice_id, verb="invoice.view")
    drawn = pdf.drawn(invoice, access.invoice_lines(invoice).order_by("pk"))
    answer = HttpResponse(drawn, content_type="application/pdf")
    answer["Content-Disposition"] = f'attachment; filename="{invoice.number}.pdf"'
    return answer


@page()
def csv_file(visit: Visit, invoice_id: str) -> HttpResponse:
    """Download an invoice's lines as CSV."""
    invoice = access.invoice_for(visit.actor, invoice_id, verb="invoice.view")
    rows = export.csv_of(invoice, access.invoice_lines(invoice).order_by("pk").iterator(chunk_size=CHUNK))
    answer = HttpResponse("".join(rows), content_type="text/csv; charset=utf-8")
    answer["Content-Disposition"] = f'attachment; filename="{invoice.number}.csv"'
    return answer


@page("GET", "HEAD", "POST")
def billing_details(visit: Visit) -> HttpResponse:
    """Show and change who the organization is on its invoices."""
    organization = visit.organization(verb="billing_details.view")
    may_change = access.may(visit.actor, organization, "billing_details.change")
    known = details.as_written(access.billing_details(organization)) or {"legal_name": organization.name}
    context = {
        "organization": organization,
        "may_change": may_change,
        "typed": known,
        "errors": {},
        "countries": sorted(words.COUNTRIES.items(), key=lambda pair: str(pair[1])),
        "languages": BillingDetails.Language.choices,
    }
    if visit.request.method != "POST":
        return visit.page("invoices/details.html", context)
    organization = visit.organization(verb="billing_details.change")
    typed = {name: visit.raw(name) if name == "address" else visit.text(name) for name in details.FIELDS}
    try:
        details.change(actor=visit.actor, organization=organization, **typed)
    except BadOrder as error:
        context |= {"typed": typed, "errors": {error.field: str(error)}}
        return visit.page("invoices/details.html", context, status=422)
    messages.success(visit.request, _("Your next invoices carry these details."))
    return redirect("invoices")
