"""Money set aside before it is spent."""

from datetime import datetime

from django.db import transaction
from django.db.models import F, QuerySet

from billing import accounts, collecting, ledger, rating, receivables
from billing.errors import HoldClosed, InsufficientFunds, KeyReused
from billing.models import Account, Hold, Transfer
from billing.prepared import ask

GIVEN_BACK = (Hold.State.VOIDED, Hold.State.EXPIRED)
SET_ASIDE = """
WITH wanted (public_id, key, account_id, amount_micros) AS (
    SELECT * FROM unnest(%(public_ids)s::text[], %(keys)s::text[], %(account_ids)s::bigint[], %(amounts)s::bigint[])
), placed AS (
    INSERT INTO billing_hold
        (public_id, key, account_id, amount_micros, posted_micros, state, purpose, resource_id, expires_at)
    SELECT public_id, key, account_id, amount_micros, 0, 'pending', %(purpose)s::text, %(resource_id)s::text,
        %(expires_at)s::timestamptz
    FROM wanted
    WHERE NOT EXISTS (SELECT FROM billing_hold WHERE key = ANY (%(all_keys)s::text[]))
    RETURNING id, key, account_id, amount_micros
), kept AS (
    UPDATE billing_account SET held_micros = held_micros + placed.amount_micros
    FROM placed WHERE billing_account.id = placed.account_id
)
SELECT key, id FROM placed
"""


def place(
    *,
    key: str,
    organization: accounts.Organization,
    amount_micros: int,
    purpose: str,
    resource_id: str,
    expires_at: datetime | None,
) -> list[Hold]:
    """Set money aside for a resource: promotional credit, cash, what may be owed; one hold for each.

    Without `expires_at` until somebody gives it back, which is for an escrow alone.

    Raises `InsufficientFunds` and sets nothing aside if all together have less,
    or `PaymentsPastDue` where an invoice was left unpaid for too long.
    Repeating the call changes nothing; the same key for another amount or
    organization is `KeyReused`, and `HoldClosed` once what was set aside was
    given back. Two statements, since every launch waits here.
    """
    # Without a savepoint: refusals are raised outside, so that the caller's transaction stays usable.
    with transaction.atomic(savepoint=False):
        payer = accounts.lock(organization_id=organization.pk, currency=organization.currency)
        sources = payer.sources
        keys = [f"{key}/{source.kind}" for source in sources]
        available_micros = payer.wallet.available_micros
        holds: list[Hold] = []
        past_due = collecting.refusal(payer, organization) if payer.receivable.sanction else None
        if 0 < amount_micros <= available_micros and past_due is None:
            shares, _ = rating.take_in_turn(amount_micros, [source.free_micros for source in sources])
            wanted = [
                Hold(key=key, account=source, amount_micros=share, purpose=purpose, resource_id=resource_id)
                for key, source, share in zip(keys, sources, shares, strict=True)
                if share
            ]
            holds = _set_aside(wanted, keys=keys, expires_at=expires_at)
        if not holds:
            holds = list(Hold.objects.filter(key__in=keys).select_related("account"))
    if not holds and amount_micros > 0:
        if past_due is not None:
            raise past_due
        raise InsufficientFunds(
            needed_micros=amount_micros,
            available_micros=available_micros,
            currency=organization.currency,
            credit_limit_micros=payer.receivable.credit_limit_micros,
        )
    if sum(hold.amount_micros for hold in holds) != amount_micros or any(
        hold.account.organization_id != organization.pk for hold in holds
    ):
        raise KeyReused(key)
    if any(hold.state in GIVEN_BACK for hold in holds):
        raise HoldClosed(key=key, needed_micros=amount_micros, left_micros=sum(hold.left_micros for hold in holds))
    return holds


def _set_aside(holds: list[Hold], *, keys: list[str], expires_at: datetime | None) -> list[Hold]:
    """Write the holds and what their accounts keep, in one statement; nothing if one of the keys is taken."""
    placed = ask(
        SET_ASIDE,
        {
            "public_ids": [hold.public_id for hold in holds],
            "keys": [hold.key for hold in holds],
            "account_ids": [hold.account_id for hold in holds],
            "amounts": [hold.amount_micros for hold in holds],
            "purpose": holds[0].purpose,
            "resource_id": holds[0].resource_id,
            "expires_at": expires_at,
            "all_keys": keys,
        },
    )
    ids = {str(key): int(pk) for key, pk in placed}
    for hold in holds:
        hold.pk = ids.get(hold.key)
        hold.expires_at = expires_at
        hold._state.adding = False
    return [hold for hold in holds if hold.pk]


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
    return _close(Hold.objects.filter(resource_id=resource_id), Hold.State.VOIDED, at)


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
        _close(Hold.objects.filter(pk=hold_id), Hold.State.EXPIRED, at)
        for hold_id in list(due.values_list("pk", flat=True)[:limit])
    )


@transaction.atomic
def _close(holds: QuerySet[Hold], state: Hold.State, at: datetime) -> int:
    """Close the pending ones among these holds, which belong to one organization."""
    pending = holds.filter(state=Hold.State.PENDING).select_related("account").order_by("pk")
    some = pending.first()
    if some is None or some.account.organization_id is None:
        return 0
    accounts.lock(organization_id=some.account.organization_id, currency=some.account.currency)
    closed = list(pending.all())  # again, now that nobody else can change them
    for hold in closed:
        Hold.objects.filter(pk=hold.pk).update(state=state)
        Account.objects.filter(pk=hold.account_id).update(held_micros=F("held_micros") - hold.left_micros)
    if closed:
        receivables.settle(freed=closed[0].account, cause=closed[0].public_id, at=at)
    return len(closed)
