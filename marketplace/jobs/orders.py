"""What a task rents: the order of a job, told apart by its task and attempt."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from django.utils.translation import gettext

from billing import rating
from marketplace import access, bids, held, rentals
from marketplace.errors import BadOrder, NotFound
from marketplace.jobs.spec import Spec
from marketplace.models import Attempt, Job, Offer, Project, Reservation, Task
from provisioning.models import Instance
from provisioning.volumes import Use
from provisioning.work import Work

Market = Job.Market
# Of the job's own id, enough that instances of two jobs never have one name.
ID_LETTERS = 10
NODES_AVOIDED_MAX = 3


def of_spec(spec: Spec, *, project: Project, offer: Offer, paid_by: str = "") -> rentals.Order:
    """Return the order that every task of a job makes, or raise BadOrder naming the field."""
    attach = Instance.Attach.AUTO
    if spec.market == Market.RESERVED:
        attach = Instance.Attach.STRICT
    elif spec.market == Market.SPOT:
        attach = Instance.Attach.FORBID
    return rentals.Order(
        offer=offer,
        command=spec.command,
        gpus=spec.gpus,
        replicas=spec.replicas,
        env=spec.env,
        image=spec.image,
        lease=Instance.Lease.STRICT,
        attach=attach,
        reservation=_reservation(spec, project),
        uses=[_use(one, project) for one in spec.volumes],
        work=Work(
            inputs=spec.inputs,
            outputs=tuple(spec.outputs),
            checkpoint=spec.checkpoint,
            has_network=spec.has_network,
            paid_by=paid_by,
            counters=spec.counters,
            time_limit_s=spec.time_limit_s,
            disk_bytes=spec.disk_bytes,
        ),
    )


def of_task(
    order: rentals.Order, job: Job, task: Task, *, last: Attempt | None, avoid: Collection[str]
) -> rentals.Order:
    """Return the order of a task's next attempt, which begins with the checkpoint of the last one."""
    number = task.attempts + 1
    own = {"GPUMARKET_JOB": job.public_id, "GPUMARKET_TASK": str(task.index), "GPUMARKET_ATTEMPT": str(number)}
    work = replace(
        order.work,
        checkpoint_sha256=last.checkpoint_sha256 if last is not None and order.work.checkpoint else "",
        avoid_nodes=tuple(sorted(avoid)),
    )
    letters = job.public_id.partition("_")[2][:ID_LETTERS]
    return replace(
        order,
        name=f"job-{letters}-{task.index}-{number}",
        env={**(order.env or {}), **task.parameters, **own},
        work=work,
    )


def rate_micros(spec: Spec, *, project: Project, offer: Offer, at: datetime) -> int:
    """Return the most that a GPU-hour of a job costs now, or raise BadOrder where its market does not sell so."""
    currency = project.organization.currency
    if spec.market == Market.RESERVED:
        return 0
    if spec.market == Market.SPOT:
        terms = bids.terms_of(offer, currency=currency)
        price = spec.max_price_micros
        if price is None:
            price = bids.ceiling_micros(terms, at=at)
        if price is None:
            raise BadOrder("max_price", gettext("Say the most that a GPU-hour may cost, such as 2.50."))
        bids.check_price(terms, price, at=at)
        return price
    return rentals.price_of(offer, currency=currency, at=at).micros_per_unit_hour


def attempt_micros(*, gpus: int, rate: int, time_limit_s: int) -> int:
    """Return what an attempt costs that takes all of its time."""
    milliseconds = timedelta(seconds=time_limit_s) // timedelta(milliseconds=1)
    return rating.amount_micros(micros_per_unit_hour=rate, unit_milliseconds=gpus * milliseconds)


def _reservation(spec: Spec, project: Project) -> Reservation | None:
    if not spec.reservation:
        return None
    try:
        return held.reservation_of(project, spec.reservation)
    except NotFound as error:
        raise BadOrder("reservation", gettext("The project has no such reservation.")) from error


def _use(one: Mapping[str, Any], project: Project) -> Use:
    try:
        volume = access.volume_of(project, one["volume"])
    except NotFound as error:
        raise BadOrder("volumes", gettext("The project has no volume %(name)s.") % {"name": one["volume"]}) from error
    return Use(volume, one["path"], bool(one.get("read_only")))
