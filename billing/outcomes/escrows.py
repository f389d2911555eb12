"""What is set aside for results before any of them, and what of it goes back."""

from datetime import datetime

from django.db import transaction
from django.db.models import F

from billing import accounts, holds
from billing.errors import BadOutcome, EscrowClosed, HoldClosed, KeyReused
from billing.models import Escrow, EscrowRelease

PURPOSE = "escrow"


@transaction.atomic
def escrow(
    *,
    organization: accounts.Organization,
    resource_id: str,
    amount_micros: int,
    reason: str,
    at: datetime,
    version: str = "",
) -> Escrow:
    """Set aside the most that a resource's results may cost, once for it. It stays until it is released.

    Raises InsufficientFunds (or PaymentsPastDue) with nothing set aside. `version` is the contract's.
    """
    if amount_micros < 0:
        raise BadOutcome("nothing negative can be set aside")
    accounts.lock(organization_id=organization.pk, currency=organization.currency)
    known = Escrow.objects.filter(resource_id=resource_id).first()
    if known is not None:
        if (known.organization_id, known.amount_micros, known.version) != (organization.pk, amount_micros, version):
            raise KeyReused(resource_id)
        return known
    holds.place(
        key=f"escrow:{resource_id}",
        organization=organization,
        amount_micros=amount_micros,
        purpose=PURPOSE,
        resource_id=resource_id,
        expires_at=None,
    )
    return Escrow.objects.create(
        organization_id=organization.pk,
        resource_id=resource_id,
        version=version,
        currency=organization.currency,
        amount_micros=amount_micros,
        reason=reason[:200],
        opened_at=at,
    )


@transaction.atomic
def release(*, resource_id: str, key: str, at: datetime, amount_micros: int | None = None) -> EscrowRelease:
    """Give back a part of what is set aside, or with no amount all that is left, which closes it. Once per key.

    Raises EscrowClosed where it was closed by another key, HoldClosed where less is left.
    """
    row = locked(resource_id)
    known = EscrowRelease.objects.filter(key=key).first()
    if known is not None:
        if known.escrow_id != row.pk or amount_micros not in (None, known.amount_micros):
            raise KeyReused(key)
        return known
    if row.state == Escrow.State.CLOSED:
        raise EscrowClosed(resource_id)
    micros = row.left_micros if amount_micros is None else amount_micros
    if not 0 <= micros <= row.left_micros:
        raise HoldClosed(key=resource_id, needed_micros=micros, left_micros=row.left_micros)
    holds.void_part(resource_id=resource_id, amount_micros=micros, cause=f"escrow:{key}", at=at)
    closing = {"state": Escrow.State.CLOSED, "closed_at": at} if amount_micros is None else {}
    Escrow.objects.filter(pk=row.pk).update(voided_micros=F("voided_micros") + micros, **closing)
    return EscrowRelease.objects.create(escrow=row, key=key, amount_micros=micros, at=at)


def locked(resource_id: str) -> Escrow:
    """Return a resource's escrow as it is behind the gate of its organization, which this locks."""
    rows = Escrow.objects.select_related("organization").filter(resource_id=resource_id)
    row = rows.first()
    if row is None:
        raise EscrowClosed(resource_id)
    accounts.lock(organization_id=row.organization_id, currency=row.currency)
    row.refresh_from_db(fields=["posted_micros", "voided_micros", "state"])
    return row
