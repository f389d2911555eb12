"""The table of dunning as the operator changes it: proposed by one person, approved by another."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.utils.translation import gettext as _

from billing import dunning_table
from billing.errors import BadDunningTable
from billing.models import DunningStep, DunningTable
from marketplace import audit
from marketplace.access import Actor
from marketplace.errors import BadOrder, NotFound


def table_for(table_id: str) -> DunningTable:
    """Return any proposed table, or raise NotFound."""
    found = dunning_table.listed().filter(public_id=table_id).first()
    if found is None:
        raise NotFound
    return found


def said(table: DunningTable) -> list[tuple[int, str]]:
    """Return the steps of a table with what is done in words."""
    return [(day, str(DunningStep.Action(action).label)) for day, action in table.steps]


@transaction.atomic
def propose(*, actor: Actor, reason: str, key: UUID, at: datetime, **days: Sequence[int]) -> DunningTable:
    """Propose a table: for each action the days on which it is done; somebody else decides."""
    steps = [(day, action) for action, on in days.items() for day in on]
    try:
        made = dunning_table.propose(steps=steps, reason=reason, by=actor.user.pk, key=key, at=at)
    except BadDunningTable as error:
        raise BadOrder(*_refused(error)) from error
    if not audit.is_recorded("dunning.propose", made.public_id):
        _record(actor, made, "dunning.propose")
    return made


@transaction.atomic
def approve(*, actor: Actor, table: DunningTable, at: datetime) -> None:
    """Let a table hold from now on; not by whoever proposed it."""
    dunning_table.approve(table=table, by=actor.user.pk, at=at)
    _record(actor, table, "dunning.approve")


@transaction.atomic
def decline(*, actor: Actor, table: DunningTable, at: datetime) -> None:
    """Leave the table as it is."""
    dunning_table.decline(table=table, by=actor.user.pk, at=at)
    _record(actor, table, "dunning.decline")


def _refused(error: BadDunningTable) -> tuple[str, str]:
    words = {
        "rows": _("A table has at least one step, and each only once."),
        "days": _("Days are from 30 before the due day to 365 after it."),
        "early": _("Nothing harms a customer until the invoice is past due: choose a day after 0."),
        "twice": _("What harms a customer is done once: write one day."),
        "order": _("What harms more comes later: nothing new, then spot, then everything, then written off."),
        "silent": _("Nobody is harmed without a word: remind on a day before the first of these."),
    }
    field = {"early": "restrict", "twice": "restrict", "order": "restrict", "silent": "mail"}
    return field.get(error.problem, "charge"), words[error.problem]


def _record(actor: Actor, table: DunningTable, verb: str) -> None:
    after = {"steps": table.steps, "reason": table.reason}
    audit.record(actor=actor, organization=None, verb=verb, subject_id=table.public_id, after=after)
