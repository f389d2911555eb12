"""Volumes: what a customer can ask of them, from every door alike."""

import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from django.db import transaction
from django.db.models import Count, Min, Q, QuerySet, Sum
from django.utils.translation import gettext

from billing import holds, notices, prices, rating, standing
from billing.models import Notice, PriceVersion
from billing.public_ids import new_public_id
from marketplace import audit, costs, instance_texts, spend
from marketplace.access import Actor
from marketplace.errors import BadOrder, Conflict, ProjectSuspended
from marketplace.models import Offer, Project
from marketplace.names import given_once
from provisioning import volumes
from provisioning.errors import IllegalMove, ProvisioningError
from provisioning.models import Instance, Site, Volume

log = structlog.get_logger("marketplace.volumes")

NAME_SHAPE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
VOLUMES_MAX = 200
USES_MAX = 16
HOUR_MS = 3_600_000
# A month, for estimates: 730 hours, as the years have them.
HOURS_PER_MONTH = 730
FIRST_HOUR_LIFE = timedelta(days=7)
# How long volumes are kept for an organization whose funds are used up, before their deletion is asked for.
UNPAID_GRACE = timedelta(days=14)
# How long before that they are told once more.
LAST_CALL = timedelta(days=2)


@dataclass(frozen=True)
class Order:
    """What is to be made: `size_gib` GiB in a site, perhaps as a copy of `source`.

    `offer`: where volumes lie on one node's disk, the node is one of this offer,
    so that its instances can use the volume.
    """

    site: Site
    name: str
    size_gib: int
    source: Volume | None = None
    offer: Offer | None = None


@dataclass(frozen=True)
class Rate:
    """What so many GiB cost, in micros of `currency`."""

    currency: str
    per_gib_hour_micros: int
    per_hour_micros: int
    per_month_micros: int


def price_of(site: Site, *, currency: str, at: datetime) -> PriceVersion:
    """Return today's price per GiB-hour of a site's storage, or raise BadOrder when it is not sold in this currency."""
    price = prices.current(skus=[site.storage_sku], currency=currency, at=at).get(site.storage_sku)
    if price is None:
        raise BadOrder(
            "site",
            gettext("Storage in %(site)s is not for sale in %(currency)s now.")
            % {"site": site.name, "currency": currency},
        )
    return price


def prices_of(sites: Iterable[Site], *, currency: str, at: datetime) -> dict[int, PriceVersion]:
    """Return the price of storage in each of these sites that sells it, by the site's primary key. One query."""
    by_sku = {site.storage_sku: site.pk for site in sites}
    found = prices.current(skus=list(by_sku), currency=currency, at=at)
    return {by_sku[sku]: price for sku, price in found.items()}


def rate(*, price: PriceVersion, size_gib: int) -> Rate:
    """Return what a volume of this size costs per hour and per month (730 hours)."""
    hour, month = (
        rating.amount_micros(micros_per_unit_hour=price.micros_per_unit_hour, unit_milliseconds=size_gib * hours_ms)
        for hours_ms in (HOUR_MS, HOURS_PER_MONTH * HOUR_MS)
    )
    return Rate(
        currency=price.currency,
        per_gib_hour_micros=price.micros_per_unit_hour,
        per_hour_micros=hour,
        per_month_micros=month,
    )


def create(*, actor: Actor, project: Project, order: Order, at: datetime) -> Volume:
    """Make a volume: charged from when its node says that it is there. Its first hour is set aside now.

    Raises BadOrder, ProjectSuspended, BudgetExceeded, InsufficientFunds, NoRoom (no node answers), PolicyExcludes or
    Conflict (name in use).
    """
    return _create(actor, project, order, at)


def snapshot(*, actor: Actor, volume: Volume, name: str, at: datetime) -> Volume:
    """Make a copy of a volume as it is now; it stays as it is, and others can be made from it."""
    order = Order(site=volume.site, name=name, size_gib=volume.size_gib, source=volume)
    return _create(actor, volume.project, order, at, is_snapshot=True)


def _create(actor: Actor, project: Project, order: Order, at: datetime, *, is_snapshot: bool = False) -> Volume:
    _check_open(project)
    _check(project, order)
    with _name_in_use(order.name), transaction.atomic():
        price = price_of(order.site, currency=project.organization.currency, at=at)
        offer_id = order.offer.pk if order.offer is not None else None
        node = (
            order.source.node  # A copy lies beside what it was made of, whatever was ruled since.
            if order.source
            else volumes.choose_node(site=order.site, project_id=project.pk, offer_id=offer_id)
        )
        volume_id = new_public_id("vol")
        # The source's lock comes before the account's, as everywhere.
        volume = volumes.create(
            public_id=volume_id,
            project_id=project.pk,
            node=node,
            site=order.site,
            price_version=price,
            name=order.name,
            size_gib=order.size_gib,
            source=order.source,
            is_snapshot=is_snapshot,
            token_id=actor.token.pk if actor.token else None,
            at=at,
        )
        volume.project = project
        _check_budgets(volume, actor=actor, at=at)
        _hold_first_hour(volume, cause="1", at=at)
        after = {"name": order.name, "site": order.site.slug, "size_gib": order.size_gib}
        audit.record_of(
            volume,
            "volume.snapshot" if is_snapshot else "volume.create",
            actor=actor,
            after=after | ({"source": order.source.public_id} if order.source else {}),
        )
    return volume


def _check(project: Project, order: Order) -> None:
    check_name(order.name)
    check_size(order.size_gib)
    if order.offer is not None and order.offer.site_id != order.site.pk:
        raise BadOrder("offer", gettext("%(offer)s is not in this site.") % {"offer": order.offer.name})
    source = order.source
    if source is not None and source.site_id != order.site.pk:
        raise BadOrder("source", gettext("A copy is made in the site of its source, %(site)s.") % {"site": source.site})
    if source is not None and order.size_gib < source.size_gib:
        raise BadOrder(
            "size_gib", gettext("A copy is at least as big as its source, %(size)s GiB.") % {"size": source.size_gib}
        )
    if Volume.objects.filter(~Q(state=Volume.State.DELETED), project=project).count() >= VOLUMES_MAX:
        raise Conflict(
            gettext("A project has at most %(most)s volumes; delete what you do not need.") % {"most": VOLUMES_MAX}
        )


def check_name(name: str) -> None:
    """Raise BadOrder for a name that no volume can have."""
    if not NAME_SHAPE.fullmatch(name):
        message = gettext("Use 1 to 63 lower-case letters, digits and hyphens; begin and end with a letter or digit.")
        raise BadOrder("name", message)


def check_size(size_gib: int) -> None:
    """Raise BadOrder for a size that no volume can have."""
    if not 1 <= size_gib <= volumes.SIZE_GIB_MAX:
        raise BadOrder("size_gib", gettext("A volume has 1 to %(most)s GiB.") % {"most": f"{volumes.SIZE_GIB_MAX:,}"})


def check_uses(uses: Sequence[volumes.Use], *, offer: Offer) -> None:
    """Raise BadOrder when an instance of this offer cannot have these volumes at these paths."""
    site = offer.site
    if offer.runtime != Offer.Runtime.PODMAN and any(use.read_only for use in uses):
        text = gettext("%(offer)s runs commands on the node itself, where nothing would keep a volume read-only.")
        raise BadOrder("volumes", text % {"offer": offer.name})
    if len(uses) > USES_MAX:
        raise BadOrder("volumes", gettext("An instance has at most %(most)s volumes.") % {"most": USES_MAX})
    taken: list[str] = []
    for use in uses:
        if why := volumes.why_no_path(use.path):
            raise BadOrder("volumes", why)
        if any(_overlap(use.path, path) for path in taken):
            raise BadOrder("volumes", gettext("%(path)s lies inside the path of another.") % {"path": use.path})
        taken.append(use.path)
        if use.volume.site_id != site.pk:
            raise BadOrder(
                "volumes",
                gettext("The volume %(name)s is in %(there)s, the instance in %(here)s; both have to be in one site.")
                % {"name": use.volume.name, "there": use.volume.site.name, "here": site.name},
            )
    if len({use.volume.pk for use in uses}) != len(uses):
        raise BadOrder("volumes", gettext("A volume is named twice."))


def _overlap(path: str, other: str) -> bool:
    return f"{path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path}/")


@transaction.atomic
def attach(*, actor: Actor, use: volumes.Use, instance: Instance, at: datetime) -> None:
    """Attach a volume to an instance at rest; its next start finds it there."""
    volume = use.volume
    if volume.project_id != instance.project_id:
        raise BadOrder("instance", gettext("The volume and the instance belong to different projects."))
    others = [volumes.Use(other.volume, other.path, other.read_only) for other in volumes.uses_of(instance)]
    check_uses([*others, use], offer=instance.offer)
    volumes.attach(use=use, instance=instance, at=at)
    audit.record_of(volume, "volume.attach", actor=actor, after={"instance": instance.public_id, "path": use.path})


@transaction.atomic
def detach(*, actor: Actor, volume: Volume, at: datetime) -> None:
    """Take a volume from an instance at rest. Detaching what is not attached changes nothing."""
    instance = volumes.detach(volume=volume, at=at)
    if instance is not None:
        audit.record_of(volume, "volume.detach", actor=actor, before={"instance": instance.public_id})


@transaction.atomic
def resize(*, actor: Actor, volume: Volume, size_gib: int, at: datetime) -> None:
    """Make a volume bigger, at the price of now; the first hour of the new size is set aside."""
    if size_gib == volume.size_gib:
        return
    _check_open(volume.project)
    check_size(size_gib)
    was = volume.size_gib
    price = price_of(volume.site, currency=volume.project.organization.currency, at=at)
    volumes.resize(volume=volume, size_gib=size_gib, price_version=price, at=at)
    volume.size_gib, volume.price_version = size_gib, price
    _check_budgets(volume, actor=actor, at=at)
    _hold_first_hour(volume, cause=f"{size_gib}-gib", at=at)
    audit.record_of(volume, "volume.resize", actor=actor, before={"size_gib": was}, after={"size_gib": size_gib})


@transaction.atomic
def change(*, actor: Actor, volume: Volume, name: str | None, size_gib: int | None, at: datetime) -> None:
    """Rename and resize in one, or neither."""
    if size_gib is not None:
        resize(actor=actor, volume=volume, size_gib=size_gib, at=at)
    if name is not None:
        rename(actor=actor, volume=volume, name=name)


def rename(*, actor: Actor, volume: Volume, name: str) -> None:
    """Give a volume another name, unique among the living ones of its project."""
    was = volume.name
    if name == was:
        return
    check_name(name)
    if refusal := volumes.actions(volume)["rename"]:
        raise IllegalMove(refusal)
    with _name_in_use(name), transaction.atomic():
        volumes.rename(volume=volume, name=name)
        audit.record_of(volume, "volume.rename", actor=actor, before={"name": was}, after={"name": name})


@transaction.atomic
def delete(*, actor: Actor, volume: Volume, at: datetime) -> None:
    """Ask for a volume's end: charges end now, and until the grace is over it can be restored."""
    volumes.delete(volume=volume, at=at, message=instance_texts.VOLUME_DELETED(who=actor.name))
    audit.record_of(volume, "volume.delete", actor=actor, before={"name": volume.name, "size_gib": volume.size_gib})


@transaction.atomic
def restore(*, actor: Actor, volume: Volume, at: datetime) -> None:
    """Take a deletion back, as if it had never been asked for: the time since then is charged too.

    Its first hour is set aside, as for a new one.
    """
    _check_open(volume.project)
    volumes.restore(volume=volume, at=at)
    _check_budgets(volume, actor=actor, at=at)
    _hold_first_hour(volume, cause=f"restored-{at:%Y%m%dT%H%M%S}", at=at)
    audit.record_of(volume, "volume.restore", actor=actor)


def mind_unpaid(*, at: datetime, limit: int) -> int:
    """Start, stop and follow the clock of volumes that nobody can pay for; return how many are asked to be deleted.

    They are kept, and charged as owed, for `UNPAID_GRACE` after the funds were
    used up; then their deletion is asked for, and can be taken back like any
    other. Credit that comes meanwhile stops the clock.
    """
    alive = Volume.objects.filter(state__in=[Volume.State.AVAILABLE, Volume.State.ATTACHED])
    # Read once: the same organizations for both halves.
    broke = standing.stopped(at=at)
    alive.exclude(project__organization__in=broke).exclude(unpaid_since=None).update(unpaid_since=None)
    alive.filter(project__organization__in=broke, unpaid_since=None).update(unpaid_since=at)
    _tell(alive, at=at)
    late = alive.filter(unpaid_since__lte=at - UNPAID_GRACE, project__organization__in=broke).order_by("pk")
    deleted = 0
    for volume in late.select_related("project__organization", "node", "site", "price_version")[:limit]:
        try:
            with transaction.atomic():
                volumes.detach(volume=volume, at=at)
                days = UNPAID_GRACE // timedelta(days=1)
                message = instance_texts.VOLUME_UNPAID(days=days)
                volumes.delete(volume=volume, at=at, message=message)
        except ProvisioningError:
            # Its instance is still being stopped: the next sweep looks again, the others come first.
            log.warning("unpaid volume not deleted", volume=volume.public_id, exc_info=True)
            continue
        log.warning("deletion of an unpaid volume", volume=volume.public_id, delete_after=at + volumes.GRACE)
        _tell_deleted(volume, at=at)
        deleted += 1
    return deleted


def _tell(alive: QuerySet[Volume], *, at: datetime) -> None:
    """Tell whose clock runs, at its start and once more shortly before its end."""
    clocks = alive.exclude(unpaid_since=None).values("project__organization").order_by()
    news = []
    for row in clocks.annotate(since=Min("unpaid_since"), count=Count("pk"), gib=Sum("size_gib")):
        organization_id, until = row["project__organization"], row["since"] + UNPAID_GRACE
        facts = {"count": str(row["count"]), "gib": str(row["gib"]), "until": until.isoformat()}
        kinds = [Notice.Kind.VOLUMES_KEPT] + ([Notice.Kind.VOLUMES_SOON] if at >= until - LAST_CALL else [])
        key = f"{organization_id}:{row['since']:%Y%m%dT%H%M%S}"
        news += [notices.News(organization_id, kind, f"{kind}:{key}", facts) for kind in kinds]
    notices.tell(news, at=at)


def _tell_deleted(volume: Volume, *, at: datetime) -> None:
    facts = {"name": volume.name, "gib": str(volume.size_gib), "until": (at + volumes.GRACE).isoformat()}
    kind = Notice.Kind.VOLUMES_DELETED
    key = f"{kind}:{volume.public_id}:{at:%Y%m%dT%H%M%S}"
    notices.tell([notices.News(volume.project.organization_id, kind, key, facts)], at=at)


def billing_of(volume: Volume) -> costs.Billing:
    """Return whether its meter runs."""
    if volume.is_charged:
        return costs.Billing.RUNNING
    if volume.ready_at is None:
        return costs.Billing.NOT_STARTED
    is_alive = volume.state in {Volume.State.AVAILABLE, Volume.State.ATTACHED}
    return costs.Billing.PAUSED if is_alive else costs.Billing.ENDED


def deleted_when_unpaid(volume: Volume) -> datetime | None:
    """Return when the deletion of a volume will be asked for unless credit is added; None where it is paid for."""
    return volume.unpaid_since + UNPAID_GRACE if volume.unpaid_since else None


def kept_in(sites: Iterable[Site]) -> dict[int, int]:
    """Return how many volumes each of these sites keeps, by the site's primary key."""
    alive = Volume.objects.filter(~Q(state=Volume.State.DELETED), site__in=list(sites)).order_by()
    return dict(alive.values_list("site").annotate(count=Count("pk")))


def _check_open(project: Project) -> None:
    if project.is_suspended:
        raise ProjectSuspended(
            gettext("%(project)s is suspended, so nothing can start there; ask the operator why.")
            % {"project": project.name}
        )


def _check_budgets(volume: Volume, *, actor: Actor, at: datetime) -> None:
    """Raise BudgetExceeded where its first hour would pass a budget; by the hour volumes count for none. Locked after
    the volume and before accounts, as by whoever rents."""
    first_hour = rate(price=volume.price_version, size_gib=volume.size_gib).per_hour_micros
    spend.check(project=volume.project, token=actor.token, worst_case_micros=first_hour, hourly_micros=0, at=at)


def _hold_first_hour(volume: Volume, *, cause: str, at: datetime) -> None:
    found = rate(price=volume.price_version, size_gib=volume.size_gib)
    holds.place(
        key=f"first-hour:{volume.public_id}:{cause}",
        organization=volume.project.organization,
        amount_micros=found.per_hour_micros,
        purpose="first hour",
        resource_id=volume.public_id,
        expires_at=at + FIRST_HOUR_LIFE,
    )


def _name_in_use(name: str) -> AbstractContextManager[None]:
    text = gettext("The project has a volume named %(name)s already; choose another name.")
    return given_once("volume_name_once_per_project", text % {"name": name})
