"""The least that a period costs: what outcomes are short of it is charged at its end."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from django.db import transaction

from billing import accounts
from billing.errors import KeyReused
from billing.models import Outcome
from billing.outcomes import periods, settling
from billing.outcomes.periods import Period
from billing.outcomes.words import Item, Share


@transaction.atomic
def true_up(
    *,
    organization: accounts.Organization,
    resource_id: str,
    key: str,
    floor_micros: int,
    period: Period,
    shares: Sequence[Share],
    item: Item,
    at: datetime,
) -> Outcome | None:
    """Charge what a period is short of its floor, once per key; None where it is not.

    `item` says what the invoice calls it; its quantity and price are of no account.
    """
    accounts.lock(organization_id=organization.pk, currency=organization.currency)
    known = Outcome.objects.filter(key=key).first()
    if known is not None:
        if (known.organization_id, known.version, known.period) != (organization.pk, item.version, period.starts_at):
            raise KeyReused(key)
        return known
    counted = periods.counted_micros(version=item.version, organization=organization, period=period)
    missing = floor_micros - counted
    if missing <= 0:
        return None
    asked = Item(item.name, item.project, 1, item.unit, missing, item.version, item.subject)
    return settling.charge(
        organization=organization, resource_id=resource_id, key=key, amount_micros=missing, shares=shares, item=asked,
        at=at, kind=Outcome.Kind.TRUE_UP, period=replace(period, cap_micros=None),
    )  # fmt: skip
