"""Which promotional credit is used first, what of it is left, and its end.

An organization's promotional account has one balance. Its grants are told apart
when one is added or expires: between two such moments the same grants were
there, so what was used since is their sum less the balance, and it came from
what expires first. Credit that came back meanwhile (a correction, a refund)
returns to what expires last among those it may have come from; what had come
from credit that is over by then lasts `RETURNED_LIFE`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F, Q

from billing import accounts, ledger, notices, rating, runway
from billing.models import Account, CreditGrant, Notice
from billing.notices import News
from billing.public_ids import new_public_id

RETURNED_LIFE = timedelta(days=30)
TOLD_BEFORE = timedelta(days=7)
IN_ORDER = (F("expires_at").asc(nulls_last=True), "pk")


@dataclass(frozen=True, slots=True)
class Left:
    """A grant, and what is left of it now."""

    grant: CreditGrant
    left_micros: int


def left(*, organization: accounts.Organization) -> list[Left]:
    """Return the credit that is left, in the order of its use, as charged so far. One query."""
    found = CreditGrant.objects.filter(
        account__organization=organization.pk, account__currency=organization.currency, left_micros__gt=0
    )
    grants = list(found.select_related("account").order_by(*IN_ORDER))
    if not grants:
        return []
    used = max(0, sum(grant.left_micros for grant in grants) - grants[0].account.balance_micros)
    shares, _ = rating.take_in_turn(used, [grant.left_micros for grant in grants])
    rest = [Left(grant, grant.left_micros - share) for grant, share in zip(grants, shares, strict=True)]
    return [one for one in rest if one.left_micros]


def tell_apart(promo: Account, *, at: datetime) -> list[CreditGrant]:
    """Write down what is left of each grant of a locked account; return those with something, in the order of use."""
    grants = list(CreditGrant.objects.filter(account=promo, left_micros__gt=0).order_by(*IN_ORDER))
    used = sum(grant.left_micros for grant in grants) - promo.balance_micros
    if used < 0:
        _return(promo, -used, at=at)
        return list(CreditGrant.objects.filter(account=promo, left_micros__gt=0).order_by(*IN_ORDER))
    shares, missing = rating.take_in_turn(used, [grant.left_micros for grant in grants])
    assert not missing, "an account of credit is never overdrawn"
    for grant, share in zip(grants, shares, strict=True):
        if share:
            grant.left_micros -= share
            grant.save(update_fields=["left_micros"])
    return [grant for grant in grants if grant.left_micros]


def _return(promo: Account, micros: int, *, at: datetime) -> None:
    """Give returned credit to the grants that it may have come from, the last to expire first."""
    with_room = CreditGrant.objects.filter(
        Q(expires_at=None) | Q(expires_at__gt=at),
        account=promo,
        amount_micros__gt=F("left_micros") + F("expired_micros"),
    )
    rows: Sequence[CreditGrant] = list(with_room.order_by(F("expires_at").desc(nulls_first=True), "-pk"))
    room = [row.amount_micros - row.left_micros - row.expired_micros for row in rows]
    shares, rest = rating.take_in_turn(micros, room)
    for row, share in zip(rows, shares, strict=True):
        if share:
            row.left_micros += share
            row.save(update_fields=["left_micros"])
    if rest:
        CreditGrant.objects.create(
            account=promo, cause=f"returned:{new_public_id('cgr')}", reason="Credit that came back", amount_micros=rest,
            left_micros=rest, granted_at=at, expires_at=at + RETURNED_LIFE,
        )  # fmt: skip


def expire_due(*, at: datetime, limit: int = 200) -> int:
    """Take back credit whose time is over; return of how many organizations. Safe to repeat and to run twice at once.

    What is set aside for something that runs stays until that is over.
    """
    due = CreditGrant.objects.filter(left_micros__gt=0, expires_at__lte=at).order_by("expires_at", "pk")
    accounts_due = dict.fromkeys(due.values_list("account_id", flat=True)[:limit])
    promos = Account.objects.filter(pk__in=list(accounts_due)).select_related("organization").order_by("pk")
    return sum(_expire(promo, at=at) for promo in promos)


def tell_due(*, at: datetime, limit: int = 200) -> int:
    """Tell whose credit ends within a week, once for each grant; return how many were told. Safe to repeat."""
    due = CreditGrant.objects.filter(
        left_micros__gt=0, told_at=None, expires_at__gt=at, expires_at__lte=at + TOLD_BEFORE
    ).select_related("account__organization")
    return sum(_tell(grant, at=at) for grant in due.order_by("expires_at", "pk")[:limit])


@transaction.atomic
def _tell(grant: CreditGrant, *, at: datetime) -> bool:
    organization = grant.account.organization
    assert organization is not None
    assert grant.expires_at is not None
    now = {one.grant.pk: one.left_micros for one in left(organization=organization)}
    facts = {
        "left_micros": str(now.get(grant.pk, 0)), "currency": grant.account.currency, "reason": grant.reason,
        "until": grant.expires_at.isoformat(),
    }  # fmt: skip
    news = News(organization.pk, Notice.Kind.CREDIT_EXPIRES, f"credit-expires:{grant.public_id}", facts)
    # What was used up meanwhile is written down as used the next time that grants are told apart.
    CreditGrant.objects.filter(pk=grant.pk, told_at=None).update(told_at=at)
    return bool(now.get(grant.pk) and notices.tell([news], at=at))


@transaction.atomic
def _expire(promo: Account, *, at: datetime) -> bool:
    assert promo.organization is not None
    payer = accounts.lock(organization_id=promo.organization.pk, currency=promo.currency)
    free = max(0, payer.promo.free_micros)
    moved = False
    for grant in tell_apart(payer.promo, at=at):
        share = min(free, grant.left_micros)
        if grant.expires_at is None or grant.expires_at > at or not share:
            continue
        ledger.transfer(
            key=f"expire:{grant.public_id}:{grant.expired_micros}",
            source=payer.promo,
            target=accounts.platform(Account.Kind.PROMO_EXPENSE, promo.currency),
            amount_micros=share,
            reason="Promotional credit that expired",
            at=at,
        )
        grant.left_micros -= share
        grant.expired_micros += share
        grant.save(update_fields=["left_micros", "expired_micros"])
        free -= share
        moved = True
    if moved and promo.currency == promo.organization.currency:
        runway.refresh(organization=promo.organization, at=at)
    return moved
