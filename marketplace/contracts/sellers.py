"""What work under all contracts of one seller may cost the platform beyond what their results brought it.

The terms of a contract bound the work for each customer (`bounds.py`); here is the bound for all of its customers
together, so that no product costs more for being agreed to by many. What the operator itself sells has none.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import Q, QuerySet, Sum
from django.utils.translation import gettext_lazy as _

from billing.models import OutcomeCost
from billing.outcomes import costs, margins
from marketplace import audit
from marketplace.access import Actor
from marketplace.contracts import terms as written
from marketplace.models import (
    Attempt,
    AttemptState,
    Claim,
    ContractVersion,
    Job,
    Organization,
    SellerLimit,
    VerifierRun,
)
from marketplace.money import shown
from provisioning.models import Instance
from provisioning.told import Told

# In each currency, for whom no capacity manager has said another.
DEFAULT_MICROS = 1_000_000_000
USED_UP = Told(
    _(
        "Work under contracts of %(seller)s that was not paid for has cost the platform as much as it allows this "
        "seller. Nothing was started or charged; try again when results of it are paid, or ask the operator."
    )
)
ALONE = Told(
    _(
        "An attempt and the verification of its result may cost the platform %(cost)s together by the list, and all "
        "unpaid work under contracts of %(seller)s may cost it %(most)s. Nothing was started or charged; give the job "
        "less time or fewer GPUs, or ask the seller for a shorter verification."
    )
)


def is_operators(organization: Organization) -> bool:
    """Return whether an organization is the operator's own: a capacity manager belongs to it."""
    return organization.memberships.filter(user__is_staff=True).exists()


def lock(version: ContractVersion) -> bool:
    """Keep all others from looking at the limit of a version's seller until this transaction ends; False: it has none.

    Whoever locks several takes them in the order of their sellers' keys.
    """
    seller, currency = version.contract.seller, written.of(version.terms).currency
    if is_operators(seller):
        return False
    row, _made = SellerLimit.objects.get_or_create(seller=seller, currency=currency)
    SellerLimit.objects.select_for_update(no_key=True).get(pk=row.pk)
    return True


def limit_micros(seller: Organization, currency: str) -> int:
    """Return what work under a seller's contracts may cost the platform unpaid, in a currency."""
    row = SellerLimit.objects.filter(seller=seller, currency=currency).first()
    return DEFAULT_MICROS if row is None or row.unpaid_micros is None else row.unpaid_micros


def unpaid_micros(seller: Organization, currency: str, *, at: datetime) -> int:
    """Return what work under a seller's contracts has cost by the list beyond what results brought the platform.

    Attempts of jobs and verifiers that run do not count here: what these may cost is set aside whole elsewhere.
    Hours that a fault of ours cost do not count.
    """
    bps = {row.public_id: written.of(row.terms).platform_bps for row in sold_by(seller)}
    tries = Attempt.objects.filter(job__contract__in=list(bps))
    faulted = tries.filter(state=AttemptState.FAULTED).values("instance__public_id")
    lost = OutcomeCost.objects.filter(currency=currency, span__resource_id__in=faulted)
    verifiers = VerifierRun.objects.filter(claim__version__in=sold_by(seller), result=VerifierRun.Result.RUNNING)
    not_counted = tries.filter(state__in=[AttemptState.FAULTED, AttemptState.RUNNING])
    apart = Instance.objects.filter(
        Q(pk__in=not_counted.values("instance")) | Q(pk__in=verifiers.values("instance"))
    ).values("public_id")
    # In this order, so that what is booked meanwhile counts twice and not never.
    cost = costs.unbooked_micros(versions=list(bps), currency=currency, without=apart, at=at)
    cost += margins.booked_micros(versions=bps, currency=currency)
    cost -= lost.aggregate(total=Sum("amount_micros", default=0))["total"]
    brought = margins.brought_micros(versions=bps, currency=currency)
    return int(cost) - sum(micros * bps[name] // written.BP for name, micros in brought.items())


def unpaid_of(seller: Organization, *, at: datetime) -> list[tuple[str, int, int]]:
    """Return currency, what a seller's work has cost unpaid and its limit; none where the operator itself sells."""
    if is_operators(seller):
        return []
    found = set(SellerLimit.objects.filter(seller=seller).values_list("currency", flat=True)) | {seller.currency}
    return [(name, unpaid_micros(seller, name, at=at), limit_micros(seller, name)) for name in sorted(found)]


def refusal(version: ContractVersion, micros: int) -> str:
    """Return as it is written down why an attempt and its verifier, which cost so much at most, have no room.

    Of what the seller's work has cost it says nothing, which is theirs.
    """
    seller, currency = version.contract.seller, written.of(version.terms).currency
    if not never_fits(version, micros):
        return USED_UP(seller=seller.name)
    cost, most = (shown(each, currency, exact=True) for each in (micros, limit_micros(seller, currency)))
    return ALONE(cost=cost, seller=seller.name, most=most)


def never_fits(version: ContractVersion, micros: int) -> bool:
    """Return whether this alone passes what a seller's work may cost the platform, though nothing else had cost any."""
    return micros > limit_micros(version.contract.seller, written.of(version.terms).currency)


def is_under_way(version: ContractVersion) -> bool:
    """Return whether results of anybody may still bring the platform something of this seller's work."""
    sold = sold_by(version.contract.seller).values("public_id")
    claims = Claim.objects.filter(contract__seller=version.contract.seller_id, closed_at=None)
    return claims.exists() or Job.objects.filter(contract__in=sold).exclude(running=0, verifying=0).exists()


def sold_by(seller: Organization) -> QuerySet[ContractVersion]:
    """Return all versions that a seller sells."""
    return ContractVersion.objects.filter(contract__seller=seller)


@transaction.atomic
def set_limit(
    *, actor: Actor, seller: Organization, currency: str, unpaid_micros: int | None, reason: str, at: datetime
) -> SellerLimit:
    """Say what a seller's work may cost the platform unpaid; None: the ordinary limit. What runs goes on."""
    row, _made = SellerLimit.objects.get_or_create(seller=seller, currency=currency)
    row = SellerLimit.objects.select_for_update(no_key=True).get(pk=row.pk)
    before, row.unpaid_micros, row.changed_at = row.unpaid_micros, unpaid_micros, at
    row.save(update_fields=["unpaid_micros", "changed_at"])
    said: Mapping[str, Any] = {"currency": currency, "unpaid_micros": unpaid_micros, "reason": reason}
    audit.record(
        actor=actor, organization=seller, verb="seller_limit.change", subject_id=seller.public_id,
        before={"unpaid_micros": before}, after=dict(said),
    )  # fmt: skip
    return row
