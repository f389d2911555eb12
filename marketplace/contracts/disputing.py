"""Disputes of claims, for both sides: opened with a reason, answered, and decided once, or by the written rule."""

from collections.abc import Mapping
from datetime import datetime

from django.db import transaction
from django.db.models import QuerySet
from django.utils.translation import gettext as _

from billing import moves
from marketplace import audit
from marketplace.access import Actor
from marketplace.contracts import claims, judging, reversing, sellers, settling, signed, timeline
from marketplace.contracts import terms as written
from marketplace.contracts.claims import said
from marketplace.errors import BadOrder, Conflict, Forbidden, IllegalState, NotFound
from marketplace.models import Claim, ClaimDispute, ClaimState, DisputeNote, Membership, Side

State = ClaimState
Open = ClaimDispute.State.OPEN
# What each side may contest: the customer what is to be paid or was, the seller what is not.
CONTESTED: Mapping[str, tuple[str, ...]] = {
    Side.BUYER: (State.VERIFIED, State.AUTO_ACCEPTED, State.SETTLED),
    Side.SELLER: (State.FAILED, State.REJECTED),
}
NOTES_MAX = 50


@transaction.atomic
def open(*, actor: Actor, claim: Claim, side: Side, reason: str, text: str, at: datetime) -> ClaimDispute:  # noqa: A001
    """Contest how a claim stands. Its money stays set aside until it is decided; others of the job go on.

    What was paid can be contested within the claw-back window. A claim is
    contested once: what was decided is final. Raises IllegalState where it is too early or too late.
    """
    text = said(text)
    if reason not in ClaimDispute.Reason.values:
        raise BadOrder("reason", _("Choose one of %(known)s.") % {"known": ", ".join(ClaimDispute.Reason.values)})
    claim = claims.locked(claim)
    if refusal := why_not(claim, side, at=at):
        raise IllegalState(refusal)
    made = judging.open_dispute(claim, side=side, by=actor.name, reason=reason, text=text, at=at)
    audit.record_of(claim, "claim.dispute", actor=actor, after={"dispute": made.public_id, "reason": reason})
    return made


@transaction.atomic
def answer(*, actor: Actor, dispute: ClaimDispute, side: Side, text: str, at: datetime) -> DisputeNote:
    """Say something in an open dispute; both sides and whoever decides read it. Sent twice it is said once."""
    text = said(text)
    found = _locked(dispute)
    if found.state != Open:
        raise IllegalState(_("This dispute is decided; nothing more is said in it."))
    latest = found.notes.order_by("pk").last()
    if latest is not None and (latest.side, latest.by_name, latest.text) == (side, actor.name, text):
        return latest
    if found.notes.count() >= NOTES_MAX:
        raise Conflict(_("Enough was said in this dispute; whoever decides has all of it."))
    return DisputeNote.objects.create(dispute=found, side=side, by_name=actor.name, text=text, at=at)


@transaction.atomic
def withdraw(*, actor: Actor, dispute: ClaimDispute, side: Side, at: datetime) -> ClaimDispute:
    """Contest no more, which gives the other side its way: a customer's claim is paid, a seller's is not."""
    claim = claims.locked(dispute.claim)
    found = _locked(dispute)
    if found.state == ClaimDispute.State.WITHDRAWN:
        return found
    if found.opened_by != side:
        raise Forbidden(_("Only the side that opened a dispute withdraws it."))
    due_bps = written.BP if side == Side.BUYER else 0
    _decide(claim, found, due_bps, by=actor.name, note=timeline.WITHDRAWN(), at=at, state=ClaimDispute.State.WITHDRAWN)
    audit.record_of(claim, "claim.dispute_withdraw", actor=actor, after={"dispute": found.public_id})
    return found


@transaction.atomic
def resolve(*, actor: Actor, dispute: ClaimDispute, due_bps: int, note: str, at: datetime) -> ClaimDispute:
    """Decide for the platform what part of a claim is to be paid, in basis points of its price; once, with a note.

    Whoever belongs to one of the two sides or has a share does not decide, and
    what the operator itself sells it may only decide for its customer.
    """
    note = said(note)
    if not 0 <= due_bps <= written.BP:
        raise BadOrder("due_bps", _("Use a whole number from 0 to 10,000."))
    claim = claims.locked(dispute.claim)
    found = _locked(dispute)
    if written.of(claim.version.terms)["disputes"]["decided_by"] != "operator":
        raise Forbidden(_("By the terms a third party decides, not the operator."))
    _check_apart(actor, claim)
    if due_bps and sellers.is_operators(claim.contract.seller):
        raise Forbidden(_("The operator sells this, so it may only decide for the customer: nothing is paid."))
    _decide(claim, found, due_bps, by=actor.name, note=note, at=at)
    audit.record_of(
        claim, "claim.resolve", actor=actor, after={"dispute": found.public_id, "due_bps": due_bps, "note": note}
    )
    return found


@transaction.atomic
def decide_signed(*, dispute: ClaimDispute, due_bps: int, note: str, signature: str, at: datetime) -> ClaimDispute:
    """Take the decision of the arbiter whom the terms name, signed with the key that they name."""
    claim = claims.locked(dispute.claim)
    found = _locked(dispute)
    arbiter = written.of(claim.version.terms)["disputes"]["arbiter"]
    if arbiter is None:
        raise NotFound("dispute")
    from_arbiter = {
        "schema": "gpumarket.decision/1", "dispute": found.public_id, "claim": claim.public_id,
        "contract_version": claim.version.sha256, "due_bps": due_bps,
    }  # fmt: skip
    signed.check(from_arbiter, signature=signature, public_key=arbiter["public_key"])
    _decide(claim, found, due_bps, by=arbiter["name"], note=note[:2000], at=at)
    return found


def decide_due(*, at: datetime, limit: int) -> int:
    """Decide by the written rule what nobody decided in time; return how many."""
    due = ClaimDispute.objects.filter(state=Open, decide_by__lte=at).select_related("claim").order_by("decide_by", "pk")
    found = list(due[:limit])
    for one in found:
        _decide_by_rule(one, at=at)
    return len(found)


def decide_due_of(*, claim: Claim, at: datetime) -> None:
    """Decide the dispute of one claim by the written rule, if nobody decided it in time."""
    for one in claim.disputes.filter(state=Open, decide_by__lte=at):
        _decide_by_rule(one, at=at)


def open_ones() -> QuerySet[ClaimDispute]:
    """Return what waits for a decision, the most urgent first."""
    found = ClaimDispute.objects.filter(state=Open)
    return found.select_related("claim__organization", "claim__contract__seller", "claim__version").order_by(
        "decide_by", "pk"
    )


@transaction.atomic
def _decide_by_rule(dispute: ClaimDispute, *, at: datetime) -> None:
    claim = claims.locked(dispute.claim)
    found = _locked(dispute)
    if found.state != Open:
        return
    rule = written.of(claim.version.terms)["disputes"]["if_undecided"]
    due_bps = written.BP if rule == "pay" else 0
    _decide(claim, found, due_bps, by="gpumarket", note=timeline.NOBODY_DECIDED(), at=at)


def why_not(claim: Claim, side: Side, *, at: datetime) -> str:
    """Return why this side cannot dispute a claim now; empty where it can."""
    standing = claim.disputes.filter(state=Open).first()
    if standing is not None:
        return _("It is disputed already, by %(who)s.") % {"who": standing.get_opened_by_display()}
    too_late = claim.closed_at is not None and claim.state != State.SETTLED
    if claim.state not in CONTESTED[side] or too_late:
        return _("It cannot be disputed by this side now: the claim is %(state)s.") % {
            "state": claim.get_state_display()
        }
    if claim.state == State.SETTLED and (claim.clawback_until is None or at > claim.clawback_until):
        return _("The claw-back window is over.")
    if side == Side.SELLER and claims.may_retry(claim) and claims.is_tried_on(claim):
        return _("It is being tried again, so there is nothing to contest yet.")
    if claim.disputes.exclude(opened_by=Side.PLATFORM).exists():
        return _("It was disputed and decided already; that is final.")
    return ""


def _decide(
    claim: Claim, dispute: ClaimDispute, due_bps: int, *, by: str, note: str, at: datetime, state: str = ""
) -> None:
    """Write a decision, and move the claim by it. Both are locked."""
    decided = {written.BP: ClaimDispute.State.UPHELD, 0: ClaimDispute.State.REJECTED}
    state = state or decided.get(due_bps, ClaimDispute.State.PARTIAL)
    facts = {"due_bps": due_bps, "decided_by_name": by, "decided_at": at, "note": note}
    if not moves.move(dispute, state, ClaimDispute.MOVES, **facts):
        raise IllegalState(_("This dispute is decided already."))
    for name, value in {**facts, "state": state}.items():
        setattr(dispute, name, value)
    if claim.state == State.SETTLED:
        reversing.down_to(claim, due_bps=due_bps, reason=note, by=by, at=at)
    elif due_bps == 0:
        claim.move_to(State.REJECTED, at=at, message=note, by=by, due_bps=0, due_at=at)
        settling.close(claim, at=at)
    else:
        to = State.UPHELD if due_bps == written.BP else State.PARTIAL
        claim.move_to(to, at=at, message=note, by=by, due_bps=due_bps, due_at=at)


def _check_apart(actor: Actor, claim: Claim) -> None:
    """Nobody decides in their own cause: neither one of the two sides, nor who has a share of the price."""
    mine = Membership.objects.filter(user=actor.user)
    if mine.filter(organization__in=[claim.organization_id, claim.contract.seller_id]).exists():
        raise Forbidden(_("You belong to one of the two sides; somebody else has to decide."))
    if mine.filter(organization__public_id__in=written.of(claim.version.terms).beneficiaries).exists():
        raise Forbidden(_("You belong to a supplier that has a share of the price; somebody else has to decide."))


def _locked(dispute: ClaimDispute) -> ClaimDispute:
    return ClaimDispute.objects.select_for_update(no_key=True).get(pk=dispute.pk)
