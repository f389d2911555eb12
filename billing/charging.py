"""Taking money for use."""

import logging
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F, Q, Sum

from billing import accounts, holds, ledger, rating
from billing.models import Account, Charge, Hold, Transfer, UsageSpan

# What is not charged yet is known to the runway, so the period only decides how fresh balances look.
CHARGE_EVERY = timedelta(seconds=60)

log = logging.getLogger(__name__)


@transaction.atomic
def charge_span(*, span: UsageSpan, through: datetime) -> Charge | None:
    """Take what the span cost until `through` and was not taken yet; None where that is nothing.

    Repeated and concurrent calls charge once: the span's row is locked, and the
    keys are made of the span and the moment.
    """
    rows = UsageSpan.objects.select_for_update(no_key=True, of=("self",)).select_related("price_version")
    return charge_locked(rows.get(pk=span.pk), through=through)


def charge_due(*, at: datetime, limit: int = 500) -> int:
    """Charge what has run for a while or has ended, longest waiting first; return how many charges were made.

    The limit bounds the ledger's growth too: with more spans than one sweep
    takes, each is charged a little less often.
    """
    waiting = Q(ended_at=None, charged_through__lte=at - CHARGE_EVERY) | Q(charged_through__lt=F("ended_at"))
    due = UsageSpan.objects.filter(waiting).order_by("charged_through")[:limit]
    charged = 0
    for span in due:
        try:
            charged += charge_span(span=span, through=at) is not None
        except Exception:  # one span that cannot be charged must not keep the others from it
            log.exception("span %s was not charged", span.public_id)
    return charged


def charge_locked(span: UsageSpan, *, through: datetime) -> Charge | None:
    """Charge a span whose row the caller has locked, and save it."""
    through = rating.whole_millisecond(through)
    if span.ended_at is not None:
        through = min(through, span.ended_at)
    is_over = through == span.ended_at
    if through <= span.charged_through and not is_over:
        return None
    whole_micros = rating.amount_micros(
        micros_per_gpu_hour=span.price_version.micros_per_gpu_hour,
        gpu_milliseconds=rating.gpu_milliseconds(gpus=span.quantity, start=span.started_at, end=through),
    )
    due_micros = whole_micros - span.charged_micros
    span.charged_micros = whole_micros
    span.charged_through = through
    span.save(update_fields=["ended_at", "charged_micros", "charged_through"])
    if not due_micros:
        return None
    charge = Charge.objects.create(
        key=f"charge:{span.public_id}:{through:%Y%m%dT%H%M%S}.{through.microsecond // 1000:03}"
        if due_micros > 0
        else f"refund:{span.public_id}",
        span=span,
        through=through,
        amount_micros=due_micros,
    )
    if due_micros > 0:
        _take(charge)
    else:
        _give_back(charge)
    return charge


def _take(charge: Charge) -> None:
    """Take the money: from the resource's own holds, then promotional credit, then cash; the rest is owed."""
    span = charge.span
    currency = span.price_version.currency
    customer = accounts.customer(organization_id=span.organization_id, currency=currency, lock=True)
    revenue = accounts.platform(Account.Kind.REVENUE, currency)
    own = Hold.objects.filter(
        resource_id=span.resource_id, state=Hold.State.PENDING, account__in=[customer.promo, customer.cash]
    )
    own_holds = list(own.select_related("account").order_by("pk"))
    free = (customer.promo, customer.cash)
    shares, missing = rating.take_in_turn(
        charge.amount_micros, [hold.left_micros for hold in own_holds] + [account.free_micros for account in free]
    )
    reason = f"Use of {span.resource_name}"[:200]
    for hold, share in zip(own_holds, shares, strict=False):
        if share:
            holds.post(
                key=f"{charge.key}:{hold.public_id}",
                hold=hold,
                target=revenue,
                amount_micros=share,
                reason=reason,
                at=charge.through,
            )
    for source, share in zip((*free, customer.receivable), [*shares[len(own_holds) :], missing], strict=True):
        if share:
            ledger.transfer(
                key=f"{charge.key}:{source.kind}",
                source=source,
                target=revenue,
                amount_micros=share,
                reason=reason,
                at=charge.through,
            )


def _give_back(charge: Charge) -> None:
    """Give money back: what is owed shrinks first, then cash returns to cash and promotional credit to itself.

    What is left after that was owed once and paid since; it returns as cash.
    """
    span = charge.span
    currency = span.price_version.currency
    customer = accounts.customer(organization_id=span.organization_id, currency=currency, lock=True)
    revenue = accounts.platform(Account.Kind.REVENUE, currency)
    taken = Transfer.objects.filter(key__startswith=f"charge:{span.public_id}:").values_list("source_id")
    taken_micros = dict(taken.annotate(total=Sum("amount_micros")))
    targets = (customer.receivable, customer.promo, customer.cash)
    limits = [customer.owed_micros, taken_micros.get(customer.promo.pk, 0)]
    shares, rest = rating.take_in_turn(-charge.amount_micros, limits)
    for target, share in zip(targets, [*shares, rest], strict=True):
        if share:
            ledger.transfer(
                key=f"{charge.key}:{target.kind}",
                source=revenue,
                target=target,
                amount_micros=share,
                reason=f"Correction for {span.resource_name}"[:200],
                at=charge.through,
            )
