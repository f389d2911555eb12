"""Money paid ahead: the platform owes something for it, so it is nobody's revenue until that was delivered.

It lies on the platform's `deferred` account, from which it is earned piece by
piece, or given back. Keys are the caller's, so that everything here may be
repeated. What is paid, and what is given back of it, is written down for the
invoice of its month in the same transaction (`PrepaidItem`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import connection, transaction

from billing import accounts, collecting, daily, ledger, rating, receivables, runway
from billing.errors import HoldClosed, InsufficientFunds
from billing.models import Account, PrepaidItem
from billing.prepared import Asking, Steps
from billing.public_ids import new_public_id
from billing.wire import Asked

# Everything that is set aside for one resource, taken at once and whole. The accounts are locked first; a hold that was
# given back meanwhile is not pending any more in its newest row, which is the one that is changed.
COLLECT = """
WITH payer AS MATERIALIZED (
    SELECT id AS account_id, kind FROM billing_account
    WHERE organization_id = %(organization)s AND currency = %(currency)s::text
        AND kind IN ('promo', 'cash', 'receivable')
    ORDER BY id FOR NO KEY UPDATE
), target AS (
    SELECT id FROM billing_account
    WHERE organization_id IS NULL AND kind = 'deferred' AND currency = %(currency)s::text
), posted AS (
    UPDATE billing_hold hold SET posted_micros = amount_micros, state = 'posted' FROM payer, target
    WHERE resource_id = %(resource_id)s::text AND state = 'pending' AND posted_micros = 0
        AND hold.account_id = payer.account_id
    RETURNING hold.id, hold.public_id, hold.account_id, amount_micros, payer.kind, target.id AS target_id
), moved AS (
    INSERT INTO billing_transfer
        (public_id, key, source_id, target_id, amount_micros, reason, hold_id, effective_at)
    SELECT CASE kind WHEN 'promo' THEN %(promo_id)s::text WHEN 'cash' THEN %(cash_id)s::text ELSE %(owed_id)s::text END,
        %(key)s::text || ':' || public_id,
        account_id, target_id, amount_micros, %(reason)s::text, id, %(at)s::timestamptz
    FROM posted
), paid AS (
    UPDATE billing_account
    SET balance_micros = balance_micros - posted.amount_micros, held_micros = held_micros - posted.amount_micros
    FROM posted WHERE billing_account.id = posted.account_id
), noted AS (
    INSERT INTO billing_prepaiditem (key, kind, organization_id, currency, resource_id, name, project, starts_at,
        ends_at, hours, kept_micros, amount_micros, promo_micros, at)
    SELECT %(key)s::text, %(item_kind)s::text, %(organization)s::bigint, %(currency)s::text,
        %(block)s::text, %(name)s::text, %(project)s::text, %(starts_at)s::timestamptz, %(ends_at)s::timestamptz,
        %(hours)s::jsonb, 0, sum(amount_micros), coalesce(sum(amount_micros) FILTER (WHERE kind = 'promo'), 0),
        %(at)s::timestamptz
    FROM posted HAVING count(*) > 0
)
SELECT kind, amount_micros, EXISTS (
    SELECT FROM billing_runway WHERE organization_id = %(organization)s AND burn_micros_per_hour > 0
) FROM posted
"""


@dataclass(frozen=True, slots=True)
class Paid:
    """How much came from promotional credit, and how much from cash: what is owed is paid in cash later."""

    promo_micros: int = 0
    cash_micros: int = 0

    @property
    def micros(self) -> int:
        return self.promo_micros + self.cash_micros


@dataclass(frozen=True, slots=True)
class Block:
    """Which hours are paid for, or given back: what an invoice says of them, and how their price comes about.

    `hours` are rows of GPUs, hours, and micros for a GPU-hour. Of what they had cost `kept_micros` is not given back.
    """

    kind: PrepaidItem.Kind
    resource_id: str
    name: str
    project: str
    starts_at: datetime
    ends_at: datetime
    hours: Sequence[tuple[int, int, int]]
    kept_micros: int = 0


@Asking
def collect(
    *, organization: accounts.Organization, resource_id: str, block: Block, reason: str, at: datetime
) -> Steps[Paid]:
    """Take all that is set aside for a resource, or raise HoldClosed where that is nothing any more.

    In the caller's transaction, which stays usable after the refusal. What was paid is written down as `payment_key`.
    """
    assert connection.in_atomic_block
    asked: Asked = (
        COLLECT,
        {
            "organization": organization.pk,
            "currency": organization.currency,
            "resource_id": resource_id,
            "key": payment_key(resource_id),
            "promo_id": new_public_id("tra"),
            "cash_id": new_public_id("tra"),
            "owed_id": new_public_id("tra"),
            "reason": reason[:200],
            "at": at,
            "item_kind": block.kind,
            "block": block.resource_id,
            "name": block.name,
            "project": block.project,
            "starts_at": block.starts_at,
            "ends_at": block.ends_at,
            "hours": json.dumps(block.hours),
        },
    )
    rows = yield asked
    if not rows:
        accounts.platform(Account.Kind.DEFERRED, organization.currency)  # Opens it for the first payment.
        rows = yield asked
    if any(burns for _, _, burns in rows):
        runway.refresh(organization=organization, at=at)
    if not rows:
        raise HoldClosed(key=resource_id, needed_micros=0, left_micros=0)
    taken = {kind: micros for kind, micros, _ in rows}
    return Paid(promo_micros=taken.get("promo", 0), cash_micros=taken.get("cash", 0) + taken.get("receivable", 0))


def payment_key(resource_id: str) -> str:
    """Return the key under which `collect` writes down what was paid for a resource."""
    return f"prepay:{resource_id}"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a payment and where it goes. `key` is a word, unique among the parts of one payment."""

    key: str
    target: Account
    amount_micros: int


@transaction.atomic
def pay(
    *, organization: accounts.Organization, key: str, parts: Sequence[Part], block: Block, reason: str, at: datetime
) -> Mapping[str, Paid]:
    """Pay at once: promotional credit, cash, what may be owed; return by its key what each part was paid from.

    Raises InsufficientFunds with nothing paid. The caller has locked every organization that is paid,
    and this one, in the order of their keys.
    """
    payer = accounts.lock(organization_id=organization.pk, currency=organization.currency)
    if payer.receivable.sanction and (past_due := collecting.refusal(organization)):
        raise past_due
    total = sum(part.amount_micros for part in parts)
    if total > payer.wallet.available_micros:
        raise InsufficientFunds(
            needed_micros=total,
            available_micros=payer.wallet.available_micros,
            currency=organization.currency,
            credit_limit_micros=payer.receivable.credit_limit_micros,
        )
    free = [source.free_micros for source in payer.sources]
    paid: dict[str, Paid] = {}
    for part in parts:
        shares, missing = rating.take_in_turn(part.amount_micros, free)
        assert not missing, "what is available is free on one of the three"
        for source, share in zip(payer.sources, shares, strict=True):
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
        paid[part.key] = Paid(promo_micros=shares[0], cash_micros=shares[1] + shares[2])
    promo = sum(one.promo_micros for one in paid.values())
    _note(organization, key, block, amount_micros=total, promo_micros=promo, at=at)
    runway.refresh(organization=organization, at=at)
    return paid


@transaction.atomic
def earn(*, key: str, currency: str, amount_micros: int, reason: str, at: datetime) -> None:
    """Take what was delivered, or is not owed any more, as revenue. Once for its key."""
    if amount_micros:
        daily.touch(since=at, through=at)
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
    *,
    organization: accounts.Organization,
    key: str,
    source: Account,
    sent: Paid,
    reason: str,
    at: datetime,
    returned: tuple[Block, Paid] | None = None,
) -> None:
    """Pay a customer, part as credit and part as cash. What then is owed elsewhere is paid from it at once.

    `returned` is what of it gives back a price that was paid ahead, and for which hours. Once for its key. Of several
    customers the caller locks the accounts before, in the order of their keys.
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
    if returned is not None and returned[1].micros:
        block, back = returned
        _note(organization, key, block, amount_micros=-back.micros, promo_micros=-back.promo_micros, at=at)
    receivables.settle(freed=payee.cash, cause=key, at=at)
    runway.refresh(organization=organization, at=at)


@transaction.atomic
def give_back(
    *,
    organization: accounts.Organization,
    key: str,
    back: Paid,
    deferred_micros: int,
    block: Block,
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
    _note(organization, f"unpay:{key}", block, amount_micros=-back.micros, promo_micros=-back.promo_micros, at=at)
    receivables.settle(freed=payer.cash, cause=f"unpay:{key}", at=at)
    runway.refresh(organization=organization, at=at)


def _note(
    organization: accounts.Organization,
    key: str,
    block: Block,
    *,
    amount_micros: int,
    promo_micros: int,
    at: datetime,
) -> None:
    """Write down what an invoice will say of a payment, once for its key. Of nothing it says nothing."""
    if amount_micros:
        item = PrepaidItem(
            key=key,
            kind=block.kind,
            organization_id=organization.pk,
            currency=organization.currency,
            resource_id=block.resource_id,
            name=block.name,
            project=block.project,
            starts_at=block.starts_at,
            ends_at=block.ends_at,
            hours=list(block.hours),
            kept_micros=block.kept_micros,
            amount_micros=amount_micros,
            promo_micros=promo_micros,
            at=at,
        )
        PrepaidItem.objects.bulk_create([item], ignore_conflicts=True)
