"""Volumes: make, attach, detach, copy, grow, delete with time to think again.

What nodes say of them, and what follows from it, is `upkeep`. Lock order: workflow, instance, volume, quota,
account, node, assignment.
"""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Count, Exists, F, OuterRef, Prefetch, Q, QuerySet
from django.utils.translation import gettext as _

from billing import usage
from billing.models import PriceVersion, UsageSpan
from billing.public_ids import new_public_id
from provisioning import decisions, policies
from provisioning.errors import IllegalMove, NoCapacity, NoRoom, PolicyExcludes
from provisioning.models import AT_REST, Instance, Node, Phase, Site, Volume, VolumeAttachment

State, Health, Observed = Volume.State, Volume.Health, Volume.Observed

# How long a deletion can be taken back.
GRACE = timedelta(hours=72)
SIZE_GIB_MAX = 16_384
PATH_LENGTH_MAX = 200
PATH_SHAPE = re.compile(r"(/[A-Za-z0-9._-]+)+")
# Folders of the system: a volume over one of them would hide the programs that are to use it.
SYSTEM_FOLDERS = frozenset(
    {"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "usr", "var"}
)
# Folders in which a volume may lie but which it may not replace.
SHARED_FOLDERS = frozenset({"/home", "/mnt", "/opt", "/root", "/srv", "/tmp", "/media", "/workspace"})  # noqa: S108  names, not files
WARN_PERCENT = 90
SILENT = (Node.Reachability.UNREACHABLE, Node.Reachability.LOST)


@dataclass(frozen=True)
class Use:
    """A volume that an instance is to find at a path."""

    volume: Volume
    path: str
    read_only: bool = False


def why_no_path(path: str) -> str:
    """Return why a volume cannot appear at this path, as a sentence; empty when it can."""
    if not path.startswith("/"):
        return _("A path begins with a slash, such as /data.")
    if len(path) > PATH_LENGTH_MAX or not PATH_SHAPE.fullmatch(path):
        return _("A path has letters, digits, dots, hyphens and underscores between single slashes.")
    folders = path[1:].split("/")
    if "." in folders or ".." in folders:
        return _("A path cannot contain “.” or “..” as a folder.")
    if folders[0] in SYSTEM_FOLDERS or path in SHARED_FOLDERS:
        return _("%(path)s belongs to the system; use a folder such as /data.") % {"path": path}
    return ""


def choose_node(*, site: Site, project_id: int, offer_id: int | None = None) -> Node:
    """Return the node that is to keep a project's volume: the one that keeps the fewest, of the offer if one is named.

    Raises NoRoom where no node of the site answers, PolicyExcludes where a
    policy lets none of them have it. What lies on a node itself needs one on
    which the tenant may run.
    """
    nodes = Node.objects.filter(
        fabric__site=site, state=Node.State.AVAILABLE, reachability=Node.Reachability.ONLINE, driver="agent"
    )
    if offer_id is not None:
        nodes = nodes.filter(offer_id=offer_id)
    nodes = _allowed(nodes, site, project_id)
    kept = Count("volumes", filter=~Q(volumes__state=State.DELETED))
    node = nodes.annotate(kept=kept).order_by("kept", "-free_gpus", "pk").first()
    if node is None:
        raise NoRoom(_("No node of %(site)s can keep a volume now.") % {"site": site})
    return node


def _allowed(nodes: QuerySet[Node], site: Site, project_id: int) -> QuerySet[Node]:
    offers = set(nodes.order_by().values_list("offer_id", flat=True))
    excluded = policies.exclusions((project_id, offer_id) for offer_id in offers)
    if offers and len(excluded) == len(offers):
        rules = dict.fromkeys(rule for found in excluded.values() for rule in found)
        why = _(
            "A policy keeps the volume out of %(site)s: it is %(rules)s. No policy is ever relaxed; choose another."
        )
        raise PolicyExcludes(why % {"site": site.name, "rules": decisions.said(rules)})
    nodes = nodes.exclude(offer_id__in=[offer_id for _project, offer_id in excluded])
    if site.volume_kind != Site.VolumeKind.LOCAL:
        return nodes
    return nodes.filter(Q(exclusive_to=None) | Q(exclusive_to__projects=project_id))


@transaction.atomic
def create(
    *,
    project_id: int,
    node: Node,
    site: Site,
    price_version: PriceVersion,
    name: str,
    size_gib: int,
    at: datetime,
    public_id: str = "",
    source: Volume | None = None,
    is_snapshot: bool = False,
    token_id: int | None = None,
) -> Volume:
    """Write a volume down and tell its node; it is charged from when the node says that it is there."""
    if source is not None:
        source = lock([source])[0]
        _refuse(_why_not_copied(source))
        node = source.node
    volume = Volume.objects.create(
        public_id=public_id or new_public_id("vol"),
        project_id=project_id,
        site=site,
        node=node,
        kind=site.volume_kind,
        price_version=price_version,
        name=name,
        size_gib=size_gib,
        source=source,
        is_snapshot=is_snapshot,
        ordered_with_id=token_id,
        created_at=at,
    )
    tell(node.pk)
    return volume


def lock(volumes: Iterable[Volume]) -> list[Volume]:
    """Lock these volumes in id order until the transaction ends, and return them as they are now."""
    rows = Volume.objects.filter(pk__in=[volume.pk for volume in volumes]).order_by("pk")
    return list(rows.select_for_update(of=("self",), no_key=True).select_related("node", "site", "price_version"))


def attach_at_launch(*, instance: Instance, uses: Sequence[Use], at: datetime) -> list[VolumeAttachment]:
    """Attach volumes to an instance that is being made."""
    wanted = {use.volume.pk: use for use in uses}
    locked = lock([use.volume for use in uses])
    made = [_attach(replace(wanted[volume.pk], volume=volume), instance, at) for volume in locked]
    return sorted(made, key=lambda attachment: attachment.path)


@transaction.atomic
def attach(*, use: Use, instance: Instance, at: datetime) -> VolumeAttachment:
    """Attach a volume to an instance at rest; its next start finds it there."""
    instance = _lock_instance(instance)
    _refuse(_why_not_at_rest(instance))
    return _attach(replace(use, volume=lock([use.volume])[0]), instance, at)


def _attach(use: Use, instance: Instance, at: datetime) -> VolumeAttachment:
    _refuse(actions(use.volume)["attach"])
    attachment = VolumeAttachment.objects.create(
        volume=use.volume, instance=instance, path=use.path, read_only=use.read_only, attached_at=at
    )
    Volume.objects.filter(pk=use.volume.pk).update(state=State.ATTACHED)
    return attachment


@transaction.atomic
def detach(*, volume: Volume, at: datetime) -> Instance | None:
    """Take a volume from an instance at rest and return that; None where it was not attached."""
    live = live_attachment(volume)
    if live is None:
        return None
    instance = _lock_instance(live.instance)
    _refuse(_why_not_at_rest(instance))
    lock([volume])
    _let_go(VolumeAttachment.objects.filter(pk=live.pk), at)
    return instance


def let_go(*, instance: Instance, at: datetime) -> None:
    """Free the volumes of an instance that has ended for good."""
    _let_go(VolumeAttachment.objects.filter(instance=instance), at)


def _let_go(attachments: QuerySet[VolumeAttachment], at: datetime) -> None:
    live = attachments.filter(detached_at=None)
    volume_ids = sorted(live.values_list("volume_id", flat=True))
    if volume_ids:
        live.update(detached_at=at)
        Volume.objects.filter(pk__in=volume_ids, state=State.ATTACHED).update(state=State.AVAILABLE)


@transaction.atomic
def resize(*, volume: Volume, size_gib: int, price_version: PriceVersion, at: datetime) -> None:
    """Make a volume bigger, at the price of now; the old size is charged until `at`, the new one from then."""
    volume = lock([volume])[0]
    _refuse(actions(volume)["resize"])
    if size_gib <= volume.size_gib:
        raise IllegalMove(_("%(name)s has %(size)s GiB; a volume can only grow.") % _named(volume))
    was_charged = volume.is_charged
    volume.size_gib, volume.price_version = size_gib, price_version
    volume.save(update_fields=["size_gib", "price_version"])
    if was_charged:
        stop_meter(volume, at)
        start_meter(volume, at)
    tell(volume.node_id)


@transaction.atomic
def delete(*, volume: Volume, at: datetime, message: str = "") -> None:
    """Ask for a volume's end. Charges end now; until `delete_after` it can be restored. What never was goes at once."""
    volume = lock([volume])[0]
    _refuse(actions(volume)["delete"])
    grace = GRACE if volume.ready_at else timedelta(0)
    volume.state, volume.message = State.DELETING, message
    volume.delete_requested_at, volume.delete_after = at, at + grace
    if not grace:
        volume.desired = Volume.Desired.GONE
        tell(volume.node_id)
    volume.save(update_fields=["state", "message", "desired", "delete_requested_at", "delete_after"])
    stop_meter(volume, at)


@transaction.atomic
def restore(*, volume: Volume, at: datetime) -> None:
    """Take a deletion back: as if it had never been asked for, so the time since then is charged too."""
    volume = lock([volume])[0]
    _refuse(actions(volume)["restore"])
    asked_at = volume.delete_requested_at
    volume.state, volume.message = State.AVAILABLE, ""
    volume.delete_requested_at = volume.delete_after = volume.unpaid_since = None
    volume.save(update_fields=["state", "message", "delete_requested_at", "delete_after", "unpaid_since"])
    if volume.is_charged:
        start_meter(volume, asked_at or at)


def rename(*, volume: Volume, name: str) -> None:
    """Give it another name; usage that is already measured keeps the old one."""
    Volume.objects.filter(pk=volume.pk).update(name=name)
    volume.name = name


def tell(node_id: int) -> None:
    """Make a node ask for its list anew."""
    Node.objects.filter(pk=node_id).update(desired_generation=F("desired_generation") + 1)


# Questions.

COPIES = Volume.objects.filter(state=State.CREATING)


def shown(volumes: QuerySet[Volume]) -> QuerySet[Volume]:
    """Bring along what `actions` and the pages ask of each volume, however many there are. Two queries."""
    live = VolumeAttachment.objects.filter(detached_at=None).select_related("instance")
    return (
        volumes.select_related("project__organization", "site", "node__offer", "price_version", "source")
        .annotate(is_being_copied=Exists(COPIES.filter(source=OuterRef("pk"))))
        .prefetch_related(Prefetch("attachments", live, to_attr="live_attachments"))
    )


def live_attachment(volume: Volume) -> VolumeAttachment | None:
    """Return who uses the volume now."""
    known: list[VolumeAttachment] | None = getattr(volume, "live_attachments", None)
    if known is None:
        known = list(volume.attachments.filter(detached_at=None).select_related("instance"))
    return known[0] if known else None


def home_of(uses: Iterable[Volume]) -> int | None:
    """Return the node that an instance with these volumes has to run on; None where any node of the site will do.

    Raises NoCapacity when they lie on different nodes.
    """
    homes = {volume.node_id for volume in uses if volume.kind == Site.VolumeKind.LOCAL}
    if len(homes) > 1:
        raise NoCapacity(_("These volumes lie on different nodes, so no instance can use them together."))
    return homes.pop() if homes else None


def homes_of(instances: Iterable[Instance]) -> dict[int, int | None]:
    """Return by primary key the node on which each has to run, None for any, as `home_of` does. At most one query.

    Those whose volumes lie on different nodes, which can run nowhere, are left out.
    """
    found: dict[int, int | None] = {}
    for pk, mounts in mounts_of(instances).items():
        with suppress(NoCapacity):
            found[pk] = home_of(mount.volume for mount in mounts)
    return found


def of_instance(instance: Instance) -> list[Volume]:
    """Return the volumes that are attached to an instance."""
    live = Volume.objects.filter(attachments__instance=instance, attachments__detached_at=None)
    return list(live.select_related("node", "site").order_by("pk"))


def uses_of(instance: Instance) -> list[VolumeAttachment]:
    """Return what an instance has attached, and where."""
    live = VolumeAttachment.objects.filter(instance=instance, detached_at=None)
    return list(live.select_related("volume__site").order_by("path"))


def mounts_of(instances: Iterable[Instance]) -> dict[int, list[VolumeAttachment]]:
    """Return what each instance has attached, and where, by primary key. One query, none for what was just made."""
    instances = list(instances)
    found = {instance.pk: list(instance.attached or ()) for instance in instances}
    unknown = [instance.pk for instance in instances if instance.attached is None]
    if unknown:
        live = VolumeAttachment.objects.filter(instance__in=unknown, detached_at=None)
        for row in live.select_related("volume").order_by("path"):
            found[row.instance_id].append(row)
    return found


def why_not_started(instance: Instance) -> str:
    """Return why the volumes of a stopped instance keep it from starting; empty when they do not."""
    for volume in of_instance(instance):
        if refusal := _why_not_used(volume):
            return refusal
    return ""


def actions(volume: Volume) -> dict[str, str]:
    """Return what may be asked now: each verb with a sentence why not, empty when it may."""
    state = State(volume.state)
    shown = _named(volume)
    not_ready = ""
    if state in {State.CREATING, State.FAILED, State.DELETING, State.DELETED}:
        not_ready = _("%(name)s is not ready: %(state)s.") % shown
    attach = not_ready or _why_not_used(volume)
    if not attach and volume.is_snapshot:
        attach = _("%(name)s is a snapshot, which stays as it is; make a volume from it.") % shown
    if not attach and state == State.ATTACHED:
        attach = _("%(name)s is attached already; detach it first.") % shown
    resize = not_ready
    if not resize and volume.is_snapshot:
        resize = _("%(name)s is a snapshot, which stays as it is; make a volume from it.") % shown
    delete = ""
    if state == State.ATTACHED:
        delete = _("%(name)s is attached; detach it first.") % shown
    elif state in {State.DELETING, State.DELETED}:
        delete = _("%(name)s is deleted already.") % shown
    return {
        "attach": attach,
        "detach": "" if state == State.ATTACHED else _("%(name)s is not attached.") % shown,
        "resize": resize,
        "snapshot": not_ready or _why_not_copied(volume),
        "delete": delete,
        "restore": "" if volume.can_be_restored else _("There is no deletion of %(name)s to take back.") % shown,
        "rename": _("%(name)s is deleted already.") % shown if state == State.DELETED else "",
    }


def _why_not_used(volume: Volume) -> str:
    """Return why no instance can use the volume now."""
    shown = _named(volume)
    if volume.health != Health.OK or volume.node.reachability in SILENT:
        return _("%(name)s cannot be reached now; its node %(node)s does not answer for it.") % shown
    if volume.used_bytes is not None and volume.used_bytes > volume.size_bytes:
        return _("%(name)s holds more than its %(size)s GiB; make it bigger first.") % shown
    if is_being_copied(volume):
        return _("%(name)s is being copied; try again when its snapshot is ready.") % shown
    return ""


def _why_not_copied(volume: Volume) -> str:
    """Return why no copy can be made of the volume now: what is being written to has no moment to copy."""
    shown = _named(volume)
    if volume.state not in {State.AVAILABLE, State.ATTACHED}:
        return _("%(name)s is not ready: %(state)s.") % shown
    if volume.health != Health.OK:
        return _("%(name)s cannot be reached now; its node %(node)s does not answer for it.") % shown
    live = live_attachment(volume)
    if live is not None and _why_not_at_rest(live.instance):
        return _("%(name)s is in use; stop %(instance)s first, so that the copy is whole.") % {
            **shown, "instance": live.instance.name
        }  # fmt: skip
    return ""


def _why_not_at_rest(instance: Instance) -> str:
    if Phase(instance.phase) not in AT_REST:
        return _("%(name)s is %(phase)s; stop it first.") % {
            "name": instance.name, "phase": instance.get_phase_display()
        }  # fmt: skip
    if instance.quota_held:
        return _("%(name)s still gives back the GPUs of its last run; try again in a moment.") % {"name": instance.name}
    return ""


def is_being_copied(volume: Volume) -> bool:
    known: bool | None = getattr(volume, "is_being_copied", None)
    return COPIES.filter(source=volume).exists() if known is None else known


def _lock_instance(instance: Instance) -> Instance:
    return Instance.objects.select_for_update(no_key=True).get(pk=instance.pk)


def _refuse(why: str) -> None:
    if why:
        raise IllegalMove(why)


def _named(volume: Volume) -> dict[str, object]:
    return {
        "name": volume.name,
        "state": volume.get_state_display(),
        "size": volume.size_gib,
        "node": volume.node.name,
    }


def start_meter(volume: Volume, at: datetime) -> None:
    project, token = volume.project, volume.ordered_with
    labels = {"project": project.public_id, "site": volume.site.public_id}
    usage.start(
        organization=project.organization,
        resource_id=volume.public_id,
        resource_name=volume.name,
        labels=labels | ({"token": token.public_id} if token else {}),
        quantity=volume.size_gib,
        price_version=volume.price_version,
        at=at,
        meter=UsageSpan.Meter.VOLUME,
    )


def stop_meter(volume: Volume, at: datetime) -> None:
    usage.stop(resource_id=volume.public_id, meter=UsageSpan.Meter.VOLUME, at=at)
