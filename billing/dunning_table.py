"""Changing the table of dunning: one person proposes all its steps, another approves, within what harms nobody early.

A step that was taken stays taken. One that is new counts for invoices that are
open already, no sooner than the step before it allows (see `dunning`).
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet

from billing import decisions
from billing.dunning import ORDER
from billing.errors import AlreadyProposed, BadDunningTable, KeyReused
from billing.models import DunningStep, DunningTable

Action = DunningStep.Action
State = DunningTable.State
HARMLESS = (Action.CHARGE, Action.MAIL)
FIRST_DAY, LAST_DAY, STEPS_MAX = -30, 365, 40
# Nobody is harmed without a word, nor by the next step before the one before was felt for a while.
REMINDED_BEFORE_DAYS = 1
Row = tuple[int, str]


@transaction.atomic
def propose(*, steps: Sequence[Row], reason: str, by: int, key: UUID, at: datetime) -> DunningTable:
    """Propose a table, once per key: rows of a day from the due day and an action. Nothing changes yet.

    Raises BadDunningTable, which says what is wrong in one word, and AlreadyProposed while another one waits.
    """
    rows = sorted(steps, key=lambda row: (row[0], ORDER.index(Action(row[1]))))
    first = DunningTable.objects.filter(key=key).first()
    if first is not None:
        if ([tuple(row) for row in first.steps], first.reason) != (rows, reason):
            raise KeyReused(str(key))
        return first
    check(rows)
    if DunningTable.objects.select_for_update().filter(state=State.PROPOSED).exists():
        raise AlreadyProposed("another table waits for a second person")
    return DunningTable.objects.create(
        steps=[list(row) for row in rows], reason=reason, proposed_by_id=by, proposed_at=at, key=key
    )


@transaction.atomic
def approve(*, table: DunningTable, by: int, at: datetime) -> None:
    """Let a proposed table hold from now on; `by` is another person than the proposer."""
    decisions.decide(table, State.APPROVED, by=by, at=at)
    wanted = {(int(day), str(action)) for day, action in table.steps}
    known = {(step.day_offset, step.action): step for step in DunningStep.objects.select_for_update()}
    DunningStep.objects.bulk_create(
        DunningStep(day_offset=day, action=action) for day, action in sorted(wanted - known.keys())
    )
    for row, step in known.items():
        if step.is_active != (row in wanted):
            DunningStep.objects.filter(pk=step.pk).update(is_active=row in wanted)


@transaction.atomic
def decline(*, table: DunningTable, by: int, at: datetime) -> None:
    """Leave the table as it is; whoever proposed may take the proposal back in this way too."""
    decisions.decide(table, State.DECLINED, by=by, at=at)


def listed() -> QuerySet[DunningTable]:
    """Return all proposals, the newest first."""
    return DunningTable.objects.select_related("proposed_by", "decided_by").order_by("-pk")


def check(rows: Sequence[Row]) -> None:
    """Raise BadDunningTable for a table that would harm somebody too early, or in the wrong order."""
    if not rows or len(rows) > STEPS_MAX or len(set(rows)) != len(rows):
        raise BadDunningTable("rows", f"a table has 1 to {STEPS_MAX} steps, each once")
    if any(not FIRST_DAY <= day <= LAST_DAY for day, _ in rows):
        raise BadDunningTable("days", f"steps are from {FIRST_DAY} to {LAST_DAY} days of the due day")
    harm = sorted((ORDER.index(Action(action)), day) for day, action in rows if action not in HARMLESS)
    if any(day <= 0 for _, day in harm):
        raise BadDunningTable("early", "nothing harms anybody until an invoice is past due")
    if any(one[0] == other[0] for one, other in pairwise(harm)):
        raise BadDunningTable("twice", "what harms is done once")
    if any(one[1] >= other[1] for one, other in pairwise(harm)):
        raise BadDunningTable("order", "what harms more comes later")
    mails = [day for day, action in rows if action == Action.MAIL]
    if harm and min(mails, default=LAST_DAY) > harm[0][1] - REMINDED_BEFORE_DAYS:
        raise BadDunningTable("silent", "nobody is harmed without a reminder on an earlier day")
