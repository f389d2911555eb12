"""Where results can be verified by what runs on a node, and what that costs the platform at most."""

from datetime import datetime

from django.db.models import Q

from billing import prices, rating
from marketplace import offers
from marketplace.contracts import terms as written
from marketplace.models import ContractVersion, Offer, Organization

# Verifiers that need GPUs themselves.
ON_NODES = ("command", "rerun")


def hosts(version: ContractVersion, own: Offer, customer: Organization | None) -> list[Offer]:
    """Return where results of tasks on this offer can be verified: never with whoever sells, has a share, or pays.

    `customer` is who pays, None where that is not known yet. A second run needs the same GPU model. The offer itself
    comes first, where its supplier may verify.
    """
    terms = written.of(version.terms)
    concerned = {version.contract.seller.public_id, *terms.beneficiaries}
    if customer is not None:
        concerned.add(customer.public_id)
    found = offers.listed(gpu_model=own.gpu_model if terms.verifier == "rerun" else "")
    apart = [one for one in found if one.supplier.public_id not in concerned and one.runtime == own.runtime]
    return sorted(apart, key=lambda one: (one.pk != own.pk, one.gpu_model != own.gpu_model, one.pk))


def most_micros(version: ContractVersion, own: Offer, customer: Organization | None, *, gpus: int, at: datetime) -> int:
    """Return what verifying one result of a task on this offer costs the platform at most, by the list of now.

    That is all tries with all of their time, on the dearest host that may verify it; nothing where it takes no node.
    `gpus` are those of the task, which a second run takes again.
    """
    terms = written.of(version.terms)
    if terms.verifier not in ON_NODES:
        return 0
    verifier = terms["verifier"]
    skus = [one.sku for one in hosts(version, own, customer)]
    sold = prices.current(skus=skus, currency=terms.currency, at=at).values()
    rate = max((price.micros_per_unit_hour for price in sold), default=0)
    milliseconds = (verifier["gpus"] if terms.verifier == "command" else gpus) * verifier["timeout_s"] * 1000
    each = rating.amount_micros(micros_per_unit_hour=rate, unit_milliseconds=milliseconds)
    return int(verifier["runs"]) * each


def least_micros(version: ContractVersion, *, at: datetime) -> int:
    """Return what verifying one result costs the platform at most, where its tasks may run that this is least for."""
    terms = written.of(version.terms)
    if terms.work is None or terms.verifier not in ON_NODES:
        return 0
    places, names, customer = offers.listed(), terms.work["offers"], version.contract.buyer
    if names is not None:
        places = places.filter(Q(slug__in=names) | Q(public_id__in=names))
    able = [own for own in places if hosts(version, own, customer)]
    return min((most_micros(version, own, customer, gpus=own.min_gpus, at=at) for own in able), default=0)
