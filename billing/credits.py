"""Promotional credit."""

from collections.abc import Iterable
from datetime import datetime

from django.db import transaction

from billing import accounts, ledger, promotions, receivables, runway
from billing.errors import BadCredit, KeyReused
from billing.models import Account, CreditGrant, Transfer

COMPENSATED = "service-credit:"


@transaction.atomic
def grant(
    *,
    organization: accounts.Organization,
    amount_micros: int,
    key: str,
    reason: str,
    by: str,
    at: datetime,
    expires_at: datetime | None = None,
) -> Transfer:
    """Give an organization promotional credit once per key; what it owes is paid from it at once.

    What is left of it at `expires_at` is taken back then. Raises BadCredit for an end that lies before `at`.
    """
    if expires_at is not None and expires_at <= at:
        raise BadCredit("credit cannot expire before it is given")
    return _give(
        organization,
        amount_micros,
        key=f"credit:{key}",
        source=Account.Kind.PROMO_EXPENSE,
        reason=reason,
        by=by,
        at=at,
        expires_at=expires_at,
    )


@transaction.atomic
def compensate(
    *, organization: accounts.Organization, amount_micros: int, key: str, reason: str, at: datetime
) -> Transfer:
    """Give an organization back, as credit and once per key, what it paid for and did not get."""
    return _give(
        organization,
        amount_micros,
        key=f"{COMPENSATED}{key}",
        source=Account.Kind.SLA_EXPENSE,
        reason=reason,
        at=at,
    )


def compensated(keys: Iterable[str]) -> dict[str, int]:
    """Return what `compensate` gave by each of these keys, where it gave anything. One query."""
    named = {f"{COMPENSATED}{key}": key for key in keys}
    given = Transfer.objects.filter(key__in=list(named)).values_list("key", "amount_micros")
    return {named[key]: micros for key, micros in given}


def _give(
    organization: accounts.Organization,
    amount_micros: int,
    *,
    key: str,
    source: Account.Kind,
    reason: str,
    at: datetime,
    by: str = "",
    expires_at: datetime | None = None,
) -> Transfer:
    """Move credit from the platform's `source`, and pay from it at once what is owed."""
    promo = accounts.lock(organization_id=organization.pk, currency=organization.currency).promo
    before = CreditGrant.objects.filter(cause=key).first()
    if before is not None and before.expires_at != expires_at:
        raise KeyReused(key)
    if before is None:
        promotions.tell_apart(promo, at=at)
    given = ledger.transfer(
        key=key,
        source=accounts.platform(source, promo.currency),
        target=promo,
        amount_micros=amount_micros,
        reason=f"{reason} (granted by {by})" if by else reason,
        at=at,
    )
    if before is None:
        CreditGrant.objects.create(
            account=promo, cause=key, reason=reason, amount_micros=amount_micros, left_micros=amount_micros,
            granted_at=at, expires_at=expires_at,
        )  # fmt: skip
    receivables.settle(freed=promo, cause=given.key, at=at)
    runway.refresh(organization=organization, at=at)
    return given
