"""Commitments of an organization: what it promised, how much of it is drawn, and new ones with a second person."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from billing import commitment_requests
from billing import commitments as promises
from billing.models import Commitment, CommitmentRequest
from marketplace import money
from marketplace.commitments import promised_of
from marketplace.console import commitments, organizations
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.console.forms import NoForm, ReasonForm
from marketplace.console.price_forms import CommitmentForm
from marketplace.models import Organization
from marketplace.portal.doors import Visit

SHOWN = 20


@managers_only()
def listed(visit: Visit, organization_id: str) -> HttpResponse:
    """List what an organization promised, with what is drawn of it."""
    organization = organizations.organization_for(organization_id)
    found = promises.of_organization(organization, agreed_only=False)
    requests = commitment_requests.listed().filter(organization=organization)[:SHOWN]
    context = {"organization": organization, "commitments": found, "requests": requests}
    return visit.page("console/commitments.html", context)


@managers_only("GET", "HEAD", "POST")
def new(visit: Visit, organization_id: str) -> HttpResponse:
    """Propose a commitment."""
    organization = organizations.organization_for(organization_id)
    typed = visit.request.POST if visit.request.method == "POST" else None
    asked = _asked(visit, organization)
    known = _known(asked) if asked else None
    form = CommitmentForm(typed, skus=promised_of(organization, at=visit.at), at=visit.at, initial=known)
    if carried_out(visit, form, commitments.propose, organization=organization, request=asked, at=visit.at):
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


def _asked(visit: Visit, organization: Organization) -> CommitmentRequest | None:
    """Return the request that a proposal answers, if the address names one that is open."""
    found = commitments.open_requests().filter(organization=organization, public_id=visit.query("request"))
    return found.first() if visit.query("request") else None


def _known(asked: CommitmentRequest) -> dict[str, object]:
    is_spend = asked.kind == Commitment.Kind.SPEND
    return {
        "kind": asked.kind,
        "skus": asked.skus,
        "spend_micros": money.plain(asked.amount) if is_spend else None,
        "hours": None if is_spend else asked.amount,
        "starts_at": asked.starts_at.isoformat(),
        "months": asked.months,
        "note": asked.note[:200],
    }


@managers_only("GET", "HEAD", "POST")
def decline_request(visit: Visit, request_id: str) -> HttpResponse:
    """Say no to what a customer asks for."""
    asked = commitments.request_for(request_id)
    form = ReasonForm(sent(visit))
    if carried_out(visit, form, commitments.decline_request, request=asked, at=visit.at):
        messages.success(visit.request, _("The request is declined."))
        return redirect("console-commitments", asked.organization.public_id)
    return form_page(
        visit,
        form,
        title=_("Decline the request of %(organization)s") % {"organization": asked.organization},
        text=_("They read the reason."),
        send=_("Decline"),
        back=reverse("console-commitments", args=[asked.organization.public_id]),
        is_dangerous=True,
    )


@managers_only("GET", "HEAD", "POST")
def offer(visit: Visit, commitment_id: str) -> HttpResponse:
    """Offer a commitment to its customer."""
    found = commitments.commitment_for(commitment_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, commitments.offer, commitment=found, at=visit.at):
        messages.success(visit.request, _("It is offered. The customer accepts or refuses it in the portal."))
        return redirect("console-commitments", found.organization.public_id)
    return form_page(
        visit,
        form,
        title=_("Offer the commitment to %(organization)s") % {"organization": found.organization},
        text=_about(found),
        send=_("Offer"),
        back=reverse("console-commitments", args=[found.organization.public_id]),
    )


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
        title=_("Agree to the commitment that %(organization)s has signed") % {"organization": found.organization},
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
