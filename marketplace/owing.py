"""What an organization owes, what happens next and when, and what it can do about it: for every door alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import Min, Sum
from django.utils.translation import gettext as _

from billing import accounts, collecting, disputes, dunning, invoice_payments, taken_debts
from billing.errors import (
    AlreadyDecided,
    BadAmount,
    CreditTooLarge,
    DisputedAlready,
    DisputedTooLate,
    NoCard,
    NoProcessor,
    RejectedAlready,
)
from billing.models import (
    Collection,
    DunningStep,
    Invoice,
    InvoiceDispute,
    InvoiceLine,
    Payment,
    Runway,
    RunwayWatch,
    TakenDebt,
)
from billing.payments import paying
from marketplace import audit, money, payments, volumes
from marketplace.access import Actor
from marketplace.errors import BadOrder, Conflict
from marketplace.models import Organization
from provisioning.models import Volume


@dataclass(frozen=True)
class Coming:
    """Something that happens if nobody does anything. `code` is for programs, `text` for people."""

    at: datetime
    code: str
    text: str
    number: str = ""


@dataclass(frozen=True)
class Unpaid:
    """An invoice of which something is left, and what of that is asked for: all that is not disputed."""

    row: Collection
    left_micros: int
    asked_micros: int

    @property
    def invoice(self) -> Invoice:
        return self.row.invoice

    def is_past_due(self, at: datetime) -> bool:
        return self.row.due_at <= at and self.asked_micros > 0


@dataclass(frozen=True)
class TakenBack:
    """What a bank took back of a payment and no invoice asks for; whatever comes in pays it, after what is older."""

    row: TakenDebt
    left_micros: int

    def is_past_due(self, at: datetime) -> bool:
        return self.row.due_at <= at


def taken_back(organization: Organization) -> list[TakenBack]:
    """Return what banks took back that no invoice asks for, the first to be due first."""
    return [TakenBack(row, micros) for row, micros in collecting.taken_back(organization)]


def unpaid(organization: Organization) -> list[Unpaid]:
    """Return the invoices that are not paid whole, the first to be due first."""
    rows = collecting.unpaid(organization)
    left = collecting.to_ask_for(organization, [row.invoice for row in rows]) if rows else {}
    return [Unpaid(row, *left[row.invoice_id]) for row in rows if left[row.invoice_id][0]]


def past_due_micros(found: Sequence[Unpaid], taken: Sequence[TakenBack], *, at: datetime) -> int:
    """Return how much of these is past due."""
    late = sum(one.asked_micros for one in found if one.is_past_due(at))
    return late + sum(one.left_micros for one in taken if one.is_past_due(at))


def written_off_micros(organization: Organization) -> int:
    """Return what was given up of invoices and is owed no more: paying it opens the account again. One query."""
    lost = Collection.objects.filter(organization=organization, state=Collection.State.UNCOLLECTIBLE)
    sums = lost.aggregate(written_off=Sum("written_off_micros"), recovered=Sum("recovered_micros"))
    return (sums["written_off"] or 0) - (sums["recovered"] or 0)


def coming(
    organization: Organization,
    found: Sequence[Unpaid],
    taken: Sequence[TakenBack],
    *,
    row: Runway | None,
    at: datetime,
) -> list[Coming]:
    """Return what happens next if nobody pays, the soonest first; `row` is the organization's runway."""
    rows = [*_of_runway(organization, row, at), *_of_volumes(organization, at)]
    for one in found:
        if one.asked_micros:
            rows += [_of_step(one.invoice, plan) for plan in dunning.planned(one.row, at=at)]
    for debt in taken:
        rows += [
            Coming(plan.at, str(plan.step.action), said_of_taken(plan.step))
            for plan in taken_debts.planned(debt.row, at=at)
        ]
    return sorted(rows, key=lambda row: row.at)


def _of_runway(organization: Organization, row: Runway | None, at: datetime) -> list[Coming]:
    if row is None or row.exhausts_at is None:
        return []
    if row.exhausts_at > at:
        return [Coming(row.exhausts_at, "used_up", _("Your money is used up; soon after that what runs is stopped."))]
    watch = RunwayWatch.objects.filter(organization=organization, grace_ends_at__isnull=False).first()
    ends = watch.grace_ends_at if watch and watch.grace_ends_at else at
    return [Coming(ends, "stop", _("What runs is stopped, not deleted."))]


def _of_volumes(organization: Organization, at: datetime) -> list[Coming]:
    kept = Volume.objects.filter(project__organization=organization).exclude(unpaid_since=None)
    since = kept.aggregate(since=Min("unpaid_since"))["since"]
    if since is None:
        return []
    return [Coming(since + volumes.UNPAID_GRACE, "delete_volumes", _("Volumes that nobody paid for are deleted."))]


def _of_step(invoice: Invoice, plan: dunning.Planned) -> Coming:
    return Coming(plan.at, str(plan.step.action), said_of(plan.step) % {"number": invoice.number}, invoice.number)


def said_of(step: DunningStep) -> str:
    """Return what a step does, in words that name the invoice."""
    return {
        DunningStep.Action.CHARGE: _("Your saved card is charged for %(number)s."),
        DunningStep.Action.MAIL: _("You are reminded of %(number)s."),
        DunningStep.Action.RESTRICT: _("Nothing new starts until %(number)s is paid."),
        DunningStep.Action.STOP_SPOT: _("What runs on spot is stopped because of %(number)s."),
        DunningStep.Action.STOP_ON_DEMAND: _("What runs is stopped because of %(number)s."),
        DunningStep.Action.WRITE_OFF: _("We give %(number)s up; your account stays closed."),
    }[DunningStep.Action(step.action)]


def said_of_taken(step: DunningStep) -> str:
    """Return what a step does because of what a bank took back."""
    return {
        DunningStep.Action.RESTRICT: _("Nothing new starts until what your bank took back is paid."),
        DunningStep.Action.STOP_SPOT: _("What runs on spot is stopped because of what your bank took back."),
        DunningStep.Action.STOP_ON_DEMAND: _("What runs is stopped because of what your bank took back."),
    }[DunningStep.Action(step.action)]


def state_of(invoice: Invoice, left_micros: int, *, at: datetime) -> str:
    """Return where an invoice stands as payments say now; its collection is read beside it, if it has one."""
    row = invoice_payments.collection_of(invoice)
    if row is not None and row.state == Collection.State.UNCOLLECTIBLE:
        return str(Collection.State.UNCOLLECTIBLE)
    if not left_micros or row is None:
        return str(Collection.State.PAID)
    is_late = row.due_at <= at and row.state != Collection.State.OPEN
    return str(Collection.State.PAST_DUE if is_late else Collection.State.OPEN)


@transaction.atomic
def pay(*, actor: Actor, invoice: Invoice, key: str, at: datetime) -> Payment:
    """Charge the saved card for what is left of an invoice now, once per key. Of two at once the second is refused.

    One that was given up can be paid after all.
    """
    organization = invoice.organization
    accounts.lock(organization_id=organization.pk, currency=organization.currency)
    key = f"invoice:{invoice.public_id}:{payments.short(key)}"
    ordered = Payment.objects.filter(key=key).first()
    if ordered is not None:
        return ordered
    left = invoice_payments.payable_micros(invoice.public_id, organization)
    row = Collection.objects.filter(invoice=invoice).first()
    if not left or row is None:
        raise Conflict(_("%(number)s is paid already.") % _named(invoice))
    if dunning.under_way(row):
        raise Conflict(_("A charge for %(number)s is under way; wait for what becomes of it.") % _named(invoice))
    try:
        payment = paying.charge(
            organization=organization, amount_micros=left, purpose=Payment.Purpose.INVOICE, key=key,
            reference=invoice.public_id, at=at,
        )  # fmt: skip
    except NoCard as error:
        raise Conflict(
            _("No card is saved. Save one, top up, or pay by bank transfer with the invoice's number.")
        ) from error
    except NoProcessor as error:
        raise Conflict(_("Cards cannot be charged here. Pay by bank transfer with the invoice's number.")) from error
    except BadAmount as error:
        raise Conflict(_("This amount cannot be charged to a card. Pay by bank transfer, or top up.")) from error
    after = {"invoice": invoice.number, "amount": money.decimal_string(left)}
    audit.record(actor=actor, organization=organization, verb="invoice.pay", subject_id=payment.public_id, after=after)
    return payment


def _named(invoice: Invoice) -> dict[str, str]:
    return {"number": invoice.number}


@transaction.atomic
def dispute(
    *,
    actor: Actor,
    invoice: Invoice,
    line: InvoiceLine | None,
    net_micros: int | None,
    reason: str,
    key: UUID,
    at: datetime,
) -> InvoiceDispute:
    """Say that an invoice, or one of its lines, is wrong; nobody asks for the amount until the operator has decided."""
    if not reason.strip():
        raise BadOrder("reason", _("Say what is wrong."))
    try:
        made = disputes.open_dispute(
            invoice=invoice,
            line=line,
            net_micros=net_micros,
            reason=reason.strip()[:500],
            by=actor.user.pk,
            key=key,
            at=at,
        )
    except CreditTooLarge as error:
        raise BadOrder(
            "amount",
            _("At most %(left)s before tax can be disputed, in whole units of its currency.")
            % {"left": money.shown(max(0, error.left_micros), error.currency)},
        ) from error
    except DisputedAlready as error:
        raise Conflict(_("You disputed it already; wait for the answer.")) from error
    except RejectedAlready as error:
        raise Conflict(_("This was disputed and decided already. If you know something new, write to us.")) from error
    except DisputedTooLate as error:
        raise Conflict(
            _("An invoice can be disputed within %(days)s days of its issue. After that, write to us.")
            % {"days": error.days}
        ) from error
    if not audit.is_recorded("invoice.dispute", made.public_id):
        after = {"invoice": invoice.number, "net": money.decimal_string(made.net_micros), "reason": made.reason}
        audit.record(
            actor=actor,
            organization=invoice.organization,
            verb="invoice.dispute",
            subject_id=made.public_id,
            after=after,
        )
    return made


@transaction.atomic
def withdraw(*, actor: Actor, made: InvoiceDispute, at: datetime) -> None:
    """Take a dispute back."""
    try:
        disputes.withdraw(dispute=made, by=actor.user.pk, at=at)
    except AlreadyDecided as error:
        raise Conflict(_("It was decided already.")) from error
    audit.record(
        actor=actor, organization=made.invoice.organization, verb="invoice.withdraw_dispute", subject_id=made.public_id
    )
