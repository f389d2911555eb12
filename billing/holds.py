"""Money set aside before it is spent."""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

from django.db import connection, transaction
from django.db.models import F

from billing import accounts, collecting, ledger, rating, receivables
from billing.errors import HoldClosed, InsufficientFunds, KeyReused
from billing.models import Account, Hold, Transfer
from billing.models.ledger import CUSTOMER_KINDS
from billing.prepared import Asking, Prepared, Steps, ask
from billing.public_ids import new_public_id
from billing.wire import Asked, Rows

GIVEN_BACK = (Hold.State.VOIDED, Hold.State.EXPIRED)
# Locks who pays, and sets aside in the order of paying what is free on each account: all of it or nothing. Nothing too
# where a key is taken, where unpaid invoices forbid it, or where the accounts are newer than this statement's look at
# the holds: a hold of these keys may be as well.
PLACE = f"""
WITH payer AS MATERIALIZED ({accounts.LOCKED}), worth AS (
    SELECT id, kind, sanction, held_micros, CASE kind WHEN 'receivable'
        THEN credit_limit_micros - greatest(0, -balance_micros) ELSE balance_micros END AS micros
    FROM payer
), stale AS MATERIALIZED (
    SELECT FROM payer JOIN billing_account there USING (id) WHERE there.xmin <> payer.version
), fits AS MATERIALIZED (
    SELECT sum(micros - held_micros) >= %(amount)s::bigint AND %(amount)s::bigint > 0 AND count(*) = 3
        AND bool_and(sanction = '') AND NOT EXISTS (SELECT FROM stale) AND NOT EXISTS (
            SELECT FROM billing_hold WHERE key IN (SELECT %(key)s::text || '/' || kind FROM worth)
        ) AS all
    FROM worth
), share AS (
    SELECT id, kind, least(free, greatest(0, %(amount)s::bigint - coalesce(sum(free) OVER (
        ORDER BY array_position(ARRAY['promo', 'cash', 'receivable'], kind::text)
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ), 0)))::bigint AS micros
    FROM (
        SELECT id, kind, greatest(0, CASE kind WHEN 'receivable' THEN greatest(0, micros) ELSE micros END - held_micros)
            AS free FROM worth
    ) each
), placed AS (
    INSERT INTO billing_hold
        (public_id, key, account_id, amount_micros, posted_micros, state, purpose, resource_id, expires_at)
    SELECT CASE kind WHEN 'promo' THEN %(promo_id)s::text WHEN 'cash' THEN %(cash_id)s::text ELSE %(owed_id)s::text END,
        %(key)s::text || '/' || kind, id, micros, 0, 'pending', %(purpose)s::text, %(resource_id)s::text,
        %(expires_at)s::timestamptz
    FROM share WHERE micros > 0 AND (SELECT fits.all FROM fits)
    RETURNING id, public_id, key, account_id, amount_micros
), kept AS (
    UPDATE billing_account SET held_micros = held_micros + placed.amount_micros
    FROM placed WHERE billing_account.id = placed.account_id
)
SELECT {", ".join(f"payer.{name}" for name in accounts.COLUMNS)}, EXISTS (SELECT FROM stale),
    placed.id, placed.public_id, placed.key, placed.amount_micros
FROM payer LEFT JOIN placed ON placed.account_id = payer.id ORDER BY payer.id
"""  # noqa: S608  nothing in it comes from outside


@Asking
def place(
    *,
    key: str,
    organization: accounts.Organization,
    amount_micros: int,
    purpose: str,
    resource_id: str,
    expires_at: datetime | None,
) -> Steps[list[Hold]]:
    """Set money aside for a resource: promotional credit, cash, what may be owed; one hold for each.

    Without `expires_at` until somebody gives it back, which is for an escrow alone.

    Raises `InsufficientFunds` and sets nothing aside if all together have less,
    or `PaymentsPastDue` where an invoice was left unpaid for too long.
    Repeating the call changes nothing; the same key for another amount or
    organization is `KeyReused`, and `HoldClosed` once what was set aside was
    given back. One statement, since every launch waits here.

    The transaction is the caller's: what else it does stands or falls with what is set aside.
    """
    assert connection.in_atomic_block, "two tries at setting money aside are one only in a transaction"
    asked: Asked = (
        PLACE,
        {
            "organization": organization.pk,
            "currency": organization.currency,
            "key": key,
            "amount": amount_micros,
            "promo_id": new_public_id("hld"),
            "cash_id": new_public_id("hld"),
            "owed_id": new_public_id("hld"),
            "purpose": purpose,
            "resource_id": resource_id,
            "expires_at": expires_at,
        },
    )
    rows = yield asked
    if len(rows) < len(CUSTOMER_KINDS):
        accounts.open_for(organization=organization)
        rows = yield asked
    if _is_stale(rows):
        rows = yield asked
    holds = _placed(rows, purpose, resource_id, expires_at) or _placed_before(key)
    if not holds and accounts.customer_of(rows).receivable.sanction:
        past_due = collecting.refusal(organization)
        if past_due is not None:
            raise past_due
        rows = yield asked
        holds = _placed(rows, purpose, resource_id, expires_at)
    if not holds and amount_micros > 0:
        raise _refusal(rows, amount_micros)
    _check_same(holds, key, organization, amount_micros)
    return holds


def _is_stale(rows: Rows) -> bool:
    return bool(rows[0][len(accounts.COLUMNS)])


def _placed(rows: Rows, purpose: str, resource_id: str, expires_at: datetime | None) -> list[Hold]:
    placed = []
    for *account, _, pk, public_id, key, micros in rows:
        if pk is not None:
            hold = Hold(
                pk=pk, public_id=public_id, key=key, account=Account.from_db(None, accounts.COLUMNS, account),
                amount_micros=micros, purpose=purpose, resource_id=resource_id, expires_at=expires_at,
            )  # fmt: skip
            hold._state.adding = False
            placed.append(hold)
    return placed


def _placed_before(key: str) -> list[Hold]:
    keys = [f"{key}/{kind}" for kind in CUSTOMER_KINDS]
    return list(Hold.objects.filter(key__in=keys).select_related("account"))


def _refusal(rows: Rows, amount_micros: int) -> InsufficientFunds:
    payer = accounts.customer_of(rows)
    return InsufficientFunds(
        needed_micros=amount_micros,
        available_micros=payer.wallet.available_micros,
        currency=payer.cash.currency,
        credit_limit_micros=payer.receivable.credit_limit_micros,
    )


def _check_same(holds: Sequence[Hold], key: str, organization: accounts.Organization, amount_micros: int) -> None:
    """Raise KeyReused where these were placed for another order, or HoldClosed where they were given back."""
    if sum(hold.amount_micros for hold in holds) != amount_micros or any(
        hold.account.organization_id != organization.pk for hold in holds
    ):
        raise KeyReused(key)
    if any(hold.state in GIVEN_BACK for hold in holds):
        raise HoldClosed(key=key, needed_micros=amount_micros, left_micros=sum(hold.left_micros for hold in holds))


@transaction.atomic
def post(*, key: str, hold: Hold, target: Account, amount_micros: int, reason: str, at: datetime) -> Transfer:
    """Take money out of a hold. Several posts may follow each other until nothing is left.

    Raises `HoldClosed` if less is left. Repeating the call with the same key
    returns the first transfer.
    """
    # Everybody who changes a hold has its account's lock, so what is read below cannot change.
    ledger.lock(hold.account, target)
    if not Transfer.objects.filter(key=key).exists():
        hold.refresh_from_db(fields=["state", "posted_micros"])
        if amount_micros > hold.left_micros:
            raise HoldClosed(key=hold.key, needed_micros=amount_micros, left_micros=hold.left_micros)
        hold.posted_micros += amount_micros
        if hold.posted_micros == hold.amount_micros:
            hold.state = Hold.State.POSTED
        hold.save(update_fields=["posted_micros", "state"])
        Account.objects.filter(pk=hold.account_id).update(held_micros=F("held_micros") - amount_micros)
    return ledger.transfer(
        key=key, source=hold.account, target=target, amount_micros=amount_micros, reason=reason, at=at, hold=hold
    )


def void_for(*, resource_id: str, at: datetime) -> int:
    """Give back what is left of all open holds of a resource; return how many there were."""
    return _close(partial(_PENDING_FOR, resource_id), Hold.State.VOIDED, at)


@transaction.atomic
def void_part(*, resource_id: str, amount_micros: int, cause: str, at: datetime) -> None:
    """Give back a part of what is set aside for a resource: what may be owed first, then cash, then credit.

    The caller has locked the organization's accounts and knows that so much is left; `cause` is a key of its own. A
    hold of which a part goes back holds that much less.
    """
    pending = Hold.objects.filter(resource_id=resource_id, state=Hold.State.PENDING).select_related("account")
    found = list(pending.order_by("-pk"))
    shares, missing = rating.take_in_turn(amount_micros, [hold.left_micros for hold in found])
    if missing:
        raise HoldClosed(key=resource_id, needed_micros=amount_micros, left_micros=amount_micros - missing)
    for hold, micros in zip(found, shares, strict=True):
        if micros == hold.left_micros:
            Hold.objects.filter(pk=hold.pk).update(state=Hold.State.VOIDED)
        elif micros:
            Hold.objects.filter(pk=hold.pk).update(amount_micros=F("amount_micros") - micros)
        Account.objects.filter(pk=hold.account_id).update(held_micros=F("held_micros") - micros)
    if amount_micros:
        receivables.settle(freed=found[0].account, cause=cause, at=at)


def expire(*, at: datetime, limit: int = 200) -> int:
    """Give back holds whose time is over, oldest first; return how many."""
    due = Hold.objects.filter(state=Hold.State.PENDING, expires_at__lte=at).order_by("expires_at", "pk")
    return sum(
        _close(partial(_PENDING, hold_id), Hold.State.EXPIRED, at)
        for hold_id in list(due.values_list("pk", flat=True)[:limit])
    )


_STILL = Hold.objects.filter(state=Hold.State.PENDING).select_related("account").order_by("pk")
_PENDING = Prepared(lambda pk: _STILL.filter(pk=pk), int)
_PENDING_FOR = Prepared(lambda resource_id: _STILL.filter(resource_id=resource_id), str)
END = "UPDATE billing_hold SET state = %(state)s WHERE id = %(hold)s::bigint"
FREE = "UPDATE billing_account SET held_micros = held_micros - %(micros)s::bigint WHERE id = %(account)s::bigint"


@transaction.atomic
def _close(pending: Callable[[], list[Hold]], state: Hold.State, at: datetime) -> int:
    """Close these pending holds, which belong to one organization."""
    some = next(iter(pending()), None)
    if some is None or some.account.organization_id is None:
        return 0
    accounts.lock(organization_id=some.account.organization_id, currency=some.account.currency)
    closed = pending()  # again, now that nobody else can change them
    for hold in closed:
        ask(END, {"hold": hold.pk, "state": state})
        ask(FREE, {"account": hold.account_id, "micros": hold.left_micros})
    if closed:
        receivables.settle(freed=closed[0].account, cause=closed[0].public_id, at=at)
    return len(closed)
