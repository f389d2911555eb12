"""What customers owe, how much they may owe, and who decided that."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils.translation import gettext as _

from billing import credit_lines, dunning
from billing.errors import BadCredit
from billing.models import Account, CreditLine, DunningEvent, DunningStep, Invoice
from marketplace import audit, money, owing
from marketplace.access import Actor
from marketplace.errors import BadOrder, NotFound
from marketplace.models import Organization


def debtors() -> QuerySet[Account]:
    """Return the receivables of everybody who owes something or may, who owes most first."""
    found = Account.objects.filter(Q(balance_micros__lt=0) | Q(credit_limit_micros__gt=0), kind=Account.Kind.RECEIVABLE)
    return found.select_related("organization").order_by("balance_micros", "pk")


@dataclass(frozen=True)
class Aged:
    """What a customer owes, by how long it is past due. `not_due` is of invoices and of what banks took back."""

    account: Account
    uninvoiced: int
    not_due: int
    days_30: int
    days_60: int
    days_90: int
    older: int

    @property
    def sanction(self) -> str:
        """What unpaid invoices have brought upon the customer, in words; empty where nothing."""
        taken = self.account.sanction
        return str(DunningStep.Action(taken).label) if taken else ""


def aged(account: Account, *, at: datetime) -> Aged:
    """Return what an organization owes by its age."""
    assert account.organization is not None
    ages = [0] * 5
    owed: list[owing.Unpaid | owing.TakenBack] = [*owing.unpaid(account.organization)]
    for one in [*owed, *owing.taken_back(account.organization)]:
        late = (at - one.row.due_at).days
        place = 0 if not one.is_past_due(at) else next((n for n, most in ((1, 30), (2, 60), (3, 90)) if late < most), 4)
        ages[place] += one.left_micros
    return Aged(account, max(0, account.owed_micros - sum(ages)), *ages)


@dataclass(frozen=True)
class Timeline:
    """An invoice that is not paid whole, what was done about it, and what comes."""

    unpaid: owing.Unpaid
    taken: Sequence[DunningEvent]
    planned: Sequence[dunning.Planned]


def timelines(organization: Organization, *, at: datetime) -> list[Timeline]:
    """Return what was done and what comes about each unpaid invoice of an organization."""
    return [
        Timeline(one, list(events(one.invoice)), dunning.planned(one.row, at=at) if one.asked_micros else [])
        for one in owing.unpaid(organization)
    ]


def events(invoice: Invoice) -> QuerySet[DunningEvent]:
    """Return the steps that were taken about an invoice, in their order."""
    return DunningEvent.objects.filter(invoice=invoice).select_related("step", "payment").order_by("pk")


def steps() -> Sequence[DunningStep]:
    """Return the table of steps."""
    return dunning.steps()


def lines(organization: Organization | None = None) -> QuerySet[CreditLine]:
    """Return the limits of an organization, the newest first; or all that wait for a second person."""
    found = CreditLine.objects.select_related("organization", "proposed_by", "decided_by").order_by("-pk")
    return found.filter(organization=organization) if organization else found.filter(state=CreditLine.State.PROPOSED)


def line_for(line_id: str) -> CreditLine:
    """Return any limit, or raise NotFound."""
    found = CreditLine.objects.select_related("organization", "proposed_by").filter(public_id=line_id).first()
    if found is None:
        raise NotFound
    return found


@transaction.atomic
def propose_line(
    *,
    actor: Actor,
    organization: Organization,
    limit_micros: int,
    net_days: int,
    reason: str,
    key: UUID,
    at: datetime,
) -> CreditLine:
    """Propose how much a customer may owe; somebody else decides."""
    try:
        line = credit_lines.propose(
            organization=organization, limit_micros=limit_micros, net_days=net_days, reason=reason, by=actor.user.pk,
            key=key, at=at,
        )  # fmt: skip
    except BadCredit as error:
        raise BadOrder("limit_micros", _("A limit has whole minor units of the currency, such as cents.")) from error
    if not audit.is_recorded("credit_line.propose", line.public_id):
        _record(actor, line, "credit_line.propose")
    return line


@transaction.atomic
def approve_line(*, actor: Actor, line: CreditLine, at: datetime) -> None:
    """Let a limit hold; not by whoever proposed it."""
    credit_lines.approve(line=line, by=actor.user.pk, at=at)
    _record(actor, line, "credit_line.approve")


@transaction.atomic
def decline_line(*, actor: Actor, line: CreditLine, at: datetime) -> None:
    """Leave the limit as it is."""
    credit_lines.decline(line=line, by=actor.user.pk, at=at)
    _record(actor, line, "credit_line.decline")


def _record(actor: Actor, line: CreditLine, verb: str) -> None:
    audit.record(
        actor=actor,
        organization=line.organization,
        verb=verb,
        subject_id=line.public_id,
        after={
            "limit": money.decimal_string(line.limit_micros),
            "currency": line.organization.currency,
            "net_days": line.net_days,
            "reason": line.reason,
        },
    )
