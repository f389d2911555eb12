"""Paying by outcome: products with what counts, results with evidence and timeline, and disputes for both sides."""

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from marketplace import access, access_receipts
from marketplace.contracts import answering, disputing, door, offering, reversing, settling, wording
from marketplace.contracts import terms as written
from marketplace.contracts.terms import Terms
from marketplace.errors import BadOrder
from marketplace.models import Claim, ClaimDispute, ClaimState, Contract, ContractVersion, Side
from marketplace.portal.doors import Visit, page, whole_number

PAGE = 50
EVENTS_MOST = 200
SHELL = "/bin/sh"


@page()
def catalogue(visit: Visit) -> HttpResponse:
    """Show what is sold by its outcome, what of it was agreed to, and what is for this organization alone."""
    organization = visit.organization(verb="contract.view")
    found = door.versions(visit.actor).filter(state=ContractVersion.State.OFFERED)
    rows = list(found.exclude(contract__seller=organization)[:PAGE])
    accepted = set(door.accepted(visit.actor, organization).values_list("pk", flat=True))
    context = {
        "organization": organization,
        "products": [_product(row) | {"is_accepted": row.pk in accepted} for row in rows],
        "sold": list(door.versions(visit.actor).filter(contract__seller=organization)[:PAGE]),
    }
    return visit.page("outcomes/catalogue.html", context)


def _product(version: ContractVersion) -> dict[str, Any]:
    terms = written.of(version.terms)
    return {
        "version": version,
        "terms": terms.value,
        "price": wording.price(terms),
        "verifier": wording.verifier(terms),
        "is_own": version.contract.buyer_id is not None,
        "use": _use(terms),
    }


def _use(terms: Terms) -> str:
    """Return what agreeing to these terms is for: a `job`, `claims` of their seller, a `guarantee` or `revenue`."""
    uses: dict[str, str] = {Contract.Kind.GUARANTEE: "guarantee", Contract.Kind.REVENUE_SHARE: "revenue"}
    return "job" if terms.pays_tasks else uses.get(terms.kind, "claims")


@page("GET", "HEAD", "POST")
def product(visit: Visit, version_id: str) -> HttpResponse:
    """Show all terms of a version with its SHA-256; agree to it, or end that."""
    is_sent = visit.request.method == "POST"
    verb = "contract_acceptance.create" if is_sent else "contract.view"
    version = door.version_for(visit.actor, version_id, verb=verb)
    organization = visit.organization(verb=verb)
    wrong: dict[str, str] = {}
    if is_sent:
        typed = visit.text("check_command")
        if visit.text("leave"):
            offering.leave(actor=visit.actor, version=version, organization=organization, at=visit.at)
            messages.success(visit.request, _("Ended. What was begun goes on by its terms; nothing new is ordered."))
            return redirect("outcome", version_id)
        try:
            offering.accept(
                actor=visit.actor, version=version, organization=organization, sha256=visit.text("sha256"), at=visit.at,
                check_image=visit.text("check_image"), check_command=[SHELL, "-c", typed] if typed else [],
                third_parties=visit.text("third_parties").split(),
            )  # fmt: skip
        except BadOrder as error:
            wrong = {error.field: str(error)}
        else:
            messages.success(visit.request, _("Agreed. Jobs may name it from now on; nothing is charged before that."))
            return redirect("outcome", version_id)
    terms = written.of(version.terms)
    accepted = door.acceptances_of([version], organization).get(version.pk)
    context = _product(version) | {
        "organization": organization,
        "sentences": wording.sentences(terms),
        "accepted": accepted,
        "ended_at": accepted and accepted.ended_at,
        "is_sold": version.contract.seller_id == organization.pk,
        "needs_command": terms.verifier == "command",
        "third_parties": ", ".join(party["name"] for party in terms.third_parties),
        "may_accept": access.may(visit.actor, organization, "contract_acceptance.create"),
        "errors": wrong,
        "typed": {name: visit.text(name) for name in ("check_command", "check_image", "third_parties")},
    }
    return visit.page("outcomes/product.html", context, status=422 if wrong else 200)


@page()
def listed(visit: Visit) -> HttpResponse:
    """Show claims, newest first: of what is bought, or of what is sold."""
    organization = visit.organization(verb="claim.view")
    side = Side.SELLER if visit.query("side") == Side.SELLER else Side.BUYER
    found = door.claims(visit.actor, side=side)
    column = "contract__seller" if side == Side.SELLER else "organization"
    found = found.filter(**{column: organization})
    state = visit.query("state")
    if state in ClaimState.values:
        found = found.filter(state=state)
    job = visit.query("job")
    if job:
        found = found.filter(task__job__public_id=job)
    before = visit.query("before")
    if before:
        found = found.filter(pk__lt=door.claims(visit.actor, side=side).filter(public_id=before).values("pk"))
    rows = list(found.order_by("-pk")[: PAGE + 1])
    context = {
        "rows": rows[:PAGE],
        "older": rows[PAGE - 1].public_id if len(rows) > PAGE else "",
        "side": side,
        "state": state,
        "job": job,
        "states": ClaimState.choices,
        "sells": organization.is_supplier,
        "disputes": door.disputes(visit.actor).filter(state=ClaimDispute.State.OPEN).count(),
    }
    return visit.live_page("outcomes/claims.html", "rows", context)


@page()
def shown(visit: Visit, claim_id: str) -> HttpResponse:
    """Show one claim: its price, evidence, verdicts, timeline, disputes, and what can be done."""
    claim, side = door.claim_for(visit.actor, claim_id, verbs=door.VIEW)
    return visit.live_page("outcomes/claim.html", "live", _claim(visit, claim, side))


def _claim(visit: Visit, claim: Claim, side: Side) -> dict[str, Any]:
    terms = written.of(claim.version.terms)
    party = claim.organization if side == Side.BUYER else claim.contract.seller
    verb = "claim.change" if side == Side.BUYER else "claim_sale.change"
    disputes = list(door.disputes_of(claim))
    return {
        "claim": claim,
        "side": side,
        "terms": terms.value,
        "price": wording.price(terms),
        "currency": terms.currency,
        "proof": wording.proof(claim.evidence),
        "subject": settling.subject_of(claim),
        "receipts": list(access_receipts.of_claims([claim])),
        "events": list(door.events(claim)[:EVENTS_MOST]),
        "verdicts": list(door.verdicts(claim)),
        "disputes": disputes,
        "open_dispute": next((one for one in disputes if one.state == ClaimDispute.State.OPEN), None),
        "reasons": ClaimDispute.Reason.choices,
        "next": _next(claim),
        "actions": _actions(claim, side, visit) if access.may(visit.actor, party, verb) else {},
    }


def _actions(claim: Claim, side: Side, visit: Visit) -> dict[str, bool]:
    """Return what a page offers; the verbs look again."""
    is_paid = claim.state == ClaimState.SETTLED
    within = claim.clawback_until is not None and visit.at <= claim.clawback_until
    decides = claim.state == ClaimState.VERIFIED or (
        claim.state == ClaimState.CLAIMED and claim.version.terms["verifier"]["kind"] == "customer"
    )
    return {
        "accept": side == Side.BUYER and decides,
        "reject": side == Side.BUYER and decides,
        "dispute": disputing.why_not(claim, side, at=visit.at) == "",
        "reverse": side == Side.SELLER and is_paid and within,
        "void": side == Side.SELLER and claim.is_open,
    }


def _next(claim: Claim) -> str:
    """Return what the terms do next by themselves; empty where nothing is open."""
    rules = {
        ClaimState.CLAIMED: _("It is being verified."),
        ClaimState.VERIFIED: _("Silence accepts it then.")
        if claim.version.terms["acceptance"]["on_silence"] == "accept"
        else _("Silence rejects it then."),
        ClaimState.AUTO_ACCEPTED: _("It is paid then, unless it is disputed before."),
        ClaimState.FAILED: _("What was set aside goes back then, unless it is tried again or contested before."),
        ClaimState.REJECTED: _("What was set aside goes back then, unless its seller contests that before."),
        ClaimState.DISPUTED: _("It is decided until then, or by the written rule."),
    }
    return rules.get(ClaimState(claim.state), "") if claim.is_open else ""


@page("POST")
def accept(visit: Visit, claim_id: str) -> HttpResponse:
    """Accept a result."""
    claim, _side = door.claim_for(visit.actor, claim_id, verbs=door.AS_CUSTOMER)
    accepted = answering.accept(actor=visit.actor, claim=claim, at=visit.at)
    if accepted.state == ClaimState.FAILED:
        messages.warning(visit.request, _("Not accepted: it failed, and is not paid. Its history says why."))
    else:
        messages.success(visit.request, _("Accepted: it is paid out of what was set aside."))
    return redirect("claim", claim_id)


@page("POST")
def reject(visit: Visit, claim_id: str) -> HttpResponse:
    """Refuse a result, and say why."""
    claim, _side = door.claim_for(visit.actor, claim_id, verbs=door.AS_CUSTOMER)
    answering.reject(actor=visit.actor, claim=claim, reason=visit.text("reason"), at=visit.at)
    messages.success(visit.request, _("Rejected: it is not paid, unless its seller contests that in time."))
    return redirect("claim", claim_id)


@page("POST")
def dispute(visit: Visit, claim_id: str) -> HttpResponse:
    """Contest how a claim stands, as its customer or its seller."""
    claim, side = door.claim_for(visit.actor, claim_id, verbs=door.ACT)
    disputing.open(
        actor=visit.actor, claim=claim, side=side, reason=visit.text("kind"), text=visit.text("reason"), at=visit.at
    )
    messages.success(visit.request, _("Disputed. Its money stays where it is until it is decided."))
    return redirect("claim", claim_id)


@page("POST")
def reverse(visit: Visit, claim_id: str) -> HttpResponse:
    """Give back what was paid for a claim that is sold."""
    claim, _side = door.claim_for(visit.actor, claim_id, verbs=door.AS_SELLER)
    reversing.reverse(actor=visit.actor, claim=claim, reason=visit.text("reason"), at=visit.at)
    messages.success(visit.request, _("It is given back, with its tax."))
    return redirect("claim", claim_id)


@page("POST")
def void(visit: Visit, claim_id: str) -> HttpResponse:
    """Withdraw a claim before it is paid."""
    claim, _side = door.claim_for(visit.actor, claim_id, verbs=door.AS_SELLER)
    settling.void(actor=visit.actor, claim=claim, reason=visit.text("reason"), at=visit.at)
    messages.success(visit.request, _("The claim is withdrawn; what was set aside for it went back."))
    return redirect("claim", claim_id)


@page()
def disputes(visit: Visit) -> HttpResponse:
    """Show disputes of both sides, the open ones first."""
    visit.organization(verb="claim.view")
    first = max(0, whole_number(visit.query("from") or "0"))
    rows = list(door.open_first(door.disputes(visit.actor))[first : first + PAGE + 1])
    context = {"rows": rows[:PAGE], "more_from": first + PAGE if len(rows) > PAGE else None}
    return visit.page("outcomes/disputes.html", context)


@page("POST")
def answer(visit: Visit, dispute_id: str) -> HttpResponse:
    """Say something in a dispute."""
    found, side = door.dispute_for(visit.actor, dispute_id, verbs=door.ACT)
    disputing.answer(actor=visit.actor, dispute=found, side=side, text=visit.text("reason"), at=visit.at)
    return redirect("claim", found.claim.public_id)


@page("POST")
def withdraw(visit: Visit, dispute_id: str) -> HttpResponse:
    """Contest no more."""
    found, side = door.dispute_for(visit.actor, dispute_id, verbs=door.ACT)
    disputing.withdraw(actor=visit.actor, dispute=found, side=side, at=visit.at)
    messages.success(visit.request, _("The dispute is withdrawn."))
    return redirect("claim", found.claim.public_id)
