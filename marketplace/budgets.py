"""Budgets that customers set themselves; `spend` holds every order against them, `budget_watch` minds them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils.translation import gettext

from billing.months import month_of
from marketplace import access, audit, spend
from marketplace.access import Actor
from marketplace.budget_counters import COUNTERS, Counter, Measure, Owner, whose
from marketplace.errors import BadOrder, Forbidden, NotFound
from marketplace.models import ApiToken, Budget, BudgetAlert, Organization, Project
from marketplace.models.budgets import MONEY

AMOUNT_MAX = 10**15
GRACE_MINUTES_MAX = 7 * 24 * 60
SHARE_MAX, SHARES_MOST = 1000, 10


@dataclass(frozen=True)
class Standing:
    """How an owner stands with one thing that is counted: its budget, where it has one, what is used, and what is
    forecast. `alerts` are those of this month."""

    owner: Owner
    organization: Organization
    counts: str
    measure: Measure
    budget: Budget | None = None
    alerts: list[BudgetAlert] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return kind_of(self.owner)

    @property
    def counter(self) -> Counter:
        return COUNTERS[self.counts]

    @property
    def field(self) -> str:
        """The label of what its amount is typed into."""
        return str(self.counter.field) % {"currency": self.organization.currency}

    @property
    def used(self) -> str:
        return self.shown(self.measure.used)

    @property
    def forecast(self) -> str:
        return self.shown(self.measure.forecast)

    @property
    def amount(self) -> str:
        return self.shown(self.budget.amount) if self.budget else ""

    def shown(self, amount: int) -> str:
        """Write an amount of what is counted."""
        return self.counter.shown(amount, self.organization.currency)

    def percent(self, amount: int) -> int:
        """Return how much of the budget an amount is, in whole percent, rounded down."""
        return amount * 100 // self.budget.amount if self.budget and self.budget.amount else 0

    @property
    def used_percent(self) -> int:
        return self.percent(self.measure.used)

    @property
    def forecast_percent(self) -> int:
        return self.percent(self.measure.forecast)


@dataclass(frozen=True)
class Settings:
    """What follows from a budget for a month."""

    action: str = Budget.Action.BLOCK
    grace_minutes: int = 60
    used_shares: Sequence[int] = (50, 80, 100)
    forecast_shares: Sequence[int] = (100,)


def kind_of(owner: Owner) -> str:
    """Return what sort of owner it is: organization, project or token."""
    return {Organization: "organization", Project: "project", ApiToken: "token"}[type(owner)]


def settings_of(budget: Budget | None) -> Settings:
    """Return what follows from a budget; from one that is to be made, what is ordinary."""
    if budget is None:
        return Settings()
    return Settings(
        action=budget.action,
        grace_minutes=budget.grace_minutes,
        used_shares=tuple(budget.used_shares),
        forecast_shares=tuple(budget.forecast_shares),
    )


def listed(actor: Actor, organization: Organization, *, at: datetime) -> list[Standing]:
    """Return how the organization, its projects and its tokens stand, as far as the actor sees those.

    With money all of them, with what else is counted those that have a budget of it. A fixed number of queries,
    however many there are.
    """
    whole: list[Owner] = [] if actor.token and actor.token.project_id else [organization]
    projects = access.projects(actor).filter(organization=organization).order_by("pk")
    owners = [*whole, *projects, *access.tokens(actor, organization).order_by("pk")]
    return [one for one in _standings(owners, organization, at=at) if one.counts == MONEY or one.budget]


def of(owner: Owner, organization: Organization, *, counts: str = MONEY, at: datetime) -> Standing:
    """Return how one owner stands with one thing that is counted."""
    found = _standings([owner], organization, at=at)
    return next(one for one in found if one.counts == counts)


def _standings(owners: Sequence[Owner], organization: Organization, *, at: datetime) -> list[Standing]:
    keys = [whose(owner, organization) for owner in owners]
    rows = {
        (row.counts, row.project_id, row.token_id): row
        for row in Budget.objects.filter(organization=organization).select_related("organization", "project", "token")
    }
    alerts: dict[int, list[BudgetAlert]] = {}
    for alert in BudgetAlert.objects.filter(budget__organization=organization, period=month_of(at)).order_by("pk"):
        alerts.setdefault(alert.budget_id, []).append(alert)
    found = []
    for name, counter in COUNTERS.items():
        for owner, key, measure in zip(owners, keys, counter.measure(keys, at), strict=True):
            budget = rows.get((name, key.project_id, key.token_id))
            told = alerts.get(budget.pk, []) if budget else []
            found.append(Standing(owner, organization, name, measure, budget, told))
    return found


def read(standing: Standing, text: str) -> int | None:
    """Return an amount of what is counted that was typed or sent, None for none; raise BadOrder for what is neither."""
    if not text:
        return None
    amount = standing.counter.read(text)
    if amount is None:
        raise BadOrder("monthly", str(standing.counter.wrong))
    return amount


def owner_for(actor: Actor, owner_id: str, *, verb: str) -> tuple[Owner, Organization]:
    """Return who has this id and may have a budget, with the organization, or raise NotFound."""
    if owner_id.startswith("org_"):
        organization = access.organization_for(actor, owner_id, verb=verb)
        return organization, organization
    if owner_id.startswith("prj_"):
        project = access.project_for(actor, owner_id, verb=verb)
        return project, project.organization
    if owner_id.startswith("tok_"):
        token = access.token_for(actor, owner_id, verb=verb)
        return token, token.membership.organization
    raise NotFound


@transaction.atomic
def change(
    *,
    actor: Actor,
    owner: Owner,
    organization: Organization,
    amount: int | None,
    hourly_micros: int | None,
    counts: str = MONEY,
    settings: Settings | None = None,
) -> None:
    """Set an owner's budget for a month (in the unit of what it counts) and for an hour; None is no budget.

    Without settings those that there are stay. A grace that runs begins anew
    when the budget changes. A token that is held to a budget of its own, or of
    the one that made it, may not change any.
    """
    token = actor.token
    while token is not None:
        if token.has_budget:
            raise Forbidden(gettext("This token has a budget itself, so it cannot change budgets."))
        token = token.made_by
    for name, given in (("monthly", amount), ("hourly", hourly_micros)):
        if given is not None and not 0 <= given <= AMOUNT_MAX:
            raise BadOrder(name, gettext("A budget is 0 or more, and not beyond reason."))
    locked = type(owner)._default_manager.select_for_update(no_key=True).get(pk=owner.pk)
    budget = spend.budgets_of(owner, organization).filter(counts=counts).first()
    settings = settings or settings_of(budget)
    _check(settings)
    before = _written(budget, counts, locked.hourly_budget_micros)
    budget = _save(budget, owner, organization, counts=counts, amount=amount, settings=settings)
    owner.has_monthly_budget = spend.budgets_of(owner, organization).exists()
    owner.hourly_budget_micros = hourly_micros
    owner.save(update_fields=["has_monthly_budget", "hourly_budget_micros"])
    after = _written(budget, counts, hourly_micros)
    if before != after:
        audit.record(
            actor=actor, organization=organization, verb="budget.change", subject_id=owner.public_id,
            before=before, after=after,
        )  # fmt: skip


def _save(
    budget: Budget | None, owner: Owner, organization: Organization, *, counts: str, amount: int | None,
    settings: Settings,
) -> Budget | None:  # fmt: skip
    if amount is None:
        if budget is not None:
            budget.delete()
        return None
    if budget is None:
        key = whose(owner, organization)
        budget = Budget(
            organization=organization, project_id=key.project_id, token_id=key.token_id, counts=counts, amount=amount
        )
    elif (budget.amount, settings_of(budget)) == (amount, settings):
        return budget
    budget.amount, budget.action, budget.grace_minutes = amount, settings.action, settings.grace_minutes
    budget.used_shares, budget.forecast_shares = list(settings.used_shares), list(settings.forecast_shares)
    budget.passed_at = None  # The next look finds out.
    budget.save()
    return budget


def _check(settings: Settings) -> None:
    if settings.action not in Budget.Action.values:
        raise BadOrder("action", gettext("What follows is one of: alert, block, stop."))
    if not 0 <= settings.grace_minutes <= GRACE_MINUTES_MAX:
        raise BadOrder(
            "grace_minutes",
            gettext("The grace is 0 to %(most)s minutes.") % {"most": GRACE_MINUTES_MAX},
        )
    for name in ("used_shares", "forecast_shares"):
        shares = getattr(settings, name)
        if (
            len(shares) > SHARES_MOST
            or len(set(shares)) != len(shares)
            or not all(1 <= one <= SHARE_MAX for one in shares)
        ):
            raise BadOrder(name, gettext("Shares are different whole percentages, ten at most, such as 50, 80, 100."))


def _written(budget: Budget | None, counts: str, hourly_micros: int | None) -> dict[str, Any]:
    settings = settings_of(budget)
    told = {
        "counts": counts, "amount": budget.amount, "action": settings.action, "grace_minutes": settings.grace_minutes,
        "used_shares": list(settings.used_shares), "forecast_shares": list(settings.forecast_shares),
    } if budget else {}  # fmt: skip
    return {"monthly": told or None, "hourly_micros": hourly_micros}
