"""What the customer says of a result: accepted, or not; and what their silence says by the terms."""

from datetime import datetime

from django.db import transaction
from django.utils.translation import gettext as _

from marketplace import audit
from marketplace.access import Actor
from marketplace.contracts import claims, judging, timeline, verifying
from marketplace.contracts import terms as written
from marketplace.errors import IllegalState
from marketplace.models import TO_SETTLE, Claim, ClaimState, Verdict

State = ClaimState


@transaction.atomic
def accept(*, actor: Actor, claim: Claim, at: datetime) -> Claim:
    """Accept a result; it is paid at once. Accepting what is accepted changes nothing.

    Where the customer is the verifier this is the verdict, too; but what lacks
    its outputs, or whose units cannot be counted, fails and is not accepted.
    """
    claim = claims.locked(claim)
    if claim.state in (*TO_SETTLE, State.SETTLED):
        return claim
    if claim.state == State.CLAIMED and _customer_verifies(claim):
        if not verifying.holds(claim, at=at):
            return claim
        _judge(claim, actor, Verdict.Result.PASS, "", at=at)
    if claim.state != State.VERIFIED:
        raise IllegalState(_("It cannot be accepted: the claim is %(state)s.") % {"state": claim.get_state_display()})
    claim.move_to(State.ACCEPTED, at=at, by=actor.name, due_at=at)
    audit.record_of(claim, "claim.accept", actor=actor, after={"amount_micros": claim.amount_micros})
    return claim


@transaction.atomic
def reject(*, actor: Actor, claim: Claim, reason: str, at: datetime) -> Claim:
    """Refuse a result, and say why; it is not paid, unless its seller contests that within the dispute window."""
    reason = claims.said(reason)
    claim = claims.locked(claim)
    if claim.state == State.REJECTED:
        return claim
    if claim.state == State.CLAIMED and _customer_verifies(claim):
        if verifying.holds(claim, at=at):
            _judge(claim, actor, Verdict.Result.FAIL, reason, at=at)
    elif claim.state == State.VERIFIED:
        due_at = at + written.of(claim.version.terms).seconds("disputes", "window_s")
        claim.move_to(State.REJECTED, at=at, message=reason, by=actor.name, due_at=due_at)
    else:
        raise IllegalState(_("It cannot be rejected: the claim is %(state)s.") % {"state": claim.get_state_display()})
    audit.record_of(claim, "claim.reject", actor=actor, after={"reason": reason})
    return claim


def by_silence(claim: Claim, *, at: datetime) -> None:
    """Do what the terms say of a customer who said nothing within the acceptance window. Call it with it locked."""
    terms = written.of(claim.version.terms)
    dispute_until = at + terms.seconds("disputes", "window_s")
    if terms["acceptance"]["on_silence"] == "accept":
        claim.move_to(State.AUTO_ACCEPTED, at=at, message=timeline.SILENCE_ACCEPTS(), due_at=dispute_until)
    else:
        claim.move_to(State.REJECTED, at=at, message=timeline.SILENCE_REJECTS(), due_at=dispute_until)


def _customer_verifies(claim: Claim) -> bool:
    return written.of(claim.version.terms).verifier == "customer"


def _judge(claim: Claim, actor: Actor, result: str, detail: str, *, at: datetime) -> None:
    judging.record(
        claim, verifier=Verdict.Verifier.CUSTOMER, verifier_version=claim.organization.public_id, result=result,
        detail=detail, by=actor.name, at=at,
    )  # fmt: skip
