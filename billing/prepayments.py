"""Money paid ahead: the platform owes something for it, so it is nobody's revenue until that was delivered.

It lies on the platform's `deferred` account, from which it is earned piece by
piece, or given back. Keys are the caller's, so that everything here may be
repeated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import connection, transaction

from billing import accounts, ledger, rating, receivables, runway
from billing.errors import HoldClosed, InsufficientFunds
from billing.models import Account, Hold
from billing.public_ids import new_public_id

# Everything that is set aside for one resource, taken at once. The accounts are locked before.
COLLECT = """
WITH posted AS (
    UPDATE billing_hold SET posted_micros = amount_micros, state = 'posted'
    WHERE id = ANY (%(holds)s::bigint[]) AND state = 'pending'
    RETURNING id, account_id, amount_micros
), moved AS (
    INSERT INTO billing_transfer
        (public_id, key, source_id, target_id, amount_micros, reason, hold_id, effective_at)
    SELECT
        wanted.public_id, wanted.key, account_id, %(target)s, amount_micros, %(reason)s, posted.id, %(at)s
    FROM unnest(%(holds)s::bigint[], %(public_ids)s::text[], %(keys)s::text[]) AS wanted (hold_id, public_id, key)
    JOIN posted ON posted.id = wanted.hold_id
)
UPDATE billing_account
SET balance_micros = balance_micros - posted.amount_micros, held_micros = held_micros - posted.amount_micros
FROM posted WHERE billing_account.id = posted.account_id
"""


@dataclass(frozen=True, slots=True)
class Paid:
    """How much came from promotional credit, and how much from cash."""

    promo_micros: int = 0
    cash_micros: int = 0

    @property
    def micros(self) -> int:
        return self.promo_micros + self.cash_micros


def collect(*, organization: accounts.Organization, resource_id: str, reason: str, at: datetime) -> Paid:
    """Take all that is set aside for a resource, or raise HoldClosed where that is nothing any more."""
    # Without a savepoint: the refusal is raised outside, so that the caller's transaction stays usable.
    with transaction.atomic(savepoint=False):
        payer = accounts.lock(organization_id=organization.pk, currency=organization.currency)
        by_account = {payer.promo.pk: "promo_micros", payer.cash.pk: "cash_micros"}
        holds = list(Hold.objects.filter(resource_id=resource_id, state=Hold.State.PENDING, account__in=by_account))
        assert all(hold.posted_micros == 0 for hold in holds), "what is paid ahead is taken whole"
        if holds:
            _take(holds, resource_id=resource_id, currency=organization.currency, reason=reason, at=at)
            runway.refresh_if_burning(organization=organization, at=at)
    if not holds:
        raise HoldClosed(key=resource_id, needed_micros=0, left_micros=0)
    return Paid(**{by_account[hold.account_id]: hold.amount_micros for hold in holds})


def _take(holds: Sequence[Hold], *, resource_id: str, currency: str, reason: str, at: datetime) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            COLLECT,
            {
                "holds": [hold.pk for hold in holds],
                "public_ids": [new_public_id("tra") for _ in holds],
                "keys": [f"prepay:{resource_id}:{hold.public_id}" for hold in holds],
                "target": accounts.platform(Account.Kind.DEFERRED, currency).pk,
                "reason": reason[:200],
                "at": at,
            },
        )


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a payment and where it goes. `key` is a word, unique among the parts of one payment."""

    key: str
    target: Account
    amount_micros: int


@transaction.atomic
def pay(
    *, organization: accounts.Organization, key: str, parts: Sequence[Part], reason: str, at: datetime
) -> Mapping[str, Paid]:
    """Pay at once, promotional credit first, then cash; return by its key what each part was paid from.

    Raises InsufficientFunds with nothing paid. The caller has locked every organization that is paid,
    and this one, in the order of their keys.
    """
    payer = accounts.lock(organization_id=organization.pk, currency=organization.currency)
    total = sum(part.amount_micros for part in parts)
    if total > payer.wallet.available_micros:
        raise InsufficientFunds(
            needed_micros=total, available_micros=payer.wallet.available_micros, currency=organization.currency
        )
    free = [payer.promo.free_micros, payer.cash.free_micros]
    paid: dict[str, Paid] = {}
    for part in parts:
        shares, missing = rating.take_in_turn(part.amount_micros, free)
        assert not missing, "what is available is free on one of the two"
        for source, share in zip((payer.promo, payer.cash), shares, strict=True):
            if share:
                ledger.transfer(
                    key=f"{key}:{part.key}:{source.kind}",
                    source=source,
                    target=part.target,
                    amount_micros=share,
                    reason=reason[:200],
                    at=at,
                )
        free = [left - share for left, share in zip(free, shares, strict=True)]
        paid[part.key] = Paid(promo_micros=shares[0], cash_micros=shares[1])
    runway.refresh(organization=organization, at=at)
    return paid


@transaction.atomic
def earn(*, key: str, currency: str, amount_micros: int, reason: str, at: datetime) -> None:
    """Take what was delivered, or is not owed any more, as revenue. Once for its key."""
    if amount_micros:
        ledger.transfer(
            key=f"earn:{key}",
            source=accounts.platform(Account.Kind.DEFERRED, currency),
            target=accounts.platform(Account.Kind.REVENUE, currency),
            amount_micros=amount_micros,
            reason=reason[:200],
            at=at,
        )


@transaction.atomic
def pay_out(
    *, organization: accounts.Organization, key: str, source: Account, sent: Paid, reason: str, at: datetime
) -> None:
    """Pay a customer, part as credit and part as cash. What then is owed elsewhere is paid from it at once.

    Once for its key. Of several customers the caller locks the accounts before, in the order of their keys.
    """
    payee = accounts.lock(organization_id=organization.pk, currency=source.currency)
    for target, micros in ((payee.promo, sent.promo_micros), (payee.cash, sent.cash_micros)):
        if micros:
            ledger.transfer(
                key=f"{key}:{target.kind}",
                source=source,
                target=target,
                amount_micros=micros,
                reason=reason[:200],
                at=at,
            )
    receivables.settle(freed=payee.cash, cause=key, at=at)
    runway.refresh(organization=organization, at=at)


@transaction.atomic
def give_back(
    *,
    organization: accounts.Organization,
    key: str,
    back: Paid,
    deferred_micros: int,
    reason: str,
    at: datetime,
) -> None:
    """Give money back to credit and cash: `deferred_micros` of it from what was paid ahead, the rest at our expense.

    What then is owed elsewhere is paid from it at once. Once for its key.
    """
    payer = accounts.lock(organization_id=organization.pk, currency=organization.currency)
    assert 0 <= deferred_micros <= back.micros
    sources = [Account.Kind.DEFERRED, Account.Kind.SLA_EXPENSE]
    left = [deferred_micros, back.micros - deferred_micros]
    for target, wanted in ((payer.cash, back.cash_micros), (payer.promo, back.promo_micros)):
        shares, _ = rating.take_in_turn(wanted, left)
        for kind, share in zip(sources, shares, strict=True):
            if share:
                ledger.transfer(
                    key=f"unpay:{key}:{target.kind}:{kind}",
                    source=accounts.platform(kind, organization.currency),
                    target=target,
                    amount_micros=share,
                    reason=reason[:200],
                    at=at,
                )
        left = [one - share for one, share in zip(left, shares, strict=True)]
    receivables.settle(freed=payer.cash, cause=f"unpay:{key}", at=at)
    runway.refresh(organization=organization, at=at)
