"""What moves between the platform and a supplier beside the share of use: service credits, refunds, corrections."""

from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet

from billing import accounts, decisions, ledger
from billing.accounts import Organization
from billing.errors import BadAdjustment, KeyReused
from billing.models import Account, GuaranteeHour, SlaVerdict, SupplierAdjustment
from billing.months import next_month
from billing.rating import MILLISECOND
from billing.suppliers import cards, purses
from billing.suppliers.purses import Purse

Kind = SupplierAdjustment.Kind
State = SupplierAdjustment.State
BPS = 10_000


@transaction.atomic
def charge_back(*, verdict: SlaVerdict, at: datetime) -> SupplierAdjustment | None:
    """Let a supplier bear its part of a service credit, by the rate card of the month's end. Once per verdict.

    Nothing where no card was in force: then the platform bears all of it.
    """
    if verdict.supplier is None:
        return None
    month_end = next_month(verdict.month) - MILLISECOND
    card = cards.in_force(supplier=verdict.supplier, offer=verdict.offer, at=month_end)
    micros = verdict.credit_micros * card.sla_bps // BPS if card else 0
    known = SupplierAdjustment.objects.filter(verdict=verdict).first()
    if known is not None or not micros:
        return known
    made = SupplierAdjustment.objects.create(
        supplier=verdict.supplier,
        kind=Kind.SLA,
        cause=verdict.public_id,
        verdict=verdict,
        offer=verdict.offer,
        currency=verdict.currency,
        amount_micros=-micros,
        reason=f"Service credit {verdict.public_id} of {verdict.month:%Y-%m}",
        state=State.APPROVED,
        proposed_at=at,
        decided_at=at,
    )
    _move(made, at=at)
    return made


@transaction.atomic
def charge_hour(*, hour: GuaranteeHour, at: datetime) -> SupplierAdjustment | None:
    """Let a supplier bear its part of what an hour fell short, by the terms of its guarantee. Once per hour."""
    micros = hour.credit_micros * hour.supplier_bps // BPS
    if hour.supplier is None or not micros:
        return None
    made, is_new = SupplierAdjustment.objects.get_or_create(
        cause=hour.public_id,
        defaults={
            "supplier": hour.supplier,
            "kind": Kind.SLA,
            "hour": hour,
            "currency": hour.currency,
            "amount_micros": -micros,
            "reason": f"Guaranteed performance of {hour.resource_name}, {hour.hour:%Y-%m-%d %H:00} UTC"[:200],
            "state": State.APPROVED,
            "proposed_at": at,
            "decided_at": at,
        },
    )
    if is_new:
        _move(made, at=at)
    return made


@transaction.atomic
def share(
    *, supplier_id: int, cause: str, currency: str, amount_micros: int, reason: str, at: datetime
) -> SupplierAdjustment | None:
    """Give a supplier its part of results (below zero: take it back), once per cause; None of nothing."""
    if not amount_micros:
        return None
    made, is_new = SupplierAdjustment.objects.get_or_create(
        cause=f"{cause}:{supplier_id}",
        defaults={
            "supplier_id": supplier_id,
            "kind": Kind.OUTCOME,
            "currency": currency,
            "amount_micros": amount_micros,
            "reason": reason,
            "state": State.APPROVED,
            "proposed_at": at,
            "decided_at": at,
        },
    )
    if is_new:
        _move(made, at=at)
    return made


@transaction.atomic
def propose(
    *,
    supplier: Organization,
    kind: Kind,
    amount_micros: int,
    currency: str,
    reason: str,
    by: int,
    key: UUID,
    at: datetime,
    offer: str = "",
) -> SupplierAdjustment:
    """Propose to give a supplier something (above zero) or take something back (below), once per key."""
    if kind in (Kind.SLA, Kind.OUTCOME) or not amount_micros or not reason.strip():
        raise BadAdjustment("an adjustment has an amount and a reason; service credits and results come by themselves")
    wanted = {"supplier_id": supplier.pk, "kind": kind, "amount_micros": amount_micros, "currency": currency}
    wanted |= {"reason": reason, "offer": offer}
    made, is_new = SupplierAdjustment.objects.get_or_create(
        cause=str(key), defaults={**wanted, "proposed_by_id": by, "proposed_at": at}
    )
    if not is_new and any(getattr(made, name) != value for name, value in wanted.items()):
        raise KeyReused(str(key))
    return made


@transaction.atomic
def approve(*, adjustment: SupplierAdjustment, by: int, at: datetime) -> None:
    """Move what was proposed; not by whoever proposed it."""
    decisions.decide(adjustment, State.APPROVED, by=by, at=at)
    _move(adjustment, at=at)


@transaction.atomic
def decline(*, adjustment: SupplierAdjustment, by: int, at: datetime) -> None:
    """Leave things as they are; whoever proposed may take the proposal back in this way too."""
    decisions.decide(adjustment, State.DECLINED, by=by, at=at)


def of(supplier: Organization) -> QuerySet[SupplierAdjustment]:
    """Return a supplier's adjustments, the newest first."""
    found = SupplierAdjustment.objects.filter(supplier=supplier.pk)
    return found.select_related("supplier", "verdict", "proposed_by", "decided_by").order_by("-pk")


def _move(adjustment: SupplierAdjustment, *, at: datetime) -> None:
    """Move the money: what is taken comes from the reserve first, then of what is owed, which may fall below zero."""
    pair = (adjustment.supplier_id, adjustment.currency)
    purse = purses.lock([pair])[pair]
    kind = Account.Kind.SLA_EXPENSE if adjustment.kind == Kind.SLA else Account.Kind.REVENUE
    platform = accounts.platform(kind, adjustment.currency)
    for account, name, micros in _parts(adjustment, purse):
        if micros:
            ledger.transfer(
                key=f"adjust:{adjustment.public_id}:{name}",
                source=platform if micros > 0 else account,
                target=account if micros > 0 else platform,
                amount_micros=abs(micros),
                reason=adjustment.reason,
                at=at,
            )


def _parts(adjustment: SupplierAdjustment, purse: Purse) -> tuple[tuple[Account, str, int], ...]:
    from_reserve = min(max(0, -adjustment.amount_micros), purse.reserve.balance_micros)
    if from_reserve:
        purses.take_reserve(adjustment.supplier_id, adjustment.currency, from_reserve)
    return (
        (purse.reserve, "reserve", -from_reserve),
        (purse.payable, "payable", adjustment.amount_micros + from_reserve),
    )
