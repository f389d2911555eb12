"""Withdrawing a scheduled price list: one person proposes, another approves, both before its moment."""

from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet

from billing import decisions, price_lists, repeats
from billing.errors import AlreadyProposed
from billing.models import PriceList, PriceVersion, PriceWithdrawal

State = PriceWithdrawal.State


@transaction.atomic
def propose(*, price_list: PriceList, reason: str, by: int, key: UUID, at: datetime) -> PriceWithdrawal:
    """Propose that a scheduled list never comes into force, once per key; nothing changes yet.

    Raises PriceListMoved for a list that is not scheduled, PriceAlreadyHolds for one that is in force or in a minute
    will be, AlreadyProposed while another proposal for it waits.
    """
    row = PriceList.objects.select_for_update(no_key=True).get(pk=price_list.pk)
    first = repeats.find(PriceWithdrawal, key, price_list=row, reason=reason)
    if first is not None:
        return first
    moment = price_lists.moment_to_come(row, at=at)
    if PriceWithdrawal.objects.filter(price_list=row, state=State.PROPOSED).exists():
        raise AlreadyProposed("another withdrawal of it waits for a second person")
    return PriceWithdrawal.objects.create(
        price_list=row, effective_from=moment, reason=reason, proposed_by_id=by, proposed_at=at, key=key
    )


@transaction.atomic
def approve(*, withdrawal: PriceWithdrawal, by: int, name: str, at: datetime) -> list[PriceVersion]:
    """Withdraw the list; `by` is another person than the proposer. See `price_lists.call_off` for what is returned.

    Whoever is too late is refused, and the proposal stays to be declined.
    """
    decisions.decide(withdrawal, State.APPROVED, by=by, at=at)
    return price_lists.call_off(price_list=withdrawal.price_list, by=name, at=at)


@transaction.atomic
def decline(*, withdrawal: PriceWithdrawal, by: int, at: datetime) -> None:
    """Let the list come into force; whoever proposed may take the proposal back in this way too."""
    decisions.decide(withdrawal, State.DECLINED, by=by, at=at)


def listed() -> QuerySet[PriceWithdrawal]:
    """Return all proposals, the newest first."""
    return PriceWithdrawal.objects.select_related("price_list", "proposed_by", "decided_by").order_by("-pk")


def waiting() -> QuerySet[PriceWithdrawal]:
    """Return the proposals that wait for a second person."""
    return listed().filter(state=State.PROPOSED)
