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
    return _give(
        organization,
        amount_micros,
        key=f"credit:{key}",
        source=Account.Kind.PROMO_EXPENSE,
        reason=f"{reason} (granted by {by})",
        at=at,
    )


@transaction.atomic
def compensate(
    *, organization: accounts.Organization, amount_micros: int, key: str, reason: str, at: datetime
) -> Transfer:
    """Give an organization back, as credit and once per key, what it paid for and did not get."""
    return _give(
        organization,
        amount_micros,
        key=f"service-credit:{key}",
        source=Account.Kind.SLA_EXPENSE,
        reason=reason,
        at=at,
    )


def _give(
    organization: accounts.Organization,
    amount_micros: int,
    *,
    key: str,
    source: Account.Kind,
    reason: str,
    at: datetime,
) -> Transfer:
    """Move credit from the platform's `source`, and pay from it at once what is owed."""
    promo = accounts.lock(organization_id=organization.pk, currency=organization.currency).promo
    given = ledger.transfer(
        key=key,
        source=accounts.platform(source, promo.currency),
        target=promo,
        amount_micros=amount_micros,
        reason=reason,
        at=at,
    )
    receivables.settle(freed=promo, cause=given.key, at=at)
    runway.refresh(organization=organization, at=at)
    return given
