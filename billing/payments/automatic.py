"""Automatic top-up: below a threshold a saved card is charged, up to a ceiling per calendar month."""

import logging
from datetime import datetime

from django.db import transaction
from django.db.models import BigIntegerField, Exists, F, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce, Least

from billing import accounts, notices
from billing.accounts import Organization
from billing.errors import BadAmount, NoCard
from billing.invoicing.rounding import minor_unit_micros
from billing.models import Account, AutomaticTopUp, Notice, Payment
from billing.models.payments import OPEN_STATES
from billing.months import month_of
from billing.notices import News
from billing.payments import gateway, paying

NOT_PAID = (Payment.State.FAILED, Payment.State.CANCELLED)

log = logging.getLogger(__name__)


def rule_of(organization: Organization) -> AutomaticTopUp | None:
    """Return an organization's wish, if it has one."""
    return AutomaticTopUp.objects.filter(organization_id=organization.pk).first()


@transaction.atomic
def set_rule(
    *, organization: Organization, threshold_micros: int, amount_micros: int, monthly_ceiling_micros: int, at: datetime
) -> AutomaticTopUp:
    """Top up by `amount_micros` whenever less than the threshold is free, never more in a month than the ceiling.

    Raises BadAmount. A rule that was paused by a card that failed works again.
    """
    unit = minor_unit_micros(organization.currency)
    least, most = paying.LEAST_TOP_UP_UNITS * unit, paying.MOST_UNITS * unit
    is_whole = not any(micros % unit for micros in (threshold_micros, amount_micros, monthly_ceiling_micros))
    is_ordered = 0 <= threshold_micros <= most and least <= amount_micros <= monthly_ceiling_micros <= most
    if not (is_whole and is_ordered):
        raise BadAmount(least_micros=least, most_micros=most, currency=organization.currency)
    accounts.lock(organization_id=organization.pk, currency=organization.currency)
    facts = {
        "threshold_micros": threshold_micros,
        "amount_micros": amount_micros,
        "monthly_ceiling_micros": monthly_ceiling_micros,
        "is_on": True,
        "paused_because": "",
        "paused_code": "",
        "changed_at": at,
    }
    return AutomaticTopUp.objects.update_or_create(organization_id=organization.pk, defaults=facts)[0]


@transaction.atomic
def switch_off(*, organization: Organization, at: datetime) -> None:
    """Charge nothing by itself any more."""
    AutomaticTopUp.objects.filter(organization_id=organization.pk).update(
        is_on=False, paused_because="", paused_code="", changed_at=at
    )


def spent_micros(*, organization: Organization, at: datetime) -> int:
    """Return what automatic top-ups took, or are about to take, in this calendar month (UTC)."""
    taken = _taken(at).filter(organization_id=organization.pk)
    return taken.aggregate(total=Sum("amount_micros"))["total"] or 0


def _taken(at: datetime) -> QuerySet[Payment]:
    this_month = Payment.objects.filter(purpose=Payment.Purpose.AUTOMATIC, created_at__gte=month_of(at))
    return this_month.exclude(state__in=NOT_PAID)


def top_up_due(*, at: datetime, limit: int = 100) -> int:
    """Order a top-up for everybody who is below their threshold; return how many were ordered. Safe to repeat."""
    if not gateway.is_there():
        return 0
    return sum(_ordered(rule, at=at) for rule in _below(at)[:limit])


def _below(at: datetime) -> QuerySet[AutomaticTopUp]:
    """Return the rules of those who have less free than their threshold, by the balances of their accounts.

    Without those that wait, for the answer to a charge or for the next month: a sweep is bounded and reaches all else.
    """
    rules = AutomaticTopUp.objects.filter(is_on=True, paused_because="").select_related("organization")
    mine = {"organization": OuterRef("organization")}
    under_way = Payment.objects.filter(purpose=Payment.Purpose.AUTOMATIC, state__in=OPEN_STATES, **mine)
    spent = _taken(at).filter(**mine).order_by().values("organization").annotate(total=Sum("amount_micros"))
    spent_micros = Coalesce(Subquery(spent.values("total")), 0, output_field=BigIntegerField())
    rules = rules.filter(~Exists(under_way), monthly_ceiling_micros__gte=F("amount_micros") + spent_micros)
    kinds = (Account.Kind.PROMO, Account.Kind.CASH, Account.Kind.RECEIVABLE)
    ours = Q(organization__accounts__kind__in=kinds, organization__accounts__currency=F("organization__currency"))
    balance, held = F("organization__accounts__balance_micros"), F("organization__accounts__held_micros")
    free = Sum(balance - held, filter=ours & ~Q(organization__accounts__kind=Account.Kind.RECEIVABLE))
    owed = Sum(Least(balance, 0), filter=ours & Q(organization__accounts__kind=Account.Kind.RECEIVABLE))
    return rules.annotate(left=free + owed).filter(left__lt=F("threshold_micros")).order_by("pk")


@transaction.atomic
def _ordered(rule: AutomaticTopUp, *, at: datetime) -> bool:
    """Order one top-up, unless one is on its way, the last one failed, or the month's ceiling is reached."""
    organization = rule.organization
    payer = accounts.lock(organization_id=organization.pk, currency=organization.currency)
    rule.refresh_from_db()
    before = Payment.objects.filter(organization=organization, purpose=Payment.Purpose.AUTOMATIC).order_by("-pk")
    last = before.first()
    if not rule.is_on or rule.paused_because or (last is not None and last.is_open):
        return False
    free = payer.wallet.promo_micros + payer.wallet.cash_micros - payer.wallet.held_micros - payer.wallet.owed_micros
    if free >= rule.threshold_micros:
        return False
    if last is not None and last.state in NOT_PAID and last.created_at >= rule.changed_at:
        return _pause(rule, last.failure_text or str(last.get_state_display()), last.failure_code, at=at)
    if spent_micros(organization=organization, at=at) + rule.amount_micros > rule.monthly_ceiling_micros:
        return False
    try:
        paying.charge(
            organization=organization,
            amount_micros=rule.amount_micros,
            purpose=Payment.Purpose.AUTOMATIC,
            key=f"automatic:{rule.public_id}:{before.count() + 1}",
            at=at,
        )
    except NoCard:
        return _pause(rule, "There is no card that can be charged.", "no_card", at=at)
    return True


def pause_for_dispute(*, organization: Organization, at: datetime) -> None:
    """Charge nothing by itself after a bank took a payment back, until the customer says so again. Behind the gate."""
    rule = rule_of(organization)
    if rule is not None and rule.is_on and not rule.paused_because:
        _pause(rule, "The bank took a payment back.", "disputed", at=at)


def _pause(rule: AutomaticTopUp, why: str, code: str, *, at: datetime) -> bool:
    """Ask nobody's bank again and again: the rule waits until somebody changes it, and its owner is told."""
    AutomaticTopUp.objects.filter(pk=rule.pk).update(paused_because=why[:300], paused_code=code[:64])
    facts = {"left_micros": str(rule.amount_micros), "why": why, "failure_code": code}
    key = f"top-up-paused:{rule.public_id}:{rule.changed_at.isoformat()}"
    notices.tell([News(rule.organization_id, Notice.Kind.TOP_UP_PAUSED, key, facts)], at=at)
    log.warning("automatic top-up of organization %s is paused: %s", rule.organization_id, why)
    return False
