"""Where nothing may run, because it is not paid for: one answer for everybody who stops."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db.models import Exists, OuterRef, QuerySet

from billing import collecting, watch
from billing.collecting import SANCTIONS, UNPAID, Action
from billing.models import Account, Collection, TakenDebt, Transfer

# Dunning looked at an unpaid invoice no longer than 15 minutes before it is to look again (`dunning.LOOK_AGAIN`). The
# rest is for money that counts from a moment before it was written down.
LOOKED_AT_WITHIN = timedelta(hours=1)


def stopped(*, at: datetime) -> list[int]:
    """Return the organizations of which nothing may run any more: no money and no grace left, or too long past due."""
    return list(dict.fromkeys([*used_up(at=at), *past_due(Action.STOP_ON_DEMAND, at=at)]))


def used_up(*, at: datetime) -> Sequence[int]:
    """Return the organizations with no money and no grace left: what they have paid ahead goes on, nothing else."""
    watch.look(at=at)
    return watch.used_up(at=at)


def past_due(action: Action, *, at: datetime, limit: int = 200) -> list[int]:
    """Return the organizations whose unpaid invoices brought this or more. Who paid a moment ago is not among them.

    Two queries, and a look at each of those to whom money came since dunning looked; so many at a time, and the others
    are left alone until their turn.
    """
    found = Account.objects.filter(
        kind=Account.Kind.RECEIVABLE, sanction__in=SANCTIONS[SANCTIONS.index(action) :], organization__isnull=False
    )
    may_have_paid = list(_may_have_paid(found).select_related("organization"))
    for account in may_have_paid[:limit]:
        assert account.organization is not None
        collecting.review(organization=account.organization, at=at)
    not_looked_at = [account.pk for account in may_have_paid[limit:]]
    return list(found.exclude(pk__in=not_looked_at).order_by("organization").values_list("organization_id", flat=True))


def spot_stopped(*, at: datetime) -> Sequence[int]:
    """Return the organizations of which nothing may run on spot any more because of unpaid invoices."""
    return past_due(Action.STOP_SPOT, at=at)


def _may_have_paid(found: QuerySet[Account]) -> QuerySet[Account]:
    """Return those into whose debt money came since somebody looked at an unpaid invoice, or at what a bank took."""
    came = Transfer.objects.filter(
        target=OuterRef(OuterRef("pk")), effective_at__gt=OuterRef("look_at") - LOOKED_AT_WITHIN
    )
    unpaid = Collection.objects.filter(Exists(came), organization=OuterRef("organization"), state__in=UNPAID)
    taken = TakenDebt.objects.filter(Exists(came), organization=OuterRef("organization"), look_at__isnull=False)
    return found.filter(Exists(unpaid) | Exists(taken)).order_by("pk")
