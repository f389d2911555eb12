"""What is done about invoices that nobody pays: a table of steps, each taken once, in its order, with its pauses.

A step is due so many days after the invoice was; where the one before it came
late, it is late by as much, so that nobody has less time between two of them
than the table says. Nothing is done while a charge of the invoice is under way,
of what is disputed, or of what was paid a moment ago. Taking a step moves rows
only: cards are charged and messages sent by sweeps of their own.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction

from billing import accounts, collecting, invoice_payments, ledger, notices, runway
from billing.accounts import CustomerAccounts
from billing.errors import BadAmount, NoCard, NoProcessor
from billing.models import Account, Collection, DunningEvent, DunningStep, Notice, Payment
from billing.notices import News
from billing.payments import disputes, paying

Action = DunningStep.Action
Outcome = DunningEvent.Outcome
LOOK_AGAIN = timedelta(minutes=15)
WHILE_UNDER_WAY = timedelta(minutes=1)
ORDER = tuple(Action)
TOLD: Mapping[Action, Notice.Kind] = {
    Action.RESTRICT: Notice.Kind.DUE_RESTRICTED,
    Action.STOP_SPOT: Notice.Kind.DUE_SPOT_STOPPED,
    Action.STOP_ON_DEMAND: Notice.Kind.DUE_STOPPED,
    Action.WRITE_OFF: Notice.Kind.DUE_WRITTEN_OFF,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """A step that is still to come for an invoice, and when."""

    step: DunningStep
    at: datetime


def run_due(*, at: datetime, limit: int = 200) -> int:
    """Look at the unpaid invoices that are due to be looked at; return how many. Each on its own."""
    due = Collection.objects.filter(look_at__lte=at).order_by("look_at", "pk").values_list("pk", flat=True)
    looked = 0
    for pk in list(due[:limit]):
        try:
            look(collection_id=pk, at=at)
            looked += 1
        except Exception:  # one invoice that fails must not keep the others from it
            log.exception("the collection %s was not looked at", pk)
    return looked


@transaction.atomic
def look(*, collection_id: int, at: datetime) -> None:
    """Bring an invoice to its state, and take the steps that are due. Whoever comes second finds them taken."""
    row = Collection.objects.select_related("invoice__organization").get(pk=collection_id)
    organization = row.invoice.organization
    payer = accounts.lock(organization_id=organization.pk, currency=organization.currency)
    unpaid = collecting.review_locked(payer, organization, at=at)
    if row.invoice_id not in unpaid:
        return
    row, ask_micros = unpaid[row.invoice_id]
    _tell_failures(row, at=at)
    again = _take_due(row, ask_micros, payer, at=at) if ask_micros else at + LOOK_AGAIN
    Collection.objects.filter(pk=row.pk, state__in=collecting.UNPAID).update(look_at=again)


def planned(row: Collection, *, at: datetime) -> list[Planned]:
    """Return the steps that are still to come, in their order, as they come if nothing is paid. Two queries."""
    taken = {event.step_id: event.at for event in DunningEvent.objects.filter(invoice=row.invoice_id)}
    return _plan(row, taken, steps(), at=at)


def steps() -> list[DunningStep]:
    """Return the table of steps, in the order in which they are taken."""
    found = DunningStep.objects.filter(is_active=True)
    return sorted(found, key=lambda step: (step.day_offset, ORDER.index(Action(step.action))))


def _plan(
    row: Collection, taken: Mapping[int, datetime], found: Sequence[DunningStep], *, at: datetime
) -> list[Planned]:
    plan: list[Planned] = []
    before: tuple[DunningStep, datetime] | None = None
    for step in found:
        when = taken.get(step.pk)
        if when is None:
            when = row.due_at + timedelta(days=step.day_offset)
            if before is not None:
                when = max(when, before[1] + timedelta(days=step.day_offset - before[0].day_offset))
            when = max(when, at)
            plan.append(Planned(step, when))
        before = (step, when)
    return plan


def _take_due(row: Collection, ask_micros: int, payer: CustomerAccounts, *, at: datetime) -> datetime:
    """Take the steps that are due; return when to look again."""
    while True:
        if under_way(row):
            return at + WHILE_UNDER_WAY
        plan = planned(row, at=at)
        if not plan or plan[0].at > at:
            return min([at + LOOK_AGAIN, *(one.at for one in plan[:1])])
        step = plan[0].step
        if step.action == Action.WRITE_OFF and collecting.is_disputed(row.invoice):
            return at + LOOK_AGAIN  # What is disputed is decided first: a credit would give money for what nobody paid.
        outcome, payment = TAKEN[Action(step.action)](row, step, ask_micros, payer, at)
        DunningEvent.objects.create(
            invoice=row.invoice, step=step, at=at, outcome=outcome, left_micros=ask_micros, payment=payment
        )
        log.info("dunning of %s: %s (%s)", row.invoice.number, step, outcome)
        if step.action in collecting.SANCTIONS:
            collecting.review_locked(payer, row.invoice.organization, at=at)
        if step.action == Action.WRITE_OFF:
            return at


def under_way(row: Collection) -> bool:
    """Return whether a charge of this invoice may still succeed without anybody doing anything."""
    asleep = (Payment.State.SUCCEEDED, Payment.State.FAILED, Payment.State.CANCELLED, Payment.State.NEEDS_ACTION)
    return collecting.charges(row).exclude(state__in=asleep).exists()


Taken = tuple[Outcome, Payment | None]


def _charge(row: Collection, step: DunningStep, ask_micros: int, payer: CustomerAccounts, at: datetime) -> Taken:
    if disputes.took_back(organization=row.invoice.organization):
        return Outcome.DISPUTED, None  # Its customer may still pay with it; nobody else does.
    try:
        payment = paying.charge(
            organization=row.invoice.organization,
            amount_micros=ask_micros,
            purpose=Payment.Purpose.INVOICE,
            key=f"dunning:{row.invoice.public_id}:{step.pk}",
            reference=row.invoice.public_id,
            at=at,
        )
    except NoCard:
        return Outcome.NO_CARD, None
    except NoProcessor:
        return Outcome.NO_PROCESSOR, None
    except BadAmount:
        return Outcome.BAD_AMOUNT, None
    return Outcome.ORDERED, payment


def _remind(row: Collection, step: DunningStep, ask_micros: int, payer: CustomerAccounts, at: datetime) -> Taken:
    kind = Notice.Kind.DUE_SOON if at < row.due_at else Notice.Kind.PAST_DUE
    _tell(row, step, kind, ask_micros, at=at)
    return Outcome.DONE, None


def _sanction(row: Collection, step: DunningStep, ask_micros: int, payer: CustomerAccounts, at: datetime) -> Taken:
    _tell(row, step, TOLD[Action(step.action)], ask_micros, at=at)
    return Outcome.DONE, None


def _write_off(row: Collection, step: DunningStep, ask_micros: int, payer: CustomerAccounts, at: datetime) -> Taken:
    """Take what is left off what is owed, at our expense; what runs stays stopped, what comes later is recovered."""
    invoice = row.invoice
    key = f"write-off:{invoice.public_id}"
    left = invoice_payments.left_micros(invoice, invoice.organization)
    ledger.transfer(
        key=key,
        source=accounts.platform(Account.Kind.BAD_DEBT, invoice.currency),
        target=payer.receivable,
        amount_micros=left,
        reason=f"Invoice {invoice.number} written off",
        at=at,
    )
    invoice_payments.name(invoice=invoice, transfer_key=key, amount_micros=left, at=at)
    runway.refresh(organization=invoice.organization, at=at)
    collecting.move(row, Collection.State.UNCOLLECTIBLE, at=at, written_off_micros=left)
    _tell(row, step, Notice.Kind.DUE_WRITTEN_OFF, left, at=at)
    return Outcome.DONE, None


TAKEN: Mapping[Action, Callable[[Collection, DunningStep, int, CustomerAccounts, datetime], Taken]] = {
    Action.CHARGE: _charge,
    Action.MAIL: _remind,
    Action.RESTRICT: _sanction,
    Action.STOP_SPOT: _sanction,
    Action.STOP_ON_DEMAND: _sanction,
    Action.WRITE_OFF: _write_off,
}


def _tell(row: Collection, step: DunningStep, kind: Notice.Kind, ask_micros: int, *, at: datetime) -> None:
    after = [one for one in planned(row, at=at) if one.step.pk != step.pk and one.step.action in TOLD]
    facts = _facts(row, ask_micros) | {
        "next": str(after[0].step.action) if after else "", "next_at": after[0].at.isoformat() if after else ""
    }  # fmt: skip
    notices.tell([News(row.organization_id, kind, f"dunning:{row.invoice.public_id}:{step.pk}", facts)], at=at)


def _tell_failures(row: Collection, *, at: datetime) -> None:
    """Tell of charges that failed, or that wait for the customer, each once."""
    kinds = {
        Payment.State.FAILED: Notice.Kind.CHARGE_FAILED,
        Payment.State.NEEDS_ACTION: Notice.Kind.CHARGE_NEEDS_YOU,
    }
    news = [
        News(
            row.organization_id,
            kinds[Payment.State(payment.state)],
            f"{payment.state}:{payment.public_id}",
            _facts(row, payment.amount_micros)
            | {"why": payment.failure_text, "failure_code": payment.failure_code, "payment": payment.public_id},
        )
        for payment in collecting.charges(row).filter(state__in=kinds)
    ]
    notices.tell(news, at=at)


def _facts(row: Collection, micros: int) -> dict[str, str]:
    return {
        "number": row.invoice.number,
        "invoice": row.invoice.public_id,
        "left_micros": str(micros),
        "currency": row.invoice.currency,
        "due_at": row.due_at.isoformat(),
    }
