"""Suppliers' parts of results: what each accepted one brings them, and what they give back of a reversed one.

A sweep takes what is new and moves the sum of each supplier and version once, so that settling a result waits for no
supplier, and a statement has a line for each version instead of each result.
"""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet, Sum, Value
from django.db.models.functions import Coalesce, Concat

from billing.models import Account, Collection, Outcome, OutcomeShare, OutcomeSharing, Transfer
from billing.outcomes import totals
from billing.suppliers import accruing, adjusting, purses
from billing.suppliers.shares import largest_remainder

BATCH = 5_000
# A share of revenue and what is missing to a minimum are asked for when a period is over, whatever there is to pay it.
ON_CREDIT = (Outcome.Kind.SHARE, Outcome.Kind.TRUE_UP)
IS_ON_CREDIT = Q(kind__in=ON_CREDIT) | Q(of__kind__in=ON_CREDIT)
# Outcomes that have brought somebody money. What was only asked for has not, until it is shared out.
BROUGHT = ~IS_ON_CREDIT | Q(of=None, sharing__isnull=False) | Q(of__sharing__isnull=False)
Whose = tuple[int, str, str]  # supplier, version, currency


@transaction.atomic
def share_out(*, at: datetime, limit: int = BATCH) -> int:
    """Give suppliers their parts of outcomes that were not shared out yet, the oldest first; return how many.

    Of what was asked for on credit those wait that may never be paid: until the invoice of it is, and for ever where
    that is written off and not recovered. Before it is on one, until its payer owes nothing.

    The parts of what an outcome costs after all reversals are those of a largest remainder: a full reversal takes back
    exactly what was given.
    """
    accruing.wait_for_turn()
    new = Outcome.objects.filter(sharing=None)
    found = list(new.exclude(IS_ON_CREDIT, Exists(_unpaid())).select_related("of").order_by("pk")[:limit])
    if not found:
        return 0
    sharing = OutcomeSharing.objects.create(at=at)
    sums = _sums(found)
    purses.lock((supplier, currency) for supplier, _, currency in sums)
    for (supplier, version, currency), micros in sorted(sums.items()):
        moved = adjusting.share(
            supplier_id=supplier, cause=f"{sharing.public_id}:{version}", currency=currency, amount_micros=micros,
            reason=f"Results under {version}", at=at,
        )  # fmt: skip
        OutcomeShare.objects.create(
            sharing=sharing, supplier_id=supplier, version=version, currency=currency, amount_micros=micros,
            adjustment=moved,
        )  # fmt: skip
    Outcome.objects.filter(pk__in=[one.pk for one in found]).update(sharing=sharing)
    totals.add((*whose, micros, 0) for whose, micros in _brought(found).items())
    return len(found)


def _unpaid() -> QuerySet[Outcome]:
    """Return what an outcome, or what it gives back, was asked for on credit that nobody has paid."""
    owed = Transfer.objects.filter(key=Concat(Value("outcome:"), OuterRef("public_id"), Value(":receivable")))
    owing = Account.objects.filter(
        kind=Account.Kind.RECEIVABLE, balance_micros__lt=0, organization=OuterRef("organization")
    )
    collected = Q(item__invoiced__line__invoice__collection__state=Collection.State.PAID)
    asked = Q(item__invoiced__line__invoice__collection__isnull=False)
    one = Outcome.objects.filter(pk=Coalesce(OuterRef("of"), OuterRef("pk")), sharing=None)
    return one.filter(Exists(owed), asked & ~collected | Q(item__invoiced=None) & Exists(owing))


def parts(micros: int, shares: Iterable[tuple[int | None, int]]) -> Counter[int]:
    """Return each supplier's part of an amount in whole micros; what is missing to it is the platform's."""
    rows = list(shares)
    amounts = largest_remainder(micros, [bps for _, bps in rows])
    return Counter({owner: part for (owner, _), part in zip(rows, amounts, strict=True) if owner is not None})


def _sums(outcomes: Iterable[Outcome]) -> dict[Whose, int]:
    sums: Counter[Whose] = Counter()
    for one in outcomes:
        for supplier, micros in _change(one).items():
            sums[supplier, one.version, one.currency] += micros
    return dict(sums)


def _brought(outcomes: Iterable[Outcome]) -> Counter[tuple[str, str]]:
    """Return what outcomes brought by version and currency, less what they gave back."""
    brought: Counter[tuple[str, str]] = Counter()
    for one in outcomes:
        brought[one.version, one.currency] += one.amount_micros if one.of is None else -one.amount_micros
    return brought


def _change(one: Outcome) -> Counter[int]:
    """What an outcome changes of what its suppliers have."""
    if one.of is None:
        return parts(one.amount_micros, one.shares)
    earlier = one.of.reversals.filter(pk__lt=one.pk).aggregate(total=Sum("amount_micros", default=0))["total"]
    before = one.of.amount_micros - earlier
    change = parts(before - one.amount_micros, one.shares)
    change.subtract(parts(before, one.shares))
    return change
