"""Asking for more quota: with a reason, decided by a rule at once or by a capacity manager with a note."""

from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import Q, QuerySet, Sum
from django.db.models.functions import Coalesce
from django.utils.translation import gettext

from billing import accounts
from billing.models import Account, Transfer
from marketplace import access_till, audit, limits
from marketplace.access import Actor
from marketplace.errors import BadOrder, IllegalState, NotFound
from marketplace.models import Organization, Project, QuotaRequest, QuotaRule
from marketplace.money import shown
from marketplace.names import given_once
from provisioning.models import Quota

REASON_LENGTH_MAX = 500
# Where cash goes without being spent: ahead, for what is not delivered yet, and back to where it came from.
NOT_PAID_FOR_GOOD = (Account.Kind.DEFERRED, Account.Kind.PROCESSOR)
State = QuotaRequest.State


@transaction.atomic
def request(
    *,
    actor: Actor,
    organization: Organization,
    project: Project | None,
    limit: int,
    reason: str,
    at: datetime,
    gpu_model: str = "",
    market: str = "",
    unit: str = Quota.Unit.GPUS,
) -> QuotaRequest:
    """Ask for a higher limit; a rule that fits approves it at once, else it waits for a capacity manager.

    Raises BadOrder for what is no higher limit or has no reason, Conflict while
    the same limit is asked for already.
    """
    assert project is None or project.organization_id == organization.pk, "a project is asked for by its own"
    limits.check_words(gpu_model=gpu_model, market=market, unit=unit, limit=limit)
    reason = reason.strip()
    if not reason or len(reason) > REASON_LENGTH_MAX:
        raise BadOrder("reason", gettext("Say why, in 1 to %(most)s characters.") % {"most": REASON_LENGTH_MAX})
    now = _quota_of(organization, project, gpu_model=gpu_model, market=market, unit=unit).first()
    if now is not None and limit <= now.limit:
        is_now = limits.amount(now.limit, unit=unit, currency=organization.currency)
        raise BadOrder("limit", gettext("The limit is %(limit)s already; ask for more.") % {"limit": is_now})
    text = gettext("This limit is asked for already; withdraw that request first.")
    with given_once("quota_request_open_once_per_limit", text), transaction.atomic():
        made = QuotaRequest.objects.create(
            organization=organization, project=project, gpu_model=gpu_model, market=market, unit=unit,
            limit=limit, reason=reason, asked_by=actor.user, asked_by_name=actor.name, created_at=at,
        )  # fmt: skip
    _record(made, "quota.request", actor=actor, after={"limit": limit, "reason": reason})
    rule = _rule_for(made)
    if rule is not None:
        _decide(made, State.APPROVED, by=f"rule “{rule.name}”", note="", at=at, is_automatic=True)
        _raise_to(made, actor=None, reason=f"{made.public_id} by rule “{rule.name}”")
        _record(made, "quota.approve", actor=None, after={"limit": limit, "rule": rule.name})
    return made


@transaction.atomic
def withdraw(*, actor: Actor, found: QuotaRequest, at: datetime) -> None:
    """Take a request back. Withdrawing twice changes nothing; what is decided stays decided."""
    if _state_of(found) == State.WITHDRAWN:
        return
    _decide(found, State.WITHDRAWN, by=actor.name, note="", at=at)
    _record(found, "quota.withdraw", actor=actor, after={"limit": found.limit})


@transaction.atomic
def approve(*, actor: Actor, found: QuotaRequest, note: str, at: datetime) -> None:
    """Give what was asked for. A limit never falls by it, and the organization's own is raised with its project's.

    Whoever belongs to the organization does not decide.
    """
    access_till.check_apart(actor, found.organization)
    _decide(found, State.APPROVED, by=actor.name, note=note, at=at)
    _raise_to(found, actor=actor, reason=f"{found.public_id}: {note}")
    _record(found, "quota.approve", actor=actor, after={"limit": found.limit, "note": note})


@transaction.atomic
def deny(*, actor: Actor, found: QuotaRequest, note: str, at: datetime) -> None:
    """Refuse a request, with a note that the customer reads. No limit changes."""
    _decide(found, State.DENIED, by=actor.name, note=note, at=at)
    _record(found, "quota.deny", actor=actor, after={"limit": found.limit, "note": note})


def pending() -> QuerySet[QuotaRequest]:
    """Return what waits for a capacity manager, the oldest first."""
    return QuotaRequest.objects.filter(state=State.PENDING).select_related("organization", "project").order_by("pk")


def decided(limit: int) -> QuerySet[QuotaRequest]:
    """Return the latest requests that are decided."""
    found = QuotaRequest.objects.exclude(state=State.PENDING).select_related("organization", "project")
    return found.order_by("-decided_at", "-pk")[:limit]


def any_for(request_id: str) -> QuotaRequest:
    """Return any customer's request, for a capacity manager, or raise NotFound."""
    found = QuotaRequest.objects.select_related("organization", "project").filter(public_id=request_id).first()
    if found is None:
        raise NotFound
    return found


def asked(found: QuotaRequest) -> str:
    """Return in words what is asked for, such as `64 GPUs (H200, Spot)`."""
    much = limits.amount(found.limit, unit=found.unit, currency=found.organization.currency)
    return f"{much} ({limits.words_of(gpu_model=found.gpu_model, market=found.market)})"


def rules() -> QuerySet[QuotaRule]:
    """Return the rules by which requests are approved at once."""
    return QuotaRule.objects.order_by("-is_active", "gpus_max", "pk")


@transaction.atomic
def make_rule(
    *, actor: Actor, name: str, gpus_max: int, paid_micros_min: int | None, currency: str, gpu_model: str, market: str
) -> QuotaRule:
    """Make a rule; from now on requests that it fits are approved at once."""
    text = gettext("There is a rule of this name already.")
    with given_once("marketplace_quotarule_name", text), transaction.atomic():
        rule = QuotaRule.objects.create(
            name=name, gpus_max=gpus_max, paid_micros_min=paid_micros_min or 0, currency=currency,
            gpu_model=gpu_model, market=market,
        )  # fmt: skip
    after = {"name": name, "gpus_max": gpus_max, "paid_micros_min": rule.paid_micros_min, "currency": currency}
    audit.record(actor=actor, organization=None, verb="quota.rule", subject_id=rule.public_id, after=after)
    return rule


@transaction.atomic
def end_rule(*, actor: Actor, rule: QuotaRule) -> None:
    """Let a rule decide no more. Ending twice changes nothing."""
    if QuotaRule.objects.filter(pk=rule.pk, is_active=True).update(is_active=False):
        audit.record(
            actor=actor, organization=None, verb="quota.rule", subject_id=rule.public_id,
            before={"name": rule.name, "is_active": True}, after={"is_active": False},
        )  # fmt: skip


def rule_for(rule_id: str) -> QuotaRule:
    """Return a rule by its id, or raise NotFound."""
    rule = QuotaRule.objects.filter(public_id=rule_id).first()
    if rule is None:
        raise NotFound
    return rule


def tell(rule: QuotaRule) -> str:
    """Say what a rule approves."""
    return gettext(
        "Up to %(gpus)s GPUs (%(what)s) for who has paid %(paid)s or more in %(currency)s and owes nothing."
    ) % {
        "gpus": f"{rule.gpus_max:,}", "what": limits.words_of(gpu_model=rule.gpu_model, market=rule.market),
        "paid": shown(rule.paid_micros_min, rule.currency), "currency": rule.currency,
    }  # fmt: skip


def paid_micros(organization: Organization) -> int:
    """Return what an organization has paid for good with its own money, promotional credit left out.

    What was paid ahead is not among it, since it may be given back; nor is
    what went back to the customer.
    """
    cash = Q(source__organization=organization, source__kind="cash", target__organization=None)
    cash &= ~Q(target__kind__in=NOT_PAID_FOR_GOOD)
    back = Q(target__organization=organization, target__kind="cash", source__kind__in=["revenue", "sla_expense"])
    sums = Transfer.objects.filter(cash | back).aggregate(
        paid=Coalesce(Sum("amount_micros", filter=cash), 0), returned=Coalesce(Sum("amount_micros", filter=back), 0)
    )
    return int(sums["paid"] - sums["returned"])


def _rule_for(made: QuotaRequest) -> QuotaRule | None:
    """Return the first rule that approves a request; none approves anything of who owes money."""
    if made.is_spend:
        return None
    fitting = QuotaRule.objects.filter(
        is_active=True, gpus_max__gte=made.limit, gpu_model__in=["", made.gpu_model], market__in=["", made.market],
        currency=made.organization.currency,
    ).order_by("gpus_max", "pk")  # fmt: skip
    if not fitting or accounts.wallet(organization=made.organization).owed_micros:
        return None
    paid = paid_micros(made.organization)
    return next((rule for rule in fitting if paid >= rule.paid_micros_min), None)


def _quota_of(organization: Organization, project: Project | None, **words: str) -> QuerySet[Quota]:
    return Quota.objects.filter(organization=organization, project=project, **words)


def _raise_to(found: QuotaRequest, *, actor: Actor | None, reason: str) -> None:
    """Raise the limit to what was asked for, and the organization's of the same words with it; never lower one."""
    words = {"gpu_model": found.gpu_model, "market": found.market, "unit": found.unit}
    for owner in dict.fromkeys([found.project, None]):
        now = _quota_of(found.organization, owner, **words).first()
        if owner != found.project and (now is None or now.limit >= found.limit):
            continue  # What the organization does not limit needs no raise.
        if now is None or now.limit < found.limit:
            held = now.held if now else 0
            limits.change(
                actor=actor, organization=found.organization, project=owner, limit=max(found.limit, held),
                reason=reason[:REASON_LENGTH_MAX], **words,
            )  # fmt: skip


def _state_of(found: QuotaRequest) -> str:
    """Return the state of now, locked."""
    row = QuotaRequest.objects.select_for_update(no_key=True).get(pk=found.pk)
    found.state = row.state
    return found.state


def _decide(found: QuotaRequest, state: State, *, by: str, note: str, at: datetime, is_automatic: bool = False) -> None:
    """Close a request if the map allows it."""
    if len(note) > REASON_LENGTH_MAX:
        raise BadOrder("note", gettext("Say why, in 1 to %(most)s characters.") % {"most": REASON_LENGTH_MAX})
    was = _state_of(found)
    if state not in QuotaRequest.MOVES[was]:
        raise IllegalState(
            gettext("This request is decided already: it is %(state)s.") % {"state": found.get_state_display()}
        )
    decision: dict[str, Any] = {
        "state": state, "decided_by_name": by, "note": note, "decided_at": at, "is_automatic": is_automatic,
    }  # fmt: skip
    assert QuotaRequest.objects.filter(pk=found.pk, state=was).update(**decision), "its row is locked"
    for name, value in decision.items():
        setattr(found, name, value)


def _record(found: QuotaRequest, verb: str, *, actor: Actor | None, after: dict[str, Any]) -> None:
    after |= {name: word for name in ("gpu_model", "market") if (word := getattr(found, name))}
    if actor is None:
        audit.record_own(organization=found.organization, verb=verb, subject_id=found.public_id, before={}, after=after)
    else:
        audit.record(actor=actor, organization=found.organization, verb=verb, subject_id=found.public_id, after=after)
