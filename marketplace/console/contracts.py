"""Contracts as capacity managers see them: all sellers', with their margins."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.db.models import Count, QuerySet
from django.utils.translation import gettext as _

from billing.outcomes import margins
from billing.outcomes.margins import Margin
from marketplace.access import Actor
from marketplace.contracts import offering
from marketplace.errors import BadOrder
from marketplace.models import Acceptance, Claim, ClaimState, Contract, ContractVersion, Organization, RevenuePeriod

SHOWN = 100


def sellers() -> QuerySet[Organization]:
    """Return who may sell by outcome."""
    return Organization.objects.filter(is_supplier=True).order_by("name")


def with_margins() -> list[tuple[ContractVersion, Margin]]:
    """Return the newest versions, each with its margin."""
    found = {one.version: one for one in margins.margins()}
    rows = ContractVersion.objects.select_related("contract__seller", "contract__buyer").order_by("-pk")[:SHOWN]
    return [(row, found.get(row.public_id) or _nothing(row)) for row in rows]


def submitted() -> list[ContractVersion]:
    """Return what waits for approval, the oldest first."""
    waiting = ContractVersion.objects.filter(state=ContractVersion.State.SUBMITTED)
    return list(waiting.select_related("contract__seller", "contract__buyer").order_by("pk")[:SHOWN])


def margin_of(version: ContractVersion) -> Margin:
    """Return what a version leaves the platform."""
    return next(iter(margins.margins(version=version.public_id)), None) or _nothing(version)


def draft(*, actor: Actor, title: str, seller: Organization, buyer: str, terms: Any, at: datetime) -> ContractVersion:
    """Draft a contract in the name of a supplier."""
    customer = offering.customer(buyer) if buyer else None
    if buyer and customer is None:
        raise BadOrder("buyer", _("There is no such organization."))
    return offering.draft(actor=actor, seller=seller, title=title, terms=terms, buyer=customer, at=at)


def acceptances_of(version: ContractVersion) -> list[Acceptance]:
    """Return who agreed to a version, the latest first."""
    found = Acceptance.objects.filter(version=version).select_related("organization", "end").order_by("-pk")
    return list(found[:SHOWN])


def versions_of(contract: Contract) -> list[ContractVersion]:
    """Return the versions of a contract, the newest first."""
    return list(ContractVersion.objects.filter(contract=contract).order_by("-number")[:SHOWN])


def versions_named(public_ids: Iterable[str]) -> dict[str, ContractVersion]:
    """Return versions by their ids."""
    found = ContractVersion.objects.filter(public_id__in=list(public_ids)).select_related("contract__seller")
    return {row.public_id: row for row in found}


def revenue_periods(*, most: int) -> tuple[list[RevenuePeriod], list[RevenuePeriod]]:
    """Return periods of shared revenue: those that are not closed, the most urgent first, and the newest that are."""
    rows = RevenuePeriod.objects.select_related("version__contract__seller", "organization")
    waiting = rows.exclude(state=RevenuePeriod.State.CLOSED).order_by("due_at", "pk")
    return list(waiting[:most]), list(rows.filter(state=RevenuePeriod.State.CLOSED).order_by("-pk")[:most])


def claims_by_state(version: ContractVersion) -> list[tuple[str, int]]:
    """Return how many claims of a version are in each state that some are in."""
    counts = dict(Claim.objects.filter(version=version).order_by().values_list("state").annotate(count=Count("pk")))
    return [(str(state.label), counts[state.value]) for state in ClaimState if state.value in counts]


def latest_claims(version: ContractVersion) -> list[Claim]:
    """Return the latest claims of a version."""
    found = Claim.objects.filter(version=version).select_related("organization", "task__job").order_by("-pk")
    return list(found[:SHOWN])


def _nothing(version: ContractVersion) -> Margin:
    return Margin(version.public_id, version.terms["currency"])
