"""Promotional credit."""

from datetime import datetime

from django.db import transaction

from billing import accounts, ledger, receivables, runway
from billing.models import Account, Transfer


@transaction.atomic
def grant(
    *, organization: accounts.Organization, amount_micros: int, key: str, reason: str, by: str, at: datetime
) -> Transfer:
    """Give an organization promotional credit once per key; what it owes is paid from it at once."""
    promo = accounts.lock(organization_id=organization.pk, currency=organization.currency).promo
    granted = ledger.transfer(
        key=f"credit:{key}",
        source=accounts.platform(Account.Kind.PROMO_EXPENSE, promo.currency),
        target=promo,
        amount_micros=amount_micros,
        reason=f"{reason} (granted by {by})",
        at=at,
    )
    receivables.settle(freed=promo, cause=granted.key, at=at)
    runway.refresh(organization=organization, at=at)
    return granted


@transaction.atomic
def compensate(
    *, organization: accounts.Organization, amount_micros: int, key: str, reason: str, at: datetime
) -> Transfer:
    """Give an organization back, as credit and once per key, what it paid for and did not get."""
    promo = accounts.lock(organization_id=organization.pk, currency=organization.currency).promo
    given = ledger.transfer(
        key=f"service-credit:{key}",
        source=accounts.platform(Account.Kind.SLA_EXPENSE, promo.currency),
        target=promo,
        amount_micros=amount_micros,
        reason=reason,
        at=at,
    )
    receivables.settle(freed=promo, cause=given.key, at=at)
    runway.refresh(organization=organization, at=at)
    return given
