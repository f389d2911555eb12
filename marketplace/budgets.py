"""Budgets that customers set themselves; `spend` holds every order against them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from django.db import transaction
from django.utils.translation import gettext

from marketplace import access, audit, spend
from marketplace.access import Actor
from marketplace.errors import BadOrder, Forbidden, NotFound
from marketplace.models import ApiToken, Organization, Project

BUDGET_MAX = 10**15


@dataclass(frozen=True)
class Budget:
    """An owner's budgets and what they are held against now."""

    owner: spend.Owner
    committed: spend.Committed

    @property
    def kind(self) -> str:
        return kind_of(self.owner)


def kind_of(owner: spend.Owner) -> str:
    """Return what sort of owner it is: organization, project or token."""
    return {Organization: "organization", Project: "project", ApiToken: "token"}[type(owner)]


def listed(actor: Actor, organization: Organization, *, at: datetime) -> list[Budget]:
    """Return the organization's budget, its projects' and its tokens', as far as the actor sees those."""
    whole: list[spend.Owner] = [] if actor.token and actor.token.project_id else [organization]
    projects = access.projects(actor).filter(organization=organization).order_by("pk")
    return _with_spend([*whole, *projects, *access.tokens(actor, organization).order_by("pk")], organization, at=at)


def of(owner: spend.Owner, organization: Organization, *, at: datetime) -> Budget:
    """Return one owner's budget."""
    return _with_spend([owner], organization, at=at)[0]


def _with_spend(owners: Iterable[spend.Owner], organization: Organization, *, at: datetime) -> list[Budget]:
    return [Budget(owner, spend.committed(owner, organization, at=at)) for owner in owners]


def owner_for(actor: Actor, owner_id: str, *, verb: str) -> tuple[spend.Owner, Organization]:
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
    owner: spend.Owner,
    organization: Organization,
    monthly_micros: int | None,
    hourly_micros: int | None,
) -> None:
    """Set both budgets of an owner; None is no budget. Less than is spent stops nothing and only refuses more.

    A token that is held to a budget of its own, or of the one that made it, may not change any.
    """
    token = actor.token
    while token is not None:
        if token.has_budget:
            raise Forbidden(gettext("This token has a budget itself, so it cannot change budgets."))
        token = token.made_by
    for field, micros in (("monthly", monthly_micros), ("hourly", hourly_micros)):
        if micros is not None and not 0 <= micros <= BUDGET_MAX:
            raise BadOrder(field, gettext("A budget is 0 or more, and not beyond reason."))
    row = type(owner)._default_manager.select_for_update(no_key=True).get(pk=owner.pk)
    before = {"monthly_micros": row.monthly_budget_micros, "hourly_micros": row.hourly_budget_micros}
    after = {"monthly_micros": monthly_micros, "hourly_micros": hourly_micros}
    type(owner)._default_manager.filter(pk=owner.pk).update(
        monthly_budget_micros=monthly_micros, hourly_budget_micros=hourly_micros
    )
    owner.monthly_budget_micros, owner.hourly_budget_micros = monthly_micros, hourly_micros
    if before != after:
        audit.record(
            actor=actor, organization=organization, verb="budget.change", subject_id=owner.public_id,
            before=before, after=after,
        )  # fmt: skip
