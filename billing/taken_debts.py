"""What is done while nobody pays what a bank took back and no invoice asks for: what dunning forbids, on the same days.

Nothing is charged for it, as it was a bank that took it, and nobody gives it up: it stands until it is paid. Each step
is late by as much as the one before it, as of an invoice (`dunning`).
"""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta

from django.db import transaction

from billing import accounts, collecting, dunning
from billing.collecting import SANCTIONS, Action
from billing.models import Notice, TakenDebt
from billing.notices import News, tell

log = logging.getLogger(__name__)


def run_due(*, at: datetime, limit: int = 200) -> int:
    """Look at what is due to be looked at; return how many that were. Safe to repeat and to be killed."""
    due = TakenDebt.objects.filter(look_at__lte=at).order_by("look_at", "pk").values_list("pk", flat=True)
    looked = 0
    for pk in list(due[:limit]):
        try:
            look(debt_id=pk, at=at)
            looked += 1
        except Exception:  # one that fails must not keep the others from it
            log.exception("the debt %s of what a bank took was not looked at", pk)
    return looked


@transaction.atomic
def look(*, debt_id: int, at: datetime) -> None:
    """Take the steps that are due of what is still owed. Whoever comes second finds them taken."""
    debt = TakenDebt.objects.select_related("organization", "dispute__payment").get(pk=debt_id)
    payer = accounts.lock(organization_id=debt.organization_id, currency=debt.organization.currency)
    collecting.review_locked(payer, debt.organization, at=at)
    left = next((micros for row, micros in collecting.taken_back(debt.organization) if row.pk == debt.pk), 0)
    if not left:
        return
    debt.refresh_from_db(fields=["sanction", "sanction_at"])
    plan = planned(debt, at=at)
    while plan and plan[0].at <= at:
        _take(debt, plan[0], plan[1:], left, at=at)
        plan = planned(debt, at=at)
    again = min([at + dunning.LOOK_AGAIN, *(one.at for one in plan[:1])])
    TakenDebt.objects.filter(pk=debt.pk, look_at__isnull=False).update(look_at=again)
    collecting.review_locked(payer, debt.organization, at=at)


def planned(debt: TakenDebt, *, at: datetime) -> list[dunning.Planned]:
    """Return the steps that are still to come, in their order, as they come if nothing is paid. One query."""
    plan: list[dunning.Planned] = []
    before: tuple[int, datetime] | None = None
    for step in dunning.steps():
        action = Action(step.action)
        if action not in SANCTIONS:
            continue
        if debt.sanction and SANCTIONS.index(action) <= SANCTIONS.index(Action(debt.sanction)):
            assert debt.sanction_at is not None
            before = (step.day_offset, debt.sanction_at)
            continue
        when = debt.due_at + timedelta(days=step.day_offset)
        if before is not None:
            when = max(when, before[1] + timedelta(days=step.day_offset - before[0]))
        plan.append(dunning.Planned(step, max(when, at)))
        before = (step.day_offset, plan[-1].at)
    return plan


def _take(debt: TakenDebt, now: dunning.Planned, after: list[dunning.Planned], left: int, *, at: datetime) -> None:
    debt.sanction, debt.sanction_at = now.step.action, at
    debt.save(update_fields=["sanction", "sanction_at"])
    facts: Mapping[str, str] = {
        "payment": debt.dispute.payment.public_id,
        "left_micros": str(left),
        "currency": debt.dispute.payment.currency,
        "due_at": debt.due_at.isoformat(),
        "did": now.step.action,
        "next": after[0].step.action if after else "",
        "next_at": after[0].at.isoformat() if after else "",
    }
    key = f"taken-debt:{debt.dispute.public_id}:{now.step.action}"
    tell([News(debt.organization_id, Notice.Kind.TAKEN_BACK_DUE, key, facts)], at=at)
    log.warning("what was taken back by %s is unpaid: %s", debt.dispute, now.step)
