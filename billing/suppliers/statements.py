"""Statements: what a supplier earned in a month, written once and numbered without a gap.

An item is how an accrual changed since the statement before. So late use and
corrections need no rule of their own: they stand on the next statement, as
lines of the month in which it was used.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import F, Q, Sum

from billing.errors import NoSeller
from billing.invoicing import sellers
from billing.models import (
    Account,
    Accrual,
    BillingDetails,
    RateCard,
    StatementItem,
    StatementLine,
    StatementSeries,
    SupplierAdjustment,
    SupplierStatement,
)
from billing.months import month_of, next_month
from billing.suppliers import accruing, purses
from billing.suppliers.shares import largest_remainder

# After the end of a month its last charges and service credits are waited for.
GRACE = timedelta(hours=3)
PREFIX = "ST-"
BATCH = 1000
FIGURES = ("unit_milliseconds", "charge_micros", "payout_micros", "reserve_micros")
STATED = ("stated_milliseconds", "stated_charge_micros", "stated_payout_micros", "stated_reserve_micros")
UNSTATED = ~Q(**{figure: F(stated) for figure, stated in zip(FIGURES, STATED, strict=True)})
STATE_ALL = """
UPDATE billing_accrual SET stated_milliseconds = unit_milliseconds, stated_charge_micros = charge_micros,
       stated_payout_micros = payout_micros, stated_reserve_micros = reserve_micros
WHERE id = ANY (%s)
"""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Line:
    """A line as it grows: its figures, and the items that they are the sums of."""

    key: str
    node: str
    offer: str
    month: datetime
    figures: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    items: list[tuple[int, Sequence[int]]] = field(default_factory=list)


def issue_due(*, at: datetime) -> int:
    """Issue the statements of the month that is over, of every supplier who has something on one; return how many."""
    end = month_of(at - GRACE)
    issued = 0
    for supplier_id, currency in _owners():
        if SupplierStatement.objects.filter(supplier=supplier_id, currency=currency, period_end__gte=end).exists():
            continue
        try:
            issued += issue(supplier_id=supplier_id, currency=currency, period_end=end, at=at) is not None
        except NoSeller:
            log.warning("no statement was issued: nobody was named as the seller")
            return issued
        except Exception:  # one supplier must not keep the others from theirs
            log.exception("the statement of supplier %s was not issued", supplier_id)
    return issued


@transaction.atomic
def issue(*, supplier_id: int, currency: str, period_end: datetime, at: datetime) -> SupplierStatement | None:
    """Issue one statement of all that was not stated yet and was used before `period_end`; None where that is nothing.

    No close runs meanwhile and the supplier's accounts are locked: who comes at the same moment finds nothing left.
    """
    accruing.wait_for_turn()
    purse = purses.lock([(supplier_id, currency)])[supplier_id, currency]
    last = SupplierStatement.objects.filter(supplier=supplier_id, currency=currency).order_by("-pk").first()
    if last is not None and last.period_end >= period_end:
        return None
    mine = {"supplier": supplier_id, "currency": currency}
    accruals = Accrual.objects.filter(UNSTATED, month__lt=period_end, **mine)
    lines = _grouped(accruals.select_related("span").order_by("pk"))
    approved = SupplierAdjustment.objects.filter(state=SupplierAdjustment.State.APPROVED, line=None, **mine)
    adjustments = list(approved.order_by("pk"))
    paid = _paid_out(purse.payable) - _stated(mine)
    held = _held(purse, mine, period_end)
    # Payouts follow the last statement: what is held no more has to stand on one, though nothing ran since.
    if not (lines or adjustments or paid or (last is not None and last.held_micros != held)):
        return None
    sums = [sum(line.figures[n] for line in lines) for n in range(len(FIGURES))]
    adjusted = sum(one.amount_micros for one in adjustments)
    opening = last.closing_micros if last else 0
    made = _numbered(
        supplier_id=supplier_id,
        currency=currency,
        period_start=last.period_end if last else _first_month(lines, period_end),
        period_end=period_end,
        issued_at=at,
        opening_micros=opening,
        **dict(zip(FIGURES, sums, strict=True)),
        fee_micros=sums[1] - sums[2] - sums[3],
        adjustment_micros=adjusted,
        paid_micros=paid,
        closing_micros=opening + sums[2] + sums[3] + adjusted - paid,
        held_micros=held,
    )
    _write(made, lines, adjustments)
    log.info("statement %s of supplier %s: %s micros", made.number, supplier_id, made.closing_micros)
    return made


def _owners() -> list[tuple[int, str]]:
    """Everybody who was ever owed anything, by currency."""
    rows = Account.objects.filter(kind=Account.Kind.PAYABLE, organization__isnull=False).order_by("pk")
    return [(key, currency) for key, currency in rows.values_list("organization_id", "currency") if key is not None]


def _grouped(accruals: Iterable[Accrual]) -> list[_Line]:
    """Share each accrual's change out to its nodes, by their GPUs, and sum that up by node, offer and month."""
    lines: dict[str, _Line] = {}
    for one in accruals:
        change = [getattr(one, figure) - getattr(one, stated) for figure, stated in zip(FIGURES, STATED, strict=True)]
        gpus: dict[str, int] = (one.span.labels.get("nodes") if one.span else None) or {"": 1}
        nodes = sorted(gpus)
        shares = [largest_remainder(figure, [gpus[node] for node in nodes]) for figure in change]
        for node, *parts in zip(nodes, *shares, strict=True):
            kind = "" if one.span_id else "paid ahead"
            key = f"{one.offer}/{node or kind or '-'}/{one.month:%Y-%m}"
            line = lines.setdefault(key, _Line(key, node, one.offer, one.month))
            line.items.append((one.pk, parts))
            line.figures = [figure + part for figure, part in zip(line.figures, parts, strict=True)]
    return [lines[key] for key in sorted(lines)]


def _first_month(lines: Sequence[_Line], period_end: datetime) -> datetime:
    return min([line.month for line in lines], default=month_of(period_end - timedelta(days=1)))


def _paid_out(payable: Account) -> int:
    """What was ever sent to the supplier, less what was taken back."""
    sent = payable.outgoing.filter(key__startswith="payout:").aggregate(total=Sum("amount_micros"))["total"] or 0
    back = payable.incoming.filter(key__startswith="payout:").aggregate(total=Sum("amount_micros"))["total"] or 0
    return int(sent - back)


def _held(purse: purses.Purse, mine: dict[str, object], period_end: datetime) -> int:
    """What of the reserve is of what is stated: what the month that runs has earned since is on no statement yet."""
    since = Accrual.objects.filter(month__gte=period_end, **mine).aggregate(total=Sum("reserve_micros"))["total"] or 0
    return max(0, purse.reserve.balance_micros - max(0, since))


def _stated(mine: dict[str, object]) -> int:
    return SupplierStatement.objects.filter(**mine).aggregate(total=Sum("paid_micros"))["total"] or 0


def _numbered(*, supplier_id: int, **facts: Any) -> SupplierStatement:
    """Take the next number and write the statement: both or neither."""
    StatementSeries.objects.get_or_create(prefix=PREFIX)
    series = StatementSeries.objects.select_for_update(no_key=True).get(prefix=PREFIX)
    number = series.next_number
    series.next_number += 1
    series.save(update_fields=["next_number"])
    seller = sellers.seller()
    details = BillingDetails.objects.filter(organization=supplier_id).select_related("organization").first()
    name = Account.objects.filter(organization=supplier_id).values_list("organization__name", flat=True)[0]
    return SupplierStatement.objects.create(
        series=series,
        sequence=number,
        number=f"{series.prefix}{number:06}",
        language=details.language if details else BillingDetails.Language.ENGLISH,
        platform=sellers.snapshot(seller, name="", country=seller.country),
        party=sellers.snapshot(details, name=str(name), country=seller.country),
        supplier_id=supplier_id,
        **facts,
    )


def _write(made: SupplierStatement, lines: Sequence[_Line], adjustments: Sequence[SupplierAdjustment]) -> None:
    rows = [
        StatementLine(
            statement=made,
            key=line.key,
            node=line.node,
            offer=line.offer,
            month=line.month,
            **dict(zip(FIGURES, line.figures, strict=True)),
        )
        for line in lines
    ]
    rows += [
        StatementLine(
            statement=made,
            key=one.public_id,
            offer=one.offer,
            adjustment=one,
            text=one.reason,
            adjustment_micros=one.amount_micros,
        )
        for one in adjustments
    ]
    written = StatementLine.objects.bulk_create(rows, batch_size=BATCH)
    items = [
        StatementItem(line=row, accrual_id=accrual_id, **dict(zip(FIGURES, parts, strict=True)))
        for row, line in zip(written, lines, strict=False)
        for accrual_id, parts in line.items
    ]
    StatementItem.objects.bulk_create(items, batch_size=BATCH)
    with connection.cursor() as cursor:
        cursor.execute(STATE_ALL, [sorted({item.accrual_id for item in items})])


def proof(line: StatementLine) -> list[dict[str, Any]]:
    """Return how a line comes about: each span with what it measured, what was charged, and the card's terms."""
    found = line.items.select_related("accrual__span", "accrual__card", "accrual__delivery").order_by("pk")
    return [_proved(item) for item in found]


def _proved(item: StatementItem) -> dict[str, Any]:
    one = item.accrual
    card: RateCard = one.card
    return {
        "of": one.span.public_id if one.span else one.delivery.key if one.delivery else "",
        "gpus": one.span.quantity if one.span else None,
        "starts_at": one.starts_at,
        "through": one.through,
        "card": card.public_id,
        "share_bps": card.share_bps,
        "fixed_micros": card.fixed_micros if card.fixed_currency == one.currency else None,
        "reserve_bps": card.reserve_bps,
        **{figure: getattr(item, figure) for figure in FIGURES},
    }


def next_issue(at: datetime) -> datetime:
    """Return when the next statements come."""
    return next_month(at - GRACE) + GRACE
