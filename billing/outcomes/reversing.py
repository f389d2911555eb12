"""A result that is taken back inside the claw-back window: its price goes back to what paid it."""

from datetime import datetime

from django.db import transaction
from django.db.models import Sum

from billing import accounts, daily, ledger, rating, receivables, runway
from billing.errors import BadOutcome, KeyReused, ReversedAlready
from billing.invoicing import returning
from billing.models import Account, Outcome
from billing.outcomes import periods, settling
from billing.public_ids import new_public_id

COPIED = (
    "organization_id", "resource_id", "version", "subject", "name", "project", "currency", "unit", "quantity", "per",
    "micros_per_unit", "bps", "shares", "period",
)  # fmt: skip


def left_micros(outcome: Outcome) -> int:
    """Return what of an outcome's price was not given back."""
    return outcome.amount_micros - _returned(outcome)[0]


@transaction.atomic
def reverse(*, key: str, of: Outcome, reason: str, at: datetime, amount_micros: int | None = None) -> Outcome:
    """Give back a part of an outcome's price, or with no amount all that is left of it; once per key.

    Cash goes back before credit, and pays at once what is owed. A cap and a floor count it no more, suppliers give
    back their parts with the next sharing, and its tax returns: with a credit note where it was invoiced, else by a
    line of the invoice to come. Raises ReversedAlready where less is left.
    """
    if of.kind == Outcome.Kind.REVERSED or not reason.strip():
        raise BadOutcome("what was accepted is given back, for a reason")
    payer = accounts.lock(organization_id=of.organization_id, currency=of.currency)
    known = Outcome.objects.filter(key=key).first()
    if known is not None:
        if known.of_id != of.pk or amount_micros not in (None, known.amount_micros):
            raise KeyReused(key)
        return known
    returned, returned_promo = _returned(of)
    left = of.amount_micros - returned
    wanted = left if amount_micros is None else amount_micros
    if not 0 < wanted <= left:
        raise ReversedAlready(asked_micros=wanted, left_micros=left)
    cash_left = of.cash_micros - (returned - returned_promo)
    (cash, promo), _ = rating.take_in_turn(wanted, [cash_left, wanted])
    made = Outcome(
        public_id=new_public_id("out"), key=key, kind=Outcome.Kind.REVERSED, of=of, asked_micros=wanted,
        amount_micros=wanted, promo_micros=promo, reason=reason[:200], at=at,
        **{name: getattr(of, name) for name in COPIED},
    )  # fmt: skip
    made.save(force_insert=True)
    settling.note([made])
    periods.uncount(made)
    daily.touch(since=at, through=at)
    for target, micros in ((payer.cash, cash), (payer.promo, promo)):
        if micros:
            ledger.transfer(
                key=f"outcome:{made.public_id}:{target.kind}",
                source=accounts.platform(Account.Kind.REVENUE, of.currency),
                target=target,
                amount_micros=micros,
                reason=f"Given back: {reason}"[:200],
                at=at,
            )
    cause = f"outcome:{made.public_id}"
    returning.recover(of=of, micros=cash, cause=cause, at=at)
    receivables.settle(freed=payer.cash, cause=cause, at=at)
    returning.name_what_was_paid(of=of, cause=cause, at=at)
    returning.credit(of=of, reason=reason, at=at)
    runway.refresh_if_burning(organization=of.organization, at=at)
    return made


def _returned(outcome: Outcome) -> tuple[int, int]:
    """What was given back of it, and how much of that was credit."""
    sums = outcome.reversals.aggregate(all=Sum("amount_micros", default=0), promo=Sum("promo_micros", default=0))
    return sums["all"], sums["promo"]
