"""Taking money for use."""

import logging
from collections import Counter
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F, Q, Sum

from billing import accounts, floating, holds, ledger, rating, receivables
from billing.models import Account, Charge, Hold, Transfer, UsageSpan

# What is not charged yet is known to the runway, so the period only decides how fresh balances look.
CHARGE_EVERY = timedelta(seconds=60)

log = logging.getLogger(__name__)


@transaction.atomic
def charge_span(*, span: UsageSpan, through: datetime) -> Charge | None:
    """Take what the span cost until `through` and was not taken yet; None where that is nothing.

    Repeated and concurrent calls charge once: the organization's accounts are
    locked before the span is read, and the keys are made of span and moment.
    """
    payer = accounts.lock(organization_id=span.organization_id, currency=span.price_version.currency)
    span = UsageSpan.objects.select_related("price_version").get(pk=span.pk)
    return charge_locked(span, payer=payer, through=through)


def charge_due(*, at: datetime, limit: int = 500) -> int:
    """Charge what has run for a while or has ended, longest waiting first; return how many charges were made.

    The limit bounds the ledger's growth too: with more spans than one sweep
    takes, each is charged a little less often.
    """
    waiting = Q(ended_at=None, charged_through__lte=at - CHARGE_EVERY) | Q(charged_through__lt=F("ended_at"))
    due = UsageSpan.objects.filter(waiting).select_related("price_version").order_by("charged_through")[:limit]
    charged = 0
    for span in due:
        try:
            charged += charge_span(span=span, through=at) is not None
        except Exception:  # one span that cannot be charged must not keep the others from it
            log.exception("span %s was not charged", span.public_id)
    return charged


def charge_locked(span: UsageSpan, *, payer: accounts.CustomerAccounts, through: datetime) -> Charge | None:
    """Charge and save a span that was read after its payer's accounts were locked."""
    through = rating.whole_millisecond(through)
    if span.ended_at is not None:
        through = min(through, span.ended_at)
    is_over = through == span.ended_at
    if through <= span.charged_through and not is_over:
        return None
    if span.price_version.is_floating:
        floating.keep_still(span.price_version)
    (whole_micros,) = floating.amounts_micros([(span, through)])
    due_micros = whole_micros - span.charged_micros
    span.charged_micros = whole_micros
    span.charged_through = through
    span.save(update_fields=["ended_at", "charged_micros", "charged_through"])
    if not due_micros:
        return None
    moment = f"{through:%Y%m%dT%H%M%S}.{through.microsecond // 1000:03}"
    charge = Charge.objects.create(
        key=f"charge:{span.public_id}:{moment}" if due_micros > 0 else f"refund:{span.public_id}",
        span=span,
        through=through,
        amount_micros=due_micros,
    )
    if due_micros > 0:
        _take(charge, payer)
    else:
        _give_back(charge, payer)
    return charge


def _take(charge: Charge, payer: accounts.CustomerAccounts) -> None:
    """Take the money: from the resource's own holds, then promotional credit, then cash; the rest is owed."""
    span = charge.span
    own = Hold.objects.filter(
        resource_id=span.resource_id, state=Hold.State.PENDING, account__in=[payer.promo, payer.cash]
    )
    own_holds = list(own.select_related("account").order_by("pk"))
    free = [payer.promo, payer.cash]
    available = [hold.left_micros for hold in own_holds] + [account.free_micros for account in free]
    shares, missing = rating.take_in_turn(charge.amount_micros, available)
    reason = f"Use of {span.resource_name}"[:200]
    revenue = accounts.platform(Account.Kind.REVENUE, payer.cash.currency)
    for hold, share in zip(own_holds, shares[: len(own_holds)], strict=True):
        if share:
            holds.post(
                key=f"{charge.key}:{hold.public_id}",
                hold=hold,
                target=revenue,
                amount_micros=share,
                reason=reason,
                at=charge.through,
            )
    for source, share in zip([*free, payer.receivable], [*shares[len(own_holds) :], missing], strict=True):
        if share:
            ledger.transfer(
                key=f"{charge.key}:{source.kind}",
                source=source,
                target=revenue,
                amount_micros=share,
                reason=reason,
                at=charge.through,
            )


def _give_back(charge: Charge, payer: accounts.CustomerAccounts) -> None:
    """Give money back to what paid for the span, in the opposite order: what it still owes, then cash, then credit.

    What was owed once counts for the account that has paid it since, and what
    neither cash nor credit paid returns as credit, so that nothing becomes cash
    which was not. The money then pays what is owed for other use.
    """
    span = charge.span
    taken = Transfer.objects.filter(key__startswith=f"charge:{span.public_id}:").values_list("source_id")
    paid_micros = Counter(dict(taken.annotate(total=Sum("amount_micros"))))
    if paid_micros.pop(payer.receivable.pk, 0):
        paid_micros.update(receivables.paid_since(span=span, receivable=payer.receivable))
    targets = (payer.receivable, payer.cash, payer.promo)
    shares, rest = rating.take_in_turn(-charge.amount_micros, [paid_micros[target.pk] for target in targets])
    shares[-1] += rest
    revenue = accounts.platform(Account.Kind.REVENUE, payer.cash.currency)
    for target, share in zip(targets, shares, strict=True):
        if share:
            ledger.transfer(
                key=f"{charge.key}:{target.kind}",
                source=revenue,
                target=target,
                amount_micros=share,
                reason=f"Correction for {span.resource_name}"[:200],
                at=charge.through,
            )
    receivables.settle(freed=payer.cash, cause=charge.key, at=charge.through)
