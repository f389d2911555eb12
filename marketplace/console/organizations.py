"""Tenants as the operator sees them: what they have, burn and hold, and what a capacity manager may change."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import Prefetch, QuerySet
from django.utils.translation import gettext

from billing import credits
from billing.accounts import CustomerAccounts, Wallet
from billing.models import Account, Runway, Transfer
from billing.models.ledger import CUSTOMER_KINDS
from marketplace import audit, money
from marketplace.access import Actor
from marketplace.errors import BadOrder, NotFound
from marketplace.models import AuditEntry, Organization, Project
from provisioning import quotas
from provisioning.models import Quota

HISTORY_MAX = 20
PROMISER_LENGTH_MAX = 80  # with the reason it has to fit the ledger's own column


@dataclass(frozen=True)
class Tenant:
    """An organization with its money and the GPUs that its projects hold; no wallet until its accounts are open."""

    organization: Organization
    projects: list[Project]
    quotas: list[Quota]
    wallet: Wallet | None
    runway: Runway | None

    @property
    def held_gpus(self) -> int:
        return sum(quota.held for quota in self.quotas if quota.is_first and quota.project_id is None)


def listed(*, search: str = "") -> QuerySet[Organization]:
    """Return all organizations whose name or id contains `search`, with what their line shows."""
    found = Organization.objects.select_related("runway").order_by("name", "pk")
    found = found.prefetch_related(
        Prefetch("projects", Project.objects.order_by("name")),
        Prefetch("quotas", Quota.objects.select_related("project").order_by("project__name", "pk")),
        Prefetch("accounts", Account.objects.filter(kind__in=CUSTOMER_KINDS)),
    )
    search = search.strip()
    return found.filter(name__icontains=search) | found.filter(public_id=search) if search else found


def tenant(organization: Organization) -> Tenant:
    """Return an organization of `listed` with its money and projects. No query."""
    by_kind = {
        account.kind: account for account in organization.accounts.all() if account.currency == organization.currency
    }
    complete = set(by_kind) == set(CUSTOMER_KINDS)
    return Tenant(
        organization=organization,
        projects=list(organization.projects.all()),
        quotas=list(organization.quotas.all()),
        wallet=CustomerAccounts(**by_kind).wallet if complete else None,
        runway=getattr(organization, "runway", None),
    )


def organization_for(organization_id: str) -> Organization:
    """Return any organization, or raise NotFound."""
    organization = listed().filter(public_id=organization_id).first()
    if organization is None:
        raise NotFound
    return organization


def history(organization: Organization) -> QuerySet[AuditEntry]:
    """Return the latest changes in an organization, whoever made them, the newest first."""
    return AuditEntry.objects.filter(organization=organization).order_by("-pk")[:HISTORY_MAX]


def project_for(project_id: str) -> Project:
    """Return any project, or raise NotFound."""
    project = Project.objects.select_related("organization").filter(public_id=project_id).first()
    if project is None:
        raise NotFound
    return project


def quota_of(project: Project | None, organization: Organization) -> Quota | None:
    """Return the limit of all GPUs together of a project, or of an organization without one."""
    return Quota.objects.filter(organization=organization, project=project, **quotas.FIRST).first()


def quota_to_change(organization: Organization, quota_id: str) -> Quota:
    """Return one of an organization's quotas, or raise NotFound."""
    quota = Quota.objects.select_related("organization", "project").filter(organization=organization)
    found = quota.filter(public_id=quota_id).first()
    if found is None:
        raise NotFound
    return found


@transaction.atomic
def suspend(*, actor: Actor, project: Project, reason: str, at: datetime) -> None:
    """Let nothing new start in a project; what runs goes on. Suspending twice changes nothing."""
    if Project.objects.filter(pk=project.pk, suspended_at=None).update(suspended_at=at):
        _record(actor, project, "project.suspend", after={"reason": reason})


@transaction.atomic
def resume(*, actor: Actor, project: Project) -> None:
    """Let instances start in a project again. Resuming twice changes nothing."""
    if Project.objects.filter(pk=project.pk, suspended_at__isnull=False).update(suspended_at=None):
        _record(actor, project, "project.resume")


@transaction.atomic
def grant_credit(
    *,
    actor: Actor,
    organization: Organization,
    amount_micros: int,
    reason: str,
    key: UUID,
    at: datetime,
    expires_at: datetime | None = None,
) -> Transfer:
    """Give promotional credit once per form that was shown, however often it is sent."""
    if expires_at is not None and expires_at <= at:
        raise BadOrder("expires_at", gettext("Credit cannot expire before it is given."))
    granted = credits.grant(
        organization=organization,
        amount_micros=amount_micros,
        key=f"console:{key}",
        reason=reason,
        by=actor.name[:PROMISER_LENGTH_MAX],
        at=at,
        expires_at=expires_at,
    )
    if not audit.is_recorded("credit.grant", granted.public_id):
        audit.record(
            actor=actor,
            organization=organization,
            verb="credit.grant",
            subject_id=granted.public_id,
            after={
                "amount": money.decimal_string(amount_micros),
                "currency": organization.currency,
                "reason": reason,
                "expires_at": expires_at.isoformat() if expires_at else None,
            },
        )
    return granted


def _record(
    actor: Actor,
    project: Project,
    verb: str,
    *,
    before: dict[str, object] | None = None,
    after: dict[str, object] | None = None,
) -> None:
    audit.record(
        actor=actor,
        organization=project.organization,
        verb=verb,
        subject_id=project.public_id,
        before=before,
        after=after,
    )
