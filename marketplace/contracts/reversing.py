"""Taking a settled claim back within its claw-back window: the money returns, with its tax, by a credit."""

from datetime import datetime

from django.db import transaction
from django.utils.translation import gettext as _

from billing.models import Outcome
from billing.outcomes import reversing
from marketplace import audit
from marketplace.access import Actor
from marketplace.contracts import claims, timeline
from marketplace.contracts import terms as written
from marketplace.contracts.claims import said
from marketplace.contracts.settling import key_of
from marketplace.errors import Forbidden, IllegalState
from marketplace.models import Claim, ClaimState, Membership

State = ClaimState


def take_back(*, actor: Actor, claim: Claim, reason: str, at: datetime) -> Claim:
    """Give back what was paid for a claim as the operator. Whoever belongs to its customer does not do that."""
    if Membership.objects.filter(user=actor.user, organization=claim.organization_id).exists():
        raise Forbidden(_("You belong to one of the two sides; somebody else has to decide."))
    return reverse(actor=actor, claim=claim, reason=reason, at=at)


@transaction.atomic
def reverse(*, actor: Actor, claim: Claim, reason: str, at: datetime) -> Claim:
    """Give back all that was paid for a claim, as its seller or for the operator. Again it changes nothing."""
    reason = said(reason)
    claim = claims.locked(claim)
    if claim.state == State.REVERSED:
        return claim
    if claim.state != State.SETTLED:
        raise IllegalState(_("Nothing was paid for it yet: the claim is %(state)s.") % {
            "state": claim.get_state_display()
        })  # fmt: skip
    if claim.clawback_until is None or at > claim.clawback_until:
        raise IllegalState(_("The claw-back window is over."))
    claim.disputes.filter(state="open").update(
        state="rejected", due_bps=0, decided_at=at, decided_by_name=actor.name, note=reason
    )
    down_to(claim, due_bps=0, reason=reason, by=actor.name, at=at)
    audit.record_of(claim, "claim.reverse", actor=actor, after={"reason": reason, "micros": claim.reversed_micros})
    return claim


def down_to(claim: Claim, *, due_bps: int, reason: str, by: str, at: datetime) -> None:
    """Give back what was paid beyond a part of the price; nothing where no more was paid. It is locked."""
    terms = written.of(claim.version.terms)
    due = terms.amount_micros(units=claim.units, bps=claim.price_bps * due_bps // written.BP)
    back = claim.paid_micros - min(due, claim.paid_micros)
    if not back:
        if due_bps < written.BP and not claim.paid_micros:
            claim.note(timeline.NOTHING_PAID(), at=at, by=by)
        return
    paid = Outcome.objects.get(key=key_of(claim))
    reversing.reverse(key=f"reverse:{claim.public_id}", of=paid, amount_micros=back, reason=reason, at=at)
    claim.move_to(State.REVERSED, at=at, message=reason, by=by, reversed_micros=back)
