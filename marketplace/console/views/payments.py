"""Payments, refunds with a second person, and the reconciliation with the card processor."""

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from billing.models import Payment, Refund
from billing.payments import gateway, reconciliation, refunds
from marketplace import money
from marketplace.console import payments
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.console.forms import NoForm, ReasonForm
from marketplace.console.payment_forms import RefundForm
from marketplace.portal.doors import Visit

PER_PAGE, LINES, CLOSED = 50, 25, 10


@managers_only()
def listed(visit: Visit) -> HttpResponse:
    """List payments, and refunds that wait for a second person."""
    search, state = visit.query("search"), visit.query("state")
    state = state if state in Payment.State.values else ""
    page = Paginator(payments.listed(search=search, state=state), PER_PAGE).get_page(visit.request.GET.get("page"))
    context = {
        "page": page,
        "search": search,
        "state": state,
        "states": Payment.State.choices,
        "refunds": payments.proposed(),
        "is_there": gateway.is_there(),
    }
    return visit.page("console/payments.html", context)


@managers_only()
def shown(visit: Visit, payment_id: str) -> HttpResponse:
    """Show a payment, its refunds and its disputes."""
    payment = payments.payment_for(payment_id)
    context = {
        "payment": payment,
        "left": refunds.left_micros(payment),
        "refunds": payments.refunds_of(payment),
        "disputes": payments.disputes_of(payment),
    }
    return visit.page("console/payment.html", context)


@managers_only("GET", "HEAD", "POST")
def refund(visit: Visit, payment_id: str) -> HttpResponse:
    """Propose to give part of a payment back."""
    payment = payments.payment_for(payment_id)
    form = RefundForm(sent(visit))
    if carried_out(visit, form, payments.propose_refund, payment=payment, at=visit.at):
        messages.success(visit.request, _("The refund is proposed. Another capacity manager has to approve it."))
        return redirect("console-payment", payment_id)
    left = money.shown(refunds.left_micros(payment), payment.currency)
    return form_page(
        visit,
        form,
        title=_("Refund of %(payment)s") % {"payment": payment.public_id},
        text=_("At most %(left)s, to the card that paid. It is taken from the customer's cash when somebody approves.")
        % {"left": left},
        send=_("Propose"),
        back=reverse("console-payment", args=[payment_id]),
    )


@managers_only("GET", "HEAD", "POST")
def approve(visit: Visit, refund_id: str) -> HttpResponse:
    """Let a refund be sent."""
    found = payments.refund_for(refund_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, payments.approve_refund, refund=found, at=visit.at):
        messages.success(visit.request, _("The refund is approved and will be sent within seconds."))
        return redirect("console-payment", found.payment.public_id)
    return form_page(
        visit,
        form,
        title=_("Approve this refund"),
        text=_("%(amount)s to the card, proposed by %(person)s: %(reason)s") % _about(found),
        send=_("Approve"),
        back=reverse("console-payment", args=[found.payment.public_id]),
    )


@managers_only("GET", "HEAD", "POST")
def decline(visit: Visit, refund_id: str) -> HttpResponse:
    """Refund nothing."""
    found = payments.refund_for(refund_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, payments.decline_refund, refund=found, at=visit.at):
        messages.success(visit.request, _("The refund is declined."))
        return redirect("console-payment", found.payment.public_id)
    return form_page(
        visit,
        form,
        title=_("Decline this refund"),
        text=_("%(amount)s to the card, proposed by %(person)s: %(reason)s") % _about(found),
        send=_("Decline"),
        back=reverse("console-payment", args=[found.payment.public_id]),
        is_dangerous=True,
    )


@managers_only()
def statement(visit: Visit) -> HttpResponse:
    """Show our ledger against the processor's statement: the difference, and what explains it."""
    context = {
        "comparisons": reconciliation.comparisons(at=visit.at),
        "cases": reconciliation.cases().select_related("noted_by"),
        "closed": payments.closed_cases()[:CLOSED],
        "lines": payments.statement()[:LINES],
        "unheard": payments.unheard()[:LINES],
        "is_there": gateway.is_there(),
    }
    return visit.page("console/reconciliation.html", context)


@managers_only("GET", "HEAD", "POST")
def reconcile(visit: Visit) -> HttpResponse:
    """Read the statement now."""
    form = NoForm(sent(visit))
    if carried_out(visit, form, payments.reconcile):
        if form.made:
            messages.info(visit.request, _("The statement is long. It is read on, and then compared, by itself."))
        else:
            messages.success(visit.request, _("Both sides were compared."))
        return redirect("console-reconciliation")
    return form_page(
        visit,
        form,
        title=_("Reconcile now"),
        text=_(
            "It happens once a day by itself. The statement of the card processor is read, and compared key by key."
        ),
        send=_("Read and compare"),
        back=reverse("console-reconciliation"),
    )


@managers_only("GET", "HEAD", "POST")
def note(visit: Visit, case_id: str) -> HttpResponse:
    """Write down what explains a difference."""
    case = payments.case_for(case_id)
    form = ReasonForm(sent(visit), initial={"reason": case.note})
    if carried_out(visit, form, payments.note_case, case=case):
        messages.success(visit.request, _("The note is kept. The case closes by itself once both sides agree."))
        return redirect("console-reconciliation")
    return form_page(
        visit,
        form,
        title=_("What explains %(key)s") % {"key": case.our_key},
        text=_("A note moves no money: a difference goes away only when both sides say the same."),
        send=_("Save"),
        back=reverse("console-reconciliation"),
    )


def _about(found: Refund) -> dict[str, str]:
    return {
        "amount": money.shown(found.amount_micros, found.payment.currency),
        "person": str(found.proposed_by),
        "reason": found.reason,
    }
