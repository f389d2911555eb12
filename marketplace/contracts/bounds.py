"""What work under a contract may cost the platform: where it runs, how long, how often, and how much of it unpaid.

The customer pays for results and the platform for the hours (`billing/outcomes/costs.py`). An order whose worst case is
beyond its terms is refused here, with the term's name; while it runs, no attempt starts that could pass them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, QuerySet
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing.outcomes import margins
from marketplace.contracts import terms as written
from marketplace.contracts.wording import span
from marketplace.errors import BadOrder
from marketplace.models import Attempt, Claim, ContractVersion, Job, Offer, Organization, Task
from marketplace.money import shown
from provisioning import told
from provisioning.told import Told

TOO_DEAR = Told(
    gettext_lazy("An attempt may cost %(cost)s by the list; its contract (work/attempt_micros) allows %(most)s.")
)
USED_UP = Told(
    gettext_lazy(
        "Work that was not paid for has cost as much as its contract (work/unpaid_micros) allows: %(most)s. Nothing "
        "was charged for it; accept results that wait for you, or ask the seller."
    )
)


@dataclass(frozen=True)
class Asked:
    """What a job asks for each of its tasks; `attempt_micros` is what an attempt costs by the list at most."""

    offer: Offer
    gpus: int
    seconds: int
    attempt_micros: int


def check(version: ContractVersion, asked: Asked, *, organization: Organization) -> None:
    """Raise BadOrder naming the field of the job, and the term that it passes."""
    terms = written.of(version.terms)
    work = terms.work
    if work is None:
        raise BadOrder("contract", _("No job runs under this contract (work)."))
    offers = work["offers"]
    if offers is not None and not {asked.offer.slug, asked.offer.public_id} & set(offers):
        text = _("By its contract (work/offers) it runs on %(offers)s alone.")
        raise BadOrder("offer", text % {"offers": ", ".join(offers)})
    if asked.gpus > work["gpus"]:
        text = _("By its contract (work/gpus) a task has no more GPUs than %(most)s.")
        raise BadOrder("gpus", text % {"most": work["gpus"]})
    if asked.seconds > work["seconds"]:
        text = _("By its contract (work/seconds) an attempt takes %(span)s at most.")
        raise BadOrder("time_limit", text % {"span": span(work["seconds"])})
    if asked.attempt_micros > work["attempt_micros"]:
        raise BadOrder("time_limit", told.shown(too_dear(version, asked.attempt_micros)))
    if asked.attempt_micros > unpaid_left(version, organization):
        raise BadOrder("contract", told.shown(used_up(version)))


def too_dear(version: ContractVersion, attempt_micros: int) -> str:
    """Return as it is written down that an attempt may cost the platform more than the terms of its contract allow."""
    terms = written.of(version.terms)
    cost, most = (
        shown(micros, terms.currency, exact=True) for micros in (attempt_micros, _work(version)["attempt_micros"])
    )
    return TOO_DEAR(cost=cost, most=most)


def used_up(version: ContractVersion) -> str:
    """Return as it is written down that unpaid work has cost the platform as much as the terms allow."""
    terms = written.of(version.terms)
    return USED_UP(most=shown(_work(version)["unpaid_micros"], terms.currency))


def unpaid_left(version: ContractVersion, organization: Organization) -> int:
    """Return what work of a customer may still cost by the list, beyond what its results brought the platform.

    All that it bought of the same seller counts, whatever the version. Hours that a fault of ours cost do not.
    """
    platform_bps = {row.public_id: written.of(row.terms).platform_bps for row in sold_with(version)}
    lost = Attempt.objects.filter(
        state=Attempt.State.FAULTED, job__project__organization=organization, job__contract__in=list(platform_bps)
    )
    cost = margins.cost_micros(
        organization_id=organization.pk, versions=platform_bps, without=lost.values("instance__public_id")
    )
    net = margins.net_micros(organization_id=organization.pk, versions=platform_bps)
    brought = sum(micros * platform_bps[name] // written.BP for name, micros in net.items())
    return int(_work(version)["unpaid_micros"]) - (cost - brought)


def is_under_way(version: ContractVersion, organization: Organization) -> bool:
    """Return whether results of a customer may still bring the platform something: one that runs, or is not closed."""
    seller = version.contract.seller_id
    open_claims = Claim.objects.filter(organization=organization, contract__seller=seller, closed_at=None)
    jobs = Job.objects.filter(
        project__organization=organization, contract__in=sold_with(version).values("public_id")
    )  # fmt: skip
    return open_claims.exists() or jobs.exclude(running=0, verifying=0).exists()


def sold_with(version: ContractVersion) -> QuerySet[ContractVersion]:
    """Return all versions that the seller of this one sells, this one among them: they are bounded together."""
    return ContractVersion.objects.filter(contract__seller=version.contract.seller_id)


def tried_out(job: Job, tasks: Sequence[Task]) -> set[int]:
    """Return which of these tasks of a job, by their keys, were tried as often as its contract allows.

    What a fault of ours ended counts nothing, nor what never had its GPUs: that cost nothing.
    """
    if not job.contract or not tasks:
        return set()
    tries = Attempt.objects.filter(task__in=tasks, began_at__isnull=False).exclude(state=Attempt.State.FAULTED)
    counted = tries.order_by().values_list("task").annotate(count=Count("pk"))
    most = int(_work(version_of(job))["attempts"])
    return {task for task, count in counted if count >= most}


def version_of(job: Job) -> ContractVersion:
    """Return the version by whose terms a job is paid."""
    return ContractVersion.objects.select_related("contract__seller").get(public_id=job.contract)


def _work(version: ContractVersion) -> Mapping[str, Any]:
    work = written.of(version.terms).work
    assert work is not None, "no job runs under others"
    return work
