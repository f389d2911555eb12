"""Use that has ended: finding it, and correcting when it did with a second person."""

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from billing import corrections as till
from billing import usage
from billing.models import UsageCorrection
from marketplace import money
from marketplace.console import corrections
from marketplace.console.correction_forms import CorrectionForm
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.console.forms import NoForm
from marketplace.portal.doors import Visit

PER_PAGE = 50


@managers_only()
def listed(visit: Visit) -> HttpResponse:
    """List corrections, and find the use that somebody wants to correct."""
    page = Paginator(till.listed(), PER_PAGE).get_page(visit.request.GET.get("page"))
    search = visit.query("search")
    spans = list(corrections.found(search)[:PER_PAGE]) if search else []
    context = {
        "page": page,
        "corrections": page.object_list,
        "search": search,
        "spans": list(zip(spans, usage.amounts_micros(spans, at=visit.at), strict=True)),
    }
    return visit.page("console/corrections.html", context)


@managers_only("GET", "HEAD", "POST")
def new(visit: Visit, span_id: str) -> HttpResponse:
    """Propose when a span really ended."""
    span = corrections.span_for(span_id)
    form = CorrectionForm(sent(visit), initial={"ended_at": span.ended_at})
    if carried_out(visit, form, corrections.propose, span=span, at=visit.at):
        messages.success(visit.request, _("The correction is proposed. Another capacity manager has to approve it."))
        return redirect("console-corrections")
    return form_page(
        visit,
        form,
        title=_("Correct the use of %(name)s") % {"name": span.resource_name},
        text=_("What the customer paid for the difference is given back, or charged, once somebody else approves."
               " What was invoiced already is taken back by a credit note."),
        send=_("Propose"),
        back=f"{reverse('console-corrections')}?search={span.public_id}",
    )  # fmt: skip


@managers_only("GET", "HEAD", "POST")
def approve(visit: Visit, correction_id: str) -> HttpResponse:
    """Let a span have ended when a proposal says."""
    row = corrections.correction_for(correction_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, corrections.approve, correction=row, at=visit.at):
        messages.success(visit.request, _("The use is corrected: %(amount)s.") % {"amount": _amount(row)})
        return redirect("console-corrections")
    title = _("Approve the correction of %(name)s") % {"name": row.span.resource_name}
    back = reverse("console-corrections")
    return form_page(visit, form, title=title, text=_about(row), send=_("Approve"), back=back)


@managers_only("GET", "HEAD", "POST")
def decline(visit: Visit, correction_id: str) -> HttpResponse:
    """Leave a span as it is."""
    row = corrections.correction_for(correction_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, corrections.decline, correction=row, at=visit.at):
        messages.success(visit.request, _("The proposal is declined."))
        return redirect("console-corrections")
    title = _("Decline the correction of %(name)s") % {"name": row.span.resource_name}
    back = reverse("console-corrections")
    return form_page(visit, form, title=title, text=_about(row), send=_("Decline"), back=back, is_dangerous=True)


def _amount(row: UsageCorrection) -> str:
    return money.shown(row.amount_micros or 0, row.span.price_version.currency)


def _about(row: UsageCorrection) -> str:
    return _("%(name)s of %(customer)s ended at %(end)s UTC instead of %(was)s, proposed by %(person)s: %(reason)s") % {
        "name": row.span.resource_name,
        "customer": row.span.organization,
        "end": f"{row.ended_at:%Y-%m-%d %H:%M:%S}",
        "was": f"{row.was_ended_at:%Y-%m-%d %H:%M:%S}",
        "person": row.proposed_by,
        "reason": row.reason,
    }
