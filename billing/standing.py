"""Where nothing may run, because it is not paid for: one answer for everybody who stops."""

from collections.abc import Sequence
from datetime import datetime

from billing import collecting, watch
from billing.collecting import SANCTIONS, Action
from billing.models import Account


def stopped(*, at: datetime) -> list[int]:
    """Return the organizations of which nothing may run any more: no money and no grace left, or too long past due."""
    watch.look(at=at)
    return list(dict.fromkeys([*watch.used_up(at=at), *past_due(Action.STOP_ON_DEMAND, at=at)]))


def past_due(action: Action, *, at: datetime) -> list[int]:
    """Return the organizations whose unpaid invoices brought this or more. Who paid a moment ago is not among them."""
    found = Account.objects.filter(
        kind=Account.Kind.RECEIVABLE, sanction__in=SANCTIONS[SANCTIONS.index(action) :], organization__isnull=False
    )
    for account in found.select_related("organization"):
        assert account.organization is not None
        collecting.review(organization=account.organization, at=at)
    return list(found.order_by("organization").values_list("organization_id", flat=True))


def spot_stopped(*, at: datetime) -> Sequence[int]:
    """Return the organizations of which nothing may run on spot any more because of unpaid invoices."""
    return past_due(Action.STOP_SPOT, at=at)
