"""Paying afterwards: how much an approved organization may owe, and within how many days it pays."""

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

from django.db import transaction

from billing import accounts, decisions, repeats, runway
from billing.errors import AlreadyProposed, BadCredit
from billing.invoicing.rounding import minor_unit_micros
from billing.models import Account, CreditLine

# Within how many days an invoice is paid by whom nothing else was agreed with.
NET_DAYS = 7


@transaction.atomic
def propose(
    *,
    organization: accounts.Organization,
    limit_micros: int,
    net_days: int,
    reason: str,
    by: int,
    key: UUID,
    at: datetime,
) -> CreditLine:
    """Propose a limit, once per key; nothing changes yet. A limit of nothing ends the paying afterwards."""
    accounts.lock(organization_id=organization.pk, currency=organization.currency)
    first = repeats.find(
        CreditLine, key, organization_id=organization.pk, limit_micros=limit_micros, net_days=net_days
    )  # fmt: skip
    if first is not None:
        return first
    if limit_micros < 0 or limit_micros % minor_unit_micros(organization.currency):
        raise BadCredit("a limit is a whole amount of the currency and not negative")
    if not 0 <= net_days <= CreditLine.NET_DAYS_MAX:
        raise BadCredit(f"an invoice is paid within 0 to {CreditLine.NET_DAYS_MAX} days")
    if CreditLine.objects.filter(organization=organization.pk, state=CreditLine.State.PROPOSED).exists():
        raise AlreadyProposed("another limit waits for a second person")
    return CreditLine.objects.create(
        organization_id=organization.pk, limit_micros=limit_micros, net_days=net_days, reason=reason,
        proposed_by_id=by, proposed_at=at, key=key,
    )  # fmt: skip


@transaction.atomic
def approve(*, line: CreditLine, by: int, at: datetime) -> None:
    """Let a limit hold from now on; `by` is the id of another person than the proposer.

    What is owed already stays owed: a lower limit only lets nothing new start.
    """
    organization = line.organization
    payer = accounts.lock(organization_id=organization.pk, currency=organization.currency)
    decisions.decide(line, CreditLine.State.APPROVED, by=by, at=at)
    Account.objects.filter(pk=payer.receivable.pk).update(credit_limit_micros=line.limit_micros)
    runway.refresh(organization=organization, at=at)


@transaction.atomic
def decline(*, line: CreditLine, by: int, at: datetime) -> None:
    """Leave the limit as it is; whoever proposed may take it back in this way too."""
    accounts.lock(organization_id=line.organization_id, currency=line.organization.currency)
    decisions.decide(line, CreditLine.State.DECLINED, by=by, at=at)


def current(organization: accounts.Organization) -> CreditLine | None:
    """Return the limit that holds for an organization; None where it pays ahead."""
    approved = CreditLine.objects.filter(organization=organization.pk, state=CreditLine.State.APPROVED)
    line = approved.order_by("-decided_at", "-pk").first()
    return line if line is not None and line.limit_micros else None


def net_days(organization: accounts.Organization) -> int:
    """Return within how many days an organization pays its invoices."""
    return net_days_of([organization.pk])[organization.pk]


def net_days_of(organization_ids: Collection[int]) -> dict[int, int]:
    """Return within how many days each of these organizations pays its invoices. One query."""
    approved = CreditLine.objects.filter(organization__in=organization_ids, state=CreditLine.State.APPROVED)
    newest = approved.order_by("organization", "-decided_at", "-pk").distinct("organization")
    agreed = {line.organization_id: line.net_days for line in newest if line.limit_micros}
    return {key: agreed.get(key, NET_DAYS) for key in organization_ids}
