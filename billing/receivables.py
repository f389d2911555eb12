"""What organizations owe."""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime

from django.db import transaction
from django.db.models import Q

from billing import accounts, ledger, rating
from billing.models import Account, Charge, Transfer, UsageSpan


@transaction.atomic
def settle(*, freed: Account, cause: str, at: datetime) -> int:
    """Pay what is owed from promotional credit, then from cash, as far as they reach; return what was paid.

    Called by whatever made money free on an account; `cause` is the key of that event.
    """
    assert freed.organization_id is not None
    payer = accounts.lock(organization_id=freed.organization_id, currency=freed.currency)
    if not payer.owed_micros:
        return 0
    sources = (payer.promo, payer.cash)
    shares, missing = rating.take_in_turn(payer.owed_micros, [source.free_micros for source in sources])
    for source, share in zip(sources, shares, strict=True):
        if share:
            ledger.transfer(
                key=f"settle:{cause}:{source.kind}",
                source=source,
                target=payer.receivable,
                amount_micros=share,
                reason="Payment of what was owed",
                at=at,
            )
    return payer.owed_micros - missing


def paid_since(*, span: UsageSpan, receivable: Account) -> Counter[int]:
    """Return what each account has paid of what was once owed for a span, by the account's id.

    What is still owed stands under the receivable's own id. The oldest debt is
    paid first; a correction lifts the newest of its own span. The caller has
    locked the organization's accounts, so no debt or payment is on its way.
    """
    ours = f"charge:{span.public_id}:"
    paid_micros: Counter[int] = Counter()
    debts: dict[str, int] = {}  # what is left of each, the oldest first; those for use by their span and posting
    moved = list(Transfer.objects.filter(Q(source=receivable) | Q(target=receivable)).order_by("pk"))
    owed = _owed_for_use(move.key for move in moved if move.source_id == receivable.pk)
    for move in moved:
        if move.source_id == receivable.pk:
            debts.update(owed.get(move.key) or {move.key: move.amount_micros})
            continue
        # An adjustment's pays as everything else that comes in.
        is_correction = move.key.startswith("refund:spn_")
        lifted = f"charge:{move.key.split(':')[1]}:" if is_correction else ""
        keys = [debt for debt in debts if debt.startswith(lifted)][:: -1 if is_correction else 1]
        shares, _ = rating.take_in_turn(move.amount_micros, [debts[debt] for debt in keys])
        for debt, share in zip(keys, shares, strict=True):
            debts[debt] -= share
            if debt.startswith(ours) and not is_correction:
                paid_micros[move.source_id] += share
        debts = {debt: left for debt, left in debts.items() if left}
    paid_micros[receivable.pk] = sum(left for debt, left in debts.items() if debt.startswith(ours))
    return paid_micros


def _owed_for_use(keys: Iterable[str]) -> dict[str, dict[str, int]]:
    """Return what each charge added to these debts, by the key of the transfer that posted several together."""
    postings = [key.removesuffix(":receivable") for key in keys if key.startswith("charge:")]
    charges = Charge.objects.filter(posting__in=postings, owed_micros__gt=0).order_by("pk")
    found: dict[str, dict[str, int]] = {}
    for posting, public_id, micros in charges.values_list("posting", "span__public_id", "owed_micros"):
        found.setdefault(f"{posting}:receivable", {})[f"charge:{public_id}:{posting}"] = micros
    return found
