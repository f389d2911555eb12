"""What capacity managers do to nodes and to what runs there. Every change leaves an audit entry in its transaction."""

from datetime import datetime

from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from marketplace import audit, instance_texts
from marketplace.access import Actor
from marketplace.errors import BadOrder
from marketplace.models import Offer
from provisioning import instances, inventory, nodes
from provisioning.errors import IllegalMove, StaleInstance
from provisioning.models import Fabric, Instance, Node, Reason


@transaction.atomic
def announce(
    *,
    actor: Actor,
    name: str,
    offer: Offer,
    fabric: Fabric,
    rack: str,
    gpu_model: str,
    gpu_count: int | None,
    gpu_memory_mib: int | None,
) -> Node:
    """Say which machine will come; it joins with a token of its own. What is left empty is as the offer says.

    Raises BadOrder where the machine does not fit its offer: nodes of one offer are interchangeable.
    """
    model, count = gpu_model or offer.gpu_model, gpu_count or offer.gpus_per_node
    if fabric.site_id != offer.site_id:
        raise BadOrder("fabric", _("Choose a fabric in %(site)s, where the offer is sold.") % {"site": offer.site})
    if model != offer.gpu_model:
        raise BadOrder("gpu_model", _("The offer is made of %(model)s GPUs.") % {"model": offer.gpu_model})
    if count != offer.gpus_per_node:
        text = ngettext(
            "A node of this offer has %(count)s GPU.", "A node of this offer has %(count)s GPUs.", offer.gpus_per_node
        )
        raise BadOrder("gpu_count", text % {"count": offer.gpus_per_node})
    try:
        with transaction.atomic():
            node = Node.objects.create(
                name=name,
                offer=offer,
                fabric=fabric,
                rack=rack,
                gpu_model=model,
                gpu_count=count,
                gpu_memory_mib=gpu_memory_mib or offer.gpu_memory_gib * 1024,
            )
    except IntegrityError as error:
        raise BadOrder("name", _("There is a node named %(name)s already.") % {"name": name}) from error
    after = {"name": name, "offer": offer.slug, "fabric": str(fabric), "rack": rack, "gpus": f"{count} × {model}"}
    audit.record(actor=actor, organization=None, verb="node.announce", subject_id=node.public_id, after=after)
    return node


@transaction.atomic
def issue_join_token(*, actor: Actor, node: Node, at: datetime) -> str:
    """Return a new one-time token, to be shown once; earlier unused ones stop working."""
    secret = nodes.issue_join_token(node=node, at=at)
    audit.record(actor=actor, organization=None, verb="node.join_token", subject_id=node.public_id)
    return secret


@transaction.atomic
def cordon(*, actor: Actor, node: Node, reason: str, at: datetime) -> None:
    """Place nothing new there; what runs goes on."""
    was = node.state
    nodes.cordon(node=node, reason=reason, at=at)
    _record(actor, node, "node.cordon", was)


@transaction.atomic
def uncordon(*, actor: Actor, node: Node) -> None:
    """Let placement use it again."""
    was = node.state
    nodes.uncordon(node=node)
    _record(actor, node, "node.uncordon", was)


@transaction.atomic
def accept_inventory(*, actor: Actor, node: Node, at: datetime) -> None:
    """Make the GPUs that a node says it has its inventory. Refused while an instance holds one that is gone."""
    changes = inventory.accept(node=node, at=at)
    if changes:
        after = {"changes": changes, "gpus": node.gpu_count}
        audit.record(
            actor=actor, organization=None, verb="node.accept_inventory", subject_id=node.public_id, after=after
        )


def drain(*, actor: Actor, node: Node, reason: str, at: datetime) -> int:
    """Place nothing new there and stop what runs, each instance by itself; return how many were asked to stop."""
    was = node.state
    with transaction.atomic():
        nodes.drain(node=node, reason=reason, at=at)
        _record(actor, node, "node.drain", was)
    stopped = 0
    for instance in nodes.living_on(node).select_related("project__organization").order_by("pk"):
        try:
            stop_instance(actor=actor, instance=instance, reason=f"{node.name} is being drained: {reason}", at=at)
        except (IllegalMove, StaleInstance):
            continue  # it moved by itself meanwhile
        stopped += 1
    return stopped


@transaction.atomic
def confirm_off(*, actor: Actor, node: Node, reason: str, at: datetime) -> int:
    """Take all that a silent node ran as ended, since somebody saw that it is off; return how much that was."""
    was = node.state
    given_up = nodes.confirm_off(node=node, at=at)
    _record(actor, node, "node.confirm_off", was, confirmed=reason, given_up=given_up)
    return given_up


def _record(actor: Actor, node: Node, verb: str, was: str, **more: object) -> None:
    after = {"state": node.state, "reason": node.state_reason, **more}
    audit.record(
        actor=actor, organization=None, verb=verb, subject_id=node.public_id, before={"state": was}, after=after
    )


@transaction.atomic
def stop_instance(*, actor: Actor, instance: Instance, reason: str, at: datetime) -> None:
    """Take an instance's GPUs back; its customer may start it again. Stopping what is stopped changes nothing."""
    was = instance.phase
    message = instance_texts.STOPPED_BY_OPERATOR(text=reason)
    instances.stop(instance=instance, at=at, reason=Reason.OPERATOR, message=message)
    _record_end(actor, instance, "instance.stop", was, reason)


@transaction.atomic
def terminate_instance(*, actor: Actor, instance: Instance, reason: str, at: datetime) -> None:
    """End an instance for good. Terminating what is terminated changes nothing."""
    was = instance.phase
    message = instance_texts.TERMINATED_BY_OPERATOR(text=reason)
    instances.terminate(instance=instance, at=at, reason=Reason.OPERATOR, message=message)
    _record_end(actor, instance, "instance.terminate", was, reason)


def _record_end(actor: Actor, instance: Instance, verb: str, was: str, reason: str) -> None:
    if instance.phase != was:
        audit.record(
            actor=actor,
            organization=instance.project.organization,
            verb=verb,
            subject_id=instance.public_id,
            before={"phase": was},
            after={"phase": instance.phase, "reason": reason},
        )
