"""Deciding about what somebody else proposed: once, by another person, in the transaction of its effect."""

from collections.abc import Mapping
from datetime import datetime

from billing.errors import AlreadyDecided, SecondPersonNeeded
from billing.models import Proposal

State = Proposal.State
MOVES: Mapping[State, tuple[State, ...]] = {
    State.PROPOSED: (State.APPROVED, State.DECLINED),
    State.APPROVED: (),
    State.DECLINED: (),
}


def decide(row: Proposal, state: State, *, by: int, at: datetime) -> None:
    """Approve or decline a proposal; `by` is a person's id. Whoever proposed may only decline.

    Raises SecondPersonNeeded or AlreadyDecided with nothing changed. Of two at once the second waits, then is late.
    """
    if state == State.APPROVED and by == row.proposed_by_id:
        raise SecondPersonNeeded("somebody else has to decide about this")
    sources = [source for source, targets in MOVES.items() if state in targets]
    rows = type(row)._default_manager.filter(pk=row.pk, state__in=sources)
    if not rows.update(state=state, decided_by_id=by, decided_at=at):
        raise AlreadyDecided("somebody decided about this already")
    row.state, row.decided_by_id, row.decided_at = state, by, at
