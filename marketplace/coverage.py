"""Running inside a reservation: which one covers a new run, and how many of its GPUs are not in use."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet, Sum, prefetch_related_objects
from django.utils.translation import gettext

from billing.prepared import Prepared
from marketplace import holdings
from marketplace.blocks import NOTICE
from marketplace.errors import BadOrder
from marketplace.models import BEGUN, USABLE, Offer, Project, Reservation
from provisioning.errors import NoCapacity
from provisioning.models import Gpu, GpuHold, Instance, Node, Phase

LOCKED = Prepared(
    lambda project, offer: (
        Reservation.objects.filter(project=project, offer=offer, state__in=sorted(USABLE))
        .select_for_update(no_key=True, of=("self",))
        .select_related("price_version")
        .order_by("pk")
    ),
    int,
    int,
)


def choose(
    *, project: Project, offer: Offer, gpus: int, attach: str, named: Reservation | None, at: datetime
) -> Reservation | None:
    """Return the reservation that covers a run, locked, or None where it runs on demand.

    Of those that have room the one that ends last, so that the run may go on
    longest. Raises BadOrder where a named one cannot, NoCapacity where a strict
    order finds none.
    """
    if attach == Instance.Attach.FORBID:
        return None
    if named is not None:
        _check_named(named, project, offer)
    locked = [found for found in LOCKED(project.pk, offer.pk) if named is None or found.pk == named.pk]
    free = free_gpus(locked, at=at)
    room = [found for found in locked if free[found.pk] >= gpus]
    if room:
        return max(room, key=lambda found: (found.ends_at, -found.pk))
    if named is not None or attach == Instance.Attach.STRICT:
        most = max(free.values(), default=0)
        raise NoCapacity(
            gettext("No reservation of %(offer)s has %(gpus)s GPUs to spare now; the one with the most has %(most)s.")
            % {"offer": offer.name, "gpus": gpus, "most": most}
        )
    return None


def usable(*, project: Project, offer: Offer, at: datetime) -> list[tuple[Reservation, int]]:
    """Return the reservations that a run may be inside now, each with its free GPUs, the first to end first.

    Four queries.
    """
    found = list(Reservation.objects.filter(project=project, offer=offer, state__in=USABLE).order_by("ends_at", "pk"))
    free = free_gpus(found, at=at)
    return [(one, free[one.pk]) for one in found]


def named(*, project: Project, offer: Offer, reservation_id: str) -> Reservation | None:
    """Return a project's reservation of an offer by its id."""
    return Reservation.objects.filter(project=project, offer=offer, public_id=reservation_id).first()


def for_run(instance: Instance, *, stays_inside: bool, at: datetime) -> Reservation | None:
    """Return what covers the next run of an instance, as its order wanted it; NoCapacity where it `stays_inside`."""
    return choose(
        project=instance.project,
        offer=instance.offer,
        gpus=instance.gpus,
        attach=Instance.Attach.STRICT if stays_inside else instance.attach,
        named=None,
        at=at,
    )


def used_gpus(reservations: Iterable[Reservation]) -> dict[int, int]:
    """Return how many GPUs instances hold in each of these reservations, by primary key. One query."""
    return {pk: used for pk, (used, _) in _sums(reservations).items()}


def delivered_gpus(reservations: Iterable[Reservation]) -> dict[int, int]:
    """Return how many GPUs instances in each of these reservations have on nodes that we reach. One query.

    What waits in a queue has none yet, and what is on a node that is gone has none any more.
    """
    chosen = [reservation.pk for reservation in reservations]
    return dict.fromkeys(chosen, 0) | _counted(_delivered().filter(assignment__instance__reservation__in=chosen))


def uncounted_gpus(*, offer_id: int, starts_at: datetime, ends_at: datetime) -> int:
    """Return how many GPUs blocks have on what is out of service: reserved, but not among the GPUs of the offer.

    Whoever takes what is reserved from what there is would miss them twice. Only of blocks that hold as many
    from a moment to another: what comes after them has its GPUs elsewhere. Three queries, one where there are none.
    """
    out = ~Q(gpu__node__state=Node.State.AVAILABLE) | Q(gpu__node__is_held=True)
    out |= Q(gpu__healthy=False) | Q(gpu__state=Gpu.State.QUARANTINED)
    have = _counted(_delivered().filter(out, assignment__instance__reservation__offer=offer_id))
    if not have:
        return 0
    found = Reservation.objects.filter(pk__in=list(have), state__in=BEGUN).prefetch_related("strips")
    return sum(min(have[one.pk], holdings.least_within(list(one.strips.all()), starts_at, ends_at)) for one in found)


def _delivered() -> QuerySet[GpuHold]:
    reached = [Node.Reachability.ONLINE, Node.Reachability.SUSPECT]
    there = GpuHold.objects.filter(released_at=None, gpu__node__reachability__in=reached)
    return there.filter(assignment__fence=F("assignment__instance__run"))


def _counted(holds: QuerySet[GpuHold]) -> dict[int, int]:
    """Return how many of these GPUs are each reservation's. One query."""
    rows = holds.order_by().values_list("assignment__instance__reservation").annotate(gpus=Count("pk"))
    return dict(rows)


def free_gpus(reservations: Sequence[Reservation], *, at: datetime) -> dict[int, int]:
    """Return how many GPUs of each are there, not in use, and its own for longer than a notice, by primary key.

    Three queries for all of them, none where there are none.
    """
    if not reservations:
        return {}
    prefetch_related_objects(reservations, "strips")
    sums, there = _sums(reservations), delivered_gpus(reservations)
    return {one.pk: _free(one, *sums[one.pk], there=there[one.pk], at=at) for one in reservations}


def _free(reservation: Reservation, used: int, waiting: int, *, there: int, at: datetime) -> int:
    strips = list(reservation.strips.all())
    held = min(holdings.held_at(strips, at), holdings.held_at(strips, at + NOTICE))
    return max(0, min(held - used, held - reservation.missing_gpus - there - waiting))


def _sums(reservations: Iterable[Reservation]) -> dict[int, tuple[int, int]]:
    """Return how many GPUs instances in each of these hold, and of those how many wait in a queue for a node."""
    chosen = [reservation.pk for reservation in reservations]
    holding = GpuHold.objects.filter(released_at=None, assignment__instance=OuterRef("pk"))
    waits = Sum("quota_held", filter=Q(phase=Phase.QUEUED) & ~Exists(holding), default=0)
    inside = Instance.objects.filter(reservation__in=chosen, quota_held__gt=0).order_by()
    rows = inside.values("reservation").annotate(used=Sum("quota_held"), waiting=waits)
    found = {pk: (used, waiting) for pk, used, waiting in rows.values_list("reservation", "used", "waiting")}
    return dict.fromkeys(chosen, (0, 0)) | found


def _check_named(named: Reservation, project: Project, offer: Offer) -> None:
    if named.project_id != project.pk:
        raise BadOrder("reservation", gettext("This reservation is of another project."))
    if named.offer_id != offer.pk:
        raise BadOrder(
            "reservation", gettext("This reservation is of %(offer)s; order that.") % {"offer": named.offer.name}
        )
    if named.state not in USABLE:
        raise BadOrder(
            "reservation",
            gettext("Only an active reservation can be used; this one is: %(state)s.")
            % {"state": named.get_state_display()},
        )
