"""Hours under a share of revenue: metered by the list, and paid by the share instead of by the hour.

An instance on demand names the agreement when it is rented, as a job names its
contract. The seller owns its GPUs and bears what the share does not bring: its
part of the share is all that it is paid, and the platform pays nothing.
"""

from contextlib import suppress
from datetime import datetime

import structlog
from django.db import transaction
from django.db.models import Sum
from django.utils.translation import gettext as _

from billing import usage
from marketplace import audit, costs
from marketplace.contracts import offering
from marketplace.contracts import terms as written
from marketplace.errors import BadOrder
from marketplace.models import Acceptance, ContractVersion, Offer, Organization, Side
from marketplace.revenue_share import periods
from provisioning import quotas
from provisioning.errors import ProvisioningError
from provisioning.models import Instance, Phase

log = structlog.get_logger("marketplace.revenue")

# What `paid_by` of an instance begins with whose hours an agreement pays.
AGREEMENT = "cta_"


def agreement(organization: Organization, version_id: str) -> Acceptance:
    """Return with what an organization agreed to a version, or raise BadOrder."""
    own = Acceptance.objects.filter(version__public_id=version_id, organization=organization, side=Side.BUYER)
    found = own.select_related("version__contract", "organization").first()
    if found is None:
        raise BadOrder("contract", _("Your organization has not agreed to such a contract."))
    return found


def choices(organization: Organization, offer: Offer) -> list[Acceptance]:
    """Return the agreements under which an organization may rent an offer, the newest first. One query."""
    own = Acceptance.objects.filter(
        organization=organization, side=Side.BUYER, version__state=ContractVersion.State.OFFERED,
        version__contract__kind="revenue_share", version__contract__seller=offer.supplier_id, end=None,
    )  # fmt: skip
    found = own.select_related("version__contract", "organization").order_by("-pk")
    return [one for one in found if _covers(one, offer)]


def check(agreed: Acceptance, *, offer: Offer, gpus: int, at: datetime) -> None:
    """Raise BadOrder where an order cannot run under an agreement; else keep others from its room in this transaction.

    `agreed` has its version with its contract, and its organization.
    """
    check_terms(agreed, offer=offer, gpus=gpus)
    _check_room(agreed, gpus=gpus, at=at)


def check_terms(agreed: Acceptance, *, offer: Offer, gpus: int) -> None:
    """Raise BadOrder where an order can never run under an agreement, whatever else runs under it and when."""
    if agreed.version.contract.kind != "revenue_share" or written.of(agreed.version.terms).covers is None:
        raise BadOrder("contract", _("No hours are covered by this contract."))
    if agreed.version.state != ContractVersion.State.OFFERED:
        raise BadOrder("contract", _("This version is withdrawn: nothing new is rented under it."))
    offering.check_not_left(agreed)
    if not _covers(agreed, offer):
        text = _("This contract does not cover %(offer)s (revenue/covers).")
        raise BadOrder("contract", text % {"offer": offer.name})
    _check_gpus(agreed, gpus=gpus, used=0)


def check_run(instance: Instance, *, at: datetime) -> None:
    """Raise BadOrder where an agreement that pays for an instance has no room for another run of it."""
    agreed = Acceptance.objects.filter(public_id=instance.paid_by).select_related("version", "organization").first()
    if agreed is not None:
        _check_room(agreed, gpus=instance.gpus, at=at, besides=instance)


def release_due(*, at: datetime, limit: int) -> int:
    """Take instances out of agreements whose last period is over, as of its end; return how many. Safe to repeat.

    Where a later version that the customer agreed to covers them and has room they go on under that, the oldest
    first; else they cost their price by the hour from then on.
    """
    customers = Acceptance.objects.filter(side=Side.BUYER, version__contract__kind="revenue_share")
    alive = Instance.objects.exclude(phase=Phase.TERMINATED).filter(
        project__organization__in=customers.values("organization"), paid_by__startswith=AGREEMENT
    )
    named = Acceptance.objects.filter(public_id__in=list(alive.values_list("paid_by", flat=True).distinct()))
    released = 0
    for agreed in named.select_related("version__contract", "organization").order_by("pk"):
        ended_at = periods.ended_at(agreed, at=at)
        if ended_at is None:
            continue
        own = alive.filter(paid_by=agreed.public_id).order_by("pk").values_list("pk", flat=True)
        for key in list(own[: limit - released]):
            try:
                released += _release(key, agreed, ended_at=ended_at, at=at)
            except ProvisioningError:  # one that cannot be must not keep the others from it
                log.exception("not released", instance=key)
    return released


@transaction.atomic
def _release(key: int, agreed: Acceptance, *, ended_at: datetime, at: datetime) -> bool:
    rows = Instance.objects.select_for_update(no_key=True, of=("self",)).select_related("offer", "price_version")
    instance = rows.get(pk=key)
    if instance.paid_by != agreed.public_id:
        return False
    follows = _follows(agreed, instance, at=at)
    instance.paid_by = follows.public_id if follows else ""
    instance.save(update_fields=["paid_by"])
    if follows is None:
        price = instance.price_version.micros_per_unit_hour
        _second, hour, _day = costs.rates(micros_per_unit_hour=price, quantity=instance.gpus)
        quotas.reprice(holder=instance.public_id, micros_per_hour=hour)
    usage.pay_from(
        resource_id=instance.public_id, covered_by=instance.paid_by, instead_of=agreed.public_id, at=ended_at
    )
    if follows is None:
        audit.record_own(
            organization=agreed.organization, verb="instance.uncover", subject_id=instance.public_id,
            before={"contract": agreed.version.public_id}, after={"charged_from": ended_at.isoformat()},
        )  # fmt: skip
    return True


def _follows(agreed: Acceptance, instance: Instance, *, at: datetime) -> Acceptance | None:
    """Return the newest later version that the customer agreed to which covers an instance and has room for it."""
    later = Acceptance.objects.filter(
        version__contract=agreed.version.contract_id, organization=agreed.organization_id, side=Side.BUYER,
        version__number__gt=agreed.version.number,
    )  # fmt: skip
    for one in later.select_related("version__contract", "organization").order_by("-version__number"):
        if _covers(one, instance.offer):
            with suppress(BadOrder):
                _check_room(one, gpus=instance.quota_held, at=at)
                return one
    return None


def _covers(agreed: Acceptance, offer: Offer) -> bool:
    """Return whether the terms cover an offer, which is of the seller's own GPUs; once they are in force."""
    covers = written.of(agreed.version.terms).covers
    if covers is None or offer.supplier_id != agreed.version.contract.seller_id:
        return False
    return covers["offers"] is None or bool({offer.slug, offer.public_id} & set(covers["offers"]))


def _check_room(agreed: Acceptance, *, gpus: int, at: datetime, besides: Instance | None = None) -> None:
    """Raise BadOrder where no period runs in which hours would count, or GPUs of all that runs are too many."""
    Acceptance.objects.select_for_update(no_key=True).get(pk=agreed.pk)
    if offering.in_force_at(agreed) is None or periods.current(agreed, at=at) is None:
        raise BadOrder("contract", _("It has no period now that counts what you use: look which version is in force."))
    held = Instance.objects.filter(
        project__organization=agreed.organization_id, paid_by=agreed.public_id, quota_held__gt=0
    )
    others = held.exclude(pk=besides.pk) if besides is not None else held
    used = others.aggregate(gpus=Sum("quota_held", default=0))["gpus"]
    _check_gpus(agreed, gpus=gpus, used=used)


def _check_gpus(agreed: Acceptance, *, gpus: int, used: int) -> None:
    covers = written.of(agreed.version.terms).covers
    assert covers is not None, "nothing runs under others"
    if used + gpus > covers["gpus"]:
        text = _("This contract covers %(most)s GPUs at once (revenue/covers/gpus), and %(used)s are in use.")
        raise BadOrder("contract", text % {"most": covers["gpus"], "used": used})
