"""Commitments of an organization: what it promised, how much of it is drawn, and new ones with a second person."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from billing import commitments as promises
from billing.models import Commitment
from marketplace import money
from marketplace.console import commitments, organizations
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.console.forms import NoForm
from marketplace.console.price_forms import CommitmentForm
from marketplace.portal.doors import Visit


@managers_only()
def listed(visit: Visit, organization_id: str) -> HttpResponse:
    """List what an organization promised, with what is drawn of it."""
    organization = organizations.organization_for(organization_id)
    found = promises.of_organization(organization, agreed_only=False)
    return visit.page("console/commitments.html", {"organization": organization, "commitments": found})


@managers_only("GET", "HEAD", "POST")
def new(visit: Visit, organization_id: str) -> HttpResponse:
    """Propose a commitment."""
    organization = organizations.organization_for(organization_id)
    typed = visit.request.POST if visit.request.method == "POST" else None
    form = CommitmentForm(typed, skus=commitments.promised_of(organization, at=visit.at), at=visit.at)
    if carried_out(visit, form, commitments.propose, organization=organization, at=visit.at):
        messages.success(visit.request, _("The commitment is proposed. Another capacity manager has to agree."))
        return redirect("console-commitments", organization_id)
    return form_page(
        visit,
        form,
        title=_("New commitment of %(organization)s") % {"organization": organization},
        text=_("Use in its months costs the discounted price until the promise is used up, then the list's. What is"
               " left at the end is charged."),
        send=_("Propose"),
        back=reverse("console-commitments", args=[organization_id]),
    )  # fmt: skip


@managers_only("GET", "HEAD", "POST")
def agree(visit: Visit, commitment_id: str) -> HttpResponse:
    """Let a commitment hold."""
    found = commitments.commitment_for(commitment_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, commitments.agree, commitment=found, at=visit.at):
        messages.success(visit.request, _("The commitment is agreed."))
        return redirect("console-commitments", found.organization.public_id)
    return form_page(
        visit,
        form,
        title=_("Agree to the commitment of %(organization)s") % {"organization": found.organization},
        text=_about(found),
        send=_("Agree"),
        back=reverse("console-commitments", args=[found.organization.public_id]),
    )


@managers_only("GET", "HEAD", "POST")
def decline(visit: Visit, commitment_id: str) -> HttpResponse:
    """Give up a proposal."""
    found = commitments.commitment_for(commitment_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, commitments.decline, commitment=found, at=visit.at):
        messages.success(visit.request, _("The proposal is declined."))
        return redirect("console-commitments", found.organization.public_id)
    return form_page(
        visit,
        form,
        title=_("Decline the commitment of %(organization)s") % {"organization": found.organization},
        text=_about(found),
        send=_("Decline"),
        back=reverse("console-commitments", args=[found.organization.public_id]),
        is_dangerous=True,
    )


def _about(found: Commitment) -> str:
    return _("%(amount)s from %(begin)s until %(end)s, proposed by %(person)s: %(note)s") % {
        "amount": money.shown(found.committed_micros, found.currency),
        "begin": f"{found.starts_at:%Y-%m-%d}",
        "end": f"{found.ends_at:%Y-%m-%d}",
        "person": found.proposed_by,
        "note": found.note,
    }
