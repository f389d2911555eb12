"""Contracts: what is sold by its outcome, its margin, the editor of terms, and disputes that wait for a decision."""

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from marketplace.console import contracts
from marketplace.console.contract_forms import TEMPLATE, ContractForm, DecisionForm, TermsForm
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.console.forms import NoForm, ReasonForm
from marketplace.contracts import disputing, door, offering, reversing, sellers, settling, wording
from marketplace.contracts import terms as written
from marketplace.models import Side
from marketplace.portal.doors import Visit


@managers_only()
def listed(visit: Visit) -> HttpResponse:
    """List every version with what it brought, gave back, shared and cost: its margin."""
    return visit.page(
        "console/contracts.html",
        {
            "rows": contracts.with_margins(),
            "submitted": contracts.submitted(),
            "waiting": disputing.open_ones().count(),
        },
    )


@managers_only("GET", "HEAD", "POST")
def new(visit: Visit) -> HttpResponse:
    """Draft a contract for a supplier."""
    form = ContractForm(sent(visit), sellers=contracts.sellers(), initial={"terms": TEMPLATE})
    if carried_out(visit, form, contracts.draft, at=visit.at):
        messages.success(visit.request, _("Drafted. Read it once more; its seller offers it then."))
        return redirect("console-contract", form.made.public_id)
    return form_page(
        visit, form, title=_("New contract"), send=_("Draft"), back=reverse("console-contracts"),
        text=_("A version is never changed: it becomes an offer as it is, or you write the next one."),
    )  # fmt: skip


@managers_only()
def shown(visit: Visit, version_id: str) -> HttpResponse:
    """Show a version: its terms in words, who agreed, its claims and its margin."""
    version = offering.version_for_all(version_id)
    terms = written.of(version.terms)
    context: dict[str, Any] = {
        "version": version,
        "sentences": wording.sentences(terms),
        "counts": terms["counts"],
        "currency": terms.currency,
        "may_offer": sellers.is_operators(version.contract.seller),
        "margin": contracts.margin_of(version),
        "acceptances": contracts.acceptances_of(version),
        "states": contracts.claims_by_state(version),
        "claims": contracts.latest_claims(version),
        "versions": contracts.versions_of(version.contract),
    }
    return visit.page("console/contract.html", context)


@managers_only("GET", "HEAD", "POST")
def amend(visit: Visit, version_id: str) -> HttpResponse:
    """Write the next version, from the terms of this one."""
    version = offering.version_for_all(version_id)
    form = TermsForm(sent(visit), initial={"terms": written.renewed(version.terms)})
    if carried_out(visit, form, offering.amend, contract=version.contract, side=Side.SELLER, at=visit.at):
        messages.success(visit.request, _("The next version is drafted; earlier ones stay as they are."))
        return redirect("console-contract", form.made.public_id)
    return form_page(
        visit, form, title=_("Next version of %(title)s") % {"title": version.contract.title}, send=_("Draft"),
        back=reverse("console-contract", args=[version_id]),
    )  # fmt: skip


@managers_only("GET", "HEAD", "POST")
def offer(visit: Visit, version_id: str) -> HttpResponse:
    """Offer a draft of the operator's own, or approve what a supplier submitted."""
    version = offering.version_for_all(version_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, offering.approve, version=version, at=visit.at):
        messages.success(visit.request, _("It is offered."))
        return redirect("console-contract", version_id)
    return form_page(
        visit, form, title=_("Offer %(version)s") % {"version": version}, send=_("Offer"),
        text=_("Whoever it is for may agree to it from now on. Its terms stay as they are for ever."),
        back=reverse("console-contract", args=[version_id]),
    )  # fmt: skip


@managers_only("GET", "HEAD", "POST")
def withdraw(visit: Visit, version_id: str) -> HttpResponse:
    """Sell no more under a version."""
    version = offering.version_for_all(version_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, offering.withdraw, version=version, at=visit.at):
        messages.success(visit.request, _("It is withdrawn."))
        return redirect("console-contract", version_id)
    return form_page(
        visit, form, title=_("Withdraw %(version)s") % {"version": version}, send=_("Withdraw"), is_dangerous=True,
        text=_("Nothing new is bought under it. What was begun goes on by its terms."),
        back=reverse("console-contract", args=[version_id]),
    )  # fmt: skip


@managers_only()
def disputes(visit: Visit) -> HttpResponse:
    """Show what waits for a decision, the most urgent first."""
    return visit.page("console/claim_disputes.html", {"rows": list(disputing.open_ones()[: contracts.SHOWN])})


@managers_only("GET", "HEAD", "POST")
def decide(visit: Visit, dispute_id: str) -> HttpResponse:
    """Decide a dispute: what part of the price is paid, and why."""
    found = door.any_dispute(dispute_id)
    form = DecisionForm(sent(visit), initial={"due_bps": 100})
    if carried_out(visit, form, disputing.resolve, dispute=found, at=visit.at):
        messages.success(visit.request, _("Decided."))
        return redirect("console-claim-disputes")
    claim = door.any_claim(found.claim.public_id)
    context = {
        "dispute": found,
        "claim": claim,
        "currency": claim.organization.currency,
        "proof": wording.proof(claim.evidence),
        "verdicts": list(door.verdicts(claim)),
        "events": list(door.events(claim)),
    }
    return form_page(
        visit, form, "console/claim_dispute.html", title=_("Decide a dispute"), send=_("Decide"),
        back=reverse("console-claim-disputes"), **context,
    )  # fmt: skip


@managers_only("GET", "HEAD", "POST")
def reverse_claim(visit: Visit, claim_id: str) -> HttpResponse:
    """Take back a claim that was paid."""
    claim = door.any_claim(claim_id)
    form = ReasonForm(sent(visit))
    if carried_out(visit, form, reversing.take_back, claim=claim, at=visit.at):
        messages.success(visit.request, _("It is given back, with its tax."))
        return redirect("console-contract", claim.version.public_id)
    return form_page(
        visit, form, title=_("Take back %(subject)s") % {"subject": settling.subject_of(claim)}, send=_("Take back"),
        text=_("The customer gets the whole price back with its tax, and its seller gives back its share."),
        back=reverse("console-contract", args=[claim.version.public_id]), is_dangerous=True,
    )  # fmt: skip
