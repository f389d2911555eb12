"""Deciding about what somebody else proposed: once, by another person, in the transaction of its effect."""

from collections.abc import Mapping
from datetime import datetime

from billing.errors import AlreadyDecided, SecondPersonNeeded
from billing.models import Commitment, CreditProposal, Proposal, Refund, SupplierAdjustment
from billing.moves import move

State = Proposal.State
MOVES: Mapping[str, tuple[str, ...]] = {
    State.PROPOSED: (State.APPROVED, State.DECLINED),
    State.APPROVED: (),
    State.DECLINED: (),
}
Proposed = Proposal | Commitment | CreditProposal | Refund | SupplierAdjustment


def decide(
    row: Proposed,
    state: str,
    *,
    by: int,
    at: datetime,
    moves: Mapping[str, tuple[str, ...]] = MOVES,
    **facts: object,
) -> None:
    """Decide about a proposal, and write `facts` with it; `by` is a person's id. Whoever proposed may only decline.

    `moves` is the map of a row that has more states. Raises SecondPersonNeeded or AlreadyDecided with nothing changed.
    Of two at once the second waits, then is late.
    """
    check_person(row, state, by=by)
    if not move(row, state, moves, decided_by_id=by, decided_at=at, **facts):
        raise AlreadyDecided("somebody decided about this already")
    for name, value in {"state": state, "decided_by_id": by, "decided_at": at, **facts}.items():
        setattr(row, name, value)


def check_person(row: Proposed, state: str, *, by: int) -> None:
    """Raise SecondPersonNeeded for whoever proposed, unless they decline."""
    if state != State.DECLINED and by == row.proposed_by_id:
        raise SecondPersonNeeded("somebody else has to decide about this")
